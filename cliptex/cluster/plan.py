"""Estimate labelling a data set before any job has run: numbers of images, bytes, jobs, time.

Reads   the configuration, existing files in results/, and the first bytes of a few remote tars.
Holds   every figure states its origin; a figure that cannot be known is None, never a guess.
"""

import io
import tarfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from cliptex.cluster.plan_text import in_bytes
from cliptex.config import Config, Model
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_checked
from cliptex.core.plugins import find
from cliptex.data.download import start_of_tar
from cliptex.data.images import decode_image
from cliptex.data.official.status import missing_data, needs_pairs, official_files, weights_to_fetch
from cliptex.data.shard_index import read_index
from cliptex.data.shard_paths import data_sha256, is_remote, num_batches, shard_paths, shard_sources
from cliptex.data.shards import KEY_AND_SUFFIX, compression, iterate_shard
from cliptex.experts.options import FeaturesOptions
from cliptex.experts.training import load_expert

BYTES_PER_PIXEL = {"segmentation": 528 / 224**2, "depth": 9849 / 224**2, "normals": 21846 / 224**2}
"""Bytes per pixel of a label; measured on the `smooth` labels of benchmarks/store.py."""
IMAGE_BYTES_PER_PIXEL = 0.28
"""Bytes per pixel of photographs as JPEG: 489 MB for a tar of 5,045 pairs with shorter side 512 (pixparse/cc3m-wds)."""
MEASURED_IMAGES = 4
SAMPLED_TARS = 3
START_BYTES = 1 << 20
"""Bytes read of a remote tar to estimate the size of its samples."""
TYPICAL_SIZE_PX = (288, 384)
"""Assumed height and width of a web image, if there is no shard yet."""


def make_plan(config: Config, measure: bool = True) -> dict[str, Any]:
    """The plan: `images`, `stores`, `models`, `weights`, `benchmarks`, `features` and `missing`, what the user must
    provide first.

    `weights`: names of experts, and `student`, whose published weights are to download; `benchmarks`:
    `cliptex.data.official.status.official_files`; `features`, by benchmark: `plan_features`.
    Each figure has its origin in `*_from`. measure: read the beginning of a few tars if all are remote, and run each
    expert, untrained, on a few images if its rate is not known from finished jobs.
    """
    from cliptex.evaluation.probes.feature_plan import plan_features

    images = _images(config, measure)
    return {
        "images": images,
        "stores": {name: _store(config, name, images, measure) for name in config.label_stores},
        "models": {name: _training(config, model, images) for name, model in config.models.items() if model.is_trained},
        "weights": weights_to_fetch(config),
        "benchmarks": official_files(config),
        "features": {name: plan_features(config, name) for name in config.probes.benchmarks},
        "missing": missing_data(config),
    }


def _training(config: Config, model: Model, images: dict[str, Any]) -> dict[str, Any]:
    """A model's `steps`, and of how many `pairs`; None if these are not known. They are what `images` says."""
    pairs = None if images["number"] is None else max(0, images["number"] - config.train.held_out)
    steps = model.steps if model.epochs is None else None
    if steps is None and pairs is not None:
        steps = model.num_steps(pairs, config.train.batch_size)
    return {"steps": steps, "epochs": model.epochs, "pairs": pairs, "batch_size": config.train.batch_size}


