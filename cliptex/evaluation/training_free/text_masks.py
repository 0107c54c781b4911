"""Segment images by text (`cliptex.evaluation.training_free.text_segmentation`).

Shapes: V views, D width of the joint embedding, T texts, K classes, h x w the patch grid.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cliptex.core.errors import CliptexError
from cliptex.evaluation.metrics.segmentation import IGNORE, ConfusionSum, confusion_matrix, segmentation_metrics
from cliptex.evaluation.probes.base import Outcome
from cliptex.evaluation.probes.heads.segmentation import merge_windows, resized_argmax
from cliptex.evaluation.probes.views import Size, crop_view, evaluation_views, windows_of
from cliptex.evaluation.thumbnails import MASK_SIDE_PX, mask_thumbnails, shrunk
from cliptex.evaluation.training_free.base import Evaluated, FrozenModel, TrainingFreeRun
from cliptex.evaluation.training_free.text_embeddings import Texts, encoded_views, samples_in_order, texts_of
from cliptex.evaluation.training_free.text_segmentation import (
    TextSegmentation,
    TextSegmentationProtocol,
    TextSegmentationVariant,
)
from cliptex.experts.precision import frozen_precision
from cliptex.models.encoders import batch_size

TASK = TextSegmentation.name
BACKGROUND = "background"
MOST_TEXTS = 255
TOKENS = {"last": "patch tokens of the last block", "value": "patch tokens by the last block's value path (MaskCLIP)"}


@dataclass
class Reading:
    """One model read by one variant. texts_DT: embeddings. scale: of the cosines. masks: thumbnails, of the first seed.
    kept: the first predictions."""

    model: FrozenModel
    variant: str
    options: TextSegmentationVariant
    texts: Texts
    texts_DT: torch.Tensor
    scale: float
    confusion: ConfusionSum = field(default_factory=ConfusionSum)
    masks: list[np.ndarray] = field(default_factory=list)
    kept: list[np.ndarray] = field(default_factory=list)


def segment_by_text(run: TrainingFreeRun) -> Evaluated:
    """Evaluate all variants with all models. Raises CliptexError if a variant does not fit the benchmark."""
    section, class_names = run.section, run.benchmark.class_names
    texts = {name: class_texts(class_names, section, name) for name in section.variants}
    readings = []
    for model in run.models:
        embedded: dict[tuple[str, ...], torch.Tensor] = {}
        for name, found in texts.items():
            if found.texts not in embedded:
                embedded[found.texts] = found.embedded(model, section.templates, section.precision)
            scale = section.variants[name].scale or float(model.zero_shot.model.logit_scale.detach().exp())
            readings.append(Reading(model, name, section.variants[name], found, embedded[found.texts], scale))
    first_seed, ids, images, truths = run.models[0].seed, [], [], {}
    for number, (sample, logits) in enumerate(_logits(run, readings)):
        ids.append(sample["id"])
        if number < run.keep:
            images.append(sample["image"])
            truths[f"truth_{number}"] = sample["mask"]
        for reading, logits_Thw in zip(readings, logits, strict=True):
            mask = predicted_mask(logits_Thw, sample["mask"].shape, reading, class_names)
            truth = sample["mask"]
            if reading.options.background == "none" and BACKGROUND in class_names:
                truth = np.where(truth == class_names.index(BACKGROUND), np.uint8(IGNORE), truth)
            reading.confusion.add(confusion_matrix(truth, mask, len(class_names)))
            if reading.model.seed == first_seed:
                reading.masks.append(shrunk(mask, MASK_SIDE_PX))
            if number < run.keep:
                reading.kept.append(mask)
    size = run.models[0].encoder.input_size(section.input.size_px)
    outcomes = [(reading.variant, reading.model, _outcome(reading, section, size)) for reading in readings]
    details = {"prompts_sha256": {name: found.sha256(section.templates) for name, found in texts.items()}}
    return Evaluated(ids, outcomes, images, truths, details=details)


def class_texts(class_names: Sequence[str], section: TextSegmentationProtocol, variant: str) -> Texts:
    """The texts of a variant; those of the background last. Raises CliptexError if the benchmark has no background and
    the variant asks for it, or if there are too many texts."""
    options, key = section.variants[variant], f"{TASK}.variants.{variant}.background"
    has_background = BACKGROUND in class_names
    if options.background != "none" and not has_background:
        raise CliptexError(f"{key}: the benchmark has no class {BACKGROUND!r}; set it to none")
    classes = [(number, name) for number, name in enumerate(class_names) if name != BACKGROUND]
    texts = texts_of(classes, section.names, f"{TASK}.names")
    if options.background == "prompts":
        names = tuple(options.background_names)
        number = np.full(len(names), list(class_names).index(BACKGROUND), np.int64)
        texts = Texts(texts.texts + names, np.concatenate([texts.class_of, number]))
    if len(texts.texts) > MOST_TEXTS:
        raise CliptexError(
            f"{TASK}.names: {len(texts.texts)} texts, but at most {MOST_TEXTS} are supported; name fewer"
        )
    return texts


def _logits(run: TrainingFreeRun, readings: Sequence[Reading]) -> Iterator[tuple[dict[str, Any], list[torch.Tensor]]]:
    """Each sample with the cosines [T, h, w] of every reading, on the patch grid or, with windows, in pixels of the
    resized image. Each image is decoded once, and read once by each model."""
    options, pending = run.section.input, []
    encoder = run.models[0].encoder
    # windows are several views an image
    count = max(
        1, batch_size(encoder.input_size(options.size_px), encoder.device) // (8 if options.fit == "windows" else 1)
    )
    for number, sample in enumerate(samples_in_order(run, f"segment {run.benchmark.name} by text"), start=1):
        pending.append(sample)
        if len(pending) == count or number == len(run.samples):
            yield from zip(pending, _logits_of(pending, run, readings), strict=True)
            pending = []


def _logits_of(
    batch: Sequence[dict[str, Any]], run: TrainingFreeRun, readings: Sequence[Reading]
) -> list[list[torch.Tensor]]:
    """Of each sample of a batch the cosines [T, h, w] of every reading."""
    options, inputs, found = run.section.input, {}, {}
    kinds = list(dict.fromkeys(reading.options.tokens for reading in readings))
    for model in run.models:
        encoder = model.encoder
        key = encoder.input_size(options.size_px), encoder.interpolation, encoder.mean
        if key not in inputs:
            inputs[key] = [_views(sample["image"], options, *key) for sample in batch]
        views = inputs[key]
        subject = f"images {batch[0]['id']} to {batch[-1]['id']}"
        tokens = encoded_views(model, np.concatenate(views), kinds, run.section.precision, subject)
        found[model.row] = {kind: maps.split([len(own) for own in views]) for kind, maps in tokens.items()}
    out = []
    for number, sample in enumerate(batch):
        logits = []
        for reading in readings:
            tokens_VDhw = found[reading.model.row][reading.options.tokens][number]
            cosines = torch.einsum("vdhw,dt->vthw", tokens_VDhw, reading.texts_DT)
            if options.fit == "windows":
                size = reading.model.encoder.input_size(options.size_px)
                logits.append(merge_windows(cosines, windows_of(sample["image"].shape[:2], options, size)))
            else:
                logits.append(cosines[0])
        out.append(logits)
    return out


def _views(image: np.ndarray, options: Any, size: Size, interpolation: str, mean: Sequence[float]) -> np.ndarray:
    """The views of an image as the encoder's input, uint8 [V, *size, 3]."""
    fill = tuple(round(255 * value) for value in mean)
    views = evaluation_views(image.shape[:2], options, size)
    return np.stack([crop_view(image, view, size, interpolation, fill) for view in views])


