"""Time of Snakemake's dry run for growing numbers of shards.

    python benchmarks/dag.py [--quick] [--shards 331 1242 13000] [--per-job 25] [--repeats 3]

`config/paper.yaml` is planned with lists of 10,000 rows per shard: 331 shards are CC3M, 1,242 CC12M, 13,000 a tenth of
DataComp-1B. `--per-job` sets `download.shards_per_job` and `labels.shards_per_job`. Nothing runs and nothing is
downloaded. Repeats alternate between the sizes; seconds are CPU seconds of the whole command.

`ratio` is what a further job costs, in milliseconds: seconds of the largest plan less those of the smallest, by their
difference in jobs. `plans` has seconds, jobs, and milliseconds per job with Snakemake's start. The goal is for this
marginal cost. `--quick` plans the smallest and the largest once. The last line is a JSON list.
"""

import argparse
import contextlib
import json
import resource
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml
from machine import ROOT, machine

from cliptex.cluster.dry_run import planned_jobs

GOAL_MS = 2.5
ROWS_PER_SHARD = 10_000


def plan(shards: int, per_job: int) -> tuple[float, int]:
    """CPU seconds of a dry run, and its number of jobs."""
    over = {
        "dataset": {"urls": {"files": ["list.tsv"], "rows": shards * ROWS_PER_SHARD}},
        "download": {"shards_per_job": per_job},
        "labels": {"shards_per_job": per_job},
    }
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("list.tsv").touch()
        Path("over.yaml").write_text(yaml.safe_dump(over), encoding="utf-8")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        jobs = planned_jobs(ROOT, [ROOT / "config/paper.yaml", "over.yaml"])
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, sum(jobs.values())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest and the largest plan, once")
    parser.add_argument("--shards", type=int, nargs="+", default=[331, 1242, 13_000], help="at least two sizes")
    parser.add_argument("--per-job", type=int, default=25, help="shards per job")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(argv)
    sizes, repeats = sorted(options.shards), options.repeats
    if len(sizes) < 2:
        parser.error("--shards: give at least two sizes")
    if options.quick:
        sizes, repeats = [sizes[0], sizes[-1]], 1
    plan(sizes[0], options.per_job)  # Python's compiled modules are cached
    rounds = [[plan(size, options.per_job) for size in sizes] for _ in range(repeats)]
    jobs = [count for _, count in rounds[0]]
    costs = [1000 * (done[-1][0] - done[0][0]) / (jobs[-1] - jobs[0]) for done in rounds]
    plans = []
    for place, size in enumerate(sizes):
        seconds = statistics.median(done[place][0] for done in rounds)
        each = round(1000 * seconds / jobs[place], 2)
        plans.append({"shards": size, "jobs": jobs[place], "seconds": round(seconds, 2), "ms_a_job": each})
    cost = statistics.median(costs)
    result = {
        "benchmark": "dag",
        "ratio": round(cost, 2),
        "spread": [round(min(costs), 2), round(max(costs), 2)],
        "goal": f"<= {GOAL_MS}",
        "holds": cost <= GOAL_MS,
        "what": "milliseconds of processor that a further job costs Snakemake's dry run of config/paper.yaml",
        "plans": plans,
        "shards_per_job": options.per_job,
        "repeats": repeats,
        "machine": machine(),
    }
    print(json.dumps([result]))


if __name__ == "__main__":
    main()
