"""Label random images of a store again with its expert, and compare the labels.

Reads   results/shards/index.json and some shards, the expert's folder, an indexed label store.
Writes  nothing; the caller prints the report.
Holds   the same seed draws the same images; the store is never changed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cliptex.config import Config
from cliptex.core.errors import working_on
from cliptex.data.shard_index import read_index, read_indexed
from cliptex.experts.base import Expert
from cliptex.labels.label import attached_task, labelling
from cliptex.labels.store import open_store, rows_by_shard
from cliptex.tasks.base import Task

MOST_PIXELS = 8
"""Pixels of an image that may differ, such as those on the edge of two classes of equal scores: half a block of 4 x 4.
Measured with the miniature's experts in fp32 and bf16, with 1 and 2 threads and 1, 7 and 32 images per batch: none."""


@dataclass(frozen=True)
class Finding:
    """Comparison of one image's stored and new label."""

    shard: str
    key: str
    identical: bool
    """Whether the payloads are byte-identical."""
    pixels: int = 0
    """Number of pixels that differ by more than rounding (`Task.differs`)."""
    note: str = ""
    """Where they are; or what else differs: only one has a label, or their sizes differ."""

    @property
    def agrees(self) -> bool:
        return self.identical or 0 <= self.pixels <= MOST_PIXELS


def audit_labels(
    config: Config, store: str, shard_index: Path, expert: Expert, out_dir: Path, samples: int = 8, seed: int = 0
) -> list[Finding]:
    """Label `samples` random images again and compare them with the store.

    Both labels are encoded and decoded. An image agrees if at most 8 pixels differ by more than rounding, or if neither
    has a label. Each image is first labelled alone; if it does not agree, together with the images that shared its
    forward pass, since libraries may sum in another order for another batch size. Raises CliptexError as `open_store`.
    """
    entries = read_index(shard_index)["shards"]
    task = attached_task(config, store, expert, entries, out_dir.parent)
    sizes = [len(entry["keys"]) for entry in entries]
    chosen = np.random.default_rng(seed).choice(sum(sizes), min(samples, sum(sizes)), replace=False)
    name, findings = config.label_stores[store].expert, []
    settings = config.experts[name]
    window = settings.batch_window or settings.batch_size
    with labelling(name, expert, task, settings, config.labels, 0) as labeller:
        for shard, rows in rows_by_shard(sizes, chosen).items():
            entry = entries[shard]
            with working_on(entry["path"]):
                stored, pairs = open_store(out_dir / "index.json", entry, task), read_indexed(entry)
            for row in rows:
                with working_on(f"{entry['path']}, key {pairs[row].key!r}"):
                    (again,) = labeller.label_pairs(entry["path"], [pairs[row]])
                    finding = compare(task, entry["shard"], again, stored.get(row))
                    if not finding.agrees:
                        first = row - row % window
                        together = labeller.label_pairs(entry["path"], pairs[first : first + window])
                        finding = compare(task, entry["shard"], together[row - first], stored.get(row))
                findings.append(finding)
    return findings


def compare(task: Task, shard: str, again: dict[str, Any], stored: tuple[bytes, int, int] | None) -> Finding:
    """Compare a row that was made again with the stored payload, height and width."""
    key, payload = again["key"], again.get("payload")
    size = (again.get("height"), again.get("width"))
    if stored == (payload and (payload, *size)):
        return Finding(shard, key, True)
    if stored is None:
        note = "has a label now, none in the store"
    elif payload is None:
        note = f"has a label in the store, none now: {again['error']}"
    elif stored[1:] != size:
        note = f"{size[1]} x {size[0]} now, {stored[2]} x {stored[1]} in the store"
    else:
        before, now = task.decode(*stored), task.decode(payload, *size)
        differs_HW = task.differs(before, now)
        if not (pixels := int(differs_HW.sum())):
            same = np.array_equal(before, now, equal_nan=True)
            return Finding(shard, key, False, 0, "the same values in other bytes" if same else "rounding")
        rows, columns = (np.flatnonzero(differs_HW.any(axis=axis)) for axis in (1, 0))
        where = f"rows {rows[0]} to {rows[-1]}, columns {columns[0]} to {columns[-1]}"
        return Finding(shard, key, False, pixels, f"{pixels} of {differs_HW.size} pixels differ, in {where}")
    return Finding(shard, key, False, -1, note)


def report(findings: list[Finding], store: str) -> str:
    """The findings as text: a line for each image that is not identical, then a summary."""
    lines = [
        f"{'ok    ' if finding.agrees else 'DIFFER'} shard {finding.shard} key {finding.key}: {finding.note}"
        for finding in findings
        if not finding.identical
    ]
    agreeing, identical = sum(finding.agrees for finding in findings), sum(finding.identical for finding in findings)
    lines.append(f"{store}: {agreeing} of {len(findings)} images agree, {identical} are byte-identical")
    return "\n".join(lines)


def advice(differing: dict[Path, list[Finding]]) -> str:
    """What to do about label stores (folders) of which some labels could not be made again: look first."""
    stores = [
        f"{folder}: {sum(not one.agrees for one in findings)} of {len(findings)} labels cannot be reproduced"
        for folder, findings in differing.items()
    ]
    return (
        f"{'; '.join(stores)}; compare the images that differ with their labels first. A few may differ if the labels"
        " were made on another machine or in another precision. If most do, the expert is not that of the labels:"
        " correct its configuration or weights; only if the labels are wrong, move the store's folder away and run the"
        " workflow"
    )
