"""Small data sets in the six official layouts, for tests: coloured rectangles whose colour is their class."""

import json
from pathlib import Path

import h5py
import numpy as np
from PIL import Image
from scipy.io import savemat

from cliptex.benchmarks.coco_names import coco_categories

VOC_PALETTE = [
    sum((((index >> (3 * bit + channel)) & 1) << (7 - bit)) for bit in range(8))
    for index in range(256)
    for channel in range(3)
]


def colour(label: int) -> np.ndarray:
    """A colour that tells the label, the same in every picture."""
    return np.array([37 * label + 40, 91 * label + 80, 151 * label + 120]) % 256


def scene(seed: int, classes: list[int], height: int = 48, width: int = 48) -> dict:
    """Rectangles of random classes: `image`, `mask` (0 = none), `boxes` (x0, y0, x1, y1, class), back to front."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    image = np.empty((height, width, 3))
    image[:] = 128
    boxes = []
    for _ in range(rng.integers(1, 4)):
        label = int(rng.choice(classes))
        w, h = rng.integers(width // 4, width // 2), rng.integers(height // 4, height // 2)
        x, y = rng.integers(0, width - w), rng.integers(0, height - h)
        mask[y : y + h, x : x + w] = label
        image[y : y + h, x : x + w] = colour(label)
        boxes.append((int(x), int(y), int(x + w), int(y + h), label))
    image += rng.normal(0, 6, image.shape)
    return {"image": np.clip(image, 0, 255).astype(np.uint8), "mask": mask, "boxes": boxes}


def save(path: Path, pixels: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def write_voc(root: Path, train: int, val: int, **size: int) -> Path:
    """VOCdevkit/VOC2012 with palette masks and a ring of 255 around the picture."""
    folder = root / "VOCdevkit" / "VOC2012"
    listing = folder / "ImageSets" / "Segmentation"
    listing.mkdir(parents=True)
    number = 0
    for split, count in (("train", train), ("val", val)):
        names = []
        for _ in range(count):
            number += 1
            name = f"2007_{number:06d}"
            one = scene(number, [1, 7, 15, 20], **size)
            save(folder / "JPEGImages" / f"{name}.jpg", one["image"], quality=95)
            one["mask"][[0, -1]] = 255
            mask = Image.fromarray(one["mask"])
            mask.putpalette(VOC_PALETTE)
            (folder / "SegmentationClass").mkdir(exist_ok=True)
            mask.save(folder / "SegmentationClass" / f"{name}.png")
            names.append(name)
        (listing / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


def write_ade20k(root: Path, train: int, val: int, **size: int) -> Path:
    """ADEChallengeData2016: 0 is "other", 1..150 are the classes."""
    folder = root / "ADEChallengeData2016"
    for split, prefix, count, first in (("training", "train", train, 1), ("validation", "val", val, 10_001)):
        for number in range(1, count + 1):
            one = scene(first + number, [1, 2, 4, 77, 150], **size)
            name = f"ADE_{prefix}_{number:08d}"
            save(folder / "images" / split / f"{name}.jpg", one["image"], quality=95)
            save(folder / "annotations" / split / f"{name}.png", one["mask"])
    names = {1: "wall", 2: "building, edifice", 150: "flag"}
    rows = [f"{n}\t0.1\t10\t1\t{names.get(n, f'thing {n}')}   " for n in range(1, 151)]
    (folder / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n" + "\n".join(rows))
    return root


def write_coco(root: Path, train: int, val: int, **size: int) -> Path:
    """{train,val}2017 and instances_*.json with polygons, one crowd (RLE), and one image without objects a split."""
    categories = [{"id": n, "name": name, "supercategory": group} for n, name, group in coco_categories()]
    for split, count, first in (("train", train, 1), ("val", val, 10_001)):
        images, annotations = [], []
        for index in range(count):
            number = first + index
            one = scene(number, [1, 13, 90], **size)
            if index == 1:
                one["image"][:], one["boxes"] = 128, []
            height, width = one["image"].shape[:2]
            name = f"{number:012d}.jpg"
            save(root / f"{split}2017" / name, one["image"], quality=95)
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            for x0, y0, x1, y1, label in one["boxes"]:
                annotations.append(
                    {
                        "id": len(annotations) + 1 + first * 100,
                        "image_id": number,
                        "category_id": label,
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": (x1 - x0) * (y1 - y0),
                        "iscrowd": 0,
                        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
                    }
                )
            if index == 2:
                # column-major runs: 8 pixels off, then 4 on, the rest off
                counts = [8, 4, height * width - 12]
                crowd = {"segmentation": {"size": [height, width], "counts": counts}, "iscrowd": 1}
                annotations.append(
                    crowd | {"id": 1, "image_id": number, "category_id": 1, "bbox": [0, 8, 1, 4], "area": 4}
                )
        path = root / "annotations" / f"instances_{split}2017.json"
        path.parent.mkdir(exist_ok=True)
        # the official files list categories by id; a reader must not rely on it
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories[::-1]}))
    return root


def write_nyuv2(root: Path, train: int, test: int, height: int = 36, width: int = 48) -> Path:
    """nyu_depth_v2_labeled.mat with MATLAB's axes reversed, 1-based splits.mat, normals as PNG."""
    count = train + test
    images, depths = np.empty((count, height, width, 3), np.uint8), np.empty((count, height, width), np.float32)
    order = np.random.default_rng(0).permutation(count) + 1
    for index in range(count):
        one = scene(index, [1, 2, 3], height, width)
        images[index] = one["image"]
        depths[index] = 2 + one["mask"] + np.linspace(0, 1, height)[:, None]
        depths[index, 0, 0] = 0
        normals = np.full((height, width, 3), (127, 127, 255), np.uint8)
        normals[one["mask"] == 1] = (127, 255, 127)
        normals[one["mask"] == 2] = (255, 127, 127)
        normals[0, :] = 0
        split = "train" if index + 1 in order[:train] else "test"
        save(root / "nyu_dataset" / split / "norm" / f"{index + 1:06d}.png", normals)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = images.transpose(0, 3, 2, 1)
        file["depths"] = depths.transpose(0, 2, 1)
    savemat(
        root / "splits.mat",
        {"trainNdxs": np.sort(order[:train])[:, None], "testNdxs": np.sort(order[train:])[:, None]},
    )
    return root


