"""The clip_benchmark command, on any NumPy: `python -m cliptex.evaluation.clip_benchmark_job eval --dataset ...`.

clip_benchmark 1.6.1 counts its hits with `float(array)` of an array of one element, which NumPy 2.4 refuses. Here
`float` means in that one module what it meant before. Members of tars that webdataset would unpickle stay bytes.
All else is clip_benchmark's own.
"""

from typing import Any

import numpy as np

UNPICKLED = ("pyd", "pickle", "pkl", "pth", "pt")
"""Suffixes of members that are, or may be, pickles."""


def float_as_before(value: Any) -> float:
    """`float(value)`, which may be an array of one element, as NumPy before 2.4 has it."""
    return float(value.item()) if isinstance(value, np.ndarray) else float(value)


def unpickle_nothing() -> None:
    """Take the decoders that execute what a tar holds (pickles, and tensors as pickles) from webdataset."""
    from webdataset import autodecode

    for suffix in UNPICKLED:
        autodecode.decoders.pop(suffix, None)


def main() -> None:
    """Run clip_benchmark's command line."""
    from clip_benchmark import cli
    from clip_benchmark.metrics import zeroshot_classification

    unpickle_nothing()
    zeroshot_classification.float = float_as_before
    cli.main()


if __name__ == "__main__":
    main()
