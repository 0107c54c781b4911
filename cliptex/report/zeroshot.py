"""Zero-shot results of two models: whether one keeps the accuracy of the other."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import fmean

from cliptex.report.statistics import Difference, Draws, Gap, Measured, difference, gap_of


class ZeroShotState(StrEnum):
    BETTER = "better"
    """Higher by more than the noise."""
    KEPT = "kept"
    """Not lower."""
    WITHIN_NOISE = "lower, within noise"
    ONE_SEED = "lower, one seed"
    """Lower by more than image noise; one seed has no spread."""
    LOST = "lost in part"
    AT_CHANCE = "at chance"
    """Neither model is above chance."""
    MISSING = "not measured"


ZERO_SHOT_KEPT = (ZeroShotState.BETTER, ZeroShotState.KEPT, ZeroShotState.WITHIN_NOISE)
"""Not lower by more than the noise."""


@dataclass(frozen=True)
class ZeroShot:
    """A zero-shot metric: subject and reference, one number a seed, and chance, all in percent.

    benchmark, metric: as shown. draws: of subject and reference. key: benchmark and task in the results.
    """

    benchmark: str
    subject: Sequence[float]
    reference: Sequence[float]
    chance: float | None
    draws: Draws = (None, None)
    metric: str = "top-1"
    key: tuple[str, str] = ("", "")
    gap: Gap | None = None
    """Between the two recipes of the yardstick, in points."""
    measured: Measured = ({}, {})
    """Of every model."""

    def between(self, subject: str, reference: str, yardstick: Sequence[str]) -> "ZeroShot":
        """The same with two other models."""
        values, drawn = self.measured
        draws = drawn.get(subject), drawn.get(reference)
        pair = replace(self, subject=values.get(subject, []), reference=values.get(reference, []), draws=draws)
        return replace(pair, gap=gap_of(self.measured, 1, pair.against, yardstick, subject, reference))

    @property
    def against(self) -> Difference | None:
        return difference(self.subject, self.reference, 1, self.draws)

    @property
    def state(self) -> ZeroShotState:
        """Whether the subject keeps the reference's value."""
        against = self.against
        if against is None:
            return ZeroShotState.MISSING
        if self.chance is not None and max(fmean(self.subject), fmean(self.reference)) <= self.chance:
            return ZeroShotState.AT_CHANCE
        if against.value >= 0:
            return ZeroShotState.BETTER if against.beyond_noise else ZeroShotState.KEPT
        if against.beyond_noise is False:
            return ZeroShotState.WITHIN_NOISE
        return ZeroShotState.ONE_SEED if against.spread is None else ZeroShotState.LOST
