"""DAVIS 2017 video object segmentation: DAVIS/ in the layout of the archive of 480p (Pont-Tuset et al. 2017)."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cliptex.benchmarks.base import Benchmark
from cliptex.benchmarks.reading import Lazy, check_size, files_in, read_indices, read_names, read_rgb, require_files
from cliptex.core.errors import CliptexError

UNPACK = "unpack DAVIS-2017-trainval-480p.zip here"
VOID = 255
MIN_FRAMES = 3
"""The first frame is given and the last one is not evaluated."""


class Davis2017(Benchmark):
    """`train` and `val` of ImageSets/2017, at 480p.

    A sample is a video: `image` (its first frame, uint8 RGB [H, W, 3]), `frames` and `masks` (sequences that are read
    on access: uint8 [H, W, 3], and uint8 [H, W] with 0 for the background, i for object i, 255 for pixels that are not
    evaluated), `num_objects` (the largest number in the first mask).
    """

    name = "davis2017"
    tasks = ()
    has_videos = True
    """Whether samples are videos, for video object segmentation."""
    eval_split = "val"
    official_counts: ClassVar = {"train": 60, "eval": 30}

    def __init__(self, root: Path, mark: Mapping[str, Any] | None = None):
        super().__init__(root, mark)
        self.folder = self.root / "DAVIS"

    @property
    def class_names(self) -> list[str]:
        return []

    def read(self, part: str) -> Sequence[dict[str, Any]]:
        return Lazy(self._listed(part), self._read)

    def names(self, part: str) -> Sequence[str]:
        return self._listed(part)

    def prepare(self) -> dict[str, Any]:
        """Check that every frame has a mask."""
        for part in PARTS:
            for name in self._listed(part):
                _, masks = self._files(name)
                require_files(masks[0].parent, [mask.name for mask in masks], UNPACK)
        return {}

    def _listed(self, part: str) -> list[str]:
        return read_names(self.folder / "ImageSets" / "2017" / f"{PARTS[part]}.txt", UNPACK)

    def _files(self, name: str) -> tuple[list[Path], list[Path]]:
        """Frames and masks of a video, in order."""
        frames = [Path(path) for path in files_in(self.folder / "JPEGImages" / "480p" / name, (".jpg",), UNPACK)]
        if len(frames) < MIN_FRAMES:
            raise CliptexError(f"{frames[0].parent}: has {len(frames)} frames, and needs {MIN_FRAMES}; {UNPACK}")
        masks = self.folder / "Annotations" / "480p" / name
        return frames, [masks / f"{frame.stem}.png" for frame in frames]

    def _read(self, name: str) -> dict[str, Any]:
        frames, masks = self._files(name)
        first, image = read_indices(masks[0]), read_rgb(frames[0])
        check_size(masks[0], first, image)
        objects = first[first != VOID]
        if not objects.size or not objects.max():
            raise CliptexError(f"{masks[0]}: has no object, and the first mask is what is propagated; {UNPACK}")
        return {
            "id": name,
            "image": image,
            "frames": Lazy(frames, partial(_read_frame, image.shape)),
            "masks": Lazy(masks, partial(_read_mask, first.shape, int(objects.max()))),
            "num_objects": int(objects.max()),
            "truth_file": masks[0],
        }


PARTS = {"train": "train", "eval": "val"}


def _read_frame(shape: tuple[int, ...], path: Path) -> np.ndarray:
    frame = read_rgb(path)
    if frame.shape != shape:
        raise CliptexError(f"{path}: its size is not that of the video's first frame; {UNPACK}")
    return frame


def _read_mask(shape: tuple[int, ...], num_objects: int, path: Path) -> np.ndarray:
    mask = read_indices(path)
    if mask.shape != shape:
        raise CliptexError(f"{path}: its size is not that of the video's first mask; {UNPACK}")
    if (wrong := mask[(mask > num_objects) & (mask != VOID)]).size:
        raise CliptexError(f"{path}: has object {wrong[0]}, but the video's first mask {num_objects}; {UNPACK}")
    return mask


PLUGIN = Davis2017
