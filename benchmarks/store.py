"""Compare label codecs with PNG and float16: bytes per image, error, and time to encode and decode.

    python benchmarks/store.py [--quick] [--images 24] [--side 224] [--results DIR]

Labels are those of rendered scenes, exact and with errors like an expert's:

`exact`   as rendered: flat classes, sharp edges, no noise
`smooth`  outlines moved by 2 pixels, depth and normals blurred by 2, with errors that change slowly over the image
          (3 % of the range, 9 degrees), noise of 0.05 % of the range and 0.2 degrees, and varying kappa
`noisy`   the same with noise of 0.5 % of the range and 2 degrees in every pixel, more than networks produce

With `--results`, labels of a run's stores are used instead. The reference PNGs are 8-bit classes, 16-bit depth between
the label's minimum and maximum, and 3 x 8-bit normals without kappa; the store's normals include it. `--quick` takes
a quarter of the labels.

`bytes` is the size of the three labels divided by that of the PNGs; `decode` is the time to decode them to the arrays
used in training, divided by that of the PNGs (repeats alternate; the spread is minimum and maximum). `candidates` lists
all codecs tried. `settings` has WebP's methods 0 to 6 with several efforts, for depth and normals: bytes, and times to
encode and decode, relative to the store's method 2 and effort 50. The last line is a JSON list.
"""

import argparse
import io
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
from PIL import Image
from scipy.ndimage import gaussian_filter

from cliptex.config import Miniature
from cliptex.core.plugins import find
from cliptex.data.images import encode_png
from cliptex.labels.store import LabelFile
from cliptex.tasks.base import Task
from cliptex.tasks.normals import KAPPA_MAX, KAPPA_MIN

REPEATS = 7
TASKS = ("segmentation", "depth", "normals")
GOALS = {"bytes": 0.40, "decode": 1.0}
MAX_MEAN_DEGREES, MAX_DEPTH_ERROR = 1.0, 0.005
VARIANTS = {"exact": None, "smooth": (2.0, 0.05), "noisy": (1.0, 0.5)}
"""Blur in pixels, and noise of depth in percent of the range; that of normals is 4 degrees a percent."""
PLAIN = (2, 50)
"""The store's method and effort."""
EFFORTS = {method: (0, 50) if method < 5 else (50,) for method in range(7)} | {2: (0, 25, 50, 75)}
"""WebP's efforts tried with each method."""


# ---- labels


def rendered(task: str, images: int, side: int) -> list[np.ndarray]:
    """Exact labels of the miniature's first pairs."""
    from cliptex.experts.truth import TruthExpert

    miniature = Miniature(image_size_px=side)
    expert = TruthExpert({"network": {"task": task}, "miniature": miniature.model_dump(mode="json")})
    expert.load(None)
    keys = [f"{number:09d}" for number in range(images)]
    return expert.predict([np.empty((side, side, 3), np.uint8)] * images, keys)


def field(rng: np.random.Generator, shape: tuple[int, int], size: float) -> np.ndarray:
    """A random field of unit deviation, smooth at a scale of `size` pixels."""
    values = gaussian_filter(rng.standard_normal(shape), size, mode="wrap")
    return values / values.std()


