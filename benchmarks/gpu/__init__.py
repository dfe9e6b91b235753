"""What a GPU should demonstrate, as one command: ``python -m benchmarks.gpu``."""