def predicted_mask(logits_Thw: torch.Tensor, shape: Size, reading: Reading, class_names: Sequence[str]) -> np.ndarray:
    """The class of each pixel, uint8 [H, W]: of the nearest text, after cosines are resized (bilinear) to `shape`; with
    a threshold, background where no text has that probability in the softmax over all texts."""
    class_of = reading.texts.class_of.astype(np.uint8)
    if reading.options.background != "threshold":
        return class_of[resized_argmax(logits_Thw, *shape)]
    resized = F.interpolate(logits_Thw[None], size=shape, mode="bilinear", align_corners=False)[0]
    probability, text = (reading.scale * resized).softmax(0).max(0)
    mask = class_of[text.cpu().numpy()]
    mask[(probability < reading.options.threshold).cpu().numpy()] = list(class_names).index(BACKGROUND)
    return mask


def _outcome(reading: Reading, section: TextSegmentationProtocol, size: Size) -> Outcome:
    metrics, parts = segmentation_metrics(reading.confusion.total), reading.confusion.per_image()
    kept = {f"prediction_{number}": mask for number, mask in enumerate(reading.kept)}
    small = mask_thumbnails(reading.masks) if reading.masks else {}
    words = _words(reading, section, size)
    return Outcome(TASK, metrics, 0, {}, words, kept, parts, small)


def _words(reading: Reading, section: TextSegmentationProtocol, size: Size) -> str:
    """The method, for the key `protocol` of a row."""
    options, given = reading.options, section.input
    where = f"the image squashed to {size[0]} x {size[1]} pixels"
    if given.fit == "windows":
        where = (
            f"windows of {size[0]} px every {given.stride_px or size[0]} px, shorter side {given.resize_px or size[0]}"
        )
    background = {
        "none": "no background class",
        "threshold": f"background below a probability of {options.threshold} (scale {reading.scale:.4g})",
        "prompts": f"background by {len(options.background_names)} names",
    }[options.background]
    precision = frozen_precision(section.precision, size)
    text = f"{TOKENS[options.tokens]}, projected, nearest text by cosine; {where}; {len(reading.texts.texts)} texts,"
    text += f" templates {section.templates}; {background}; cosines resized (bilinear) to the original resolution"
    return text + ("" if precision == "fp32" else f"; towers in {precision}")
