"""What each evaluation image adds to a main metric, so that any weighting of the images can be judged.

Reads, writes  `results/probes/{benchmark}/{model}/seed{seed}/{head}.per_image.npz` beside the probe's JSON, and
               `results/zeroshot/{benchmark}.per_image.npz` for all its models.
Holds          for weights of one the metric is the one in the JSON; a file for which it is not is never written.

The files hold `ids` [N], and arrays named `{task}.{name}`; K is the number of classes:
    semantic_segmentation   `hit`, `truth`, `predicted` int32 [N, K]: pixels of a class that are right, that the truth
                            has, that the prediction has, all where the truth is not ignored
    depth                   the six metrics of each image, float64 [N]; NaN for an image without a valid pixel; where
                            they are pooled over pixels also `pixels` int64 [N], whose weights they then have
    normals                 where pooled over pixels `pixels` int64 [N], `angle_sum` (degrees), `square_sum` float64
                            [N], and the numbers of pixels `within_5` to `within_30` int64 [N]; else
                            the six metrics of each image, float64 [N], NaN for an image without a valid pixel
    classification          `top1`, `top5` bool [N]
    zero_shot_classification  the same as bool [R, N] for the R names in `rows` (`cliptex/seed0`)
    image_to_text_retrieval, text_to_image_retrieval
                            `queries` and, of them, those found `R@1`, `R@5`, `R@10`, int32 [R, N]: the image itself, or
                            its captions; what is searched stays the same whatever the weights
    detection, instance_segmentation
                            `positives` int32 [N, K]: objects that are no crowds; and a row a detection, by class, then
                            from the highest score to the lowest: `image` int32 (its row in `ids`), `label` int32,
                            `score` float32, `matched` and `ignored` uint16: bit t is for COCO's t-th IoU threshold
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from cliptex.core.errors import CliptexError
from cliptex.core.files import replacing
from cliptex.evaluation.metrics import DEPTH_METRICS, NORMALS_METRICS, WITHIN_DEGREES, Averaging, angle_metrics

MAIN_METRIC = {
    "semantic_segmentation": "mIoU",
    "detection": "AP",
    "instance_segmentation": "AP",
    "depth": "rmse",
    "normals": "mean",
    "classification": "top1",
    "zero_shot_classification": "top1",
    "image_to_text_retrieval": "R@1",
    "text_to_image_retrieval": "R@1",
}
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class PerImage:
    """A file's content. rows: of zero-shot, the models and seeds that the first axis of its arrays is over."""

    ids: np.ndarray
    tasks: dict[str, Arrays]
    rows: tuple[str, ...] = ()

    def of(self, task: str, row: str | None = None) -> Arrays:
        """A task's arrays; of zero-shot those of one model and seed, e.g. `cliptex/seed0`."""
        arrays = self.tasks[task]
        return arrays if row is None else {name: values[self.rows.index(row)] for name, values in arrays.items()}


def per_image_path(path: Path) -> Path:
    """`linear.json` -> `linear.per_image.npz`."""
    return path.with_name(f"{path.stem}.per_image.npz")


def write_per_image(path: Path, ids: Sequence[str], tasks: Mapping[str, Arrays], rows: Sequence[str] = ()) -> None:
    """Write a file; see the head of this module for the arrays."""
    named = {f"{task}.{name}": values for task, arrays in tasks.items() for name, values in arrays.items()}
    if rows:
        named["rows"] = np.array(rows)
    with replacing(path) as scratch:
        np.savez_compressed(scratch, ids=np.array(ids), **named)


def write_predictions(
    path: Path, ids: Sequence[str], images: Sequence[np.ndarray], predictions: Mapping[str, np.ndarray]
) -> None:
    """Keep the first evaluation samples: `ids` [n], `image_{i}` uint8 [H, W, 3], and the arrays of `predictions`."""
    numbered = {f"image_{index}": image for index, image in enumerate(images)}
    with replacing(path) as scratch:
        np.savez_compressed(scratch, ids=np.array(ids), **numbered, **predictions)


