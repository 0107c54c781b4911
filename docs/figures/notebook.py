"""Write docs/tutorial.ipynb from docs/tutorial.md: `python docs/figures/notebook.py docs/tutorial.ipynb`.

Text becomes Markdown cells, blocks of commands and of Python become code cells. The notebook runs a smaller
configuration in a folder of its own, so that each cell takes less than a minute. Outputs are not stored.
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
folder `tutorial/` of the clone: a cell takes seconds, at most a minute, and its numbers mean nothing. For the miniature
itself, use the commands of that page.*
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
    if kind == "python":
        return new_code_cell(code)
    for command, smaller in SMALLER.items():
        code = code.replace(command, smaller)
    return new_code_cell(f"%%bash -e\n{code}")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(notebook(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
