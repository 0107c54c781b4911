"""Average precision of predicted instances on labelled renders, by COCO's definition.

Shape suffixes: B batch, H height, W width, M objects of a render, N instances.
"""

from typing import Any

import numpy as np
import torch

from cliptex.benchmarks.coco_names import coco_categories
from cliptex.experts.network import to_host

COCO_IDS = np.array([0, *(number for number, _, _ in coco_categories())])
"""COCO category id by contiguous class 0..80."""
MIN_VISIBLE_PX = 12


def threshold_masks(output: dict[str, torch.Tensor], threshold: float) -> np.ndarray:
    """bool [N, H, W] of the probabilities `masks` [N, 1, H, W] in an output of torchvision's MaskRCNN."""
    return to_host([output["masks"][:, 0] >= threshold])[0]


def average_precision(
    data: dict[str, np.ndarray], outputs: list[dict[str, torch.Tensor]], mask_threshold: float
) -> dict[str, float]:
    """`box_AP`, `box_AP50`, `mask_AP` and `mask_AP50` in percent.

    data: `instance` (uint8 [B, H, W], 0 = none) and `instance_class` (uint8 [B, M], class 1..80 of instance i in column
    i - 1). outputs: of torchvision's MaskRCNN for each image. Objects of fewer than 12 visible pixels count as crowd:
    neither hit nor miss.
    """
    from faster_coco_eval import COCO, COCOeval_faster
    from faster_coco_eval.core import mask as rle

    truths: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    for image, (instance, classes) in enumerate(zip(data["instance"], data["instance_class"], strict=True)):
        for number in np.flatnonzero(classes) + 1:
            mask = instance == number
            area = int(mask.sum())
            if not area:
                continue
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            x, y = int(columns[0]), int(rows[0])
            truths.append(
                {
                    "id": len(truths) + 1,
                    "image_id": image,
                    "category_id": int(COCO_IDS[classes[number - 1]]),
                    "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
                    "area": area,
                    "segmentation": rle.encode(np.asfortranarray(mask.astype(np.uint8))),
                    "iscrowd": int(area < MIN_VISIBLE_PX),
                }
            )
        output = outputs[image]
        masks = threshold_masks(output, mask_threshold)
        for mask, box, slot, score in zip(masks, output["boxes"], output["labels"], output["scores"], strict=True):
            x, y, right, bottom = box.tolist()
            predictions.append(
                {
                    "image_id": image,
                    "category_id": int(slot),
                    "bbox": [x, y, right - x, bottom - y],
                    "score": float(score),
                    "segmentation": rle.encode(np.asfortranarray(mask.astype(np.uint8))),
                }
            )
    out = dict.fromkeys(("box_AP", "box_AP50", "mask_AP", "mask_AP50"), 0.0)
    if not predictions:
        return out
    height, width = data["instance"].shape[1:]
    truth = COCO(
        {
            "images": [{"id": image, "height": height, "width": width} for image in range(len(outputs))],
            "annotations": truths,
            "categories": [{"id": number, "name": name} for number, name, _ in coco_categories()],
        }
    )
    for kind, prefix in (("bbox", "box"), ("segm", "mask")):
        evaluator = COCOeval_faster(truth, truth.loadRes(predictions), kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
        out[f"{prefix}_AP"], out[f"{prefix}_AP50"] = (100 * float(value) for value in evaluator.stats[:2])
    return out
