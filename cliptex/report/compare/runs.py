"""Read what a run has, finished or not."""

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.report import names, records
from cliptex.report.gather import Scores, read_expert, read_scores, read_training

KINDS = {
    "probes": "probes",
    "training_free": "without training",
    "zeroshot": "zero-shot",
    "finetuned": "fine-tuning",
}
"""Folder of results tables -> how its results are called."""
OTHERS = ("models", "labels", "shards", "experts")
"""What else makes a folder that of results."""


@dataclass(frozen=True)
class ComparedRun:
    """A run, as far as it is there.

    folder: as given. scores: (kind, benchmark) -> results table. config: all keys, from the run's report; None without
    one. trainings, experts, stores: train.json, expert.json and the stores' index.json by name. shards: their index.
    """

    folder: Path
    scores: dict[tuple[str, str], Scores]
    config: dict[str, Any] | None
    trainings: dict[str, dict[str, Any]]
    experts: dict[str, dict[str, Any]]
    stores: dict[str, dict[str, Any]]
    shards: dict[str, Any] | None

    @property
    def provenances(self) -> list[dict[str, Any]]:
        """Of all results and trainings."""
        return [
            *(scores.provenance for scores in self.scores.values()),
            *(record.get("provenance", {}) for record in self.trainings.values()),
        ]


def read_run(folder: Path) -> ComparedRun:
    """Raises CliptexError if `folder` is no run, or for the first file that is broken or of another version."""
    results = _results_folder(folder)
    experts = {path.parent.name: read_expert(path.parent) for path in _found(results, "experts/*/expert.json")}
    return ComparedRun(
        folder=folder,
        scores={(path.parent.name, path.stem): read_scores(path) for path in _tables(results)},
        config=shown_config(results / "report.html"),
        trainings={
            f"{path.parent.parent.name}, {path.parent.name.replace('seed', 'seed ')}": read_training(path)
            for path in _found(results, "models/*/seed*/train.json")
        },
        experts={name: record for name, record in experts.items() if record is not None},
        stores={
            path.parent.name: records.read_record(path, records.LABEL_INDEX)
            for path in _found(results, "labels/*/index.json")
        },
        shards=next(
            (records.read_record(path, records.SHARD_INDEX) for path in _found(results, "shards/index.json")), None
        ),
    )


def _results_folder(folder: Path) -> Path:
    for results in (folder / paths.RESULTS, folder):
        if any((results / name).is_dir() for name in (*KINDS, *OTHERS)):
            return results
    if not folder.is_dir():
        raise CliptexError(f"{folder}: no such folder; give the folder of a run, or its results folder")
    raise CliptexError(
        f"{folder}: no run, since neither it nor {paths.RESULTS}/ in it has any of {', '.join((*KINDS, *OTHERS))}; "
        "give the folder that Snakemake ran in (--directory)"
    )


def _found(results: Path, pattern: str) -> list[Path]:
    return sorted(results.glob(pattern))


def _tables(results: Path) -> Iterator[Path]:
    """By kind, benchmarks in the report's order."""
    order = {name: number for number, name in enumerate(names.BENCHMARKS)}
    for kind in KINDS:
        yield from sorted(_found(results, f"{kind}/*.json"), key=lambda path: order.get(path.stem, len(order)))


def shown_config(page: Path) -> dict[str, Any] | None:
    """The configuration that a report shows; None without a report, or if it shows none."""
    if not page.is_file():
        return None
    for text in re.findall(r"<pre[^>]*>(.*?)</pre>", page.read_text(encoding="utf-8", errors="replace"), re.S):
        try:
            shown = yaml.safe_load(html.unescape(text))
        except yaml.YAMLError:
            continue
        if isinstance(shown, dict) and "models" in shown:
            return shown
    return None
