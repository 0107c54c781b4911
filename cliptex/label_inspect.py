"""Look at label stores: a contact sheet of images beside their labels, and the statistics of each store.

Reads   results/shards/index.json, some shards, indexed label stores.
Writes  one PNG.
Holds   images are spread evenly over the data set, so that the same stores give the same sheet.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cliptex.config import Config
from cliptex.files import replacing
from cliptex.images import decode_image
from cliptex.labels import open_store, read_label_index
from cliptex.plugins import find
from cliptex.shards import read_index, read_indexed
from cliptex.tasks.base import Task
from cliptex.tasks.grid import INVALID_COLOUR

CELL_PX = 224
GAP_PX = 10
LINE_PX = 22
SWATCH_PX = 14
MAX_CLASSES = 24
INK, PAPER = (20, 20, 20), (255, 255, 255)


def contact_sheet(
    config: Config, stores: list[str], shard_index: Path, labels_root: Path, out: Path, images: int = 8
) -> None:
    """Draw `images` rows of an image beside its label in each store, and a legend below.

    Where a label failed, its reason is written in its place. Raises CliptexError as `open_store` does.
    """
    entries = read_index(shard_index)["shards"]
    tasks = {store: find("tasks", config.label_stores[store].task)() for store in stores}
    rows, classes = [], {store: Counter() for store in stores}
    for shard, places in _spread([len(entry["keys"]) for entry in entries], images).items():
        entry = entries[shard]
        pairs = read_indexed(entry)
        files = {store: open_store(labels_root / store / "index.json", entry, tasks[store]) for store in stores}
        errors = {store: file.column("error") for store, file in files.items()}
        for place in places:
            cells = [_fitted(decode_image(pairs[place].image), Image.Resampling.LANCZOS)]
            for store, file in files.items():
                label = file.label(place)
                if label is None:
                    cells.append(_message(f"no label: {errors[store][place]}"))
                    continue
                if _class_names(tasks[store]):
                    found = np.unique(tasks[store].classes(label), return_counts=True)
                    classes[store].update(dict(zip(*found, strict=True)))
                cells.append(_fitted(tasks[store].picture(label), Image.Resampling.NEAREST))
            rows.append((f"{pairs[place].key}  {pairs[place].caption}", cells))
    legends = [_legend(tasks[store], classes[store]) for store in stores]
    _draw(["image", *(_title(config, store) for store in stores)], rows, legends, out)


def statistics(config: Config, store: str, labels_root: Path) -> str:
    """The store's index as text: origin, coverage, failures, bytes, classes or ranges."""
    index = read_label_index(config, store, labels_root / store / "index.json")
    lines = [
        f"{store}: {index['task']} by {index['expert']} (licence {index['licence']}, weights"
        f" {str(index['weights_sha256'])[:12]})",
        f"  {index['labelled']} of {index['images']} images labelled ({index['coverage']:.1%}),"
        f" {index['bytes_per_image']:.0f} bytes an image, {index['bytes'] / 1e6:.1f} MB in {len(index['files'])} files,"
        f" codec {index['codec']['name']}",
    ]
    lines += [f"  no label: {reason}: {count}" for reason, count in index["failures"].items()]
    for name, value in index["statistics"]["scalars"].items():
        lines.append(f"  {name}: mean {value['mean']:.3g}, {value['least']:.3g} to {value['greatest']:.3g}")
    classes = sorted(index["statistics"].get("classes", {}).items(), key=lambda item: -item[1]["share"])
    for name, value in classes[:MAX_CLASSES]:
        lines.append(f"  {name}: {value['share']:.2%} of the pixels, in {value['images']} images")
    if len(classes) > MAX_CLASSES:
        lines.append(f"  and {len(classes) - MAX_CLASSES} rarer classes")
    return "\n".join(lines)


def _spread(sizes: list[int], count: int) -> dict[int, list[int]]:
    """Shard -> rows, `count` places spread evenly over shards of these sizes."""
    ends = np.cumsum(sizes)
    total = int(ends[-1])
    chosen: dict[int, list[int]] = {}
    for place in np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)).tolist():
        shard = int(np.searchsorted(ends, place, side="right"))
        chosen.setdefault(shard, []).append(place - (int(ends[shard - 1]) if shard else 0))
    return chosen


def _title(config: Config, store: str) -> str:
    settings = config.label_stores[store]
    task = "" if settings.task == store else f" ({settings.task})"
    return f"{store}{task} by {settings.expert}"


