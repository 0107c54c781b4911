"""Small data sets in the layouts of Cityscapes, PASCAL-Context, COCO-Stuff, KITTI, ObjectNet and ImageNet's variants.

Names and text files are as publishers write them; each writer names its source. See `official_layouts`.
"""

import json
from pathlib import Path

import numpy as np
from official_layouts import marked, save, scene
from PIL import Image
from scipy.io import savemat

from cliptex.benchmarks.imagenet import official_wnids
from cliptex.benchmarks.pascal_context import CLASS_NAMES

CITY_IDS = [0, 1, 4, 7, 9, 11, 26, 30, 33]
"""Ids with and without a train id: 1 is "ego vehicle", 9 "parking", 30 "trailer"."""


def write_cityscapes(root: Path, train: int, val: int, masks: str = "labelIds", **size: int) -> Path:
    """leftImg8bit and gtFine by split and city (README of github.com/mcordts/cityscapesScripts), with the further
    files of gtFine, and the test split, whose masks are empty. masks: or labelTrainIds, which the scripts write."""
    cities = {"train": ["aachen", "zurich"], "val": ["lindau", "frankfurt"], "test": ["berlin"]}
    for split, count in (("train", train), ("val", val), ("test", 1)):
        for number in range(count):
            city = cities[split][number % len(cities[split])]
            one = scene(100 * len(split) + number, CITY_IDS, **size)
            stem = f"{city}_{number:06d}_{number + 19:06d}"
            save(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", one["image"])
            ids = one["mask"] if split != "test" else np.zeros_like(one["mask"])
            folder = root / "gtFine" / split / city
            if masks == "labelTrainIds":
                ids = train_ids(ids)
            save(folder / f"{stem}_gtFine_{masks}.png", ids)
            save(folder / f"{stem}_gtFine_color.png", np.zeros((*ids.shape, 4), np.uint8))
            save(folder / f"{stem}_gtFine_instanceIds.png", ids.astype(np.uint16))
            (folder / f"{stem}_gtFine_polygons.json").write_text('{"imgHeight": 48, "imgWidth": 48, "objects": []}')
    for name in ("README", "license.txt"):
        (root / name).write_text("The Cityscapes Dataset\n")
    return marked(root)


def train_ids(ids: np.ndarray) -> np.ndarray:
    """By the table of torchvision's Cityscapes, which is that of cityscapesScripts."""
    from torchvision.datasets import Cityscapes

    table = np.full(256, 255, np.uint8)
    for one in Cityscapes.classes:
        if one.id >= 0:
            table[one.id] = one.train_id
    return table[ids]


def context_labels() -> list[str]:
    """labels.txt of PASCAL-Context: 459 lines in alphabetical order, at whose ends some have a blank. The numbers of
    the 59 classes are those in mmsegmentation's tools/dataset_converters/pascal_context.py."""
    numbers = [2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144]
    numbers += [158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354]
    numbers += [355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458]
    names = dict(zip(numbers, CLASS_NAMES, strict=True))
    return [f"{number}: {names.get(number, f'other {number}')}{' ' * (number == 284)}" for number in range(1, 460)]


def write_pascal_context(root: Path, train: int, val: int, converted: bool = False, **size: int) -> Path:
    """VOC 2010's images and lists (devkit_doc of VOC2010) and trainval/*.mat of 459 classes with labels.txt
    (cs.stanford.edu/~roozbeh/pascal-context), or mmsegmentation's SegmentationClassContext and its own lists."""
    folder = root / "VOCdevkit" / "VOC2010"
    main = folder / "ImageSets" / ("SegmentationContext" if converted else "Main")
    main.mkdir(parents=True)
    number = 0
    for split, count in (("train", train), ("val", val)):
        names = []
        for _ in range(count):
            number += 1
            names.append(name := f"2008_{number:06d}")
            one = scene(number, [1, 2, 3, 4, 5], **size)
            save(folder / "JPEGImages" / f"{name}.jpg", one["image"], quality=95)
            numbers = np.array([0, 1, 2, 284, 458, 459], np.uint16)[context_classes(number, **size)]
            if converted:
                classes = np.array([0, 0, 1, 37, 59, 0], np.uint8)[context_classes(number, **size)]
                save(folder / "SegmentationClassContext" / f"{name}.png", classes)
            else:
                (root / "trainval").mkdir(exist_ok=True)
                savemat(root / "trainval" / f"{name}.mat", {"LabelMap": numbers}, do_compression=True)
        (main / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    if not converted:
        (root / "labels.txt").write_text("".join(f"{line}\n" for line in context_labels()))
        objects = "".join(f"2008_{n:06d} {1 - 2 * (n % 2):2d}\n" for n in range(1, number + 1))
        (main / "aeroplane_trainval.txt").write_text(objects)
    return marked(root)


def context_classes(number: int, height: int = 48, width: int = 48) -> np.ndarray:
    """0 unlabelled, 1 a class that is not among the 59, 2 aeroplane, 3 person, 4 wood, 5 the last of the 459."""
    return scene(number, [1, 2, 3, 4, 5], height, width)["mask"]


STUFF_VALUES = [0, 12, 89, 91, 181, 255]
"""person, stop sign (after street sign, which has no annotations), toothbrush, banner, wood, and unlabelled."""


def write_coco_stuff(root: Path, train: int, val: int, mmseg: bool = False, **size: int) -> Path:
    """train2017/, val2017/ and stuffthingmaps/ (mmdetection's docs), or images/ and annotations/ (mmsegmentation's,
    whose converter adds *_labelTrainIds.png). Values are the numbers of github.com/nightrome/cocostuff's labels.txt
    minus 1, and 255."""
    images, maps = ("images", "annotations") if mmseg else (".", "stuffthingmaps")
    for split, count, first in (("train2017", train, 1), ("val2017", val, 10_001)):
        for number in range(first, first + count):
            one = scene(number, [1, 2, 3, 4, 5], **size)
            values = np.array([255, *STUFF_VALUES[:5]], np.uint8)[one["mask"]]
            save(root / images / split / f"{number:012d}.jpg", one["image"], quality=95)
            save(root / maps / split / f"{number:012d}.png", values)
            if mmseg:
                save(root / maps / split / f"{number:012d}_labelTrainIds.png", np.zeros_like(values))
    return marked(root)


def write_kitti(root: Path, train: int, test: int, height: int = 24, width: int = 80, suffix: str = "png") -> Path:
    """Raw drives, depth maps in both splits of data_depth_annotated.zip, and BTS's lists
    (github.com/cleinc/bts, train_test_inputs), where one test image has no depth map ("None").

    A depth map is uint16, metres x 256, and 0 without a measurement (development kit of KITTI's depth benchmark).
    """
    root.mkdir(parents=True, exist_ok=True)
    for name, count, drive, split in (
        ("train", train, "2011_09_30_drive_0028_sync", "train"),
        ("test", test, "2011_09_26_drive_0002_sync", "val"),
    ):
        lines = []
        for number in range(count + (name == "test")):
            frame = f"{number * 3:010d}"
            one = scene(number + 50 * (name == "test"), [1, 2], height, width)
            date = drive[:10]
            save(root / date / drive / "image_02/data" / f"{frame}.{suffix}", one["image"])
            depth_file = f"{drive}/proj_depth/groundtruth/image_02/{frame}.png"
            has_depth = name == "train" or number != 1
            if has_depth:
                save(root / "data_depth_annotated" / split / depth_file, kitti_units(number, height, width))
            truth = depth_file if has_depth else "None"
            lines.append(f"{date}/{drive}/image_02/data/{frame}.png {truth} 721.5377\n")
        (root / f"eigen_{name}_files_with_gt.txt").write_text("".join(lines))
    return marked(root)


def kitti_units(number: int, height: int = 24, width: int = 80) -> np.ndarray:
    """A ramp from 2.5 to 70 m down the rows, of which every other pixel was measured."""
    rows = np.linspace(70, 2.5, height)[:, None] + np.linspace(0, 1, width) + number
    units = np.round(rows * 256).astype(np.uint16)
    units[::2, ::2] = 0
    return units


VARIANTS = {
    "imagenet_v2": ("imagenetv2-matched-frequency-format-val", "{number:02x}ab.jpeg"),
    "imagenet_r": ("imagenet-r", "sketch_{number}.jpg"),
    "imagenet_a": ("imagenet-a", "0.00{number}116_digital clock _ digital clock_0.865662.jpg"),
    "imagenet_sketch": ("sketch", "sketch_{number}.JPEG"),
}
"""Benchmark -> folder, and names of images, which repeat over the classes."""
POSITIONS = [1, 10, 2, 999]
"""Positions of the classes that are written, among ImageNet's 1,000."""


def write_class_folders(root: Path, name: str, each: int, **size: int) -> Path:
    """A folder of images for each class: by wnid, or for ImageNet-V2 by number (github.com/modestyachts/ImageNetV2).
    The archives of ImageNet-A and ImageNet-R have a README.txt next to the folders."""
    folder, file = VARIANTS[name]
    for position in POSITIONS:
        one = str(position) if name == "imagenet_v2" else official_wnids()[position]
        for number in range(each):
            image = scene(10 * position + number, [1, 2, 3], **size)["image"]
            save(root / folder / one / file.format(number=number), image, quality=95)
    (root / folder / "README.txt").write_text("Natural adversarial examples\n")
    return marked(root)


OBJECTNET = {"alarm_clock": "Alarm clock", "backpack": "Backpack", "banana": "Banana", "air_freshener": "Air freshener"}
IN_IMAGENET = {
    "Backpack": "backpack, back pack, knapsack, packsack, rucksack, haversack",
    "Alarm clock": "analog clock; digital clock",
    "Banana": "banana",
}


def write_objectnet(root: Path, each: int, height: int = 20, width: int = 24) -> Path:
    """objectnet-1.0/ with images that have a red border of one pixel, and two tables of mappings/ (objectnet.dev)."""
    folder = root / "objectnet-1.0"
    for position, name in enumerate(OBJECTNET):
        for number in range(each):
            image = scene(10 * position + number, [1, 2, 3], height, width)["image"]
            image[[0, -1]] = image[:, [0, -1]] = (255, 0, 0)
            save(folder / "images" / name / f"{number}c9d1b8a42ce94.png", image)
    (folder / "mappings").mkdir()
    for name, table in (("folder_to_objectnet_label", OBJECTNET), ("objectnet_to_imagenet_1k", IN_IMAGENET)):
        (folder / "mappings" / f"{name}.json").write_text(json.dumps(table, indent=4))
    return marked(root)


def write_grey(path: Path, values: np.ndarray) -> None:
    """A grey PNG in place of another one."""
    Image.fromarray(values).save(path)
