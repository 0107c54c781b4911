"""Run the clip_benchmark command: `python -m cliptex.evaluation.clip_benchmark_job eval --dataset ...`.

Two changes to clip_benchmark 1.6.1. It converts arrays with one element by `float(array)`, an error since NumPy 2.4, so
the name `float` is replaced in its module `zeroshot_classification`. And webdataset must not unpickle members of tars,
which could execute code: they stay bytes.
"""

from typing import Any

import numpy as np

UNPICKLED = ("pyd", "pickle", "pkl", "pth", "pt")
"""Suffixes of members of a tar that webdataset unpickles."""


def float_of_array(value: Any) -> float:
    """`float(value)`; like NumPy before 2.4, it accepts an array with one element."""
    return float(value.item()) if isinstance(value, np.ndarray) else float(value)


def disable_unpickling() -> None:
    """Remove webdataset's decoders of pickles, which can execute code in a tar."""
    from webdataset import autodecode

    for suffix in UNPICKLED:
        autodecode.decoders.pop(suffix, None)


def main() -> None:
    """Run clip_benchmark's command line."""
    from clip_benchmark import cli
    from clip_benchmark.metrics import zeroshot_classification

    disable_unpickling()
    zeroshot_classification.float = float_of_array
    cli.main()


if __name__ == "__main__":
    main()
