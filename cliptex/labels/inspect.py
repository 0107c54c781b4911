"""Inspect label stores: a contact sheet of images and their labels, and the statistics of each store.

Reads   results/shards/index.json, some shards, indexed label stores.
Writes  one PNG.
Holds   images are spread evenly over the data set, so that the same stores give the same sheet.
"""

from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from cliptex.config import Config
from cliptex.core.errors import working_on
from cliptex.data.images import decode_image
from cliptex.data.shard_index import read_index, read_indexed
from cliptex.labels.store import open_store, read_label_index, rows_by_shard, task_of_store
from cliptex.tasks.contact_sheet import MAX_CLASSES, class_names, draw_sheet, fitted, legend, message


def contact_sheet(
    config: Config, stores: list[str], shard_index: Path, labels_dir: Path, out: Path, images: int = 8
) -> None:
    """Draw `images` rows, each an image and its label in every store, and a legend below. A missing label is replaced
    by its reason. Raises CliptexError as `open_store` does."""
    entries = read_index(shard_index)["shards"]
    indices = {store: labels_dir / store / "index.json" for store in stores}
    tasks = {store: task_of_store(config, store, index) for store, index in indices.items()}
    rows, classes = [], {store: Counter() for store in stores}
    for shard, shard_rows in _spread([len(entry["keys"]) for entry in entries], images).items():
        entry = entries[shard]
        pairs = read_indexed(entry)
        files = {store: open_store(index, entry, tasks[store]) for store, index in indices.items()}
        errors = {store: file.column("error") for store, file in files.items()}
        for row in shard_rows:
            with working_on(f"{entry['path']}, key {pairs[row].key!r}"):
                cells = [fitted(decode_image(pairs[row].image), Image.Resampling.LANCZOS)]
                for store, file in files.items():
                    label = file.label(row)
                    if label is None:
                        cells.append(message(f"no label: {errors[store][row]}"))
                        continue
                    if class_names(tasks[store]):
                        codes_and_counts = np.unique(tasks[store].classes(label), return_counts=True)
                        classes[store].update(dict(zip(*codes_and_counts, strict=True)))
                    cells.append(fitted(tasks[store].picture(label), Image.Resampling.NEAREST))
                rows.append((f"{pairs[row].key}  {pairs[row].caption}", cells))
    titles = ["image"]
    for store in stores:
        task = config.label_stores[store].task
        titles.append(f"{store}{'' if task == store else f' ({task})'} by {config.label_stores[store].origin}")
    draw_sheet(titles, rows, [legend(tasks[store], classes[store]) for store in stores], out)


def statistics(config: Config, store: str, labels_dir: Path) -> str:
    """The store's index as text: origin, coverage, failures, size, and classes or value ranges."""
    index = read_label_index(config, store, labels_dir / store / "index.json")
    lines = [
        f"{store}: {index['task']} by {index['expert']} (licence {index['licence']}, weights"
        f" {str(index['weights_sha256'])[:12]})",
        f"  {index['labelled']} of {index['images']} images labelled ({index['coverage']:.1%}),"
        f" {index['bytes_per_image']:.0f} bytes an image, {index['bytes'] / 1e6:.1f} MB in {len(index['files'])} files,"
        f" codec {index['codec']['name']}",
    ]
    if taken := index.get("from"):
        lines.append(f"  taken from {taken['source']}, which has {taken['found']} of the images ({taken['share']:.1%})")
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
    """Shard -> rows of `count` images spread evenly over shards of these sizes."""
    total = sum(sizes)
    return rows_by_shard(sizes, np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)))
