"""Write docs/tutorial.ipynb from docs/tutorial.md: `python docs/figures/notebook.py docs/tutorial.ipynb`.

Text becomes Markdown cells, blocks of commands and of Python become code cells. The notebook runs a smaller
configuration in a folder of its own: a cell takes about a minute of one processor at most. Outputs are not stored.
"""

import re
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PAGE = Path(__file__).parent.parent / "tutorial.md"
BLOCK = re.compile(r"^(```(?:bash|python)\n.*?^```)$", re.S | re.M)
HEAD = """\
*This notebook is made from [tutorial.md](tutorial.md). It runs a smaller configuration, `config/test.yaml`, in the
folder `tutorial/` of the clone, and its numbers mean nothing. The first line of a cell says how long it takes if the
folder is empty, in seconds of one processor: two need at least half of that. For the miniature itself, use the commands
of that page.*
"""
START = """\
import os
from pathlib import Path

folder = Path("../tutorial")  # Jupyter starts in the notebook's folder, docs/
folder.mkdir(exist_ok=True)
os.chdir(folder)"""
SMALLER = {
    "snakemake ": "snakemake --snakefile ../Snakefile --configfile ../config/test.yaml ",
    "cliptex labels inspect": "cliptex labels inspect --config ../config/test.yaml",
}

SECONDS = {
    "cliptex --version": 10,
    "snakemake --cores 8 results/shards/index.json": 17,
    "snakemake --cores 8 results/labels/segmentation/index.json": 37,
    "snakemake --cores 8 results/labels/{depth,normals}/index.json": 58,
    "cliptex labels inspect": 2,
    "snakemake --cores 8 results/models/": 29,
    "import cliptex": 6,
    "cliptex predict": 7,
    "snakemake --cores 8 results/probes/voc.json": 34,
    "snakemake --cores 8 results/probes/{ade20k": 61,
    "snakemake --cores 8 all": 65,
    "snakemake --dry-run all --config": 3,
}
"""Start of a block -> processor seconds (user and system) of its cell and of all jobs in it. They were measured one
after the other in an empty folder, on a busy machine."""


def notebook(page: str) -> str:
    """The notebook as JSON."""
    title, _, text = page.partition("\n\n")
    cells = [new_markdown_cell(f"{title}\n\n{HEAD}"), new_code_cell(START)]
    cells += [cell(part.strip()) for part in BLOCK.split(text)]
    for number, one in enumerate(cells):
        one["id"] = f"cell-{number}"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.writes(new_notebook(cells=cells, metadata={"kernelspec": kernel})) + "\n"


def cell(part: str) -> nbformat.NotebookNode:
    """The cell of a block of code, or of the text between two. Installation stays a text."""
    kind, _, code = part.removeprefix("```").removesuffix("\n```").partition("\n")
    if not BLOCK.fullmatch(part) or "pip install" in code:
        return new_markdown_cell(part)
    known = [seconds for start, seconds in SECONDS.items() if code.startswith(start)]
    comment = f"# {known[0]} s of one processor\n" if known else ""
    if kind == "python":
        return new_code_cell(comment + code)
    for command, smaller in SMALLER.items():
        code = code.replace(command, smaller)
    return new_code_cell(f"%%bash -e\n{comment}{code}")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(notebook(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
