"""The interface of a benchmark: it reads an official layout and provides splits, class names and tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from cliptex.benchmarks.checked import Checked
from cliptex.benchmarks.reading import read_mark
from cliptex.core.errors import CliptexError

UNPACK = "unpack the official archives again (docs/data.md)"


class Benchmark(ABC):
    """A benchmark, read from the folder `root` in its official layout."""

    name: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]]
    """The tasks among PROBE_TASKS that it supports."""
    eval_split: ClassVar[str] = "val"
    """Official name of the evaluation split, as stated in the results."""
    variants: ClassVar[tuple[str, ...]] = ()
    """Variants of the official data, selected in the configuration; the first is the default."""
    has_training_split: ClassVar[bool] = True
    """False for data that are only evaluated, by zero-shot or without training; no probe can be trained on them."""
    official_counts: ClassVar[Mapping[str, int]] = {}
    """Number of samples in the parts "train" and "eval" of the official data; empty: any number is valid."""

    def __init__(self, root: Path, mark: Mapping[str, Any] | None = None):
        """mark: result of `read_mark`; read from `root` by default."""
        self.root = Path(root)
        self.mark = dict(read_mark(self.root) if mark is None else mark)
        self.source: str | None = self.mark.get("source")
        """One of `SOURCES` in `cliptex.benchmarks.reading`, from the mark in `root`; None without a mark."""
        self.variant: str | None = self.mark.get("variant") or next(iter(self.variants), None)
        """The variant in `root`, one of `variants`."""
        evaluation_only = self.mark.get("evaluation_only") or not self.has_training_split
        self.parts = ("eval",) if evaluation_only else ("train", "eval")
        """The parts whose data are in `root`."""

    @property
    def identity(self) -> list[Any]:
        """Identifies these samples among benchmarks, variants and corruptions; a JSON value."""
        return [self.name, self.variant]

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Names in label order, with background first if it is a class; empty without classes."""

    @property
    def num_classes(self) -> int:
        """Number of classes, which samples are checked against."""
        return len(self.class_names)

    def samples(self, part: str) -> Sequence[dict[str, Any]]:
        """The samples of `part` ("train" or "eval") in the official order, read on access.

        A sample has `id` (str), `image` (uint8 RGB [H, W, 3]), optionally `file` (Path of the stored image) and
        `truth_file` (Path of its ground truth, for messages), and per task: `mask` (uint8 [H, W], 255 = ignore),
        `boxes` (float32 [N, 4] xyxy), `labels` (int64 [N], index into class_names), `masks` (bool [N, H, W]), `crowd`
        (bool [N]), `depth` (float32 [H, W] metres, NaN = invalid), `normals` (float32 [H, W, 3] unit vectors, x right,
        y down, z forward, away from the surface's visible side as in docs/architecture.md, NaN = invalid), `label`
        (int). Raises CliptexError with the file if the layout is not the official one, if a value cannot be ground
        truth, or if the number of samples of official data is not the official number.
        """
        if part not in self.parts:
            if not self.has_training_split:
                raise CliptexError(f"{self.root}: {self.name} has no training split; it is only evaluated")
            remedy = f"with your --config, run: cliptex fetch --benchmark {self.name} --no-evaluation-only"
            raise CliptexError(f"{self.root}: only the data of the evaluation split were fetched; {remedy}")
        samples = Checked(self.read(part), self)
        official = self.official_counts.get(part)
        if self.source == "official" and official is not None and len(samples) != official:
            problem = f"{len(samples):,} samples to {part}, officially {official:,}; files are missing or belong to"
            raise CliptexError(f"{self.root}: {problem} another data set: {UNPACK}")
        return samples

    def expected(self, part: str) -> int | None:
        """Expected number of samples of a part, official or rendered; None if unknown."""
        if self.source in ("subset", "own"):
            return None
        if self.source == "official":
            return self.official_counts.get(part)
        return self.mark.get("counts", {}).get({"train": "train", "eval": "val"}[part])

    def names(self, part: str) -> Sequence[str]:
        """Names of the images of a part, to find images that are in both parts; empty if names do not identify them."""
        return ()

    def check_apart(self) -> None:
        """Raise CliptexError if an image of data that are not rendered is in both parts."""
        if self.source in (None, "miniature") or self.parts != ("train", "eval"):
            return
        if shared := set(self.names("train")).intersection(self.names("eval")):
            problem = f"{min(shared)} and {len(shared) - 1:,} other images are both in the training split and in"
            raise CliptexError(f"{self.root}: {problem} {self.eval_split}; {UNPACK}")

    @abstractmethod
    def read(self, part: str) -> Sequence[dict[str, Any]]:
        """Like `samples`, without checking the number."""

    def prepare(self) -> dict[str, Any]:
        """Called once after official data were installed: check them, derive files. Returns values for the mark."""
        return {}

    def prepare_part(self, part: str) -> dict[str, Any]:
        """Like `prepare`, for an optional part of the official data, such as "panoptic"."""
        return {}