def as_predicted(task: str, label: np.ndarray, blur: float, noise: float, rng: np.random.Generator) -> np.ndarray:
    """An exact label with errors like a network's; see the module's docstring."""
    shape = label.shape[:2]
    if task == "segmentation":
        rows, columns = np.indices(shape) + np.stack([2 * field(rng, shape, 6), 2 * field(rng, shape, 6)])
        rows, columns = (
            np.clip(np.rint(at), 0, side - 1).astype(int) for at, side in zip((rows, columns), shape, strict=True)
        )
        return label[rows, columns]
    if task == "depth":
        error = 0.03 * field(rng, shape, 16) + noise / 100 * rng.standard_normal(shape)
        return (gaussian_filter(label, blur) + np.ptp(label) * error).astype(np.float32)
    # networks predict normals in the sky, too
    normals = np.where(np.isfinite(label[..., :3]), label[..., :3], (0, 0, 1))
    normals = np.stack([gaussian_filter(normals[..., axis], blur) for axis in range(3)], axis=-1)
    normals += np.radians(9) * np.stack([field(rng, shape, 16) for _ in range(3)], axis=-1)
    normals += np.radians(4 * noise) * rng.standard_normal(normals.shape)
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    # uncertain where directions differ
    kappa = np.exp(np.log(30) * np.clip(length, 0.1, 1) + 0.5 * field(rng, shape, 8)[..., None])
    return np.concatenate([normals / length, kappa], axis=-1).astype(np.float32)


def stored(task: Task, store: Path, images: int) -> list[np.ndarray]:
    """The first labels of a store."""
    labels: list[np.ndarray] = []
    for path in sorted(store.glob("[0-9]*.parquet")):
        file = LabelFile(path, task)
        labels += [label for row in range(len(file)) if (label := file.label(row)) is not None]
        if len(labels) >= images:
            break
    return labels[:images]


# ---- codecs


@dataclass(frozen=True)
class Codec:
    """`encode`: label to bytes. `decode`: bytes and shape to label."""

    name: str
    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes, tuple[int, ...]], np.ndarray]


def zstd(data: bytes, level: int) -> bytes:
    return pyarrow.Codec("zstd", compression_level=level).compress(data, asbytes=True)


