"""What a study's models are compared by, and how far each lies from the reference: from the statistics an image.

A measure is a benchmark's task with one head, judged by the task's main metric; under corruptions each variant of the
images has measures of its own. A difference is signed so that positive is better. Two kinds of noise are looked at, as
in the report (docs/report.md): which images were judged and which seeds there were (a paired bootstrap), and, with
several seeds, the spread over them.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json
from cliptex.evaluation.corruptions import CLEAN, variant_of
from cliptex.evaluation.per_image import MAIN_METRIC, Arrays, main_metric, num_images, per_image_path, read_per_image
from cliptex.evaluation.probes import heads
from cliptex.report import names
from cliptex.report.bootstrap import Interval, draws, interval, resampled
from cliptex.report.statistics import direction, pooled_std


@dataclass(frozen=True)
class Measure:
    """One metric of all models.

    statistics: model -> what each image adds, one a seed. variant: how the images are shown, or "" where there is one
    way. tuned: whether the encoders learned with the head.
    """

    benchmark: str
    task: str
    head: str
    statistics: dict[str, list[Arrays]]
    variant: str = ""
    tuned: bool = False
    source: str = "miniature"

    @property
    def metric(self) -> str:
        return MAIN_METRIC[self.task]

    @property
    def better(self) -> int:
        """+1 where a higher value is better, -1 where a lower one is."""
        return direction(self.metric)

    @property
    def images(self) -> int:
        return num_images(next(iter(self.statistics.values()))[0])

    @property
    def dense(self) -> bool:
        return not self.task.endswith("classification")

    @property
    def key(self) -> str:
        """The same for all variants."""
        return f"{self.benchmark}/{self.task}/{self.head}"

    @property
    def what(self) -> str:
        """`mIoU`, `RMSE of depth`, `zero-shot top-1`."""
        metric = names.metric(self.metric)
        if metric[1:2].islower():  # no abbreviation
            metric = metric.lower()
        if self.head == "zero_shot":
            return f"zero-shot {metric}"
        return f"{metric} of {self.task}" if self.task in ("depth", "normals") else metric

    @property
    def title(self) -> str:
        """`mIoU on Pascal VOC (linear)`."""
        head = "" if self.head == "zero_shot" else f" ({names.head(self.head)})"
        return f"{self.what} on {names.benchmark(self.benchmark)}{head}"

    @property
    def unit(self) -> str:
        """`%`, `m`, `°` or nothing."""
        return names.unit(self.task, self.metric)

    def shown(self, value: float) -> str:
        """A value with the digits worth reading."""
        return names.number(value, self.task, self.metric)

    @property
    def digits(self) -> int:
        """Digits after the point that are worth reading."""
        return len(self.shown(0.5).partition(".")[2])


@dataclass(frozen=True)
class Compared:
    """A model by one measure: its value and interval, and how far it lies from the reference.

    draws: the difference in each draw of images, signed so that positive is better. spread: pooled standard deviation
    over seeds; None with one seed.
    """

    model: str
    value: float
    interval: Interval | None
    difference: float
    bounds: Interval | None
    spread: float | None
    draws: np.ndarray

    @property
    def state(self) -> str:
        """`better` or `worse` beyond all noise that is known, else `no difference seen`."""
        if self.bounds is None or not self.bounds.excludes_zero:
            return "no difference seen"
        if self.spread is not None and abs(self.difference) <= self.spread:
            return "no difference seen"
        return "better" if self.difference > 0 else "worse"


def compare(measure: Measure, reference: str, models: Sequence[str], resamples: int) -> dict[str, Compared]:
    """Each model against the reference, on the same draws of images and seeds; the reference is among the results."""
    weights = draws(measure.images, resamples, zlib.crc32(measure.benchmark.encode()))
    values = {
        model: [float(main_metric(measure.task, arrays)[0]) for arrays in measure.statistics[model]]
        for model in dict.fromkeys([reference, *models])
    }
    drawn = {model: resampled(measure.task, measure.statistics[model], weights) for model in values}
    out = {}
    for model, own in values.items():
        moved = measure.better * (drawn[model] - drawn[reference])
        out[model] = Compared(
            model,
            fmean(own),
            interval(drawn[model]),
            measure.better * (fmean(own) - fmean(values[reference])),
            None if model == reference else interval(moved),
            pooled_std(own, values[reference]),
            moved,
        )
    return out


def read_measures(config: Config, root: Path) -> list[Measure]:
    """All measures of a study, benchmarks in the order in which the report has them.

    config: the study's (`study_config`). root: the working directory of the run. In the form `finetuning` there are
    those of tuned encoders besides. Raises CliptexError that names a file that is missing or broken.
    """
    study, seeds, folder = config.study, config.seeds, root / paths.study(config.study.name)
    found: list[Measure] = []
    for benchmark in study.probes:
        if benchmark not in config.probes.benchmarks:
            there = sorted(config.probes.benchmarks)
            raise CliptexError(
                f"study.probes: {benchmark!r} is not one of {there}; a study's file alone is no configuration, "
                "run: snakemake study --configfile FILE, which lays it over the default one"
            )
        for head in heads(benchmark, config.probes.benchmarks[benchmark]):
            frozen = {
                model: [folder / "probes" / benchmark / model / f"seed{seed}" / f"{head}.json" for seed in seeds]
                for model in study.judged
            }
            found += _probed(benchmark, head, frozen)
            if study.form == "finetuning":
                tuned = {
                    model: [root / paths.finetuned(benchmark, model, seed) / f"{head}.json" for seed in seeds]
                    for model in study.judged
                }
                found += _probed(benchmark, head, tuned, tuned=True)
    for benchmark in study.zeroshot:
        path = folder / "zeroshot" / f"{benchmark}.json"
        file = read_per_image(per_image_path(path))
        rows = {m: [file.of("zero_shot_classification", f"{m}/seed{s}") for s in seeds] for m in study.judged}
        source = read_json(path)["source"]
        whole = Measure(benchmark, "zero_shot_classification", "zero_shot", rows, source=source)
        found += _by_variant(whole, file.ids)
    order = list(names.BENCHMARKS)
    return sorted(found, key=lambda one: order.index(one.benchmark) if one.benchmark in order else len(order))


def _probed(benchmark: str, head: str, places: dict[str, list[Path]], tuned: bool = False) -> list[Measure]:
    files = {model: [read_per_image(per_image_path(path)) for path in own] for model, own in places.items()}
    first_model, first_path = next(iter(places)), next(iter(places.values()))[0]
    ids = files[first_model][0].ids
    for model, own in files.items():
        for path, file in zip(places[model], own, strict=True):
            if file.ids.tolist() != ids.tolist():
                raise CliptexError(f"{path}: judged on other images than {first_path}; delete it and run again")
    source = read_json(first_path)["source"]
    out = []
    for task in files[first_model][0].tasks:
        rows = {model: [file.of(task) for file in own] for model, own in files.items()}
        out += _by_variant(Measure(benchmark, task, head, rows, tuned=tuned, source=source), ids)
    return out


def _by_variant(measure: Measure, ids: np.ndarray) -> list[Measure]:
    """The measure itself, or one a variant where the images were shown in several ways."""
    named = np.array([variant_of(name) if "/" in name else "" for name in ids.tolist()])
    order = list(dict.fromkeys(named.tolist()))
    if CLEAN not in order:
        return [measure]

    def cut(arrays: Arrays, rows: np.ndarray) -> Arrays:
        return {name: values[rows] for name, values in arrays.items()}

    out = []
    for variant in order:
        rows = np.flatnonzero(named == variant)
        cuts = {model: [cut(arrays, rows) for arrays in own] for model, own in measure.statistics.items()}
        out.append(replace(measure, statistics=cuts, variant=variant))
    return out
