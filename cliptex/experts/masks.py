"""Masks of instances within their boxes: the rest of the image is neither computed, copied nor painted.

Shape suffixes: H, W height and width of the image, h, w of a box, N instances, M side of the network's mask.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from cliptex.experts.network import to_host


class Masks(NamedTuple):
    """Boolean masks of N instances in an image; outside its window a mask is False."""

    size: tuple[int, int]
    """H and W."""
    windows: list[tuple[slice, slice]]
    """Rows and columns of each instance."""
    inside: list[np.ndarray]
    """bool [h, w] of each instance, the size of its window."""

    def whole(self) -> np.ndarray:
        """bool [N, H, W]."""
        out = np.zeros((len(self.inside), *self.size), bool)
        for mask_HW, window, inside in zip(out, self.windows, self.inside, strict=True):
            mask_HW[window] = inside
        return out


class BoxTransform(GeneralizedRCNNTransform):
    """torchvision's, but in evaluation `masks` stay [N, 1, M, M], as the network gives them for each box."""

    def postprocess(
        self,
        result: list[dict[str, torch.Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, torch.Tensor]]:
        if not self.training:
            for one, resized, original in zip(result, image_shapes, original_image_sizes, strict=True):
                one["boxes"] = resize_boxes(one["boxes"], resized, original)
        return result


def masks_in_boxes(output: dict[str, torch.Tensor], size: tuple[int, int], threshold: float) -> Masks:
    """Pixels of an image with at least a probability of `threshold`: bit for bit those of torchvision's
    `paste_masks_in_image`, which makes float maps of the image's size. output: of a network with `BoxTransform`."""
    probabilities_N1MM, scale = expand_masks(output["masks"], padding=1)
    boxes = expand_boxes(output["boxes"], scale).to(torch.int64).tolist()
    windows, inside = [], []
    for probability_1MM, (left, top, right, bottom) in zip(probabilities_N1MM, boxes, strict=True):
        box_size = (max(bottom - top + 1, 1), max(right - left + 1, 1))
        pasted = functional.interpolate(probability_1MM[None], size=box_size, mode="bilinear", align_corners=False)
        first_row, first_column = max(top, 0), max(left, 0)
        end_row, end_column = max(min(bottom + 1, size[0]), first_row), max(min(right + 1, size[1]), first_column)
        visible = pasted[0, 0, first_row - top : end_row - top, first_column - left : end_column - left]
        windows.append((slice(first_row, end_row), slice(first_column, end_column)))
        inside.append(visible >= threshold)
    if not inside:
        return Masks(size, [], [])
    if threshold <= 0:  # also the probability outside, 0
        whole = (slice(0, size[0]), slice(0, size[1]))
        return Masks(size, [whole] * len(inside), [np.ones(size, bool)] * len(inside))
    # one copy from the device for all
    (flat,) = to_host([torch.cat([mask.flatten() for mask in inside])])
    parts = np.split(flat, np.cumsum([mask.numel() for mask in inside])[:-1])
    return Masks(size, windows, [part.reshape(mask.shape) for part, mask in zip(parts, inside, strict=True)])