def unzstd(data: bytes, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(pyarrow.Codec("zstd").decompress(data, size, asbytes=True), dtype).reshape(shape)


def differences(codes: np.ndarray, level: int) -> bytes:
    """zstd of the differences from the prediction by the left, upper and upper left neighbours."""
    codes = np.diff(codes, axis=-1, prepend=codes.dtype.type(0))
    return zstd(np.ascontiguousarray(np.diff(codes, axis=-2, prepend=codes.dtype.type(0))).tobytes(), level)


def undifferences(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    codes = unzstd(data, shape, np.uint8)
    return np.cumsum(np.cumsum(codes, axis=-2, dtype=np.uint8), axis=-1, dtype=np.uint8)


def webp(codes: np.ndarray, method: int = PLAIN[0], effort: int = PLAIN[1]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(codes).save(out, "WEBP", lossless=True, exact=True, method=method, quality=effort)
    return out.getvalue()


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def half_float() -> Codec:
    def encode(label: np.ndarray) -> bytes:
        return zstd(label.astype(np.float16).tobytes(), 3)

    return Codec("float16 zstd", encode, lambda data, shape: unzstd(data, shape, np.float16).astype(np.float32))


def levels_of(label: np.ndarray, levels: int) -> tuple[np.ndarray, bytes, np.ndarray]:
    """Codes 1..levels (0 = invalid), the 8 bytes of the header, and the value of each code."""
    low, high = float(np.nanmin(label)), float(np.nanmax(label))
    scale = (levels - 1) / (high - low) if high > low else 0.0
    codes = np.nan_to_num(np.rint((label.astype(np.float64) - low) * scale) + 1).astype(np.uint16)
    return codes, np.array([low, high], "<f4").tobytes(), table_of(low, high, levels)


def table_of(low: float, high: float, levels: int) -> np.ndarray:
    return np.concatenate([[np.nan], np.linspace(low, high, levels)]).astype(np.float32)


def depth_codec(name: str, levels: int, pack: Callable, unpack: Callable) -> Codec:
    def encode(label: np.ndarray) -> bytes:
        codes, head, _ = levels_of(label, levels)
        return head + pack(codes if levels > 255 else codes.astype(np.uint8))

    def decode(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
        low, high = np.frombuffer(data[:8], "<f4")
        return table_of(low, high, levels).take(unpack(data[8:], shape))

    return Codec(name, encode, decode)


def normals_png() -> Codec:
    def encode(label: np.ndarray) -> bytes:
        return encode_png(np.rint((np.nan_to_num(label[..., :3]) + 1) * 127.5).astype(np.uint8))

    def decode(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
        normals = opened(data).astype(np.float32) / 127.5 - 1
        normals /= np.sqrt(np.einsum("hwc,hwc->hw", normals, normals))[..., None]
        return normals

    return Codec("png 3x8, no kappa", encode, decode)


def octahedral(bits: int, kappas: int, name: str, pack: Callable, unpack: Callable) -> Codec:
    """Octahedral coordinates of `bits` bits each, kappa in `kappas` logarithmic levels; channels last."""
    half, span = (1 << (bits - 1)) - 1, np.log(KAPPA_MAX / KAPPA_MIN)

    def encode(label: np.ndarray) -> bytes:
        x, y, z, kappa = np.moveaxis(label.astype(np.float64), -1, 0)
        length = np.abs(x) + np.abs(y) + np.abs(z)
        x, y = x / length, y / length
        folded = (1 - np.abs(y)) * np.copysign(1, x), (1 - np.abs(x)) * np.copysign(1, y)
        x, y = np.where(z < 0, folded[0], x), np.where(z < 0, folded[1], y)
        position = np.log(np.clip(kappa, KAPPA_MIN, KAPPA_MAX) / KAPPA_MIN) / span
        codes = [np.rint(x * half) + half + 1, np.rint(y * half) + half + 1, np.rint(position * (kappas - 1)) + 1]
        return pack(np.nan_to_num(np.stack(codes, axis=-1)).astype(np.uint8))

    def decode(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
        codes = unpack(data, (*shape[:2], 3)).astype(np.float32)
        x, y = (codes[..., axis] - half - 1 for axis in range(2))
        x, y = np.clip(x / half, -1, 1), np.clip(y / half, -1, 1)
        z = 1 - np.abs(x) - np.abs(y)
        fold = np.maximum(-z, 0)
        label = np.stack([x - np.copysign(fold, x), y - np.copysign(fold, y), z, z], axis=-1)
        label[..., :3] /= np.linalg.norm(label[..., :3], axis=-1, keepdims=True)
        label[..., 3] = KAPPA_MIN * np.exp((codes[..., 2] - 1) / (kappas - 1) * np.float32(span))
        label[codes[..., 2] == 0] = np.nan
        return label

    return Codec(f"{name} {bits}+{bits} bits, {kappas} kappas", encode, decode)


def planar(codes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(codes, -1, 0))


def unplanar(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    return np.moveaxis(undifferences(data, (shape[2], *shape[:2])), 0, -1)


def store_codec(task: Task) -> Codec:
    return Codec("STORE", task.encode, lambda data, shape: task.decode(data, *shape[:2]))


def candidates(task: str) -> dict[str, Codec]:
    """Codecs by role: `store` (in use), `png` (reference) and the other candidates."""

    def flat(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
        return opened(data)

    def red(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
        return opened(data)[..., 0]

    store = store_codec(find("tasks", task)())
    if task == "segmentation":
        others = [
            *(
                Codec(f"zstd {level}", lambda label, level=level: zstd(label.tobytes(), level), _unzstd_classes)
                for level in (3, 9, 19)
            ),
            Codec("webp", webp, red),
        ]
        return {"store": store, "png": Codec("png 8", encode_png, flat), **{codec.name: codec for codec in others}}
    if task == "depth":
        others = [
            half_float(),
            depth_codec("zstd of differences, 255 levels", 255, lambda codes: differences(codes, 3), undifferences),
            depth_codec("webp 127 levels", 127, webp, red),
        ]
        png = depth_codec("png 16", 65535, encode_png, flat)
        return {"store": store, "png": png, **{codec.name: codec for codec in others}}
    others = [
        half_float(),
        octahedral(7, 48, "zstd of differences", lambda codes: differences(planar(codes), 3), unplanar),
        octahedral(8, 255, "zstd of differences", lambda codes: differences(planar(codes), 3), unplanar),
        octahedral(7, 255, "webp", webp, flat),
        octahedral(8, 48, "webp", webp, flat),
    ]
    return {"store": store, "png": normals_png(), **{codec.name: codec for codec in others}}


def _unzstd_classes(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    return unzstd(data, shape, np.uint8)


# ---- measuring


def errors(task: str, decoded: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    """Mean and maximum error of a label: share of changed pixels, share of the label's range, or degrees."""
    if task == "segmentation":
        changed = float(np.mean(decoded != label))
        return changed, changed
    if task == "depth":
        off = np.abs(decoded.astype(np.float64) - label) / max(float(np.nanmax(label) - np.nanmin(label)), 1e-30)
    else:
        chord = np.linalg.norm(decoded[..., :3].astype(np.float64) - label[..., :3], axis=-1)
        off = np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1)))
    return float(np.nanmean(off)), float(np.nanmax(off))


def seconds(work: Callable[[], object]) -> float:
    """CPU time of `work`."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(task: str, codec: Codec, labels: list[np.ndarray]) -> dict:
    """Bytes, errors and milliseconds of CPU time per image."""
    codec.decode(codec.encode(labels[0]), labels[0].shape)  # builds lookup tables, not timed
    encode = seconds(lambda: [codec.encode(label) for label in labels])
    payloads = [codec.encode(label) for label in labels]
    pairs = list(zip(payloads, labels, strict=True))
    decode = seconds(lambda: [codec.decode(data, label.shape) for data, label in pairs])
    label_errors = [errors(task, codec.decode(data, label.shape), label) for data, label in pairs]
    return {
        "codec": codec.name,
        "bytes": round(statistics.mean(map(len, payloads))),
        "mean_error": float(np.mean([mean for mean, _ in label_errors])),
        "greatest_error": max(greatest for _, greatest in label_errors),
        "encode_ms": round(1000 * encode / len(labels), 2),
        "decode_ms": round(1000 * decode / len(labels), 2),
    }


def decode_ratios(labels: dict[str, list[np.ndarray]]) -> list[float]:
    """Time to decode all labels from the store's payloads divided by that from PNGs, for each repeat."""
    sides: dict[str, list[tuple[Codec, bytes, tuple[int, ...]]]] = {"store": [], "png": []}
    for task, task_labels in labels.items():
        codecs = candidates(task)
        for side, work in sides.items():
            work += [(codecs[side], codecs[side].encode(label), label.shape) for label in task_labels]

    def decode(side: str) -> None:
        for codec, data, shape in sides[side]:
            codec.decode(data, shape)

    decode("store"), decode("png")
    times = [(seconds(lambda: decode("store")), seconds(lambda: decode("png"))) for _ in range(REPEATS)]
    return [store / png for store, png in times]


def codes_of(task: str, label: np.ndarray) -> np.ndarray:
    """The plane or planes that the store gives to WebP."""
    payload = find("tasks", task)().encode(label)
    return opened(payload[8:])[..., 0] if task == "depth" else opened(payload)


def efforts(planes: list[np.ndarray]) -> list[dict]:
    """Bytes and times of each of WebP's settings, relative to `PLAIN`."""
    found = []
    for method, effort in ((method, effort) for method, tries in EFFORTS.items() for effort in tries):
        files: list[bytes] = []
        encode = seconds(lambda files=files, m=method, e=effort: files.extend(webp(codes, m, e) for codes in planes))
        decode = seconds(lambda files=files: [opened(data) for data in files])
        found.append(
            {"method": method, "effort": effort} | {"bytes": sum(map(len, files)), "encode": encode, "decode": decode}
        )
    (plain,) = [one for one in found if (one["method"], one["effort"]) == PLAIN]
    return [one | {name: round(one[name] / plain[name], 3) for name in ("bytes", "encode", "decode")} for one in found]


def results_of(content: str, labels: dict[str, list[np.ndarray]]) -> list[dict]:
    """The results for one variant of the labels."""
    table = {
        task: {role: measure(task, codec, labels[task]) for role, codec in candidates(task).items()} for task in TASKS
    }
    for task, rows in table.items():
        for row in rows.values():
            print(
                f"{content:7} {task:13} {row['codec']:41} {row['bytes']:7} bytes  error {row['mean_error']:.2g} mean,"
                f" {row['greatest_error']:.2g} greatest  encode {row['encode_ms']:6.2f} ms"
                f"  decode {row['decode_ms']:5.2f} ms",
                flush=True,
            )
    depth, normals = table["depth"]["store"], table["normals"]["store"]
    small = {side: sum(table[task][side]["bytes"] for task in TASKS) for side in ("store", "png")}
    bytes_ratio = small["store"] / small["png"]
    exact_enough = normals["mean_error"] <= MAX_MEAN_DEGREES and depth["greatest_error"] <= MAX_DEPTH_ERROR
    ratios = decode_ratios(labels)
    planes = {task: [codes_of(task, label) for label in labels[task]] for task in ("depth", "normals")}
    first = labels["depth"][0]
    common = {
        "labels": content,
        "images": len(labels["depth"]),
        "label_grid": list(first.shape[:2]),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
    }
    return [
        {
            "benchmark": "store",
            "quantity": "bytes",
            "ratio": round(bytes_ratio, 3),
            "spread": [round(bytes_ratio, 3)] * 2,
            "goal": f"<= {GOALS['bytes']}, normals off by <= {MAX_MEAN_DEGREES:g} degree on average and depth by"
            f" <= {MAX_DEPTH_ERROR:.1%} of its range at most",
            "holds": bytes_ratio <= GOALS["bytes"] and exact_enough,
            "what": "bytes of three labels in the store over the usual PNGs",
            "store": small["store"],
            "png": small["png"],
            "normals_mean_degrees": normals["mean_error"],
            "depth_greatest_error": depth["greatest_error"],
            "depth_mean_error": depth["mean_error"],
            "candidates": {task: list(rows.values()) for task, rows in table.items()},
            "settings": {task: efforts(codes) for task, codes in planes.items()},
            **common,
        },
        {
            "benchmark": "store",
            "quantity": "decode",
            "ratio": round(statistics.median(ratios), 3),
            "spread": [round(min(ratios), 3), round(max(ratios), 3)],
            "goal": f"<= {GOALS['decode']}",
            "holds": statistics.median(ratios) <= GOALS["decode"],
            "what": "processor time to decode three labels from the store over the usual PNGs",
            **common,
        },
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="six labels a task")
    parser.add_argument("--images", type=int, default=24, help="labels a task")
    parser.add_argument("--side", type=int, default=224, help="side of the rendered labels, pixels")
    parser.add_argument("--results", type=Path, help="results folder of a run whose label stores to use")
    options = parser.parse_args(argv)
    if options.quick:
        options.images = 6
    results = []
    if options.results is not None:
        labels = {
            task: stored(find("tasks", task)(), options.results / "labels" / task, options.images) for task in TASKS
        }
        results += results_of("stored", labels)
    else:
        exact = {task: rendered(task, options.images, options.side) for task in TASKS}
        for content, variant in VARIANTS.items():
            labels = exact
            if variant is not None:
                rng = np.random.default_rng(0)
                labels = {task: [as_predicted(task, label, *variant, rng) for label in exact[task]] for task in TASKS}
            results += results_of(content, labels)
    for result in results:
        print(f"{result['labels']:7} {result['quantity']:7} ratio {result['ratio']:.3f} {result['spread']}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
