"""Wall and CPU seconds of a run's jobs, summed by rule; when and where the run took place."""

import csv
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from cliptex.core.files import reading, require_file
from cliptex.report import records

PAGES = ("report", "study")
"""Rules that write pages, which can be repeated long after the run."""


class TimedJob(NamedTuple):
    """A finished job. wall, cpu: seconds, None if not measured. sampled: whether `cpu` is only Snakemake's last sample,
    a lower bound. ended: seconds since 1970. Of jobs of older runs `ended` is None and `machine` empty."""

    rule: str
    wall: float | None
    cpu: float | None
    sampled: bool
    ended: float | None
    machine: str


class Timing(NamedTuple):
    """Wall and CPU seconds of all jobs of one rule; cpu is None if not measured. sampled: whether those of a job are
    only Snakemake's last sample, a lower bound."""

    rule: str
    jobs: int
    wall: float
    cpu: float | None
    sampled: bool = False


class RunTimes(NamedTuple):
    """When a run began and ended (UTC), how long at least one of its jobs was running (seconds), and its machines."""

    began: datetime
    ended: datetime
    seconds: float
    machines: list[str]


def read_jobs(folder: Path) -> list[TimedJob]:
    """Snakemake's benchmark files `{rule}/**/*.tsv` with the jobs' own records; empty without them."""
    out = []
    for rule in sorted(path for path in folder.glob("*") if path.is_dir()):
        for path in sorted(rule.rglob("*.tsv")):
            require_file(path)
            own_path = path.with_suffix(".json")
            own = records.read_record(own_path, records.USAGE) if own_path.exists() else {}  # none of older runs
            with reading(path, "a table of times"), path.open(newline="", encoding="utf-8", errors="replace") as file:
                for line in csv.DictReader(file, delimiter="\t"):
                    # both are lower bounds: a sample may be old, and a job does not see processes on other nodes
                    known = [_seconds(line.get("cpu_time")), own.get("processor_seconds")]
                    cpu = max((one for one in known if one is not None), default=None)
                    recorded = own.get("ended"), own.get("machine", "")
                    out.append(TimedJob(rule.name, _seconds(line.get("s")), cpu, not own, *recorded))
    return out


def by_rule(jobs: Iterable[TimedJob]) -> list[Timing]:
    """The jobs' seconds, summed by rule."""
    rules: dict[str, list[TimedJob]] = {}
    for job in jobs:
        rules.setdefault(job.rule, []).append(job)
    return [
        Timing(
            rule,
            len(own),
            sum(job.wall or 0.0 for job in own),
            None if any(job.cpu is None for job in own) else sum(job.cpu for job in own),
            any(job.sampled for job in own),
        )
        for rule, own in rules.items()
    ]


def run_times(jobs: Sequence[TimedJob]) -> RunTimes | None:
    """When the jobs ran, without those that write pages; None if none of them recorded it."""
    known = [job for job in jobs if job.ended is not None and not job.rule.startswith(PAGES)]
    spans = sorted((job.ended - (job.wall or 0.0), job.ended) for job in known)
    if not spans:
        return None
    seconds, reached = 0.0, spans[0][0]
    for start, end in spans:
        seconds += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    began, ended = (datetime.fromtimestamp(at, UTC) for at in (spans[0][0], reached))
    return RunTimes(began, ended, seconds, list(dict.fromkeys(job.machine for job in jobs if job.machine)))


def _seconds(text: str | None) -> float | None:
    """Snakemake writes NA or - for values it could not measure (very short jobs)."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return None
