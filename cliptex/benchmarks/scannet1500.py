"""ScanNet's 1,500 test pairs: scannet_test_1500/ as LoFTR distributes it (Dai et al. 2017; the pairs are those of
SuperGlue, Sarlin et al. 2020; Sun et al. 2021). It has pairs to evaluate on only."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from PIL import Image

from cliptex.benchmarks.base import Benchmark
from cliptex.benchmarks.reading import Lazy, existing, npz_arrays, read_lines, read_rgb, read_uint16, require_files
from cliptex.core.errors import CliptexError

UNPACK = "unpack scannet_test_1500.tar here (docs/data.md)"
MM_PER_METRE = 1000.0
LARGEST = 1e5
"""Metres and pixels; a larger coordinate, focal length or principal point is none."""
SKEW = 1e-2
"""Of a rotation matrix, which text files round: largest difference of R R^T from the identity."""
ASPECT = 0.02
"""Relative difference of the aspect ratios of a colour image (1296 x 968) and its depth map (640 x 480)."""
FOLDERS = {"color": "jpg", "depth": "png", "pose": "txt"}


class FramePair(NamedTuple):
    """A row of `name` in test.npz. scene: as scene0707_00."""

    scene: str
    first: int
    second: int


class Scannet1500(Benchmark):
    """Two frames of one scene, with depth, pose and intrinsics, from which correspondences follow.

    A sample is a pair: `image` and `target` (uint8 RGB [H, W, 3], of the size of the depth maps), `depth` and
    `target_depth` (float32 [H, W] metres, NaN where the sensor has none), `intrinsics` (float64 [3, 3], of both depth
    maps; the centre of the first pixel is 0, 0), `transform` (float64 [4, 4], from the first camera's coordinates to
    those of the second; x right, y down, z forward), `image_names` (which identify the two).

    The folder has, for each scene, `scene0707_00/{color/N.jpg, depth/N.png, pose/N.txt}`: depth is uint16 millimetres,
    0 for none; a pose is camera to world, and -inf where the tracking failed, which is an error. `test.npz` (array
    `name` [N, 4]: scene, scan, two frames) and `intrinsics.npz` (an array [3, 3] for each scene) are there or next to
    it. A colour image of another size is resized to that of its depth map, as LoFTR and Probe3D do.
    """

    name = "scannet1500"
    tasks = ()
    has_view_pairs = True
    """Whether samples are two views with depth and poses, for geometric correspondence."""
    has_training_split = False
    eval_split = "test"
    official_counts: ClassVar = {"eval": 1500}

    def __init__(self, root: Path, mark: Mapping[str, Any] | None = None):
        super().__init__(root, mark)
        self.folder = self.root / "scannet_test_1500"

    @property
    def class_names(self) -> list[str]:
        return []

    def read(self, part: str) -> Sequence[dict[str, Any]]:
        return Lazy(self._listed(), partial(self._read, npz_arrays(self._list("intrinsics.npz"), UNPACK)))

    def prepare(self) -> dict[str, Any]:
        """Check that the files of all listed frames, and the intrinsics of their scenes, exist."""
        intrinsics, frames = npz_arrays(self._list("intrinsics.npz"), UNPACK), {}
        for pair in self._listed():
            frames.setdefault(pair.scene, set()).update((pair.first, pair.second))
        for scene, numbers in frames.items():
            self._intrinsics(intrinsics, scene)
            for folder, suffix in FOLDERS.items():
                require_files(self.folder / scene / folder, [f"{number}.{suffix}" for number in numbers], UNPACK)
        return {}

    def _list(self, name: str) -> Path:
        """A file that LoFTR publishes separately."""
        inside = self.folder / name
        return inside if inside.exists() else self.root / name

    def _listed(self) -> list[FramePair]:
        path = self._list("test.npz")
        rows = npz_arrays(path, UNPACK).get("name")
        if rows is None or rows.dtype.kind not in "iu" or rows.ndim != 2 or rows.shape[1] != 4 or not len(rows):
            found = "no array" if rows is None else f"{rows.dtype} {list(rows.shape)}"
            raise CliptexError(f"{path}: name is {found}, not integers [N, 4]: scene, scan, two frames; {UNPACK}")
        if (wrong := rows[(rows < 0).any(1) | (rows[:, 2] == rows[:, 3])]).size:
            raise CliptexError(f"{path}: name has {wrong[0].tolist()}, which is not a pair of frames; {UNPACK}")
        unique, counts = np.unique(rows, axis=0, return_counts=True)
        if counts.max() > 1:
            raise CliptexError(f"{path}: name has {unique[counts.argmax()].tolist()} {counts.max()} times; {UNPACK}")
        return [
            FramePair(f"scene{scene:04d}_{scan:02d}", first, second) for scene, scan, first, second in rows.tolist()
        ]

    def _intrinsics(self, intrinsics: Mapping[str, np.ndarray], scene: str) -> np.ndarray:
        """The matrix float64 [3, 3] of a scene."""
        path = self._list("intrinsics.npz")
        if scene not in intrinsics:
            raise CliptexError(f"{path}: has no array {scene}; {UNPACK}")
        matrix = intrinsics[scene]
        valid = matrix.dtype.kind == "f" and matrix.shape == (3, 3) and (np.abs(matrix) < LARGEST).all()
        if not valid or matrix[0, 0] <= 0 or matrix[1, 1] <= 0 or matrix[1, 0] or (matrix[2] != [0, 0, 1]).any():
            raise CliptexError(f"{path}: {scene} is not a camera matrix, floats [3, 3]; {UNPACK}")
        return matrix.astype(np.float64)

    def _read(self, intrinsics: Mapping[str, np.ndarray], pair: FramePair) -> dict[str, Any]:
        folder = self.folder / pair.scene
        image, depth = _frame(folder, pair.first)
        target, target_depth = _frame(folder, pair.second)
        if depth.shape != target_depth.shape:
            problem = f"its size is not that of {pair.first}.png, and a scene has one camera"
            raise CliptexError(f"{folder / 'depth' / f'{pair.second}.png'}: {problem}; {UNPACK}")
        first, second = (_pose(folder / "pose" / f"{frame}.txt") for frame in (pair.first, pair.second))
        return {
            "id": f"{pair.scene}_{pair.first}_{pair.second}",
            "image_names": (f"{pair.scene}/{pair.first}", f"{pair.scene}/{pair.second}"),
            "image": image,
            "target": target,
            "depth": depth,
            "target_depth": target_depth,
            "intrinsics": self._intrinsics(intrinsics, pair.scene),
            "transform": np.linalg.inv(second) @ first,
            "file": folder / "color" / f"{pair.first}.jpg",
            "truth_file": folder / "depth" / f"{pair.first}.png",
        }


def _frame(folder: Path, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 [H, W, 3] and depth float32 [H, W] of a frame."""
    path, depth_path = folder / "color" / f"{number}.jpg", folder / "depth" / f"{number}.png"
    units = read_uint16(existing(depth_path, UNPACK))
    image, (height, width) = read_rgb(existing(path, UNPACK)), units.shape
    if image.shape[:2] != units.shape:
        aspect = image.shape[1] / image.shape[0] * height / width
        if abs(aspect - 1) > ASPECT:
            sizes = f"{image.shape[1]} x {image.shape[0]} pixels, which do not fit {width} x {height} of its depth map"
            raise CliptexError(f"{path}: has {sizes}; {UNPACK}")
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    return image, np.where(units > 0, units / np.float32(MM_PER_METRE), np.float32(np.nan))


def _pose(path: Path) -> np.ndarray:
    """A pose float64 [4, 4], camera to world."""
    lines = read_lines(path, UNPACK)
    try:
        pose = np.array([[float(value) for value in line.split()] for line in lines])
    except ValueError:
        pose = np.zeros(0)
    if pose.shape != (4, 4):
        raise CliptexError(f"{path}: is not a matrix of four lines with four numbers each; {UNPACK}")
    if not np.isfinite(pose).all():
        raise CliptexError(f"{path}: has no pose, as where the tracking failed; remove its pairs from test.npz")
    rotation = pose[:3, :3]
    turns = np.abs(rotation @ rotation.T - np.eye(3)).max() < SKEW and np.linalg.det(rotation) > 0
    if not turns or np.abs(pose[:3, 3]).max() > LARGEST or (pose[3] != [0, 0, 0, 1]).any():
        raise CliptexError(f"{path}: is not a rotation and a position; {UNPACK}")
    return pose


PLUGIN = Scannet1500
