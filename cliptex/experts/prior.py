"""Baseline for an expert's quality: the best label that ignores the image."""

from pathlib import Path

import numpy as np

from cliptex.experts.fitting import read_renders


def prior_label(task: str, renders: Path) -> np.ndarray | None:
    """One label for all images, as an expert for the task would return it; None for other tasks.

    renders: a file of labelled renders (see `cliptex.experts.fitting`), not the one evaluated on. Each pixel has the
    inverse of the mean depth there (0 if always sky), or the mean normal (NaN if always sky); segmentation has the
    background everywhere. Float32 [H, W] or [H, W, 3], uint8 [H, W].
    """
    if task == "segmentation":
        return np.zeros(read_renders(renders, ("instance",))["instance"].shape[1:], np.uint8)
    if task not in ("depth", "normals"):
        return None
    values = read_renders(renders, (task,))[task]
    valid = np.isfinite(values)
    count = valid.sum(axis=0)
    total = np.sum(values, axis=0, dtype=np.float64, where=valid)
    if task == "depth":
        # the inverse of the mean scores better in the metrics than the mean of the inverse
        return np.divide(count, total, out=np.zeros_like(total), where=total > 0).astype(np.float32)
    length = np.linalg.norm(total, axis=-1, keepdims=True)
    return np.divide(total, length, out=np.full_like(total, np.nan), where=length > 0).astype(np.float32)
