"""Evaluators: the heads of one family on one task of a benchmark, counted as one, and Holm's correction over all.

An encoder is read by trained heads, without a trained head, or by text (`names.FAMILIES`). Heads of one family on one
set measure much the same, so the verdict counts them once: a model's value is the mean over the heads, each in units of
CLIP-FT's, seed by seed and draw by draw (`cliptex.report.statistics.mean_over_heads`), and the same rules decide.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cliptex.evaluation.measures import metric_of
from cliptex.evaluation.metrics.display import Metric
from cliptex.report import names
from cliptex.report.bootstrap import p_value
from cliptex.report.gains import ProbeGain
from cliptex.report.statistics import (
    COUNTED,
    Difference,
    Gain,
    GainStatus,
    Gap,
    Measured,
    difference,
    gain_over,
    gap_of,
    holm,
    mean_over_heads,
)

Pair = tuple[str, str]
"""The model whose gain is measured, and the one that it is compared with."""
ALPHA = 0.05
"""Level of Holm's correction: the probability of any false gain over CLIP-FT among all evaluators, at most."""
NEEDED = {"text": ("random",)}
"""Baselines that a family needs, where these are not all: a position has no text encoder."""


@dataclass(frozen=True)
class CountedEvaluator:
    """One family's heads on one task of a benchmark.

    gain: of CLIPTeX over CLIP-FT, the mean of the heads' relative gains; its status is after the correction. p: of that
    gain alone; None if it cannot be tested. adjusted: the same for all evaluators (`holm`). gap: of the yardstick, in
    percent of CLIP-FT.
    """

    family: str
    heads: tuple[ProbeGain, ...]
    measured: Measured
    gain: Gain
    p: float | None = None
    adjusted: float | None = None
    gap: Gap | None = None
    points: Difference | None = None
    """The gain in the metric's unit, the mean over the heads; positive is better."""

    @property
    def benchmark(self) -> str:
        return self.heads[0].benchmark

    @property
    def task(self) -> str:
        return self.heads[0].task

    @property
    def metric(self) -> Metric:
        return metric_of(self.task, self.heads[0].metric)

    @property
    def title(self) -> str:
        return f"{names.benchmark(self.benchmark, self.heads[0].source)} {names.task(self.task).lower()}"

    @property
    def label(self) -> str:
        """Differs between evaluators, in words."""
        return f"{self.title}, {names.FAMILIES[self.family].lower()}"

    def gain_of(self, model: str, baselines: Sequence[str]) -> Gain:
        """The gain of any model over CLIP-FT, without correction."""
        return _gain(self.family, self.measured, self.metric.better, (model, names.REFERENCE), baselines)


def _gain(family: str, measured: Measured, better: int, pair: Pair, baselines: Sequence[str]) -> Gain:
    (subject, reference), (values, draws) = pair, measured
    baselines, needed = (
        [name for name in own if name != reference] for own in (baselines, NEEDED.get(family, names.BASELINES))
    )
    models = {"subject": subject, "reference": reference}
    return gain_over(values, better, **models, baselines=baselines, needed=needed, draws=draws)


def evaluators(
    gains: Sequence[ProbeGain],
    baselines: Sequence[str],
    yardstick: Sequence[str] = (),
    pair: Pair = (names.SUBJECT, names.REFERENCE),
) -> list[CountedEvaluator]:
    """The evaluators of the dense tasks, by family and then in the order of `gains`, corrected for their number.

    baselines: those that were evaluated. yardstick: two models, or none. pair: the models compared; the correction is
    for the evaluators of this pair, not for the number of pairs.
    """
    groups: dict[tuple[str, str, str], list[ProbeGain]] = {}
    for gain in gains:
        if gain.dense:
            groups.setdefault((gain.family, gain.benchmark, gain.task), []).append(gain)
    order = list(names.FAMILIES)
    found = [
        _evaluator(family, heads, baselines, yardstick, pair)
        for (family, *_), heads in sorted(groups.items(), key=lambda item: order.index(item[0][0]))
    ]
    tested = [one for one in found if one.p is not None]
    adjusted = dict(zip(map(id, tested), holm([one.p for one in tested]), strict=True))
    return [_corrected(one, adjusted[id(one)]) if id(one) in adjusted else one for one in found]


def _evaluator(
    family: str, heads: Sequence[ProbeGain], baselines: Sequence[str], yardstick: Sequence[str], pair: Pair
) -> CountedEvaluator:
    own = [(head.values, head.draws) for head in heads]
    measured, better = mean_over_heads(own, *pair), heads[0].better
    gain = _gain(family, measured, better, pair, baselines)
    (values, drawn) = mean_over_heads(own, *pair, relative=False)
    points = difference(*(values.get(model, ()) for model in pair), better, [drawn.get(model) for model in pair])
    p = None if gain.percent_draws is None else p_value(gain.percent, gain.percent_draws)
    percent = {model: [100 * value for value in own] for model, own in measured[0].items()}
    drawn = {model: 100 * own for model, own in measured[1].items()}
    change = gain.difference and replace(gain.difference, value=100 * gain.difference.value)
    gap = None if gain.percent is None else gap_of((percent, drawn), better, change, yardstick, *pair)
    return CountedEvaluator(family, tuple(heads), measured, gain, p, gap=gap, points=points)


def _corrected(one: CountedEvaluator, adjusted: float) -> CountedEvaluator:
    passes = one.gain.status not in COUNTED or adjusted <= ALPHA
    gain = one.gain if passes else replace(one.gain, status=GainStatus.NOT_CORRECTED)
    return replace(one, gain=gain, adjusted=adjusted)
