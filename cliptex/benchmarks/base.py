"""What a benchmark must do: read the official layout, give its splits, class names and tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from cliptex.benchmarks.reading import read_mark
from cliptex.core.errors import CliptexError

PROBE_TASKS = ("semantic_segmentation", "detection", "depth", "normals", "classification")


class Benchmark(ABC):
    """One benchmark, read from `root` in its official on-disk layout."""

    name: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]]
    """Which of PROBE_TASKS it judges."""
    eval_split: ClassVar[str] = "val"
    """Official name of the split that is judged, as written in the results."""
    variants: ClassVar[tuple[str, ...]] = ()
    """Forms of the official data of which the configuration chooses one; the first is the default."""
    official_counts: ClassVar[Mapping[str, int]] = {}
    """Samples of the parts "train" and "eval" in the official data; a benchmark without may have any number."""

    def __init__(self, root: Path, mark: Mapping[str, Any] | None = None):
        """mark: what `read_mark` would say; read from `root` by default."""
        self.root = Path(root)
        self.mark = dict(read_mark(self.root) if mark is None else mark)
        self.source: str | None = self.mark.get("source")
        """"miniature" or "official" as the mark in `root` says; None without one."""
        self.variant: str | None = self.mark.get("variant") or next(iter(self.variants), None)
        """Which of `variants` lies in `root`."""

    @property
    def identity(self) -> list[Any]:
        """What tells these samples from those of another benchmark, variant or corruption; goes into JSON."""
        return [self.name, self.variant]

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """In label order, background first where it is a class; empty without classes."""

    def samples(self, part: str) -> Sequence[dict[str, Any]]:
        """The samples of `part` ("train" or "eval"), in the official order, read when indexed.

        A sample holds `id` (str), `image` (uint8 RGB [H, W, 3]), perhaps `file` (Path of the stored image), and by
        task: `mask` (uint8 [H, W], 255 = ignore), `boxes` (float32 [N, 4] xyxy), `labels` (int64 [N], index into
        class_names), `masks` (bool [N, H, W]), `crowd` (bool [N]), `depth` (float32 [H, W] metres, NaN = invalid),
        `normals` (float32 [H, W, 3] unit vectors, x right, y down, z forward, away from the surface's visible side as
        in docs/architecture.md, NaN = invalid), `label` (int). Raises CliptexError naming the file when the layout is
        not the official one, and naming both numbers when official data have not as many samples as they should.
        """
        found = self.read(part)
        wanted = self.official_counts.get(part)
        if self.source == "official" and wanted is not None and len(found) != wanted:
            raise CliptexError(
                f"{self.root}: {len(found):,} samples to {part}, officially {wanted:,}; files are missing or are of"
                f" another data set: unpack the official archives again (docs/data.md)"
            )
        return found

    def expected(self, part: str) -> int | None:
        """How many samples a part has, officially or as rendered; None where nobody knows."""
        if self.source == "official":
            return self.official_counts.get(part)
        return self.mark.get("counts", {}).get({"train": "train", "eval": "val"}[part])

    def names(self, part: str) -> Sequence[str]:
        """What tells the images of both parts apart, without reading any; none where nothing does."""
        return ()

    def check_apart(self) -> None:
        """Raises CliptexError that names an image of official data which is in both parts."""
        if self.source == "official" and (both := set(self.names("train")).intersection(self.names("eval"))):
            raise CliptexError(
                f"{self.root}: {min(both)} is in the training split and in {self.eval_split}, and so are"
                f" {len(both) - 1:,} others; what was learned must not judge: unpack the official archives again"
                " (docs/data.md)"
            )

    @abstractmethod
    def read(self, part: str) -> Sequence[dict[str, Any]]:
        """What `samples` gives, however many there are."""

    def prepare(self) -> dict[str, Any]:
        """Called once, when official data have been put in place: derive what is needed from them. Returns what the
        mark shall say besides."""
        return {}
