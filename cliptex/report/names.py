"""How models, benchmarks, tasks, heads and metrics are written on the page. What is not listed stands as it is."""

from cliptex.report.statistics import ALIGNED

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
    "captions": "Held-out captions",
    "coco_captions": "COCO captions",
}

HEAD_ORDER = ("linear", "deeplabv3", "pspnet")
"""From light to heavy; other heads come after these."""

TASKS = {
    "semantic_segmentation": "Semantic segmentation",
    "instance_segmentation": "Instance segmentation",
    "detection": "Object detection",
    "depth": "Depth",
    "normals": "Surface normals",
    "classification": "Classification",
    "zero_shot_classification": "Zero-shot classification",
    "image_to_text_retrieval": "Captions of an image",
    "text_to_image_retrieval": "Image of a caption",
    "segmentation": "Segmentation",
}

HEADS = {
    "pspnet": "PSPNet",
    "psp": "PSPNet",
    "deeplabv3": "DeepLabv3",
    "aspp": "DeepLabv3",
    "ssd": "SSD",
    "mask_rcnn": "Mask R-CNN",
    "zero_shot": "zero-shot",
    "dpt": "DPT",
    "nll_angmf": "NLL-AngMF",
}

_METRICS = {
    "rmse": "RMSE",
    "absrel": "AbsRel",
    "mean": "Mean angle",
    "median": "Median angle",
    "top1": "Top-1",
    "top5": "Top-5",
    "delta1": "δ < 1.25",
    "delta2": "δ < 1.25²",
    "delta3": "δ < 1.25³",
    "within_5": "within 5°",
    "within_7_5": "within 7.5°",
    "within_11_25": "within 11.25°",
    "within_22_5": "within 22.5°",
    "within_30": "within 30°",
    "box_AP": "box AP",
    "box_AP50": "box AP50",
    "mask_AP": "mask AP",
    "mask_AP50": "mask AP50",
    "error_kappa_q1": "Mean angle, the quarter of the pixels it is least sure of",
    "error_kappa_q2": "Mean angle, the second quarter",
    "error_kappa_q3": "Mean angle, the third quarter",
    "error_kappa_q4": "Mean angle, the quarter it is surest of",
}
_METRES = {"rmse", "log10", "absrel"}


def model(name: str) -> str:
    """`cliptex` -> `CLIPTeX`."""
    return MODELS.get(name, name)


def benchmark(name: str) -> str:
    """`ade20k` -> `ADE20K`."""
    return BENCHMARKS.get(name, name)


def task(name: str) -> str:
    """`normals` -> `Surface normals`."""
    return TASKS.get(name, name)


def head(name: str) -> str:
    """`pspnet` -> `PSPNet`."""
    return HEADS.get(name, name)


def metric(name: str) -> str:
    """`rmse` -> `RMSE`."""
    plain = name.removeprefix(ALIGNED)
    return _METRICS.get(plain, plain) + (", scale and shift fitted" if plain != name else "")


def known(name: str) -> bool:
    """Whether a metric has a name of its own here, and with it a unit."""
    return name in _METRICS


def unit(task_name: str, metric_name: str) -> str:
    """`m`, `°`, `%`, or nothing for a ratio."""
    if metric_name.startswith("error_kappa") or (task_name == "normals" and metric_name in ("rmse", "mean", "median")):
        return "°"
    metric_name = metric_name.removeprefix(ALIGNED)
    if metric_name in _METRES:
        return "m" if metric_name == "rmse" else ""
    return "%"


def number(value: float, task_name: str, metric_name: str) -> str:
    """A value with the digits that are worth reading: three for depth errors, else one."""
    metric_name = metric_name.removeprefix(ALIGNED)
    return f"{value:.{3 if metric_name in _METRES and task_name != 'normals' else 1}f}"
