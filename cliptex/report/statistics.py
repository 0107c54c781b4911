"""Statistics of the report: spread over seeds, relative gain, and whether a gain exceeds the noise. Pure functions.

Values are one number a seed. Noise has two parts, each known or not: the spread over seeds, and the bootstrap interval
over evaluation images and seeds (`cliptex.report.bootstrap`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean, stdev

import numpy as np

from cliptex.evaluation.metrics.display import Metric
from cliptex.report.bootstrap import Interval, interval

Draws = Sequence[np.ndarray | None]
"""Resampled values of a model and of the one it is compared with, in the same draws."""


def sample_std(values: Sequence[float]) -> float | None:
    """Sample standard deviation (ddof = 1) of one number a seed; None with fewer than two."""
    return stdev(values) if len(values) > 1 else None


def pooled_std(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Pooled sample standard deviation of two groups: sqrt(sum of squared deviations / (n_a + n_b - 2)).

    None if neither group has two values. A group of one adds nothing to either sum.
    """
    freedom = max(len(a) - 1, 0) + max(len(b) - 1, 0)
    if not freedom:
        return None
    squares = sum((value - fmean(group)) ** 2 for group in (a, b) for value in group)
    return math.sqrt(squares / freedom)


def relative_gain(new: float | None, old: float | None, better: int) -> float | None:
    """Gain of `new` over `old` in percent of `old`, positive if `new` is better; None if undefined."""
    if new is None or old is None or not better or old == 0:
        return None
    return 100 * better * (new - old) / abs(old)


@dataclass(frozen=True)
class Difference:
    """Subject minus other, in the metric's unit, signed so that positive is better.

    spread: pooled standard deviation over seeds; None with one seed. interval: 95 % over evaluation images and seeds;
    None without per-image statistics, and with one image, which has no spread.
    """

    value: float
    spread: float | None
    interval: Interval | None = None

    @property
    def beyond_noise(self) -> bool | None:
        """Whether it exceeds the spread, if there are seeds, and its interval excludes zero.

        None if that cannot be tested: without an interval, or if no seed differs from another.
        """
        if self.interval is None or self.spread == 0:
            return None
        excludes_zero = self.interval.low > 0 if self.value > 0 else self.interval.high < 0
        return excludes_zero and (self.spread is None or abs(self.value) > self.spread)


def difference(
    subject: Sequence[float], other: Sequence[float], better: int, draws: Draws = (None, None)
) -> Difference | None:
    """Compare two models' values; None if either has none or the metric's direction (`better`) is 0."""
    if not subject or not other or not better:
        return None
    value = better * (fmean(subject) - fmean(other))
    if abs(value) < 1e-12 * max(abs(fmean(subject)), abs(fmean(other))):  # rounding of equal means
        value = 0.0
    known = all(drawn is not None for drawn in draws)
    return Difference(value, pooled_std(subject, other), interval(better * (draws[0] - draws[1])) if known else None)


def clear_best(values: Mapping[str, Sequence[float]], better: int, draws: Mapping[str, np.ndarray]) -> str | None:
    """The model that is better than each other one beyond the noise; None if there is none, or the noise is not known.

    values: model -> one number a seed; those without any do not count. draws: model -> its value in each draw.
    """
    known = {model: own for model, own in values.items() if own}
    if len(known) < 2 or not better or not known.keys() <= draws.keys():
        return None
    best = max(known, key=lambda model: better * fmean(known[model]))
    others = [
        difference(known[best], known[other], better, (draws.get(best), draws.get(other)))
        for other in known.keys() - {best}
    ]
    return best if all(one.value > 0 and one.beyond_noise for one in others) else None


