"""Links of the report's page: to files of the run, relative to the page, and to papers."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from cliptex.core import paths
from cliptex.report import names
from cliptex.report.gather import Results

DOCS = {"docs/report.md": "the report", "docs/results-json.md": "results files", "docs/labels.md": "label stores"}
"""Pages of the documentation, which are there if the run is in a clone."""


class Link(NamedTuple):
    text: str
    href: str


def relative(path: Path, page: Path) -> str:
    """The address of a file or folder, from the page's folder."""
    address = quote(Path(os.path.relpath(path, page.parent)).as_posix())
    return f"{address}/" if path.is_dir() else address


def file_links(results: Results, page: Path) -> dict[str, list[Link]]:
    """Kind of file -> links; only to what exists, and to the folder that is written with the page."""
    models = [
        (f"{names.model(name)}, seed {seed}", paths.model(name, seed))
        for name, runs in results.runs.items()
        for seed in runs
    ]
    scores = [(str(one.path.relative_to(results.workdir)), one.path) for _, one in results.all_scores]
    stores = [(name, paths.labels(name)) for name in results.stores]
    kinds = {
        "Models": models,
        "Label stores": stores,
        "Results": scores,
        "Logs": [("all jobs", paths.LOGS), ("times", paths.TIMINGS)],
        "Documentation": [(title, Path(name)) for name, title in DOCS.items()],
    }
    links = {
        kind: [Link(text, relative(found, page)) for text, path in own if (found := results.workdir / path).exists()]
        for kind, own in kinds.items()
    }
    tables = f"{relative(results.workdir / paths.REPORT, page).rstrip('/')}/"
    links["Tables and figures"] = [Link("CSV, Markdown, SVG, PNG", tables), Link("for papers", f"{tables}figures/")]
    return {kind: own for kind, own in links.items() if own}


def paper_links(results: Results) -> list[Link]:
    """The papers of the method, and of the experts, heads and benchmarks of the run."""
    used = ["cliptex", "clip", *_methods(results)]
    papers = dict.fromkeys(names.PAPERS[name] for name in used if name in names.PAPERS)
    return [Link(f"{title}, arXiv {number}", f"https://arxiv.org/abs/{number}") for title, number in papers]


def _methods(results: Results) -> Iterable[str]:
    for name, expert in results.config.experts.items():
        yield from (name, expert.plugin)
    for _, scores in results.all_scores:
        yield scores.benchmark
        for row in scores.results:
            yield from (row.head, row.task)
    if results.suite is not None:
        yield "datacomp"
