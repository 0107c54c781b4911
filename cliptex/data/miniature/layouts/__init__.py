"""Render benchmarks, each in the official layout of the data set that it replaces.

Reads   only the config section `miniature`.
Writes  the official tree in a benchmark's folder, with `miniature.json` (description, digest of the tree) at its top.
Holds   the same config gives the same bytes; benchmarks, splits, pairs and expert images share no scene.
"""

import hashlib
import importlib
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cliptex.config import Miniature
from cliptex.core.errors import CliptexError, working_on
from cliptex.core.files import read_json, sha256_file, write_json
from cliptex.core.plugins import find
from cliptex.data.images import encode_jpeg
from cliptex.data.miniature.looks import SHIFTED
from cliptex.data.miniature.room_views import room_pair
from cliptex.data.miniature.scenes import Scene, SceneOptions, render
from cliptex.data.miniature.sequences import Shot, Video, ViewPair, video, view_pair
from cliptex.versions import RENDER

BENCHMARKS = ("voc", "ade20k", "coco", "nyuv2", "imagenet", "places365", "spair71k", "davis2017", "scannet1500")
"""The order is part of the seeds."""
MARK = "miniature.json"
NUM_TRAIN_SHIFTED = 16
"""Maximum number of training images in another look."""
MAT_HEADER = b"MATLAB 5.0 MAT-file, written by cliptex".ljust(116)
SEAL = ".miniature"
"""File in every rendered tree that identifies it as rendered, also when the workflow has deleted the mark."""


class Renderer:
    """Renders the scenes of one benchmark."""

    def __init__(self, miniature: Miniature, name: str, look: str = "benchmark"):
        self.name, self.look = name, look
        self.seed = miniature.seed
        self.size = miniature.image_size_px
        self.counts = {"train": miniature.benchmarks[name].train, "val": miniature.benchmarks[name].val}
        self._number = BENCHMARKS.index(name)

    def stream(self, split: str) -> int:
        """A unique number for each benchmark and split."""
        return 2 * self._number + (split == "val")

    def pair(self, split: str, index: int, options: SceneOptions) -> ViewPair:
        """Render two views of an object in scene `index` of a split, both squares with side `size`."""
        with working_on(f"{self.name}, {split} scene {index}"):
            return view_pair(self.seed, self.look, self.stream(split), index, self.size, options)

    def video(self, split: str, index: int, options: SceneOptions, width: int) -> Video:
        """Render a video of scene `index` of a split, with height `size`."""
        with working_on(f"{self.name}, {split} scene {index}"):
            return video(self.seed, self.look, self.stream(split), index, self.size, width, options)

    def room_pair(self, split: str, index: int, width: int) -> tuple[Shot, Shot]:
        """Render two views of a room, scene `index` of a split, with height `size`."""
        with working_on(f"{self.name}, {split} scene {index}"):
            return room_pair(self.seed, self.look, self.stream(split), index, self.size, width)

    def scene(self, split: str, index: int, options: SceneOptions, width: int | None = None) -> Scene:
        """Render scene `index` of a split, with height `size`, and width `width` or `size`."""
        with working_on(f"{self.name}, {split} scene {index}"):
            return render(self.seed, self.look, self.stream(split), index, self.size, width or self.size, options)


