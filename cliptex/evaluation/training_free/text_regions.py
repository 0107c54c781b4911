"""Classify regions by text (`cliptex.evaluation.training_free.region_classification`).

Shapes: D width of the joint embedding, K classes, T texts, h x w the patch grid, n regions of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.ops import roi_align

from cliptex.core.errors import CliptexError
from cliptex.core.finite import require_finite
from cliptex.evaluation.metrics.regions import region_metrics, region_statistics
from cliptex.evaluation.probes.base import Outcome
from cliptex.evaluation.probes.views import ImageView, Size, crop_view, evaluation_views
from cliptex.evaluation.thumbnails import box_thumbnails
from cliptex.evaluation.training_free.base import Evaluated, FrozenModel, TrainingFreeRun
from cliptex.evaluation.training_free.region_classification import (
    RegionClassification,
    RegionClassificationProtocol,
    RegionVariant,
)
from cliptex.evaluation.training_free.text_embeddings import Texts, encoded_views, samples_in_order, texts_of
from cliptex.evaluation.zeroshot import BROKEN
from cliptex.experts.precision import frozen_precision, mixed_precision
from cliptex.models.encoders import batch_size

THINGS, STUFF = (measure.name for measure in RegionClassification.measures)
TOKENS = {"last": "the last block", "value": "the last block's value path (MaskCLIP)"}
METHODS = {
    "box": "RoIAlign (one bin) of the patch tokens of {tokens}, projected",
    "mask": "mean of the patch tokens of {tokens}, projected, weighted by the mask's share of each patch",
    "crop": "the box cut out, resized to {own} x {own} pixels, embedded as an image",
}


@dataclass(frozen=True)
class Regions:
    """Regions of an image. boxes: float32 [n, 4] (xyxy) inside the image. masks: bool [n, H, W]. labels: int64 [n]."""

    boxes: np.ndarray
    masks: np.ndarray
    labels: np.ndarray


@dataclass
class RegionReading:
    """One model read by one variant, for objects or for stuff, with what it found image by image."""

    model: FrozenModel
    variant: str
    options: RegionVariant
    kind: str
    texts_DT: torch.Tensor
    labels: list[np.ndarray] = field(default_factory=list)
    best: list[np.ndarray] = field(default_factory=list)
    drawn: list[dict[str, np.ndarray]] = field(default_factory=list)


def classify_regions(run: TrainingFreeRun) -> Evaluated:
    """Evaluate all variants with all models."""
    section, things = run.section, run.benchmark.class_names
    stuff = _stuff(run) if section.classes == "panoptic" else None
    class_names = [*things, *(stuff.class_names if stuff else ())]
    texts = texts_of(list(enumerate(class_names)), section.names, f"{RegionClassification.name}.names")
    embedded = {model.row: texts.embedded(model, section.templates, section.precision) for model in run.models}
    readings = [
        RegionReading(model, name, options, kind, embedded[model.row])
        for model in run.models
        for name, options in section.variants.items()
        for kind in ((THINGS, STUFF) if stuff and options.region == "mask" else (THINGS,))
    ]
    ids: list[str] = []
    pending: list[dict[str, Any]] = []
    encoder = run.models[0].encoder
    rows = batch_size(encoder.input_size(section.input.size_px), encoder.device)
    for number, sample in enumerate(samples_in_order(run, f"classify regions of {run.benchmark.name}"), start=1):
        ids.append(sample["id"])
        pending.append(sample)
        if len(pending) == rows or number == len(run.samples):
            regions = {THINGS: [_things(one) for one in pending]}
            if stuff:
                regions[STUFF] = [_stuff_regions(one, stuff, len(things)) for one in pending]
            _classify(pending, regions, run, readings, texts, len(class_names))
            pending = []
    outcomes = [(one.variant, one.model, _outcome(one, section, len(class_names))) for one in readings]
    levels = {f"mean_top{k}": 100 * min(k, len(class_names)) / len(class_names) for k in (1, 5)}
    chance = dict.fromkeys(dict.fromkeys(one.kind for one in readings), levels)
    details = {"prompts_sha256": texts.sha256(section.templates)}
    return Evaluated(ids, outcomes, chance=chance, details=details, class_names=class_names)


def _stuff(run: TrainingFreeRun) -> Any:
    if not hasattr(run.benchmark, "stuff"):
        key = f"training_free.benchmarks.{run.benchmark.name}.{RegionClassification.name}.classes"
        raise CliptexError(f"{key}: {run.benchmark.name} has no panoptic annotations; set it to things")
    return run.benchmark.stuff("eval")


def _things(sample: dict[str, Any]) -> Regions:
    """The objects of a sample without crowds, and without those that have no mask or a box without an area."""
    height, width = sample["image"].shape[:2]
    boxes = np.clip(sample["boxes"], 0, np.array([width, height, width, height], np.float32))
    has_area = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    kept = ~sample["crowd"] & has_area & sample["masks"].any((1, 2))
    return Regions(boxes[kept], sample["masks"][kept], sample["labels"][kept])


def _stuff_regions(sample: dict[str, Any], stuff: Any, first: int) -> Regions:
    """The regions of stuff of a sample. first: number of the first class of stuff."""
    labels, masks = stuff.of(sample["id"], sample["image"].shape[:2])
    return Regions(np.zeros((len(labels), 4), np.float32), masks, labels + first)


def _classify(
    batch: Sequence[dict[str, Any]],
    regions: dict[str, list[Regions]],
    run: TrainingFreeRun,
    readings: Sequence[RegionReading],
    texts: Texts,
    num_classes: int,
) -> None:
    """Add what each reading finds in a batch of samples."""
    section, views = run.section, {}
    kinds = list(dict.fromkeys(one.options.tokens for one in readings if one.options.region != "crop"))
    subject = f"images {batch[0]['id']} to {batch[-1]['id']}"
    class_of = torch.from_numpy(texts.class_of)
    for model in run.models:
        encoder, maps, crops = model.encoder, {}, None
        key = encoder.input_size(section.input.size_px), encoder.interpolation
        if kinds and key not in views:
            views[key] = np.stack([_squashed(sample["image"], section, *key) for sample in batch])
        if kinds:
            maps = encoded_views(model, views[key], kinds, section.precision, subject)
        for reading in readings:
            if reading.model is not model:
                continue
            options, own = reading.options, regions[reading.kind]
            if options.region == "crop":
                crops = _crop_embeddings(model, batch, own, section.precision, subject) if crops is None else crops
                found = crops
            else:
                pool = _box_embeddings if options.region == "box" else _mask_embeddings
                found = [
                    pool(maps[options.tokens][number], one, sample["image"].shape[:2])
                    for number, (sample, one) in enumerate(zip(batch, own, strict=True))
                ]
            for one, embeddings_nD in zip(own, found, strict=True):
                _add(reading, one, F.normalize(embeddings_nD, dim=-1) @ reading.texts_DT, class_of, num_classes, run)


def _squashed(image: np.ndarray, section: RegionClassificationProtocol, size: Size, interpolation: str) -> np.ndarray:
    return crop_view(image, evaluation_views(image.shape[:2], section.input, size)[0], size, interpolation)


def _box_embeddings(map_Dhw: torch.Tensor, regions: Regions, shape: Size) -> torch.Tensor:
    """Mean over the boxes, float32 [n, D]."""
    scale = torch.tensor([map_Dhw.shape[2] / shape[1], map_Dhw.shape[1] / shape[0]] * 2, device=map_Dhw.device)
    boxes = torch.from_numpy(regions.boxes).to(map_Dhw.device) * scale
    return roi_align(map_Dhw[None], [boxes], output_size=1, aligned=True)[:, :, 0, 0]


def _mask_embeddings(map_Dhw: torch.Tensor, regions: Regions, shape: Size) -> torch.Tensor:
    """Mean over the masks, float32 [n, D]."""
    if not len(regions.masks):
        return map_Dhw.new_zeros(0, len(map_Dhw))
    masks = torch.from_numpy(regions.masks).to(map_Dhw.device).float()[:, None]
    shares = F.interpolate(masks, size=tuple(map_Dhw.shape[1:]), mode="area")[:, 0]
    shares = shares / shares.sum((1, 2), keepdim=True)
    return torch.einsum("nhw,dhw->nd", shares, map_Dhw)


def _crop_embeddings(
    model: FrozenModel, batch: Sequence[dict[str, Any]], regions: Sequence[Regions], precision: str, subject: str
) -> list[torch.Tensor]:
    """Embeddings float32 [n, D] of the boxes of each image, cut out and squashed to the encoder's own size."""
    encoder = model.encoder
    size = encoder.input_size(None)
    rows = batch_size(size, encoder.device)
    crops = []
    for sample, one in zip(batch, regions, strict=True):
        for left, top, right, bottom in one.boxes.tolist():
            view = ImageView(top, left, bottom - top, right - left)
            crops.append(crop_view(sample["image"], view, size, encoder.interpolation))
    embeddings = []
    for start in range(0, len(crops), rows):
        images = encoder.normalised(np.stack(crops[start : start + rows]))
        with mixed_precision(frozen_precision(precision, size)):
            embeddings.append(encoder.embedding(images).float())
        require_finite(embeddings[-1], f"{model.row}: its embeddings of regions of {subject}", BROKEN)
    width = model.zero_shot.model.visual.output_dim
    found = torch.cat(embeddings) if embeddings else torch.zeros(0, width, device=encoder.device)
    return list(found.split([len(one.boxes) for one in regions]))


