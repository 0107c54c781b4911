"""Read and check all inputs of the report; an error names the first file that is missing or broken."""

import csv
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import PrivateAttr

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json
from cliptex.evaluation.measures import measures
from cliptex.evaluation.metrics.base import Arrays
from cliptex.evaluation.per_image import PerImage, per_image_path, read_per_image
from cliptex.evaluation.probes.tasks import load_tasks
from cliptex.evaluation.results import SAME, AnyResult, read_result
from cliptex.labels.store import read_label_index
from cliptex.report import names


class Scores(AnyResult):
    """The results file of one benchmark: probes, fine-tuning or zero-shot."""

    path: Path = Path()
    _files: dict[Path, PerImage] = PrivateAttr(default_factory=dict)

    @property
    def folder(self) -> Path | None:
        """Folder of the models' results; None for zero-shot."""
        return None if self.path.parent.name == "zeroshot" else self.path.with_suffix("")

    def cells(self) -> list[tuple[str, str]]:
        """(task, head): tasks in order of appearance, heads from light to heavy."""
        cells = list(dict.fromkeys((row.task, row.head) for row in self.results))
        tasks = list(dict.fromkeys(task for task, _ in cells))
        order = {head: number for number, head in enumerate(names.HEAD_ORDER)}
        return sorted(cells, key=lambda cell: (tasks.index(cell[0]), order.get(cell[1], len(order))))

    def metric_names(self, task: str, head: str) -> list[str]:
        """All metrics of a task and head, in order of appearance."""
        rows = (row for row in self.results if (row.task, row.head) == (task, head))
        return list(dict.fromkeys(metric for row in rows for metric in row.metrics))

    def main_metric(self, task: str, head: str) -> str:
        """The task's main metric; for an unknown task the first metric."""
        metrics = self.metric_names(task, head)
        known = measures().get(task)
        return known.main if known and known.main in metrics else metrics[0]

    def chance_level(self, task: str, metric: str) -> float | None:
        """Chance level, percent; None if unknown."""
        return self.chance.get(task, self.chance).get(metric)

    def values(self, task: str, head: str, metric: str) -> dict[str, list[float]]:
        """Model -> one value a seed, in order of seeds; only models with the metric."""
        out: dict[str, list[float]] = {}
        for row in sorted(self.results, key=lambda row: row.seed):
            if (row.task, row.head) == (task, head) and row.metrics.get(metric) is not None:
                out.setdefault(row.model, []).append(row.metrics[metric])
        return out

    def images(self, task: str, head: str) -> dict[str, list[Arrays]]:
        """Model -> per-image statistics of the main metric, one a seed; empty if the task stored none.

        Raises CliptexError for a file that is missing, broken, or of other images than the rest.
        """
        out: dict[str, list[Arrays]] = {}
        ids = None
        for row in sorted(self.results, key=lambda row: row.seed):
            if (row.task, row.head) != (task, head):
                continue
            name = f"{row.model}/seed{row.seed}"
            path = per_image_path(self.folder / name / f"{head}.json" if self.folder else self.path)
            if path not in self._files:
                self._files[path] = read_per_image(path)
            file = self._files[path]
            ids = file.ids if ids is None else ids
            if file.ids.tolist() != ids.tolist() or len(ids) != self.num_eval:
                raise CliptexError(f"{path}: is about other images than {self.path}; delete it and run the probe again")
            if task in file.tasks:
                out.setdefault(row.model, []).append(file.of(task, name if file.rows else None))
        return out


@dataclass(frozen=True)
class FinishedRun:
    """A finished training run: its train.json and the lines of metrics.jsonl."""

    record: dict[str, Any]
    history: list[dict[str, float]]


class Timing(NamedTuple):
    """Wall and CPU seconds of all jobs of one rule; cpu is None if not measured."""

    rule: str
    jobs: int
    wall: float
    cpu: float | None


@dataclass(frozen=True)
class Results:
    config: Config
    workdir: Path
    models: list[str]
    """Evaluated models in the order of the columns."""
    baselines: list[str]
    """Evaluated baselines in the order of the columns."""
    probes: dict[str, Scores]
    zeroshot: dict[str, Scores]
    finetuned: dict[str, Scores]
    runs: dict[str, dict[int, FinishedRun]]
    """Model -> seed -> its training run."""
    shards: dict[str, Any]
    stores: dict[str, dict[str, Any]]
    experts: dict[str, dict[str, Any] | None]
    """Expert -> expert.json and, under `quality_file`, quality.json; None if it was not trained."""
    timings: list[Timing]

    @property
    def miniature(self) -> bool:
        """Whether any result is from rendered stand-in data."""
        return "miniature" in (self.config.dataset.source, *(scores.source for _, scores in self.all_scores))

    @property
    def all_scores(self) -> list[tuple[str, Scores]]:
        """All results files, each with its kind: `probe`, `finetuned` or `zeroshot`."""
        kinds = {"probe": self.probes, "finetuned": self.finetuned, "zeroshot": self.zeroshot}
        return [(kind, scores) for kind, benchmarks in kinds.items() for scores in benchmarks.values()]


