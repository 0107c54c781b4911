"""Which data sets published experts were trained on, by papers, model cards and source code.

Reads   the weights' source as `expert.json` records it (`plugin`, `source`, `origin`).
Holds   what is not known is said to be not stated, never that there is none. Each entry has a source; where that
        does not name a split, there is none here.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cliptex.experts.training_sets import NOT_STATED, TrainingSet, in_words, parse

FETCHED = ("url", "hub", "local")
"""Sources of weights that were trained elsewhere."""


class Published(NamedTuple):
    """Published weights, found by their repository, address or file. pattern: searched in `identity`, any case."""

    title: str
    pattern: str
    sets: tuple[TrainingSet, ...]
    source: str
    plugin: str | None = None
    """The expert's plugin, for weights whose file has a common name."""


def _sets(names: str, how: str = "") -> tuple[TrainingSet, ...]:
    return tuple(parse(name)._replace(how=how) for name in names.split(", "))


UNKNOWN = (TrainingSet(NOT_STATED),)
IMAGENET = _sets("imagenet/train", "backbone")
MIX_6 = _sets("ReDWeb, DIML, Movies, MegaDepth, WSVD, TartanAir, HRWSI, ApolloScape, BlendedMVS, IRS")
MIX_12 = (*MIX_6, *_sets("kitti, nyuv2"))
# Oquab et al. 2023, table 15: ImageNet-22k as it is; of the others only images like theirs, retrieved from the web
LVD_142M = (
    *_sets("imagenet21k", "backbone"),
    *_sets("ade20k/train, voc/trainaug, nyuv2/train, cityscapes/train, kitti/train", "retrieval for the backbone"),
)
UNLABELLED = _sets(
    "imagenet21k, places365, BDD100K, Google Landmarks, LSUN, Objects365, Open Images, SA-1B", "pseudo-labelled"
)
DEPTH_ANYTHING = (*_sets("BlendedMVS, DIML, HRWSI, IRS, MegaDepth, TartanAir"), *UNLABELLED, *LVD_142M)
DEPTH_ANYTHING_2 = (*_sets("BlendedMVS, hypersim, IRS, TartanAir, virtual_kitti"), *UNLABELLED, *LVD_142M)
ADE20K, COCO, CITYSCAPES = _sets("ade20k/train"), _sets("coco/train2017"), _sets("cityscapes/train")
SEGMENTERS = r"(nvidia/segformer-b\d-finetuned-{0}-|facebook/mask2former-[\w-]+-{0}-|facebook/maskformer-[\w-]+-{0}\b"
SEGMENTERS += r"|shi-labs/oneformer_{0}\w*)"
SEGMENTER_SOURCE = "model cards; backbones: the papers, ImageNet-1k or -22k"

