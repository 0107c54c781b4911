"""What the numbers say: direction of each metric, spread over seeds, relative gain, verdict. Pure functions.

A cell is one (benchmark, task, head), judged by the task's main metric. Values are one number a seed. Noise has two
parts, each known or not: the spread over seeds, and the interval over evaluation images and seeds that are drawn anew
(`cliptex.report.bootstrap`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import fmean, median, stdev

import numpy as np

from cliptex.report.bootstrap import LEVEL, Interval, interval

DENSE_TASKS = ("semantic_segmentation", "detection", "instance_segmentation", "depth", "normals")
LOWER_IS_BETTER = frozenset({"rmse", "absrel", "log10", "silog", "mean", "median"})
ALIGNED = "affine_"
"""Before the name of a metric that was computed after scale and shift had been fitted."""
HIGHER_IS_BETTER = frozenset(
    {"mIoU", "mAcc", "aAcc", "AP", "AP50", "AP75", "APs", "APm", "APl", "top1", "top5"}
    | {"delta1", "delta2", "delta3", "within_5", "within_7_5", "within_11_25", "within_22_5", "within_30"}
    | {"box_AP", "box_AP50", "mask_AP", "mask_AP50"}
)


def direction(metric: str) -> int:
    """+1 where a higher value is better, -1 where a lower one is, 0 for a metric that is not known."""
    metric = metric.removeprefix(ALIGNED)
    if metric in HIGHER_IS_BETTER or "R@" in metric:
        return 1
    return -1 if metric in LOWER_IS_BETTER else 0


@dataclass(frozen=True)
class Summary:
    """Mean over seeds, sample standard deviation (ddof = 1; None with fewer than two seeds), number of seeds."""

    mean: float
    std: float | None
    count: int


def summary(values: Sequence[float]) -> Summary | None:
    """Summary of one number a seed; None without any."""
    if not values:
        return None
    return Summary(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def pooled_std(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Pooled sample standard deviation of two groups: sqrt(sum of squared deviations / (n_a + n_b - 2)).

    None when neither group has two values. A group of one adds nothing to either sum.
    """
    freedom = max(len(a) - 1, 0) + max(len(b) - 1, 0)
    if not freedom:
        return None
    squares = sum((value - fmean(group)) ** 2 for group in (a, b) if group for value in group)
    return math.sqrt(squares / freedom)


def relative_gain(new: float | None, old: float | None, better: int) -> float | None:
    """Gain of `new` over `old` in percent of `old`, positive where `new` is better; None where it is not defined."""
    if new is None or old is None or not better or old == 0:
        return None
    return 100 * better * (new - old) / abs(old)


@dataclass(frozen=True)
class Difference:
    """Subject minus other, in the metric's unit, signed so that positive is better.

    spread: pooled standard deviation over seeds; None with one seed. interval: 95 % over evaluation images and
    seeds; None where the images' statistics were not kept.
    """

    value: float
    spread: float | None
    interval: Interval | None = None

    @property
    def beyond_noise(self) -> bool | None:
        """Whether it is larger than the spread and its interval excludes zero, as far as they are known; else None."""
        tests = [] if self.spread is None else [abs(self.value) > self.spread]
        if self.interval is not None:
            tests.append(self.interval.low > 0 if self.value > 0 else self.interval.high < 0)
        return all(tests) if tests else None


def difference(
    subject: Sequence[float], other: Sequence[float], better: int, draws: Sequence[np.ndarray | None] = (None, None)
) -> Difference | None:
    """Compare two models' values; None where either has none or the metric's direction is not known.

    draws: the values of the subject and of the other in the same draws of images and seeds.
    """
    if not subject or not other or not better:
        return None
    value = better * (fmean(subject) - fmean(other))
    if abs(value) < 1e-12 * max(abs(fmean(subject)), abs(fmean(other))):  # rounding of equal means
        value = 0.0
    known = all(one is not None for one in draws)
    return Difference(value, pooled_std(subject, other), interval(better * (draws[0] - draws[1])) if known else None)


