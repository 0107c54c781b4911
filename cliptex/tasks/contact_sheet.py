"""Draw contact sheets: images next to their labels, with legends."""

import textwrap
from bisect import bisect_right
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cliptex.core.files import replacing
from cliptex.tasks.base import Task
from cliptex.tasks.grid import INVALID_COLOUR

CELL_PX = 224
GAP_PX = 10
LINE_PX = 22
SWATCH_PX = 14
MAX_CLASSES = 24
MAX_CHARACTERS = 400
"""Of a text that is measured: the time of the layout grows with its length."""
INK, PAPER = (20, 20, 20), (255, 255, 255)


def class_names(task: Task) -> list[str]:
    """Class names by class number; empty for a task without classes."""
    return task.codec().get("class_names", [])


def fitted(pixels: np.ndarray, resample: Image.Resampling) -> Image.Image:
    """A cell with the image (uint8 [H, W, 3]) scaled to fit and centred."""
    image = Image.fromarray(pixels)
    scale = CELL_PX / max(image.size)
    image = image.resize(tuple(max(1, round(side * scale)) for side in image.size), resample)
    cell = Image.new("RGB", (CELL_PX, CELL_PX), PAPER)
    cell.paste(image, ((CELL_PX - image.width) // 2, (CELL_PX - image.height) // 2))
    return cell


def message(text: str) -> Image.Image:
    """A cell with a text in place of an image."""
    cell = Image.new("RGB", (CELL_PX, CELL_PX), (240, 240, 240))
    lines = textwrap.fill(text[:MAX_CHARACTERS], 30, max_lines=12)
    ImageDraw.Draw(cell).multiline_text((10, 10), lines, fill=INK, font=ImageFont.load_default(13))
    return cell


def _cut(draw: ImageDraw.ImageDraw, text: str, font: Any, width: int) -> str:
    """The text on one line, truncated with an ellipsis if it is wider than `width` pixels."""
    cut = " ".join(text[:MAX_CHARACTERS].split())
    cut = "".join(character if character.isprintable() else "\ufffd" for character in cut)
    if len(text) <= MAX_CHARACTERS and draw.textlength(cut, font) <= width:
        return cut
    count = bisect_right(range(len(cut)), width, key=lambda length: draw.textlength(f"{cut[:length]}…", font))
    return f"{cut[: max(count - 1, 0)]}…"


def legend(task: Task, classes: Counter) -> list[tuple[np.ndarray, str]]:
    """Colour samples (uint8 [H, W, 3]) and their meanings. classes: pixels by class number, for tasks with classes."""
    invalid = np.full((SWATCH_PX, SWATCH_PX, 3), INVALID_COLOUR, np.uint8)
    lines = []
    if names := class_names(task):
        colours = task.picture(np.arange(len(names), dtype=task.codec()["dtype"])[None])[0]
        codes = [code for code, _ in classes.most_common() if code < len(names)]
        lines = [
            (np.full((SWATCH_PX, SWATCH_PX, 3), colours[code], np.uint8), names[code]) for code in codes[:MAX_CLASSES]
        ]
        if rest := len(codes[MAX_CLASSES:]):
            lines.append((np.full((SWATCH_PX, SWATCH_PX, 3), 255, np.uint8), f"{rest} rarer classes"))
        return [*lines, (invalid, "ignore")]
    if task.name == "depth":
        ramp = np.tile(np.linspace(0, 1, 6 * SWATCH_PX, dtype=np.float32), (SWATCH_PX, 1))
        return [(task.picture(ramp), "far to near, per image"), (invalid, "invalid")]
    if task.name == "normals":
        normals = {"left": (1, 0, 0), "right": (-1, 0, 0), "up": (0, 1, 0), "the viewer": (0, 0, 1)}
        lines = [
            (task.picture(np.tile(np.array([*normal, 1], np.float32), (SWATCH_PX, SWATCH_PX, 1))), f"faces {side}")
            for side, normal in normals.items()
        ]
    return [*lines, (invalid, "invalid")]


def draw_sheet(
    titles: list[str],
    rows: list[tuple[str, list[Image.Image]]],
    legends: list[list[tuple[np.ndarray, str]]],
    out: Path,
) -> None:
    """Write a PNG: column titles, rows (text, one cell per column), and legends of all columns but the first below."""
    columns, step = len(titles), CELL_PX + GAP_PX
    row_step = CELL_PX + LINE_PX + GAP_PX
    legend_top = GAP_PX + LINE_PX + len(rows) * row_step
    height = legend_top + max(map(len, legends), default=0) * LINE_PX + GAP_PX
    sheet = Image.new("RGB", (GAP_PX + columns * step, height), PAPER)
    draw, bold, plain = ImageDraw.Draw(sheet), ImageFont.load_default(15), ImageFont.load_default(13)
    for column, title in enumerate(titles):
        draw.text((GAP_PX + column * step, GAP_PX), _cut(draw, title, bold, CELL_PX), fill=INK, font=bold)
    for number, (text, cells) in enumerate(rows):
        top = GAP_PX + LINE_PX + number * row_step
        for column, cell in enumerate(cells):
            sheet.paste(cell, (GAP_PX + column * step, top))
        draw.text((GAP_PX, top + CELL_PX + 2), _cut(draw, text, plain, columns * step - GAP_PX), fill=INK, font=plain)
    for column, lines in enumerate(legends, start=1):
        for line, (swatch, text) in enumerate(lines):
            left, top = GAP_PX + column * step, legend_top + line * LINE_PX
            sheet.paste(Image.fromarray(np.ascontiguousarray(swatch)), (left, top))
            left += swatch.shape[1] + 6
            draw.text((left, top - 2), _cut(draw, text, plain, CELL_PX - swatch.shape[1] - 6), fill=INK, font=plain)
    with replacing(out) as scratch:
        sheet.save(scratch, "PNG")