PUBLISHED = (
    Published(
        "torchvision's Mask R-CNN",
        r"maskrcnn_resnet50_fpn(_v2)?_coco-[0-9a-f]{8}\.pth$",
        (*COCO, *IMAGENET),
        "torchvision/models/detection/mask_rcnn.py (metrics of COCO val2017; the backbone of v2 is not documented)",
    ),
    Published(
        "DPT-Large, DPT-Hybrid (MiDaS 3.0)",
        r"intel/dpt-(large|hybrid-midas)\b|dpt_(large|hybrid)-midas-[0-9a-f]{8}\.pt$",
        (*MIX_6, *IMAGENET),
        "model card (MIX 6, ImageNet); members: README of isl-org/MiDaS",
    ),
    Published(
        "DPT of MiDaS 3.1",
        r"intel/dpt-(beit|swinv2|levit|next)",
        (*MIX_12, *IMAGENET),
        "README of isl-org/MiDaS 3.1 (up to 12 data sets, splits not stated)",
    ),
    Published(
        "Depth Anything V2 metric, indoor",
        r"depth-anything-v2-metric-(indoor|hypersim)|depth_anything_v2_metric_hypersim_vit\w\.pth$",
        (*_sets("hypersim"), *DEPTH_ANYTHING_2),
        "Yang et al. 2024 (NeurIPS), table 7; model card",
    ),
    Published(
        "Depth Anything V2 metric, outdoor",
        r"depth-anything-v2-metric-(outdoor|vkitti)|depth_anything_v2_metric_vkitti_vit\w\.pth$",
        (*_sets("virtual_kitti"), *DEPTH_ANYTHING_2),
        "Yang et al. 2024 (NeurIPS), table 7; model card",
    ),
    Published(
        "Depth Anything V2",
        r"depth-anything-v2-(small|base|large)\b|depth_anything_v2_vit\w\.pth$",
        DEPTH_ANYTHING_2,
        "Yang et al. 2024 (NeurIPS), table 7; encoder DINOv2",
    ),
    Published(
        "Depth Anything V1 metric, indoor",
        r"depth_anything_metric_depth_indoor\.pt$",
        (*_sets("nyuv2/train"), *DEPTH_ANYTHING),
        "README of LiheYoung/Depth-Anything, metric_depth",
    ),
    Published(
        "Depth Anything V1 metric, outdoor",
        r"depth_anything_metric_depth_outdoor\.pt$",
        (*_sets("kitti/train"), *DEPTH_ANYTHING),
        "README of LiheYoung/Depth-Anything, metric_depth",
    ),
    Published(
        "Depth Anything V1",
        r"liheyoung/depth[-_]anything[-_](small|base|large|vit\w14)\b",
        DEPTH_ANYTHING,
        "Yang et al. 2024 (CVPR), table 1; encoder DINOv2",
    ),
    Published(
        "ZoeDepth, NYUv2 and KITTI",
        r"intel/zoedepth-nyu-kitti",
        (*_sets("nyuv2/train, kitti/train"), *MIX_12, *IMAGENET),
        "Bhat et al. 2023, section 4 (M12: splits not stated)",
    ),
    Published(
        "ZoeDepth, NYUv2",
        r"intel/zoedepth-nyu\b",
        (*_sets("nyuv2/train"), *MIX_12, *IMAGENET),
        "Bhat et al. 2023, section 4 (M12: splits not stated)",
    ),
    Published(
        "ZoeDepth, KITTI",
        r"intel/zoedepth-kitti\b",
        (*_sets("kitti/train"), *MIX_12, *IMAGENET),
        "Bhat et al. 2023, section 4 (M12: splits not stated)",
    ),
    Published(
        "GLPN, NYUv2",
        r"vinvino02/glpn-nyu\b",
        (*_sets("nyuv2/train"), *IMAGENET),
        "Kim et al. 2022, section 4",
    ),
    Published(
        "GLPN, KITTI",
        r"vinvino02/glpn-kitti\b",
        (*_sets("kitti/train"), *IMAGENET),
        "Kim et al. 2022, section 4",
    ),
    Published(
        "NLL-AngMF, scannet.pt",
        r"(^|/)scannet\.pt$",
        (*_sets("scannet/train"), *IMAGENET),
        "Bae et al. 2021, section 5",
        "nll_angmf",
    ),
    Published(
        "NLL-AngMF, nyu.pt",
        r"(^|/)nyu\.pt$",
        (*_sets("nyuv2/train"), *IMAGENET),
        "Bae et al. 2021, section 5",
        "nll_angmf",
    ),
    Published(
        "Depth Pro",
        r"apple/depthpro\b",
        (*UNKNOWN, *LVD_142M),
        "Bochkovskii et al. 2024: encoder DINOv2; the list of its data sets was not checked here",
    ),
    Published(
        "TIPSv2-DPT",
        r"google/tipsv2-\w+-dpt\b",
        (*_sets("nyuv2, ade20k"), TrainingSet(NOT_STATED, how="backbone")),
        "model card (splits not stated)",
    ),
    Published(
        "SegFormer, Mask2Former, MaskFormer, OneFormer: ADE20K",
        SEGMENTERS.format("ade(20k)?"),
        (*ADE20K, *IMAGENET),
        SEGMENTER_SOURCE,
    ),
    Published(
        "Mask2Former, MaskFormer, OneFormer: COCO",
        SEGMENTERS.format("coco"),
        (*COCO, *IMAGENET),
        SEGMENTER_SOURCE,
    ),
    Published(
        "SegFormer, Mask2Former, MaskFormer, OneFormer: Cityscapes",
        SEGMENTERS.format("cityscapes"),
        (*CITYSCAPES, *IMAGENET),
        SEGMENTER_SOURCE,
    ),
    Published(
        "Mask2Former: Mapillary Vistas",
        SEGMENTERS.format("mapillary-vistas"),
        (*_sets("mapillary_vistas/train"), *IMAGENET),
        SEGMENTER_SOURCE,
    ),
    Published("DETR, panoptic", r"facebook/detr-resnet-\d+", (*COCO, *IMAGENET), "Carion et al. 2020, section 4"),
    Published("UperNet", r"openmmlab/upernet-", (*ADE20K, *IMAGENET), "model cards"),
    Published(
        "EoMT with DINOv3",
        r"tue-mps/(\w+_)?eomt[-_]dinov3",
        UNKNOWN,
        "not looked up",
    ),
    Published("EoMT: ADE20K", r"tue-mps/ade20k_\w*eomt", (*ADE20K, *LVD_142M), "Kerssies et al. 2025; model cards"),
    Published("EoMT: COCO", r"tue-mps/coco_\w*eomt", (*COCO, *LVD_142M), "Kerssies et al. 2025; model cards"),
    Published(
        "EoMT: Cityscapes", r"tue-mps/cityscapes_\w*eomt", (*CITYSCAPES, *LVD_142M), "Kerssies et al. 2025; model cards"
    ),
    Published(
        "DINOv2",
        r"facebook/dinov2-|dinov2_vit\w14(_reg4)?_pretrain\.pth$|timm/vit_\w+_dinov2\.lvd142m",
        LVD_142M,
        "Oquab et al. 2023, table 15",
    ),
)
"""The first entry that matches holds."""