def _images(config: Config, measure: bool) -> dict[str, Any]:
    if not needs_pairs(config):
        no_pairs = "none needed: no model is trained, and there is no label store"
        return {"shards": 0, "number": 0, "bytes": 0, "number_from": no_pairs, "bytes_from": no_pairs}
    shards = shard_paths(config)
    out: dict[str, Any] = {"shards": len(shards), "number": None, "bytes": None, "bytes_from": "unknown"}
    out["number_from"] = "unknown until results/shards/index.json exists"
    if index := _index(config):
        out |= {"number": index["num_samples"], "number_from": str(paths.SHARD_INDEX)}
        out |= {"bytes": sum(entry["bytes"] for entry in index["shards"]), "bytes_from": str(paths.SHARD_INDEX)}
        return out
    existing = _existing(config)
    if config.dataset.source == "miniature":
        out |= {"number": config.miniature.pairs, "number_from": "miniature.pairs"}
    elif config.dataset.source == "urls":
        out |= {"number": config.dataset.urls.rows, "number_from": "dataset.urls.rows, an upper bound: urls die"}
    elif existing:
        out["number"] = sum(1 for _ in iterate_shard(existing[0])) * len(shards)
        out["number_from"] = f"{len(shards)} shards with as many images as {existing[0]}"
    if existing:
        total = sum(path.stat().st_size for path in existing) * len(shards) // len(existing)
        out |= {"bytes": total, "bytes_from": f"{len(existing)} existing shards of {len(shards)}"}
    elif out["number"] is not None:
        height, width = _image_size(config)
        out["bytes"] = round(IMAGE_BYTES_PER_PIXEL * height * width * out["number"])
        out["bytes_from"] = f"JPEG photographs of {height} x {width} pixels"
    elif remote := [source for source in shard_sources(config) if is_remote(source)]:
        out |= _remote_shards(remote, len(shards)) if measure else {"bytes_from": "remote tars, not measured"}
    return out


def _index(config: Config) -> dict[str, Any] | None:
    """The shard index, if there is one and it is of this configuration's data."""
    if not paths.SHARD_INDEX.exists():
        return None
    index = read_index(paths.SHARD_INDEX)
    is_same = index.get("data_sha256") in (None, data_sha256(config))
    indexed = [Path(entry["path"]).absolute() for entry in index["shards"]]
    same_paths = indexed == [path.absolute() for path in _plain_shards(config)]
    return index if is_same and same_paths else None


def _is_other_run(config: Config) -> bool:
    """Whether the results in the working directory are those of other data."""
    return paths.SHARD_INDEX.exists() and _index(config) is None


def _existing(config: Config) -> list[Path]:
    """The shards that exist; those in results/ count only if they are of this configuration's data."""
    made = paths.SHARDS if _is_other_run(config) else None
    return [path for path in _plain_shards(config) if path.is_file() and path.parent != made]


def _plain_shards(config: Config) -> list[Path]:
    """The paths of all shards; of compressed tars those of their decompressed copies."""
    return [paths.shard(n) if compression(path) else path for n, path in enumerate(shard_paths(config))]


