"""Wall and CPU seconds of a run's jobs, summed by rule."""

import csv
from pathlib import Path
from typing import NamedTuple

from cliptex.core.files import reading, require_file
from cliptex.report import records


class Timing(NamedTuple):
    """Wall and CPU seconds of all jobs of one rule; cpu is None if not measured. sampled: whether those of a job are
    only Snakemake's last sample, a lower bound."""

    rule: str
    jobs: int
    wall: float
    cpu: float | None
    sampled: bool = False


def read_timings(folder: Path) -> list[Timing]:
    """Snakemake's benchmark files `{rule}/**/*.tsv` with the jobs' own records of CPU seconds, summed by rule; empty
    without them."""
    out = []
    for rule in sorted(path for path in folder.glob("*") if path.is_dir()):
        wall, cpu, jobs, sampled = 0.0, 0.0, 0, False
        for path in sorted(rule.rglob("*.tsv")):
            require_file(path)
            own = _own_seconds(path.with_suffix(".json"))
            sampled |= own is None
            with reading(path, "a table of times"), path.open(newline="", encoding="utf-8", errors="replace") as file:
                for line in csv.DictReader(file, delimiter="\t"):
                    jobs += 1
                    wall += _seconds(line.get("s")) or 0.0
                    # both are lower bounds: a sample may be old, and a job does not see processes on other nodes
                    known = [one for one in (_seconds(line.get("cpu_time")), own) if one is not None]
                    cpu = None if cpu is None or not known else cpu + max(known)
        if jobs:
            out.append(Timing(rule.name, jobs, wall, cpu, sampled))
    return out


def _own_seconds(path: Path) -> float | None:
    """What a job recorded of itself; None for jobs of older runs, and without cliptex."""
    return records.read_record(path, records.USAGE)["processor_seconds"] if path.exists() else None


def _seconds(text: str | None) -> float | None:
    """Snakemake writes NA or - for values it could not measure (very short jobs)."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return None
