"""DataComp's suite of 38 evaluation sets: which of them clip_benchmark can evaluate, published scores, and means.

Reads   datacomp.tsv, from DataComp's tasklist.yml and download_evalsets.py (github.com/mlfoundations/datacomp, 4a8df19)
        and clip_benchmark's benchmark/webdatasets.txt; openclip_results.csv, a copy of open_clip's
        docs/openclip_results.csv (89fb801, MIT licence).
Holds   a mean is over the sets that were run, its number of sets is next to it, and the others are named.

Imports nothing heavy: the workflow needs the names of the sets.
"""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from cliptex.config import PUBLISHED_TOLERANCE, ClipBenchmark, Config, dataset_slug
from cliptex.core.errors import CliptexError
from cliptex.core.files import reading, require_file

PUBLISHED = Path(str(files("cliptex.evaluation"))) / "openclip_results.csv"
"""open_clip's table of results: `name`, `pretrained`, and a fraction for each set."""
HUB = "https://huggingface.co/datasets/{repository}/tree/main"
DEFAULT_ROOT = ClipBenchmark.model_fields["root"].default
Values = Mapping[tuple[str, int], float]
"""(model, seed) -> percent."""


class EvaluationSet(NamedTuple):
    """A set of a suite. hub: repository with its evaluation split; train_hub: with a training split, or empty.
    not_run: why clip_benchmark cannot evaluate it; the other fields but the name are then empty."""

    name: str
    dataset: str
    task: str
    metric: str
    hub: str
    train_hub: str
    not_run: str

    def value(self, metrics: Mapping[str, float | None]) -> float | None:
        """The set's main metric, percent, of clip_benchmark's; None if there is none."""
        if self.metric != "mean R@1":
            return metrics.get(self.metric)
        recalls = [metrics.get(f"{way} R@1") for way in ("image_to_text", "text_to_image")]
        return None if None in recalls else fmean(recalls)


@cache
def evaluation_sets(suite: str) -> tuple[EvaluationSet, ...]:
    """All sets of a suite, in the order of open_clip's table."""
    text = files("cliptex.evaluation").joinpath(f"{suite}.tsv").read_text(encoding="utf-8")
    return tuple(EvaluationSet(*line.split("\t")) for line in text.splitlines()[1:])


def sets_run(options: ClipBenchmark) -> list[EvaluationSet]:
    """The sets of the configured suite that clip_benchmark evaluates; empty without a suite."""
    return [one for one in evaluation_sets(options.suite) if not one.not_run] if options.suite else []


def datasets_of(options: ClipBenchmark) -> dict[str, str]:
    """Data set -> task: those of the suite, then `clip_benchmark.datasets`, whose tasks have precedence.

    Raises CliptexError for two that would write the same files.
    """
    tasks = {one.dataset: one.task for one in sets_run(options)} | options.datasets
    slugs: dict[str, str] = {}
    for name in tasks:
        if (other := slugs.setdefault(dataset_slug(name), name)) != name:
            raise CliptexError(
                f"clip_benchmark.datasets: {name!r} and the suite's {other!r} would write the same files; remove one"
            )
    return tasks


def few_shot_datasets(options: ClipBenchmark) -> list[str]:
    """Classification sets with a training split: those of the suite, and all in `clip_benchmark.datasets`."""
    if not options.shots:
        return []
    trained = [one.dataset for one in sets_run(options) if one.train_hub]
    return list(dict.fromkeys(trained + [name for name, task in options.datasets.items() if "retrieval" not in task]))


def dataset_root(options: ClipBenchmark, dataset: str, train: bool = False) -> str:
    """Folder or address of a data set. train: of its training split.

    The template `clip_benchmark.root` is filled in as clip_benchmark does for --dataset_root. A set of the suite comes
    from the hub if `root` is the default and there is no such folder.
    """
    name = dataset.removeprefix("wds/")
    root = options.root.replace("{dataset}", name).replace("{dataset_cleaned}", name.replace("/", "-"))
    if options.root == DEFAULT_ROOT and not Path(root).exists():
        for one in sets_run(options):
            if one.dataset == dataset and (repository := one.train_hub if train else one.hub):
                return HUB.format(repository=repository)
    return root


def released(config: Config, model: str) -> tuple[str, str] | None:
    """open_clip's (architecture, pretrained tag) of a model that is the released one, not trained; None for others."""
    entry = config.models.get(model)
    is_start = entry is not None and entry.init is None and entry.interpolate is None and not entry.is_trained
    if not is_start:
        return None
    student = config.student_of(model)
    if student.pretrained is None or not isinstance(student.architecture, str):
        return None
    return student.architecture, student.pretrained