class Outcome(StrEnum):
    """What may be said of a cell."""

    REAL = "real"
    """Better than the reference and than every baseline, each beyond the noise, that over seeds included."""
    ONE_SEED = "one seed"
    """Better than the reference and every baseline, beyond the noise of the images, but one seed shows no spread."""
    WITHIN_NOISE = "within noise"
    """Better than the reference, by no more than the noise."""
    BASELINE = "baseline as good"
    """Better than the reference, but not clearly better than a baseline: the gain may not be knowledge."""
    UNCHECKED = "baseline missing"
    """Better than the reference, but a baseline was not run here."""
    TIE = "tie"
    WORSE_WITHIN_NOISE = "worse, within noise"
    WORSE = "worse"
    MISSING = "missing"
    """One side has no value."""


BETTER = (Outcome.REAL, Outcome.ONE_SEED, Outcome.WITHIN_NOISE, Outcome.BASELINE, Outcome.UNCHECKED)
"""Outcomes in which the subject's mean is better than the reference's."""


@dataclass(frozen=True)
class Judgement:
    """A cell's outcome, its relative gain and the gain's interval in percent, and the baselines in the way.

    gains: the relative gain in every draw of images and seeds, percent of the reference's value over all images.
    """

    outcome: Outcome
    gain: float | None = None
    difference: Difference | None = None
    baselines: tuple[str, ...] = ()
    gain_interval: Interval | None = None
    gains: np.ndarray | None = None


def judge(
    values: Mapping[str, Sequence[float]],
    better: int,
    *,
    subject: str,
    reference: str,
    baselines: Sequence[str] = ("random", "position"),
    needed: Sequence[str] = ("random", "position"),
    draws: Mapping[str, np.ndarray] | None = None,
) -> Judgement:
    """Judge one cell.

    values: model -> one number a seed. needed: baselines without which no gain is real. draws: model -> its value in
    each draw of images and seeds. "Better" means a better mean. A gain counts only beyond the noise: with two or more
    seeds it must exceed the pooled standard deviation of the two models compared, and with `draws` the 95 % interval of
    the difference must exclude zero, against the reference and each baseline alike.
    """
    draws = draws or {}

    def compare(other: str) -> Difference | None:
        pair = draws.get(subject), draws.get(other)
        return difference(values.get(subject, ()), values.get(other, ()), better, pair)

    against = compare(reference)
    if against is None:
        return Judgement(Outcome.MISSING)
    old = fmean(values[reference])
    gain = relative_gain(fmean(values[subject]), old, better)
    percent = 100 / abs(old) if old else None
    gain_interval = against.interval.scaled(percent) if against.interval and percent else None
    gains = better * (draws[subject] - draws[reference]) * percent if gain_interval else None

    def outcome(what: Outcome, names: Sequence[str] = ()) -> Judgement:
        return Judgement(what, gain, against, tuple(names), gain_interval, gains)

    if against.value == 0:
        return outcome(Outcome.TIE)
    if against.value < 0:
        return outcome(Outcome.WORSE_WITHIN_NOISE if against.beyond_noise is False else Outcome.WORSE)
    if against.beyond_noise is False:
        return outcome(Outcome.WITHIN_NOISE)
    margins = {name: compare(name) for name in baselines}
    as_good = [n for n, m in margins.items() if m is not None and (m.value <= 0 or m.beyond_noise is False)]
    if as_good:
        return outcome(Outcome.BASELINE, as_good)
    if missing := [name for name in needed if margins.get(name) is None]:
        return outcome(Outcome.UNCHECKED, missing)
    return outcome(Outcome.ONE_SEED if against.spread is None else Outcome.REAL)


