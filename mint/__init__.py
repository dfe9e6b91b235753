"""Preference optimisation for biomedicine in plain PyTorch: MINT and FiRe-MPO."""

__version__ = "0.1.0"
