"""NYU Depth v2, labelled set: nyu_depth_v2_labeled.mat (MATLAB 7.3 = HDF5), splits.mat, normals as PNG.

HDF5 reverses the order of axes: MATLAB's H x W x 3 x N is N x 3 x W x H.
"""

from pathlib import Path

import h5py
import numpy as np

from cliptex.core.progress import track
from cliptex.data.miniature.kinds import KINDS, SCENE_CATEGORIES
from cliptex.data.miniature.layouts import Renderer, save_mat, save_png
from cliptex.data.miniature.scenes import SceneOptions
from cliptex.data.miniature.stage import noise

ROOMS = tuple(category for category, indoors in SCENE_CATEGORIES.items() if indoors)
OPTIONS = SceneOptions(categories=ROOMS, things=(1, 4), scenery=1.2, closeness=0.35)
USERBLOCK = 512
FRAME = (45 / 480, 471 / 480, 41 / 640, 601 / 640)
"""Rows and columns with valid official normals, relative to the image size."""


def raw_depth(depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Raw depth of a sensor: zero in patches, at depth edges and beyond 8 m."""
    height, width = depth.shape
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    shift = rng.random(2).astype(np.float32) * 8
    patches = noise(columns * 4 / width + shift[0], rows * 4 / width + shift[1]) > 0.86
    edges = np.abs(np.diff(depth, axis=1, append=depth[:, -1:])) > 0.12 * depth
    return np.where(patches | edges | (depth > 8), 0, depth).astype(np.float32)


def encode_normals(normals: np.ndarray) -> np.ndarray:
    """Unit vectors [H, W, 3] to uint8 (n + 1) / 2 * 255; (0, 0, 0) outside of FRAME."""
    height, width = normals.shape[:2]
    out = np.zeros(normals.shape, np.uint8)
    top, bottom, left, right = (round(s * n) for s, n in zip(FRAME, (height, height, width, width), strict=True))
    inner = normals[top:bottom, left:right].astype(np.float32)
    out[top:bottom, left:right] = np.round((inner + 1) / 2 * 255)
    return out


def write(renderer: Renderer, benchmark_dir: Path) -> None:
    """Write the tree. The numbers of training and test images are interleaved; images are 4:3."""
    height, width = renderer.size, round(renderer.size * 4 / 3)
    splits = [(split, index) for split in ("train", "val") for index in range(renderer.counts[split])]
    rng = np.random.default_rng([renderer.seed, renderer.stream("train")])
    order = rng.permutation(len(splits)).tolist()
    count = len(order)
    path = benchmark_dir / "nyu_depth_v2_labeled.mat"
    numbers: dict[str, list[int]] = {"train": [], "val": []}
    categories = []
    with h5py.File(path, "w", userblock_size=USERBLOCK) as file:
        planes = {}
        types = {"images": "u1", "depths": "f4", "rawDepths": "f4", "labels": "u2", "instances": "u1"}
        for name, kind in types.items():
            shape = (3, width, height) if name == "images" else (width, height)
            planes[name] = file.create_dataset(name, (count, *shape), kind, chunks=(1, *shape), compression="gzip")
        for position, which in enumerate(track(order, "render nyuv2")):
            split, index = splits[which]
            scene = renderer.scene(split, index, OPTIONS, width)
            planes["images"][position] = scene.image.transpose(2, 1, 0)
            planes["depths"][position] = scene.depth.T
            planes["rawDepths"][position] = raw_depth(scene.depth, rng).T
            planes["labels"][position] = scene.kinds.T  # kind 0 is "nothing", as label 0 is "no label"
            planes["instances"][position] = scene.instances.T
            numbers[split].append(position + 1)
            categories.append(scene.category)
            folder = benchmark_dir / "nyu_dataset" / ("train" if split == "train" else "test")
            # numbered from 0, unlike splits.mat
            save_png(folder / "img" / f"{position:06d}.png", scene.image)
            save_png(folder / "norm" / f"{position:06d}.png", encode_normals(scene.normals))
        for name, dataset in planes.items():
            dataset.attrs["MATLAB_class"] = np.bytes_("single" if "epths" in name else dataset.dtype.name)
        scenes = [f"{category}_{position + 1:04d}" for position, category in enumerate(categories)]
        _cell(file, "names", [kind.name for kind in KINDS[1:]])
        _cell(file, "scenes", scenes)
        _cell(file, "sceneTypes", categories)
        _cell(file, "rawRgbFilenames", [f"{scene}/r-0.ppm" for scene in scenes])
        _cell(file, "rawDepthFilenames", [f"{scene}/d-0.pgm" for scene in scenes])
        file.create_dataset("accelData", data=np.zeros((4, count), np.float32))
    with path.open("r+b") as raw:  # MATLAB's file header; 0x0200 "IM" is version and byte order
        raw.write(b"MATLAB 7.3 MAT-file, written by cliptex".ljust(116) + bytes(8) + b"\x00\x02IM")
    columns = {split: np.array(sorted(which), np.uint16)[:, None] for split, which in numbers.items()}
    save_mat(benchmark_dir / "splits.mat", {"trainNdxs": columns["train"], "testNdxs": columns["val"]})


def _cell(file: h5py.File, name: str, texts: list[str]) -> None:
    """A MATLAB cell column of strings: references to arrays of UTF-16 codes."""
    references = file.create_dataset(name, (1, len(texts)), dtype=h5py.ref_dtype)
    references.attrs["MATLAB_class"] = np.bytes_("cell")
    group = file.require_group("#refs#")
    for position, text in enumerate(texts):
        codes = np.array([[ord(letter)] for letter in text], np.uint16)
        target = group.create_dataset(f"{name}{position}", data=codes)
        target.attrs["MATLAB_class"] = np.bytes_("char")
        references[0, position] = target.ref
