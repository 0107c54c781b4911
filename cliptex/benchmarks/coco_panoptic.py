"""COCO's panoptic annotations: annotations/panoptic_{train,val}2017.json and a PNG an image in a folder of that name.

The pixels of a PNG are the ids of segments, R + 256 G + 256^2 B, and 0 where there is none
(https://cocodataset.org/#format-data, "Panoptic Segmentation").
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cliptex.benchmarks.coco_annotations import MAX_MASKS_BYTES
from cliptex.benchmarks.reading import existing, read_rgb, require_files
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json

UNPACK = "with your --config, run: cliptex fetch --benchmark coco --part panoptic"


class StuffRegions:
    """The regions of stuff, such as sky and grass, of the images of a part. root: of the data. folder: `val2017`.

    class_names: of the stuff categories, sorted by their ids. Raises CliptexError if a file is missing or not valid.
    """

    def __init__(self, root: Path, folder: str):
        self.file = existing(root / "annotations" / f"panoptic_{folder}.json", UNPACK)
        self.images = existing(self.file.with_suffix(""), UNPACK)
        data = read_json(self.file)
        try:
            categories = {row["id"]: row for row in data["categories"]}
            stuff = sorted(number for number, row in categories.items() if not row["isthing"])
            self.class_names = [str(categories[number]["name"]) for number in stuff]
            self._label = {number: index for index, number in enumerate(stuff)}
            self._annotations = {str(row["image_id"]): row for row in data["annotations"]}
            for row in data["annotations"]:
                _check_annotation(row, categories)
        except (LookupError, TypeError, ValueError) as error:
            problem = f"lacks {error}" if isinstance(error, LookupError) else str(error)
            raise CliptexError(f"{self.file}: {problem}; {UNPACK}") from error

    def require_images(self, image_ids: Sequence[str]) -> None:
        """Raise CliptexError unless each image is in the file and has its PNG."""
        if missing := [number for number in image_ids if number not in self._annotations]:
            raise CliptexError(f"{self.file}: has no image {missing[0]}; {UNPACK}")
        require_files(self.images, [self._annotations[number]["file_name"] for number in image_ids], UNPACK)

    def of(self, image_id: str, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Labels int64 [n], indices of `class_names`, and masks bool [n, H, W] of an image's regions without crowds.
        shape: height and width of the image."""
        if image_id not in self._annotations:
            raise CliptexError(f"{self.file}: has no image {image_id}; {UNPACK}")
        row = self._annotations[image_id]
        path, segments = self.images / row["file_name"], row["segments_info"]
        pixels = read_rgb(path).astype(np.int64)
        if pixels.shape[:2] != shape:
            sizes = f"{pixels.shape[1]} x {pixels.shape[0]} pixels, its image {shape[1]} x {shape[0]}"
            raise CliptexError(f"{path}: has {sizes}; {UNPACK}")
        ids = pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]
        chosen = [one for one in segments if one["category_id"] in self._label and not one.get("iscrowd")]
        if len(chosen) * ids.size > MAX_MASKS_BYTES:
            raise CliptexError(f"{self.file}: image {image_id} has {len(chosen):,} segments; {UNPACK}")
        masks = np.array([ids == one["id"] for one in chosen], bool).reshape(-1, *shape)
        if empty := [one["id"] for one, mask in zip(chosen, masks, strict=True) if not mask.any()]:
            raise CliptexError(f"{path}: has no pixel of segment {empty[0]}; {UNPACK}")
        return np.array([self._label[one["category_id"]] for one in chosen], np.int64), masks


def _check_annotation(row: dict[str, Any], categories: dict[Any, Any]) -> None:
    """Raise ValueError, LookupError or TypeError for an annotation that is not one of the format."""
    name = row["file_name"]
    if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):
        raise ValueError(f"image {row['image_id']} has the file {str(name)[:80]!r}")
    for segment in row["segments_info"]:
        if type(segment["id"]) is not int or segment["category_id"] not in categories:
            raise ValueError(f"segment {str(segment)[:80]} has no id, or a category that is not in the file")
