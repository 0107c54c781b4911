"""How long a run will still take: an estimate from how long jobs of the same rule have taken.

Durations are known from this run, else from earlier runs in the folder (`results/timings`), else from the miniature's
default run (seconds.tsv), scaled by how long this run's jobs take in comparison. If they take so much longer that
this is another kind of run, those durations are not used, and there is no estimate until every rule has had a job.
"""

import csv
import threading
from collections import Counter
from collections.abc import Mapping
from importlib.resources import files
from statistics import fmean

COMPARABLE = 8.0
"""Largest factor, up or down, by which a run's jobs may differ from the miniature's for its durations to be used."""
EARLIEST_S = 10.0
"""No estimate before the run has taken so long, in seconds."""


def miniature_seconds() -> dict[str, float]:
    """Rule -> mean seconds of a job in the miniature's default run."""
    with files(__package__).joinpath("seconds.tsv").open(encoding="utf-8") as file:
        return {row["rule"]: float(row["seconds"]) for row in csv.DictReader(file, delimiter="\t")}


def _looked_up(rule: str, seconds: Mapping[str, float]) -> float | None:
    """Of the rule, or of those in a loop, which are named after it (`probe_voc_0`: `probe`)."""
    names = [name for name in seconds if rule == name or rule.startswith(f"{name}_")]
    return seconds[max(names, key=len)] if names else None


class Estimate:
    """Follows the jobs of a run. Times are in seconds, from any origin. May be used by several threads.

    planned: rule -> number of jobs. earlier: rule -> mean seconds of a job in earlier runs of the folder.
    """

    def __init__(self, planned: Mapping[str, int], earlier: Mapping[str, float], now: float):
        self.waiting = Counter(planned)
        self.running: dict[int, tuple[str, float]] = {}
        self._taken: dict[str, list[float]] = {}
        self._earlier, self._miniature, self._began = earlier, miniature_seconds(), now
        self._lock = threading.Lock()

    def start(self, job: int, rule: str, now: float) -> None:
        with self._lock:
            self.waiting[rule] -= 1
            self.running[job] = rule, now

    def finish(self, job: int, now: float) -> float:
        """The seconds that the job took."""
        with self._lock:
            rule, began = self.running.pop(job)
            self._taken.setdefault(rule, []).append(now - began)
        return now - began

    def fail(self, job: int) -> None:
        """The job ended with an error; it may be tried again."""
        with self._lock:
            rule, _ = self.running.pop(job)
            self.waiting[rule] += 1

    def _scale(self) -> float | None:
        """How much longer this run's jobs take than the miniature's; None if they are not comparable."""
        own = [(taken, known) for rule, taken in self._taken.items() if (known := _looked_up(rule, self._miniature))]
        if not own:
            return None
        ratio = sum(sum(taken) for taken, _ in own) / sum(known * len(taken) for taken, known in own)
        return ratio if 1 / COMPARABLE <= ratio <= COMPARABLE else None

    def _seconds(self, rule: str, scale: float | None) -> float | None:
        if taken := self._taken.get(rule):
            return fmean(taken)
        if (earlier := _looked_up(rule, self._earlier)) is not None:
            return earlier
        known = _looked_up(rule, self._miniature)
        if known is None or (known and scale is None):
            return None
        return known * (scale or 1.0)

    def seconds_left(self, now: float) -> float | None:
        """Seconds until the last job ends, if as many jobs run at a time as so far; None if not known."""
        with self._lock:
            return self._seconds_left(now)

    def _seconds_left(self, now: float) -> float | None:
        passed = now - self._began
        if passed < EARLIEST_S:
            return None
        scale = self._scale()
        rules = {rule for rule, count in self.waiting.items() if count > 0} | {
            rule for rule, _ in self.running.values()
        }
        seconds = {rule: self._seconds(rule, scale) for rule in rules}
        if None in seconds.values():
            return None
        rest = [max(seconds[rule] - (now - began), 0.0) for rule, began in self.running.values()]
        work = sum(rest) + sum(seconds[rule] * count for rule, count in self.waiting.items() if count > 0)
        done = sum(map(sum, self._taken.values())) + sum(now - began for _, began in self.running.values())
        return max(work / max(done / passed, 1.0), *rest, 0.0)


def about(seconds: float | None) -> str:
    """`about 7 min left`, as precise as an estimate is; empty if not known."""
    if seconds is None:
        return ""
    minutes = seconds / 60
    if minutes < 1:
        return "less than a minute left"
    if minutes < 9.5:
        return f"about {minutes:.0f} min left"
    if minutes < 87.5:
        return f"about {5 * round(minutes / 5)} min left"
    return f"about {minutes / 60:.0f} h left"


def duration(seconds: float) -> str:
    """`14 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
