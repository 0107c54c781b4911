"""CLIPTeX: pseudo-supervision from model-zoo experts for a better CLIP."""

__version__ = "0.1.0"
