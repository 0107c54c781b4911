"""Check the samples of all benchmarks as they are read, so that a wrong value is an error that names its file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cliptex.core.errors import CliptexError

if TYPE_CHECKING:
    from cliptex.benchmarks.base import Benchmark

IGNORE = 255
LENGTH_TOLERANCE = 0.05
"""Of normals, which 8-bit files round."""


class Checked(Sequence):
    """The samples of a benchmark, each checked on access. Raises CliptexError for ground truth that cannot be."""

    def __init__(self, samples: Sequence[dict[str, Any]], data: Benchmark):
        self._samples, self._data = samples, data

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self._samples[index]
        for problem in wrong_truth(sample, self._data):
            place = sample.get("truth_file") or sample.get("file") or f"{self._data.root}: image {sample['id']}"
            raise CliptexError(f"{place}: {problem}")
        return sample


def wrong_truth(sample: dict[str, Any], data: Benchmark) -> Iterator[str]:
    """What is wrong with the ground truth of a sample, with the value and the remedy."""
    if "mask" in sample:
        yield from _wrong_classes(sample["mask"], data)
    for key in {"labels", "label"} & sample.keys():
        values, count = np.atleast_1d(sample[key]), data.num_classes
        if (wrong := values[(values < 0) | (values >= count)]).size:
            yield f"has class {wrong[0]}, but {data.name} has the classes 0..{count - 1}; correct it, or `class_names`"
    if "depth" in sample:
        depth = sample["depth"]
        if (wrong := depth[(depth <= 0) | np.isinf(depth)]).size:
            yield f"has the depth {wrong[0]:g}; depths are metres above 0, and NaN where they are not known"
    if "normals" in sample:
        lengths = np.linalg.norm(sample["normals"], axis=-1)
        if (wrong := lengths[np.abs(lengths - 1) > LENGTH_TOLERANCE]).size:
            yield f"has a normal of length {wrong[0]:.3g}; normals have length 1, and are NaN where they are not known"


def _wrong_classes(mask: np.ndarray, data: Benchmark) -> Iterator[str]:
    count = data.num_classes
    if mask.dtype != np.uint8 or mask.ndim != 2:
        yield f"its mask is {mask.dtype} {list(mask.shape)}; return it as uint8 [H, W]"
        return
    wrong = np.flatnonzero(np.bincount(mask.ravel(), minlength=IGNORE + 1)[count:IGNORE])
    if wrong.size:
        remedy = f"name all classes in `class_names` of {data.name}, and make pixels without one {IGNORE}"
        yield f"has the value {count + wrong[0]}, but the classes are 0..{count - 1} and {IGNORE} is ignored; {remedy}"
