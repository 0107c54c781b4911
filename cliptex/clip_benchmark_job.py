"""The clip_benchmark command, on any NumPy: `python -m cliptex.clip_benchmark_job eval --dataset ...`.

clip_benchmark 1.6.1 counts its hits with `float(array)` of an array of one element, which NumPy 2.4 refuses. Here
`float` means in that one module what it meant before; all else is clip_benchmark's own.
"""

from typing import Any

import numpy as np


def float_as_before(value: Any) -> float:
    """`float(value)`, which may be an array of one element, as NumPy before 2.4 has it."""
    return float(value.item()) if isinstance(value, np.ndarray) else float(value)


def main() -> None:
    """Run clip_benchmark's command line."""
    from clip_benchmark import cli
    from clip_benchmark.metrics import zeroshot_classification

    zeroshot_classification.float = float_as_before
    cli.main()


if __name__ == "__main__":
    main()
