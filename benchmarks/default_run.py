"""Time of the default run, config/config.yaml, from nothing, and again with a cache that the first run has filled.

    python benchmarks/default_run.py [--quick] [--cores 2] [--cold-only]

Each run is the README's `snakemake --cores N all` in an empty folder. The second one finds the rendered images and the
experts' weights of the first in `CLIPTEX_CACHE` (docs/performance.md). `ratio` is the minutes by the clock, `seconds`
and `processor_seconds` are of the whole command with its children, `by_rule` the processor seconds that the jobs
record. Take figures from a machine that does nothing else. `--quick` runs config/test.yaml, whose figures say nothing
about the goal. The last line is a JSON list.
"""

import argparse
import json
import os
import resource
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import ROOT, machine

GOAL_MINUTES, GOAL_PROCESSOR_S = 6, 800


def run(folder: Path, cache: Path, cores: int, config: Sequence[str]) -> dict[str, Any]:
    """One run into `folder`; its seconds. Raises CalledProcessError if it fails."""
    command = ["snakemake", "all", "--cores", str(cores), "--directory", str(folder), *config]
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"CLIPTEX_CACHE": str(cache)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    by_rule = Counter[str]()
    for path in folder.glob("results/timings/*/*.json"):
        by_rule[path.parent.name] += json.loads(path.read_text(encoding="utf-8"))["processor_seconds"]
    return {
        "seconds": round(time.monotonic() - start),
        "processor_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime),
        "by_rule": {rule: round(seconds, 1) for rule, seconds in by_rule.most_common()},
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="config/test.yaml")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--cold-only", action="store_true", help="no second run with the cache")
    options = parser.parse_args(argv)
    config = ["--configfile", str(ROOT / "config/test.yaml")] if options.quick else []
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for part in ("empty cache",) if options.cold_only else ("empty cache", "filled cache"):
            measured = run(Path(folder) / part.replace(" ", "_"), Path(folder) / "cache", options.cores, config)
            minutes = measured["seconds"] / 60
            holds = minutes <= GOAL_MINUTES and measured["processor_seconds"] <= GOAL_PROCESSOR_S
            results.append(
                {
                    "benchmark": "default_run",
                    "part": part,
                    "ratio": round(minutes, 2),
                    "spread": None,
                    "goal": f"<= {GOAL_MINUTES} minutes and {GOAL_PROCESSOR_S} processor seconds",
                    "holds": None if options.quick else holds,
                    "what": f"minutes of the default run on {options.cores} cores; {measured['processor_seconds']}"
                    " processor seconds",
                    **measured,
                    "machine": machine(),
                }
            )
            print(json.dumps(results), flush=True)


if __name__ == "__main__":
    main()
