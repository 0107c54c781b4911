"""CLIPTeX: pseudo-supervision from model-zoo experts for a better CLIP."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from cliptex.models.inference import TrainedModel

__version__ = "0.1.0"


def load(folder: str | Path, device: str | None = None) -> TrainedModel:
    """The trained model of a folder, ready to embed images and texts, and to predict while its heads are kept.

    folder: as training or `cliptex export` leaves it. device: "cpu", "cuda", ...; a GPU where there is one by default.
    Raises CliptexError when files are missing or do not fit.
    """
    from cliptex.models.inference import TrainedModel

    return TrainedModel(folder, device)
