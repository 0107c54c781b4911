"""Label random images of a store again with its expert, and compare.

Reads   results/shards/index.json and some shards, the expert's folder, an indexed label store.
Writes  nothing; the caller prints or keeps the report.
Holds   the same seed draws the same images; each is labelled alone, and the store is never changed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cliptex.config import Config
from cliptex.core.plugins import find
from cliptex.data.shards import read_index, read_indexed
from cliptex.experts.base import Expert
from cliptex.labels.label import Labeller, give_labels, open_store
from cliptex.tasks.base import Task

TOLERANCE = 0.02
"""Share of an image's pixels that may differ; and how far a value may be off, as a share of the label's range."""


@dataclass(frozen=True)
class Finding:
    """What labelling one image again showed."""

    shard: str
    key: str
    identical: bool
    """The payloads are equal to the byte."""
    differing: float
    """Share of the pixels that differ; 1 where one side alone has a label or the sizes differ."""
    note: str
    """Why `differing` is 1, or empty."""

    @property
    def agrees(self) -> bool:
        return self.differing <= TOLERANCE


def audit_labels(
    config: Config, store: str, shard_index: Path, expert: Expert, out_dir: Path, samples: int = 8, seed: int = 0
) -> list[Finding]:
    """Label `samples` random images again, one at a time, and compare them with the store.

    Both sides pass through the codec. A pixel differs when its class does, or when a value, such as the score beside a
    class, is off by more than 2 % of its range in the label or valid on one side only; an image agrees when at most 2 %
    of its pixels differ. Images need not be identical to the byte: the store's were labelled in batches, and a library
    may add in another order for another batch size. An image that has no label on both sides agrees.
    """
    task: Task = find("tasks", config.label_stores[store].task)()
    entries = read_index(shard_index)["shards"]
    give_labels(config, store, expert, task, entries, out_dir.parent)
    ends = np.cumsum([len(entry["keys"]) for entry in entries])
    chosen = np.random.default_rng(seed).choice(int(ends[-1]), min(samples, int(ends[-1])), replace=False)
    rows_of: dict[int, list[int]] = {}
    for place in sorted(chosen.tolist()):
        shard = int(np.searchsorted(ends, place, side="right"))
        rows_of.setdefault(shard, []).append(place - int(ends[shard - 1]) * (shard > 0))
    findings = []
    with Labeller(config.label_stores[store].expert, expert, task, 1, config.labels, 0) as labeller:
        for shard, rows in rows_of.items():
            entry = entries[shard]
            stored, pairs = open_store(out_dir / "index.json", entry, task), read_indexed(entry)
            for row in rows:
                (again,) = labeller.label_pairs([pairs[row]])
                findings.append(_compare(task, entry["shard"], again, stored.get(row)))
    return findings


def _compare(task: Task, shard: str, again: dict[str, Any], stored: tuple[bytes, int, int] | None) -> Finding:
    key, payload = again["key"], again.get("payload")
    if stored is None and payload is None:
        return Finding(shard, key, True, 0.0, "")
    if stored is None:
        return Finding(shard, key, False, 1.0, "has a label now, none in the store")
    if payload is None:
        return Finding(shard, key, False, 1.0, f"has a label in the store, none now: {again['error']}")
    size = (again["height"], again["width"])
    if stored[1:] != size:
        return Finding(shard, key, False, 1.0, f"{size[1]} x {size[0]} now, {stored[2]} x {stored[1]} in the store")
    if stored[0] == payload:
        return Finding(shard, key, True, 0.0, "")
    return Finding(shard, key, False, differing(task.decode(*stored), task.decode(payload, *size)), "")


def differing(a: np.ndarray, b: np.ndarray) -> float:
    """Share of the pixels of two labels [H, W] or [H, W, C] that differ; see `audit_labels`.

    The first channel of a label of integers is the class, all others are values. Of a value that is an integer, 1 is
    rounding, whatever the range.
    """
    a, b = (label.reshape(*label.shape[:2], -1) for label in (a, b))
    exact = 0 if a.dtype.kind == "f" else 1
    differ_HW = (a[..., :exact] != b[..., :exact]).any(axis=-1)
    a, b = (label[..., exact:].astype(np.float64) for label in (a, b))
    step = np.maximum(TOLERANCE * (np.nanmax(a, axis=(0, 1)) - np.nanmin(a, axis=(0, 1))), exact)
    differ_HW |= (~np.isclose(a, b, rtol=1e-4, atol=step, equal_nan=True)).any(axis=-1)
    return float(differ_HW.mean())


def report(findings: list[Finding], store: str) -> str:
    """The findings as text: a line for each image that is not identical, and a verdict last."""
    lines = []
    for one in findings:
        if not one.identical:
            what = one.note or f"{one.differing:.2%} of the pixels differ"
            lines.append(f"{'ok    ' if one.agrees else 'DIFFER'} shard {one.shard} key {one.key}: {what}")
    agreeing, identical = (sum(getattr(one, name) for one in findings) for name in ("agrees", "identical"))
    lines.append(f"{store}: {agreeing} of {len(findings)} images agree, {identical} of them to the byte")
    return "\n".join(lines)
