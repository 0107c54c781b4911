"""Render benchmarks, each in the official layout of the data set that it replaces.

Reads   only the config section `miniature`.
Writes  the official tree in a benchmark's folder, with `miniature.json` (description, digest of the tree) at its top.
Holds   the same config gives the same bytes; benchmarks, splits, pairs and expert images share no scene.
"""

import hashlib
import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cliptex.config import Miniature
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json, sha256_file, write_json
from cliptex.data.miniature.looks import SHIFTED
from cliptex.data.miniature.scenes import Scene, SceneOptions, render
from cliptex.versions import RENDER

BENCHMARKS = ("voc", "ade20k", "coco", "nyuv2", "imagenet", "places365")
"""The order is part of the seeds."""
MARK = "miniature.json"
NUM_TRAIN_SHIFTED = 16
"""Maximum number of training images in another look."""
SEAL = ".miniature"
"""File in every rendered tree that identifies it as rendered, also when the workflow has deleted the mark."""


class Renderer:
    """Renders the scenes of one benchmark."""

    def __init__(self, miniature: Miniature, name: str, look: str = "benchmark"):
        self.look = look
        self.seed = miniature.seed
        self.size = miniature.image_size_px
        self.counts = {"train": miniature.benchmarks[name].train, "val": miniature.benchmarks[name].val}
        self._number = BENCHMARKS.index(name)

    def stream(self, split: str) -> int:
        """A unique number for each benchmark and split."""
        return 2 * self._number + (split == "val")

    def scene(self, split: str, index: int, options: SceneOptions, width: int | None = None) -> Scene:
        """Render scene `index` of a split, with height `size`, and width `width` or `size`."""
        return render(self.seed, self.look, self.stream(split), index, self.size, width or self.size, options)


Writer = Callable[[Renderer, Path], None]


def render_benchmark(miniature: Miniature, name: str, benchmark_dir: Path, look: str = "benchmark") -> None:
    """Render benchmark `name` into `benchmark_dir`, unless the same one is there already.

    look: a key of SHIFTED renders the same evaluation scenes in different light, and few training scenes.

    The tree is written to a temporary folder and renamed when complete. Raises CliptexError for a benchmark that is
    unknown or not in `miniature.benchmarks`, and if `benchmark_dir` contains files that were not rendered.
    """
    benchmark_dir = Path(benchmark_dir)
    if name not in BENCHMARKS:
        raise CliptexError(f"miniature.benchmarks: {name!r} is not one of {', '.join(BENCHMARKS)}")
    if name not in miniature.benchmarks:
        raise CliptexError(f"miniature.benchmarks.{name}: missing; set the number of images to render (train, val)")
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
    if (benchmark_dir / MARK).exists() and _same(read_json(benchmark_dir / MARK), mark):
        return
    if benchmark_dir.exists() and any(benchmark_dir.iterdir()) and not (benchmark_dir / SEAL).exists():
        raise CliptexError(
            f"{benchmark_dir}: contains data that was not rendered; move it away, or use another working directory"
        )
    _require_untouched(benchmark_dir)
    scratch = benchmark_dir.with_name(f".{benchmark_dir.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    (scratch / SEAL).touch()
    writer: Writer = importlib.import_module(f"cliptex.data.miniature.layouts.{name}").write
    writer(renderer, scratch)
    digest = tree_digest(scratch)
    (scratch / SEAL).write_text(
        digest, encoding="utf-8"
    )  # kept here, since Snakemake deletes the mark before it renders again
    write_json(scratch / MARK, {**mark, "sha256": digest})
    shutil.rmtree(benchmark_dir, ignore_errors=True)
    scratch.replace(benchmark_dir)


def _same(existing: Any, mark: dict[str, Any]) -> bool:
    return isinstance(existing, dict) and {key: existing.get(key) for key in mark} == mark


def _require_untouched(benchmark_dir: Path) -> None:
    """Raise CliptexError if a rendered tree, which is about to be replaced, contains files of the user."""
    sealed = (benchmark_dir / SEAL).read_text(encoding="utf-8") if (benchmark_dir / SEAL).exists() else ""
    if sealed and tree_digest(benchmark_dir) != sealed:
        raise CliptexError(
            f"{benchmark_dir}: contains files that were changed or not rendered; move away your files, then run:"
            f" rm -r {benchmark_dir}   and then the same command again"
        )


def tree_digest(benchmark_dir: Path) -> str:
    """Hex SHA-256 of paths and contents of all files of a rendered tree, except the mark; the seal counts as empty."""
    digest = hashlib.sha256()
    for path in sorted(p for p in benchmark_dir.rglob("*") if p.is_file() and p.name != MARK):
        content = hashlib.sha256().hexdigest() if path == benchmark_dir / SEAL else sha256_file(path)
        digest.update(f"{path.relative_to(benchmark_dir).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()