def gather(config: Config, workdir: Path) -> Results:
    """Read all results that `config` asks for. Raises CliptexError for the first that is missing or broken."""
    if not config.probes.benchmarks:
        raise CliptexError("probes.benchmarks: is empty, so there is nothing to report; name at least one")
    load_tasks(config)
    models = _in_order(config.probes.models or config.models, names.MODELS)
    baselines = [name for name in names.BASELINES if name in config.probes.baselines]

    def scores(kind: str, benchmarks: Iterable[str], baselines: Iterable[str] = ()) -> dict[str, Scores]:
        folder = workdir / paths.RESULTS / kind
        return {name: _scores(folder / f"{name}.json", models, config.seeds, baselines) for name in benchmarks}

    probes = scores("probes", _in_order(config.probes.benchmarks, names.BENCHMARKS), baselines)
    zeroshot = scores("zeroshot", [*config.zeroshot.benchmarks, *config.zeroshot.caption_sets])
    tuned = _in_order(config.finetune.benchmarks, names.BENCHMARKS)
    finetuned = scores("finetuned", tuned, config.finetune.baselines)
    for name in finetuned.keys() & probes.keys():
        _check_same(finetuned[name], probes[name])
    return Results(
        config=config,
        workdir=workdir,
        models=models,
        baselines=baselines,
        probes=probes,
        zeroshot=zeroshot,
        finetuned=finetuned,
        runs={
            name: {seed: _run(workdir / paths.model(name, seed)) for seed in config.seeds}
            for name in _in_order(config.models, names.MODELS)
        },
        stores={
            name: read_label_index(config, name, workdir / paths.labels(name) / "index.json")
            for name in config.label_stores
        },
        experts={name: _expert(workdir / paths.expert(name)) for name in config.experts},
        shards=read_json(workdir / paths.SHARD_INDEX),
        timings=_timings(workdir / paths.RESULTS / "timings"),
    )


def _in_order(selected: Collection[str], known: Iterable[str]) -> list[str]:
    """The selected names: first the known ones in their order, then the others."""
    first = [name for name in known if name in selected]
    return first + [name for name in selected if name not in first]


def _scores(path: Path, models: list[str], seeds: list[int], baselines: Iterable[str] = ()) -> Scores:
    scores = read_result(path, Scores).model_copy(update={"path": path})
    present = {(row.model, row.seed) for row in scores.results}
    for model in models:
        for seed in seeds:
            if (model, seed) not in present:
                raise CliptexError(f"{path}: no result of model {model!r} with seed {seed}; run the workflow again")
    for name in baselines:
        if not any(model == name for model, _ in present):
            raise CliptexError(f"{path}: no result of the baseline {name!r}; run the workflow again")
    return scores


def _check_same(finetuned: Scores, probed: Scores) -> None:
    """Raises CliptexError if two results shown side by side are of different data, as far as both record it."""
    for key in SAME:
        pair = getattr(finetuned, key), getattr(probed, key)
        if None not in pair and pair[0] != pair[1]:
            raise CliptexError(
                f"{finetuned.path}: its {key} differs from that of {probed.path}; delete both and run again"
            )


def _expert(folder: Path) -> dict[str, Any] | None:
    if not (folder / "expert.json").exists():
        return None
    quality = folder / "quality.json"
    return read_json(folder / "expert.json") | {"quality_file": read_json(quality) if quality.exists() else None}


def _run(folder: Path) -> FinishedRun:
    record = read_json(folder / "train.json")
    if "interpolate" in record:  # not trained, so there are no losses
        return FinishedRun(record, [])
    path = folder / "metrics.jsonl"
    try:
        history = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise CliptexError(f"{path}: no such file; run the training first") from error
    except ValueError as error:
        raise CliptexError(f"{path}: not lines of JSON ({error}); delete it and run the training again") from error
    return FinishedRun(record, history)


def _timings(folder: Path) -> list[Timing]:
    """Snakemake's benchmark files `{rule}/**/*.tsv`, summed by rule; empty without them."""
    out = []
    for rule in sorted(path for path in folder.glob("*") if path.is_dir()):
        wall, cpu, jobs = 0.0, 0.0, 0
        for path in sorted(rule.rglob("*.tsv")):
            with path.open(newline="", encoding="utf-8") as file:
                for line in csv.DictReader(file, delimiter="\t"):
                    jobs += 1
                    wall += _seconds(line.get("s")) or 0.0
                    seconds = _seconds(line.get("cpu_time"))
                    cpu = None if cpu is None or seconds is None else cpu + seconds
        if jobs:
            out.append(Timing(rule.name, jobs, wall, cpu))
    return out


def _seconds(text: str | None) -> float | None:
    """Snakemake writes NA or - for values it could not measure (very short jobs)."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return None
