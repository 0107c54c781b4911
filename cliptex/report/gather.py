"""Read and check all inputs of the report; an error names the first file that is missing or broken."""

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import require_file
from cliptex.data.official.status import needs_pairs
from cliptex.data.shard_index import read_index
from cliptex.evaluation.measures import measures, shown
from cliptex.evaluation.metrics.base import Arrays
from cliptex.evaluation.per_image import PerImage, num_images, per_image_path, read_per_image
from cliptex.evaluation.probes.tasks import load_tasks
from cliptex.evaluation.results import SAME, AnyResult, Provenance, Row, read_result
from cliptex.labels.agreement import FILE as AGREEMENT_FILE
from cliptex.labels.agreement import pairs_of_stores
from cliptex.labels.store import read_label_index
from cliptex.report import names, records
from cliptex.report.timings import TimedJob, read_jobs

PUT_BACK = "put the file of that run back"


class Scores(AnyResult):
    """The results file of one benchmark: probes, fine-tuning, zero-shot or without training."""

    path: Path = Path()
    left_out: tuple[str, ...] = ()
    """Models and seeds that the configuration does not name (`cliptex/seed3`); their rows are left out."""
    _files: dict[Path, PerImage] = PrivateAttr(default_factory=dict)

    @property
    def folder(self) -> Path | None:
        """Folder of the models' results; None where one file has those of all models."""
        return None if self.path.parent.name in ("zeroshot", "training_free") else self.path.with_suffix("")

    def part_name(self, row: Row) -> str | None:
        """Name of a row in a file with the per-image parts of all models; None where each head has a file."""
        if self.folder is not None:
            return None
        name = f"{row.model}/seed{row.seed}"
        return name if self.path.parent.name == "zeroshot" else f"{row.head}/{name}"

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
        return known.main if known else next(iter(metrics), "")

    def chance_level(self, task: str, metric: str) -> float | None:
        """Chance level, percent; None if unknown."""
        levels = self.chance.get(task, self.chance)
        level = levels.get(metric) if isinstance(levels, dict) else levels
        if level is not None and not isinstance(level, int | float):
            raise CliptexError(f"{self.path}: chance of {task}, {metric} is not a number: {level!r}; evaluate it again")
        return level

    def family(self, task: str, head: str) -> str:
        """How the encoder is read (`Row.family`)."""
        own = (row.family for row in self.results if (row.task, row.head) == (task, head) and row.family)
        return next(own, shown(task).family)

    def values(self, task: str, head: str, metric: str) -> dict[str, list[float]]:
        """Model -> one value a seed, in order of seeds; only models with the metric."""
        out: dict[str, list[float]] = {}
        for row in sorted(self.results, key=lambda row: row.seed):
            if (row.task, row.head) == (task, head) and row.metrics.get(metric) is not None:
                out.setdefault(row.model, []).append(row.metrics[metric])
        return out

    def images(self, task: str, head: str) -> dict[str, list[Arrays]]:
        """Model -> per-image parts of the main metric, one a seed; empty if the task stored none."""
        out: dict[str, list[Arrays]] = {}
        for row in sorted(self.results, key=lambda row: row.seed):
            if (row.task, row.head) == (task, head) and (arrays := self.parts(row)) is not None:
                out.setdefault(row.model, []).append(arrays)
        return out

    def head_path(self, row: Row) -> Path:
        """The results file that a row comes from."""
        return self.folder / row.model / f"seed{row.seed}" / f"{row.head}.json" if self.folder else self.path

    def parts(self, row: Row) -> Arrays | None:
        """The per-image parts of a row's main metric; None for a task that is not known and stored none.

        Raises CliptexError for a file that is missing, broken, or of other images, tasks or models.
        """
        path, name = per_image_path(self.head_path(row)), self.part_name(row)
        if path not in self._files:
            self._files[path] = read_per_image(path)
        file, first = self._files[path], next(iter(self._files.values()))
        if file.ids.tolist() != first.ids.tolist() or len(file.ids) != self.num_eval:
            raise CliptexError(
                f"{path}: is about other images than {self.path}; {PUT_BACK}, or evaluate that model again"
            )
        if row.task not in file.tasks and row.task not in measures():
            return None
        if not file.has(row.task, name):
            which = name or f"{row.model}/seed{row.seed}"
            raise CliptexError(f"{path}: has nothing of {row.task}, {which}; {PUT_BACK}, or evaluate that model again")
        arrays = file.of(row.task, name)
        if num_images(arrays) != len(file.ids):
            raise CliptexError(f"{path}: {row.task} has {num_images(arrays)} images, not {len(file.ids)}; {PUT_BACK}")
        return arrays


