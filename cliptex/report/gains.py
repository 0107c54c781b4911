"""Gains of CLIPTeX over CLIP-FT: each benchmark's task with one head, by its main metric."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cliptex.core.errors import working_on
from cliptex.evaluation.measures import measures, metric_of, shown
from cliptex.evaluation.per_image import num_images
from cliptex.report import names
from cliptex.report.bootstrap import draws, resampled
from cliptex.report.gather import Results, Scores
from cliptex.report.statistics import Gain, Gap, ZeroShot, difference, gain_over, gap_of


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

    @property
    def label(self) -> str:
        benchmark = names.benchmark(self.benchmark, self.source)
        return f"{benchmark} {names.task(self.task).lower()}, {names.head(self.head)}"

    @property
    def dense(self) -> bool:
        return shown(self.task).dense

    def gain_of(self, model: str, baselines: Sequence[str]) -> Gain:
        """The gain of any model over CLIP-FT."""
        pair = {"subject": model, "reference": names.REFERENCE}
        return gain_over(
            self.values, metric_of(self.task, self.metric).better, **pair, baselines=baselines, draws=self.draws
        )


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
    needed: Sequence[str] = ("random", "position"),
) -> list[ProbeGain]:
    out = []
    for name, scores in benchmarks.items():
        for task, head in scores.cells():
            metric = scores.main_metric(task, head)
            values = scores.values(task, head, metric)
            drawn = _drawn(results, scores, task, head, metric)
            pair = {"subject": names.SUBJECT, "reference": names.REFERENCE}
            gain = gain_over(
                values, metric_of(task, metric).better, **pair, baselines=baselines, needed=needed, draws=drawn
            )
            gap = gap_of(
                (values, drawn), metric_of(task, metric).better, gain.difference, results.yardstick, *pair.values()
            )
            family = scores.family(task, head)
            out.append(ProbeGain(name, task, head, metric, values, gain, drawn, scores.source, family, gap))
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
            drawn = _drawn(results, scores, task, head, metric)
            title = metric_of(task, metric).title
            pair = names.SUBJECT, names.REFERENCE
            against = difference(*(values.get(model, []) for model in pair), 1, [drawn.get(model) for model in pair])
            out.append(
                ZeroShot(
                    names.benchmark(name, scores.source) + (f" ({names.task(task).lower()})" if several else ""),
                    values.get(names.SUBJECT, []),
                    values.get(names.REFERENCE, []),
                    scores.chance_level(task, metric),
                    (drawn.get(names.SUBJECT), drawn.get(names.REFERENCE)),
                    title.lower() if metric == "top1" else title,
                    (name, task),
                    gap_of((values, drawn), 1, against, results.yardstick, *pair),
                )
            )
    return out


def further_models(results: Results) -> list[str]:
    """Models other than the paper's three, such as controls."""
    return [model for model in results.models if model not in names.MODELS]
