"""Rendered benchmarks, each in the official on-disk layout of what it stands in for.

Reads   nothing but the config section `miniature`.
Writes  the official tree under a root, with `miniature.json` (what it is, digest of the tree) at its top.
Holds   the same config gives the same bytes; no scene is shared between benchmarks, splits, pairs and expert renders.
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
from cliptex.data.miniature.scenes import Scene, Wish, render
from cliptex.versions import RENDER

BENCHMARKS = ("voc", "ade20k", "coco", "nyuv2", "imagenet", "places365")
"""The order is part of the seeds."""
MARK = "miniature.json"
FEW = 16
SEAL = ".miniature"
"""Empty file in every rendered tree: it stays when a workflow has deleted the mark, and tells that the tree is ours."""


class Draw:
    """Renders the scenes of one benchmark."""

    def __init__(self, miniature: Miniature, name: str, look: str = "benchmark"):
        self.look = look
        self.seed = miniature.seed
        self.size = miniature.image_size_px
        self.counts = {"train": miniature.benchmarks[name].train, "val": miniature.benchmarks[name].val}
        self._number = BENCHMARKS.index(name)

    def stream(self, split: str) -> int:
        """A number of its own for each benchmark and split."""
        return 2 * self._number + (split == "val")

    def scene(self, split: str, index: int, wish: Wish, width: int | None = None) -> Scene:
        """Scene `index` of a split, `size` high and as wide, or `width` wide."""
        return render(self.seed, self.look, self.stream(split), index, self.size, width or self.size, wish)


Writer = Callable[[Draw, Path], None]


def render_benchmark(miniature: Miniature, name: str, root: Path, look: str = "benchmark") -> None:
    """Render benchmark `name` into `root`, unless the same one is there already.

    look: a key of SHIFTED shows the same evaluation scenes in another light, and few training scenes.

    The tree is made beside `root` and renamed when it is whole. Raises CliptexError for a benchmark that is unknown
    or not in `miniature.benchmarks`, and when `root` holds something that was not rendered.
    """
    root = Path(root)
    if name not in BENCHMARKS:
        raise CliptexError(f"miniature.benchmarks: {name!r} is not one of {', '.join(BENCHMARKS)}")
    if name not in miniature.benchmarks:
        raise CliptexError(f"miniature.benchmarks.{name}: is missing; say how many images to render (train, val)")
    if look not in ("benchmark", *SHIFTED):
        raise CliptexError(f"--look: {look!r} is not one of {', '.join(SHIFTED)}")
    draw = Draw(miniature, name, look)
    if look != "benchmark":  # nobody trains on it, but the readers want some
        draw.counts["train"] = min(draw.counts["train"], FEW)
    mark = {
        "schema_version": 1,
        "source": "miniature",
        "benchmark": name,
        "seed": draw.seed,
        "image_size_px": draw.size,
        "counts": draw.counts,
        **({} if look == "benchmark" else {"look": look}),
        "render_version": RENDER,
    }
    if (root / MARK).exists() and _same(read_json(root / MARK), mark):
        return
    if root.exists() and any(root.iterdir()) and not (root / SEAL).exists():
        raise CliptexError(f"{root}: holds data that was not rendered; move it away, or set another working directory")
    _require_untouched(root)
    scratch = root.with_name(f".{root.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    (scratch / SEAL).touch()
    writer: Writer = importlib.import_module(f"cliptex.data.miniature.layouts.{name}").write
    writer(draw, scratch)
    digest = tree_digest(scratch)
    (scratch / SEAL).write_text(digest)  # the mark is gone when Snakemake has it made again
    write_json(scratch / MARK, {**mark, "sha256": digest})
    shutil.rmtree(root, ignore_errors=True)
    scratch.replace(root)


def _same(found: Any, wanted: dict[str, Any]) -> bool:
    return isinstance(found, dict) and {key: found.get(key) for key in wanted} == wanted


def _require_untouched(root: Path) -> None:
    """Raise CliptexError where a rendered tree, which is about to be replaced, holds something of the user's."""
    sealed = (root / SEAL).read_text() if (root / SEAL).exists() else ""
    if sealed and tree_digest(root) != sealed:
        raise CliptexError(
            f"{root}: holds files that were not rendered, or were changed since; move away what is yours, then run:"
            f" rm -r {root}   and then the same command again"
        )


def tree_digest(root: Path) -> str:
    """Hex SHA-256 over the paths and contents of all files of a rendered tree but its mark, the seal as empty."""
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p.name != MARK):
        content = hashlib.sha256().hexdigest() if path == root / SEAL else sha256_file(path)
        digest.update(f"{path.relative_to(root).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()