@dataclass(frozen=True)
class ZeroShot:
    """A zero-shot metric of one benchmark: subject and reference, one number a seed, and chance, all in percent.

    benchmark, metric: as shown. draws: the values of the subject and of the reference in the same draws of images
    and seeds. key: benchmark and task in the results.
    """

    benchmark: str
    subject: Sequence[float]
    reference: Sequence[float]
    chance: float | None
    draws: Sequence[np.ndarray | None] = (None, None)
    metric: str = "top-1"
    key: tuple[str, str] = ("", "")

    @property
    def against(self) -> Difference | None:
        """Subject minus reference, in points."""
        return difference(self.subject, self.reference, 1, self.draws)

    @property
    def state(self) -> str:
        """`kept`, `kept within noise`, `lost`, `lower, undecided`, `at chance` (neither is above it) or `missing`.

        Kept: not below the reference; within noise: below it by no more than that. Lower with one seed: undecided.
        """
        against = self.against
        if against is None:
            return "missing"
        if self.chance is not None and max(fmean(self.subject), fmean(self.reference)) <= self.chance:
            return "at chance"
        if against.value >= 0:
            return "kept"
        if against.beyond_noise is False:
            return "kept within noise"
        return "lower, undecided" if against.spread is None else "lost"


ONE_SEED = (
    "The interval over images stands in for the spread between runs, which one seed cannot show: it covers which "
    "images were judged, not how training or a head would have turned out with another seed. So no gain is called real "
    "here."
)


@dataclass(frozen=True)
class Verdict:
    """The paragraph at the head of the page, the counts behind it, and the median relative gain in percent."""

    headline: str
    sentences: list[str]
    counts: dict[str, int] = field(default_factory=dict)
    gain: float | None = None
    gain_interval: Interval | None = None


def verdict(
    cells: Mapping[str, Judgement],
    zeroshot: Sequence[ZeroShot],
    *,
    subject: str,
    reference: str,
    seeds: int,
    show: Mapping[str, str] | None = None,
) -> Verdict:
    """Put the dense cells and zero-shot into words.

    cells: readable name of each dense cell -> its judgement. subject, reference: names as shown. show: baselines'
    names as shown. No sentence says more than the counts do.
    """
    show = show or {}
    judged = {name: cell for name, cell in cells.items() if cell.outcome is not Outcome.MISSING}
    groups = {outcome: [n for n, cell in judged.items() if cell.outcome is outcome] for outcome in Outcome}
    groups[Outcome.MISSING] = [name for name in cells if name not in judged]
    counts = {outcome.value: len(names) for outcome, names in groups.items()}
    ahead = [name for name, cell in judged.items() if cell.outcome in BETTER]
    behind = groups[Outcome.WORSE] + groups[Outcome.WORSE_WITHIN_NOISE]
    counts |= {"cells": len(judged), "better": len(ahead)}
    if not judged:
        return Verdict(
            f"{subject} was not compared with {reference}",
            [f"No dense probe has a value of both {subject} and {reference}, so nothing can be said."],
            counts,
        )

    total = f"{len(judged)} dense {'probe' if len(judged) == 1 else 'probes'}"
    gains = [cell.gain for cell in judged.values() if cell.gain is not None]
    typical = median(gains) if gains else None
    middle = f"; the median relative gain is {signed(typical)} %" if gains else ""
    drawn = [cell.gains for cell in judged.values() if cell.gains is not None]
    imaged = bool(gains) and len(drawn) == len(gains)
    bounds = interval(np.median(drawn, axis=0)) if imaged else None
    if bounds:
        middle += f" ({LEVEL:.0f} % interval {ranging(bounds)} %)"
    better = "has a better mean" if seeds > 1 else "is better"
    sentences = [
        f"{subject} {better} than {reference} in {len(ahead)} of {total} (a probe is a benchmark’s task with one head)"
        f"{middle}."
    ]
    if seeds > 1:
        real = len(groups[Outcome.REAL])
        headline = f"A real gain in {real} of {total}"
        sentences.append(
            f"{_number(real)} of these {'gains is' if real == 1 else 'gains are'} real: beyond the spread over {seeds} "
            f"seeds{' and beyond chance in which images and seeds there were' if imaged else ''}, against {reference} "
            "and against both baselines (an untrained encoder, and the position of a patch alone)."
        )
    else:
        clear = len(groups[Outcome.ONE_SEED])
        headline = f"Ahead in {len(ahead)} of {total}, from one seed"
        every = "all" if clear == len(ahead) and clear > 1 else clear
        baselines = "both baselines (an untrained encoder, and the position of a patch alone)"
        if imaged:
            headline = f"Ahead in {len(ahead)} of {total}, in {every} beyond the noise of the images; one seed"
            sentences.append(
                f"In {every} of them the gain is more than chance in which images were judged explains, against "
                f"{reference} and against {baselines}. {ONE_SEED}"
            )
        else:
            sentences.append(
                f"In {every} of them it also beats {baselines}. One seed cannot show the spread between runs, so no "
                "gain is called real here."
            )
    if names := groups[Outcome.WITHIN_NOISE]:
        sentences.append(f"Ahead, but within the noise: {_listing(names)}.")
    if names := groups[Outcome.BASELINE]:
        blocked = [f"{n} ({' and '.join(show.get(b, b) for b in judged[n].baselines)})" for n in names]
        sentences.append(f"Ahead, but a baseline is as good, so the gain may not be knowledge: {_listing(blocked)}.")
    if names := groups[Outcome.UNCHECKED]:
        sentences.append(f"Ahead, but not checked against both baselines: {_listing(names)}.")
    if behind:
        inside = groups[Outcome.WORSE_WITHIN_NOISE]
        close = f" ({len(inside)} of them within the noise)" if inside else ""
        sentences.append(f"{reference} is better{close} in {len(behind)}: {_listing(behind)}.")
    elif not groups[Outcome.TIE]:
        sentences.append(f"{reference} is better in none.")
    if names := groups[Outcome.TIE]:
        sentences.append(f"Equal: {_listing(names)}.")
    if names := groups[Outcome.MISSING]:
        sentences.append(f"Not compared, since a value is missing: {_listing(names)}.")
    sentences += [_zeroshot_sentence(item, reference) for item in zeroshot]
    return Verdict(headline, sentences, counts, typical, bounds)


