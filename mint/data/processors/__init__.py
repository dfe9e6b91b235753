"""Image processors, one file per family: from pictures to the tensors a model reads."""
