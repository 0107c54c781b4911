"""Throughput of joint loading relative to plain image-text loading, and growth of memory.

    python benchmarks/loader.py [--images 512] [--repeats 3] [--epochs 6]

`loader`  samples per second of one worker that decodes 224 px crops of images with captions AND the labels of three
          stores, relative to a plain webdataset pipeline with the same crops of the same images with captions. Both
          decode, crop and stack with the same functions, without training. Crops and the sizes of labels and targets
          are those of config/paper.yaml.
          The two sides alternate; seconds are CPU seconds of one thread, since with several, waiting would count as
          work. The ratio is the median, the spread minimum and maximum.
`memory`  resident memory after the last epoch relative to that after the second, with windows smaller than the data.

Images are rendered scenes of 256 px with exact labels. The last line is a JSON list.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import webdataset
import yaml
from threadpoolctl import threadpool_limits

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.plugins import find
from cliptex.data.images import decode_image, encode_jpeg
from cliptex.data.miniature.sets import scene_for_key
from cliptex.data.shard_index import index_shards
from cliptex.data.shards import Pair, write_shard
from cliptex.experts.training import train_expert
from cliptex.labels.index import index_labels
from cliptex.labels.label import label_batch
from cliptex.training.batch import crop_image, draw_view
from cliptex.training.loader import JointLoader

PAPER = Path(__file__).resolve().parents[1] / "config" / "paper.yaml"
TASKS = ("segmentation", "depth", "normals")
CROP_PX = 224
SIZE_PX = 256
BATCH_SIZE = 16
SHARDS = 4
GOAL = 0.7


def make_data(folder: Path, images: int) -> Config:
    """Make shards of rendered scenes and their exact label stores in `folder`, the working directory."""
    paper = yaml.safe_load(PAPER.read_text())
    train = {name: paper["train"][name] for name in ("target_size_px", "crop_scale")}
    shards = [str(paths.shard(number)) for number in range(SHARDS)]
    config = Config.load(
        {
            "dataset": {"source": "webdataset", "shards": shards},
            "miniature": {"image_size_px": SIZE_PX},
            "experts": {f"true_{task}": {"plugin": "truth", "network": {"task": task}} for task in TASKS},
            "label_stores": {task: {"task": task, "expert": f"true_{task}"} for task in TASKS},
            "labels": {"max_side_px": paper["labels"]["max_side_px"]},
            "train": {"batch_size": BATCH_SIZE, "shuffle_shards": 2, **train},
        }
    )
    for number in range(SHARDS):
        count = images // SHARDS
        keys = [f"{row:09d}" for row in range(number * count, (number + 1) * count)]
        pairs = [
            Pair(key, encode_jpeg(scene_for_key(config.miniature, key).image), f"a rendered scene, {key}")
            for key in keys
        ]
        write_shard(folder / paths.shard(number), pairs)
    index_shards([Path(shard) for shard in shards], paths.SHARD_INDEX, 1.0)
    for task in TASKS:
        expert = paths.expert(f"true_{task}")
        train_expert(config, f"true_{task}", paths.EXPERT_RENDERS, expert, 0)
        label_batch(config, task, 0, paths.SHARD_INDEX, expert, paths.labels(task), 0)
        index_labels(config, task, paths.SHARD_INDEX, paths.labels(task))
    return config


def joint(config: Config) -> JointLoader:
    stores = {task: (find("tasks", task)(), paths.labels(task) / "index.json") for task in TASKS}
    return JointLoader(paths.SHARD_INDEX, stores, config.train, CROP_PX, 0)


def plain(config: Config) -> webdataset.WebDataset:
    """Images and captions as usual: shuffle buffer, decoding, random crop, batching."""

    def prepare(sample: dict) -> tuple[np.ndarray, str]:
        view = draw_view(config.train, 0, 0, sample["__key__"])
        return crop_image(decode_image(sample["jpg"]), view, CROP_PX), sample["txt"].decode()

    def stack(samples: list) -> tuple[np.ndarray, list[str]]:
        images, captions = zip(*samples, strict=True)
        return np.stack(images), list(captions)

    data = webdataset.WebDataset(config.dataset.shards, shardshuffle=False).repeat()
    return data.shuffle(100).map(prepare).batched(BATCH_SIZE, collation_fn=stack)


def rate(batches: object, count: int) -> float:
    """Samples per CPU second over `count` batches."""
    start = time.process_time()
    for _ in itertools.islice(batches, count):
        pass
    return count * BATCH_SIZE / (time.process_time() - start)


def resident_mb() -> float:
    """Current resident memory of this process, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="images in four shards")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6, help="epochs over which memory is measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)
    machine = {"cpus": os.cpu_count(), "processor": platform.machine()}
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        config = make_data(Path(scratch), options.images)
        steps = options.images // BATCH_SIZE
        sides = {"joint": joint(config).batches(0), "plain": iter(plain(config))}
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for batches in sides.values():
            rate(batches, 1)  # warm-up
        for _ in range(options.repeats):
            for name, batches in sides.items():
                rates[name].append(rate(batches, steps))
        ratios = [one / other for one, other in zip(rates["joint"], rates["plain"], strict=True)]
        loader = joint(config)
        batches, memory = loader.batches(0), []
        for _ in range(options.epochs):
            rate(batches, loader.steps_per_epoch)
            memory.append(resident_mb())
        os.chdir("/")
    growth = memory[-1] / memory[1]
    results = [
        {
            "benchmark": "loader",
            "ratio": round(statistics.median(ratios), 3),
            "spread": [round(min(ratios), 3), round(max(ratios), 3)],
            "goal": f">= {GOAL}",
            "holds": statistics.median(ratios) >= GOAL,
            "what": f"samples a processor second at {CROP_PX} px, with three label stores over without",
            "samples_per_s": {name: round(statistics.median(values), 1) for name, values in rates.items()},
            "images": options.images,
            "image_size": SIZE_PX,
            "label_size": config.labels.max_side_px,
            "target_size": config.train.target_size_px,
            "machine": machine,
        },
        {
            "benchmark": "loader/memory",
            "ratio": round(growth, 4),
            "spread": [round(min(memory[1:]) / memory[1], 4), round(max(memory[1:]) / memory[1], 4)],
            "goal": "<= 1.02",
            "holds": growth <= 1.02,
            "what": "resident memory after the last epoch over that after the second",
            "resident_mb": [round(megabytes, 1) for megabytes in memory],
            "epochs": options.epochs,
            "machine": machine,
        },
    ]
    print(json.dumps(results))


if __name__ == "__main__":
    main()
