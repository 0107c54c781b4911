"""Cost of pseudo-supervision per training step, and the training loop compared with open_clip's.

    python benchmarks/train.py [--quick] [--config config/paper.yaml] [--model ViT-B-16] [--loop-model ViT-S-16]
                               [--batch-size 8] [--steps 1] [--repeats 5] [--threads 1] [--only step|loop]

`train/step`  a step of CLIPTeX (three tasks) relative to one of CLIP-FT, with the same model and batch; multi-scale
              module, heads and target size of `train` in `--config`.
`train/loop`  our CLIP-FT steps, including loading, relative to `open_clip_train.train.train_one_epoch` on the same
              shards, with the same model, batch size and precision, both loading in the training process.

`train/loop` requires the version of webdataset that open_clip requires: pip install 'webdataset<=0.2.86'.

Both measure CPU seconds of one thread (with several, waiting would count as work), with random weights and images. The
two sides alternate; the ratio is the median over repeats, the spread minimum and maximum. The last line is a JSON list.
`--quick`: batches of 4, three repeats and no loop, about a minute.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch

from cliptex.config import Config, Model, Student, Train
from cliptex.core.plugins import find
from cliptex.data.images import encode_jpeg
from cliptex.data.shard_index import index_shards
from cliptex.data.shards import Pair, write_shard
from cliptex.models import clip as student
from cliptex.models.dense_features import width
from cliptex.models.heads import DenseHeads
from cliptex.training.batch import Batch
from cliptex.training.distributed import World
from cliptex.training.loader import JointLoader
from cliptex.training.trainer import Trainer

TASKS = ("segmentation", "depth", "normals")
STEP_GOAL, LOOP_GOAL = 1.06, 1.05
PRECISION = "fp32"
CONFIG = Path(__file__).parents[1] / "config" / "paper.yaml"


def trainer(name: str, tasks: tuple[str, ...], options: Train) -> Trainer:
    """A trainer for an untrained open_clip model."""
    network = student.build(Student(architecture=name), 0)
    plugins = {task: find("tasks", task)() for task in tasks}
    channels = {name: task.channels for name, task in plugins.items()}
    heads = DenseHeads(
        width(network.visual),
        channels,
        options.multi_scale if tasks else "none",
        options.multi_scale_channels,
        options.heads,
        options.multi_scale_rates,
        options.label_prior_cells,
    )
    model_config = Model(steps=1000, tasks=dict.fromkeys(tasks, 1.0))
    return Trainer(network, heads, plugins, model_config, options, PRECISION, World(0, 1, torch.device("cpu")))


def drawn_batch(rows: int, size: int, options: Train, tokenizer: Callable) -> Batch:
    """Random images, captions and labels."""
    rng = np.random.default_rng(0)
    grid = (rows, options.target_size_px, options.target_size_px)
    normals = rng.normal(size=(*grid, 4)).astype(np.float32)
    normals[..., :3] /= np.linalg.norm(normals[..., :3], axis=-1, keepdims=True)
    normals[..., 3] = 5
    targets = {
        "segmentation": rng.integers(0, 81, grid).astype(np.uint8),
        "depth": rng.random(grid).astype(np.float32),
        "normals": normals,
    }
    captions = [f"image {row}" for row in range(rows)]
    images = rng.integers(0, 256, (rows, size, size, 3), np.uint8)
    tensors = {name: torch.from_numpy(target) for name, target in targets.items()}
    return Batch(captions, torch.from_numpy(images), captions, tensors, tokenizer(captions))


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> list[float]:
    """Ratios of CPU seconds, after a warm-up round."""
    ours()
    theirs()
    return [seconds(ours) / seconds(theirs) for _ in range(repeats)]


def step_ratios(name: str, train: Train, rows: int, steps: int, repeats: int) -> list[float]:
    options = train.model_copy(update={"batch_size": rows, "precision": PRECISION})
    sides = [trainer(name, tasks, options) for tasks in (TASKS, ())]
    size = sides[0].model.visual.image_size[0]
    batch = drawn_batch(rows, size, options, open_clip.get_tokenizer(name))

    def run(side: Trainer) -> None:
        for step in range(1, steps + 1):
            side.step(batch, step)

    return compare(lambda: run(sides[0]), lambda: run(sides[1]), repeats)


def loop_ratios(name: str, rows: int, steps: int, repeats: int, folder: Path) -> list[float]:
    from open_clip_train.data import get_wds_dataset
    from open_clip_train.params import parse_args
    from open_clip_train.train import train_one_epoch

    rng = np.random.default_rng(0)
    noise = [np.kron(rng.integers(0, 256, (16, 16, 3)), np.ones((16, 16, 1))).astype(np.uint8) for _ in range(8)]
    pairs = [Pair(f"{row:09d}", encode_jpeg(noise[row % 8]), f"image {row}") for row in range(rows * steps)]
    shard = folder / "00000.tar"
    write_shard(shard, pairs)
    index_shards([shard], folder / "index.json", 1.0, max_repeats=len(pairs))
    options = Train(batch_size=rows, precision=PRECISION)
    ours = trainer(name, (), options)
    size, tokenizer = ours.model.visual.image_size[0], open_clip.get_tokenizer(name)
    batches = JointLoader(folder / "index.json", {}, options, size, 0, tokenizer=tokenizer).batches(0)

    arguments = ["--train-data", str(shard), "--train-num-samples", str(len(pairs)), "--batch-size", str(rows)]
    arguments += ["--dataset-type", "webdataset", "--workers", "0", "--precision", PRECISION, "--model", name]
    args = parse_args([*arguments, "--grad-clip-norm", "1.0"])
    args.device, args.rank, args.local_rank, args.world_size = "cpu", 0, 0, 1
    args.distributed, args.distill, args.wandb = False, False, False
    network = student.build(Student(architecture=name), 0).train()
    # train_one_epoch needs dictionaries as outputs
    network.output_dict = True
    preprocess = open_clip.image_transform(size, is_train=True)
    data = {"train": get_wds_dataset(args, preprocess, is_train=True, tokenizer=tokenizer)}
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.98), fused=True)
    loss = open_clip.ClipLoss()

    def our_epoch() -> None:
        for step in range(1, steps + 1):
            ours.step(next(batches), step)

    def their_epoch() -> None:
        train_one_epoch(network, data, loss, 0, optimizer, None, lambda step: None, None, args)

    return compare(our_epoch, their_epoch, repeats)


def report(name: str, ratios: list[float], goal: float, what: str, **more: object) -> dict:
    return {
        "benchmark": name,
        "ratio": round(statistics.median(ratios), 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "goal": f"<= {goal}",
        "holds": statistics.median(ratios) <= goal,
        "what": what,
        "precision": PRECISION,
        "machine": {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "processor": platform.machine()},
        **more,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--model", default="ViT-B-16")
    parser.add_argument("--loop-model", default="ViT-S-16")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=["step", "loop"])
    options = parser.parse_args(argv)
    if options.quick:
        options.batch_size, options.repeats, options.only = 4, 3, "step"
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # as training does
    counts = {"batch_size": options.batch_size, "steps": options.steps, "repeats": options.repeats}
    loads = (options.batch_size, options.steps, options.repeats)
    results = []
    if options.only != "step":
        with tempfile.TemporaryDirectory() as scratch:
            ratios = loop_ratios(options.loop_model, *loads, Path(scratch))
        what = "processor seconds of a CLIP-FT epoch, loading included, ours over open_clip_train's"
        results.append(report("train/loop", ratios, LOOP_GOAL, what, model=options.loop_model, **counts))
        print(json.dumps(results[-1]), flush=True)
    if options.only != "loop":
        train = Config.from_files([options.config]).train
        ratios = step_ratios(options.model, train, *loads)
        what = "processor seconds of a CLIPTeX step over a CLIP-FT step"
        keys = ("target_size_px", "multi_scale", "multi_scale_channels", "heads")
        sizes = {key: getattr(train, key) for key in keys}
        results.append(report("train/step", ratios, STEP_GOAL, what, model=options.model, **sizes, **counts))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
