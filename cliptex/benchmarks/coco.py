"""COCO 2017 detection and instance segmentation: {train,val}2017/ and annotations/instances_{train,val}2017.json."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cliptex.benchmarks.base import Benchmark
from cliptex.benchmarks.coco_annotations import check_annotations, check_images
from cliptex.benchmarks.coco_panoptic import StuffRegions
from cliptex.benchmarks.reading import Lazy, existing, read_rgb, require_files
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json

UNPACK = "unpack annotations_trainval2017.zip, train2017.zip and val2017.zip here"
FOLDERS = {"train": "train2017", "eval": "val2017"}
NUM_CHECKED = 16
"""Number of images whose panoptic annotations are read as a check."""
log = logging.getLogger("cliptex")


class Coco(Benchmark):
    """`train2017` and `val2017`, including images without objects. A label (0..79) is the position of a category when
    sorted by its sparse id (1..90)."""

    name = "coco"
    tasks = ("detection",)
    eval_split = "val2017"
    official_counts: ClassVar[dict[str, int]] = {"train": 118_287, "eval": 5_000}

    def __init__(self, root: Path, mark: Mapping[str, Any] | None = None):
        super().__init__(root, mark)
        self._annotations: dict[str, dict[str, Any]] = {}
        self._without_mask: dict[str, list[int]] = {}

    def annotation_file(self, part: str) -> Path:
        return self.root / "annotations" / f"instances_{FOLDERS[part]}.json"

    def annotations(self, part: str) -> dict[str, Any]:
        """The official JSON of a part, with keys images, annotations, categories (in file order), checked and completed
        by `check_annotations`."""
        if part not in self._annotations:
            path = existing(self.annotation_file(part), UNPACK)
            data = read_json(path)
            try:
                without_mask = check_annotations(data)
            except ValueError as error:
                raise CliptexError(f"{path}: {error}; {UNPACK}") from error
            if without_mask:
                some = f"annotation {without_mask[0]} and {len(without_mask) - 1:,} others"
                log.warning("%s: %s have no segmentation: they count for boxes, and their masks are empty", path, some)
            self._annotations[part], self._without_mask[part] = data, without_mask
        return self._annotations[part]

    @cached_property
    def category_ids(self) -> list[int]:
        """Sparse category ids in label order."""
        return sorted(category["id"] for category in self.annotations("eval")["categories"])

    @cached_property
    def class_names(self) -> list[str]:
        names = {category["id"]: category["name"] for category in self.annotations("eval")["categories"]}
        return [names[number] for number in self.category_ids]

    def captions(self, part: str) -> list[tuple[Path, list[str]]]:
        """(image file, its captions) of each image of a part, in file order, from captions_{train,val}2017.json."""
        path = existing(self.root / "annotations" / f"captions_{FOLDERS[part]}.json", UNPACK)
        data = read_json(path)
        try:
            captions: dict[int, list[str]] = {number: [] for number in check_images(data)}
            for annotation in data["annotations"]:
                caption, number = annotation.get("caption"), annotation.get("image_id")
                if not isinstance(caption, str) or number not in captions:
                    raise ValueError(f"annotation {annotation['id']} is not a caption of one of its images")
                # a few official captions have line breaks, or spaces at the end
                captions[number].append(" ".join(caption.split()))
        except ValueError as error:
            raise CliptexError(f"{path}: {error}; {UNPACK}") from error
        if missing := [number for number, texts in captions.items() if not texts]:
            raise CliptexError(f"{path}: image {missing[0]} has no caption; {UNPACK}")
        folder = self.root / FOLDERS[part]
        return [(folder / image["file_name"], captions[image["id"]]) for image in data["images"]]

    def stuff(self, part: str) -> StuffRegions:
        """The regions of stuff of a part, from annotations/panoptic_{train,val}2017.json and its PNGs."""
        return StuffRegions(self.root, FOLDERS[part])

    def read(self, part: str) -> Sequence[dict[str, Any]]:
        data = self.annotations(part)
        if sorted(category["id"] for category in data["categories"]) != self.category_ids:
            raise CliptexError(f"{self.annotation_file(part)}: its categories differ from the other split's; {UNPACK}")
        objects = defaultdict(list)
        for annotation in data["annotations"]:
            objects[annotation["image_id"]].append(annotation)
        images = sorted(data["images"], key=lambda image: image["id"])
        return Lazy(images, lambda image: self._read(image, objects[image["id"]], part))

    def names(self, part: str) -> Sequence[str]:
        return [image["file_name"] for image in self.annotations(part)["images"]]

    def prepare(self) -> dict[str, Any]:
        """Check that all annotated images exist. Returns the ids of up to 20 annotations without a segmentation."""
        for part in self.parts:
            require_files(self.root / FOLDERS[part], self.names(part), UNPACK)
        without = {part: {"number": len(ids), "ids": ids[:20]} for part, ids in self._without_mask.items() if ids}
        return {"without_segmentation": without} if without else {}

    def prepare_part(self, part: str) -> dict[str, Any]:
        """Check that each evaluation image has panoptic annotations, and read some of them."""
        images, stuff = self.annotations("eval")["images"], self.stuff("eval")
        stuff.require_images([str(image["id"]) for image in images])
        for image in images[:: max(1, len(images) // NUM_CHECKED)]:
            stuff.of(str(image["id"]), (image["height"], image["width"]))
        return {"counts": {"eval": len(images)}}

    def _read(self, image: dict[str, Any], objects: list[dict[str, Any]], part: str) -> dict[str, Any]:
        path = self.root / FOLDERS[part] / image["file_name"]
        pixels = read_rgb(path)
        height, width = pixels.shape[:2]
        if (height, width) != (image["height"], image["width"]):
            annotated = f"{image['width']} x {image['height']} in the annotations"
            raise CliptexError(f"{path}: is {width} x {height}, but {annotated}; {UNPACK}")
        label = {number: index for index, number in enumerate(self.category_ids)}
        boxes = np.array([item["bbox"] for item in objects], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]  # the files have x, y, width, height
        masks = [decode_segmentation(item["segmentation"], height, width) for item in objects]
        return {
            "id": str(image["id"]),
            "image": pixels,
            "boxes": boxes,
            "labels": np.array([label[item["category_id"]] for item in objects], np.int64),
            "masks": np.array(masks, bool).reshape(-1, height, width),
            "crowd": np.array([bool(item.get("iscrowd", 0)) for item in objects], bool),
        }


def decode_segmentation(segmentation: list | dict[str, Any], height: int, width: int) -> np.ndarray:
    """A COCO segmentation (polygons, uncompressed or compressed RLE) as bool [H, W]."""
    from faster_coco_eval import mask as rle

    if isinstance(segmentation, list):
        encoded = rle.merge(rle.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        encoded = rle.frPyObjects(segmentation, height, width)
    else:
        encoded = segmentation
    return rle.decode(encoded).astype(bool)


PLUGIN = Coco
