"""Export label stores as WebDataset tars, aligned with the images, for use without this package.

Reads   results/shards/index.json, its shards, indexed label stores.
Writes  {out}/{shard}.tar, one for each shard, and {out}/labels.json last: the format, licences, origin and digests.
Holds   a tar has the shard's keys in the shard's order; the same stores give the same bytes.

Members of a sample: `{key}.jpg` (or png, webp, ...; see `upright_file`), `{key}.txt`, `{key}.{store}.png` or
`{key}.{store}.npy` for each store that has a label of it, and `{key}.json`: the pair's metadata and, under `labels`,
for each store `height`, `width` and the values named in `FORMATS`, or the `error` if there is no label.
"""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from cliptex.config import Config
from cliptex.core.errors import CliptexError, working_on
from cliptex.core.files import sha256_file, write_json
from cliptex.core.progress import track
from cliptex.data.images import decodable, decode_image, encode_png, has_orientation
from cliptex.data.shard_index import read_index, read_indexed
from cliptex.data.shards import Pair, write_tar
from cliptex.labels.store import LabelFile, open_store, read_label_index, task_of_store
from cliptex.tasks.base import Task
from cliptex.tasks.normals import KAPPA_MAX, KAPPA_MIN

FORMATS = {
    "segmentation": "8-bit grey PNG; the value is the class, 255 = ignore; scores are left out",
    "segmentation, more than 255 classes": (
        "16-bit grey PNG; the value is the class, 65535 = ignore; scores are left out"
    ),
    "depth": (
        "16-bit grey PNG; 0 = invalid, else relative inverse depth = low + (value - 1) / 65534 * (high - low), with low"
        " and high in the sample's json under labels.{store}"
    ),
    "normals": (
        "8-bit RGBA PNG; x, y, z = red, green, blue / 127.5 - 1 (x right, y down, z forward; to be normalised);"
        f" alpha 0 = invalid, else kappa = {KAPPA_MIN:g} * {KAPPA_MAX / KAPPA_MIN:g} ** ((alpha - 1) / 254)"
    ),
    "npy": "NumPy array as the label store decodes it",
}


def depth_png(label: np.ndarray) -> tuple[bytes, dict[str, float]]:
    """float32 [H, W], NaN = invalid; see `FORMATS`."""
    low, high = float(np.nanmin(label)), float(np.nanmax(label))
    scale = 65534 / (high - low) if high > low else 0.0
    codes = np.nan_to_num(np.rint((label.astype(np.float64) - low) * scale) + 1, nan=0).astype(np.uint16)
    return encode_png(codes), {"low": low, "high": high}


def normals_png(label: np.ndarray) -> tuple[bytes, dict[str, float]]:
    """float32 [H, W, 4], NaN = invalid; see `FORMATS`."""
    codes = np.empty(label.shape, np.float32)
    codes[..., :3] = (label[..., :3] + 1) * 127.5
    span = np.log(KAPPA_MAX / KAPPA_MIN)
    codes[..., 3] = np.log(np.clip(label[..., 3], KAPPA_MIN, KAPPA_MAX) / KAPPA_MIN) / span * 254 + 1
    return encode_png(np.rint(np.nan_to_num(codes, nan=0)).astype(np.uint8)), {}


PNG: dict[str, Callable[[np.ndarray], tuple[bytes, dict[str, float]]]] = {
    "segmentation": lambda label: (encode_png(label), {}),
    "depth": depth_png,
    "normals": normals_png,
}


