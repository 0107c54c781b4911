"""Periodic validation during training: zero-shot top-1, and the heads' losses on held-out pairs.

Reads   the evaluation split of resources/{benchmark}/, if `train.watch.zero_shot` names one.
Holds   validation does not change the training: no weight, no running statistic, no random state. Every process
        validates a part of the samples, in the batches that a single process would make: the metrics are the same for
        any number of processes. Samples are decoded once and kept, up to a limit.
"""

import logging
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import Normalize, ToTensor

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.plugins import find
from cliptex.experts.precision import mixed_precision
from cliptex.models import clip as student
from cliptex.models.dense_features import dense_features
from cliptex.tasks.base import Task
from cliptex.tasks.batch_mean import local_only
from cliptex.training.batch import Batch
from cliptex.training.cost import evaluating
from cliptex.training.loader import JointLoader
from cliptex.training.trainer import Trainer

log = logging.getLogger("cliptex")
HELD_OUT_ROWS = 64
CLASSES = 10
"""Classes per text batch."""
KEPT_BYTES = 2**30
"""Of decoded samples, for each of zero-shot and held-out pairs and in every process."""
TOP1 = "zero_shot_top1"


def valid_shares(tasks: dict[str, Task], targets: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`valid/{store}`: share of the targets' pixels that are valid, i.e. differ from those of a missing label."""
    shares = {}
    for store, task in tasks.items():
        target = targets[store]
        if target.is_floating_point():
            valid = target.isfinite().reshape(*target.shape[:3], -1).all(dim=-1)
        else:
            valid = target.reshape(*target.shape[:3], -1)[..., 0].long() != int(task.missing(1).flat[0])
        shares[f"valid/{store}"] = valid.float().mean()
    return shares


class Validator:
    """Computes the metrics that `train.watch` and `train.held_out` enable, with the weights that would be exported."""

    def __init__(self, config: Config, trainer: Trainer, loader: JointLoader):
        self.watch, self.trainer, self.loader = config.train.watch, trainer, loader
        self._config = config
        self.initial_top1: float | None = None
        """Top-1 accuracy before step 1, percent."""
        self._class_names: list[str] = []
        self._images: KeptImages | None = None
        self._kept_batches: list[Batch] = []
        self._kept_bytes, self._more_batches = 0, True

    @property
    def enabled(self) -> bool:
        """Whether there is anything to validate."""
        return self.watch.zero_shot is not None or self._validates_heads

    @property
    def _validates_heads(self) -> bool:
        return bool(len(self.loader.held_out) and self.trainer.tasks)

    def should_validate(self, batch: Batch, is_last: bool) -> bool:
        """Whether to validate after the step on `batch`: at the end of every `every_epochs` epochs and of the run."""
        return self.enabled and (is_last or (batch.ends_epoch and (batch.epoch + 1) % self.watch.every_epochs == 0))

    def measure(self) -> dict[str, float]:
        """`zero_shot_top1`, `zero_shot_top5` (percent); `held_out/{store}/loss` and `held_out/{store}/{metric}`.
        On rank 0; empty elsewhere. Every process must call it."""
        with evaluating(*self.trainer.averaged()), torch.random.fork_rng(), local_only():
            zero_shot = self._zero_shot() if self.watch.zero_shot else {}
            return zero_shot | (self._held_out() if self._validates_heads else {})

    def check(self, metrics: dict[str, float], step: int, where: str) -> str | None:
        """The message if top-1 fell by more than `max_drop` points since the start, else None."""
        if TOP1 not in metrics or self.initial_top1 is None or self.watch.max_drop is None:
            return None
        if self.initial_top1 - metrics[TOP1] <= self.watch.max_drop:
            return None
        return (
            f"{where}: zero-shot accuracy on {self.watch.zero_shot} fell from {self.initial_top1:.2f} to"
            f" {metrics[TOP1]:.2f} at step {step}, by more than train.watch.max_drop = {self.watch.max_drop:g} points;"
            " a lower learning_rate forgets less, and more weight on the contrastive loss too"
        )

    def _zero_shot(self) -> dict[str, float]:
        from open_clip.transform import PreprocessCfg

        from cliptex.evaluation.metrics.ranking import top_metrics
        from cliptex.evaluation.zeroshot import BATCH_SIZE, ZeroShotModel, rankings, transforms_of

        model, world = self.trainer.averaged()[0], self.trainer.world
        preprocess = PreprocessCfg(size=model.visual.image_size, **student.preprocessing(model))
        evaluated = ZeroShotModel("", 0, model, student.tokenizer(self._config.student), preprocess, "", False)
        if self._images is None:
            benchmark = self._benchmark()
            samples = EvenlySpaced(benchmark.samples("eval"), self.watch.zero_shot_images)
            ((_, transform),) = transforms_of([evaluated]).items()
            own = own_blocks(len(samples), BATCH_SIZE, world.rank, world.size)
            self._class_names, self._images = benchmark.class_names, KeptImages(samples, own, transform)
        classifier = self._classifier(evaluated)
        ranked, labels = [], []
        if len(self._images):
            _, (ranked,), labels = rankings([evaluated], self._images, [classifier])
        parts = [part for part in world.gather_to_main((ranked, labels)) if len(part[1])]
        if not world.is_main:
            return {}
        metrics = top_metrics(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        return {f"zero_shot_{name}": round(value, 4) for name, value in metrics.items()}

    def _benchmark(self) -> Any:
        data = find("benchmarks", self.watch.zero_shot)(paths.benchmark(self.watch.zero_shot))
        if data.tasks != ("classification",):
            raise CliptexError(
                f"train.watch.zero_shot: {self.watch.zero_shot!r} is not a classification benchmark; name one that is"
            )
        return data

    def _classifier(self, evaluated: Any) -> torch.Tensor:
        """Text embeddings [D, K] of the classes; every process encodes some blocks of them."""
        import open_clip

        from cliptex.evaluation.zeroshot import TEMPLATES

        world, templates = self.trainer.world, TEMPLATES[self._config.zeroshot.templates]
        own = own_blocks(len(self._class_names), CLASSES, world.rank, world.size)
        part = torch.empty(0, 0)
        if names := self._class_names[own.start : own.stop]:
            part = open_clip.build_zero_shot_classifier(
                evaluated.model, evaluated.tokenizer, names, templates, CLASSES, device=self.trainer.device
            )
        parts = [each for each in world.gather(part.cpu()) if each.numel()] if world.size > 1 else [part]
        return torch.cat(parts, dim=1).to(self.trainer.device)

    def _held_out(self) -> dict[str, float]:
        trainer, world = self.trainer, self.trainer.world
        batches = [self._validated(batch) for batch in self._held_out_batches()]
        parts = world.gather_to_main(batches)
        if not world.is_main:
            return {}
        # in the order of the samples, so that sums do not depend on the number of processes
        validated = [batch for row in zip_longest(*parts) for batch in row if batch is not None]
        metrics = {}
        for store, task in trainer.tasks.items():
            total = sum(batch[store].loss for batch in validated)
            metrics[f"held_out/{store}/loss"] = round(total / len(self.loader.held_out), 6)
            try:
                quality = task.quality([pair for batch in validated for pair in batch[store].pairs()])
            except (CliptexError, ValueError) as error:  # a task without `predicted`, or no valid pixels
                log.warning("held-out %s: %s", store, error)
                continue
            metrics |= {f"held_out/{store}/{metric}": round(value, 4) for metric, value in quality.items()}
        return metrics

    def _held_out_batches(self) -> Iterator[Batch]:
        """This process' batches; the first ones, up to `KEPT_BYTES`, are decoded once."""
        yield from self._kept_batches
        skipped, world = len(self._kept_batches), self.trainer.world
        if skipped and not self._more_batches:
            return
        self._more_batches = False
        batches = self.loader.held_out_batches(HELD_OUT_ROWS, world.rank + skipped * world.size, world.size)
        for batch in batches:
            tensors = [batch.images, *batch.targets.values()]
            self._kept_bytes += sum(tensor.nbytes for tensor in tensors)
            if self._kept_bytes <= KEPT_BYTES:
                self._kept_batches.append(batch)
            else:
                self._more_batches = True
            yield batch

    def _validated(self, batch: Batch) -> dict[str, "Validated"]:
        trainer = self.trainer
        model, heads = trainer.averaged()
        validated = {}
        with torch.no_grad(), mixed_precision(trainer.precision):
            outputs = heads(dense_features(model.visual, trainer.pixels(batch.images)))
            for store, output in outputs.items():
                task, targets = trainer.tasks[store], batch.targets[store]
                output = F.interpolate(output.float(), size=targets.shape[1:3], mode="bilinear")
                loss = task.loss(output, targets.to(trainer.device)).item() * len(batch.keys)
                try:
                    predictions = [task.predicted(each) for each in output.cpu().numpy()]
                except (CliptexError, ValueError) as error:
                    predictions = str(error)
                validated[store] = Validated(loss, predictions, targets.numpy())
        return validated


class Validated(NamedTuple):
    """One batch of held-out samples and one store: sum of the losses; predictions, or why there are none; targets."""

    loss: float
    predictions: list[np.ndarray] | str
    targets: np.ndarray

    def pairs(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Predictions and targets. Raises CliptexError if there are no predictions."""
        if isinstance(self.predictions, str):
            raise CliptexError(self.predictions)
        return zip(self.predictions, self.targets, strict=True)


def own_blocks(count: int, block: int, rank: int, processes: int) -> range:
    """A process' part of 0..count: whole blocks, so that its batches are those of a single process."""
    blocks = -(-count // block)
    first, last = (blocks * each // processes * block for each in (rank, rank + 1))
    return range(first, min(last, count))


class KeptImages:
    """The samples `numbers`, decoded, resized and cropped by the transform once, up to `KEPT_BYTES` of pixels.

    The transform changes nothing but the type of an image that it has cropped already.
    """

    def __init__(self, samples: Any, numbers: range, transform: Any):
        self._samples, self._numbers = samples, numbers
        self._crop = [step for step in transform.transforms if not isinstance(step, ToTensor | Normalize)]
        self._kept: dict[int, dict[str, Any]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index in self._kept:
            return self._kept[index]
        sample = self._samples[self._numbers[index]]
        image = Image.fromarray(sample["image"])
        for step in self._crop:
            image = step(image)
        sample = {"id": sample["id"], "label": sample["label"], "image": np.asarray(image)}
        self._bytes += sample["image"].nbytes
        if self._bytes <= KEPT_BYTES:
            self._kept[index] = sample
        return sample


class EvenlySpaced:
    """An evenly spaced subset of `count` samples, which may be sorted by class; each is read when indexed."""

    def __init__(self, samples: Any, count: int):
        self._samples, self._count = samples, min(count, len(samples))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._samples[index * len(self._samples) // self._count]
