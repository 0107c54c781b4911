"""Judge frozen encoders on one benchmark: train the heads of its tasks for several models with the same budget.

Reads   results/models/{model}/seed{seed}/ and resources/{benchmark}/ in its official layout.
Writes  results/probes/{benchmark}/{model}/seed{seed}/{head}.json, and beside it {head}.per_image.npz (see
        `cliptex.evaluation.per_image`), {head}.thumbnails.npz (see `cliptex.evaluation.thumbnails`) and {head}.npz.
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
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import write_json
from cliptex.core.plugins import find
from cliptex.core.progress import track
from cliptex.core.provenance import provenance
from cliptex.evaluation.metrics import IGNORE
from cliptex.evaluation.per_image import Arrays, check, num_images, per_image_path, write_per_image, write_predictions
from cliptex.evaluation.probes.feature_cache import FeatureCache
from cliptex.evaluation.probes.features import Features, Outcome, seed_of, standardised
from cliptex.evaluation.probes.parts import Kept, Part, Reader, TruthOf, features_of
from cliptex.evaluation.probes.views import Size, View, cut_truth, windows_of
from cliptex.evaluation.protocols import Entry, protocol_of
from cliptex.evaluation.protocols.base import Classification, DenseTask, MapTask, ridge_grid
from cliptex.evaluation.thumbnails import thumbnails_path
from cliptex.models.clip import CONFIG_FILE
from cliptex.models.encoders import BASELINES, Encoder, load_encoder

log = logging.getLogger("cliptex")


@dataclass(frozen=True)
class Run:
    """What the tasks' functions need besides the data."""

    benchmark: Benchmark
    protocol: Entry
    holdout: float
    seed: int
    kept: list[dict[str, Any]]


@dataclass(frozen=True)
class Data:
    """One encoder's features of both parts, and their truths."""

    train: Part
    judged: Part
    size: Size
    train_features: Features | torch.Tensor
    eval_features: Features | torch.Tensor


def probe(
    config: Config,
    benchmark: str,
    models: Sequence[str],
    seed: int,
    models_dir: Path,
    benchmark_root: Path,
    out_dir: Path,
    cache_dir: Path | None = None,
    data: Benchmark | None = None,
) -> None:
    """Probe several models (and baselines) on one benchmark and write one JSON file a model and head.

    models_dir holds {model}/seed{seed}/; out_dir is `results/probes/{benchmark}`; features are kept in cache_dir, by
    default `results/features`. data: what is judged on, in place of the benchmark at benchmark_root, for a study. The
    baselines "random" and "position" take their architecture from the first model of `models`, or else from any that
    is exported.
    """
    protocol = protocol_of(benchmark, config.probes.benchmarks.get(benchmark, {}))
    data = data or find("benchmarks", benchmark)(benchmark_root)
    if "classification" in data.tasks and len(data.tasks) > 1:
        raise CliptexError(f"{benchmark}: classification and dense tasks must be two benchmarks")
    data.check_apart()
    encoders = load_encoders(models, seed, models_dir)
    first = encoders[models[0]]
    run, indices = prepared(config, benchmark, data, protocol, seed)
    cache = FeatureCache(cache_dir or Path(out_dir).parent.parent / paths.FEATURES.name, config.probes.cache_gb * 1e9)
    memory = config.probes.memory_gb * 1e9
    streams = {}
    for tasks in protocol.tasks_by_settings:
        settings = getattr(protocol, tasks[0])
        truths = {task: TRUTHS[task](run, first) for task in tasks}
        readers = tuple(Reader(data, part, indices[part], settings, first, truths) for part in ("train", "eval"))
        streams[tuple(tasks)] = features_of(readers, encoders, cache, memory)
    settings = {
        "benchmark": benchmark,
        "protocol": protocol.model_dump(mode="json", exclude_none=True),
        "holdout": config.probes.holdout,
        "seed": seed,
    }
    for model, encoder in track(encoders.items(), f"probe {benchmark}", total=len(encoders)):
        found: dict[str, Data] = {}
        seconds_features = 0.0
        for tasks, stream in streams.items():
            train, judged, features = next(stream)
            seconds_features += features.seconds
            one = _data(train, judged, features, getattr(protocol, tasks[0]), encoder, memory)
            found |= dict.fromkeys(tasks, one)
        subject = Subject(model, seed, encoder)
        about = {"seconds_features": seconds_features, "settings": settings}
        for head, tasks in protocol.heads.items():
            one = found[tasks[0]]
            judge_head(
                run,
                subject,
                head,
                tasks,
                (one.train, one.judged),
                lambda task, head=head, found=found: TASKS[task](run, head, found[task]),
                about,
                Path(out_dir) / model / f"seed{seed}",
            )


