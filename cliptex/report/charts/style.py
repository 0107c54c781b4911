"""Size, fonts and colours of the figures, and how a script next to this one reads its CSV file and writes SVG and PDF.

Colours are Okabe and Ito's, which are distinct with every common kind of colour blindness; markers, line styles or
labels repeat the distinction, so that figures can be read without colour. Needs matplotlib and NumPy only.
"""

import csv
import io
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

WIDTH = 3.25  # inches, a column of a paper in two columns
FONT_SIZE = 7  # points
FONT = "DejaVu Sans"  # brought by matplotlib; for the font of your paper, name one that is installed

INK, FAINT, GRID = "#1d2129", "#5c6370", "#e3e6eb"
MODELS = {"CLIP": "#56b4e9", "CLIP-FT": "#e69f00", "CLIPTeX": "#0072b2"}
FURTHER = ("#009e73", "#d55e00", "#cc79a7", "#000000")
LINES = {"CLIP": (0, (1, 1.2)), "CLIP-FT": (0, (5, 2)), "CLIPTeX": "-"}
FURTHER_LINES = ("-.", (0, (8, 2, 1, 2, 1, 2)), (0, (2, 2)), (0, (10, 3)))
"""Of models without a line in `LINES`, in turn."""

PAGE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cliptex",
    "font.family": FONT,
    "text.parse_math": False,  # a dollar sign in a label is one
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": FAINT,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "savefig.dpi": 150,
}
PAPER = PAGE | {
    "svg.fonttype": "path",  # looks the same without the font
    "pdf.fonttype": 42,  # TrueType, embedded, as publishers ask for
    "font.size": FONT_SIZE,
    "axes.titlesize": FONT_SIZE,
    "legend.fontsize": FONT_SIZE,
    "xtick.labelsize": FONT_SIZE,
    "ytick.labelsize": FONT_SIZE,
    "axes.linewidth": 0.6,
    "axes.labelcolor": INK,
    "xtick.labelcolor": INK,
}

Rows = list[dict[str, str]]
"""The lines of a CSV file, column -> text."""


def stamp(figure: Figure, text: str, size: float = 7.5) -> None:
    """A mark at the lower right, since figures are copied without their caption."""
    if text:
        figure.supxlabel(text, x=1.0, ha="right", fontsize=size, color=FAINT)


def drawn(draw: Callable, rows: Rows, kind: str) -> bytes:
    """A figure for a paper as a `svg` or `pdf`; the same for the same rows."""
    with matplotlib.rc_context(PAPER):
        figure = Figure(figsize=(WIDTH, 1.0), layout="constrained")
        draw(figure, rows, paper=True)
        out, undated = io.BytesIO(), {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
        figure.savefig(out, format=kind, metadata=undated[kind], facecolor="white")
    return out.getvalue()


def run(draw: Callable, script: str) -> None:
    """Draw the CSV file of a script's name, in the folder that the command line names or else the script's own."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else script).resolve()
    folder = folder if folder.is_dir() else folder.parent
    with (folder / Path(script).with_suffix(".csv").name).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for kind in ("svg", "pdf"):
        (folder / Path(script).with_suffix(f".{kind}").name).write_bytes(drawn(draw, rows, kind))
