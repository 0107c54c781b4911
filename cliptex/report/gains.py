"""Gains of CLIPTeX over CLIP-FT: each benchmark's task with one head, by its main metric."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cliptex.core.errors import working_on
from cliptex.evaluation.measures import measures, metric_of, shown
from cliptex.evaluation.per_image import num_images
from cliptex.report import names
from cliptex.report.bootstrap import draws, resampled
from cliptex.report.gather import Results, Scores
from cliptex.report.statistics import Gain, GainStatus, Gap, gain_over, gap_of
from cliptex.report.zeroshot import ZeroShot


@dataclass(frozen=True)
class ProbeGain:
    """A benchmark's task with one head: the main metric of each model, and CLIPTeX's gain over CLIP-FT.

    values: model -> one value a seed. draws: model -> the metric in every draw of evaluation images and seeds.
    """

    benchmark: str
    task: str
    head: str
    metric: str
    values: dict[str, list[float]]
    gain: Gain
    draws: dict[str, np.ndarray]
    source: str | None = None
    """Of the benchmark's data."""
    family: str = "trained_head"
    """How the encoder is read (`names.FAMILIES`)."""
    gap: Gap | None = None
    """Between the two recipes of the yardstick, in the metric's unit; None without a yardstick."""
    baselines: tuple[str, ...] = ()
    """Those that were evaluated."""
    needed: tuple[str, ...] = names.BASELINES
    """Those without which no gain is real."""

    @property
    def label(self) -> str:
        benchmark = names.benchmark(self.benchmark, self.source)
        return f"{benchmark} {names.task(self.task).lower()}, {names.head(self.head)}"

    @property
    def dense(self) -> bool:
        return shown(self.task).dense

    @property
    def better(self) -> int:
        return metric_of(self.task, self.metric).better

    def gain_of(self, model: str, reference: str = names.REFERENCE) -> Gain:
        """The gain of any model over CLIP-FT or another one."""
        baselines, needed = ([name for name in own if name != reference] for own in (self.baselines, self.needed))
        pair = {"subject": model, "reference": reference}
        return gain_over(self.values, self.better, **pair, baselines=baselines, needed=needed, draws=self.draws)

    def between(self, subject: str, reference: str, yardstick: Sequence[str]) -> "ProbeGain":
        """The same with two other models."""
        gain = self.gain_of(subject, reference)
        measured = self.values, self.draws
        gap = gap_of(measured, self.better, gain.difference, yardstick, subject, reference)
        return replace(self, gain=gain, gap=gap)


def probe_gains(results: Results) -> list[ProbeGain]:
    """All probes on frozen encoders, benchmarks in the config's order."""
    return _gains(results, results.probes, results.baselines)


def finetuned_gains(results: Results) -> list[ProbeGain]:
    """All probes on fine-tuned encoders; the only baseline is training from scratch."""
    return _gains(results, results.finetuned, results.config.finetune.baselines, ("random",))


def training_free_gains(results: Results) -> list[ProbeGain]:
    """All evaluations without training. Baselines are those that the rows have: without a text tower there is no
    `position`."""
    out = []
    for name, scores in results.training_free.items():
        evaluated = {row.model for row in scores.results}
        baselines = [baseline for baseline in results.baselines if baseline in evaluated]
        out += _gains(results, {name: scores}, baselines, baselines)
    return out


def _gains(
    results: Results,
    benchmarks: Mapping[str, Scores],
    baselines: Sequence[str],
    needed: Sequence[str] = names.BASELINES,
) -> list[ProbeGain]:
    out, pair = [], (names.SUBJECT, names.REFERENCE)
    for name, scores in benchmarks.items():
        for task, head in scores.cells():
            metric = scores.main_metric(task, head)
            values = scores.values(task, head, metric)
            drawn = _drawn(results, scores, task, head, metric)
            family, none = scores.family(task, head), Gain(GainStatus.MISSING)
            row = ProbeGain(name, task, head, metric, values, none, drawn, scores.source, family)
            row = replace(row, baselines=tuple(baselines), needed=tuple(needed))
            out.append(row.between(*pair, results.yardstick))
    return out


def _drawn(results: Results, scores: Scores, task: str, head: str, metric: str) -> dict[str, np.ndarray]:
    """Model -> its metric in draws of the evaluation images and seeds; the same draws for every model and head."""
    if task not in measures() or metric != measures()[task].main:
        return {}
    images = scores.images(task, head)
    if not images or num_images(next(iter(images.values()))[0]) < 2:
        return {}
    weights = draws(scores.num_eval, results.config.report.resamples, zlib.crc32(scores.benchmark.encode()))
    with working_on(f"{scores.path}, {task}, {head}"):
        return {model: resampled(task, seeds, weights) for model, seeds in images.items()}


def zeroshot_results(results: Results) -> list[ZeroShot]:
    """The main metric of CLIPTeX and CLIP-FT in every zero-shot task."""
    out = []
    for name, scores in results.zeroshot.items():
        several = len({task for task, _ in scores.cells()}) > 1
        for task, head in scores.cells():
            metric = scores.main_metric(task, head)
            values = scores.values(task, head, metric)
            measured = values, _drawn(results, scores, task, head, metric)
            title = metric_of(task, metric).title
            shot = ZeroShot(
                names.benchmark(name, scores.source) + (f" ({names.task(task).lower()})" if several else ""),
                [],
                [],
                scores.chance_level(task, metric),
                metric=title.lower() if metric == "top1" else title,
                key=(name, task),
                measured=measured,
            )
            out.append(shot.between(names.SUBJECT, names.REFERENCE, results.yardstick))
    return out


def further_models(results: Results) -> list[str]:
    """Models other than the paper's three, such as controls."""
    return [model for model in results.models if model not in names.MODELS]
