"""The verdict at the head of the page: how many gains are real, the median gain, and whether zero-shot is kept."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

import numpy as np

from cliptex.evaluation.metrics.display import Metric
from cliptex.report import names
from cliptex.report.bootstrap import LEVEL, Interval, interval
from cliptex.report.evaluators import ALPHA, CountedEvaluator
from cliptex.report.statistics import (
    BETTER,
    COUNTED,
    Gain,
    GainStatus,
    format_interval,
    points,
    signed,
)
from cliptex.report.zeroshot import ZeroShot, ZeroShotState

SYMBOLS = {
    "▲": (GainStatus.REAL, ZeroShotState.BETTER),
    "△": (
        GainStatus.ONE_SEED,
        GainStatus.NOT_CORRECTED,
        GainStatus.WITHIN_NOISE,
        GainStatus.BASELINE,
        GainStatus.UNCHECKED,
        ZeroShotState.KEPT,
    ),
    "=": (GainStatus.TIE,),
    "▽": (GainStatus.WORSE_WITHIN_NOISE, ZeroShotState.WITHIN_NOISE, ZeroShotState.ONE_SEED),
    "▼": (GainStatus.WORSE, ZeroShotState.LOST),
}
BAD = (GainStatus.WORSE, ZeroShotState.ONE_SEED, ZeroShotState.LOST)
MEANINGS = {
    GainStatus.REAL: "better than {reference} and the baselines, beyond the noise of seeds and images",
    GainStatus.ONE_SEED: "better than {reference} and the baselines; one seed shows no spread",
    GainStatus.NOT_CORRECTED: "beyond the noise alone, but not among so many",
    GainStatus.BASELINE: "the gain may not come from the image",
    GainStatus.MISSING: "not compared, a value is missing",
}
MAX_NAMED = 6


def mark(status: GainStatus | ZeroShotState) -> str:
    symbol = next((symbol for symbol, statuses in SYMBOLS.items() if status in statuses), "")
    return f"{symbol} {status}".strip()


def tone(status: GainStatus | ZeroShotState) -> str:
    return "good" if status in SYMBOLS["▲"] else "bad" if status in BAD else ""


@dataclass(frozen=True)
class Verdict:
    """Headline and sentences of the page's head, the counts behind them, and the median relative gain in percent.

    counts: `GainStatus` -> evaluators, also `cells` (compared) and `better`.
    """

    headline: str
    sentences: list[str]
    counts: dict[str, int] = field(default_factory=dict)
    gain: float | None = None
    gain_interval: Interval | None = None
    points: list[str] = field(default_factory=list)
    """The median gain by metric, in its unit; the metric of most evaluators first."""
    unseen: str = ""
    """The headline's count without the evaluators whose data set an expert has seen; empty if there are none."""


