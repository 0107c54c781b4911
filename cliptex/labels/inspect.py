"""Look at label stores: a contact sheet of images beside their labels, and the statistics of each store.

Reads   results/shards/index.json, some shards, indexed label stores.
Writes  one PNG.
Holds   images are spread evenly over the data set, so that the same stores give the same sheet.
"""

from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from cliptex.config import Config
from cliptex.core.plugins import find
from cliptex.data.images import decode_image
from cliptex.data.shards import read_index, read_indexed
from cliptex.labels.label import open_store, read_label_index
from cliptex.tasks.contact_sheet import MAX_CLASSES, class_names, draw_sheet, fitted, legend, message


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
            cells = [fitted(decode_image(pairs[place].image), Image.Resampling.LANCZOS)]
            for store, file in files.items():
                label = file.label(place)
                if label is None:
                    cells.append(message(f"no label: {errors[store][place]}"))
                    continue
                if class_names(tasks[store]):
                    found = np.unique(tasks[store].classes(label), return_counts=True)
                    classes[store].update(dict(zip(*found, strict=True)))
                cells.append(fitted(tasks[store].picture(label), Image.Resampling.NEAREST))
            rows.append((f"{pairs[place].key}  {pairs[place].caption}", cells))
    legends = [legend(tasks[store], classes[store]) for store in stores]
    draw_sheet(["image", *(_title(config, store) for store in stores)], rows, legends, out)


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
