"""COCO's average precision from matches of detections to objects (as in pycocotools' `COCOeval`)."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from cliptex.evaluation.metrics.base import Arrays, ratio

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)


def detection_statistics(
    annotations: Mapping[str, Any],
    ids: Sequence[int],
    detections: Sequence[Mapping[str, np.ndarray]],
    overlaps: Mapping[tuple[int, int], np.ndarray],
    max_detections: int = 100,
) -> Arrays:
    """Per-image parts: match detections to objects of all sizes as in COCO's evaluation.

    annotations: content of a COCO file. ids: the image of each item of `detections`, which have `labels` and `scores`.
    overlaps: (image id, category id) -> IoU [detections by descending score, objects in the file's order], as in
    COCOeval's `ious`. max_detections: per class and image.
    """
    categories = sorted(category["id"] for category in annotations["categories"])
    label_of = {category: index for index, category in enumerate(categories)}
    row = {image: index for index, image in enumerate(ids)}
    crowds: dict[tuple[int, int], list[bool]] = {}
    positives = np.zeros((len(ids), len(categories)), np.int32)
    for item in annotations["annotations"]:
        if (image := item["image_id"]) in row:
            crowds.setdefault((image, item["category_id"]), []).append(bool(item.get("iscrowd", 0)))
            positives[row[image], label_of[item["category_id"]]] += not item.get("iscrowd", 0)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("image", "label", "score", "matched", "ignored")}
    # by image id, as in COCO's evaluation: it decides the order of equal scores
    for index in sorted(range(len(ids)), key=ids.__getitem__):
        detected = detections[index]
        for label in np.unique(detected["labels"]).tolist():
            scores = detected["scores"][np.flatnonzero(detected["labels"] == label)]
            scores = scores[np.argsort(-scores, kind="stable")][:max_detections]
            pair = (ids[index], categories[label])
            crowd = crowds.get(pair)
            matched, ignored = _match(np.asarray(overlaps[pair]), np.array(crowd)) if crowd else _unmatched(len(scores))
            parts["image"].append(np.full(len(scores), index, np.int32))
            parts["label"].append(np.full(len(scores), label, np.int32))
            parts["score"].append(np.asarray(scores, np.float32))
            parts["matched"].append(matched)
            parts["ignored"].append(ignored)
    dtypes = {"image": np.int32, "label": np.int32, "score": np.float32, "matched": np.uint16, "ignored": np.uint16}
    joined = {name: np.concatenate([np.empty(0, dtypes[name]), *values]) for name, values in parts.items()}
    order = np.lexsort((-joined["score"], joined["label"]))  # stable
    return {name: values[order] for name, values in joined.items()} | {"positives": positives}


def _unmatched(count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(count, np.uint16), np.zeros(count, np.uint16)


def _match(overlaps_DG: np.ndarray, crowd_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each detection, by descending score, the bits of the thresholds at which it is matched, and ignored.
    An object is matched once, by the highest score. A detection without an object that overlaps a crowd is ignored."""
    limits = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
    single, crowds = overlaps_DG[:, ~crowd_G], overlaps_DG[:, crowd_G]
    free = np.ones((len(limits), single.shape[1]), bool)
    matched, ignored = _unmatched(len(overlaps_DG))
    for detection in np.flatnonzero(overlaps_DG.max(1) >= limits[0]):
        hit = np.zeros(len(limits), bool)
        if single.shape[1]:
            fits = np.where(free & (single[detection] >= limits[:, None]), single[detection], -1.0)
            # of equal overlaps the last one, as in pycocotools
            best = fits.shape[1] - 1 - fits[:, ::-1].argmax(1)
            hit = fits.max(1) > 0
            free[hit, best[hit]] = False
        inside = crowds[detection].max(initial=0.0) >= limits
        matched[detection] = np.sum(1 << np.flatnonzero(hit))
        ignored[detection] = np.sum(1 << np.flatnonzero(inside & ~hit))
    return matched, ignored


def ap_of_matches(arrays: Arrays, weights: np.ndarray) -> np.ndarray:
    """COCO's AP, percent, for each row of weights [B, N]: float64 [B].

    Precision, made non-increasing, is interpolated at 101 recalls and averaged over thresholds and classes with
    objects. The precision at a recall is that of the first match that reaches it, so that precision is only needed at
    detections that match an object.
    """
    positives = weights @ arrays["positives"].astype(np.float64)
    total = np.zeros(len(weights))
    bounds = np.searchsorted(arrays["label"], np.arange(positives.shape[1] + 1))
    for label, (start, stop) in enumerate(pairwise(bounds)):
        if start == stop or not positives[:, label].any():
            continue
        matched, ignored = arrays["matched"][start:stop], arrays["ignored"][start:stop]
        counts = weights[:, arrays["image"][start:stop]]
        all_detections = counts.cumsum(1)
        present = positives[:, label] > 0
        objects = np.where(present, positives[:, label], 1)[:, None]
        for bit in range(len(IOU_THRESHOLDS)):
            hits = np.flatnonzero(matched >> bit & 1)
            if not len(hits):
                continue
            num_detections = all_detections[:, hits]
            if (excluded := ignored >> bit & 1).any():
                num_detections = num_detections - (counts * excluded).cumsum(1)[:, hits]
            true_positives = counts[:, hits].cumsum(1)
            precision = true_positives / np.where(num_detections > 0, num_detections, 1)
            precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            reached = np.searchsorted(RECALLS, true_positives / objects, side="right")
            total += np.where(present, (precision * np.diff(reached, axis=1, prepend=0)).sum(1), 0)
    return 100 * ratio(total / len(RECALLS) / len(IOU_THRESHOLDS), (positives > 0).sum(1))


def ap_of_each_image(arrays: Arrays) -> np.ndarray:
    """COCO's AP of every image by itself, percent, float64 [N]; NaN for an image without objects."""
    count = len(arrays["positives"])
    out = np.full(count, np.nan)
    order = np.argsort(arrays["image"], kind="stable")
    bounds = np.searchsorted(arrays["image"][order], np.arange(count + 1))
    for number in range(count):
        rows = order[bounds[number] : bounds[number + 1]]
        image = {name: arrays[name][rows] for name in ("label", "score", "matched", "ignored")}
        image |= {"image": np.zeros(len(rows), np.int32), "positives": arrays["positives"][number : number + 1]}
        out[number] = ap_of_matches(image, np.ones((1, 1)))[0]
    return out
