"""What an expert's quality is to be read against: the best label that needs no image."""

from pathlib import Path

import numpy as np

from cliptex.experts.fitting import read_renders


def prior_label(task: str, renders: Path) -> np.ndarray | None:
    """One label for every picture, in the form that the task's experts give; None for a task without one.

    renders: a file of labelled renders (see `cliptex.experts.fitting`), never the one that is judged on. Each pixel has
    the inverse of the mean depth there (0 where there is only sky), or the mean normal (NaN where there is only sky);
    segmentation has the background everywhere. Float32 [H, W] or [H, W, 3], uint8 [H, W].
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
        # the inverse of the mean, which the metrics like better than the mean inverse
        return np.divide(count, total, out=np.zeros_like(total), where=total > 0).astype(np.float32)
    length = np.linalg.norm(total, axis=-1, keepdims=True)
    return np.divide(total, length, out=np.full_like(total, np.nan), where=length > 0).astype(np.float32)
