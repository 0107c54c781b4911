"""Judge frozen encoders on one benchmark: train the heads of its tasks for several models with the same budget.

Reads   results/models/{model}/seed{seed}/ and resources/{benchmark}/ in its official layout.
Writes  results/probes/{benchmark}/{model}/seed{seed}/{head}.json, and beside it {head}.per_image.npz (see
        `cliptex.probes.per_image`), {head}.thumbnails.npz (see `cliptex.probes.thumbnails`) and {head}.npz.
Holds   hyper-parameters are chosen on a holdout of the training split, never on the evaluation split; every model
        sees the same images, batches, first weights of the heads and number of steps.

The .npz file keeps the first `probes.save_predictions` evaluation samples: `ids` [n], `image_{i}` (uint8 [H, W, 3] as
in the data set) and by task
    semantic_segmentation   `truth_{i}`, `prediction_{i}`: uint8 [H, W], 255 = ignored
    depth                   `depth_truth_{i}`, `depth_prediction_{i}`: float32 [H, W] metres, NaN = invalid
    normals                 `normals_truth_{i}`, `normals_prediction_{i}`: float32 [H, W, 3], NaN = invalid
    detection               `truth_` and `prediction_` `boxes_{i}` (xyxy), `labels_{i}`, `masks_{i}` (bool [n, H, W]),
                            `truth_crowd_{i}`, `prediction_scores_{i}`
    classification          `truth` [n], `prediction` [n, 5]: classes, best first
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cliptex.benchmarks.base import Benchmark
from cliptex.benchmarks.reading import source
from cliptex.config import Config
from cliptex.encoders import (
    BASELINES,
    BATCH_SIZE,
    POOLED,
    Encoder,
    centre_crop,
    dense_of,
    in_order,
    load_encoder,
    squash,
)
from cliptex.errors import CliptexError
from cliptex.features import DENSE
from cliptex.files import replacing, write_json
from cliptex.plugins import find
from cliptex.probes.features import Outcome, resample_nearest, seed_of, standardise
from cliptex.probes.per_image import check, per_image_path, write_per_image
from cliptex.probes.protocols import Entry, protocol_of
from cliptex.probes.thumbnails import thumbnails_path
from cliptex.progress import track
from cliptex.provenance import provenance
from cliptex.student import CONFIG_FILE

log = logging.getLogger("cliptex")


@dataclass
class Split:
    """One part of a benchmark, decoded once for all models: network inputs and truths, not the original images."""

    ids: list[str]
    images: np.ndarray
    truths: list[dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """What the tasks' functions need besides the data."""

    benchmark: Benchmark
    protocol: Entry
    holdout: float
    seed: int
    keep: int
    kept: list[dict[str, Any]]


