"""Two choices of the probes against what is usually done, on rendered rooms and an untrained encoder.

    python benchmarks/probe.py [--images 160]

`features`  training the linear segmentation head on features computed once, against running the frozen encoder at
            every step; same head, batches and steps. Ratio of processor seconds, features included.
`solver`    RMSE of the depth probe solved in closed form, against the same 1x1 regression trained by AdamW for ten
            epochs (the length of probe3d's protocol), at the best of three rates on the very images it is judged on,
            which favours it. Ratio of RMSE in metres; `by_rate` has the ratio to each of the rates.

Repeats use other seeds of the encoder; a ratio's spread is the least and the greatest over them. The last line is a
JSON list.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from cliptex import student
from cliptex.config import Config, Miniature, Student
from cliptex.encoders import Encoder, dense_of, load_encoder, squash
from cliptex.miniature import render_benchmark
from cliptex.plugins import find
from cliptex.probes.features import batches, resample_nearest, schedule, standardise
from cliptex.probes.geometry import grid_points, probe_depth
from cliptex.probes.metrics import depth_metrics
from cliptex.probes.protocols import protocol_of
from cliptex.probes.segmentation import square_masks, train_head
from cliptex.probes.selection import candidates

REPEATS = 3
STEPS = 100
EPOCHS = 10
RATES = (5e-4, 5e-3, 5e-2)
ARCHITECTURE = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 96, "patch_size": 12, "width": 128, "layers": 4, "head_width": 32},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 2},
}


def encoders(folder: Path) -> list[Encoder]:
    """Untrained encoders, one a repeat."""
    settings = Student(architecture=ARCHITECTURE)
    student.export(student.build(settings, 0), settings, folder)
    return [load_encoder("random", reference=folder, seed=seed) for seed in range(REPEATS)]


def seconds_of_training(encoder: Encoder, images: np.ndarray, masks: np.ndarray, seed: int) -> tuple[float, float]:
    """Processor seconds of training the head on features computed once, and with the encoder at every step."""
    options = protocol_of("voc", {}).semantic_segmentation.heads["linear"].model_copy(update={"steps": STEPS})
    (candidate,) = candidates(options)
    start = time.process_time()
    features = dense_of(encoder, images)
    train_head(features, masks, 21, options, candidate, seed)
    once = time.process_time() - start
    start = time.process_time()
    train_head(features, masks, 21, options, candidate, seed)
    head_only = time.process_time() - start
    start = time.process_time()
    for batch in batches(len(images), options.batch_size, STEPS, torch.Generator().manual_seed(seed)):
        encoder.dense(encoder.normalised(images[batch.numpy()]))
    return once, time.process_time() - start + head_only


def depth_by_gradient(
    train: torch.Tensor, judged: torch.Tensor, depths: list, truths: list, seed: int, rate: float
) -> float:
    """RMSE of the 1x1 regression of metric depth trained by AdamW with warm-up and linear decay."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    head = torch.nn.Conv2d(train.shape[1], 1, 1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate)
    steps = EPOCHS * -(-len(train) // 8)
    scheduler = schedule(optimizer, steps, 0.15, power=1.0)
    targets = np.stack([resample_nearest(depth, 24) for depth in depths])[..., None]
    for batch in batches(len(train), 8, steps, generator):
        x, y = next(grid_points(train, targets, batch.numpy()))
        loss = (x @ head.weight[:, :, 0, 0].T + head.bias - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    with torch.no_grad():
        maps = torch.nn.functional.interpolate(head(judged), size=truths[0].shape, mode="bilinear", align_corners=False)
    return depth_metrics(zip(truths, maps[:, 0].numpy(), strict=True), 1e-3, 10)["rmse"]


def read(benchmark: str, root: Path, part: str, field: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """Images as the encoder takes them, and one truth of each."""
    samples = find("benchmarks", benchmark)(root).samples(part)
    chosen = [samples[index] for index in range(len(samples))]
    return np.stack([squash(one["image"], 96, "bicubic") for one in chosen]), [one[field] for one in chosen]


def report(name: str, ratios: list[float], goal: float, what: str, **more: object) -> dict:
    return {
        "benchmark": name,
        "ratio": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
        "goal": f"<= {goal}",
        "holds": statistics.median(ratios) <= goal,
        "what": what,
        "machine": {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "processor": platform.machine()},
        **more,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=160, help="training images; half as many are held out")
    count = parser.parse_args().images
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        splits = {name: {"train": count, "val": count // 2} for name in ("voc", "nyuv2")}
        miniature: Miniature = Config.load({"miniature": {"benchmarks": splits}}).miniature
        for name in splits:
            render_benchmark(miniature, name, folder / name)
        images, masks = read("voc", folder / "voc", "train", "mask")
        masks = square_masks(masks, 96)
        train_images, depths = read("nyuv2", folder / "nyuv2", "train", "depth")
        eval_images, truths = read("nyuv2", folder / "nyuv2", "eval", "depth")
        depth = protocol_of("nyuv2", {}).depth
        speed, error, by_rate = [], [], []
        for seed, encoder in enumerate(encoders(folder / "model")):
            once, each = seconds_of_training(encoder, images, masks, seed)
            speed.append(once / each)
            features = standardise(dense_of(encoder, train_images), dense_of(encoder, eval_images))
            ridge = depth.heads["linear"].model_copy(update={"targets": ("metric",)})
            solved = probe_depth(*features, depths, truths, depth, ridge, 0.2, seed, 0)
            trained = [depth_by_gradient(*features, depths, truths, seed, rate) for rate in RATES]
            error.append(solved.metrics["rmse"] / min(trained))
            by_rate.append([solved.metrics["rmse"] / rmse for rmse in trained])
    what = [
        "processor seconds, features computed once / at every step",
        "RMSE in metres, closed form / AdamW for ten epochs",
    ]
    results = [
        report("probe/features", speed, 0.5, what[0], images=count, steps=STEPS),
        report("probe/solver", error, 1.02, what[1], images=count, epochs=EPOCHS, rates=RATES, by_rate=by_rate),
    ]
    print(json.dumps(results))


if __name__ == "__main__":
    main()