def identity(origin: Mapping[str, str]) -> str:
    """Repository and file, address, or path of weights; a folder of the hub's cache counts as its repository."""
    if repo := origin.get("repo"):
        return "/".join(filter(None, (repo, origin.get("file"))))
    place = origin.get("url") or origin.get("path", "")
    return re.sub(r"models--([^/]+?)--([^/]+)/snapshots/[^/]+", r"\1/\2", place.partition("?")[0].replace("\\", "/"))


def published(plugin: str, origin: Mapping[str, str]) -> tuple[TrainingSet, ...] | None:
    """The training sets of published weights (`origin` of expert.json); None if they are not in the table."""
    name = identity(origin)
    for entry in PUBLISHED:
        if entry.plugin in (None, plugin) and re.search(entry.pattern, name, re.IGNORECASE):
            return entry.sets
    return None


def recorded(stated: Sequence[str] | None, plugin: str, source: str, origin: Mapping[str, str]) -> dict[str, Any]:
    """What expert.json has on training sets. stated: the config's `trained_on`.

    `trained_on` is a list of {name, split, how}, or None if nobody states it; there is no such key for weights that
    were made here, from rendered scenes or random numbers, unless the config states some.
    """
    if stated is None and source not in FETCHED:
        return {}
    sets = published(plugin, origin) if stated is None else [parse(text) for text in stated]
    return {"trained_on": None if sets is None else [one._asdict() for one in sets]}


def training_sets(record: Mapping[str, Any], stated: Sequence[str] | None = None) -> tuple[TrainingSet, ...]:
    """The training sets by an expert.json, also one that was written before it recorded them. stated: the config's
    `trained_on`, which comes first. Empty for weights that were made here; `UNKNOWN` if nobody states them."""
    if stated is not None:
        return tuple(parse(text) for text in stated)
    if record.get("trained_on") is not None:
        return tuple(TrainingSet(one["name"], one["split"], one["how"]) for one in record["trained_on"])
    if record.get("source") not in FETCHED:
        return ()
    return published(record.get("plugin") or "", record.get("origin") or {}) or UNKNOWN


def markdown() -> str:
    """The table of docs/experts.md."""
    lines = ["| published weights | trained on | source |", "|---|---|---|"]
    lines += [f"| {entry.title} | {in_words(entry.sets)} | {entry.source} |" for entry in PUBLISHED]
    return "\n".join(lines) + "\n"
