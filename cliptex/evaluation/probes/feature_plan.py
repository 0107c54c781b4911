"""Estimate the size of a benchmark's features before anything is computed."""

from collections.abc import Mapping
from typing import Any

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.plugins import find
from cliptex.evaluation.probes.feature_cache import bytes_of
from cliptex.evaluation.probes.tasks import probe_task
from cliptex.evaluation.probes.training import candidates
from cliptex.evaluation.protocols.base import PooledTask, ProbeSection, Training, views_of_each
from cliptex.evaluation.protocols.resolve import protocol_of
from cliptex.models.clip import model_config


def plan_features(config: Config, benchmark: str) -> dict[str, Any]:
    """Numbers of views and bytes of the features of a benchmark, summed over tasks with different features.

    `views`: by part, train and eval. `bytes_a_model`: as stored. `memory`: bytes of the float32 maps that heads are
    trained on. `truths`: bytes of the training ground truth, without that of detection, which is kept as run lengths.
    `place` of the largest: "disk", "memory", or "nowhere" if the encoder has to run in every step. `views_read`,
    `bytes_read`: of features that do not fit in memory, by all heads of a model that are trained in steps: steps x
    batch size for each training, and the evaluation views once. None if unknown: data sets without official counts,
    encoders whose shape is only known once they are built.
    """
    protocol = protocol_of(benchmark, config.probes.benchmarks.get(benchmark, {}))
    counts = _counts(config, benchmark, protocol.max_train, protocol.max_eval)
    unknown = {"views": None, "bytes_a_model": None, "memory": None, "truths": None, "place": None}
    unknown |= {"views_read": None, "bytes_read": None}
    if counts is None:
        return unknown
    sizes, truths, views_read, bytes_read = [], 0, 0, 0
    image_size = model_config(config.student)["vision_cfg"].get("image_size", 224)
    for tasks in protocol.tasks_by_features:
        section = protocol.section(tasks[0])
        shape = _tokens_and_channels(config, section)
        views = {part: count * views_of_each(section, part) for part, count in counts.items()}
        if shape is None:
            return unknown | {"views": views}
        needed = (probe_task(task).truth_bytes(protocol.section(task), image_size) for task in tasks)
        truths += views["train"] * sum(needed)
        tokens, channels, cls = shape
        num_views = sum(views.values())
        stored = sum(bytes_of((number, tokens, channels), section.features.precision) for number in views.values())
        heads = [head for task in tasks for head in protocol.section(task).heads.values()]
        read = sum(_views_read(head, views) for head in heads) if stored > config.probes.memory_gb * 1e9 else 0
        views_read, bytes_read = views_read + read, bytes_read + read * stored // num_views
        sizes.append((stored, 4 * num_views * (tokens - cls) * channels * (1 + cls), views))
    largest, probes = max(stored for stored, _, _ in sizes), config.probes
    place = "disk" if largest <= probes.cache_gb * 1e9 else "memory" if largest <= probes.memory_gb * 1e9 else "nowhere"
    return {
        "views": {part: sum(views[part] for _, _, views in sizes) for part in counts},
        "bytes_a_model": sum(stored for stored, _, _ in sizes),
        "memory": sum(memory for _, memory, _ in sizes),
        "views_read": views_read,
        "bytes_read": bytes_read,
        "truths": truths,
        "place": place,
    }


def _views_read(head: Any, views: Mapping[str, int]) -> int:
    """Views that a head reads; 0 for one that is solved, in one or two passes or from memory."""
    if not isinstance(head, Training):
        return 0
    grid = len(candidates(head))
    # a grid of linear classifiers reads a batch once for all
    trainings = 1 if grid == 1 else 2 if getattr(head, "kind", "") == "sgd" else grid + 1
    return trainings * head.steps * min(head.batch_size, views["train"]) + views["eval"]


def _counts(config: Config, benchmark: str, max_train: int | None, max_eval: int | None) -> dict[str, int] | None:
    data = config.benchmark_source(benchmark)
    if data.source == "miniature":
        split = config.miniature.benchmarks.get(benchmark)
        counts = {} if split is None else {"train": split.train, "eval": split.val}
    else:
        if data.source == "subset":
            return None
        metadata = {"source": data.source, "variant": data.variant}
        counts = dict(find("benchmarks", benchmark)(paths.benchmark(benchmark), metadata).official_counts)
    limits = {"train": max_train, "eval": max_eval}
    if not counts:
        return None
    return {part: min(count, limits[part] or count) for part, count in counts.items()}


def _tokens_and_channels(config: Config, section: ProbeSection) -> tuple[int, int, bool] | None:
    """Tokens per view, channels per token, and whether one token is the class token, for the student's encoder."""
    architecture = model_config(config.student)
    vision = architecture["vision_cfg"]
    if "timm_model_name" in vision or not isinstance(vision.get("layers"), int):
        return None
    width, patch = vision.get("width", 768), vision.get("patch_size", 16)
    if isinstance(section, PooledTask):
        blocks = section.features.blocks + 1
        channels = {"pooled": width, "embedding": architecture["embed_dim"], "tokens": blocks * width}
        return 1, channels[section.features.point], False
    size = section.input.size_px or vision.get("image_size", 224)
    height, width_px = (size, size) if isinstance(size, int) else size
    layers = section.features.layers
    blocks = {layer % vision["layers"] for layer in layers} if not isinstance(layers, str) else None
    num_blocks = len(blocks) if blocks else {"last": 1, "quarters": 4}[layers]
    cls = section.features.cls
    return (height // patch) * (width_px // patch) + cls, width * num_blocks, cls