@dataclass(frozen=True)
class FinishedRun:
    """A finished training run: its train.json and the lines of metrics.jsonl."""

    record: dict[str, Any]
    history: list[dict[str, float]]


@dataclass(frozen=True)
class Results:
    config: Config
    workdir: Path
    models: list[str]
    """Evaluated models in the order of the columns, without those that are only the yardstick."""
    baselines: list[str]
    """Evaluated baselines in the order of the columns."""
    probes: dict[str, Scores]
    zeroshot: dict[str, Scores]
    finetuned: dict[str, Scores]
    training_free: dict[str, Scores]
    runs: dict[str, dict[int, FinishedRun]]
    """Model -> seed -> its training run."""
    shards: dict[str, Any]
    stores: dict[str, dict[str, Any]]
    experts: dict[str, dict[str, Any] | None]
    """Expert -> expert.json and, under `quality_file`, quality.json; None if it was not trained."""
    jobs: list[TimedJob]
    agreements: list[dict[str, Any]]
    """Pairs of label stores of one task (`cliptex.labels.agreement`)."""
    suite: dict[str, Any] | None = None
    """clip_benchmark's table, if the configuration has a suite."""
    yardstick: tuple[str, ...] = ()
    """The two models of `report.yardstick`, if both were evaluated; else none."""

    @property
    def shown_runs(self) -> dict[str, dict[int, FinishedRun]]:
        """Without models that are only the yardstick."""
        return {name: runs for name, runs in self.runs.items() if not names.is_yardstick(self.config, name)}

    @property
    def miniature(self) -> bool:
        """Whether any result is from rendered stand-in data."""
        return "miniature" in (self.config.dataset.source, *(scores.source for _, scores in self.all_scores))

    @property
    def all_scores(self) -> list[tuple[str, Scores]]:
        """All results files, each with its kind: `probe`, `finetuned`, `zeroshot` or `training_free`."""
        kinds = {"probe": self.probes, "finetuned": self.finetuned, "zeroshot": self.zeroshot}
        kinds["training_free"] = self.training_free
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
    training_free = scores("training_free", _in_order(config.training_free.benchmarks, names.BENCHMARKS))
    tuned = _in_order(config.finetune.benchmarks, names.BENCHMARKS)
    finetuned = scores("finetuned", tuned, config.finetune.baselines)
    for name in finetuned.keys() & probes.keys():
        _check_same(finetuned[name], probes[name])
    agreement = workdir / paths.LABELS / AGREEMENT_FILE
    return Results(
        config=config,
        workdir=workdir,
        models=[name for name in models if not names.is_yardstick(config, name)],
        baselines=baselines,
        probes=probes,
        zeroshot=zeroshot,
        finetuned=finetuned,
        training_free=training_free,
        runs={
            name: {seed: _run(workdir / paths.model(name, seed)) for seed in config.seeds}
            for name in _in_order(config.models, names.MODELS)
        },
        stores={
            name: _store(config, name, workdir / paths.labels(name) / "index.json") for name in config.label_stores
        },
        experts={name: read_expert(workdir / paths.expert(name)) for name in config.experts},
        shards=_shards(workdir / paths.SHARD_INDEX)
        if needs_pairs(config) or (workdir / paths.SHARD_INDEX).exists()
        else {"num_samples": 0, "dropped": {}, "shards": []},
        jobs=read_jobs(workdir / paths.TIMINGS),
        agreements=records.read_record(agreement, records.AGREEMENT)["pairs"] if pairs_of_stores(config) else [],
        suite=_suite(config, workdir / paths.CLIP_BENCHMARK, models) if config.clip_benchmark.suite else None,
        yardstick=tuple(pair) if set(pair := config.report.yardstick or ()) <= set(models) else (),
    )


