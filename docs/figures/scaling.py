"""Counts the jobs of config/paper.yaml on larger lists of URLs, by Snakemake's dry run:

    python docs/figures/scaling.py docs/scaling.md

replaces these rows of the page's table. Without a page they are printed. Half a minute; nothing is downloaded.
"""

import contextlib
import sys
import tempfile
from pathlib import Path

import yaml

from cliptex.cluster.dry_run import planned_jobs

ROOT = Path(__file__).parent.parent.parent
ROWS = {"CC3M": 3_318_333, "CC12M": 12_423_374, "DataComp-1B": 1_390_000_000}
"""Rows of each list, in the order of the table."""
SHARDS_PER_JOB = {"CC3M": 25, "CC12M": 25, "DataComp-1B": 250}
"""Of config/paper.yaml; more for the largest list."""
SIZES, PAIRS, ALL = (
    "`download.shards_per_job`, `labels.shards_per_job`",
    "jobs: download and build, label",
    "all jobs of the plan, three seeds",
)


def counts(name: str) -> dict[str, str]:
    """The first cell of each row -> the cell of one list."""
    size = SHARDS_PER_JOB[name]
    over = {"dataset": {"urls": {"files": ["list.tsv"], "rows": ROWS[name]}}}
    over |= {"download": {"shards_per_job": size}, "labels": {"shards_per_job": size}}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("list.tsv").touch()
        Path("over.yaml").write_text(yaml.safe_dump(over), encoding="utf-8")
        jobs = planned_jobs(ROOT, [ROOT / "config/paper.yaml", "over.yaml"])
    pairs = f"{jobs['download_pairs'] + jobs['build_shards']:,}, {jobs['label']:,}"
    return {SIZES: f"{size}, {size}", PAIRS: pairs, ALL: f"{sum(jobs.values()):,}"}


def main(page: str | None = None) -> None:
    """Write the rows into the page, or print them."""
    columns = [counts(name) for name in ROWS]
    rows = {first: f"| {first} | {' | '.join(column[first] for column in columns)} |" for first in columns[0]}
    if page is None:
        print("\n".join(rows.values()))
        return
    lines = Path(page).read_text(encoding="utf-8").split("\n")
    new = [rows.get(line.removeprefix("| ").partition(" | ")[0], line) for line in lines]
    Path(page).write_text("\n".join(new), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
