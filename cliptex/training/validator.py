"""What a training run looks at besides its losses: zero-shot accuracy, and the heads on held-out pseudo-labels.

Reads   the evaluation split of resources/{benchmark}/ where `train.watch.zero_shot` names one.
Holds   looking changes nothing: no weight, no running statistic, no random number.
"""

import logging
from pathlib import Path
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
from cliptex.training.cost import evaluating
from cliptex.training.loader import JointLoader
from cliptex.training.trainer import Engine

log = logging.getLogger("cliptex")
HELD_OUT_ROWS = 64
TOP1 = "zero_shot_top1"


def valid_shares(tasks: dict[str, Task], targets: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`valid/{store}`: share of the targets' pixels that are valid, i.e. unlike those of a missing label."""
    shares = {}
    for store, task in tasks.items():
        target = targets[store]
        if target.is_floating_point():
            valid = target.isfinite().reshape(*target.shape[:3], -1).all(dim=-1)
        else:
            valid = target.reshape(*target.shape[:3], -1)[..., 0] != int(task.missing(1).flat[0])
        shares[f"valid/{store}"] = valid.float().mean()
    return shares


class Watcher:
    """Measures what `train.watch` and `train.held_out` ask for, on the weights that would be exported."""

    def __init__(self, config: Config, engine: Engine, loader: JointLoader, root: Path):
        self.settings, self.engine, self.loader = config.train.watch, engine, loader
        self._config, self._root = config, root
        self.start: float | None = None
        """Top-1 accuracy before step 1, percent."""

    @property
    def watches(self) -> bool:
        """Whether there is anything to look at."""
        return self.settings.zero_shot is not None or self._judges_heads

    @property
    def _judges_heads(self) -> bool:
        return bool(len(self.loader.held_out) and self.engine.tasks)

    def measure(self) -> dict[str, float]:
        """`zero_shot_top1`, `zero_shot_top5` (percent); `held_out/{store}/loss` and `held_out/{store}/{metric}`."""
        with evaluating(*self.engine.averaged()), torch.random.fork_rng(), local_only():
            return (self._zero_shot() if self.settings.zero_shot else {}) | (
                self._held_out() if self._judges_heads else {}
            )

    def check(self, found: dict[str, float], step: int, where: str) -> str | None:
        """What to say where accuracy fell by more than `max_drop` since the start; None where it did not."""
        if TOP1 not in found or self.start is None or self.settings.max_drop is None:
            return None
        drop = self.start - found[TOP1]
        if drop <= self.settings.max_drop:
            return None
        return (
            f"{where}: zero-shot accuracy on {self.settings.zero_shot} fell from {self.start:.2f} to {found[TOP1]:.2f}"
            f" at step {step}, by more than train.watch.max_drop = {self.settings.max_drop:g} points; a lower"
            " learning_rate forgets less, and more weight on the contrastive loss too"
        )

    def _zero_shot(self) -> dict[str, float]:
        import open_clip
        from open_clip.transform import PreprocessCfg

        from cliptex.evaluation.metrics import top_metrics
        from cliptex.evaluation.zeroshot import TEMPLATES, Contender, rankings

        data = find("benchmarks", self.settings.zero_shot)(self._root / paths.benchmark(self.settings.zero_shot))
        if data.tasks != ("classification",):
            raise CliptexError(f"train.watch.zero_shot: {self.settings.zero_shot!r} is not a classification benchmark")
        samples = data.samples("eval")
        model = self.engine.averaged()[0]
        preprocess = PreprocessCfg(size=model.visual.image_size, **student.preprocessing(model))
        contender = Contender("", 0, model, student.tokenizer(self._config.student), preprocess, "", False)
        templates = TEMPLATES[self._config.zeroshot.templates]
        classifier = open_clip.build_zero_shot_classifier(
            model, contender.tokenizer, data.class_names, templates, device=self.engine.device
        )
        some = Spread(samples, self.settings.zero_shot_images)
        _, ranked, labels = rankings([contender], some, [classifier])
        return {f"zero_shot_{name}": round(value, 4) for name, value in top_metrics(ranked[0], labels).items()}

    def _held_out(self) -> dict[str, float]:
        engine, size = self.engine, self._config.train.target_size_px
        model, heads = engine.averaged()
        sums = dict.fromkeys(engine.tasks, 0.0)
        pairs: dict[str, list[Any]] = {store: [] for store in engine.tasks}
        for batch in self.loader.held_out_batches(HELD_OUT_ROWS):
            with torch.no_grad(), mixed_precision(engine.precision):
                outputs = heads(dense_features(model.visual, engine.pixels(batch.images)))
                for store, output in outputs.items():
                    output = F.interpolate(output.float(), size=(size, size), mode="bilinear")
                    loss = engine.tasks[store].loss(output, batch.targets[store].to(engine.device))
                    sums[store] += loss.item() * len(batch.keys)
                    pairs[store] += zip(output.cpu().numpy(), batch.targets[store].numpy(), strict=True)
        found = {}
        for store, task in engine.tasks.items():
            found[f"held_out/{store}/loss"] = round(sums[store] / len(self.loader.held_out), 6)
            try:
                judged = task.quality([(task.predicted(output), target) for output, target in pairs[store]])
            except (CliptexError, ValueError) as error:  # no meaning given to outputs, or no valid pixel
                log.warning("held-out %s: %s", store, error)
                continue
            found |= {f"held_out/{store}/{metric}": round(value, 4) for metric, value in judged.items()}
        return found


class Spread:
    """`count` of some samples, evenly spread, as they may be sorted by class; each is read when indexed."""

    def __init__(self, samples: Any, count: int):
        self._samples, self._count = samples, min(count, len(samples))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._samples[index * len(self._samples) // self._count]