def prepared(
    config: Config, benchmark: str, data: Benchmark, protocol: Entry, seed: int
) -> tuple[Run, dict[str, list[int]]]:
    """What the tasks' functions need besides the data, and which samples of the parts "train" and "eval" are used."""
    samples = data.samples("eval")
    indices = {
        "train": part_indices(len(data.samples("train")), protocol.max_train, seed),
        "eval": part_indices(len(samples), protocol.max_eval, None),
    }
    kept = [samples[index] for index in indices["eval"][: config.probes.save_predictions]]
    return Run(data, protocol, config.probes.holdout, seed_of(benchmark, seed), kept), indices


@dataclass(frozen=True)
class Subject:
    """Whose features a head is judged on."""

    model: str
    seed: int
    encoder: Encoder


def judge_head(
    run: Run,
    subject: Subject,
    head: str,
    tasks: Sequence[str],
    parts: tuple[Part, Part],
    outcomes_of: Callable[[str], list[Outcome]],
    about: dict[str, Any],
    folder: Path,
    frozen: bool = True,
) -> None:
    """Train and judge one head in all its tasks, and write its files into `folder`.

    outcomes_of: task -> outcomes. about: further values of the file, `settings` among them. frozen: each row says so
    where the encoder was not.
    """
    protocol, data, encoder, (train, judged) = run.protocol, run.benchmark, subject.encoder, parts
    rows, predictions, per_image, thumbnails = [], {}, {}, {}
    for task in tasks:
        start = time.perf_counter()
        outcomes = outcomes_of(task)
        seconds = (time.perf_counter() - start) / len(outcomes)
        for outcome in outcomes:
            check(outcome.task, outcome.per_image, outcome.metrics)
            rows.append(_row(outcome, protocol, getattr(protocol, task), subject, head, seconds, frozen))
            predictions |= outcome.predictions
            per_image[outcome.task] = outcome.per_image
            thumbnails |= {outcome.task: outcome.thumbnails} if outcome.thumbnails else {}
            log.info("%s %s %s %s: %s", data.name, subject.model, head, outcome.task, _short(outcome.metrics))
    _check_counts(data, protocol, train, judged, per_image)
    shas = {f"{subject.model}/seed{subject.seed}": encoder.sha256}
    result = {
        "schema_version": 1,
        "benchmark": data.name,
        "source": source(data.root),
        "variant": data.variant,
        "split": data.eval_split,
        "num_train": len(train.ids),
        "num_eval": len(judged.ids),
        "class_names": data.class_names,
        "input": {
            "interpolation": encoder.interpolation,
            **{task: _input(getattr(protocol, task), encoder) for task in tasks},
        },
        "results": rows,
        "provenance": provenance(about["settings"]) | {"model_sha256": shas},
        **about,
    }
    if run.kept:
        images = _images(run.kept, judged, getattr(protocol, tasks[0]))
        write_predictions(folder / f"{head}.npz", judged.ids[: len(run.kept)], images, predictions)
    path = folder / f"{head}.json"
    write_per_image(per_image_path(path), judged.ids, per_image)
    if thumbnails:
        write_per_image(thumbnails_path(path), judged.ids, thumbnails)
    write_json(path, result)


def _check_counts(data: Benchmark, protocol: Entry, train: Part, judged: Part, per_image: dict[str, Arrays]) -> None:
    """Raise CliptexError where other numbers of images were used than the data set, or the protocol, has."""
    parts = (("train", train, protocol.max_train), ("eval", judged, protocol.max_eval))
    for part, found, most in parts:
        wanted = data.expected(part)
        if wanted is not None and len(found.ids) != min(wanted, most or wanted):
            raise CliptexError(
                f"{data.name}: {len(found.ids):,} images to {part} were used, it has {wanted:,}; "
                f"put the data in place again, or set max_{part} in the benchmark's entry"
            )
    for task, arrays in per_image.items():
        if num_images(arrays) != len(judged.ids):
            raise CliptexError(
                f"{data.name}: {task} was judged on {num_images(arrays):,} of {len(judged.ids):,} images; please report"
            )


def load_encoders(models: Sequence[str], seed: int, models_dir: Path) -> dict[str, Encoder]:
    """The encoders of models and baselines. Raises CliptexError where they want differently sized images."""
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
    return encoders