def read_per_image(path: Path) -> PerImage:
    """Read a file. Raises CliptexError that names it where it is missing or broken."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        ids, rows = arrays.pop("ids"), arrays.pop("rows", np.array([], str))
    except FileNotFoundError as error:
        raise CliptexError(f"{path}: no such file; run the step that makes it first") from error
    except (OSError, ValueError, KeyError) as error:
        raise CliptexError(f"{path}: cannot be read ({error}); delete it and run the same command again") from error
    tasks: dict[str, dict[str, np.ndarray]] = {}
    for name, values in arrays.items():
        task, _, part = name.partition(".")
        tasks.setdefault(task, {})[part] = values
    return PerImage(ids, tasks, tuple(rows.tolist()))


def main_metric(task: str, arrays: Arrays, weights: np.ndarray | None = None) -> np.ndarray:
    """The task's main metric (`MAIN_METRIC`, in its unit) for each row of weights [B, N]: float64 [B].

    weights: how often each image counts; one row of ones when None. NaN where the images that count have nothing to
    judge. A weight of two is the same as the image twice (detections of an image with exactly the same score aside).
    """
    compute = _METRICS[task]
    return compute(arrays, np.ones((1, num_images(arrays))) if weights is None else np.asarray(weights, np.float64))


def num_images(arrays: Arrays) -> int:
    """N of a task's arrays."""
    return len(arrays["positives"] if "positives" in arrays else next(iter(arrays.values())))


