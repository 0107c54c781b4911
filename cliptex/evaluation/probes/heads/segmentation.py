"""Heads for semantic segmentation: mmsegmentation's, on dense features.

Shapes: N images, C feature width, h x w feature map, K classes, G loss points per side.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F

from cliptex.evaluation.metrics.base import Arrays
from cliptex.evaluation.metrics.segmentation import (
    IGNORE,
    confusion_matrix,
    segmentation_metrics,
    segmentation_statistics,
)
from cliptex.evaluation.probes.base import Outcome, Run
from cliptex.evaluation.probes.features import Split, batches_on, ranges, take
from cliptex.evaluation.probes.heads.maps import Maps
from cliptex.evaluation.probes.parts import Part
from cliptex.evaluation.probes.segmentation import SegmentationHead, SegmentationProbe
from cliptex.evaluation.probes.training import Candidate, best_candidate, default_device, finite, train_network
from cliptex.evaluation.probes.tuning import TUNED, Tuned, Tuner
from cliptex.evaluation.probes.views import Size, Windows, windows_of
from cliptex.evaluation.thumbnails import mask_thumbnails
from cliptex.models.mmcv_ops import import_heads

TASK = SegmentationProbe.name
PROTOCOL = "logits resized (bilinear) to the original resolution; confusion matrix over the whole split"


@dataclass(frozen=True)
class SegmentationData:
    """Training masks, squares uint8 [R, R], and evaluation masks at the original resolution; 255 = ignored.
    windows: of each evaluation image; None if each image is one view."""

    train_masks: Sequence[np.ndarray]
    eval_masks: Sequence[np.ndarray]
    num_classes: int
    windows: Sequence[Windows] | None = None

    @classmethod
    def of(cls, run: Run, train: Part, evaluated: Part, size: Size) -> Self:
        """size: height and width of the encoder's input."""
        options = run.protocol.section(TASK).input
        windows = None
        if options.fit == "windows":
            windows = [windows_of(shape, options, size) for shape in evaluated.shapes]
        return cls(train.truths[TASK], evaluated.truths[TASK], len(run.benchmark.class_names), windows)


def build_head(options: SegmentationHead, channels_in: int, num_classes: int) -> torch.nn.Module:
    """A network from a map [B, C, h, w] to logits [B, K, h, w]."""
    heads = import_heads()
    common = {
        "in_channels": channels_in,
        "num_classes": num_classes,
        "in_index": 0,
        "norm_cfg": {"type": "BN"},
        "loss_decode": {"type": "CrossEntropyLoss", "avg_non_ignore": True},
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="``build_loss`` would be deprecated soon")
        if options.kind == "linear":
            common |= {"channels": channels_in, "dropout_ratio": 0}
            head = heads.FCNHead(**common, num_convs=0, concat_input=False, kernel_size=1)
        else:
            common |= {"channels": options.channels, "dropout_ratio": options.dropout}
            if options.kind == "deeplabv3":
                head = heads.ASPPHead(**common, dilations=tuple(options.dilations))
            else:
                head = heads.PSPHead(**common, pool_scales=tuple(options.pool_scales))
    # as head.init_weights() does for the classifier (the rest is initialised on construction), without its log
    torch.nn.init.normal_(head.conv_seg.weight, std=0.01)
    torch.nn.init.zeros_(head.conv_seg.bias)
    return MapHead(torch.nn.BatchNorm2d(channels_in) if getattr(options, "batch_norm", False) else None, head)


class MapHead(torch.nn.Module):
    """An mmsegmentation head that takes one map instead of a list, after batch norm if any (DINOv2's linear head)."""

    def __init__(self, norm: torch.nn.Module | None, head: torch.nn.Module):
        super().__init__()
        self.norm, self.head = norm or torch.nn.Identity(), head

    def forward(self, features_BChw: torch.Tensor) -> torch.Tensor:
        return self.head([self.norm(features_BChw)])


