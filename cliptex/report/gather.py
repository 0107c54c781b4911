"""Everything the report reads, checked: a missing piece is an error that names it."""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json
from cliptex.evaluation.per_image import Arrays, PerImage, per_image_path, read_per_image
from cliptex.evaluation.tabulate import SAME
from cliptex.labels.label import read_label_index
from cliptex.report import names


@dataclass(frozen=True)
class Row:
    """One result: a model's metrics with one head on one task."""

    task: str
    model: str
    seed: int
    head: str
    metrics: dict[str, float]
    protocol: str


@dataclass(frozen=True)
class Scores:
    """The results of one benchmark, probes or zero-shot."""

    benchmark: str
    path: Path
    source: str
    split: str
    num_train: int
    num_eval: int
    class_names: list[str]
    rows: list[Row]
    provenance: dict[str, Any]
    chance: dict[str, Any]
    """Metric -> what guessing gives, percent, of retrieval by task; zero-shot only."""
    published: dict[str, float] = field(default_factory=dict)
    """Released model -> its published top-1, percent, with which its own agrees; zero-shot only."""
    variant: str | None = None
    """Form of the official data."""
    frozen: bool = True
    """Whether the encoders stayed as they were."""
    folder: Path | None = None
    """Where the probes of each model lie; None for zero-shot."""
    _files: dict[Path, PerImage] = field(default_factory=dict, repr=False, compare=False)

    def cells(self) -> list[tuple[str, str]]:
        """(task, head): tasks in order of appearance, heads from light to heavy."""
        found = list(dict.fromkeys((row.task, row.head) for row in self.rows))
        tasks = list(dict.fromkeys(task for task, _ in found))
        order = {head: number for number, head in enumerate(names.HEAD_ORDER)}
        return sorted(found, key=lambda cell: (tasks.index(cell[0]), order.get(cell[1], len(order))))

    def guess(self, task: str, metric: str) -> float | None:
        """What guessing gives, percent; None where it is not known."""
        return self.chance.get(task, self.chance).get(metric)

    def values(self, task: str, head: str, metric: str) -> dict[str, list[float]]:
        """Model -> one value a seed, in order of seeds; models without the metric are left out."""
        out: dict[str, list[float]] = {}
        for row in sorted(self.rows, key=lambda row: row.seed):
            if (row.task, row.head) == (task, head) and row.metrics.get(metric) is not None:
                out.setdefault(row.model, []).append(row.metrics[metric])
        return out

    def images(self, task: str, head: str) -> dict[str, list[Arrays]]:
        """Model -> what each evaluation image adds to the main metric, one a seed; no model for a task that kept none.

        Raises CliptexError that names the first file that is missing, broken, or about other images than the rest.
        """
        out: dict[str, list[Arrays]] = {}
        ids = None
        for row in sorted(self.rows, key=lambda row: row.seed):
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
class Run:
    """One training run: its train.json and the lines of metrics.jsonl."""

    record: dict[str, Any]
    history: list[dict[str, float]]


@dataclass(frozen=True)
class Timing:
    """Wall and CPU seconds of all jobs of one rule; cpu is None where the system did not tell."""

    rule: str
    jobs: int
    wall: float
    cpu: float | None


@dataclass(frozen=True)
class Results:
    """All inputs of the report. models: those judged, in the order of the columns; baselines likewise."""

    config: Config
    root: Path
    models: list[str]
    baselines: list[str]
    probes: dict[str, Scores]
    zeroshot: dict[str, Scores]
    finetuned: dict[str, Scores]
    runs: dict[str, dict[int, Run]]
    shards: dict[str, Any]
    stores: dict[str, dict[str, Any]]
    experts: dict[str, dict[str, Any] | None]
    timings: list[Timing]

    @property
    def miniature(self) -> bool:
        """Whether any number rests on rendered stand-in data."""
        return "miniature" in (self.config.dataset.source, *(scores.source for _, scores in self.judged))

    @property
    def judged(self) -> list[tuple[str, Scores]]:
        """All results files, each with how encoders were judged: `probe`, `finetuned` or `zeroshot`."""
        kinds = {"probe": self.probes, "finetuned": self.finetuned, "zeroshot": self.zeroshot}
        return [(kind, scores) for kind, found in kinds.items() for scores in found.values()]


