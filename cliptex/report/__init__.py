"""The report: tables, charts, a gallery and a verdict on one page.

Reads   results/{shards,experts,labels,models,probes,zeroshot,finetuned,timings}/ as named by the config.
Writes  results/report/: each table as CSV and Markdown, all_metrics.csv, verdict.txt of two lines, charts as SVG and
        PNG, and for papers in figures/ as SVG and PDF with the scripts that draw them; results/report.html, last.
Holds   every number on the page is in a results file; the page is one file that works offline.
"""

from pathlib import Path

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.files import replacing


def build_report(config: Config, workdir: Path = Path(), out: Path = paths.RESULTS / "report.html") -> None:
    """Write the tables, the charts and the page.

    workdir: the working directory of the run; `out` is relative to it. Raises CliptexError for the first input that is
    missing or broken. Experts' quality, timings, the benchmarks' data and studies are optional.
    """
    from cliptex.report.gather import gather
    from cliptex.report.page import SUFFIX, make_parts, render
    from cliptex.report.table import csv_text
    from cliptex.report.tables.results import long_rows

    workdir = Path(workdir)
    results = gather(config, workdir)
    parts = make_parts(results)
    page = render(results, parts, workdir / out)
    folder = workdir / paths.REPORT
    for stale in [*folder.glob("*.*"), *folder.glob("figures/*.*")]:  # from a run with other benchmarks or models
        stale.unlink(missing_ok=True)
    for table in filter(None, (*parts.tables.values(), *parts.metrics)):
        for suffix, text in (("csv", table.csv()), ("md", table.markdown())):
            with replacing(folder / f"{table.name}.{suffix}") as scratch:
                scratch.write_text(text, encoding="utf-8")
    with replacing(folder / "all_metrics.csv") as scratch:
        scratch.write_text(csv_text(long_rows(results)), encoding="utf-8")
    with replacing(folder / "verdict.txt") as scratch:
        headline = parts.verdict.headline + (SUFFIX if results.miniature else "")
        scratch.write_text("\n".join([headline, *parts.verdict.sentences[:1]]) + "\n", encoding="utf-8")
    for chart in parts.charts.values():
        chart.save(folder)
        chart.save_for_paper(folder / "figures")
    with replacing(workdir / out) as scratch:
        scratch.write_text(page, encoding="utf-8")
