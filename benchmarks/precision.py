"""Cost of the precisions on this machine, and what they change in the figures of frozen encoders.

    python benchmarks/precision.py [--quick] [--batch-size 128] [--steps 3] [--repeats 3]
    python benchmarks/precision.py --run DIR [--precision bf16|fp16] [--seeds 3]

`precision/train`   CPU seconds of a contrastive step of the miniature's CLIP in the precision that `auto` selects,
                    relative to the other one.
`precision/frozen`  CPU seconds of dense features of 8 images by a frozen encoder, bf16 / fp32: the miniature's at 96 px
                    and ViT-B-16 at 224 px. `auto` should select the faster one for the latter.
`precision/figures` with `--run`, the folder of a finished run of config/config.yaml: its models evaluated in
                    `--precision` and in fp32. Zero-shot top-1, recall of retrieval in both directions, mIoU of the
                    linear probe of VOC's layout and top-1 of that of Places365's layout, the probes as mean over
                    `--seeds` seeds of the head. `noise` is half of the 95 % bootstrap interval, over images and seeds,
                    of the figure in fp32; `over_seeds` the standard deviation over seeds. `ratio` is the largest
                    difference over its noise. Nothing is written to DIR.

The two sides alternate; the ratio is the median over repeats, the spread minimum and maximum. Random weights and images
in the first two, on one thread. `--quick` takes one step of 32 images. The last line is a JSON list.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from cliptex.config import Config, Student
from cliptex.core.files import read_json
from cliptex.evaluation import probe, retrieval, zeroshot
from cliptex.evaluation.job import Job
from cliptex.evaluation.measures import measure
from cliptex.evaluation.per_image import per_image_path, read_per_image
from cliptex.experts.precision import mixed_precision, native_precision, training_precision
from cliptex.models import clip as student
from cliptex.models.dense_features import width
from cliptex.models.encoders import BATCH_SIZE, load_encoder
from cliptex.models.heads import DenseHeads
from cliptex.report.bootstrap import draws, interval, resampled
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


def train_ratios(config: Config, chosen: str, rows: int, steps: int, repeats: int) -> list[float]:
    size = config.student.architecture["vision_cfg"]["image_size"]
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (rows, size, size, 3), dtype=torch.uint8, generator=generator)
    captions = [f"a picture of {number} things" for number in range(rows)]
    batch = Batch([], images, captions, {}, student.tokenizer(config.student)(captions))
    trainers = {}
    for precision in ("fp32", "bf16"):
        model = student.build(config.student, 0)
        heads = DenseHeads(width(model.visual), {}, "none", 8)
        world = World(0, 1, torch.device("cpu"))
        trainers[precision] = Trainer(model, heads, {}, config.models["clip_ft"], config.train, precision, world)
    other = "fp32" if chosen == "bf16" else "bf16"
    return [seconds(trainers[chosen], batch, steps) / seconds(trainers[other], batch, steps) for _ in range(repeats)]


def frozen_ratios(architecture: str | dict, folder: Path, repeats: int) -> list[float]:
    """CPU seconds in bf16 over those in fp32."""
    section = Student(architecture=architecture)
    student.export(student.build(section, 0), section, folder)
    encoder = load_encoder(folder)
    images = torch.rand(BATCH_SIZE, 3, encoder.image_size, encoder.image_size)

    def encoding(precision: str) -> float:
        start = time.process_time()
        with mixed_precision(precision):
            encoder.dense(images)
        return time.process_time() - start

    encoding("bf16"), encoding("fp32")
    return [encoding("bf16") / encoding("fp32") for _ in range(repeats)]


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def evaluated(values: dict[str, Any], precision: str, models_dir: Path, out: Path, seeds: int) -> dict[tuple, list]:
    """(benchmark, task, model) -> metrics and per-image parts of each seed, with frozen encoders in this precision."""
    features = {"features": {"encoder_precision": precision}}
    linear = {**features, "heads": {"deeplabv3": None, "pspnet": None}}
    benchmarks = {"voc": {"protocol": "miniature", "semantic_segmentation": linear}}
    benchmarks["places365"] = {"protocol": "miniature", "classification": features}
    probes = {**values["probes"], "baselines": [], "benchmarks": benchmarks, "save_predictions": 0}
    zero_shot = {**values["zeroshot"], "precision": precision}
    config, found = Config.load({**values, "probes": probes, "zeroshot": zero_shot}), {}
    jobs = [(zeroshot.run, name) for name in config.zeroshot.benchmarks]
    for run, name in [*jobs, *((retrieval.run, name) for name in config.zeroshot.caption_sets)]:
        path = out / f"{name}.json"
        run(config, Job(name=name, models_dir=models_dir, out=path))
        parts = read_per_image(per_image_path(path))
        for row in read_json(path)["results"]:
            arrays = parts.of(row["task"], f"{row['model']}/seed{row['seed']}")
            found[name, row["task"], row["model"]] = [(row["metrics"], arrays)]
    for name in benchmarks:
        job = {"models_dir": models_dir, "out": out / name, "cache_dir": out / "features", "seeds": tuple(range(seeds))}
        probe.run(config, Job(name=name, **job))
        for path in sorted((out / name).glob("*/seed*/linear.json")):
            (row,) = read_json(path)["results"]
            arrays = read_per_image(per_image_path(path)).of(row["task"])
            found.setdefault((name, row["task"], row["model"]), []).append((row["metrics"], arrays))
    return found


def figures(values: dict[str, Any], run: Path, precision: str, seeds: int) -> list[dict[str, Any]]:
    """The figures of a finished run's models in fp32 and in `precision`."""
    with tempfile.TemporaryDirectory() as scratch, inside(run):
        models_dir = Path(scratch, "models")
        for model in values["models"]:
            (models_dir / model).mkdir(parents=True)
            for seed in range(seeds):  # the same encoder, with another seed of its heads
                (models_dir / model / f"seed{seed}").symlink_to(run / "results" / "models" / model / "seed0")
        exact, other = (evaluated(values, each, models_dir, Path(scratch, each), seeds) for each in ("fp32", precision))
    found = []
    for (name, task, model), rows in exact.items():
        metric = measure(task).main
        ours, theirs = ([metrics[metric] for metrics, _ in each] for each in (rows, other[name, task, model]))
        arrays = [parts for _, parts in rows]
        weights = draws(len(next(iter(arrays[0].values()))), 1000, 0)
        bounds = interval(resampled(task, arrays, weights))
        found.append(
            {
                "figure": f"{name} {task} {metric}",
                "model": model,
                "fp32": statistics.mean(ours),
                precision: statistics.mean(theirs),
                "difference": statistics.mean(theirs) - statistics.mean(ours),
                "noise": (bounds.high - bounds.low) / 2,
                "over_seeds": statistics.stdev(ours) if len(ours) > 1 else None,
            }
        )
    return found


