"""Label random images of a store again with its expert, and compare the labels.

Reads   results/shards/index.json and some shards, the expert's folder, an indexed label store.
Writes  nothing; the caller prints the report.
Holds   the same seed draws the same images; each is labelled alone, and the store is never changed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cliptex.config import Config
from cliptex.core.plugins import find
from cliptex.data.shard_index import read_index, read_indexed
from cliptex.experts.base import Expert
from cliptex.labels.label import attach_source_labels, labelling
from cliptex.labels.store import open_store, rows_by_shard
from cliptex.tasks.base import Task

TOLERANCE = 0.02
"""Largest share of an image's pixels that may differ; and largest error of a value, as a share of the label's range."""


@dataclass(frozen=True)
class Finding:
    """Comparison of one image's stored and new label."""

    shard: str
    key: str
    identical: bool
    """Whether the payloads are byte-identical."""
    differing: float
    """Share of the pixels that differ; 1 if only one of the two has a label, or their sizes differ."""
    note: str
    """Why `differing` is 1, or empty."""

    @property
    def agrees(self) -> bool:
        return self.differing <= TOLERANCE


def audit_labels(
    config: Config, store: str, shard_index: Path, expert: Expert, out_dir: Path, samples: int = 8, seed: int = 0
) -> list[Finding]:
    """Label `samples` random images again, one at a time, and compare them with the store.

    Both labels are encoded and decoded. A pixel differs if its class does, or if a value (such as the score of a class)
    is off by more than 2 % of its range in the label, or valid in one label only; an image agrees if at most 2 % of its
    pixels differ. Labels need not be byte-identical: the store's were made in batches, and a library may sum in another
    order for another batch size. An image without a label in both agrees.
    """
    task: Task = find("tasks", config.label_stores[store].task)()
    entries = read_index(shard_index)["shards"]
    attach_source_labels(config, store, expert, task, entries, out_dir.parent)
    sizes = [len(entry["keys"]) for entry in entries]
    chosen = np.random.default_rng(seed).choice(sum(sizes), min(samples, sum(sizes)), replace=False)
    findings = []
    with labelling(config.label_stores[store].expert, expert, task, 1, config.labels, 0) as labeller:
        for shard, rows in rows_by_shard(sizes, chosen).items():
            entry = entries[shard]
            stored, pairs = open_store(out_dir / "index.json", entry, task), read_indexed(entry)
            for row in rows:
                (again,) = labeller.label_pairs([pairs[row]])
                findings.append(_compare(task, entry["shard"], again, stored.get(row)))
    return findings


def _compare(task: Task, shard: str, again: dict[str, Any], stored: tuple[bytes, int, int] | None) -> Finding:
    key, payload = again["key"], again.get("payload")
    size = (again.get("height"), again.get("width"))
    if stored == (payload and (payload, *size)):
        return Finding(shard, key, True, 0.0, "")
    if stored is None:
        note = "has a label now, none in the store"
    elif payload is None:
        note = f"has a label in the store, none now: {again['error']}"
    elif stored[1:] != size:
        note = f"{size[1]} x {size[0]} now, {stored[2]} x {stored[1]} in the store"
    else:
        return Finding(shard, key, False, differing(task.decode(*stored), task.decode(payload, *size)), "")
    return Finding(shard, key, False, 1.0, note)


def differing(a: np.ndarray, b: np.ndarray) -> float:
    """Share of the pixels of two labels [H, W] or [H, W, C] that differ; see `audit_labels`. The first channel of an
    integer label is the class, all others are values. Integer values may always differ by 1, which is rounding."""
    a, b = (label.reshape(*label.shape[:2], -1) for label in (a, b))
    exact = 0 if a.dtype.kind == "f" else 1
    differ_HW = (a[..., :exact] != b[..., :exact]).any(axis=-1)
    a, b = (label[..., exact:].astype(np.float64) for label in (a, b))
    step = np.maximum(TOLERANCE * (np.nanmax(a, axis=(0, 1)) - np.nanmin(a, axis=(0, 1))), exact)
    differ_HW |= (~np.isclose(a, b, rtol=1e-4, atol=step, equal_nan=True)).any(axis=-1)
    return float(differ_HW.mean())


def report(findings: list[Finding], store: str) -> str:
    """The findings as text: a line for each image that is not identical, then a summary."""
    lines = [
        f"{'ok    ' if finding.agrees else 'DIFFER'} shard {finding.shard} key {finding.key}:"
        f" {finding.note or f'{finding.differing:.2%} of the pixels differ'}"
        for finding in findings
        if not finding.identical
    ]
    agreeing, identical = sum(finding.agrees for finding in findings), sum(finding.identical for finding in findings)
    lines.append(f"{store}: {agreeing} of {len(findings)} images agree, {identical} are byte-identical")
    return "\n".join(lines)