def probe(
    config: Config,
    benchmark: str,
    models: Sequence[str],
    seed: int,
    models_dir: Path,
    benchmark_root: Path,
    out_dir: Path,
    data: Benchmark | None = None,
) -> None:
    """Probe several models (and baselines) on one benchmark and write one JSON file a model and head.

    models_dir holds {model}/seed{seed}/; out_dir is `results/probes/{benchmark}`. data: what is judged on, in place of
    the benchmark at benchmark_root, for a study. The baselines "random" and
    "position" take their architecture from the first model of `models`, or else from any that is exported.
    """
    protocol = protocol_of(benchmark, config.probes.benchmarks.get(benchmark, {}))
    data = data or find("benchmarks", benchmark)(benchmark_root)
    if "classification" in data.tasks and len(data.tasks) > 1:
        raise CliptexError(f"{benchmark}: classification and dense tasks must be two benchmarks")
    reference = reference_folder(models, seed, models_dir)
    encoders = {}
    for model in models:
        folder = model if model in BASELINES else Path(models_dir) / model / f"seed{seed}"
        encoders[model] = load_encoder(folder, reference=reference, seed=seed_of("random encoder", seed))
    first = encoders[models[0]]
    for model, encoder in encoders.items():
        if (encoder.image_size, encoder.interpolation) != (first.image_size, first.interpolation):
            raise CliptexError(
                f"models.{model}: its image size differs from {models[0]}'s; probe them in separate jobs"
            )

    pooled = data.tasks == ("classification",)
    start = time.perf_counter()
    if pooled:
        train, train_features = _read_pooled(data, "train", encoders, protocol.max_train, seed)
        judged, judged_features = _read_pooled(data, "eval", encoders, protocol.max_eval, None)
    else:
        train = _read_dense(data, "train", first, protocol, protocol.max_train, seed)
        judged = _read_dense(data, "eval", first, protocol, protocol.max_eval, None)
    log.info(
        "%s: %d + %d images read in %.1f s", benchmark, len(train.ids), len(judged.ids), time.perf_counter() - start
    )

    samples = data.samples("eval")
    keep = min(config.probes.save_predictions, len(judged.ids))
    kept = [samples[index] for index in range(keep)]
    run = Run(data, protocol, config.probes.holdout, seed_of(benchmark, seed), keep, kept)
    settings = {
        "benchmark": benchmark,
        "protocol": protocol.model_dump(mode="json", exclude_none=True),
        "holdout": config.probes.holdout,
        "seed": seed,
    }
    for model, encoder in track(encoders.items(), f"probe {benchmark}", total=len(encoders)):
        start = time.perf_counter()
        if pooled:
            features = train_features.pop(model), judged_features.pop(model)
        else:
            features = dense_of(encoder, train.images), dense_of(encoder, judged.images)
        features = standardise(*features)
        seconds_features = time.perf_counter() - start
        for head, tasks in _tasks_by_head(protocol, data.tasks).items():
            rows, predictions, per_image, thumbnails = [], {}, {}, {}
            for task in tasks:
                start = time.perf_counter()
                outcomes = TASKS[task](run, head, train, judged, features)
                seconds = (time.perf_counter() - start) / len(outcomes)
                for outcome in outcomes:
                    rows.append(_row(outcome, protocol, model, seed, head, seconds))
                    predictions |= outcome.predictions
                    check(outcome.task, outcome.per_image, outcome.metrics)
                    per_image[outcome.task] = outcome.per_image
                    thumbnails |= {outcome.task: outcome.thumbnails} if outcome.thumbnails else {}
                    log.info("%s %s %s %s: %s", benchmark, model, head, outcome.task, _short(outcome.metrics))
            result = {
                "schema_version": 1,
                "benchmark": benchmark,
                "source": source(benchmark_root),
                "split": data.eval_split,
                "num_train": len(train.ids),
                "num_eval": len(judged.ids),
                "class_names": data.class_names,
                "feature": POOLED if pooled else DENSE,
                "input": {
                    "image_size_px": encoder.image_size,
                    "resize": "shorter side, centre crop" if pooled else "squashed",
                    "interpolation": encoder.interpolation,
                    "grid": encoder.grid,
                },
                "seconds_features": seconds_features,
                "results": rows,
                "provenance": provenance(settings) | {"model_sha256": {f"{model}/seed{seed}": encoder.sha256}},
                "settings": settings,
            }
            folder = Path(out_dir) / model / f"seed{seed}"
            if keep:
                _write_predictions(folder / f"{head}.npz", judged.ids[:keep], kept, predictions)
            write_per_image(per_image_path(folder / f"{head}.json"), judged.ids, per_image)
            if thumbnails:
                write_per_image(thumbnails_path(folder / f"{head}.json"), judged.ids, thumbnails)
            write_json(folder / f"{head}.json", result)


def reference_folder(models: Sequence[str], seed: int, models_dir: Path) -> Path:
    """The exported folder that gives the baselines their architecture; all models of a config have the same one."""
    for model in models:
        if model not in BASELINES:
            return Path(models_dir) / model / f"seed{seed}"
    found = sorted(Path(models_dir).glob(f"*/seed{seed}/{CONFIG_FILE}"))
    if not found:
        raise CliptexError(f"{models_dir}: no exported model with seed {seed}; train one first")
    return found[0].parent