def report(name: str, ratios: list[float], goal: str, holds: bool, what: str, **more: Any) -> dict[str, Any]:
    return {
        "benchmark": name,
        "ratio": round(statistics.median(ratios), 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "goal": goal,
        "holds": holds,
        "what": what,
        "machine": {"cpus": os.cpu_count(), "threads": 1, "processor": platform.machine()},
        **more,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one step of 32 images per repeat")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", type=Path, help="folder of a finished run, for `precision/figures` alone")
    parser.add_argument("--precision", choices=["bf16", "fp16"], default="bf16", help="compared with fp32 in --run")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the probes' heads in --run")
    options = parser.parse_args(argv)
    if options.quick:
        options.batch_size, options.steps = 32, 1
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # as training does
    values = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    if options.run is not None:
        found = figures(values, options.run.resolve(), options.precision, options.seeds)
        ratios = [abs(figure["difference"]) / figure["noise"] for figure in found]
        what = f"difference of a figure, {options.precision} - fp32 / half of its 95 % interval"
        result = report("precision/figures", ratios, "all <= 1", max(ratios) <= 1, what, figures=found)
        print(json.dumps([result | {"ratio": round(max(ratios), 3)}]))
        return
    config, chosen = Config.load(values), training_precision()
    ratios = train_ratios(config, chosen, options.batch_size, options.steps, options.repeats)
    other = "fp32" if chosen == "bf16" else "bf16"
    what = f"processor seconds of a step, {chosen} (chosen by auto) / {other}"
    results = [report("precision/train", ratios, "<= 1.0", statistics.median(ratios) <= 1, what)]
    for name, architecture in {"ViT-B-16": "ViT-B-16", "miniature": config.student.architecture}.items():
        with tempfile.TemporaryDirectory() as scratch:
            ratios = frozen_ratios(architecture, Path(scratch, "model"), options.repeats)
        frozen = native_precision()
        is_right = (statistics.median(ratios) <= 1) == (frozen == "bf16")
        what = f"processor seconds of dense features of 8 images, bf16 / fp32; auto chooses {frozen}"
        results.append(report("precision/frozen", ratios, "auto chooses the faster", is_right, what, model=name))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