def gather(config: Config, root: Path) -> Results:
    """Read all results that `config` calls for. Raises CliptexError naming the first that is missing or broken."""
    if not config.probes.benchmarks:
        raise CliptexError("probes.benchmarks: there are none, so there is nothing to report; name at least one")
    models = _in_order(config.probes.models or config.models, names.MODELS)
    baselines = [name for name in names.BASELINES if name in config.probes.baselines]
    probes = {
        name: _scores(root / paths.RESULTS / "probes" / f"{name}.json", models, config.seeds, baselines)
        for name in _in_order(config.probes.benchmarks, names.BENCHMARKS)
    }
    zeroshot = {
        name: _scores(root / paths.RESULTS / "zeroshot" / f"{name}.json", models, config.seeds)
        for name in [*config.zeroshot.benchmarks, *config.zeroshot.caption_sets]
    }
    finetuned = {
        name: _scores(
            root / paths.RESULTS / "finetuned" / f"{name}.json", models, config.seeds, config.finetune.baselines
        )
        for name in _in_order(config.finetune.benchmarks, names.BENCHMARKS)
    }
    for name in finetuned.keys() & probes.keys():
        _check_same(finetuned[name], probes[name])
    runs = {
        name: {seed: _run(root / paths.model(name, seed)) for seed in config.seeds}
        for name in _in_order(config.models, names.MODELS)
    }
    stores = {
        name: read_label_index(config, name, root / paths.labels(name) / "index.json") for name in config.label_stores
    }
    experts = {name: _expert(root / paths.expert(name)) for name in config.experts}
    return Results(
        config=config,
        root=root,
        models=models,
        baselines=baselines,
        probes=probes,
        zeroshot=zeroshot,
        finetuned=finetuned,
        runs=runs,
        shards=read_json(root / paths.SHARD_INDEX),
        stores=stores,
        experts=experts,
        timings=_timings(root / paths.RESULTS / "timings"),
    )


def _in_order(found: Iterable[str], known: Iterable[str]) -> list[str]:
    """Those that are known first, in that order, then the others as they come."""
    first = [name for name in known if name in found]
    return first + [name for name in found if name not in first]


def _scores(path: Path, models: list[str], seeds: list[int], baselines: Iterable[str] = ()) -> Scores:
    data = read_json(path)
    try:
        scores = Scores(
            benchmark=data["benchmark"],
            path=path,
            source=data["source"],
            split=data["split"],
            num_train=data["num_train"],
            num_eval=data["num_eval"],
            class_names=data["class_names"],
            rows=[
                Row(
                    row["task"],
                    row["model"],
                    row["seed"],
                    row["head"],
                    row["metrics"],
                    row.get("protocol", ""),
                )
                for row in data["results"]
            ],
            provenance=data["provenance"],
            chance=data.get("chance", {}),
            published=data.get("published", {}),
            variant=data.get("variant"),
            frozen=data.get("frozen", True),
            folder=None if path.parent.name == "zeroshot" else path.with_suffix(""),
        )
    except (KeyError, TypeError) as error:
        raise CliptexError(f"{path}: lacks {error}; delete it and run the same command again") from error
    there = {(row.model, row.seed) for row in scores.rows}
    for model in models:
        for seed in seeds:
            if (model, seed) not in there:
                raise CliptexError(f"{path}: no result of model {model!r} with seed {seed}; run the workflow again")
    for name in baselines:
        if not any(model == name for model, _ in there):
            raise CliptexError(f"{path}: no result of the baseline {name!r}; run the workflow again")
    return scores


def _check_same(one: Scores, other: Scores) -> None:
    """Raises CliptexError where two results that stand side by side are of other data, as far as both say."""
    for key in SAME:
        pair = getattr(one, key), getattr(other, key)
        if None not in pair and pair[0] != pair[1]:
            raise CliptexError(f"{one.path}: its {key} differs from that of {other.path}; delete both and run again")


def _expert(folder: Path) -> dict[str, Any] | None:
    """expert.json, and under `judged` quality.json, which exists only where the workflow trained the expert."""
    if not (folder / "expert.json").exists():
        return None
    quality = folder / "quality.json"
    return read_json(folder / "expert.json") | {"judged": read_json(quality) if quality.exists() else None}


def _run(folder: Path) -> Run:
    record = read_json(folder / "train.json")
    if "interpolate" in record:  # not trained, so that there is no course to show
        return Run(record, [])
    path = folder / "metrics.jsonl"
    try:
        history = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise CliptexError(f"{path}: no such file; run the step that makes it first") from error
    except ValueError as error:
        raise CliptexError(f"{path}: not lines of JSON ({error}); delete it and run the same command again") from error
    return Run(record, history)


def _timings(folder: Path) -> list[Timing]:
    """Sum Snakemake's benchmark files `{rule}/**/*.tsv` by rule; none where the workflow did not keep them."""
    out = []
    for rule in sorted(path for path in folder.glob("*") if path.is_dir()):
        wall, cpu, jobs = 0.0, 0.0, 0
        for path in sorted(rule.rglob("*.tsv")):
            with path.open(newline="") as file:
                for line in csv.DictReader(file, delimiter="\t"):
                    jobs += 1
                    wall += _seconds(line.get("s")) or 0.0
                    seconds = _seconds(line.get("cpu_time"))
                    cpu = None if cpu is None or seconds is None else cpu + seconds
        if jobs:
            out.append(Timing(rule.name, jobs, wall, cpu))
    return out


def _seconds(text: str | None) -> float | None:
    """Snakemake writes NA or - for what it could not measure (very short jobs)."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return None