def _suite(config: Config, path: Path, models: Iterable[str]) -> dict[str, Any]:
    """clip_benchmark's table. Raises CliptexError if it lacks a model or a seed."""
    table = records.read_record(path, records.SUITE)
    found = {(one["model"], one["seed"]) for one in table["suite"]["means"]}
    if missing := [f"{name}/seed{seed}" for name in models for seed in config.seeds if (name, seed) not in found]:
        raise CliptexError(f"{path}: has nothing of {missing[0]}; run the workflow again")
    return table


def _shards(index: Path) -> dict[str, Any]:
    """The shard index; a shard's keys are read when needed."""
    return records.read_record(index, records.SHARD_INDEX) | {"shards": read_index(index)["shards"]}


def _in_order(selected: Collection[str], known: Iterable[str]) -> list[str]:
    """The selected names: first the known ones in their order, then the others."""
    first = [name for name in known if name in selected]
    return first + [name for name in selected if name not in first]


def read_scores(path: Path) -> Scores:
    """Read a results file. Raises CliptexError if it is broken, or of another benchmark than its name says."""
    scores = read_result(path, Scores).model_copy(update={"path": path})
    records.validate(f"{path}: provenance", scores.provenance, Provenance)
    if scores.benchmark != path.stem:
        raise CliptexError(
            f"{path}: is of the benchmark {scores.benchmark!r}; {PUT_BACK}, or evaluate {path.stem} again"
        )
    return scores


def _scores(path: Path, models: list[str], seeds: list[int], baselines: Iterable[str] = ()) -> Scores:
    scores = read_scores(path)
    named = {(model, seed) for model in (*models, *names.BASELINES) for seed in seeds}
    kept = [row for row in scores.results if (row.model, row.seed) in named]
    others = [f"{row.model}/seed{row.seed}" for row in scores.results if (row.model, row.seed) not in named]
    scores = scores.model_copy(update={"results": kept, "left_out": tuple(dict.fromkeys(others))})
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
                f"{finetuned.path}: its {key} differs from that of {probed.path}; {PUT_BACK}, or evaluate both again"
            )


def _store(config: Config, name: str, path: Path) -> dict[str, Any]:
    records.read_record(path, records.LABEL_INDEX)
    return read_label_index(config, name, path)


def read_expert(folder: Path) -> dict[str, Any] | None:
    """expert.json and, under `quality_file`, quality.json; None if there is none."""
    if not (folder / "expert.json").exists():
        return None
    expert, quality = records.read_record(folder / "expert.json", records.EXPERT), folder / "quality.json"
    return expert | {"quality_file": records.read_record(quality, records.QUALITY) if quality.exists() else None}


def read_training(path: Path) -> dict[str, Any]:
    """Read a train.json."""
    record = records.read_record(path, records.TRAINING)
    if record["steps"]:
        records.validate(path, record, records.TRAINED)
    return record


def _run(folder: Path) -> FinishedRun:
    record = read_training(folder / "train.json")
    if record.get("interpolate"):  # not trained, so there are no losses
        return FinishedRun(record, [])
    path = folder / "metrics.jsonl"
    require_file(path, "run the training first")
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        history = [json.loads(line) for line in lines]
    except (OSError, ValueError, RecursionError) as error:
        raise CliptexError(f"{path}: not lines of JSON ({error}); {PUT_BACK}, or run the training again") from error
    records.validate(path, history, records.LOGGED)
    return FinishedRun(record, history)