def _row(outcome: Outcome, protocol: Entry, model: str, seed: int, head: str, seconds: float) -> dict[str, Any]:
    return {
        "task": outcome.task,
        "model": model,
        "seed": seed,
        "head": head,
        "metrics": outcome.metrics,
        "num_parameters": outcome.num_parameters,
        "seconds": seconds,
        "protocol": f"{protocol.protocol} ({protocol.digest}): {outcome.protocol}",
        "protocol_name": protocol.protocol,
        "protocol_digest": protocol.digest,
        "hyperparameters": outcome.hyperparameters,
    }


def _short(metrics: dict[str, float | None]) -> str:
    return " ".join(f"{name} {value:.2f}" for name, value in metrics.items() if value is not None)


def _tasks_by_head(protocol: Entry, tasks: Sequence[str]) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for task in tasks:
        for head in getattr(protocol, task).heads:
            out.setdefault(head, []).append(task)
    return out


def _write_predictions(
    path: Path, ids: list[str], kept: list[dict[str, Any]], predictions: dict[str, np.ndarray]
) -> None:
    images = {f"image_{index}": sample["image"] for index, sample in enumerate(kept)}
    with replacing(path) as scratch:
        np.savez_compressed(scratch, ids=np.array(ids), **images, **predictions)


def _indices(count: int, limit: int | None, seed: int | None) -> list[int]:
    """All indices, or `limit` of them: drawn from `seed`, or the first ones where it is None."""
    if limit is None or limit >= count:
        return list(range(count))
    if seed is None:
        return list(range(limit))
    return np.sort(np.random.default_rng(seed).permutation(count)[:limit]).tolist()


def _read_dense(
    data: Benchmark, part: str, encoder: Encoder, protocol: Entry, limit: int | None, seed: int | None
) -> Split:
    """Decode a part once. The images are kept as the encoder's input, the truths as the tasks need them."""
    samples = data.samples(part)
    indices = _indices(len(samples), limit, seed)
    keepers = [KEEP[task] for task in data.tasks]
    grid = encoder.grid

    def read(index: int) -> tuple[str, np.ndarray, dict[str, Any]]:
        sample = samples[index]
        truth: dict[str, Any] = {}
        for keeper in keepers:
            truth |= keeper(sample, part, protocol, grid)
        return sample["id"], squash(sample["image"], encoder.image_size, encoder.interpolation), truth

    ids, images, truths = zip(*track(in_order(indices, read), f"read {data.name} {part}", len(indices)), strict=True)
    return Split(list(ids), np.stack(images), list(truths))


def _read_pooled(
    data: Benchmark, part: str, encoders: dict[str, Encoder], limit: int | None, seed: int | None
) -> tuple[Split, dict[str, torch.Tensor]]:
    """Stream a part through all encoders: a million images are decoded once and not kept."""
    samples = data.samples(part)
    indices = _indices(len(samples), limit, seed)
    one = next(iter(encoders.values()))
    features: dict[str, list[torch.Tensor]] = {model: [] for model in encoders}
    ids, labels, batch = [], [], []

    def read(index: int) -> tuple[str, int, np.ndarray]:
        sample = samples[index]
        return sample["id"], sample["label"], centre_crop(sample["image"], one.image_size, one.interpolation)

    for number, (name, label, image) in enumerate(
        track(in_order(indices, read), f"read {data.name} {part}", len(indices)), start=1
    ):
        ids.append(name)
        labels.append({"label": label})
        batch.append(image)
        if len(batch) == BATCH_SIZE or number == len(indices):
            stacked = np.stack(batch)
            for model, encoder in encoders.items():
                features[model].append(encoder.pooled(encoder.normalised(stacked)).cpu())
            batch = []
    return Split(ids, np.empty(0), labels), {model: torch.cat(parts) for model, parts in features.items()}


