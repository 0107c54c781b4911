"""ADE20K scene parsing: ADEChallengeData2016 with images, annotations, objectInfo150.txt, sceneCategories.txt."""

from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np

from cliptex.core.progress import track
from cliptex.data.miniature.kinds import KINDS
from cliptex.data.miniature.layouts import Renderer, save_jpeg, save_png, save_text
from cliptex.data.miniature.scenes import SceneOptions


@cache
def classes() -> list[tuple[str, bool]]:
    """(name, is stuff) of the 150 official classes; a class's number is its position + 1."""
    text = files("cliptex.data.miniature.layouts").joinpath("ade20k_classes.tsv").read_text(encoding="utf-8")
    return [(row[2], row[1] == "1") for row in (line.split("\t") for line in text.splitlines()[1:])]


def class_of_kind() -> np.ndarray:
    """uint8 [number of kinds]: class 1..150 of each kind, 0 = other."""
    number = {name: position + 1 for position, (name, _) in enumerate(classes())}
    return np.array([number[kind.ade20k] if kind.ade20k else 0 for kind in KINDS], np.uint8)


def write(renderer: Renderer, benchmark_dir: Path) -> None:
    """Write the tree. Mostly scenes with furniture and stuff that has no COCO class."""
    folder = benchmark_dir / "ADEChallengeData2016"
    table = class_of_kind()
    options = SceneOptions(things=(0, 2), scenery=1.8, closeness=0.2)
    pixels = np.zeros(151, np.int64)
    seen = {"train": np.zeros(151, np.int64), "val": np.zeros(151, np.int64)}
    categories = []
    for split, official in (("train", "training"), ("val", "validation")):
        for index in track(range(renderer.counts[split]), f"render ade20k {split}"):
            scene = renderer.scene(split, index, options)
            name = f"ADE_{split}_{index + 1:08d}"
            labels = table[scene.kinds]
            save_jpeg(folder / "images" / official / f"{name}.jpg", scene)
            save_png(folder / "annotations" / official / f"{name}.png", labels)
            count = np.bincount(labels.ravel(), minlength=151)
            pixels += count
            seen[split] += count > 0
            categories.append(f"{name} {scene.category}")
    rows = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    for number, (name, stuff) in enumerate(classes(), start=1):
        share = pixels[number] / max(pixels[1:].sum(), 1)
        rows.append(f"{number}\t{share:.4f}\t{seen['train'][number]}\t{seen['val'][number]}\t{int(stuff)}\t{name}")
    save_text(folder / "objectInfo150.txt", rows)
    save_text(folder / "sceneCategories.txt", categories)