def verdict(
    evaluators: Sequence[CountedEvaluator],
    zeroshot: Sequence[ZeroShot],
    *,
    seeds: int,
    seen: Collection[str] = (),
    seen_zeroshot: Collection[tuple[str, str]] = (),
    yardstick: Sequence[str] = (),
) -> Verdict:
    """Summarise the evaluators of dense tasks, by family and in all, and zero-shot.

    seen: labels of the evaluators, and `key` of the zero-shot tasks, whose data set an expert has seen. yardstick: the
    two models of the evaluators' `gap`, or none.
    """
    subject, reference = names.model(names.SUBJECT), names.model(names.REFERENCE)
    gains = {one.label: one.gain for one in evaluators}
    groups = {status: [label for label, gain in gains.items() if gain.status is status] for status in GainStatus}
    counts = {status.value: len(labels) for status, labels in groups.items()}
    known = [one for one in evaluators if one.gain.status is not GainStatus.MISSING]
    better = sum(counts[status] for status in BETTER)
    counts |= {"cells": len(known), "better": better}
    if not known:
        return Verdict(f"{subject} was not compared with {reference}", [], counts)

    total = _evaluators(len(known))
    typical, bounds = _median_gain(gains.values())
    families = {family: [one.gain for one in known if one.family == family] for family in names.FAMILIES}
    families = {family: own for family, own in families.items() if own}
    if seeds > 1:
        headline = f"A real gain in {counts[GainStatus.REAL]} of {total}"
    else:
        beyond = f", in {counts[GainStatus.ONE_SEED]} beyond the noise of the images" if bounds else ""
        headline = f"Better in {better} of {total}{beyond}; one seed"
    sentences = [f"{subject} is better than {reference} in {better} of {total}{_median(typical, bounds)}."]
    in_units = _median_points(known)
    sentences += [_family_sentence(family, own, seeds) for family, own in families.items()]
    sentences += [f"Median gain by metric, with its number of evaluators: {', '.join(in_units)}."] if in_units else []
    sentences += [_counting_sentence(known)]
    sentences += [_group_sentence(status, labels, gains) for status, labels in groups.items() if labels]
    without = ""
    if num_seen := sum(one.label in seen for one in known):
        without, sentence = _without([one.gain for one in known if one.label not in seen], num_seen, seeds)
        headline += f"; {without}"
        sentences.insert(1, sentence)
    if gapped := [one for one in known if one.gap is not None]:
        sentences.append(_yardstick_sentence(gapped, yardstick))
    for item in zeroshot:
        has_seen = " An expert was trained on this data set." if item.key in seen_zeroshot else ""
        sentences.append(_zeroshot_sentence(item, reference) + has_seen)
    return Verdict(headline, sentences, counts, typical, bounds, in_units, without)


def _evaluators(number: int) -> str:
    return f"{number} evaluator{'s' if number > 1 else ''}"


def _median(typical: float | None, bounds: Interval | None) -> str:
    text = "" if typical is None else f"; median relative gain {signed(typical)} %"
    return text + (f" ({LEVEL:.0f} % interval {format_interval(bounds)} %)" if bounds else "")


def _family_sentence(family: str, gains: Sequence[Gain], seeds: int) -> str:
    """`Trained heads: a real gain in 3 of 5, better in 5; median relative gain +12.0 % (...).`"""
    better = sum(gain.status in BETTER for gain in gains)
    counted = sum(gain.status in COUNTED for gain in gains)
    if seeds > 1:
        text = f"a real gain in {counted} of {len(gains)}, better in {better}"
    else:
        text = f"better in {better} of {len(gains)}, beyond the noise of the images in {counted}"
    return f"{names.FAMILIES[family]}: {text}{_median(*_median_gain(gains))}."


def _counting_sentence(known: Sequence[CountedEvaluator]) -> str:
    """How evaluators are counted and corrected."""
    tested = [one for one in known if one.adjusted is not None]
    failed = sum(one.gain.status is GainStatus.NOT_CORRECTED for one in tested)
    alone = failed + sum(one.gain.status in COUNTED for one in tested)
    text = "An evaluator is a dense task of a benchmark, read in one way: all its heads count as one"
    if not tested:
        return f"{text}. Nothing was corrected for the number of evaluators, since no noise of the images is known."
    level = f"Holm’s correction at {100 * ALPHA:.0f} % over all {len(tested)}"
    return f"{text}. {level}: of the {alone} that pass alone, {alone - failed} remain."


def _yardstick_sentence(gapped: Sequence[CountedEvaluator], pair: Sequence[str]) -> str:
    gains = [one for one in gapped if one.gain.status in BETTER]
    exceeded = sum(one.gap.exceeded for one in gains)
    beyond = sum(one.gap.beyond_noise for one in gains)
    return (
        f"Yardstick: the gain is larger than the gap between {' and '.join(map(names.model, pair))}, two ordinary "
        f"recipes, in {exceeded} of {_evaluators(len(gapped))}, beyond the noise in {beyond}."
    )