def reference_folder(models: Sequence[str], seed: int, models_dir: Path) -> Path:
    """The exported folder that gives the baselines their architecture; all models of a config have the same one."""
    for model in models:
        if model not in BASELINES:
            return Path(models_dir) / model / f"seed{seed}"
    found = sorted(Path(models_dir).glob(f"*/seed{seed}/{CONFIG_FILE}"))
    if not found:
        raise CliptexError(f"{models_dir}: no exported model with seed {seed}; train one first")
    return found[0].parent


def _row(
    outcome: Outcome,
    protocol: Entry,
    task: DenseTask | Classification,
    subject: Subject,
    head: str,
    seconds: float,
    frozen: bool,
) -> dict[str, Any]:
    return {
        "task": outcome.task,
        "model": subject.model,
        "seed": subject.seed,
        "head": head,
        "metrics": outcome.metrics,
        "num_parameters": outcome.num_parameters,
        "seconds": seconds,
        "protocol": f"{protocol.protocol} ({protocol.digest}): {described(task, frozen)}; {outcome.protocol}",
        "protocol_name": protocol.protocol,
        "protocol_digest": protocol.digest,
        "hyperparameters": outcome.hyperparameters,
        **({} if frozen else {"frozen": False}),
    }


def _short(metrics: dict[str, float | None]) -> str:
    return " ".join(f"{name} {value:.2f}" for name, value in metrics.items() if value is not None)


def _data(
    train: Part, judged: Part, kept: Kept, task: DenseTask | Classification, encoder: Encoder, memory_bytes: float
) -> Data:
    dense, size = isinstance(task, DenseTask), encoder.input_size(task.input.size_px)
    grid = encoder.map_shape(size)[1:] if dense else None
    cls = dense and task.features.cls
    features = standardised([kept.train, kept.eval], grid, cls, task.features.standardise, memory_bytes)
    return Data(train, judged, size, *features)


def _input(task: DenseTask | Classification, encoder: Encoder) -> dict[str, Any]:
    size = encoder.input_size(task.input.size_px)
    return {"size_px": list(size)} | (
        {"grid": list(encoder.map_shape(size)[1:])} if isinstance(task, DenseTask) else {}
    )


def described(task: DenseTask | Classification, frozen: bool = True) -> str:
    """What a head gets to see, in words."""
    wanted, views = task.features, task.augment.views
    if isinstance(task, DenseTask):
        layers = {"last": "the last block", "quarters": "the blocks after each quarter"}
        which = layers.get(wanted.layers) if isinstance(wanted.layers, str) else f"blocks {list(wanted.layers)}"
        features = f"patch tokens of {which}" + (" after the final normalisation" if wanted.norm else ", raw")
        features += ", class token beside each" if wanted.cls else ""
        seen = {
            "squash": "the squashed image",
            "crop": "the image's centre",
            "windows": "windows that slide over the image",
        }[task.input.fit]
    else:
        features = {
            "pooled": "pooled feature before the projection",
            "embedding": "embedding after the projection",
            "tokens": f"class tokens of the last {wanted.blocks} blocks and mean patch token",
        }[wanted.point]
        seen = "the resized and centre-cropped image"
    text = f"{'frozen ' if frozen else ''}{features}, of {seen}"
    text += ", standardised a channel over the training split" if wanted.standardise else ""
    text += f"; {views} augmented views of each training image" if views else "; no augmentation"
    return text + (f"; features kept as {wanted.precision}" if frozen and wanted.precision != "fp32" else "")


def _images(kept: list[dict[str, Any]], judged: Part, task: DenseTask | Classification) -> list[np.ndarray]:
    """What of the kept samples' images is judged."""
    if isinstance(task, DenseTask) and task.input.fit == "crop":
        return [sample["image"][view.slices()] for sample, view in zip(kept, judged.views, strict=False)]
    return [sample["image"] for sample in kept]


def part_indices(count: int, limit: int | None, seed: int | None) -> list[int]:
    """Which samples of a part are used: all, or `limit` of them, drawn from `seed`, or the first where it is None."""
    if limit is None or limit >= count:
        return list(range(count))
    if seed is None:
        return list(range(limit))
    return np.sort(np.random.default_rng(seed).permutation(count)[:limit]).tolist()


def _mask(run: Run, encoder: Encoder) -> TruthOf:
    side = run.protocol.semantic_segmentation.mask_size_px

    def truth(sample: dict[str, Any], view: View | None) -> np.ndarray:
        return sample["mask"] if view is None else cut_truth(sample["mask"], view, (side, side), IGNORE)

    return truth