class GainStatus(StrEnum):
    """How certain a gain over the reference is. The values are those of the CSV column `outcome`."""

    REAL = "real"
    """Better than the reference and every baseline, each beyond the noise, including that over seeds."""
    ONE_SEED = "one seed"
    """Better than the reference and every baseline beyond image noise; one seed has no spread."""
    NOT_CORRECTED = "alone, not after Holm"
    """As one of the two above, but not after the correction for several comparisons."""
    WITHIN_NOISE = "within noise"
    """Better than the reference, but not beyond the noise, or the noise is not known."""
    BASELINE = "baseline as good"
    """Better than the reference, but not clearly better than a baseline."""
    UNCHECKED = "baseline missing"
    """Better than the reference; a baseline was not evaluated."""
    TIE = "tie"
    WORSE_WITHIN_NOISE = "worse, within noise"
    WORSE = "worse"
    MISSING = "missing"
    """The subject or the reference has no value."""


COUNTED = (GainStatus.REAL, GainStatus.ONE_SEED)
"""Beyond the noise, as far as it is known."""
BETTER = (
    *COUNTED,
    GainStatus.NOT_CORRECTED,
    GainStatus.WITHIN_NOISE,
    GainStatus.BASELINE,
    GainStatus.UNCHECKED,
)
"""The subject's mean is better than the reference's."""


@dataclass(frozen=True)
class Gain:
    """A gain over the reference: its status, in percent of the reference, and as a difference in the metric's unit.

    baselines: those that are as good, or missing. percent_draws: the gain in every draw of images and seeds, in percent
    of the reference's value over all images.
    """

    status: GainStatus
    percent: float | None = None
    difference: Difference | None = None
    baselines: tuple[str, ...] = ()
    percent_interval: Interval | None = None
    percent_draws: np.ndarray | None = None


def gain_over(
    values: Mapping[str, Sequence[float]],
    better: int,
    *,
    subject: str,
    reference: str,
    baselines: Sequence[str] = ("random", "position"),
    needed: Sequence[str] = ("random", "position"),
    draws: Mapping[str, np.ndarray] | None = None,
) -> Gain:
    """The subject's gain over the reference.

    values: model -> one number a seed. needed: baselines required for the status `real`. draws: model -> its value in
    each draw of images and seeds. "Better" means a better mean. A gain counts only beyond the noise, against the
    reference and each baseline alike: the 95 % interval of the difference must exclude zero, and with two or more seeds
    it must exceed the pooled standard deviation of the two models compared. Without `draws` no gain counts.
    """
    draws = draws or {}

    def compare(other: str) -> Difference | None:
        pair = draws.get(subject), draws.get(other)
        return difference(values.get(subject, ()), values.get(other, ()), better, pair)

    if (against := compare(reference)) is None:
        return Gain(GainStatus.MISSING)
    old = fmean(values[reference])
    scale = 100 / abs(old) if old else None
    percent_interval = against.interval.scaled(scale) if against.interval and scale else None
    status, blocking = _status(against, {name: compare(name) for name in baselines}, needed)
    return Gain(
        status,
        relative_gain(fmean(values[subject]), old, better),
        against,
        tuple(blocking),
        percent_interval,
        better * (draws[subject] - draws[reference]) * scale if percent_interval else None,
    )


def _status(
    against: Difference, margins: Mapping[str, Difference | None], needed: Sequence[str]
) -> tuple[GainStatus, list[str]]:
    if against.value == 0:
        return GainStatus.TIE, []
    if against.value < 0:
        return GainStatus.WORSE_WITHIN_NOISE if against.beyond_noise is False else GainStatus.WORSE, []
    if not against.beyond_noise:
        return GainStatus.WITHIN_NOISE, []
    if as_good := [n for n, m in margins.items() if m is not None and (m.value <= 0 or not m.beyond_noise)]:
        return GainStatus.BASELINE, as_good
    if missing := [name for name in needed if margins.get(name) is None]:
        return GainStatus.UNCHECKED, missing
    return GainStatus.ONE_SEED if against.spread is None else GainStatus.REAL, []


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for all of them, in the same order: Holm's procedure at alpha rejects those that are at most
    alpha.

    The k-th smallest of m (k from 0) is multiplied by m - k, and is at least the adjusted one before it and at most 1
    (Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 1979).
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


