"""Models: plain modules under their checkpoints' parameter names, adapters on them, and decoding."""

from mint.models.checkpoint import init_model, load_language_model, load_model, load_structure, save_model

__all__ = ["init_model", "load_language_model", "load_model", "load_structure", "save_model"]
