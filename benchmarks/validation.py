"""Time of a validation during training on one of several processes, relative to a single process.

    python benchmarks/validation.py [--quick] [--ranks 8] [--held-out 1024] [--images 1000] [--repeats 3]

The miniature's network with three tasks validates held-out pairs (losses and metrics of the heads) and zero-shot top-1
on rendered scenes in ImageNet's layout, as `train.held_out` and `train.watch.zero_shot` have it. The process does its
part of the samples and, as the main one, computes the metrics of all. No other process runs: what they would send is
stood in for by copies of its own part, so the network between them is not measured.

`validation/first`  with reading and decoding, as before step 1.
`validation/later`  with the decoded samples that were kept, as after every epoch.

The two alternate; seconds are CPU seconds of one thread, the spread minimum and maximum. `--quick` takes four
ranks, 256 pairs, 100 images and one repeat. The last line is a JSON list.
"""

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from loader import SHAPES, TASKS, make_data
from machine import ROOT, machine

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.plugins import find
from cliptex.data.miniature.layouts import render_benchmark
from cliptex.models import clip as student
from cliptex.models.dense_features import width
from cliptex.models.heads import DenseHeads
from cliptex.training.distributed import World
from cliptex.training.loader import JointLoader
from cliptex.training.trainer import Trainer
from cliptex.training.validator import Validator


@dataclass(frozen=True)
class Alone(World):
    """The last of `size` processes, which has no less to do than others, as the main one; the others are copies."""

    @property
    def is_main(self) -> bool:
        return True

    def gather(self, value: Any) -> list[Any]:
        return [value] * self.size

    def gather_to_main(self, value: Any) -> list[Any]:
        return [value] * self.size


def validator(config: Config, ranks: int) -> Validator:
    """Of a fresh network. The trainer itself belongs to a group of one."""
    network, tasks = student.build(config.student, 0), {task: find("tasks", task)() for task in TASKS}
    channels = {store: task.channels for store, task in tasks.items()}
    train = config.train
    heads = DenseHeads(width(network.visual), channels, train.multi_scale, train.multi_scale_channels)
    model = config.models["cliptex"]
    trainer = Trainer(network, heads, tasks, model, train, "fp32", World(0, 1, torch.device("cpu")))
    trainer.world = Alone(ranks - 1, ranks, torch.device("cpu"))
    stores = {store: (task, paths.labels(store) / "index.json") for store, task in tasks.items()}
    side = network.visual.image_size
    loader = JointLoader(paths.SHARD_INDEX, stores, train, side if isinstance(side, int) else side[0], 0)
    return Validator(config, trainer, loader)


def seconds(config: Config, ranks: int) -> tuple[float, float]:
    """Of the first validation and of the next one."""
    made, measured = validator(config, ranks), []
    for _ in range(2):
        start = time.process_time()
        made.measure()
        measured.append(time.process_time() - start)
    return measured[0], measured[1]


def prepared(held_out: int, images: int) -> Config:
    """The data, in the working directory, and the configuration."""
    miniature = yaml.safe_load((ROOT / "config/config.yaml").read_text(encoding="utf-8"))
    data = make_data(SHAPES["photographs"], 2 * held_out, None)
    over = {"held_out": held_out, "watch": {"zero_shot": "imagenet", "zero_shot_images": images}}
    sizes = {"image_size_px": 96, "benchmarks": {"imagenet": {"train": 40, "val": images}}}
    train = miniature["train"] | data.train.model_dump(mode="json", include={"decoder", "shuffle_shards"}) | over
    values = miniature | {"miniature": sizes, "train": train | {"batch_size": 64}}
    kept = {name: getattr(data, name) for name in ("dataset", "label_stores", "experts", "labels")}
    config = Config.load(values).model_copy(update=kept)
    render_benchmark(config.miniature, "imagenet", paths.benchmark("imagenet"))
    return config


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four ranks, 256 pairs, 100 images, one repeat")
    parser.add_argument("--ranks", type=int, help="processes, 8 by default")
    parser.add_argument("--held-out", type=int, help="pairs, a multiple of 64")
    parser.add_argument("--images", type=int, help="of zero-shot classification")
    parser.add_argument("--repeats", type=int)
    options = parser.parse_args(argv)
    ranks, held_out = options.ranks or (4 if options.quick else 8), options.held_out or (256 if options.quick else 1024)
    images = options.images or (100 if options.quick else 1000)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        config = prepared(held_out, images)
        seconds(config, 1)  # warm-up
        ratios: list[tuple[float, float]] = []
        for _ in range(options.repeats or (1 if options.quick else 3)):
            one, many = seconds(config, 1), seconds(config, ranks)
            ratios.append((many[0] / one[0], many[1] / one[1]))
    goal = 2 / ranks
    results = []
    for part, values in zip(("first", "later"), zip(*ratios, strict=True), strict=True):
        ratio = statistics.median(values)
        results.append(
            {
                "benchmark": f"validation/{part}",
                "ratio": round(ratio, 3),
                "spread": [round(min(values), 3), round(max(values), 3)],
                "goal": f"<= {goal:g}",
                "holds": ratio <= goal,
                "what": f"processor seconds of a validation on the main one of {ranks} processes, over a single one",
                "held_out": held_out,
                "images": images,
                "machine": machine(),
            }
        )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