WNIDS = ["n02084071", "n02121808", "n02958343"]


def write_imagenet(root: Path, train: int, val: int, flat: bool = True, classes: int = 3, **size: int) -> Path:
    """train/<wnid>/ and val, flat with the devkit (whose ids are NOT in the order of the wnids) or in folders."""
    wnids = WNIDS + [f"n9{number:07d}" for number in range(classes - 3)]
    ids = {wnid: classes - index for index, wnid in enumerate(wnids)}
    for number in range(train):
        label = number % classes
        image = scene(number, [label + 1], **size)["image"]
        save(root / "train" / wnids[label] / f"{wnids[label]}_{number}.JPEG", image, quality=95)
    truth = []
    for number in range(1, val + 1):
        label = int(np.random.default_rng(number).integers(classes))
        image = scene(10_000 + number, [label + 1], **size)["image"]
        folder = root / "val" if flat else root / "val" / wnids[label]
        save(folder / f"ILSVRC2012_val_{number:08d}.JPEG", image, quality=95)
        truth.append(ids[wnids[label]])
    if flat:
        data = root / "ILSVRC2012_devkit_t12" / "data"
        data.mkdir(parents=True)
        (data / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(map(str, truth)) + "\n")
        kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
        rows = [(ids[wnid], wnid, "words", 0) for wnid in wnids] + [(classes + 1, "n00001740", "entity", 3)]
        synsets = np.array(rows, dtype=kind)[:, None]
        savemat(data / "meta.mat", {"synsets": synsets})
    words = ["dog, domestic dog", "cat, true cat", "car, auto", *(f"thing {n}, odd" for n in range(classes - 3))]
    lines = [f"{wnid} {name}" for wnid, name in zip(wnids, words, strict=True)]
    (root / "LOC_synset_mapping.txt").write_text("\n".join(lines) + "\n")
    return root


CATEGORIES = ["apartment_building-outdoor", "beach", "living_room"]


def write_places365(root: Path, train: int, val: int, **size: int) -> Path:
    """places365_standard/{train,val}/<category>/; file names repeat over categories."""
    for split, count, first in (("train", train, 0), ("val", val, 10_000)):
        for number in range(count):
            label = number % 3
            image = scene(first + number, [label + 1], **size)["image"]
            name = f"{number // 3 + 1:08d}.jpg"
            save(root / "places365_standard" / split / CATEGORIES[label] / name, image, quality=95)
    return root
