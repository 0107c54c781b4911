"""Two runs side by side: what differs between them, and which results changed by more than the noise.

Reads   the results, training records, experts, label stores and pages of two runs, as far as they are there.
Writes  one self-contained page.
Holds   every number follows from files of the two runs; only what a test supports is called better or worse.
"""

from pathlib import Path

from cliptex.core.files import replacing


def compare_runs(first: Path, second: Path, out: Path = Path("compare.html")) -> str:
    """Write the page, and return a short text of the same content.

    first, second: folders of runs, or their results folders. The runs may be half finished: what both have is compared.
    Raises CliptexError for a folder that is no run, for a broken file, and for runs without a common result.
    """
    from cliptex.report.compare.page import make_page, render, summary
    from cliptex.report.compare.runs import read_run

    page = make_page(read_run(first), read_run(second))
    with replacing(out) as scratch:
        scratch.write_text(render(page), encoding="utf-8")
    return summary(page)
