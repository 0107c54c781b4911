"""Names of models, benchmarks, tasks and heads as the page shows them; unlisted names stay as they are."""

from cliptex.config import Config
from cliptex.evaluation.measures import shown

MODELS = {"clip": "CLIP", "clip_ft": "CLIP-FT", "cliptex": "CLIPTeX", "random": "Random", "position": "Position"}
SUBJECT, REFERENCE = "cliptex", "clip_ft"
BASELINES = ("random", "position")

BENCHMARKS = {
    "voc": "Pascal VOC",
    "ade20k": "ADE20K",
    "coco": "COCO",
    "nyuv2": "NYUv2",
    "imagenet": "ImageNet",
    "places365": "Places365",
    "cityscapes": "Cityscapes",
    "pascal_context": "PASCAL-Context",
    "coco_stuff": "COCO-Stuff",
    "kitti": "KITTI",
    "imagenet_v2": "ImageNet-V2",
    "imagenet_r": "ImageNet-R",
    "imagenet_a": "ImageNet-A",
    "imagenet_sketch": "ImageNet-Sketch",
    "objectnet": "ObjectNet",
    "spair71k": "SPair-71k",
    "davis2017": "DAVIS 2017",
    "scannet1500": "ScanNet-1500",
    "captions": "Held-out captions",
    "coco_captions": "COCO captions",
}

FAMILIES = {"trained_head": "Trained heads", "no_head": "No trained head", "text": "By text"}
"""How an encoder is read, in the order of the report."""

HEAD_ORDER = ("knn", "in_context", "linear", "deeplabv3", "pspnet")
"""From light to heavy; other heads come after these."""

HEADS = {
    "pspnet": "PSPNet",
    "psp": "PSPNet",
    "deeplabv3": "DeepLabv3",
    "aspp": "DeepLabv3",
    "ssd": "SSD",
    "mask_rcnn": "Mask R-CNN",
    "knn": "k-NN",
    "in_context": "in-context",
    "zero_shot": "zero-shot",
    "last": "patch tokens",
    "maskclip": "MaskCLIP",
    "dpt": "DPT",
    "nll_angmf": "NLL-AngMF",
}

PAPERS = {
    "cliptex": ("CLIP meets Model Zoo Experts", "2310.14108"),
    "clip": ("CLIP", "2103.00020"),
    "mask_rcnn": ("Mask R-CNN", "1703.06870"),
    "dpt": ("DPT", "2103.13413"),
    "nll_angmf": ("NLL-AngMF", "2109.09881"),
    "pspnet": ("PSPNet", "1612.01105"),
    "psp": ("PSPNet", "1612.01105"),
    "deeplabv3": ("DeepLabv3", "1706.05587"),
    "aspp": ("DeepLabv3", "1706.05587"),
    "ssd": ("SSD", "1512.02325"),
    "knn": ("weighted k-NN", "1805.01978"),
    "in_context": ("in-context segmentation", "2306.01667"),
    "maskclip": ("MaskCLIP", "2112.01071"),
    "spair71k": ("SPair-71k", "1908.10543"),
    "davis2017": ("DAVIS 2017", "1704.00675"),
    "scannet1500": ("ScanNet", "1702.04405"),
    "video_propagation": ("DINO", "2104.14294"),
    "geometric_correspondence": ("Probe3D", "2404.08636"),
    "datacomp": ("DataComp", "2304.14108"),
}
"""Method, expert, head, task or benchmark -> its paper's short title and arXiv number."""


def model(name: str) -> str:
    return MODELS.get(name, name)


def benchmark(name: str, source: str | None = None) -> str:
    """source: of its data, as in the results: a user's subset of an official data set is called so."""
    return BENCHMARKS.get(name, name) + (" (subset)" if source == "subset" else "")


def task(name: str) -> str:
    return shown(name).title


def head(name: str) -> str:
    return HEADS.get(name, name)


def is_yardstick(config: Config, model: str) -> bool:
    """Whether a model is only shown as the yardstick of gains, without a column of its own."""
    return model not in MODELS and model in (config.report.yardstick or ())
