"""Periodic validation during training: zero-shot top-1, and the heads' losses on held-out pairs.

Reads   the evaluation split of resources/{benchmark}/, if `train.watch.zero_shot` names one.
Holds   validation does not change the training: no weight, no running statistic, no random state.
"""

import logging
from typing import Any

import torch
import torch.nn.functional as F

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
TOP1 = "zero_shot_top1"


def valid_shares(tasks: dict[str, Task], targets: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`valid/{store}`: share of the targets' pixels that are valid, i.e. differ from those of a missing label."""
    shares = {}
    for store, task in tasks.items():
        target = targets[store]
        if target.is_floating_point():
            valid = target.isfinite().reshape(*target.shape[:3], -1).all(dim=-1)
        else:
            valid = target.reshape(*target.shape[:3], -1)[..., 0] != int(task.missing(1).flat[0])
        shares[f"valid/{store}"] = valid.float().mean()
    return shares


class Validator:
    """Computes the metrics that `train.watch` and `train.held_out` enable, with the weights that would be exported."""

    def __init__(self, config: Config, trainer: Trainer, loader: JointLoader):
        self.watch, self.trainer, self.loader = config.train.watch, trainer, loader
        self._config = config
        self.initial_top1: float | None = None
        """Top-1 accuracy before step 1, percent."""

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
        """`zero_shot_top1`, `zero_shot_top5` (percent); `held_out/{store}/loss` and `held_out/{store}/{metric}`."""
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
            " a lowerlearning_rate forgets less, and more weight on the contrastive loss too"
        )

    def _zero_shot(self) -> dict[str, float]:
        import open_clip
        from open_clip.transform import PreprocessCfg

        from cliptex.evaluation.metrics.ranking import top_metrics
        from cliptex.evaluation.zeroshot import TEMPLATES, ZeroShotModel, rankings

        data = find("benchmarks", self.watch.zero_shot)(paths.benchmark(self.watch.zero_shot))
        if data.tasks != ("classification",):
            raise CliptexError(
                f"train.watch.zero_shot: {self.watch.zero_shot!r} is not a classification benchmark; name one that is"
            )
        samples = data.samples("eval")
        model = self.trainer.averaged()[0]
        preprocess = PreprocessCfg(size=model.visual.image_size, **student.preprocessing(model))
        evaluated = ZeroShotModel("", 0, model, student.tokenizer(self._config.student), preprocess, "", False)
        templates = TEMPLATES[self._config.zeroshot.templates]
        classifier = open_clip.build_zero_shot_classifier(
            model, evaluated.tokenizer, data.class_names, templates, device=self.trainer.device
        )
        subset = EvenlySpaced(samples, self.watch.zero_shot_images)
        _, ranked, labels = rankings([evaluated], subset, [classifier])
        return {f"zero_shot_{name}": round(value, 4) for name, value in top_metrics(ranked[0], labels).items()}

    def _held_out(self) -> dict[str, float]:
        trainer, size = self.trainer, self._config.train.target_size_px
        model, heads = trainer.averaged()
        sums = dict.fromkeys(trainer.tasks, 0.0)
        pairs: dict[str, list[Any]] = {store: [] for store in trainer.tasks}
        for batch in self.loader.held_out_batches(HELD_OUT_ROWS):
            with torch.no_grad(), mixed_precision(trainer.precision):
                outputs = heads(dense_features(model.visual, trainer.pixels(batch.images)))
                for store, output in outputs.items():
                    output = F.interpolate(output.float(), size=(size, size), mode="bilinear")
                    loss = trainer.tasks[store].loss(output, batch.targets[store].to(trainer.device))
                    sums[store] += loss.item() * len(batch.keys)
                    pairs[store] += zip(output.cpu().numpy(), batch.targets[store].numpy(), strict=True)
        metrics = {}
        for store, task in trainer.tasks.items():
            metrics[f"held_out/{store}/loss"] = round(sums[store] / len(self.loader.held_out), 6)
            try:
                quality = task.quality([(task.predicted(output), target) for output, target in pairs[store]])
            except (CliptexError, ValueError) as error:  # a task without `predicted`, or no valid pixels
                log.warning("held-out %s: %s", store, error)
                continue
            metrics |= {f"held_out/{store}/{metric}": round(value, 4) for metric, value in quality.items()}
        return metrics


class EvenlySpaced:
    """An evenly spaced subset of `count` samples, which may be sorted by class; each is read when indexed."""

    def __init__(self, samples: Any, count: int):
        self._samples, self._count = samples, min(count, len(samples))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._samples[index * len(self._samples) // self._count]