def _objects(run: Run, encoder: Encoder) -> TruthOf:
    from cliptex.evaluation.probes.detection import training_objects
    from cliptex.evaluation.probes.pyramid import frame_of

    frame = frame_of(encoder.map_shape(encoder.input_size(run.protocol.detection.input.size_px))[1:])
    return lambda sample, view: None if view is None else training_objects(sample, frame, view)


def _truth_grid(task: MapTask, encoder: Encoder) -> Size:
    """The grid on which training truths are kept: as heads that are trained want it, or else those that are fitted."""
    if (side := ridge_grid(task)) is not None:
        return side, side
    return encoder.input_size(task.truth_px or task.input.size_px)


def _depth_map(run: Run, encoder: Encoder) -> TruthOf:
    grid = _truth_grid(run.protocol.depth, encoder)
    return lambda sample, view: sample["depth"] if view is None else cut_truth(sample["depth"], view, grid, np.nan)


def _normal_map(run: Run, encoder: Encoder) -> TruthOf:
    grid = _truth_grid(run.protocol.normals, encoder)

    def truth(sample: dict[str, Any], view: View | None) -> np.ndarray:
        if view is None:
            return sample["normals"]
        normals = cut_truth(sample["normals"], view, grid, np.nan)
        return normals * np.array([-1, 1, 1], np.float32) if view.flip else normals

    return truth


TRUTHS: dict[str, Callable[[Run, Encoder], TruthOf]] = {
    "semantic_segmentation": _mask,
    "detection": _objects,
    "depth": _depth_map,
    "normals": _normal_map,
    "classification": lambda run, encoder: lambda sample, view: sample["label"],
}


def _segmentation(run: Run, head: str, data: Data) -> list[Outcome]:
    from cliptex.evaluation.probes.segmentation import SegmentationData, probe_segmentation

    task = run.protocol.semantic_segmentation
    windows = None
    if task.input.fit == "windows":
        windows = [windows_of(shape, task.input, data.size) for shape in data.judged.shapes]
    truths = SegmentationData(
        data.train.truths["semantic_segmentation"],
        data.judged.truths["semantic_segmentation"],
        len(run.benchmark.class_names),
        windows,
    )
    seed = seed_of(head, run.seed)
    split = data.train.split(run.holdout, seed)
    features = data.train_features, data.eval_features
    return [probe_segmentation(*features, truths, task.heads[head], split, seed, len(run.kept))]


def _detection(run: Run, head: str, data: Data) -> list[Outcome]:
    from cliptex.evaluation.probes.detection import DetectionData, probe_detection

    seed = seed_of(head, run.seed)
    truths = DetectionData.of(data.train, data.judged, run.benchmark.annotations("eval"), run.kept)
    split, options = data.train.split(run.holdout, seed), run.protocol.detection.heads[head]
    return probe_detection(data.train_features, data.eval_features, truths, options, split, seed)


def _depth(run: Run, head: str, data: Data) -> list[Outcome]:
    from cliptex.evaluation.probes.geometry import probe_depth

    return [_map_outcome(probe_depth, "depth", run, head, data)]


def _normals(run: Run, head: str, data: Data) -> list[Outcome]:
    from cliptex.evaluation.probes.geometry import probe_normals

    return [_map_outcome(probe_normals, "normals", run, head, data)]


def _map_outcome(judge: Callable[..., Outcome], task: str, run: Run, head: str, data: Data) -> Outcome:
    truths = data.train.truths[task], data.judged.truths[task]
    seed = seed_of(head, run.seed)
    split = data.train.split(run.holdout, seed)
    features = data.train_features, data.eval_features
    return judge(*features, *truths, getattr(run.protocol, task), head, split, seed, len(run.kept))


def _classification(run: Run, head: str, data: Data) -> list[Outcome]:
    from cliptex.evaluation.probes.classification import probe_classification

    truths = data.train.truths["classification"], data.judged.truths["classification"]
    classes, task, seed = len(run.benchmark.class_names), run.protocol.classification, seed_of(head, run.seed)
    split = data.train.split(run.holdout, seed)
    features = data.train_features, data.eval_features
    return [probe_classification(*features, *truths, classes, task, head, split, seed, len(run.kept))]


TASKS: dict[str, Callable[[Run, str, Data], list[Outcome]]] = {
    "semantic_segmentation": _segmentation,
    "detection": _detection,
    "depth": _depth,
    "normals": _normals,
    "classification": _classification,
}
