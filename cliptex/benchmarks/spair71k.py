"""SPair-71k semantic correspondence: SPair-71k/ in the layout of the official archive (Min et al. 2019)."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cliptex.benchmarks.base import Benchmark
from cliptex.benchmarks.reading import Lazy, read_lines, read_rgb, require_files
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_checked

CATEGORIES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dog", "horse"),
    *("motorbike", "person", "pottedplant", "sheep", "train", "tvmonitor"),
)
UNPACK = "unpack SPair-71k.tar.gz here"
PARTS = {"train": "trn", "eval": "test"}
PAIR = re.compile(r"\d+-(?P<source>\w[\w.]*)-(?P<target>\w[\w.]*):(?P<category>[a-z]+)")
KEYS = {key: [object] for key in ("src_kps", "trg_kps", "src_bndbox", "trg_bndbox")}
MAX_POINTS = 1000
"""Keypoints of a pair; officially at most 30."""
LARGEST = 1e6
"""Pixels; a larger coordinate is none."""
DECODED = 64
"""Images that are kept decoded, since an image is in many pairs of its category, which follow each other."""


class Spair71k(Benchmark):
    """Pairs of images of one category with keypoints that correspond: `trn` and `test` of Layout/large.

    A sample is a pair: `image` and `target` (uint8 RGB [H, W, 3]), `image_names` (which identify the two), `keypoints`
    and `target_keypoints` (float32 [K, 2], columns and rows; the centre of the first pixel is 0, 0), `box` and
    `target_box` (float32 [4], xyxy), `label` (its category). PairAnnotation has them by the keys src_kps, trg_kps,
    src_bndbox and trg_bndbox.
    """

    name = "spair71k"
    tasks = ()
    has_keypoint_pairs = True
    """Whether samples are pairs, for semantic correspondence."""
    eval_split = "test"
    official_counts: ClassVar = {"train": 53_340, "eval": 12_234}

    def __init__(self, root: Path, mark: Mapping[str, Any] | None = None):
        super().__init__(root, mark)
        self.folder = self.root / "SPair-71k"
        self._image = lru_cache(DECODED)(read_rgb)

    @property
    def class_names(self) -> list[str]:
        return list(CATEGORIES)

    def read(self, part: str) -> Sequence[dict[str, Any]]:
        return Lazy(self._listed(PARTS[part]), partial(self._read, PARTS[part]))

    def names(self, part: str) -> Sequence[str]:
        pairs = (PAIR.fullmatch(name) for name in self._listed(PARTS[part]))
        return sorted({pair[key] for pair in pairs for key in ("source", "target")})

    def prepare(self) -> dict[str, Any]:
        """Check that the images and annotations of all listed pairs exist."""
        images: dict[str, set[str]] = {}
        for split in PARTS.values():
            names = self._listed(split)
            require_files(self.folder / "PairAnnotation" / split, [f"{name}.json" for name in names], UNPACK)
            for pair in map(PAIR.fullmatch, names):
                images.setdefault(pair["category"], set()).update((f"{pair['source']}.jpg", f"{pair['target']}.jpg"))
        for category, files in images.items():
            require_files(self.folder / "JPEGImages" / category, files, UNPACK)
        return {}

    def _listed(self, split: str) -> list[str]:
        path = self.folder / "Layout" / "large" / f"{split}.txt"
        names = read_lines(path, UNPACK)
        for name in names:
            pair = PAIR.fullmatch(name)
            if pair is None or pair["category"] not in CATEGORIES:
                raise CliptexError(f"{path}: {name[:80]!r} is not a pair of SPair-71k; {UNPACK}")
        return names

    def _read(self, split: str, name: str) -> dict[str, Any]:
        path = self.folder / "PairAnnotation" / split / f"{name}.json"
        pair, annotation = PAIR.fullmatch(name), read_checked(path, KEYS, remedy=UNPACK)
        source, target = (_numbers(annotation, key, 2, path) for key in ("src_kps", "trg_kps"))
        if len(source) != len(target) or not 0 < len(source) <= MAX_POINTS:
            raise CliptexError(f"{path}: src_kps has {len(source)} points and trg_kps {len(target)}; {UNPACK}")
        boxes = [_numbers({key: [annotation[key]]}, key, 4, path)[0] for key in ("src_bndbox", "trg_bndbox")]
        if (boxes[1][2:] <= boxes[1][:2]).any():
            raise CliptexError(f"{path}: trg_bndbox is empty, and PCK is relative to its size; {UNPACK}")
        images = self.folder / "JPEGImages" / pair["category"]
        return {
            "id": name,
            "image_names": tuple(f"{pair['category']}/{pair[key]}" for key in ("source", "target")),
            "image": self._image(images / f"{pair['source']}.jpg"),
            "target": self._image(images / f"{pair['target']}.jpg"),
            "keypoints": source,
            "target_keypoints": target,
            "box": boxes[0],
            "target_box": boxes[1],
            "label": CATEGORIES.index(pair["category"]),
            "truth_file": path,
        }


def _numbers(annotation: Mapping[str, Any], key: str, columns: int, path: Path) -> np.ndarray:
    """The lists of a key as float32 [N, columns]."""
    rows = annotation[key]
    try:
        values = np.array(rows, np.float64)
        valid = values.ndim == 2 and values.shape[1] == columns and (np.abs(values) < LARGEST).all()
    except (ValueError, TypeError, OverflowError):
        valid = False
    if not valid:
        raise CliptexError(f"{path}: {key} is not a list of {columns} numbers each; {UNPACK}")
    return values.astype(np.float32)


PLUGIN = Spair71k