def stacked_rows(found: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """The arrays of several models and seeds as one, [R, N]."""
    return {name: np.stack([one[name] for one in found]) for name in found[0]}


def check(task: str, arrays: Arrays, metrics: Mapping[str, float | None]) -> None:
    """Raise CliptexError where the arrays do not give the main metric that is reported."""
    ours, reported = float(main_metric(task, arrays)[0]), metrics[MAIN_METRIC[task]]
    if reported is None or not np.isfinite(reported):
        agree = not np.isfinite(ours)
    else:
        agree = abs(ours - reported) <= 1e-5 * max(1.0, abs(reported))
    if not agree:
        raise CliptexError(
            f"{task}: {MAIN_METRIC[task]} is {reported}, but {ours} from its statistics an image; please report this"
        )


def each_image(task: str, arrays: Arrays) -> np.ndarray:
    """The main metric of every image by itself, float64 [N]; NaN where it has nothing to judge."""
    count = num_images(arrays)
    if "positives" not in arrays:
        rows = [main_metric(task, arrays, block) for block in np.array_split(np.eye(count), -(-count // 512))]
        return np.concatenate(rows)
    out = np.full(count, np.nan)
    order = np.argsort(arrays["image"], kind="stable")
    bounds = np.searchsorted(arrays["image"][order], np.arange(count + 1))
    for number in range(count):
        own = order[bounds[number] : bounds[number + 1]]
        alone = {name: arrays[name][own] for name in ("label", "score", "matched", "ignored")}
        alone |= {"image": np.zeros(len(own), np.int32), "positives": arrays["positives"][number : number + 1]}
        out[number] = main_metric(task, alone)[0]
    return out


def segmentation_statistics(confusions: Iterable[np.ndarray]) -> tuple[np.ndarray, Arrays]:
    """The sum of one confusion matrix [truth, predicted] an image, and the counts of each image."""
    total, counts = 0, []
    for one in confusions:
        total = total + one
        counts.append(np.stack([one.diagonal(), one.sum(1), one.sum(0)]).astype(np.int32))
    return total, dict(zip(("hit", "truth", "predicted"), np.stack(counts, axis=1), strict=True))


def depth_statistics(errors_N6: np.ndarray, pixels_N: np.ndarray, averaging: Averaging) -> Arrays:
    """Of the six metrics of each image, as `depth_errors` gives them."""
    arrays = dict(zip(DEPTH_METRICS, errors_N6.T.copy(), strict=True))
    return arrays | ({"pixels": pixels_N} if averaging == "pooled" else {})


def normals_statistics(angles: Sequence[np.ndarray], averaging: Averaging) -> Arrays:
    """Of the angles in degrees at each image's valid pixels."""
    if averaging == "image":
        rows = [angle_metrics(one) if len(one) else dict.fromkeys(NORMALS_METRICS, np.nan) for one in angles]
        return {name: np.array([row[name] for row in rows]) for name in NORMALS_METRICS}
    return {
        "pixels": np.array([len(one) for one in angles], np.int64),
        "angle_sum": np.array([one.sum(dtype=np.float64) for one in angles]),
        "square_sum": np.array([np.square(one, dtype=np.float64).sum() for one in angles]),
        **{
            name: np.array([np.count_nonzero(one < limit) for one in angles], np.int64)
            for name, limit in WITHIN_DEGREES.items()
        },
    }


def ranking_statistics(ranking_N5: np.ndarray, labels_N: Sequence[int]) -> Arrays:
    """Of the five best classes of each image, best first."""
    hit = ranking_N5 == np.asarray(labels_N)[:, None]
    return {"top1": hit[:, 0], "top5": hit.any(1)}


def retrieval_statistics(ranks_Q: np.ndarray, image_of_query: np.ndarray, images: int, ks: Sequence[int]) -> Arrays:
    """Of each query's rank, 0 is best, and the image that it belongs to."""
    found = {f"R@{k}": np.bincount(image_of_query[ranks_Q < k], minlength=images).astype(np.int32) for k in ks}
    return {"queries": np.bincount(image_of_query, minlength=images).astype(np.int32), **found}


def detection_statistics(
    annotations: Mapping[str, Any],
    ids: Sequence[int],
    detections: Sequence[Mapping[str, np.ndarray]],
    overlaps: Mapping[tuple[int, int], np.ndarray],
    most: int = 100,
) -> Arrays:
    """Match detections to objects as COCO's evaluation does, at all object sizes.

    annotations: a COCO file's content. ids: the image of each item of `detections`, which have `labels` and `scores`.
    overlaps: (image id, category id) -> IoU [detections from the highest score, objects in the file's order], as
    COCOeval's `ious`. most: detections of a class that count in an image.
    """
    categories = sorted(category["id"] for category in annotations["categories"])
    number = {category: index for index, category in enumerate(categories)}
    row = {image: index for index, image in enumerate(ids)}
    crowds: dict[tuple[int, int], list[bool]] = {}
    positives = np.zeros((len(ids), len(categories)), np.int32)
    for one in annotations["annotations"]:
        if (image := one["image_id"]) in row:
            crowds.setdefault((image, one["category_id"]), []).append(bool(one.get("iscrowd", 0)))
            positives[row[image], number[one["category_id"]]] += not one.get("iscrowd", 0)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("image", "label", "score", "matched", "ignored")}
    # by image id, as COCO's evaluation goes through them: the order of equal scores
    for index in sorted(range(len(ids)), key=ids.__getitem__):
        found = detections[index]
        for label in np.unique(found["labels"]).tolist():
            own = np.flatnonzero(found["labels"] == label)
            scores = found["scores"][own]
            scores = scores[np.argsort(-scores, kind="stable")][:most]
            pair = (ids[index], categories[label])
            crowd = crowds.get(pair)
            matched, ignored = _match(np.asarray(overlaps[pair]), np.array(crowd)) if crowd else _unmatched(len(scores))
            parts["image"].append(np.full(len(scores), index, np.int32))
            parts["label"].append(np.full(len(scores), label, np.int32))
            parts["score"].append(np.asarray(scores, np.float32))
            parts["matched"].append(matched)
            parts["ignored"].append(ignored)
    kinds = {"image": np.int32, "label": np.int32, "score": np.float32, "matched": np.uint16, "ignored": np.uint16}
    joined = {name: np.concatenate([np.empty(0, kinds[name]), *found]) for name, found in parts.items()}
    order = np.lexsort((-joined["score"], joined["label"]))  # stable
    return {name: values[order] for name, values in joined.items()} | {"positives": positives}


def _unmatched(count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(count, np.uint16), np.zeros(count, np.uint16)


def _match(overlaps_DG: np.ndarray, crowd_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bits of the thresholds at which each detection, from the highest score, has an object of its own or a crowd.

    An object is matched once, by the detection with the highest score; a crowd any number of times, by detections that
    have no object, which then do not count.
    """
    limits = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
    single, crowds = overlaps_DG[:, ~crowd_G], overlaps_DG[:, crowd_G]
    free = np.ones((len(limits), single.shape[1]), bool)
    matched, ignored = _unmatched(len(overlaps_DG))
    for detection in np.flatnonzero(overlaps_DG.max(1) >= limits[0]):
        hit = np.zeros(len(limits), bool)
        if single.shape[1]:
            fits = np.where(free & (single[detection] >= limits[:, None]), single[detection], -1.0)
            # of equal overlaps the last, as in pycocotools
            best = fits.shape[1] - 1 - fits[:, ::-1].argmax(1)
            hit = fits.max(1) > 0
            free[hit, best[hit]] = False
        inside = crowds[detection].max(initial=0.0) >= limits
        matched[detection] = np.sum(1 << np.flatnonzero(hit))
        ignored[detection] = np.sum(1 << np.flatnonzero(inside & ~hit))
    return matched, ignored


def _mean_iou(arrays: Arrays, weights: np.ndarray) -> np.ndarray:
    hit, truth, predicted = (weights @ arrays[name].astype(np.float64) for name in ("hit", "truth", "predicted"))
    union = truth + predicted - hit
    return 100 * _ratio((hit / np.where(union > 0, union, 1)).sum(1), (union > 0).sum(1))


def _depth_rmse(arrays: Arrays, weights: np.ndarray) -> np.ndarray:
    if "pixels" not in arrays:
        return _mean_over_images(arrays["rmse"], weights)
    squares = np.where(arrays["pixels"] > 0, arrays["rmse"], 0) ** 2 * arrays["pixels"]
    return np.sqrt(_ratio(weights @ squares, weights @ arrays["pixels"]))


def _mean_over_images(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    return _ratio(weights @ np.where(known, values, 0), weights @ known)


def _mean_angle(arrays: Arrays, weights: np.ndarray) -> np.ndarray:
    if "pixels" not in arrays:
        return _mean_over_images(arrays["mean"], weights)
    return _ratio(weights @ arrays["angle_sum"], weights @ arrays["pixels"])


def _top1(arrays: Arrays, weights: np.ndarray) -> np.ndarray:
    return 100 * _ratio(weights @ arrays["top1"], weights.sum(1))


def _recall_at_1(arrays: Arrays, weights: np.ndarray) -> np.ndarray:
    return 100 * _ratio(weights @ arrays["R@1"], weights @ arrays["queries"])


def _average_precision(arrays: Arrays, weights: np.ndarray) -> np.ndarray:
    """COCO's AP: precision made non-increasing, read at 101 recalls; mean over thresholds and classes with objects.

    Only detections that match an object can be where precision is read, so the others are summed over and left out. A
    recall's precision is that of the first match that reaches it.
    """
    positives = weights @ arrays["positives"].astype(np.float64)
    total = np.zeros(len(weights))
    bounds = np.searchsorted(arrays["label"], np.arange(positives.shape[1] + 1))
    for label, (start, stop) in enumerate(pairwise(bounds)):
        if start == stop or not positives[:, label].any():
            continue
        matched, ignored = arrays["matched"][start:stop], arrays["ignored"][start:stop]
        counts = weights[:, arrays["image"][start:stop]]
        seen_all = counts.cumsum(1)
        present = positives[:, label] > 0
        objects = np.where(present, positives[:, label], 1)[:, None]
        for bit in range(len(IOU_THRESHOLDS)):
            hits = np.flatnonzero(matched >> bit & 1)
            if not len(hits):
                continue
            seen = seen_all[:, hits]
            if (left_out := ignored >> bit & 1).any():
                seen = seen - (counts * left_out).cumsum(1)[:, hits]
            found = counts[:, hits].cumsum(1)
            precision = found / np.where(seen > 0, seen, 1)
            precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            reached = np.searchsorted(RECALLS, found / objects, side="right")
            total += np.where(present, (precision * np.diff(reached, axis=1, prepend=0)).sum(1), 0)
    return 100 * _ratio(total / len(RECALLS) / len(IOU_THRESHOLDS), (positives > 0).sum(1))


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, NaN where b is zero."""
    return np.where(b > 0, a / np.where(b > 0, b, 1), np.nan)


_METRICS: dict[str, Callable[[Arrays, np.ndarray], np.ndarray]] = {
    "semantic_segmentation": _mean_iou,
    "detection": _average_precision,
    "instance_segmentation": _average_precision,
    "depth": _depth_rmse,
    "normals": _mean_angle,
    "classification": _top1,
    "zero_shot_classification": _top1,
    "image_to_text_retrieval": _recall_at_1,
    "text_to_image_retrieval": _recall_at_1,
}