Measured = tuple[Mapping[str, Sequence[float]], Mapping[str, np.ndarray]]
"""Model -> one value a seed, and model -> its value in each draw."""


def mean_over_heads(heads: Sequence[Measured], subject: str, reference: str, *, relative: bool = True) -> Measured:
    """Several heads on one set as one: each model's mean over the heads, seed by seed and draw by draw.

    Each head counts in units of the reference's mean with it, so that the relative gain of the result is the mean of
    the heads' relative gains; if not `relative`, in the metric's unit. A head is left out if it lacks a value of the
    subject or the reference that another head has, or if the reference is zero with it, unless it is so with all.
    Models that not every remaining head has are left out.
    """
    counts = [min(len(values.get(subject, ())), len(values.get(reference, ()))) for values, _ in heads]
    whole = [head for head, count in zip(heads, counts, strict=True) if count and count == max(counts)]
    scales = [abs(fmean(values[reference])) for values, _ in whole]
    if any(scales):
        whole = [head for head, scale in zip(whole, scales, strict=True) if scale]
        scales = [scale for scale in scales if scale]
    if not relative or not any(scales):
        scales = [1.0] * len(whole)
    if not whole:
        return {}, {}
    means, drawn = {}, {}
    for model in whole[0][0]:
        own = [values.get(model, ()) for values, _ in whole]
        if len({len(values) for values in own}) == 1:
            seeds = zip(*own, strict=True)
            means[model] = [fmean(v / scale for v, scale in zip(seed, scales, strict=True)) for seed in seeds]
            if all(model in draws for _, draws in whole):
                drawn[model] = np.mean([d[model] / scale for (_, d), scale in zip(whole, scales, strict=True)], axis=0)
    return means, drawn


@dataclass(frozen=True)
class Gap:
    """The gap between two ordinary recipes, the yardstick of a gain, in the unit of the values.

    value: not negative. interval: 95 %, signed so that the better recipe's lead is positive. gain: the gain compared.
    excess: 95 % of |gain| - |gap|; None without draws.
    """

    value: float
    interval: Interval | None
    gain: float
    excess: Interval | None

    @property
    def exceeded(self) -> bool:
        return abs(self.gain) > self.value

    @property
    def beyond_noise(self) -> bool:
        return self.exceeded and self.excess is not None and self.excess.low > 0


def gap_of(measured: Measured, better: int, gain: Difference | None, pair: Sequence[str], *models: str) -> Gap | None:
    """The gap between the two models of `pair`, next to the gain of the first of `models` over the second.

    None without a pair, or if a value is missing.
    """
    values, draws = measured
    if len(pair) != 2 or gain is None:
        return None
    (a, b), (subject, reference) = pair, models
    found = difference(values.get(b, ()), values.get(a, ()), better, (draws.get(b), draws.get(a)))
    if found is None:
        return None
    sign, excess = 1 if found.value >= 0 else -1, None
    if all(model in draws for model in (a, b, subject, reference)):
        lead = better * (draws[subject] - draws[reference]) * (1 if gain.value >= 0 else -1)
        excess = interval(lead - np.abs(draws[b] - draws[a]))
    return Gap(abs(found.value), found.interval and found.interval.scaled(sign), gain.value, excess)


def format_interval(bounds: Interval, digits: int = 1) -> str:
    """`+1.2 to +3.4`."""
    return f"{signed(bounds.low, digits)} to {signed(bounds.high, digits)}"


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign and a true minus; zero after rounding has no sign."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def points(value: float, metric: Metric) -> str:
    """A difference in the metric's unit: `+1.4 points`, `+0.110 m`, `−2.0°`."""
    unit = {"%": " points", "°": "°", "": ""}.get(metric.unit, f" {metric.unit}")
    return f"{signed(value, metric.decimals)}{unit}"