def published_scores(path: Path, architecture: str, pretrained: str, sets: Iterable[EvaluationSet]) -> dict[str, float]:
    """Set -> percent, of one model in open_clip's table of results; empty if the table does not have the model.

    open_clip builds OpenAI's weights with QuickGELU whatever the name says, so either name is found.
    Raises CliptexError for a table that lacks a column or has a cell that is not a fraction.
    """
    names = {architecture}
    if pretrained == "openai":
        plain = architecture.removesuffix("-quickgelu")
        names |= {plain, f"{plain}-quickgelu"}
    require_file(path, "correct clip_benchmark.published")
    with (
        reading(path, "open_clip's table of results", "fetch it again"),
        path.open(newline="", encoding="utf-8") as file,
    ):
        lines = csv.DictReader(file)
        columns, rows = lines.fieldnames or [], list(lines)
    missing = [name for name in ("name", "pretrained", *(one.name for one in sets)) if name not in columns]
    if missing:
        raise CliptexError(f"{path}: has no column {missing[0]!r}; fetch open_clip's docs/openclip_results.csv again")
    row = next((row for row in rows if row["name"] in names and row["pretrained"] == pretrained), None)
    return {} if row is None else {one.name: _percent(path, row, one.name) for one in sets}


def _percent(path: Path, row: Mapping[str, str], column: str) -> float:
    try:
        value = float(row[column])
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value <= 1:
        raise CliptexError(
            f"{path}: {column} of {row['name']}, {row['pretrained']} is {row[column]!r}, not a fraction; fetch it again"
        )
    return 100 * value


def suite_summary(config: Config, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The suite in the table: comparison with published scores, means, values and differences by set; not run.

    rows: results of clip_benchmark, with `dataset`, `model`, `seed` and `metrics` (percent). Raises CliptexError for a
    set without its main metric.
    """
    options = config.clip_benchmark
    sets, by_dataset = sets_run(options), {}
    for row in rows:
        by_dataset.setdefault(row["dataset"], {})[row["model"], row["seed"]] = row["metrics"]
    values: dict[str, dict[tuple[str, int], float]] = {}
    for one in sets:
        values[one.name] = {}
        for (model, seed), metrics in by_dataset.get(one.dataset, {}).items():
            if (value := one.value(metrics)) is None:
                raise CliptexError(f"{one.dataset}: {model}/seed{seed} has no {one.metric}; evaluate it again")
            values[one.name][model, seed] = value
    runs = list(dict.fromkeys((row["model"], row["seed"]) for row in rows))
    models = list(dict.fromkeys(model for model, _ in runs))
    return {
        "name": options.suite,
        "published": [entry for run in runs if (entry := _compared(config, run, sets, values)) is not None],
        "means": [
            {"model": model, "seed": seed, "mean": fmean(scores), "sets": len(scores)}
            for model, seed in runs
            if (scores := [values[one.name][model, seed] for one in sets])
        ],
        "sets": [
            {
                "name": one.name,
                "dataset": one.dataset,
                "metric": one.metric,
                "values": {f"{model}/seed{seed}": value for (model, seed), value in values[one.name].items()},
            }
            for one in sets
        ],
        "differences": [_differences(*pair, values) for pair in combinations(models, 2)],
        "not_run": {one.name: one.not_run for one in evaluation_sets(options.suite) if one.not_run},
    }


def _compared(
    config: Config, run: tuple[str, int], sets: Sequence[EvaluationSet], values: Mapping[str, Values]
) -> dict[str, Any] | None:
    """A released model's scores and the published ones; None for another model, or one that the table lacks."""
    if (name := released(config, run[0])) is None:
        return None
    path = config.clip_benchmark.published
    scores = published_scores(Path(path) if path else PUBLISHED, *name, sets)
    if not scores:
        return None
    measured = {one.name: values[one.name][run] for one in sets}
    return {
        "model": run[0],
        "seed": run[1],
        "architecture": name[0],
        "pretrained": name[1],
        "mean": fmean(measured.values()),
        "published_mean": fmean(scores.values()),
        "sets": {
            one: {"measured": value, "published": scores[one], "deviates": _deviates(value, scores[one])}
            for one, value in measured.items()
        },
        "deviating": [one for one, value in measured.items() if _deviates(value, scores[one])],
    }


def _deviates(measured: float, published: float) -> bool:
    # the published fractions have four decimals
    return abs(measured - published) > PUBLISHED_TOLERANCE + 0.005


def _differences(reference: str, model: str, values: Mapping[str, Values]) -> dict[str, Any]:
    """Differences of two models by set, percentage points: means over the seeds that both have."""
    sets = {}
    for name, scores in values.items():
        seeds = [seed for one, seed in scores if one == model and (reference, seed) in scores]
        if seeds:
            sets[name] = fmean(scores[model, seed] - scores[reference, seed] for seed in seeds)
    return {
        "model": model,
        "reference": reference,
        "mean": fmean(sets.values()) if sets else None,
        "better": sum(value > 0 for value in sets.values()),
        "worse": sum(value < 0 for value in sets.values()),
        "sets": sets,
    }