def _without(known: Sequence[Gain], num_seen: int, seeds: int) -> tuple[str, str]:
    """Count and sentence on the compared evaluators of data that no expert is known to have seen."""
    if not known:
        return "an expert has seen the data set of each", "An expert was trained on the data set of every evaluator."
    better = sum(gain.status in BETTER for gain in known)
    counted = sum(gain.status is GainStatus.REAL for gain in known) if seeds > 1 else better
    rows = f"the {_evaluators(num_seen)} whose data set an expert was trained on"
    text = f"Without {rows}: better in {better} of {len(known)}{_median(*_median_gain(known))}"
    return f"{counted} of {len(known)} without those whose data set an expert has seen", f"{text}."


def _median_points(known: Sequence[CountedEvaluator]) -> list[str]:
    """`mIoU +1.8 points (3)`; positive is better, with the number of evaluators."""
    gains: dict[Metric, list[float]] = {}
    for one in known:
        if one.points is not None:
            gains.setdefault(one.metric, []).append(one.points.value)
    ranked = sorted(gains.items(), key=lambda item: -len(item[1]))
    return [f"{metric.title} {points(median(own), metric)} ({len(own)})" for metric, own in ranked]


def _median_gain(gains: Iterable[Gain]) -> tuple[float | None, Interval | None]:
    """The median relative gain in percent, and its interval if every gain has draws."""
    known = [gain for gain in gains if gain.percent is not None]
    if not known:
        return None, None
    drawn = [gain.percent_draws for gain in known if gain.percent_draws is not None]
    bounds = interval(np.median(drawn, axis=0)) if len(drawn) == len(known) else None
    return median(gain.percent for gain in known), bounds


def _group_sentence(status: GainStatus, labels: Sequence[str], gains: Mapping[str, Gain]) -> str:
    """`▽ worse, within noise: 2 (COCO ...; NYUv2 ...)`."""
    named = []
    for label in labels[:MAX_NAMED] if status not in (GainStatus.REAL, GainStatus.ONE_SEED) else ():
        blocking = ", ".join(map(names.model, gains[label].baselines))
        named.append(f"{label} [{blocking}]" if blocking else label)
    if named and len(labels) > MAX_NAMED:
        named.append(f"{len(labels) - MAX_NAMED} more")
    meaning = MEANINGS.get(status, "").format(reference=names.model(names.REFERENCE))
    text = f"{mark(status)}: {len(labels)}" + (f" ({'; '.join(named)})" if named else "")
    return f"{text} — {meaning}." if meaning else f"{text}."


def _zeroshot_sentence(item: ZeroShot, reference: str) -> str:
    """`Zero-shot on ImageNet: ▲ kept, 31.5 % top-1, CLIP-FT 30.1 % (chance 7.1 %; difference +1.4, ...)`."""
    text = f"Zero-shot on {item.benchmark}: {mark(item.state)}"
    if item.against is None:
        return f"{text}."
    text += f", {fmean(item.subject):.1f} % {item.metric}, {reference} {fmean(item.reference):.1f} %"
    details = [] if item.chance is None else [f"chance {item.chance:.1f} %"]
    if bounds := item.against.interval:
        details.append(f"difference {signed(item.against.value)}, {LEVEL:.0f} % interval {format_interval(bounds)}")
    return f"{text} ({'; '.join(details)})." if details else f"{text}."


def further_sentence(model: str, gains: Sequence[Gain]) -> str:
    """The gain of a further model, such as a control, over CLIP-FT, by evaluator."""
    reference = names.model(names.REFERENCE)
    compared = [gain for gain in gains if gain.difference is not None]
    percents = [gain.percent for gain in compared if gain.percent is not None]
    if not percents:
        return f"{model} was not compared with {reference}."
    known = [gain.difference for gain in compared if gain.difference.beyond_noise is not None]
    if known:
        beyond = sum(1 for difference in known if difference.value > 0 and difference.beyond_noise)
        counts = f"better beyond the noise in {beyond} of {len(known)}"
    else:
        counts = f"better in {sum(1 for gain in compared if gain.difference.value > 0)} of {len(compared)}"
    return f"{model}: median gain over {reference} {signed(median(percents))} %, {counts} evaluators."
