"""Render training pairs, captioned images for retrieval, and labelled images for the experts.

Reads   only the config section `miniature`.
Writes  a WebDataset shard of pairs, a tar of captioned images, or an HDF5 file of labelled images.
Holds   the same config gives the same bytes; pairs have no dense labels, and no class names except in the caption.
"""

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from cliptex.benchmarks.coco_names import coco_categories
from cliptex.config import Miniature
from cliptex.core.errors import CliptexError, working_on
from cliptex.core.files import replacing, write_json
from cliptex.core.progress import track
from cliptex.data.images import encode_jpeg
from cliptex.data.miniature.captions import GENERIC, caption_noise
from cliptex.data.miniature.kinds import KINDS
from cliptex.data.miniature.scenes import Scene, render
from cliptex.data.shards import Pair, write_shard

PAIRS, CAPTION_NOISE = 0, 1
EXPERT_PARTS = {"train": 0, "val": 1}
COCO_CLASS = {name: number + 1 for number, (_, name, _) in enumerate(coco_categories())}
KIND_COCO = {kind.name: COCO_CLASS[kind.coco] for kind in KINDS if kind.coco}
"""Kind -> contiguous COCO class 1..80."""


def _pair_scene(miniature: Miniature, index: int) -> Scene:
    size = miniature.image_size_px
    with working_on(f"pair {index:09d}"):
        return render(miniature.seed, "pairs", PAIRS, index, size, size)


def render_pairs(miniature: Miniature, shard_number: int, path: Path) -> None:
    """Write shard `shard_number` (from 0) of the training pairs to `path`.

    Keys are the pair's number in 9 digits. A share `noisy_captions` of the captions is noise: half of it generic, half
    taken from the next pair of the shard. Raises CliptexError if there are fewer shards.
    """
    first = shard_number * miniature.pairs_per_shard
    if not 0 <= first < miniature.pairs:
        count = -(-miniature.pairs // miniature.pairs_per_shard)
        raise CliptexError(
            f"shard {shard_number}: does not exist; miniature.pairs and pairs_per_shard give shards 0 to {count - 1}"
        )
    last = min(first + miniature.pairs_per_shard, miniature.pairs)
    write_shard(path, _pairs(miniature, range(first, last)))


def _pair(miniature: Miniature, number: int, image: bytes, caption: str) -> Pair:
    size = miniature.image_size_px
    return Pair(f"{number:09d}", image, caption, {"width": size, "height": size, "source": "miniature", "url": None})


def _pairs(miniature: Miniature, numbers: range) -> Iterator[Pair]:
    images, captions = [], []
    for number in track(numbers, "render pairs"):
        scene = _pair_scene(miniature, number)
        images.append(encode_jpeg(scene.image, scene.jpeg_quality))
        captions.append(scene.caption)
    for position, number in enumerate(numbers):
        rng = np.random.default_rng([miniature.seed, CAPTION_NOISE, number])
        noise = caption_noise(rng, miniature.noisy_captions)
        caption = captions[position]
        if noise == "generic":
            caption = GENERIC[int(rng.integers(len(GENERIC)))]
        elif noise == "swapped":
            caption = captions[(position + 1) % len(captions)]
        yield _pair(miniature, number, images[position], caption)


def render_captions(miniature: Miniature, count: int, folder: Path) -> None:
    """Write `count` captioned images for retrieval to `folder`/00000.tar, then miniature.json.

    The scenes continue the numbers of the training pairs, with captions without noise. Scenes with a caption that
    already occurred are skipped, since retrieval would be ambiguous. Raises CliptexError if too few remain.
    """
    (folder / "miniature.json").unlink(missing_ok=True)
    write_shard(folder / "00000.tar", track(_captioned(miniature, count), "render captions", count))
    record = {"seed": miniature.seed, "image_size_px": miniature.image_size_px, "first": miniature.pairs}
    write_json(folder / "miniature.json", {"source": "miniature", "captions": count, **record})


def _captioned(miniature: Miniature, count: int) -> Iterator[Pair]:
    seen: set[str] = set()
    for number in range(miniature.pairs, miniature.pairs + 10 * count):
        scene = _pair_scene(miniature, number)
        if scene.caption in seen:
            continue
        seen.add(scene.caption)
        yield _pair(miniature, number, encode_jpeg(scene.image, scene.jpeg_quality), scene.caption)
        if len(seen) == count:
            return
    raise CliptexError(
        f"zeroshot.retrieval: {10 * count} scenes have only {len(seen)} different captions; lower `rendered`"
    )


def scene_for_key(miniature: Miniature, key: str) -> Scene:
    """Render the scene of a pair again, with its exact ground truth. Raises CliptexError for an unknown key."""
    if not (key.isdigit() and len(key) == 9 and int(key) < miniature.pairs):
        raise CliptexError(f"{key}: not a key of the {miniature.pairs} pairs of the miniature")
    return _pair_scene(miniature, int(key))


def render_expert_set(miniature: Miniature, part: str, path: Path) -> None:
    """Write the experts' labelled images of `part`, "train" or "val", as HDF5.

    Datasets: `image` (N, H, W, 3) uint8; `instance` (N, H, W) uint8, 0 = none, i = i-th instance; `instance_class`
    (N, M) uint8, contiguous COCO class 1..80 of instance i in column i - 1, 0 = unused; `depth` (N, H, W) float32,
    z-depth in metres; `normals` (N, H, W, 3) float16 in the shared convention; both NaN in the sky.
    """
    if part not in EXPERT_PARTS:
        raise CliptexError(f"render-experts: part {part!r} is not one of {list(EXPERT_PARTS)}")
    count = miniature.expert_train if part == "train" else miniature.expert_val
    size = miniature.image_size_px
    max_instances = 16
    columns = {
        "image": ((size, size, 3), np.uint8),
        "instance": ((size, size), np.uint8),
        "instance_class": ((max_instances,), np.uint8),
        "depth": ((size, size), np.float32),
        "normals": ((size, size, 3), np.float16),
    }
    with replacing(path) as scratch, h5py.File(scratch, "w") as file:
        file.attrs["source"] = "miniature"
        file.attrs["seed"] = miniature.seed
        chunk, how = 16, {"compression": "lzf", "track_times": False}
        out = {
            name: file.create_dataset(name, (count, *shape), dtype, chunks=(min(chunk, count), *shape), **how)
            for name, (shape, dtype) in columns.items()
        }
        for start in track(range(0, count, chunk), f"render expert {part}"):
            stop = min(start + chunk, count)
            rows = {name: np.zeros((stop - start, *shape), dtype) for name, (shape, dtype) in columns.items()}
            for row, index in enumerate(range(start, stop)):
                with working_on(f"{path}, image {index}"):
                    scene = render(miniature.seed, "experts", EXPERT_PARTS[part], index, size, size)
                rows["image"][row] = scene.image
                rows["instance"][row] = np.where(scene.instances <= max_instances, scene.instances, 0)
                for number, seen in enumerate(scene.objects[:max_instances]):
                    rows["instance_class"][row, number] = KIND_COCO[seen.kind]
                rows["depth"][row] = scene.depth
                rows["normals"][row] = scene.normals
            for name, dataset in out.items():
                dataset[start:stop] = rows[name]
