"""CLIPTeX: improve CLIP with pseudo-labels from public vision models."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from cliptex.models.inference import TrainedModel

__version__ = "0.1.0"


def load(folder: str | Path, device: str | None = None) -> TrainedModel:
    """Load a trained model that embeds images and texts, and predicts if the folder has its heads.

    folder: written by training or `cliptex export`. device: "cpu", "cuda", ...; by default the GPU if there is one.
    Raises CliptexError if files are missing or do not match.
    """
    from cliptex.models.inference import TrainedModel

    return TrainedModel(folder, device)
