"""Check the content of COCO's annotation files: what they declare decides what reading and evaluating them costs."""

from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

MAX_SIDE = 100_000
"""Maximum side of a box or an image in pixels; COCO's evaluation has areas up to its square."""
MAX_OUTLINE = 10_000_000
"""Maximum length of the outline of an object in pixels; drawing it costs memory and time in proportion."""
MAX_MASKS_BYTES = 2 << 30
"""Maximum bytes of an image's masks."""


def check_images(data: Any) -> dict[int, tuple[int, int]]:
    """Height and width of each image by its id. Raises ValueError if an image or an id is not valid."""
    _rows(data, "annotations")
    shapes, names = {}, {"", ".."}
    for image in _rows(data, "images"):
        name, shape = image.get("file_name"), (image.get("height"), image.get("width"))
        if not isinstance(name, str) or Path(name).name != name or name in names:
            raise ValueError(f"image {image['id']}: {name!r} is not a file name of its own")
        if not all(type(length) is int and 0 < length <= MAX_SIDE for length in shape):
            raise ValueError(f"image {image['id']}: its height and width are {shape}")
        shapes[image["id"]] = shape
        names.add(name)
    return shapes


def check_annotations(data: Any) -> list[int]:
    """Check the content of an instances_*.json, whose size must bound the cost of reading its masks, and complete it in
    place: a missing `area` is that of the box, a missing `iscrowd` 0, a segmentation without a polygon an empty mask.

    Returns the ids of these annotations without a mask. Raises ValueError with the key and value that is wrong.
    """
    shapes = check_images(data)
    categories = {row["id"] for row in _rows(data, "categories") if isinstance(row.get("name"), str)}
    if len(categories) < len(data["categories"]):
        raise ValueError("categories: one has no name")
    pixels, without_mask = Counter(), []
    for item in data["annotations"]:
        try:
            if item["image_id"] not in shapes or item["category_id"] not in categories:
                key = "category_id" if item["image_id"] in shapes else "image_id"
                raise ValueError(f"its {key} {item[key]!r} is not in the file")
            x, y, width, height = item["bbox"]
            if not (0 <= width <= MAX_SIDE and 0 <= height <= MAX_SIDE and abs(x) <= MAX_SIDE and abs(y) <= MAX_SIDE):
                raise ValueError(f"its bbox is {item['bbox']}")
            if not 0 <= item.setdefault("area", width * height) <= MAX_SIDE**2:
                raise ValueError(f"its area is {item['area']}")
            if item.setdefault("iscrowd", 0) not in (0, 1):
                raise ValueError(f"its iscrowd is {item['iscrowd']!r}")
            shape = shapes[item["image_id"]]
            pixels[item["image_id"]] += prod(shape)
            if pixels[item["image_id"]] > MAX_MASKS_BYTES:
                raise ValueError(f"is one of too many objects in image {item['image_id']}")
            item["segmentation"] = _checked(item.get("segmentation"), *shape)
            if item["segmentation"] is None:
                item["segmentation"] = {"size": [*shape], "counts": [prod(shape)]}
                without_mask.append(item["id"])
        except KeyError as error:
            raise ValueError(f"annotation {item['id']}: lacks {error}") from error
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise ValueError(f"annotation {item['id']}: {error}") from error
    return without_mask


def _rows(data: Any, key: str) -> list[dict[str, Any]]:
    """The rows of a table, which must have unique positive ids."""
    rows = data.get(key) if isinstance(data, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"lacks {key}, a list of objects")
    for row in rows:
        # COCO's evaluation takes an annotation with id 0 for none
        if type(row.get("id")) is not int or row["id"] < (key == "annotations"):
            raise ValueError(f"{key}: {row.get('id')!r} is not the id of one; ids are numbers from 1")
    if twice := [number for number, count in Counter(row["id"] for row in rows).items() if count > 1]:
        raise ValueError(f"{key}: two have the id {twice[0]}")
    return rows


def _checked(segmentation: Any, height: int, width: int) -> list | dict[str, Any] | None:
    """The polygons with three points or more, or the run lengths of all pixels; None if there are none."""
    from faster_coco_eval import mask as rle

    if not segmentation:
        return None
    if isinstance(segmentation, list):
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6 and len(polygon) % 2 == 0]
        for polygon in polygons:
            least, most = min(polygon), max(polygon)
            if most - least > 4 * max(height, width) or max(-least, most) > 4 * max(height, width):
                raise ValueError(f"its segmentation reaches {max(-least, most):g} in {width} x {height} pixels")
        # at most, if it went from one side to the other all the time
        if sum((max(polygon) - min(polygon)) * len(polygon) for polygon in polygons) > MAX_OUTLINE:
            raise ValueError(f"its segmentation has {sum(map(len, polygons)):,} numbers")
        return polygons or None
    counts = segmentation["counts"]
    if segmentation["size"] != [height, width]:
        raise ValueError(f"its segmentation is for {segmentation['size']}, its image [{height}, {width}]")
    if isinstance(counts, str):
        rle.decode(segmentation)
        return segmentation
    left = height * width - sum(counts)
    if left < 0 or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"its segmentation has run lengths of {sum(counts):,}, its image {height * width:,} pixels")
    if left:  # as in pycocotools, pixels after the last run are off
        return {"size": [height, width], "counts": [*counts, 0, left] if len(counts) % 2 else [*counts, left]}
    return segmentation
