"""Draw what a model's heads say of some images: each image beside its segmentation, depth and normals.

Reads   a trained model's folder, images.
Writes  one PNG.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cliptex.core.errors import CliptexError
from cliptex.models.inference import TrainedModel, read_picture
from cliptex.tasks.contact_sheet import class_names, draw_sheet, fitted, legend


def draw_predictions(model: TrainedModel, images: Sequence[Path], out: Path) -> dict[str, list[str]]:
    """Write a sheet with a row an image and a column a head, and below it the classes that occur.

    Returns the names of the classes by label store, most frequent first. Raises CliptexError, before anything is
    written, for a model without heads, an image that cannot be used, or an `out` that is no PNG.
    """
    if Path(out).suffix.lower() != ".png":
        raise CliptexError(f"--out: {out} is not a .png file; give it that ending")
    rows, counts = [], {store: Counter() for store in model.tasks}
    for path in images:
        pixels = read_picture(path)
        cells = [fitted(pixels, Image.Resampling.LANCZOS)]
        for store, label in model.predict(pixels).items():
            task = model.tasks[store]
            if class_names(task):
                counts[store].update(dict(zip(*np.unique(task.classes(label), return_counts=True), strict=True)))
            cells.append(fitted(task.picture(label), Image.Resampling.NEAREST))
        rows.append((str(path), cells))
    titles = ["image", *(_title(store, task.name) for store, task in model.tasks.items())]
    draw_sheet(titles, rows, [legend(task, counts[store]) for store, task in model.tasks.items()], out)
    return {
        store: [class_names(model.tasks[store])[code] for code, _ in found.most_common()]
        for store, found in counts.items()
        if found
    }


def _title(store: str, task: str) -> str:
    return store if store == task else f"{store} ({task})"
