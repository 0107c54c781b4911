"""Tune encoders end to end on one benchmark, to see whether the gains of frozen ones survive it.

Reads   results/models/{model}/seed{seed}/ and resources/{benchmark}/ in its official layout.
Writes  results/finetuned/{benchmark}/{model}/seed{seed}/{head}.json, .npz and .per_image.npz, as `cliptex.evaluation.probe` does.
Holds   head, loss, batches, steps and evaluation are the frozen probe's; what differs is that the encoder learns too,
        at a lower rate, and every row says `"frozen": false`. No row of a frozen encoder ever lies in these files.

A head that the protocol trains starts as it does on frozen features. One that it solves in closed form (ridge,
logistic) starts from that solution, and learns on with the encoder ("LP-FT", Kumar et al. 2022, arXiv 2202.10054).
Features stay standardised by the mean and variance that they have before the first step.

Shapes: N images, S image side, C feature width, h x w feature map, G grid side, T targets, K classes.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import LambdaLR

from cliptex.config import Config, FineTuning
from cliptex.core.errors import CliptexError
from cliptex.core.plugins import find
from cliptex.core.progress import track
from cliptex.evaluation.finetune_targets import tuned_heads
from cliptex.evaluation.metrics import segmentation_metrics
from cliptex.evaluation.probe import TRUTHS, Run, Subject, judge_head, load_encoders, prepared
from cliptex.evaluation.probes.classification import linear_outcome, solve_logistic
from cliptex.evaluation.probes.detection import PROTOCOL as DETECTED
from cliptex.evaluation.probes.detection import (
    DetectionData,
    build_detector,
    detection_outcomes,
    detector_loss,
    held_score,
)
from cliptex.evaluation.probes.features import Features, Outcome, seed_of, standardised, take
from cliptex.evaluation.probes.geometry import (
    Solved,
    depth_outcome,
    normals_outcome,
    regression_of_depth,
    regression_of_normals,
    solve_depth,
    solve_normals,
)
from cliptex.evaluation.probes.parts import Computed, Part, Reader
from cliptex.evaluation.probes.segmentation import PROTOCOL as JUDGED
from cliptex.evaluation.probes.segmentation import PointLoss, SegmentationData, build_head, judge, segmentation_outcome
from cliptex.evaluation.probes.selection import Candidate, candidates
from cliptex.evaluation.probes.training import Optimisation, batches, rate_factor
from cliptex.evaluation.probes.views import windows_of
from cliptex.evaluation.protocols import protocol_of
from cliptex.evaluation.protocols.base import DenseTask, Training
from cliptex.models.encoders import BATCH_SIZE, Encoder

log = logging.getLogger("cliptex")
PROTOCOL = "fine-tuned end to end: the encoder by AdamW, together with the head; "
FROM_RIDGE = PROTOCOL + "the head starts from ridge regression; its map resized (bilinear) to the original resolution"


class Learning(Computed):
    """Features computed whenever they are asked for, by an encoder that learns; nothing is rounded.

    Gradients flow while somebody wants them; then all that is asked for at once is one batch.
    """

    def read(self, index: np.ndarray) -> torch.Tensor:
        index = np.asarray(index)
        if torch.is_grad_enabled():
            return self._tokens(index)
        return torch.cat([self._tokens(index[at : at + BATCH_SIZE]) for at in range(0, len(index), BATCH_SIZE)])


@dataclass
class Tuned:
    """An encoder that learns, and its features of both parts, standardised as they were before the first step."""

    encoder: Encoder
    readers: tuple[Reader, Reader]
    parts: tuple[Part, Part]
    network: torch.nn.Module = field(init=False)
    train: Features = field(init=False)
    judged: Features = field(init=False)

    def __post_init__(self):
        task = self.readers[0].task
        self.network = self.encoder.unfrozen()
        dense = isinstance(task, DenseTask)
        cls = dense and task.features.cls
        grid = self.encoder.map_shape(self.readers[0].size)[1:] if dense else None
        with torch.no_grad():
            rows = [Learning(*pair, self.encoder) for pair in zip(self.readers, self.parts, strict=True)]
            self.train, self.judged = standardised(rows, grid, cls, task.features.standardise, memory_bytes=0)


@dataclass(frozen=True)
class Recipe:
    """How one head is trained with the encoder; the schedule is that of both."""

    training: Training
    head: Candidate


Loss = Callable[[torch.nn.Module, torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]
"""(head, features of a batch, numbers of its views, generator) -> value."""


def train_together(
    tuned: Tuned,
    head: torch.nn.Module,
    loss: Loss,
    chosen: np.ndarray,
    recipe: Recipe,
    encoder_rate: float,
    options: FineTuning,
    seed: int,
) -> None:
    """Train encoder and head on the training views `chosen`; the head is in evaluation mode afterwards.

    The encoder stays in it, since it has neither dropout nor running statistics.
    """
    generator = torch.Generator().manual_seed(seed)
    training, device = recipe.training, tuned.encoder.device
    matrices = [one for one in tuned.network.parameters() if one.ndim >= 2]
    others = [one for one in tuned.network.parameters() if one.ndim < 2]
    groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=encoder_rate, fused=True)
    schedule = LambdaLR(optimizer, lambda step: rate_factor(training, step))
    of_the_head = Optimisation(head.parameters(), training, recipe.head)
    head.train()
    numbers = torch.from_numpy(chosen)
    drawn = batches(len(chosen), training.batch_size, training.steps, generator)
    for batch in track(drawn, "fine-tune", len(drawn)):
        batch = numbers[batch]
        optimizer.zero_grad()
        of_the_head.step(loss(head, tuned.train[batch].to(device), batch, generator))
        torch.nn.utils.clip_grad_norm_(tuned.network.parameters(), options.grad_clip)
        optimizer.step()
        schedule.step()
    head.eval()


class FirstMap(torch.nn.Module):
    """An mmsegmentation head that takes the one map, not a list."""

    def __init__(self, head: torch.nn.Module):
        super().__init__()
        self.head = head

    def forward(self, features_BChw: torch.Tensor) -> torch.Tensor:
        return self.head([features_BChw])


class Task(ABC):
    """One task with one head, judged on the features of an encoder that was tuned with it.

    `recipes` are what is tried; `start` gives a fresh head; `loss` as `Loss`; `score` says how good a head is on some
    training views (larger is better); `outcomes` judge it on the evaluation images.
    """

    recipes: list[Recipe]

    @abstractmethod
    def start(self) -> torch.nn.Module: ...

    @abstractmethod
    def loss(
        self, head: torch.nn.Module, features: torch.Tensor, batch: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor: ...

    def score(self, head: torch.nn.Module, tuned: Tuned, chosen: np.ndarray) -> float:
        """The loss with the sign turned."""
        total = 0.0
        for start in range(0, len(chosen), BATCH_SIZE):
            some = torch.from_numpy(chosen[start : start + BATCH_SIZE])
            features = tuned.train[some].to(tuned.encoder.device)
            total += float(self.loss(head, features, some, torch.Generator())) * len(some)
        return -total / len(chosen)

    @abstractmethod
    def outcomes(self, head: torch.nn.Module, tuned: Tuned, about: dict[str, Any], keep: int) -> list[Outcome]: ...


class Segmentation(Task):
    """A head of mmsegmentation, from its first weights."""

    def __init__(self, run: Run, name: str, tuned: Tuned, split: Any, seed: int, options: FineTuning):
        task, (train, judged) = run.protocol.semantic_segmentation, tuned.parts
        self.options, self.seed, self.device = task.heads[name], seed, tuned.encoder.device
        seen = None
        if task.input.fit == "windows":
            seen = [windows_of(shape, task.input, tuned.readers[1].size) for shape in judged.shapes]
        masks = train.truths["semantic_segmentation"]
        classes = len(run.benchmark.class_names)
        self.data = SegmentationData(masks, judged.truths["semantic_segmentation"], classes, seen)
        _, self.channels, *grid = tuned.train.shape
        self._loss = PointLoss(masks, tuple(grid), classes, self.options, self.device)
        self.recipes = [Recipe(self.options, candidate) for candidate in candidates(self.options)]

    def start(self) -> torch.nn.Module:
        torch.manual_seed(self.seed)
        return FirstMap(build_head(self.options, self.channels, self.data.num_classes)).to(self.device)

    def loss(
        self, head: torch.nn.Module, features: torch.Tensor, batch: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        return self._loss(head(features), batch, generator)

    def score(self, head: torch.nn.Module, tuned: Tuned, chosen: np.ndarray) -> float:
        masks = [self.data.train_masks[index] for index in chosen]
        return segmentation_metrics(judge(head.head, take(tuned.train, chosen), masks, self.data.num_classes)[0])[
            "mIoU"
        ]

    def outcomes(self, head: torch.nn.Module, tuned: Tuned, about: dict[str, Any], keep: int) -> list[Outcome]:
        return [segmentation_outcome(head.head, tuned.judged, self.data, about, PROTOCOL + JUDGED, keep)]


class Detection(Task):
    """A detector, from its first weights."""

    def __init__(self, run: Run, name: str, tuned: Tuned, split: Any, seed: int, options: FineTuning):
        self.options, self.seed, self.device = run.protocol.detection.heads[name], seed, tuned.encoder.device
        self.data = DetectionData.of(*tuned.parts, run.benchmark.annotations("eval"), run.kept)
        self.channels = tuned.train.shape[1]
        self.recipes = [Recipe(self.options, candidate) for candidate in candidates(self.options)]

    def start(self) -> torch.nn.Module:
        torch.manual_seed(self.seed)
        return build_detector(self.channels, self.data.num_classes, self.options).to(self.device)

    def loss(
        self, head: torch.nn.Module, features: torch.Tensor, batch: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        return detector_loss(head, features, [self.data.train_objects[index] for index in batch.tolist()])

    def score(self, head: torch.nn.Module, tuned: Tuned, chosen: np.ndarray) -> float:
        objects = [self.data.train_objects[index] for index in chosen]
        return held_score(head, take(tuned.train, chosen), objects, self.data.num_classes)

    def outcomes(self, head: torch.nn.Module, tuned: Tuned, about: dict[str, Any], keep: int) -> list[Outcome]:
        return detection_outcomes(head, tuned.judged, self.data, about, PROTOCOL + DETECTED[self.options.kind])


class Geometry(Task):
    """A 1x1 convolution, from the ridge regression on the features before the first step."""

    def __init__(self, run: Run, name: str, tuned: Tuned, split: Any, seed: int, options: FineTuning):
        section = self._section(run)
        truths, self.eval_truths = (part.truths[self.name] for part in tuned.parts)
        self.section, self.device = section, tuned.encoder.device
        with torch.no_grad():
            self.solved = self._solved(tuned.train, truths, section.heads[name], split)
        self.targets_NTGG = torch.from_numpy(self.solved.targets_VGGT).permute(0, 3, 1, 2)
        self.recipes = [_recipe(options)]

    name = "depth"

    def _section(self, run: Run) -> Any:
        return run.protocol.depth

    def _solved(self, features: Features, truths: Sequence[np.ndarray], settings: Any, split: Any) -> Solved:
        return solve_depth(features, truths, self.section, settings, split)

    def _judged(self, solved: Solved, features: Features, keep: int) -> Outcome:
        return depth_outcome(
            regression_of_depth(solved, self.section, FROM_RIDGE), features, self.eval_truths, self.section, keep
        )

    def start(self) -> torch.nn.Module:
        weights, bias = self.solved.solution
        head = torch.nn.Conv2d(*weights.shape, 1)
        head.weight.data = weights.T[:, :, None, None].clone()
        head.bias.data = bias.clone()
        return head.to(self.device)

    def loss(
        self, head: torch.nn.Module, features: torch.Tensor, batch: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """The ridge regression's own: mean squared error at the valid points of the grid."""
        output = head(features)
        target = self.targets_NTGG[batch].to(output.device)
        output = F.interpolate(output, size=target.shape[-2:], mode="bilinear", align_corners=False)
        valid = target.isfinite().all(1, keepdim=True)
        error = torch.where(valid, output - target.nan_to_num(), 0.0)
        return error.square().sum() / (valid.sum() * target.shape[1]).clamp(min=1)

    def outcomes(self, head: torch.nn.Module, tuned: Tuned, about: dict[str, Any], keep: int) -> list[Outcome]:
        weights, bias = head.weight.data[:, :, 0, 0].T.cpu(), head.bias.data.cpu()
        about = self.solved.hyperparameters | about
        solved = replace(self.solved, solution=(weights, bias), hyperparameters=about)
        return [self._judged(solved, tuned.judged, keep)]


