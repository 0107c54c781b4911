"""Classification from one feature per image: logistic regression, a grid of linear classifiers, or k-NN.

Predictions kept:  `truth` [n], `prediction` [n, 5]: classes, best first
Per-image parts:   `top1`, `top5` bool [N]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from cliptex.config import Name, Positive, Section
from cliptex.core.seeds import seed_of
from cliptex.evaluation.probes.base import Data, Measure, Outcome, ProbeTask, Run, lazy
from cliptex.evaluation.protocols.base import Grid, Neighbours, PooledTask, Training

if TYPE_CHECKING:
    from cliptex.evaluation.probes.parts import TruthOf
    from cliptex.models.encoders import Encoder


class Logistic(Section):
    """Multinomial logistic regression, fitted to convergence with L-BFGS."""

    kind: Literal["logistic"]
    """Type of the head."""
    penalties: Grid
    """L2 penalties: penalty / 2 times the sum of squared weights is added to the MEAN cross-entropy (scikit-learn's C
    is 1 / (penalty * samples)); chosen on the holdout."""
    iterations: Positive
    """Most L-BFGS iterations per fit."""


class LinearSgd(Training):
    """A grid of linear classifiers trained by gradient descent in one pass, as one matrix product (DINOv2).

    The grid is over learning rates, weight decays and, if the features are `tokens`, the tokens that are used.
    """

    kind: Literal["sgd"]
    """Type of the head."""
    optimizer: Literal["sgd"] = "sgd"
    """SGD with momentum."""
    clip: None = None
    """Gradients are not clipped."""
    blocks: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1,)
    """Numbers of last blocks whose class tokens are used, at most `features.blocks`."""
    mean_patch: Annotated[tuple[bool, ...], Field(min_length=1)] = (False,)
    """Whether the mean of the last block's patch tokens is also used."""


class KNearest(Neighbours):
    """Weighted k-nearest-neighbour classification, which is not trained (Wu et al. 2018; DINO, Caron et al. 2021).

    The votes of the neighbours are summed per class. Of `tokens` it uses the class token of the last block.
    """

    kind: Literal["knn"]
    """Type of the head."""


ClassificationHead = Annotated[Logistic | LinearSgd | KNearest, Field(discriminator="kind")]


class ClassificationProtocol(PooledTask):
    """Classification from one feature per image."""

    heads: dict[Name, ClassificationHead]
    """The heads by name."""

    @model_validator(mode="after")
    def _blocks_kept(self) -> Self:
        """A classifier uses at most the class tokens that are kept."""
        for name, head in self.heads.items():
            if head.kind == "sgd" and self.features.point == "tokens" and max(head.blocks) > self.features.blocks:
                raise ValueError(f"heads.{name}.blocks: features.blocks keeps {self.features.blocks}")
        return self


class ClassificationProbe(ProbeTask):
    """One class per image."""

    name = "classification"
    section = ClassificationProtocol
    measures = (
        Measure(
            name, "Classification", "top1", lazy("metrics.ranking:top1"), dense=False, hub_task="image-classification"
        ),
    )
    tunable = ("logistic",)
    has_thumbnails = False

    def truth(self, run: Run, encoder: Encoder) -> TruthOf:
        return lambda sample, view: sample["label"]

    def outcomes(self, run: Run, head: str, data: Data) -> list[Outcome]:
        from cliptex.evaluation.probes.heads.classification import probe_classification
        from cliptex.evaluation.probes.heads.neighbours import probe_knn

        seed, classes = seed_of(head, run.seed), len(run.benchmark.class_names)
        truths = data.train.truths[self.name], data.eval.truths[self.name]
        section = run.protocol.section(self.name)
        if section.heads[head].kind == "knn":
            return [probe_knn(*data.unstandardised, *truths, classes, section, head, len(run.kept))]
        split = data.train.split(run.holdout, seed)
        return [probe_classification(*data.features, *truths, classes, section, head, split, seed, len(run.kept))]

    tuner = staticmethod(lazy("probes.heads.classification:ClassificationTuner"))


PLUGIN = ClassificationProbe