def train_head(
    features_NChw: Maps,
    masks_NRR: Sequence[np.ndarray],
    num_classes: int,
    options: SegmentationHead,
    candidate: Candidate,
    seed: int,
) -> torch.nn.Module:
    """Train one head; see `train_network`."""
    _, channels, *grid = features_NChw.shape
    point_loss = PointLoss(masks_NRR, tuple(grid), num_classes, options, default_device())

    def loss(
        head: torch.nn.Module, features: torch.Tensor, batch: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        return point_loss(head(features), batch, generator)

    return train_network(
        lambda: build_head(options, channels, num_classes), loss, features_NChw, options, candidate, seed
    )


class PointLoss:
    """Weighted cross-entropy on a regular sub-grid of the masks [N, R, R], at a random offset in each step."""

    def __init__(
        self,
        masks_NRR: Sequence[np.ndarray],
        grid: tuple[int, int],
        num_classes: int,
        options: SegmentationHead,
        device: torch.device,
    ):
        self._masks = masks_NRR
        size = len(masks_NRR[0])
        self._points = min(options.loss_points or size, size)
        self._stride = size // self._points
        self._rows, self._columns = (_interpolation(side, size).to(device) for side in grid)
        self._weights = class_weights(masks_NRR, num_classes, options.balance).to(device)

    def __call__(self, logits_BKhw: torch.Tensor, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The loss of the views `batch`. Logits are on the grid of the feature map."""
        top, left = torch.randint(self._stride, (2,), generator=generator).tolist()
        length = self._points * self._stride
        rows, columns = (slice(start, start + length, self._stride) for start in (top, left))
        points = np.stack([self._masks[index][rows, columns] for index in batch.tolist()])
        target = torch.from_numpy(points).long().to(logits_BKhw.device)
        # bilinear resizing to the mask's grid, computed only at the points of the loss
        at_points = torch.kron(self._rows[rows], self._columns[columns]).T
        logits = (logits_BKhw.flatten(2) @ at_points).unflatten(2, target.shape[1:])
        # not reduction="mean", which is NaN for a batch without valid points
        loss = F.cross_entropy(logits, target, self._weights, ignore_index=IGNORE, reduction="sum")
        known = target[target != IGNORE]
        return loss / self._weights[known].sum().clamp(min=1e-6)


def class_weights(masks: Sequence[np.ndarray], num_classes: int, balance: float) -> torch.Tensor:
    """Weight of each class in the loss: its share of the valid pixels to the power of -`balance`, float32 [K].
    The most frequent class and classes that do not occur have weight 1."""
    weights = np.ones(num_classes)
    if not balance:
        return torch.from_numpy(weights).float()
    counts = np.zeros(num_classes)
    for mask in masks:  # one at a time: the masks of a large data set take gigabytes
        counts += np.bincount(mask[mask != IGNORE].astype(np.int64), minlength=num_classes)
    weights[counts > 0] = (counts[counts > 0] / counts.max()) ** -balance
    return torch.from_numpy(weights).float()


@cache
def _interpolation(cells: int, size: int) -> torch.Tensor:
    """The matrix [size, cells] of bilinear resizing along one axis (align_corners False)."""
    return F.interpolate(torch.eye(cells)[None], size=size, mode="linear", align_corners=False)[0].T.contiguous()


def resized_argmax(logits_Khw: torch.Tensor, height: int, width: int) -> np.ndarray:
    """argmax over K of the logits resized (bilinear) to [height, width], as uint8. With matrix products, a maximum and
    masks, 16 rows at a time to stay in the CPU's cache: several times faster than resizing and argmax for 150 classes.
    """
    _, rows, columns = logits_Khw.shape
    down, across = _interpolation(rows, height).to(logits_Khw), _interpolation(columns, width).to(logits_Khw)
    tall_KHw = down @ logits_Khw
    out = torch.zeros(height, width, dtype=torch.uint8, device=logits_Khw.device)
    for top in range(0, height, 16):
        resized_KRW = tall_KHw[:, top : top + 16] @ across.T
        best = resized_KRW.amax(0)
        winners = ((resized_KRW - best).flatten(1).amax(1) == 0).nonzero()[:, 0].tolist()
        # of equal logits the first class wins, as in argmax
        for winner in reversed(winners):
            out[top : top + 16].masked_fill_(resized_KRW[winner] == best, winner)
    return out.cpu().numpy()


@torch.inference_mode()
def predict(
    head: torch.nn.Module,
    features_VChw: Maps,
    shapes: Sequence[tuple[int, int]],
    windows: Sequence[Windows] | None = None,
) -> list[np.ndarray]:
    """Predicted masks uint8 at the (height, width) of each image. windows: of each image if it has several views."""
    device = next(chain(head.parameters(), head.buffers())).device
    masks = []
    if windows is None:
        parts = ranges(len(shapes), 64)
        for part, features in zip(parts, batches_on(features_VChw, parts, device), strict=True):
            logits = head(features)
            finite(logits, f"logits of the images from number {part.start + 1} of the split")
            masks += map(resized_argmax, logits, *zip(*shapes[part], strict=True))
        return masks
    stops = np.cumsum([len(layout.corners) for layout in windows]).tolist()
    images = batches_on(features_VChw, map(slice, [0, *stops[:-1]], stops), device)
    for shape, layout, features in zip(shapes, windows, images, strict=True):
        logits = head(features)
        finite(logits, f"logits of image number {len(masks) + 1} of the split")
        masks.append(resized_argmax(merge_windows(logits, layout), *shape))
    return masks


def merge_windows(logits_VKhw: torch.Tensor, windows: Windows) -> torch.Tensor:
    """Logits of an image's windows, resized (bilinear) to pixels and averaged where windows overlap: [K, *canvas]."""
    side = windows.side
    total = logits_VKhw.new_zeros(logits_VKhw.shape[1], *windows.canvas)
    count = logits_VKhw.new_zeros(windows.canvas)
    resized = F.interpolate(logits_VKhw, size=(side, side), mode="bilinear", align_corners=False)
    for window_KRR, (top, left) in zip(resized, windows.corners, strict=True):
        total[:, top : top + side, left : left + side] += window_KRR
        count[top : top + side, left : left + side] += 1
    return total / count


def probe_segmentation(
    train_NChw: Maps,
    eval_NChw: Maps,
    data: SegmentationData,
    options: SegmentationHead,
    split: Split,
    seed: int,
    keep: int,
) -> Outcome:
    """Train and evaluate one head; see `PROTOCOL`. split: training views for fitting, and the held-out ones."""
    masks, classes = data.train_masks, data.num_classes
    (fit, fit_masks), (held, held_masks) = ((part, [masks[index] for index in part]) for part in split)

    def score(candidate: Candidate) -> float:
        head = train_head(take(train_NChw, fit), fit_masks, classes, options, candidate, seed)
        return segmentation_metrics(evaluate_masks(head, take(train_NChw, held), held_masks, classes)[0])["mIoU"]

    best, scores = best_candidate(options, score)
    head = train_head(train_NChw, masks, classes, options, best, seed)
    return segmentation_outcome(head, eval_NChw, data, {**best._asdict(), "holdout_mIoU": scores}, PROTOCOL, keep)


def segmentation_outcome(
    head: torch.nn.Module,
    eval_NChw: Maps,
    data: SegmentationData,
    hyperparameters: dict[str, Any],
    protocol: str,
    keep: int,
) -> Outcome:
    """Evaluate a head on the evaluation images."""
    confusion, counts, predictions = evaluate_masks(head, eval_NChw, data.eval_masks, data.num_classes, data.windows)
    saved = {}
    for index in range(min(keep, len(predictions))):
        saved[f"prediction_{index}"] = predictions[index]
        saved[f"truth_{index}"] = data.eval_masks[index]
    metrics, num_parameters = segmentation_metrics(confusion), sum(weight.numel() for weight in head.parameters())
    small = mask_thumbnails(predictions)
    return Outcome(TASK, metrics, num_parameters, hyperparameters, protocol, saved, counts, small)


def evaluate_masks(
    head: torch.nn.Module,
    features: Maps,
    truths: Sequence[np.ndarray],
    num_classes: int,
    windows: Sequence[Windows] | None = None,
) -> tuple[np.ndarray, Arrays, list[np.ndarray]]:
    """The confusion matrix of all images, the pixel counts of each image, and the predicted masks."""
    predictions = predict(head, features, [truth.shape for truth in truths], windows)
    pairs = zip(truths, predictions, strict=True)
    confusion, counts = segmentation_statistics(confusion_matrix(*pair, num_classes) for pair in pairs)
    return confusion, counts, predictions


class SegmentationTuner(Tuner):
    """A head of mmsegmentation, from its initial weights."""

    task = TASK

    def prepare(self, run: Run, tuned: Tuned, split: Split) -> None:
        self.data = SegmentationData.of(run, *tuned.parts, tuned.readers[1].size)
        _, self.channels, *grid = tuned.train.shape
        masks, classes = self.data.train_masks, self.data.num_classes
        self._loss = PointLoss(masks, tuple(grid), classes, self.options, self.device)

    def start(self) -> torch.nn.Module:
        torch.manual_seed(self.seed)
        return build_head(self.options, self.channels, self.data.num_classes).to(self.device)

    def loss(
        self, head: torch.nn.Module, features: torch.Tensor, batch: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        return self._loss(head(features), batch, generator)

    def score(self, head: torch.nn.Module, tuned: Tuned, chosen: np.ndarray) -> float:
        masks = [self.data.train_masks[index] for index in chosen]
        confusion, _, _ = evaluate_masks(head, take(tuned.train, chosen), masks, self.data.num_classes)
        return segmentation_metrics(confusion)["mIoU"]

    def outcomes(self, head: torch.nn.Module, tuned: Tuned, chosen: dict[str, Any], keep: int) -> list[Outcome]:
        return [segmentation_outcome(head, tuned.eval, self.data, chosen, TUNED + PROTOCOL, keep)]
