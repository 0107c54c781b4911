"""What a benchmark must do: read the official layout, give its splits, class names and tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

PROBE_TASKS = ("semantic_segmentation", "detection", "depth", "normals", "classification")


class Benchmark(ABC):
    """One benchmark, read from `root` in its official on-disk layout."""

    name: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]]
    """Which of PROBE_TASKS it judges."""
    eval_split: ClassVar[str] = "val"
    """Official name of the split that is judged, as written in the results."""

    def __init__(self, root: Path):
        self.root = Path(root)

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """In label order, background first where it is a class; empty without classes."""

    @abstractmethod
    def samples(self, part: str) -> Sequence[dict[str, Any]]:
        """The samples of `part` ("train" or "eval"), in the official order, read when indexed.

        A sample holds `id` (str), `image` (uint8 RGB [H, W, 3]) and by task: `mask` (uint8 [H, W], 255 = ignore),
        `boxes` (float32 [N, 4] xyxy), `labels` (int64 [N], index into class_names), `masks` (bool [N, H, W]),
        `crowd` (bool [N]), `depth` (float32 [H, W] metres, NaN = invalid), `normals` (float32 [H, W, 3] unit vectors,
        x right, y down, z forward, away from the surface's visible side as in docs/architecture.md, NaN = invalid),
        `label` (int). Raises CliptexError naming the file when the layout is not the official one.
        """