def _remote_shards(sources: list[str], shards: int) -> dict[str, Any]:
    """Bytes and number of all samples, estimated from the first bytes of a few tars; or why this failed."""
    sampled = sources[:: -(-len(sources) // SAMPLED_TARS)]
    try:
        starts, sizes = zip(*(start_of_tar(source, START_BYTES) for source in sampled), strict=True)
    except CliptexError as error:
        return {"bytes_from": f"unknown: {error}"}
    if None in sizes:
        return {"bytes_from": f"unknown: the server does not report the size of {sampled[sizes.index(None)]}"}
    total, per_sample = sum(sizes) * shards // len(sampled), [_bytes_per_sample(start) for start in starts]
    out = {"bytes": total, "bytes_from": f"{len(sampled)} of {shards} shards, by their servers now"}
    if None not in per_sample:
        mean = sum(per_sample) / len(per_sample)
        number_from = f"{in_bytes(mean)} per sample at the beginning of these shards"
        out |= {"number": round(total / mean), "number_from": number_from}
    return out


def _bytes_per_sample(start: bytes) -> float | None:
    """Bytes per sample at the beginning of a tar; None without one whole sample."""
    offsets: dict[str, int] = {}
    with suppress(tarfile.ReadError), tarfile.open(fileobj=io.BytesIO(start), mode="r:") as tar:  # it is truncated
        for member in tar:
            if member.isfile() and (named := KEY_AND_SUFFIX.match(member.name)):
                offsets.setdefault(named[1], member.offset)
    return max(offsets.values()) / (len(offsets) - 1) if len(offsets) > 1 else None


def _store(config: Config, name: str, images: dict[str, Any], measure: bool) -> dict[str, Any]:
    number = images["number"]
    size, size_from = _bytes_per_image(config, name)
    rate, rate_from = _rate(config, name, measure)
    seconds = None if rate is None or number is None else number / rate
    if config.label_stores[name].expert is None:
        seconds = seconds or 0.0  # no expert runs
    return {
        "task": config.label_stores[name].task,
        "expert": config.label_stores[name].origin,
        "jobs": num_batches(config),
        "bytes_an_image": size,
        "bytes": None if size is None or number is None else round(size * number),
        "bytes_from": size_from,
        "images_a_second": rate,
        "seconds": seconds,
        "seconds_from": rate_from,
    }


def _image_size(config: Config) -> tuple[int, int]:
    """Height and width of an image: the miniature's, else those of the first existing image, else assumed ones."""
    if config.dataset.source == "miniature":
        return (config.miniature.image_size_px,) * 2
    if existing := _existing(config):
        return decode_image(next(pair.image for pair in iterate_shard(existing[0]) if pair.image)).shape[:2]
    if config.dataset.source == "urls":
        return config.dataset.urls.size_px, round(config.dataset.urls.size_px * 4 / 3)
    return TYPICAL_SIZE_PX


def _finished(config: Config, name: str) -> list[dict[str, Any]]:
    if _is_other_run(config):
        return []
    number = int | float | None
    form = {"expert": str, "labelled": int, "images": int, "bytes_per_image": number, "images_per_second": number}
    records = [read_checked(path, form) for path in sorted(paths.labels(name).glob("batch-*.json"))]
    expert = config.label_stores[name].expert  # None: labels are taken from a published set, by any expert
    return [record for record in records if expert in (None, record["expert"])]


def _bytes_per_image(config: Config, name: str) -> tuple[float | None, str]:
    finished = [record for record in _finished(config, name) if record["labelled"]]
    if finished:
        total = sum(record["bytes_per_image"] * record["labelled"] for record in finished)
        return total / sum(record["labelled"] for record in finished), f"{len(finished)} finished jobs"
    task = config.label_stores[name].task
    if task == "features":
        options = FeaturesOptions.model_validate(config.experts[config.label_stores[name].expert].network)
        rows, columns = options.cells
        size = rows * columns * options.dims if options.dims else None
        return size, "at most" if size else "unknown before the first job: all of the teacher's channels"
    if task not in BYTES_PER_PIXEL:
        return None, "unknown before the first job: not a built-in task"
    height, width = _image_size(config)
    scale = min(1.0, config.labels.max_side_px / max(height, width))
    pixels = round(height * scale) * round(width * scale)
    return BYTES_PER_PIXEL[task] * pixels, f"benchmarks/store.py, for labels of {round(pixels**0.5)}² pixels"


def _rate(config: Config, name: str, measure: bool) -> tuple[float | None, str]:
    records = [record for record in _finished(config, name) if record["images_per_second"] and record["images"]]
    if records:
        seconds = sum(record["images"] / record["images_per_second"] for record in records)
        return sum(record["images"] for record in records) / seconds, f"{len(records)} finished jobs"
    if config.label_stores[name].expert is None:
        return None, "no expert runs; the labels are downloaded"
    return _measured(config, name) if measure else (None, "not measured")


def _measured(config: Config, name: str) -> tuple[float | None, str]:
    """Measure the rate of the expert, or of its untrained network if there is no expert yet, after a warm-up batch."""
    expert_name = config.label_stores[name].expert
    expert_config = config.experts[expert_name]
    try:
        if (paths.expert(expert_name) / "expert.json").is_file() and not _is_other_run(config):
            source, expert = "expert", load_expert(expert_name, expert_config, paths.expert(expert_name))
        else:
            source, plain = "untrained network", expert_config.model_dump(mode="json")
            plain["miniature"] = config.miniature.model_dump(mode="json")
            expert = find("experts", expert_config.plugin or expert_name)(plain)
            expert.load(None)
        size = _image_size(config)
        height, width = (round(side * min(1, config.labels.max_image_side_px / max(size))) for side in size)
        count = min(expert_config.batch_size, MEASURED_IMAGES)
        pixels = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)
        keys = [f"{number:09d}" for number in range(count)]
        expert.predict(list(pixels), keys)
        start = time.perf_counter()
        expert.predict(list(pixels), keys)
        seconds = time.perf_counter() - start
    except Exception as error:  # the plan is useful without this figure
        return None, f"cannot be measured without weights ({type(error).__name__}: {error})"[:200]
    device = getattr(expert, "device", "cpu")
    return count / seconds, f"{source}, {count} images of {height} x {width} on this machine's {device}, now"