def render_benchmark(miniature: Miniature, name: str, benchmark_dir: Path, look: str = "benchmark") -> None:
    """Render benchmark `name` into `benchmark_dir`, unless the same one is there already; renamed when complete.

    look: a key of SHIFTED renders the same evaluation scenes in different light, and few training scenes. Raises
    CliptexError for a benchmark that is unknown or not in `miniature.benchmarks`, and if `benchmark_dir` contains files
    that were not rendered.
    """
    benchmark_dir = Path(benchmark_dir)
    if name not in BENCHMARKS:
        raise CliptexError(f"miniature.benchmarks: {name!r} is not one of {', '.join(BENCHMARKS)}")
    if name not in miniature.benchmarks:
        raise CliptexError(f"miniature.benchmarks.{name}: missing; set the number of images to render (train, val)")
    trained, train = find("benchmarks", name).has_training_split, miniature.benchmarks[name].train
    if trained != (train > 0):
        remedy = "set a positive number" if trained else "it has no training split; set 0"
        raise CliptexError(f"miniature.benchmarks.{name}.train: is {train}; {remedy}")
    if look not in ("benchmark", *SHIFTED):
        raise CliptexError(f"--look: {look!r} is not one of {', '.join(SHIFTED)}")
    renderer = Renderer(miniature, name, look)
    if look != "benchmark":  # not used for training, but the readers need some
        renderer.counts["train"] = min(renderer.counts["train"], NUM_TRAIN_SHIFTED)
    mark = {
        "schema_version": 1,
        "source": "miniature",
        "benchmark": name,
        "seed": renderer.seed,
        "image_size_px": renderer.size,
        "counts": renderer.counts,
        **({} if look == "benchmark" else {"look": look}),
        "render_version": RENDER,
    }
    existing = read_json(benchmark_dir / MARK) if (benchmark_dir / MARK).exists() else None
    if isinstance(existing, dict) and {key: existing.get(key) for key in mark} == mark:
        return
    if benchmark_dir.exists() and any(benchmark_dir.iterdir()) and not (benchmark_dir / SEAL).exists():
        remedy = "move it away, or use another working directory"
        raise CliptexError(f"{benchmark_dir}: contains data that was not rendered; {remedy}")
    sealed = (benchmark_dir / SEAL).read_text(encoding="utf-8") if (benchmark_dir / SEAL).exists() else ""
    if sealed and tree_digest(benchmark_dir) != sealed:
        remedy = f"run: mv {benchmark_dir} {benchmark_dir}.old   and then the same command again"
        raise CliptexError(f"{benchmark_dir}: contains files that were changed or not rendered; {remedy}")
    scratch = benchmark_dir.with_name(f".{benchmark_dir.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    (scratch / SEAL).touch()
    importlib.import_module(f"cliptex.data.miniature.layouts.{name}").write(renderer, scratch)
    digest = tree_digest(scratch)
    # kept here too, since Snakemake deletes the mark before it renders again
    (scratch / SEAL).write_text(digest, encoding="utf-8")
    write_json(scratch / MARK, {**mark, "sha256": digest})
    shutil.rmtree(benchmark_dir, ignore_errors=True)
    scratch.replace(benchmark_dir)


def tree_digest(benchmark_dir: Path) -> str:
    """Hex SHA-256 of paths and contents of all files of a rendered tree, except the mark; the seal counts as empty."""
    digest = hashlib.sha256()
    for path in sorted(p for p in benchmark_dir.rglob("*") if p.is_file() and p.name != MARK):
        content = hashlib.sha256().hexdigest() if path == benchmark_dir / SEAL else sha256_file(path)
        digest.update(f"{path.relative_to(benchmark_dir).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


# ---- files: plain writes are enough, since the tree is temporary


def save_jpeg(path: Path, scene: Scene | Shot) -> None:
    """Write the scene's image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_jpeg(scene.image, scene.jpeg_quality))


def save_png(path: Path, pixels: np.ndarray, palette: np.ndarray | None = None) -> None:
    """Write uint8 or uint16 [H, W] (uint8 with `palette`, uint8 [256, 3], as a palette image) or [H, W, 3]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette.ravel().tolist())
    image.save(path, "PNG")


def save_text(path: Path, lines: list[str]) -> None:
    """Write lines of text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def save_mat(path: Path, content: dict[str, Any]) -> None:
    """Write a MATLAB 5 file, without scipy's time stamp in the header."""
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    out = io.BytesIO()
    savemat(out, content)
    path.write_bytes(MAT_HEADER + out.getvalue()[len(MAT_HEADER) :])
