"""Predicted instances in COCO's format, and their average precision on labelled renders by COCO's definition.

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


def coco_results(output: dict[str, torch.Tensor], masks_NHW: np.ndarray) -> list[dict[str, Any]]:
    """Instances in the format of COCO results, by descending score, in pixels of the image.

    output: of torchvision's MaskRCNN. masks_NHW: bool. Each dictionary has `category_id`, `score`, `bbox` [left, top,
    width, height] and `segmentation` (`size` [height, width], `counts`: COCO's compressed run lengths).
    """
    boxes_N4, scores_N = (output[name].float().cpu().numpy() for name in ("boxes", "scores"))
    results = []
    for index in np.argsort(-scores_N, kind="stable"):
        left, top, right, bottom = boxes_N4[index].tolist()
        run_lengths = _run_lengths(masks_NHW[index])
        results.append(
            {
                "category_id": int(output["labels"][index]),
                "score": float(scores_N[index]),
                "bbox": [left, top, right - left, bottom - top],
                "segmentation": {"size": list(run_lengths["size"]), "counts": run_lengths["counts"].decode("ascii")},
            }
        )
    return results


def _run_lengths(mask_HW: np.ndarray) -> dict[str, Any]:
    from faster_coco_eval.core import mask as rle

    return rle.encode(np.asfortranarray(mask_HW.astype(np.uint8)))


def average_precision(
    data: dict[str, np.ndarray], outputs: list[dict[str, torch.Tensor]], mask_threshold: float
) -> dict[str, float]:
    """`box_AP`, `box_AP50`, `mask_AP` and `mask_AP50` in percent.

    data: `instance` (uint8 [B, H, W], 0 = none) and `instance_class` (uint8 [B, M], class 1..80 of instance i in column
    i - 1). outputs: of torchvision's MaskRCNN for each image. Objects of fewer than 12 visible pixels count as crowd:
    neither hit nor miss.
    """
    from faster_coco_eval import COCO, COCOeval_faster

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
                    "segmentation": _run_lengths(mask),
                    "iscrowd": int(area < MIN_VISIBLE_PX),
                }
            )
        results = coco_results(outputs[image], threshold_masks(outputs[image], mask_threshold))
        predictions += [{"image_id": image, **result} for result in results]
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
