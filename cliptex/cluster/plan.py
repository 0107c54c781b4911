"""What labelling a data set will take, before any job of it has run.

Reads   the configuration, what of results/ is there already, and the beginning of a few tars that are still on the web.
Writes  nothing.
Holds   every figure says where it comes from; what cannot be known is None, never a guess.
"""

import io
import tarfile
import time
from contextlib import suppress
from typing import Any

import numpy as np

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json
from cliptex.core.plugins import find
from cliptex.data.download import start_of_tar
from cliptex.data.images import decode_image
from cliptex.data.official.status import official_files
from cliptex.data.shard_paths import is_remote, num_batches, shard_paths, shard_sources
from cliptex.data.shards import iterate_shard, read_index
from cliptex.experts.training import load_expert

BYTES_A_PIXEL = {"segmentation": 528 / 224**2, "depth": 9849 / 224**2, "normals": 21846 / 224**2}
"""Of label grid; `smooth` labels in benchmarks/store.py."""
IMAGE_BYTES_A_PIXEL = 0.28
"""Of photographs as JPEG: 489 MB a tar of 5,045 pairs with a shorter side of 512 (pixparse/cc3m-wds)."""
MEASURED_IMAGES = 4
SAID = {"download": "to download", "missing": "to be got by hand", "": "to be taken from where they are"}
"""What is said of a benchmark's file, by `cliptex.data.official.archives.Place.how`."""
TARS_LOOKED_AT = 3
START_BYTES = 1 << 20
"""Bytes of a tar on the web by which its samples are judged."""
TYPICAL_SIZE_PX = (288, 384)
"""Height and width taken for an image of the web where no shard is there to look at."""


def make_plan(config: Config, measure: bool = True) -> dict[str, Any]:
    """`images` (shards, number, bytes), `stores` (by name: jobs, label bytes, images a second, seconds), `benchmarks`
    (by name: the official files that are not in place, as `cliptex.data.official.status.official_files` has them), `features`
    (by benchmark: what frozen encoders' features will take, as `cliptex.evaluation.probes.feature_plan` says).

    Each figure stands beside its origin, `*_from`. measure: look at the beginning of a few tars where all are on the
    web, and run an expert whose rate is not known from finished jobs, untrained, on a few images.
    """
    from cliptex.evaluation.probes.feature_plan import plan_features

    images = _images(config, measure)
    stores = {name: _store(config, name, images, measure) for name in config.label_stores}
    features = {name: plan_features(config, name) for name in config.probes.benchmarks}
    return {"images": images, "stores": stores, "benchmarks": official_files(config), "features": features}


def _images(config: Config, measure: bool) -> dict[str, Any]:
    shards = shard_paths(config)
    out: dict[str, Any] = {"shards": len(shards), "number": None, "bytes": None, "bytes_from": "not known yet"}
    out["number_from"] = "not known before results/shards/index.json"
    if paths.SHARD_INDEX.exists():
        index = read_index(paths.SHARD_INDEX)
        out |= {"number": index["num_samples"], "number_from": str(paths.SHARD_INDEX)}
        out |= {"bytes": sum(entry["bytes"] for entry in index["shards"]), "bytes_from": str(paths.SHARD_INDEX)}
        return out
    there = [path for path in shards if path.is_file()]
    if config.dataset.source == "miniature":
        out |= {"number": config.miniature.pairs, "number_from": "miniature.pairs"}
    elif config.dataset.source == "urls":
        out |= {"number": config.dataset.urls.rows, "number_from": "dataset.urls.rows, an upper bound: urls die"}
    elif there:
        out["number"] = sum(1 for _ in iterate_shard(there[0])) * len(shards)
        out["number_from"] = f"{len(shards)} shards of as many as {there[0]}"
    if there:
        total = sum(path.stat().st_size for path in there) * len(shards) // len(there)
        out |= {"bytes": total, "bytes_from": f"{len(there)} of {len(shards)} shards that are there"}
    elif out["number"] is not None:
        height, width = _image_size(config)
        out["bytes"] = round(IMAGE_BYTES_A_PIXEL * height * width * out["number"])
        out["bytes_from"] = f"photographs of {height} x {width} as JPEG"
    elif remote := [source for source in shard_sources(config) if is_remote(source)]:
        out |= _on_the_web(remote, len(shards)) if measure else {"bytes_from": "tars on the web, not looked at"}
    return out


