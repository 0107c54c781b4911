"""Draw a model's dense predictions: images next to their predicted segmentation, depth and normals.

Reads   a trained model's folder, images.
Writes  one PNG.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cliptex.core.errors import CliptexError
from cliptex.models.inference import TrainedModel, read_image
from cliptex.tasks.contact_sheet import class_names, draw_sheet, fitted, legend


def draw_predictions(model: TrainedModel, images: Sequence[Path], out: Path) -> dict[str, list[str]]:
    """Write a sheet with one row per image, one column per head, and a legend of the predicted classes.

    Returns the names of these classes by label store, most frequent first. Raises CliptexError, before anything is
    written, for a model without heads, an unusable image, or an `out` that is not a PNG.
    """
    if Path(out).suffix.lower() != ".png":
        raise CliptexError(f"--out: {out} is not a .png file; give it that suffix")
    rows, counts = [], {store: Counter() for store in model.tasks}
    for path in images:
        pixels = read_image(path)
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
        store: [class_names(model.tasks[store])[code] for code, _ in pixels.most_common()]
        for store, pixels in counts.items()
        if pixels
    }


def _title(store: str, task: str) -> str:
    return store if store == task else f"{store} ({task})"
