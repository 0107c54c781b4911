"""Label store against PNG files: bytes an image, and time to decode one label.

    python benchmarks/store.py [--images 64] [--side 96] [--results DIR]

Labels are those of the experts in `DIR/labels` (`results` of a run), or else exact ones of rendered scenes, which are
flatter. PNG is what label sets are mostly kept as: 8-bit classes; depth in 16 bits, with as many levels as ours;
normals as red, green, blue with kappa as alpha. Both sides decode to the label that training uses. Repeats alternate;
a ratio's spread is the least and the greatest over the repeats. The last line is a JSON list.
"""

import argparse
import io
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from cliptex.config import Miniature
from cliptex.images import encode_png
from cliptex.labels import LabelFile
from cliptex.plugins import find
from cliptex.tasks.base import Task
from cliptex.tasks.depth import LEVELS
from cliptex.tasks.normals import KAPPA_MAX, KAPPA_MIN

REPEATS = 7
GOALS = {"bytes": 1.0, "decode": 1.0}


def png_segmentation(label: np.ndarray) -> tuple[bytes, Callable[[bytes], np.ndarray]]:
    """The label as PNG, and what reads it back."""
    return encode_png(label), lambda data: np.asarray(Image.open(io.BytesIO(data)))


def png_depth(label: np.ndarray) -> tuple[bytes, Callable[[bytes], np.ndarray]]:
    """As many levels as the store's codec, 0 = invalid."""
    low, high = np.nanmin(label), np.nanmax(label)
    scale = np.float32((high - low) / (LEVELS - 1))
    codes = np.nan_to_num(np.rint((label - low) / (scale or 1)) + 1).astype(np.uint16)

    def decode(data: bytes) -> np.ndarray:
        codes = np.asarray(Image.open(io.BytesIO(data)))
        out = (codes.astype(np.float32) - 1) * scale + low
        out[codes == 0] = np.nan
        return out

    return encode_png(codes), decode


def png_normals(label: np.ndarray) -> tuple[bytes, Callable[[bytes], np.ndarray]]:
    """RGBA of 8 bits; alpha is kappa on a logarithmic scale, 0 = invalid."""
    span = np.log(KAPPA_MAX / KAPPA_MIN)
    codes = np.empty(label.shape, np.float32)
    codes[..., :3] = (label[..., :3] + 1) * 127.5
    codes[..., 3] = np.log(np.clip(label[..., 3], KAPPA_MIN, KAPPA_MAX) / KAPPA_MIN) / span * 254 + 1
    codes = np.rint(np.nan_to_num(codes)).astype(np.uint8)
    table = np.float32(KAPPA_MIN) * np.exp((np.arange(256, dtype=np.float32) - 1) / 254 * np.float32(span))

    def decode(data: bytes) -> np.ndarray:
        codes = np.asarray(Image.open(io.BytesIO(data)))
        out = codes.astype(np.float32) / 127.5 - 1
        out[..., :3] /= np.sqrt(np.einsum("hwc,hwc->hw", out[..., :3], out[..., :3]))[..., None]
        out[..., 3] = table[codes[..., 3]]
        out[codes[..., 3] == 0] = np.nan
        return out

    return encode_png(codes), decode


PNG = {"segmentation": png_segmentation, "depth": png_depth, "normals": png_normals}


def rendered(task: str, images: int, side: int) -> list[np.ndarray]:
    """Exact labels of the miniature's first pairs."""
    from cliptex.experts.truth import TruthExpert

    miniature = Miniature(image_size_px=side)
    expert = TruthExpert({"network": {"task": task}, "miniature": miniature.model_dump(mode="json")})
    expert.load(None)
    keys = [f"{number:09d}" for number in range(images)]
    return expert.predict([np.empty((side, side, 3), np.uint8)] * images, keys)


