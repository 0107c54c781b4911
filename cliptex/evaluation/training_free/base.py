"""What a task of the evaluation without training must provide. The package's tasks are a file each next to this one.

A protocol has a section for each task, whose `variants` are ways of reading the frozen encoder. Every variant gives one
or more rows of results for each model. Imports nothing heavy: the workflow asks tasks for their sections at every
start, so methods that compute import NumPy and PyTorch themselves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from cliptex.core.errors import CliptexError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from cliptex.benchmarks.base import Benchmark
    from cliptex.config import Section
    from cliptex.evaluation.drawing import Drawing
    from cliptex.evaluation.probes.base import Measure, Outcome
    from cliptex.evaluation.zeroshot import ZeroShotModel
    from cliptex.models.encoders import Encoder


@dataclass(frozen=True)
class FrozenModel:
    """A model or baseline. encoder: its image encoder. zero_shot: the whole model, with tokenizer and preprocessing;
    None for the baseline `position`, which has no text tower."""

    name: str
    seed: int
    encoder: Encoder
    zero_shot: ZeroShotModel | None

    @property
    def row(self) -> str:
        """Name among the rows of results, `cliptex/seed0`."""
        return f"{self.name}/seed{self.seed}"

    @property
    def sha256(self) -> str:
        """Digest of the weights."""
        return self.zero_shot.sha256 if self.zero_shot else self.encoder.sha256


@dataclass(frozen=True)
class TrainingFreeRun:
    """What a task evaluates. section: of the protocol. models: with different weights, each once. max_eval: number of
    evaluation images, the first ones; None for all. keep: number of first images whose predictions are kept."""

    benchmark: Benchmark
    section: Any
    models: Sequence[FrozenModel]
    max_eval: int | None
    keep: int

    @property
    def samples(self) -> Sequence[dict[str, Any]]:
        """The evaluation samples. Raises CliptexError if the split does not have the expected number."""
        samples, expected = self.benchmark.samples("eval"), self.benchmark.expected("eval")
        if expected is not None and len(samples) != expected:
            root, counts = self.benchmark.root, f"{len(samples):,} evaluation images, not {expected:,}"
            raise CliptexError(f"{root}: has {counts}; restore the data")
        return FirstSamples(samples, min(self.max_eval or len(samples), len(samples)))


class FirstSamples(Sequence):
    """The first `count` samples, read on access."""

    def __init__(self, samples: Sequence[dict[str, Any]], count: int):
        self._samples, self._count = samples, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._samples[index]


@dataclass(frozen=True)
class Evaluated:
    """Results of a task.

    ids: N evaluated images (or pairs, or videos), the same for all tasks of a benchmark. outcomes: (variant, model,
    outcome) of each row; arrays of `Outcome.per_image` have N rows. images, truth: for the file of predictions, the
    first images uint8 [H, W, 3], and arrays that all rows share. chance: kind of row -> metric -> score of guessing,
    percent. details: what the numbers depend on besides the protocol, as JSON. class_names: in label order, if they are
    not the benchmark's.
    """

    ids: list[str]
    outcomes: list[tuple[str, FrozenModel, Outcome]]
    images: list[np.ndarray] = field(default_factory=list)
    truth: Mapping[str, np.ndarray] = field(default_factory=dict)
    chance: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    class_names: Sequence[str] = ()


class TrainingFreeTask(ABC):
    """One task that is evaluated without training. Instances have no state."""

    name: ClassVar[str]
    """Key of its section in a protocol."""
    section: ClassVar[type[Section]]
    """Its section of a protocol; `variants` maps names to options."""
    needs: ClassVar[str]
    """What a benchmark must have: an entry of `Benchmark.tasks`, or an attribute of its class."""
    measures: ClassVar[tuple[Measure, ...]]
    """The kinds of rows that a variant may give; `family` says how the encoder is read."""
    reads_text: ClassVar[bool]
    """Whether class names are embedded by the text tower, which the baseline `position` has not."""

    def suits(self, benchmark: type[Benchmark]) -> bool:
        """Whether the task can be evaluated on a benchmark."""
        return self.needs in benchmark.tasks or hasattr(benchmark, self.needs)

    @abstractmethod
    def evaluate(self, run: TrainingFreeRun) -> Evaluated:
        """Evaluate all variants with all models; images are decoded once for all of them. Gradients are off."""

    def tower_problem(self, section: Any, visual: torch.nn.Module) -> str | None:
        """Why a variant of the section cannot read an image tower, with the key and the remedy; None if all can."""
        return None

    def drawing(self) -> type[Drawing] | None:
        """How the report's gallery draws predictions; None for a task that it does not show."""
        return None

    def thumbnail(self, arrays: Mapping[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
        """Prediction of one image from the arrays of `Outcome.thumbnails`, with the keys of a sample."""
        raise CliptexError(f"{self.name}: keeps no thumbnails")
