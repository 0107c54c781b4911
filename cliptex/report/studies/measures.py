"""The metrics of a study's models and their differences to the reference, from per-image statistics.

A measure is the main metric of a benchmark's task with one head; with corruptions, of each variant of the images. A
difference is signed so that positive is better. Noise is tested as in the report (docs/report.md): a paired bootstrap
over images and seeds and, with several seeds, the spread over them.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.evaluation.corruptions import CLEAN, variant_of
from cliptex.evaluation.measures import ZERO_SHOT, measure, metric_of, shown
from cliptex.evaluation.metrics.base import Arrays
from cliptex.evaluation.metrics.display import Metric
from cliptex.evaluation.per_image import main_metric, num_images, per_image_path, read_per_image
from cliptex.evaluation.probes.tasks import load_tasks
from cliptex.evaluation.results import OUTDATED, read_result
from cliptex.evaluation.targets import heads
from cliptex.report import names
from cliptex.report.bootstrap import Interval, draws, interval, resampled
from cliptex.report.gather import PUT_BACK
from cliptex.report.integrity import check_metric, check_weights
from cliptex.report.records import STUDIED, read_record
from cliptex.report.statistics import pooled_std


@dataclass(frozen=True)
class StudyMeasure:
    """One metric of all models.

    statistics: model -> per-image statistics, one a seed. variant: of the images, "" without corruptions. tuned:
    whether the encoders were fine-tuned. mark: that an expert has seen the data, `†` or `‡` (`cliptex.report.seen`).
    """

    benchmark: str
    task: str
    head: str
    statistics: dict[str, list[Arrays]]
    variant: str = ""
    tuned: bool = False
    source: str = "miniature"
    mark: str = ""

    @property
    def metric(self) -> str:
        return measure(self.task).main

    @property
    def info(self) -> Metric:
        return metric_of(self.task, self.metric)

    @property
    def images(self) -> int:
        return num_images(next(iter(self.statistics.values()))[0])

    @property
    def dense(self) -> bool:
        return shown(self.task).dense

    @property
    def key(self) -> str:
        """Common to all variants, frozen and tuned."""
        return f"{self.benchmark}/{self.task}/{self.head}"

    @property
    def metric_title(self) -> str:
        """`mIoU`, `RMSE of depth`, `zero-shot top-1`."""
        title = self.info.title
        if title[1:2].islower():  # no abbreviation
            title = title.lower()
        if self.head == "zero_shot":
            return f"zero-shot {title}"
        quantity = shown(self.task).quantity
        return f"{title} of {quantity}" if quantity else title

    @property
    def title(self) -> str:
        """`mIoU on Pascal VOC (linear)`."""
        head = "" if self.head == "zero_shot" else f" ({names.head(self.head)})"
        return f"{self.metric_title} on {self.where}{head}"

    @property
    def where(self) -> str:
        """`Pascal VOC`, with its mark."""
        return f"{names.benchmark(self.benchmark, self.source)} {self.mark}".rstrip()


@dataclass(frozen=True)
class ComparedModel:
    """A model by one measure: value and interval, and the difference to the reference with its bounds.

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
        """`better` or `worse` beyond all known noise, else `no difference seen`."""
        if self.bounds is None or not self.bounds.excludes_zero:
            return "no difference seen"
        if self.spread is not None and not abs(self.difference) > self.spread > 0:  # zero: no seed differs
            return "no difference seen"
        return "better" if self.difference > 0 else "worse"


Findings = Sequence[tuple[StudyMeasure, Mapping[str, ComparedModel]]]
"""Each measure with all models compared by it."""


def compare(measure: StudyMeasure, reference: str, models: Sequence[str], resamples: int) -> dict[str, ComparedModel]:
    """Each model, including the reference, against the reference, on the same draws of images and seeds."""
    weights = draws(measure.images, resamples, zlib.crc32(measure.benchmark.encode()))
    values = {
        model: [float(main_metric(measure.task, arrays)[0]) for arrays in measure.statistics[model]]
        for model in dict.fromkeys([reference, *models])
    }
    drawn = {model: resampled(measure.task, measure.statistics[model], weights) for model in values}
    better, out = measure.info.better, {}
    for model, own in values.items():
        moved = better * (drawn[model] - drawn[reference])
        out[model] = ComparedModel(
            model,
            fmean(own),
            interval(drawn[model]),
            better * (fmean(own) - fmean(values[reference])),
            None if model == reference else interval(moved),
            pooled_std(own, values[reference]),
            moved,
        )
    return out


