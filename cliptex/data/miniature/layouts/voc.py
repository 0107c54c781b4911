"""PASCAL VOC 2012: JPEGImages, SegmentationClass, SegmentationObject, Annotations, ImageSets/Segmentation."""

from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from cliptex.benchmarks.voc import CLASS_NAMES
from cliptex.core.progress import track
from cliptex.data.miniature.kinds import KIND_ID, KINDS
from cliptex.data.miniature.layouts import Renderer, save_jpeg, save_png, save_text
from cliptex.data.miniature.scenes import Scene, SceneOptions

SUBJECTS = tuple(kind.name for kind in KINDS if kind.voc)
BORDER = 255


def palette() -> np.ndarray:
    """The official colours uint8 [256, 3]: the index's bits are distributed to red, green and blue, top bit first."""
    out = np.zeros((256, 3), np.uint8)
    index = np.arange(256)
    for bit in range(8):
        for channel in range(3):
            out[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return out


def border(instances: np.ndarray) -> np.ndarray:
    """bool [H, W]: pixels on objects' outlines, next to another object or the background."""
    padded = np.pad(instances, ((0, 1), (0, 1)), mode="edge")
    height, width = instances.shape
    # one pixel wide; the original's five pixels are for images five times as large
    windows = [padded[i : i + height, j : j + width] for i in range(2) for j in range(2)]
    return np.max(windows, axis=0) != np.min(windows, axis=0)


def boxes(instances: np.ndarray, count: int) -> list[tuple[int, int, int, int]]:
    """Boxes of the instances 1..count of a map [H, W]: first column, first row, last column + 1, last row + 1."""
    out = []
    for number in range(1, count + 1):
        rows, columns = np.nonzero(instances == number)
        out.append((int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1))
    return out


def write(renderer: Renderer, benchmark_dir: Path) -> None:
    """Write the tree. The numbers of training and validation images are interleaved, as in the original."""
    folder = benchmark_dir / "VOCdevkit" / "VOC2012"
    splits = [(split, index) for split in ("train", "val") for index in range(renderer.counts[split])]
    order = np.random.default_rng([renderer.seed, renderer.stream("train")]).permutation(len(splits))
    listed: dict[str, list[str]] = {"train": [], "val": []}
    for position, which in enumerate(track(order.tolist(), "render voc")):
        split, index = splits[which]
        name = f"2012_{position + 1:06d}"
        scene = renderer.scene(split, index, SceneOptions(subject=SUBJECTS[index % len(SUBJECTS)], things=(0, 2)))
        _write_one(folder, name, scene)
        listed[split].append(name)
    for split, names in listed.items():
        save_text(folder / "ImageSets" / "Segmentation" / f"{split}.txt", names)
    save_text(folder / "ImageSets" / "Segmentation" / "trainval.txt", sorted(listed["train"] + listed["val"]))


def _write_one(folder: Path, name: str, scene: Scene) -> None:
    voc_names = [KINDS[KIND_ID[seen.kind]].voc for seen in scene.objects]
    classes = np.array([0, *(CLASS_NAMES.index(voc) if voc else 0 for voc in voc_names)], np.uint8)
    # only objects with a VOC class are numbered
    numbers = np.where(classes > 0, np.cumsum(classes > 0), 0).astype(np.uint8)
    objects = numbers[scene.instances]
    ring = border(objects)
    save_jpeg(folder / "JPEGImages" / f"{name}.jpg", scene)
    colours = palette()
    save_png(folder / "SegmentationClass" / f"{name}.png", np.where(ring, BORDER, classes[scene.instances]), colours)
    save_png(folder / "SegmentationObject" / f"{name}.png", np.where(ring, BORDER, objects), colours)
    height, width = objects.shape
    lines = [
        "<annotation>",
        f"\t<folder>VOC2012</folder>\n\t<filename>{name}.jpg</filename>",
        "\t<source>\n\t\t<database>miniature</database>\n\t</source>",
        f"\t<size>\n\t\t<width>{width}</width>\n\t\t<height>{height}</height>\n\t\t<depth>3</depth>\n\t</size>",
        "\t<segmented>1</segmented>",
    ]
    for voc, (left, top, right, bottom) in zip(voc_names, boxes(scene.instances, len(voc_names)), strict=True):
        if voc:
            cut = int(left == 0 or top == 0 or right == width or bottom == height)
            lines += [
                f"\t<object>\n\t\t<name>{escape(voc)}</name>\n\t\t<truncated>{cut}</truncated>\n\t\t<difficult>0</difficult>",
                f"\t\t<bndbox>\n\t\t\t<xmin>{left + 1}</xmin>\n\t\t\t<ymin>{top + 1}</ymin>",  # 1-based, inclusive
                f"\t\t\t<xmax>{right}</xmax>\n\t\t\t<ymax>{bottom}</ymax>\n\t\t</bndbox>\n\t</object>",
            ]
    save_text(folder / "Annotations" / f"{name}.xml", [*lines, "</annotation>"])
