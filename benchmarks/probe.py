"""Compare design choices of the probes with common practice, on rendered scenes.

    python benchmarks/probe.py [--only NAME] [--quick] [--images N] [--seeds N] [--views 24] [--encoder DIR]

`reading` one batch of 16 int8 maps of 512 px (1,024 tokens of 768 channels): processor seconds of converting it on this
          processor as before (whole arrays, one operation after the other) / as the probes do, and of the copy that a
          job with a GPU makes of it, with the conversion left to the GPU, / the same old way. Results are compared bit
          for bit.
`frozen`  the three segmentation heads of the protocol `paper`, ViT-B-16 at 224 pixels. Ours: the features of a few
          augmented views of each image are computed once, stored as int8, and shared by heads and seeds. Usual, as in
          mmsegmentation: in every step new random views go through the encoder, and the loss is computed at every
          pixel. Both have the same steps, batch size, rates, initial weights and standardisation of features (computed
          by ours, not counted for the usual way); sixty passes over the training images, as the protocol makes over
          Pascal VOC. Ratio of the CPU seconds of all seeds: decoding, features, heads, evaluation. `by_sharing`
          has the ratio if every head is trained three times, as `paper` does (two rates on the holdout, then all
          images): `seeds_share` if all seeds share the features, as for a published model; `alone` if a seed computes
          its own, as for a model that this workflow trains; `kept` if the features are kept from an earlier run. In
          `alone_once` a seed computes its own and trains each head once. `ratio` is `kept`. The mIoU of each head is
          for a few images and an untrained encoder. With `--quick` the steps are so few that the ratio says little, and
          no goal is compared.
`equal`   the same two ways with a trained encoder, 96 training and 300 evaluation images and four seeds each: mean mIoU
          of each head, its standard deviation over seeds, and the difference. The goal holds if the means of no head
          differ by more than two standard deviations, the larger of the two.
`timm`    features of a ViT-B-16, from images of 256 x 384 in memory to patch tokens, ours / timm's, in batches of 8.
`mmsegmentation`  a training step of a linear segmentation head on a frozen ViT-B-16, as the usual way of `frozen`
          computes it / mmsegmentation's `train_step`: whether the comparison in `frozen` is fair.
`linear_probe`  the linear probe of ImageNet's layout in the protocol `miniature` / clip_benchmark's, with its defaults
          and its search for the weight decay: decoding, features, choice and training; top-1 of both, mean over seeds.
          clip_benchmark requires a GPU; here a device on the processor stands in for it.
`solver`  RMSE of the depth probe solved in closed form, against the same 1x1 regression trained by AdamW for ten epochs
          (the length of probe3d's protocol), at the best of three rates on the evaluation images, which favours it.
          Ratio of RMSE in metres; `by_rate` has the ratio for each rate.

Seconds are of one thread. `spread` is the smallest and the largest ratio over seeds or rounds. The last line is a JSON
list.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from probe_peers import features_ratios, linear_probes, step_ratios

from cliptex.config import Config, Miniature, Student
from cliptex.core import paths
from cliptex.core.plugins import find
from cliptex.data.miniature.layouts import render_benchmark
from cliptex.evaluation.metrics.depth import depth_metrics
from cliptex.evaluation.metrics.segmentation import IGNORE, confusion_matrix, segmentation_metrics
from cliptex.evaluation.probes.feature_cache import FeatureCache, StoredFeatures
from cliptex.evaluation.probes.features import Features, standardised
from cliptex.evaluation.probes.features import statistics as channel_statistics
from cliptex.evaluation.probes.heads.depth import probe_depth
from cliptex.evaluation.probes.heads.ridge import grid_points
from cliptex.evaluation.probes.heads.segmentation import build_head, predict, train_head
from cliptex.evaluation.probes.parts import Reader, features_of
from cliptex.evaluation.probes.segmentation import SegmentationHead
from cliptex.evaluation.probes.training import Candidate, Optimisation, batches, candidates
from cliptex.evaluation.probes.views import crop_truth, random_views
from cliptex.evaluation.protocols.resolve import Entry, protocol_of
from cliptex.models import clip as student
from cliptex.models.encoders import Encoder, load_encoder

CLASSES = 21
PASSES = 60
QUICK_PASSES = 3
SIZE = 224
BATCH, QUICK_BATCH = 12, 4
TRAININGS = 3
EPOCHS = 10
RATES = (5e-4, 5e-3, 5e-2)
NAMES = ("reading", "timm", "mmsegmentation", "linear_probe", "frozen", "equal", "solver")
SUMMARIES = {"mean": statistics.mean, "std": statistics.stdev}
SMALL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 96, "patch_size": 12, "width": 128, "layers": 4, "head_width": 32},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 2},
}


def cpu_seconds() -> float:
    """CPU seconds of this process and its finished children."""
    return sum(os.times()[:4])


def untrained(folder: Path, architecture: str | dict, seed: int) -> Encoder:
    student_config = Student(architecture=architecture)
    if not folder.exists():
        student.export(student.build(student_config, 0), student_config, folder)
    return load_encoder("random", reference=folder, seed=seed)


def protocol_for(images: int, size: int, views: int, passes: int = PASSES, batch: int = BATCH) -> Entry:
    """The protocol `paper` at `size` pixels with `views` random views per training image, whole images in evaluation,
    and steps for that many passes."""
    heads = {"steps": passes * images // batch, "batch_size": batch, "learning_rates": [1e-3]}
    section = {"input": {"fit": "squash", "size_px": size}, "mask_size_px": size, "augment": {"views": views}}
    section["heads"] = {name: {**heads, "loss_points": size // 4} for name in ("linear", "deeplabv3", "pspnet")}
    return protocol_of("voc", {"protocol": "paper", "semantic_segmentation": section})


def readers_of(entry: Entry, benchmark_dir: Path, encoder: Encoder) -> tuple[Reader, Reader]:
    task, data = entry.semantic_segmentation, find("benchmarks", "voc")(benchmark_dir)
    truth = {
        "semantic_segmentation": lambda sample, view: (
            sample["mask"] if view is None else crop_truth(sample["mask"], view, (task.mask_size_px,) * 2, IGNORE)
        )
    }
    return tuple(Reader(data, part, range(len(data.samples(part))), task, encoder, truth) for part in ("train", "eval"))


def mean_iou(head: torch.nn.Module, features: torch.Tensor, masks: list[np.ndarray]) -> float:
    pairs = zip(masks, predict(head, features, [mask.shape for mask in masks]), strict=True)
    return segmentation_metrics(sum(confusion_matrix(*pair, CLASSES) for pair in pairs))["mIoU"]


@dataclass(frozen=True)
class Ours:
    """Results of our way.

    scores: of each seed, head -> mIoU. shared: seconds of the features. seconds: of all heads, by seed. standard: mean
    and scale of the features' channels.
    """

    scores: list[dict[str, float]]
    shared: float
    seconds: list[float]
    standard: tuple[torch.Tensor, torch.Tensor]


def our_way(entry: Entry, benchmark_dir: Path, encoder: Encoder, scratch: Path, seeds: int) -> Ours:
    start = cpu_seconds()
    readers = readers_of(entry, benchmark_dir, encoder)
    cache = FeatureCache(scratch, 1e10)
    ((train, evaluated, stored),) = features_of(readers, {"encoder": encoder}, cache, 1e10)
    grid = encoder.map_shape(readers[0].size)[1:]
    features = standardised([stored.train, stored.eval], grid)
    masks = np.stack(train.truths["semantic_segmentation"])
    shared = cpu_seconds() - start
    scores, seconds = [], []
    for seed in range(seeds):
        start = cpu_seconds()
        seed_scores = {}
        for name, options in entry.semantic_segmentation.heads.items():
            head = train_head(features[0], masks, CLASSES, options, candidates(options)[0], seed)
            seed_scores[name] = mean_iou(head, features[1], evaluated.truths["semantic_segmentation"])
        seconds.append(cpu_seconds() - start)
        scores.append(seed_scores)
    return Ours(scores, shared, seconds, channel_statistics(stored.train, False))


def usual_way(
    entry: Entry, benchmark_dir: Path, encoder: Encoder, standard: tuple[torch.Tensor, torch.Tensor], seed: int
) -> tuple[dict[str, float], float]:
    """Head -> mIoU, and seconds of all heads, with the encoder in every step. standard: as in `Ours`."""
    start = cpu_seconds()
    mean, scale = (values[:, None, None] for values in standard)

    def features(images: list[np.ndarray]) -> torch.Tensor:
        with torch.no_grad():
            return (encoder.dense(encoder.normalised(np.stack(images))) - mean) * scale

    scores = {}
    for name, options in entry.semantic_segmentation.heads.items():
        train, evaluated = readers_of(entry, benchmark_dir, encoder)
        samples = [train.samples[index] for index in train.indices]
        width = encoder.map_shape(train.size)[0]
        head = _train_usually(train, samples, features, width, options, candidates(options)[0], seed)
        eval_samples = [evaluated.samples[index] for index in evaluated.indices]
        images = [sample["image"] for sample in eval_samples]
        pixels = [evaluated.pixels(image, evaluated.views(0, image.shape[:2])[0]) for image in images]
        scores[name] = mean_iou(head, features(pixels), [sample["mask"] for sample in eval_samples])
    return scores, cpu_seconds() - start


def _train_usually(
    reader: Reader,
    samples: list,
    features: Callable[[list[np.ndarray]], torch.Tensor],
    width: int,
    options: SegmentationHead,
    candidate: Candidate,
    seed: int,
) -> torch.nn.Module:
    torch.manual_seed(seed)
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    head = build_head(options, width, CLASSES).train()
    optimisation = Optimisation(head.parameters(), options, candidate)
    augment = reader.section.augment.model_copy(update={"views": 1})
    for batch in batches(len(samples), options.batch_size, options.steps, generator):
        pixels, masks = [], []
        for index in batch.tolist():
            image, mask = samples[index]["image"], samples[index]["mask"]
            (view,) = random_views(image.shape[:2], reader.section.input, reader.size, augment, rng)
            pixels.append(reader.pixels(image, view))
            masks.append(crop_truth(mask, view, reader.size, IGNORE))
        logits = head(features(pixels))
        logits = F.interpolate(logits, size=reader.size, mode="bilinear", align_corners=False)
        target = torch.from_numpy(np.stack(masks)).long()
        optimisation.step(F.cross_entropy(logits, target, ignore_index=IGNORE))
    return head.eval()


def depth_by_gradient(
    train: torch.Tensor, evaluated: torch.Tensor, depths: list, truths: list, seed: int, rate: float
) -> float:
    """RMSE of the 1x1 regression of metric depth trained by AdamW with warm-up and linear decay."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    head = torch.nn.Conv2d(train.shape[1], 1, 1)
    steps = EPOCHS * -(-len(train) // 8)
    values = {"steps": steps, "batch_size": 8, "learning_rates": [rate], "weight_decays": [0.01], "warmup": 0.15}
    options = protocol_of("voc", {}).semantic_segmentation.heads["linear"].model_copy(update={**values, "power": 1.0})
    optimisation = Optimisation(head.parameters(), options, Candidate(rate, 0.01))
    targets = np.stack(depths)[..., None]
    for batch in batches(len(train), 8, steps, generator):
        x, y = next(grid_points(train, targets, batch.numpy()))
        optimisation.step((x @ head.weight[:, :, 0, 0].T + head.bias - y).square().mean())
    with torch.no_grad():
        maps = F.interpolate(head(evaluated), size=truths[0].shape, mode="bilinear", align_corners=False)
    return depth_metrics(zip(truths, maps[:, 0].numpy(), strict=True), 1e-3, 10)["rmse"]


def solved_depth(benchmark_dir: Path, encoder: Encoder, scratch: Path, seed: int) -> tuple[float, list[float]]:
    """RMSE in closed form, and by gradient descent at each rate."""
    ridge = {"heads": {"linear": {"targets": ["metric"]}}}
    task, data = protocol_of("nyuv2", {"depth": ridge}).depth, find("benchmarks", "nyuv2")(benchmark_dir)
    truth = {
        "depth": lambda sample, view: (
            sample["depth"] if view is None else crop_truth(sample["depth"], view, (24, 24), np.nan)
        )
    }
    readers = tuple(
        Reader(data, part, range(len(data.samples(part))), task, encoder, truth) for part in ("train", "eval")
    )
    ((train, evaluated, stored),) = features_of(readers, {"random": encoder}, FeatureCache(scratch, 1e10), 1e10)
    features = standardised([stored.train, stored.eval], (encoder.grid, encoder.grid))
    truths = train.truths["depth"], evaluated.truths["depth"]
    ours = probe_depth(*features, *truths, task, "linear", train.split(0.2, seed), seed, 0).metrics["rmse"]
    return ours, [depth_by_gradient(*features, *truths, seed, rate) for rate in RATES]


def report(
    name: str, ratios: list[float], goal: str, holds: bool | None, description: str, **more: Any
) -> dict[str, Any]:
    return {
        "benchmark": name,
        "ratio": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
        "goal": goal,
        "holds": holds,
        "what": description,
        "machine": {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "processor": platform.machine()},
        **more,
    }


def rendered(folder: Path, **counts: dict[str, int]) -> None:
    miniature: Miniature = Config.load({"miniature": {"benchmarks": counts}}).miniature
    for name in counts:
        render_benchmark(miniature, name, folder / name)


def frozen(folder: Path, encoder: Encoder, images: int, seeds: int, views: int, quick: bool) -> dict[str, Any]:
    rendered(folder, voc={"train": images, "val": images if quick else 2 * images})
    entry = protocol_for(images, SIZE, views, *((QUICK_PASSES, QUICK_BATCH) if quick else ()))
    encoder.dense(torch.zeros(1, 3, SIZE, SIZE))  # warm-up
    ours = our_way(entry, folder / "voc", encoder, folder / "features", seeds)
    runs = [usual_way(entry, folder / "voc", encoder, ours.standard, seed) for seed in range(seeds)]
    usual, seconds = zip(*runs, strict=True)
    theirs, heads = sum(seconds), sum(ours.seconds)
    by_sharing = {
        "kept": theirs / heads,
        "seeds_share": TRAININGS * theirs / (ours.shared + TRAININGS * heads),
        "alone": TRAININGS * theirs / (seeds * ours.shared + TRAININGS * heads),
        "alone_once": theirs / (seeds * ours.shared + heads),
    }
    return report(
        "probe/frozen",
        [theirs / heads for theirs, heads in zip(seconds, ours.seconds, strict=True)],
        ">= 10 with kept features",
        None if quick else by_sharing["kept"] >= 10,
        "processor seconds of three segmentation heads, the encoder in every step / features computed once",
        ratio=by_sharing["kept"],
        by_sharing=by_sharing,
        seconds={"usual": seconds, "features": ours.shared, "heads": ours.seconds},
        mIoU={"usual": usual, "ours": ours.scores},
        images=images,
        steps=entry.semantic_segmentation.heads["linear"].steps,
        batch_size=entry.semantic_segmentation.heads["linear"].batch_size,
        views=entry.semantic_segmentation.augment.views,
    )


def extraction(encoder: Encoder, images: int, rounds: int) -> dict[str, Any]:
    ratios = features_ratios(encoder, images, rounds)
    description = "processor seconds of a ViT-B-16's features, images in memory to patch tokens, ours / timm's"
    return report("probe/timm", ratios, "<= 1.05", statistics.median(ratios) <= 1.05, description, images=images)


def usual_step(encoder: Encoder, model: Path, rounds: int) -> dict[str, Any]:
    ratios = step_ratios(encoder, model, 8, rounds)
    description = "processor seconds of a step with a frozen ViT-B-16, the usual way of probe/frozen / mmsegmentation's"
    return report("probe/mmsegmentation", ratios, "<= 1.05", statistics.median(ratios) <= 1.05, description)


def linear_probe(folder: Path, model: Path, seeds: int, images: int) -> dict[str, Any]:
    rendered(folder, imagenet={"train": images, "val": images // 2})
    if not (model / student.CONFIG_FILE).exists():
        model = folder / "untrained"
        untrained(model, SMALL, 0)
    found = linear_probes(folder, model, folder / "imagenet", seeds)
    ratios = [ours / theirs for ours, theirs in zip(found["ours_s"], found["theirs_s"], strict=True)]
    return report(
        "probe/linear_probe",
        ratios,
        "<= 1",
        statistics.median(ratios) <= 1,
        "processor seconds of a linear probe of ImageNet's layout, ours / clip_benchmark's",
        top1={way: statistics.mean(found[f"{way}_top1"]) for way in ("ours", "theirs")},
        seconds={way: found[f"{way}_s"] for way in ("ours", "theirs")},
        images=images,
    )


def equal(folder: Path, encoder: Encoder, images: int, seeds: int, views: int, evaluated: int = 300) -> dict[str, Any]:
    rendered(folder, voc={"train": images, "val": evaluated})
    entry = protocol_for(images, encoder.image_size, views)
    ours = our_way(entry, folder / "voc", encoder, folder / "features", seeds)
    usual = [usual_way(entry, folder / "voc", encoder, ours.standard, seed)[0] for seed in range(seeds)]
    heads = {}
    for name in usual[0]:
        ways = {"usual": [scores[name] for scores in usual], "ours": [scores[name] for scores in ours.scores]}
        summary = {
            f"{way}_{statistic}": function(values)
            for way, values in ways.items()
            for statistic, function in SUMMARIES.items()
        }
        heads[name] = {**summary, "difference": summary["ours_mean"] - summary["usual_mean"]}
    return report(
        "probe/equal",
        [head["ours_mean"] / head["usual_mean"] for head in heads.values()],
        "means within two standard deviations over seeds",
        all(abs(head["difference"]) <= 2 * max(head["usual_std"], head["ours_std"]) for head in heads.values()),
        "mean mIoU of a segmentation head, features computed once / the encoder in every step",
        heads=heads,
        seeds=seeds,
        images={"train": images, "eval": evaluated},
        steps=entry.semantic_segmentation.heads["linear"].steps,
        batch_size=BATCH,
        views=entry.semantic_segmentation.augment.views,
        weights_sha256=encoder.sha256,
    )


def solver(folder: Path, seeds: int, images: int = 160) -> dict[str, Any]:
    rendered(folder, nyuv2={"train": images, "val": images // 2})
    error, by_rate = [], []
    for seed in range(seeds):
        encoder = untrained(folder / "small", SMALL, seed)
        ours, trained = solved_depth(folder / "nyuv2", encoder, folder / "features", seed)
        error.append(ours / min(trained))
        by_rate.append([ours / rmse for rmse in trained])
    description = "RMSE in metres, closed form / AdamW for ten epochs"
    holds = statistics.median(error) <= 1.02
    return report(
        "probe/solver", error, "<= 1.02", holds, description, images=images, epochs=EPOCHS, rates=RATES, by_rate=by_rate
    )


def as_before(features: StoredFeatures, index: np.ndarray, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    values = torch.from_numpy(np.array(features.tokens[index])).float()
    values *= torch.from_numpy(np.array(features.scales[index]))[:, None]
    return ((values - mean) * scale).transpose(1, 2).unflatten(2, (32, 32)).contiguous()


def reading(folder: Path, rounds: int = 12) -> dict[str, Any]:
    """The stored features are in a memory-mapped file, which the system holds in memory."""
    rng = np.random.default_rng(0)
    cache = FeatureCache(folder, 1e10)
    with cache.new("maps", "int8", 1, {}) as writer:
        for _ in range(8):
            writer.append(torch.randn(16, 1024, 768))
    stored = cache.find("maps")
    mean, scale = torch.randn(768), torch.rand(768) + 0.5
    features = Features(stored, (32, 32), False, mean, scale)
    ways = {
        "before": lambda index: as_before(stored, index, mean, scale),
        "here": lambda index: features[index],
        "copy": lambda index: features.load(index),
    }
    seconds = {name: [] for name in ways}
    for _ in range(rounds):
        index = rng.permutation(128)[:16]
        values = {}
        for name, way in ways.items():
            start = time.process_time()
            values[name] = way(index)
            seconds[name].append(time.process_time() - start)
        if not torch.equal(values["before"], values["here"]):
            raise SystemExit("reading: the features differ from those computed as before")
    ratios = [before / here for before, here in zip(seconds["before"], seconds["here"], strict=True)]
    copies = [before / copy for before, copy in zip(seconds["before"], seconds["copy"], strict=True)]
    return report(
        "probe/reading",
        ratios,
        ">= 2 on a CPU, >= 10 for a GPU",
        statistics.median(ratios) >= 2 and statistics.median(copies) >= 10,
        "processor seconds of a batch of 16 int8 maps of 512 px, as before / as now",
        copy={"ratio": statistics.median(copies), "spread": [min(copies), max(copies)]},
        milliseconds={name: 1000 * statistics.median(values) for name, values in seconds.items()},
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=NAMES, help="run only this one")
    parser.add_argument("--images", type=int, help="training images, a multiple of 12: 12 in `frozen`, 96 in `equal`")
    parser.add_argument("--seeds", type=int, help="6 in `frozen`, 4 in `equal`, 3 in `solver` and `linear_probe`")
    parser.add_argument("--views", type=int, default=24, help="views per training image in `frozen` and `equal`")
    parser.add_argument(
        "--encoder",
        type=Path,
        default=paths.model("cliptex", 0),
        help="exported model for `equal` and `linear_probe` (default: the miniature's)",
    )
    parser.add_argument("--quick", action="store_true", help="less of each, without `equal` and `solver`")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    quick, results = args.quick, []

    def runs(name: str) -> bool:
        return args.only == name or (args.only is None and not (quick and name in ("equal", "solver")))

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if runs("reading"):
            results.append(reading(folder / "reading"))
        with_vit = any(map(runs, ("timm", "frozen", "mmsegmentation")))
        vit = untrained(folder / "vit", "ViT-B-16", 0) if with_vit else None
        if runs("timm"):
            results.append(extraction(vit, 8 if quick else 16, 2 if quick else 5))
        if runs("mmsegmentation"):
            results.append(usual_step(vit, folder / "vit", 2 if quick else 5))
        if runs("linear_probe"):
            seeds = args.seeds or (1 if quick else 3)
            results.append(linear_probe(folder / "linear_probe", args.encoder, seeds, 300 if quick else 1000))
        if runs("frozen"):
            images, views = args.images or (QUICK_BATCH if quick else BATCH), 2 if quick else args.views
            results.append(frozen(folder / "frozen", vit, images, args.seeds or (1 if quick else 6), views, quick))
        if runs("equal"):
            encoder = load_encoder(args.encoder)
            results.append(equal(folder / "equal", encoder, args.images or 96, args.seeds or 4, args.views))
        if runs("solver"):
            results.append(solver(folder / "solver", args.seeds or 3))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