def stored(task: Task, store: Path, images: int) -> list[np.ndarray]:
    """The first labels of a store."""
    labels: list[np.ndarray] = []
    for path in sorted(store.glob("*.parquet")):
        file = LabelFile(path, task)
        labels += [label for row in range(len(file)) if (label := file.label(row)) is not None]
        if len(labels) >= images:
            break
    return labels[:images]


def error(task: str, decoded: np.ndarray, label: np.ndarray) -> float:
    """Mean error of the codec: share of changed pixels, share of the range, or degrees."""
    if task == "segmentation":
        return float(np.mean(decoded != label))
    if task == "depth":
        return float(np.nanmean(np.abs(decoded - label)) / max(np.nanmax(label) - np.nanmin(label), 1e-30))
    chord = np.linalg.norm(decoded[..., :3].astype(np.float64) - label[..., :3], axis=-1)
    return float(np.nanmean(np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1)))))


def seconds(decode: Callable[[], None]) -> float:
    """Processor time of one pass over all labels."""
    start = time.process_time()
    decode()
    return time.process_time() - start


def measure(name: str, labels: list[np.ndarray], source: str) -> list[dict]:
    """The two results of a task."""
    task: Task = find("tasks", name)()
    payloads = [(task.encode(label), *label.shape[:2]) for label in labels]
    pngs = [PNG[name](label) for label in labels]

    def ours() -> None:
        for payload in payloads:
            task.decode(*payload)

    def theirs() -> None:
        for data, decode in pngs:
            decode(data)

    ours(), theirs()
    times = [(seconds(ours), seconds(theirs)) for _ in range(REPEATS)]
    sizes = [(len(payload), len(data)) for (payload, _, _), (data, _) in zip(payloads, pngs, strict=True)]
    found = {
        "bytes": ([sum(a for a, _ in sizes) / sum(b for _, b in sizes)], sizes, 1.0, "bytes an image"),
        "decode": ([a / b for a, b in times], times, 1000 / len(labels), "milliseconds of processor time a label"),
    }
    what = {
        "labels": source,
        "images": len(labels),
        "label_grid": list(labels[0].shape[:2]),
        "codec": task.codec()["name"],
        "mean_error": float(np.mean([error(name, task.decode(*p), x) for p, x in zip(payloads, labels, strict=True)])),
        "png_mean_error": float(np.mean([error(name, d(b), x) for (b, d), x in zip(pngs, labels, strict=True)])),
    }
    out = []
    for quantity, (ratios, values, factor, unit) in found.items():
        middle = statistics.mean if quantity == "bytes" else statistics.median
        ratio = statistics.median(ratios)
        out.append(
            {
                "benchmark": "store",
                "task": name,
                "quantity": quantity,
                "ratio": round(ratio, 3),
                "spread": [round(min(ratios), 3), round(max(ratios), 3)],
                "goal": f"<= {GOALS[quantity]}",
                "holds": ratio <= GOALS[quantity],
                "what": f"label store over PNG, {unit}",
                "store": round(middle(a for a, _ in values) * factor, 4),
                "png": round(middle(b for _, b in values) * factor, 4),
                **what,
                "machine": {
                    "processor": platform.machine(),
                    "cores": os.cpu_count(),
                    "python": platform.python_version(),
                },
            }
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=64, help="labels a task")
    parser.add_argument("--side", type=int, default=96, help="side of the rendered labels, pixels")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of a run with label stores")
    options = parser.parse_args()
    results = []
    for name in PNG:
        store = options.results / "labels" / name
        if (store / "index.json").exists():
            labels, source = stored(find("tasks", name)(), store, options.images), "experts"
        else:
            labels, source = rendered(name, options.images, options.side), "rendered, exact"
        for result in measure(name, labels, source):
            print(
                f"{name:13} {result['quantity']:7} store {result['store']:10.3f}  png {result['png']:10.3f}"
                f"  ratio {result['ratio']:.2f}  error {result['mean_error']:.2g} (png {result['png_mean_error']:.2g})"
            )
            results.append(result)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
