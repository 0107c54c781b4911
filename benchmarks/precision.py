"""Whether `precision: auto` selects the faster precision on this machine.

    python benchmarks/precision.py [--quick] [--batch-size 128] [--steps 3] [--repeats 3]

`precision/train`  CPU seconds of a contrastive step of the miniature's CLIP in the precision that `auto` selects,
                   relative to the other one. The two alternate; the ratio is the median over repeats, the spread
                   minimum and maximum.

Random weights and images, on one thread. `--quick` takes one step of 32 images. The last line is a JSON object.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from cliptex.config import Config
from cliptex.experts.precision import native_precision
from cliptex.models import clip as student
from cliptex.models.dense_features import width
from cliptex.models.heads import DenseHeads
from cliptex.training.batch import Batch
from cliptex.training.distributed import World
from cliptex.training.trainer import Trainer

CONFIG = Path(__file__).parent.parent / "config" / "config.yaml"


def seconds(trainer: Trainer, batch: Batch, steps: int) -> float:
    """CPU seconds of `steps` steps, after a warm-up step."""
    trainer.step(batch, 1)
    start = time.process_time()
    for step in range(2, steps + 2):
        trainer.step(batch, step)
    return time.process_time() - start


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one step of 32 images per repeat")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.batch_size, arguments.steps = 32, 1
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # as training does
    config = Config.load(yaml.safe_load(CONFIG.read_text()))
    size = config.student.architecture["vision_cfg"]["image_size"]
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (arguments.batch_size, size, size, 3), dtype=torch.uint8, generator=generator)
    captions = [f"a picture of {number} things" for number in range(len(images))]
    batch = Batch([], images, captions, {}, student.tokenizer(config.student)(captions))
    trainers = {}
    for precision in ("fp32", "bf16"):
        model = student.build(config.student, 0)
        heads = DenseHeads(width(model.visual), {}, "none", 8)
        world = World(0, 1, torch.device("cpu"))
        trainers[precision] = Trainer(model, heads, {}, config.models["clip_ft"], config.train, precision, world)
    chosen = native_precision()
    other = "fp32" if chosen == "bf16" else "bf16"
    ratios = [
        seconds(trainers[chosen], batch, arguments.steps) / seconds(trainers[other], batch, arguments.steps)
        for _ in range(arguments.repeats)
    ]
    ratio = statistics.median(ratios)
    print(
        json.dumps(
            {
                "benchmark": "precision/train",
                "ratio": round(ratio, 3),
                "spread": [round(min(ratios), 3), round(max(ratios), 3)],
                "goal": "<= 1.0",
                "holds": ratio <= 1,
                "what": f"processor seconds of a step, {chosen} (chosen by auto) / {other}",
                "machine": {"cpus": os.cpu_count(), "threads": 1, "processor": platform.machine()},
            }
        )
    )


if __name__ == "__main__":
    main()
