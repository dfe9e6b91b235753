"""Hand-written gradients and kernels, each next to its plain version."""