class Normals(Geometry):
    """The same for x, y and z of normals."""

    name = "normals"

    def _section(self, run: Run) -> Any:
        return run.protocol.normals

    def _solved(self, features: Features, truths: Sequence[np.ndarray], settings: Any, split: Any) -> Solved:
        return solve_normals(features, truths, settings, split)

    def _judged(self, solved: Solved, features: Features, keep: int) -> Outcome:
        fitted = regression_of_normals(solved, FROM_RIDGE)
        return normals_outcome(fitted, features, self.eval_truths, self.section, keep)


class Classification(Task):
    """A linear layer, from the logistic regression on the features before the first step."""

    def __init__(self, run: Run, name: str, tuned: Tuned, split: Any, seed: int, options: FineTuning):
        labels, self.eval_labels = (part.truths["classification"] for part in tuned.parts)
        settings, classes = run.protocol.classification.heads[name], len(run.benchmark.class_names)
        self.labels, self.device = torch.as_tensor(labels, dtype=torch.long), tuned.encoder.device
        with torch.no_grad():
            self.weights, self.about = solve_logistic(tuned.train, self.labels, classes, settings, split)
        self.recipes = [_recipe(options)]

    def start(self) -> torch.nn.Module:
        head = torch.nn.Linear(self.weights.shape[0] - 1, self.weights.shape[1])
        head.weight.data, head.bias.data = self.weights[:-1].T.clone(), self.weights[-1].clone()
        return head.to(self.device)

    def loss(
        self, head: torch.nn.Module, features: torch.Tensor, batch: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        return F.cross_entropy(head(features), self.labels[batch].to(features.device))

    def outcomes(self, head: torch.nn.Module, tuned: Tuned, about: dict[str, Any], keep: int) -> list[Outcome]:
        weights = torch.cat([head.weight.data.T, head.bias.data[None]])
        ending = PROTOCOL + "the head starts from logistic regression"
        about = self.about | about
        return [linear_outcome(weights, tuned.judged, slice(None), self.eval_labels, about, ending, keep)]


def _recipe(options: FineTuning) -> Recipe:
    """Of a head that the protocol solves in closed form."""
    training = Training(
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rates=(options.head_rate,),
        weight_decays=(0.0,),
        warmup=options.warmup,
    )
    (candidate,) = candidates(training)
    return Recipe(training, candidate)


TASKS: Mapping[str, type[Task]] = {
    "semantic_segmentation": Segmentation,
    "detection": Detection,
    "depth": Geometry,
    "normals": Normals,
    "classification": Classification,
}


def finetune(
    config: Config, benchmark: str, model: str, seed: int, models_dir: Path, root: Path, out_dir: Path
) -> None:
    """Tune one model (or the baseline "random", trained from scratch) with each head, afresh for every task.

    out_dir is `results/finetuned/{benchmark}`. Raises CliptexError for a benchmark that is not in
    `finetune.benchmarks`, and for a head that cannot be trained with an encoder.
    """
    options = config.finetune.benchmarks.get(benchmark)
    if options is None:
        raise CliptexError(f"finetune.benchmarks: {benchmark!r} is not one of {sorted(config.finetune.benchmarks)}")
    protocol = protocol_of(benchmark, config.probes.benchmarks.get(benchmark, {}))
    data = find("benchmarks", benchmark)(root)
    data.check_apart()
    wanted = tuned_heads(benchmark, protocol, options)
    run, indices = prepared(config, benchmark, data, protocol, seed)
    settings = {
        "benchmark": benchmark,
        "protocol": protocol.model_dump(mode="json", exclude_none=True),
        "fine_tuning": options.model_dump(mode="json"),
        "holdout": config.probes.holdout,
        "seed": seed,
    }

    def fresh() -> Encoder:
        return load_encoders([model], seed, models_dir)[model]

    parts: dict[str, tuple[tuple[Reader, Reader], tuple[Part, Part]]] = {}
    encoder = fresh()
    for task in {task for tasks in wanted.values() for task in tasks}:
        truths = {task: TRUTHS[task](run, encoder)}
        section = getattr(protocol, task)
        readers = tuple(Reader(data, part, indices[part], section, encoder, truths) for part in ("train", "eval"))
        parts[task] = readers, tuple(reader.read({})[0] for reader in readers)

    def tune(task: str, head: str) -> list[Outcome]:
        return _tune(run, task, head, partial(_tuned, fresh, *parts[task]), options)

    for head, tasks in wanted.items():
        judge_head(
            run,
            Subject(model, seed, encoder),
            head,
            tasks,
            parts[tasks[0]][1],
            partial(tune, head=head),
            {"frozen": False, "settings": settings},
            Path(out_dir) / model / f"seed{seed}",
            frozen=False,
        )


def _tuned(fresh: Callable[[], Encoder], readers: tuple[Reader, Reader], parts: tuple[Part, Part]) -> Tuned:
    return Tuned(fresh(), readers, parts)


def _tune(run: Run, name: str, head: str, fresh: Callable[[], Tuned], options: FineTuning) -> list[Outcome]:
    """One task and head. Where several rates are given, the ones best on the holdout are taken, then all views."""
    seed = seed_of(head, run.seed)
    tuned = fresh()
    fit, held = split = tuned.parts[0].split(run.holdout, seed)
    task = TASKS[name](run, head, tuned, split, seed, options)

    def trained(one: Tuned, recipe: Recipe, rate: float, chosen: np.ndarray) -> torch.nn.Module:
        network = task.start()
        train_together(one, network, task.loss, chosen, recipe, rate, options, seed)
        return network

    tried = [(recipe, rate) for recipe in task.recipes for rate in options.encoder_rates]
    scores: dict[str, float] = {}
    best = tried[0]
    if len(tried) > 1:
        for recipe, rate in tried:
            one = fresh()
            network = trained(one, recipe, rate, fit)
            with torch.no_grad():
                scores[_said(recipe, rate)] = task.score(network, one, held)
        best = max(tried, key=lambda pair: scores[_said(*pair)])
    recipe, rate = best
    network = trained(tuned, recipe, rate, np.arange(len(tuned.train)))
    about = {
        "encoder_rate": rate,
        "head_rate": recipe.head.learning_rate,
        "steps": recipe.training.steps,
        "batch_size": recipe.training.batch_size,
        "holdout_score": scores,
    }
    with torch.no_grad():
        return task.outcomes(network, tuned, about, len(run.kept))


def _said(recipe: Recipe, rate: float) -> str:
    return f"encoder {rate:g}, head {recipe.head.learning_rate:g}, decay {recipe.head.weight_decay:g}"