def _keep_mask(sample: dict[str, Any], part: str, protocol: Entry, cells: int) -> dict[str, Any]:
    mask = sample["mask"]
    return {"mask": resample_nearest(mask, protocol.semantic_segmentation.mask_size_px) if part == "train" else mask}


def _keep_depth(sample: dict[str, Any], part: str, protocol: Entry, cells: int) -> dict[str, Any]:
    grid = max(head.grid for head in protocol.depth.heads.values())
    return {"depth": resample_nearest(sample["depth"], grid) if part == "train" else sample["depth"]}


def _keep_normals(sample: dict[str, Any], part: str, protocol: Entry, cells: int) -> dict[str, Any]:
    grid = max(head.grid for head in protocol.normals.heads.values())
    return {"normals": resample_nearest(sample["normals"], grid) if part == "train" else sample["normals"]}


def _keep_objects(sample: dict[str, Any], part: str, protocol: Entry, cells: int) -> dict[str, Any]:
    from cliptex.probes.detection import CELL, training_objects

    if part == "train":
        return {"objects": training_objects(sample, CELL * cells)}
    return {"shape": sample["image"].shape[:2]}


KEEP: dict[str, Callable] = {
    "semantic_segmentation": _keep_mask,
    "detection": _keep_objects,
    "depth": _keep_depth,
    "normals": _keep_normals,
}

Features = tuple[torch.Tensor, torch.Tensor]


def _segmentation(run: Run, head: str, train: Split, judged: Split, features: Features) -> list[Outcome]:
    from cliptex.probes.segmentation import SegmentationData, probe_segmentation

    train_masks = np.stack([truth["mask"] for truth in train.truths])
    data = SegmentationData(train_masks, [truth["mask"] for truth in judged.truths], len(run.benchmark.class_names))
    seed = seed_of(head, run.seed)
    options = run.protocol.semantic_segmentation.heads[head]
    return [probe_segmentation(*features, data, options, run.holdout, seed, run.keep)]


def _detection(run: Run, head: str, train: Split, judged: Split, features: Features) -> list[Outcome]:
    from cliptex.probes.detection import probe_detection

    return probe_detection(
        *features,
        [truth["objects"] for truth in train.truths],
        run.benchmark.annotations("eval"),
        [int(name) for name in judged.ids],
        [truth["shape"] for truth in judged.truths],
        run.kept,
        run.protocol.detection.heads[head],
        run.holdout,
        seed_of(head, run.seed),
    )


def _depth(run: Run, head: str, train: Split, judged: Split, features: Features) -> list[Outcome]:
    from cliptex.probes.geometry import probe_depth

    truths = ([truth["depth"] for truth in split.truths] for split in (train, judged))
    task = run.protocol.depth
    return [probe_depth(*features, *truths, task, task.heads[head], run.holdout, seed_of(head, run.seed), run.keep)]


def _normals(run: Run, head: str, train: Split, judged: Split, features: Features) -> list[Outcome]:
    from cliptex.probes.geometry import probe_normals

    truths = ([truth["normals"] for truth in split.truths] for split in (train, judged))
    options = run.protocol.normals.heads[head]
    return [probe_normals(*features, *truths, options, run.holdout, seed_of(head, run.seed), run.keep)]


def _classification(run: Run, head: str, train: Split, judged: Split, features: Features) -> list[Outcome]:
    from cliptex.probes.classification import probe_classification

    labels = ([truth["label"] for truth in split.truths] for split in (train, judged))
    return [
        probe_classification(
            *features,
            *labels,
            len(run.benchmark.class_names),
            run.protocol.classification.heads[head],
            run.holdout,
            seed_of(head, run.seed),
            run.keep,
        )
    ]


TASKS: dict[str, Callable[[Run, str, Split, Split, Features], list[Outcome]]] = {
    "semantic_segmentation": _segmentation,
    "detection": _detection,
    "depth": _depth,
    "normals": _normals,
    "classification": _classification,
}
