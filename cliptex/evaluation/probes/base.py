"""What a probe task must provide. The package's tasks are a file each next to this one; your own extends `ProbeTask`.

A benchmark names its tasks (`Benchmark.tasks`), a protocol has a section per task, and a head of that section gives one
or more rows of results. Imports nothing heavy: the workflow asks tasks for their sections and output files at every
start, so methods that compute import NumPy and PyTorch themselves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from cliptex.core.errors import CliptexError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from cliptex.benchmarks.base import Benchmark
    from cliptex.evaluation.drawing import Drawing
    from cliptex.evaluation.metrics.base import Arrays
    from cliptex.evaluation.metrics.display import Metric
    from cliptex.evaluation.probes.features import Features
    from cliptex.evaluation.probes.parts import Part, TruthOf
    from cliptex.evaluation.probes.tuning import Tuner
    from cliptex.evaluation.probes.views import Size
    from cliptex.evaluation.protocols.base import ProbeSection
    from cliptex.evaluation.protocols.resolve import Entry
    from cliptex.models.encoders import Encoder


def lazy(path: str) -> Callable[..., Any]:
    """The function or class "module:name" below `cliptex.evaluation`, imported when it is first called."""
    return lambda *args: imported(path)(*args)


def imported(path: str) -> Any:
    """What `lazy` calls."""
    module, _, name = path.partition(":")
    return getattr(import_module(f"cliptex.evaluation.{module}"), name)


@dataclass(frozen=True)
class Measure:
    """One kind of result row: its name, its main metric from per-image parts, and how the report shows it.

    name: `task` in the row. title: as the report writes it. main: name of the main metric. from_images: (arrays of all
    images, weights [B, N]) -> the main metric for each row of weights, float64 [B]. each_image: arrays -> the main
    metric of every image, float64 [N]; by default `from_images` of one image at a time. per_class: arrays -> the metric
    of each class over all images, percent [K]. dense: whether it counts in the report's verdict on dense tasks.
    quantity: what metrics are of, where their names do not say it (`RMSE of depth`). metrics: metrics that are new, or
    that differ from `cliptex.evaluation.metrics.display.METRICS`. hub_task: the task's name on the Hugging Face hub.
    family: how the encoder is read, unless the row says otherwise (`Row.family`): `trained_head`, `no_head` or `text`.
    """

    name: str
    title: str
    main: str
    from_images: Callable[[Arrays, np.ndarray], np.ndarray]
    each_image: Callable[[Arrays], np.ndarray] | None = None
    per_class: Callable[[Arrays], np.ndarray] | None = None
    dense: bool = True
    quantity: str = ""
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    hub_task: str = "image-feature-extraction"
    family: str = "trained_head"


@dataclass(frozen=True)
class Outcome:
    """Result of one head on one task: a row of results without names, and what is kept of its predictions.

    task: name of its `Measure`. predictions: arrays of the .npz file (docs/results-json.md). per_image: the arrays of
    `Measure.from_images`. thumbnails: small copies of the predictions (`cliptex.evaluation.thumbnails`); may be empty.
    """

    task: str
    metrics: dict[str, float | None]
    num_parameters: int
    hyperparameters: dict[str, Any]
    protocol: str
    predictions: dict[str, np.ndarray]
    per_image: Arrays
    thumbnails: Arrays = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """What all heads of one evaluation share. kept: the evaluation samples whose predictions are kept."""

    benchmark: Benchmark
    protocol: Entry
    holdout: float
    seed: int
    kept: list[dict[str, Any]]


@dataclass(frozen=True)
class Data:
    """One encoder's features of both parts, with the ground truth.

    size: height and width that the encoder sees. train_features, eval_features: standardised if the section says so.
    unstandardised: training and evaluation features as the encoder computes them, read batch by batch.
    """

    train: Part
    eval: Part
    size: Size
    train_features: Features | torch.Tensor
    eval_features: Features | torch.Tensor
    unstandardised: tuple[Features, Features]

    @property
    def features(self) -> tuple[Features | torch.Tensor, Features | torch.Tensor]:
        """Of training and evaluation."""
        return self.train_features, self.eval_features


class ProbeTask(ABC):
    """One probe task. Instances have no state."""

    name: ClassVar[str]
    """Key of its section in a protocol, and in `Benchmark.tasks` of the package's own benchmarks."""
    section: ClassVar[type[ProbeSection]]
    """Its section of a protocol; `heads` maps names to options that have a `kind`."""
    measures: ClassVar[tuple[Measure, ...]]
    """The kinds of rows that a head may give."""
    tunable: ClassVar[tuple[str, ...]] = ()
    """Kinds of heads that can be trained together with the encoder."""
    has_thumbnails: ClassVar[bool] = True
    """Whether small copies of all predictions are kept for the report."""

    @abstractmethod
    def truth(self, run: Run, encoder: Encoder) -> TruthOf:
        """Returns a function (sample, view) -> the ground truth to keep; the view is None for an evaluation image."""

    @abstractmethod
    def outcomes(self, run: Run, head: str, data: Data) -> list[Outcome]:
        """Train the head of that name on the training features and evaluate it: one outcome per measure.
        A head whose options are `protocols.base.Neighbours` reads `data.unstandardised`."""

    def tuner(self, *args: Any) -> Tuner:
        """How the head is trained together with the encoder, for kinds of heads in `tunable`.
        args: those of a tuner's `__init__`, such as `SegmentationTuner`'s: run, head, tuned, split, seed, options."""
        raise CliptexError(f"{self.name}: its heads cannot be trained with an encoder; leave the task out")

    def truth_bytes(self, section: Any, image_size: int) -> int:
        """Bytes of a training view's ground truth in memory. image_size: the encoder's own input side."""
        return 0

    def drawing(self) -> type[Drawing] | None:
        """How the report's gallery draws predictions; None for a task that it does not show."""
        return None

    def thumbnail(self, arrays: Mapping[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
        """Prediction of one image from the arrays of `Outcome.thumbnails`, with the keys of a sample."""
        raise CliptexError(f"{self.name}: keeps no thumbnails")


class MapProbe(ProbeTask):
    """A task that predicts a map of numbers per image, such as depth.

    channels: of the map. probe: trains and evaluates a head, as `cliptex.evaluation.probes.heads.depth.probe_depth`.
    """

    channels: ClassVar[int]
    probe: ClassVar[Callable[..., Outcome]]

    def outcomes(self, run: Run, head: str, data: Data) -> list[Outcome]:
        return [lazy("probes.heads.maps:map_outcome")(self.probe, self.name, run, head, data)]

    def truth_bytes(self, section: Any, image_size: int) -> int:
        side = section.ridge_grid or section.truth_px or section.input.size_px or image_size
        height, width = (side, side) if isinstance(side, int) else side
        return 4 * height * width * self.channels

    def truth_grid(self, run: Run, encoder: Encoder) -> Size:
        """Height and width of the grid on which training truths are kept: that of ridge regression if all heads are
        solved by it, else `truth_px` or the encoder's input."""
        section = run.protocol.section(self.name)
        if (side := section.ridge_grid) is not None:
            return side, side
        return encoder.input_size(section.truth_px or section.input.size_px)
