"""A training run: its folder, checkpoints, log and curves."""