def export_labels(
    config: Config,
    stores: list[str],
    shard_index: Path,
    labels_dir: Path,
    out: Path,
    form: Literal["png", "npy"] = "png",
    images: bool = True,
    shards: range | None = None,
) -> dict[str, Any]:
    """Write the tars into `out`; return the content of labels.json.

    labels_dir: folder of the label stores. form: `png` is small and slightly rounded (tasks without a PNG format are
    exported as npy), `npy` the decoded array. images: whether to include images and captions; leave them out where they
    must not be redistributed. shards: their numbers; None for all. Raises CliptexError for an unindexed store, and as
    `open_store` does.
    """
    indices = {store: labels_dir / store / "index.json" for store in stores}
    origins = {store: read_label_index(config, store, index) for store, index in indices.items()}
    tasks = {store: task_of_store(config, store, index) for store, index in indices.items()}
    forms = {store: form if task.name in PNG else "npy" for store, task in tasks.items()}
    entries = read_index(shard_index)["shards"]
    if shards is not None:
        entries = [entries[number] for number in shards if number < len(entries)]
    if not entries:
        raise CliptexError(f"{shard_index}: has none of the requested shards")
    files = []
    for entry in track(entries, "export labels"):
        path = out / f"{entry['shard']}.tar"
        with working_on(f"{entry['path']} and {path}"):
            opened = {store: open_store(index, entry, tasks[store]) for store, index in indices.items()}
            write_tar(path, _members(entry["path"], read_indexed(entry), opened, forms, images))
        files.append({"file": path.name, "sha256": sha256_file(path), "samples": len(entry["keys"])})
    copied = ("task", "expert", "weights_sha256", "licence", "recipe_sha256", "codec")
    record = {
        "schema_version": 1,
        "images": images,
        "stores": {
            store: {
                "member": f"{{key}}.{store}.{forms[store]}",
                "format": _format(tasks[store]) if forms[store] == "png" else FORMATS["npy"],
                **{name: origin[name] for name in copied},
            }
            for store, origin in origins.items()
        },
        "files": files,
    }
    write_json(out / "labels.json", record)
    return record


def _format(task: Task) -> str:
    wide = task.name == "segmentation" and task.codec()["dtype"] == "uint16"
    return FORMATS["segmentation, more than 255 classes" if wide else task.name]


def _members(
    shard: str, pairs: list[Pair], opened: dict[str, LabelFile], forms: dict[str, str], images: bool
) -> Iterator[tuple[str, bytes]]:
    """Yield (file name, bytes) of every member, sample by sample."""
    errors = {store: file.column("error") for store, file in opened.items()}
    for row, pair in enumerate(pairs):
        if pair.key.startswith("/") or ".." in pair.key.split("/"):
            raise CliptexError(
                f"{shard}: key {pair.key!r} leaves the folder in which an export is unpacked; rename it in the shard"
            )
        with working_on(f"{shard}, key {pair.key!r}"):
            yield from _sample(row, pair, opened, errors, forms, images)


def _sample(
    row: int,
    pair: Pair,
    opened: dict[str, LabelFile],
    errors: dict[str, list[str | None]],
    forms: dict[str, str],
    images: bool,
) -> Iterator[tuple[str, bytes]]:
    info: dict[str, Any] = {}
    labels: list[tuple[str, bytes]] = []
    for store, file in opened.items():
        label = file.label(row)
        if label is None:
            info[store] = {"error": errors[store][row]}
            continue
        info[store] = {"height": label.shape[0], "width": label.shape[1]}
        if forms[store] == "png":
            data, scale = PNG[file.task.name](file.task.classes(label))
            info[store] |= scale
        else:
            data = _npy(label)
        labels.append((f"{pair.key}.{store}.{forms[store]}", data))
    if images:
        suffix, data = upright_file(pair.image)
        yield f"{pair.key}.{suffix}", data
        yield f"{pair.key}.txt", pair.caption.encode()
    yield f"{pair.key}.json", json.dumps({**(pair.metadata if images else {}), "labels": info}).encode()
    yield from labels


def upright_file(image: bytes) -> tuple[str, bytes]:
    """Suffix and bytes of an image file that every reader shows as the labels lie.

    Readers differ in whether they apply the EXIF orientation. So a file with one is written anew, upright and without
    EXIF: a JPEG as JPEG of quality 95 without chroma subsampling, any other as PNG. All others are unchanged.
    """
    with Image.open(io.BytesIO(image), formats=decodable()) as stored:
        suffix = {"JPEG": "jpg", "MPO": "jpg"}.get(stored.format, stored.format.lower())
        if not has_orientation(stored):
            return suffix, image
        profile = stored.info.get("icc_profile") if stored.mode == "RGB" else None
    kind, suffix = ("JPEG", "jpg") if suffix == "jpg" else ("PNG", "png")
    out = io.BytesIO()
    pixels = Image.fromarray(decode_image(image))  # carries no metadata over
    pixels.save(out, kind, quality=95, subsampling=0, icc_profile=profile)
    return suffix, out.getvalue()


def _npy(label: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, label, allow_pickle=False)
    return out.getvalue()