def _on_the_web(sources: list[str], shards: int) -> dict[str, Any]:
    """Bytes and number of all samples by the beginning of a few tars; where it cannot be had, why not."""
    few = sources[:: -(-len(sources) // TARS_LOOKED_AT)]
    try:
        starts, sizes = zip(*(start_of_tar(source, START_BYTES) for source in few), strict=True)
    except CliptexError as error:
        return {"bytes_from": f"not known: {error}"}
    if None in sizes:
        return {"bytes_from": f"not known: the server does not say how long {few[sizes.index(None)]} is"}
    total, taken = sum(sizes) * shards // len(few), [_bytes_a_sample(start) for start in starts]
    out = {"bytes": total, "bytes_from": f"{len(few)} of {shards} shards, by their servers now"}
    if None not in taken:
        each = sum(taken) / len(taken)
        out |= {
            "number": round(total / each),
            "number_from": f"{_bytes(each)} a sample at the beginning of these shards",
        }
    return out


def _bytes_a_sample(start: bytes) -> float | None:
    """Bytes that a sample takes in the beginning of a tar; None where that has no whole one."""
    begins: dict[str, int] = {}
    with suppress(tarfile.ReadError), tarfile.open(fileobj=io.BytesIO(start), mode="r:") as tar:  # which is cut off
        for member in tar:
            if member.isfile():
                begins.setdefault(member.name.rpartition("/")[2].partition(".")[0], member.offset)
    return max(begins.values()) / (len(begins) - 1) if len(begins) > 1 else None


def _store(config: Config, name: str, images: dict[str, Any], measure: bool) -> dict[str, Any]:
    number = images["number"]
    size, size_from = _bytes_an_image(config, name)
    rate, rate_from = _rate(config, name, measure)
    return {
        "task": config.label_stores[name].task,
        "expert": config.label_stores[name].expert,
        "jobs": num_batches(config),
        "bytes_an_image": size,
        "bytes": None if size is None or number is None else round(size * number),
        "bytes_from": size_from,
        "images_a_second": rate,
        "seconds": None if rate is None or number is None else number / rate,
        "seconds_from": rate_from,
    }


def _image_size(config: Config) -> tuple[int, int]:
    """Height and width of an image: the miniature's own, else of the first image that is there, else typical."""
    if config.dataset.source == "miniature":
        return (config.miniature.image_size_px,) * 2
    for path in shard_paths(config):
        if path.is_file():
            return decode_image(next(pair.image for pair in iterate_shard(path) if pair.image)).shape[:2]
    if config.dataset.source == "urls":
        return config.dataset.urls.size_px, round(config.dataset.urls.size_px * 4 / 3)
    return TYPICAL_SIZE_PX


def _finished(config: Config, name: str) -> list[dict[str, Any]]:
    """Batch files of the store that are there, by the configured expert."""
    records = [read_json(path) for path in sorted(paths.labels(name).glob("batch-*.json"))]
    return [record for record in records if record["expert"] == config.label_stores[name].expert]


def _bytes_an_image(config: Config, name: str) -> tuple[float | None, str]:
    finished = [record for record in _finished(config, name) if record["labelled"]]
    if finished:
        total = sum(record["bytes_per_image"] * record["labelled"] for record in finished)
        return total / sum(record["labelled"] for record in finished), f"{len(finished)} finished jobs"
    task = config.label_stores[name].task
    if task not in BYTES_A_PIXEL:
        return None, "not known before the first job: a task of your own"
    height, width = _image_size(config)
    scale = min(1.0, config.labels.max_side_px / max(height, width))
    pixels = round(height * scale) * round(width * scale)
    return BYTES_A_PIXEL[task] * pixels, f"benchmarks/store.py, for labels of {round(pixels**0.5)}² pixels"


def _rate(config: Config, name: str, measure: bool) -> tuple[float | None, str]:
    fresh = [record for record in _finished(config, name) if record["images_per_second"]]
    if fresh:
        seconds = sum(record["images"] / record["images_per_second"] for record in fresh)
        return sum(record["images"] for record in fresh) / seconds, f"{len(fresh)} finished jobs"
    if not measure:
        return None, "not measured"
    return _measured(config, name)


def _measured(config: Config, name: str) -> tuple[float | None, str]:
    """The rate of the expert, or of its network untrained where it is not there yet, after a first batch that pays for
    start-up."""
    expert_name = config.label_stores[name].expert
    settings = config.experts[expert_name]
    try:
        if (paths.expert(expert_name) / "expert.json").is_file():
            what, expert = "expert", load_expert(expert_name, settings, paths.expert(expert_name))
        else:
            what, plain = "untrained network", settings.model_dump(mode="json")
            plain["miniature"] = config.miniature.model_dump(mode="json")
            expert = find("experts", settings.plugin or expert_name)(plain)
            expert.load(None)
        size = _image_size(config)
        height, width = (round(side * min(1, config.labels.max_image_side_px / max(size))) for side in size)
        count = min(settings.batch_size, MEASURED_IMAGES)
        pixels = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)
        keys = [f"{number:09d}" for number in range(count)]
        expert.predict(list(pixels), keys)
        start = time.perf_counter()
        expert.predict(list(pixels), keys)
        seconds = time.perf_counter() - start
    except Exception as error:  # a plan is worth having without this figure
        return None, f"cannot be measured without weights ({type(error).__name__}: {error})"[:200]
    device = getattr(expert, "device", "cpu")
    return count / seconds, f"{what}, {count} images of {height} x {width} on this machine's {device}, now"


def shown(plan: dict[str, Any]) -> str:
    """The plan as text."""
    images = plan["images"]
    number = "?" if images["number"] is None else f"{images['number']:,}"
    lines = [
        f"images  {images['shards']:,} shards; {number} images ({images['number_from']});"
        f" {_bytes(images['bytes'])} ({images['bytes_from']})"
    ]
    for name, store in plan["stores"].items():
        rate = (
            "? images a second"
            if store["images_a_second"] is None
            else f"{store['images_a_second']:.3g} images a second"
        )
        lines += [
            f"{name}  {store['task']} by {store['expert']}: {store['jobs']:,} jobs",
            f"    labels  {_bytes(store['bytes'])}, {_bytes(store['bytes_an_image'])} an image ({store['bytes_from']})",
            f"    expert  {_hours(store['seconds'])} one job at a time, {rate} ({store['seconds_from']})",
        ]
    stores = plan["stores"].values()
    totals = {key: [store[key] for store in stores] for key in ("bytes", "seconds")}
    sums = {key: None if None in values else sum(values) for key, values in totals.items()}
    lines.append(
        f"in all  {sum(store['jobs'] for store in stores):,} labelling jobs, labels {_bytes(sums['bytes'])},"
        f" experts {_hours(sums['seconds'])}"
    )
    return "\n".join([*lines, *_benchmark_lines(plan["benchmarks"]), *_feature_lines(plan["features"])])


PLACES = {
    "disk": "kept on disk",
    "memory": "more than probes.cache_gb; held in memory, and computed again by the next run",
    "nowhere": "more than probes.cache_gb and probes.memory_gb; the encoder would run in every step",
    None: "not known before the encoder is built",
}


def _feature_lines(features: dict[str, dict[str, Any]]) -> list[str]:
    """What the features take that a benchmark's probes are trained on."""
    lines = []
    for name, one in features.items():
        if (views := one["views"]) is None:
            lines.append(f"{name}  features ? bytes: how many images it has is not known")
            continue
        number = f"{views['train']:,} + {views['eval']:,} views"
        size, memory = _bytes(one["bytes_a_model"]), _bytes(one["memory"])
        truths = f", training truths {_bytes(one['truths'])}" if one["truths"] else ""
        lines.append(
            f"{name}  features of a model {size} ({number}), as float32 {memory}{truths}; {PLACES[one['place']]}"
        )
    return lines


def _benchmark_lines(benchmarks: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What is to be downloaded, taken from a folder, or got by hand, for each benchmark."""
    lines, total = [], 0
    for name, files in benchmarks.items():
        parts = []
        for way, said in SAID.items():
            chosen = [file for file in files if SAID.get(file["how"], SAID[""]) == said]
            if chosen:
                known = sum(file["bytes"] or 0 for file in chosen)
                total += known if way == "download" else 0
                parts.append(f"{', '.join(file['file'] for file in chosen)} {said} ({_bytes(known or None)})")
        lines.append(f"{name}  {'; '.join(parts) or 'all in place, to be checked'}")
    return [*lines, f"in all  {_bytes(total)} of benchmarks to download"] if lines else []


def _bytes(count: float | None) -> str:
    if count is None:
        return "? bytes"
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"


def _hours(seconds: float | None) -> str:
    if seconds is None:
        return "? hours"
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds:,.0f} s"