def beside(model: str, cells: Sequence[Judgement], *, reference: str) -> str:
    """One sentence on a further model, such as a control: its gain over the reference in the dense cells."""
    judged = [cell for cell in cells if cell.difference is not None]
    gains = [cell.gain for cell in judged if cell.gain is not None]
    if not gains:
        return f"{model} was not compared with {reference}."
    known = [cell.difference for cell in judged if cell.difference.beyond_noise is not None]
    beyond = sum(1 for one in known if one.value > 0 and one.beyond_noise)
    ahead = sum(1 for cell in judged if cell.difference.value > 0)
    counts = f"better beyond the noise in {beyond} of {len(known)}" if known else f"ahead in {ahead} of {len(judged)}"
    return f"{model}: median gain over {reference} {signed(median(gains))} %, {counts} dense probes."


def _zeroshot_sentence(item: ZeroShot, reference: str) -> str:
    if item.state == "missing":
        return f"Zero-shot {item.benchmark} was not measured for both models."
    numbers = f"{fmean(item.subject):.1f} % {item.metric} against {reference}’s {fmean(item.reference):.1f} %"
    about = [] if item.chance is None else [f"chance {item.chance:.1f} %"]
    if bounds := item.against.interval:
        about.append(f"difference {signed(item.against.value)}, {LEVEL:.0f} % interval {ranging(bounds)}")
    numbers += f" ({'; '.join(about)})" if about else ""
    say = {
        "kept": "is kept",
        "kept within noise": "is kept as far as can be told, lower by no more than the noise",
        "lost": "is lost in part, by more than the noise",
        "lower, undecided": "is lower, and one seed cannot say whether that is chance",
        "at chance": "says nothing, since neither model is above chance",
    }[item.state]
    return f"Zero-shot on {item.benchmark} {say}: {numbers}."


def _listing(names: Sequence[str], most: int = 6) -> str:
    rest = len(names) - most
    return "; ".join(names[:most]) + (f"; and {rest} more (see the table)" if rest > 0 else "")


def _number(count: int) -> str:
    return "None" if count == 0 else str(count)


def ranging(bounds: Interval, digits: int = 1) -> str:
    """`+1.2 to +3.4`."""
    return f"{signed(bounds.low, digits)} to {signed(bounds.high, digits)}"


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign and a true minus; zero after rounding has no sign."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")