def read_measures(config: Config, workdir: Path) -> list[StudyMeasure]:
    """All measures of a study, benchmarks in the report's order.

    config: the study's (`study_config`). workdir: the working directory of the run. The form `finetuning` also has
    those of fine-tuned encoders. Raises CliptexError for a file that is missing or broken.
    """
    load_tasks(config)
    study, seeds, folder = config.study, config.seeds, workdir / paths.study(config.study.name)
    measures: list[StudyMeasure] = []
    for benchmark in study.probes:
        if benchmark not in config.probes.benchmarks:
            known = sorted(config.probes.benchmarks)
            raise CliptexError(
                f"study.probes: {benchmark!r} is not one of {known}; a study's file is not a complete configuration, "
                "run: snakemake study --configfile FILE, which lays it over the default one"
            )
        for head in heads(benchmark, config.probes.benchmarks[benchmark]):
            for tuned in (False, True) if study.form == "finetuning" else (False,):
                parent = workdir / paths.RESULTS / "finetuned" if tuned else folder / "probes"
                results = {
                    model: [parent / benchmark / model / f"seed{seed}" / f"{head}.json" for seed in seeds]
                    for model in study.compared
                }
                for model, own in results.items():
                    for seed, path in zip(seeds, own, strict=True):
                        _check(workdir, path, model, seed)
                measures += _probed(benchmark, head, results, tuned)
    for benchmark in study.zeroshot:
        path = folder / "zeroshot" / f"{benchmark}.json"
        file = read_per_image(per_image_path(path))
        for model in study.compared:
            for seed in seeds:
                _check(workdir, path, model, seed, shared=True)
        rows = {m: [file.of(ZERO_SHOT.name, f"{m}/seed{s}") for s in seeds] for m in study.compared}
        source = read_result(path).source
        whole = StudyMeasure(benchmark, ZERO_SHOT.name, "zero_shot", rows, source=source)
        measures += _by_variant(whole, file.ids)
    order = list(names.BENCHMARKS)
    return sorted(measures, key=lambda one: order.index(one.benchmark) if one.benchmark in order else len(order))


def _check(workdir: Path, path: Path, model: str, seed: int, shared: bool = False) -> None:
    """Raises CliptexError if a results file is not of these weights, or not of its per-image parts.

    shared: whether the file has other models and seeds as well.
    """
    result, parts, name, folder = (
        read_result(path),
        per_image_path(path),
        f"{model}/seed{seed}",
        paths.model(model, seed),
    )
    file, rows = read_per_image(parts), [row for row in result.results if (row.model, row.seed) == (model, seed)]
    if name not in file.rows if shared else len(rows) < len(result.results):
        raise CliptexError(f"{parts if shared else path}: is not of {name}; {PUT_BACK}, or evaluate {name} again")
    for row in rows:
        if row.task in file.tasks:
            check_metric(path, parts, row, file.of(row.task, name if shared else None))
    if evaluated := result.provenance.get("model_sha256", {}).get(name):
        trained = read_record(workdir / folder / "train.json", STUDIED)["model_sha256"]
        check_weights(path, name, evaluated, trained, workdir / folder)


def _probed(benchmark: str, head: str, result_paths: dict[str, list[Path]], tuned: bool) -> list[StudyMeasure]:
    files = {model: [read_per_image(per_image_path(path)) for path in own] for model, own in result_paths.items()}
    first_model, first_path = next(iter(result_paths)), next(iter(result_paths.values()))[0]
    ids = files[first_model][0].ids
    for model, own in files.items():
        for path, file in zip(result_paths[model], own, strict=True):
            if file.ids.tolist() != ids.tolist():
                raise CliptexError(f"{path}: evaluated on other images than {first_path}; {OUTDATED}")
    source = read_result(first_path).source
    out = []
    for task in files[first_model][0].tasks:
        rows = {model: [file.of(task) for file in own] for model, own in files.items()}
        out += _by_variant(StudyMeasure(benchmark, task, head, rows, tuned=tuned, source=source), ids)
    return out


def _by_variant(measure: StudyMeasure, ids: np.ndarray) -> list[StudyMeasure]:
    """The measure itself or, with corruptions, one for each variant of the images."""
    variants = np.array([variant_of(name) if "/" in name else "" for name in ids.tolist()])
    order = list(dict.fromkeys(variants.tolist()))
    if CLEAN not in order:
        return [measure]

    def cut(arrays: Arrays, rows: np.ndarray) -> Arrays:
        return {name: values[rows] for name, values in arrays.items()}

    out = []
    for variant in order:
        rows = np.flatnonzero(variants == variant)
        cuts = {model: [cut(arrays, rows) for arrays in own] for model, own in measure.statistics.items()}
        out.append(replace(measure, statistics=cuts, variant=variant))
    return out