def _class_names(task: Task) -> list[str]:
    return task.codec().get("class_names", [])


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _fitted(pixels: np.ndarray, resample: Image.Resampling) -> Image.Image:
    """A cell with the picture as large as fits, in the middle."""
    image = Image.fromarray(pixels)
    scale = CELL_PX / max(image.size)
    image = image.resize(tuple(max(1, round(side * scale)) for side in image.size), resample)
    cell = Image.new("RGB", (CELL_PX, CELL_PX), PAPER)
    cell.paste(image, ((CELL_PX - image.width) // 2, (CELL_PX - image.height) // 2))
    return cell


def _message(text: str) -> Image.Image:
    cell = Image.new("RGB", (CELL_PX, CELL_PX), (240, 240, 240))
    draw, font = ImageDraw.Draw(cell), _font(13)
    lines, line = [], ""
    for word in text.split():
        if line and draw.textlength(f"{line} {word}", font) > CELL_PX - 20:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    draw.multiline_text((10, 10), "\n".join([*lines, line]), fill=INK, font=font)
    return cell


def _cut(draw: ImageDraw.ImageDraw, text: str, font: Any, width: int) -> str:
    """The text, with an ellipsis where it is wider than `width`."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(f"{text}…", font) > width:
        text = text[:-1]
    return f"{text}…"


def _legend(task: Task, classes: Counter) -> list[tuple[np.ndarray, str]]:
    """Swatches (uint8 [H, W, 3]) and what they mean."""
    invalid = np.full((SWATCH_PX, SWATCH_PX, 3), INVALID_COLOUR, np.uint8)
    if names := _class_names(task):
        colours = task.picture(np.arange(256, dtype=np.uint8)[None])[0]
        found = [code for code, _ in classes.most_common() if code < len(names)]
        legend = [
            (np.full((SWATCH_PX, SWATCH_PX, 3), colours[code], np.uint8), names[code]) for code in found[:MAX_CLASSES]
        ]
        if len(found) > MAX_CLASSES:
            legend.append((np.full((SWATCH_PX, SWATCH_PX, 3), 255, np.uint8), f"{len(found) - MAX_CLASSES} rarer ones"))
        return [*legend, (invalid, "ignore")]
    if task.name == "depth":
        ramp = np.tile(np.linspace(0, 1, 6 * SWATCH_PX, dtype=np.float32), (SWATCH_PX, 1))
        return [(task.picture(ramp), "far to near, per image"), (invalid, "invalid")]
    if task.name == "normals":
        means = {"to the left": (1, 0, 0), "to the right": (-1, 0, 0), "up": (0, 1, 0), "towards the viewer": (0, 0, 1)}
        return [
            *(
                (task.picture(np.tile(np.array([*normal, 1], np.float32), (SWATCH_PX, SWATCH_PX, 1))), f"faces {what}")
                for what, normal in means.items()
            ),
            (invalid, "invalid"),
        ]
    return [(invalid, "invalid")]


def _draw(
    titles: list[str],
    rows: list[tuple[str, list[Image.Image]]],
    legends: list[list[tuple[np.ndarray, str]]],
    out: Path,
) -> None:
    columns, step = len(titles), CELL_PX + GAP_PX
    row_step = CELL_PX + LINE_PX + GAP_PX
    legend_top = GAP_PX + LINE_PX + len(rows) * row_step
    height = legend_top + max((len(legend) for legend in legends), default=0) * LINE_PX + GAP_PX
    sheet = Image.new("RGB", (GAP_PX + columns * step, height), PAPER)
    draw, bold, plain = ImageDraw.Draw(sheet), _font(15), _font(13)
    for column, title in enumerate(titles):
        draw.text((GAP_PX + column * step, GAP_PX), _cut(draw, title, bold, CELL_PX), fill=INK, font=bold)
    for number, (text, cells) in enumerate(rows):
        top = GAP_PX + LINE_PX + number * row_step
        for column, cell in enumerate(cells):
            sheet.paste(cell, (GAP_PX + column * step, top))
        text = _cut(draw, text, plain, columns * step - GAP_PX)
        draw.text((GAP_PX, top + CELL_PX + 2), text, fill=INK, font=plain)
    for column, legend in enumerate(legends, start=1):
        for line, (swatch, text) in enumerate(legend):
            left, top = GAP_PX + column * step, legend_top + line * LINE_PX
            sheet.paste(Image.fromarray(np.ascontiguousarray(swatch)), (left, top))
            left += swatch.shape[1] + 6
            text = _cut(draw, text, plain, CELL_PX - swatch.shape[1] - 6)
            draw.text((left, top - 2), text, fill=INK, font=plain)
    with replacing(out) as scratch:
        sheet.save(scratch, "PNG")