def _add(
    reading: RegionReading,
    regions: Regions,
    cosines_nT: torch.Tensor,
    class_of: torch.Tensor,
    num_classes: int,
    run: TrainingFreeRun,
) -> None:
    """Rank the classes of each region by their nearest text."""
    index = class_of.to(cosines_nT.device).expand(len(cosines_nT), -1)
    scores = cosines_nT.new_full((len(cosines_nT), num_classes), -torch.inf)
    scores = scores.scatter_reduce(1, index, cosines_nT, "amax")
    values, best = (found.cpu().numpy() for found in scores.topk(min(5, num_classes), dim=1))
    reading.labels.append(regions.labels)
    reading.best.append(best)
    if reading.model.seed == run.models[0].seed and reading.kind == THINGS:
        reading.drawn.append({"boxes": regions.boxes, "labels": best[:, 0], "scores": values[:, 0]})


def _outcome(reading: RegionReading, section: RegionClassificationProtocol, num_classes: int) -> Outcome:
    parts = region_statistics(reading.labels, reading.best, num_classes)
    encoder = reading.model.encoder
    own, size = encoder.image_size, encoder.input_size(section.input.size_px)
    words = METHODS[reading.options.region].format(tokens=TOKENS[reading.options.tokens], own=own)
    where = "" if reading.options.region == "crop" else f"; the image squashed to {size[0]} x {size[1]} pixels"
    precision = frozen_precision(section.precision, size)
    words += f"; nearest of {num_classes} classes by cosine{where}; templates {section.templates}; without crowds"
    words += "" if precision == "fp32" else f"; towers in {precision}"
    small = box_thumbnails(reading.drawn) if reading.drawn else {}
    return Outcome(reading.kind, region_metrics(parts), 0, {}, words, {}, parts, small)
