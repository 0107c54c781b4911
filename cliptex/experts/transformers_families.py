"""Families of transformers' dense models: their classes, and what their published weights predict.

The classes come from the installed transformers; what they predict is known for some families only.
"""

from typing import Any, NamedTuple

from transformers.models.auto import modeling_auto

from cliptex.core.errors import CliptexError
from cliptex.experts.dpt import NOT_FOR_DEPTH, UNUSED

MAPPINGS = {
    "depth": ("DEPTH_ESTIMATION",),
    "segmentation": ("SEMANTIC_SEGMENTATION", "UNIVERSAL_SEGMENTATION", "INSTANCE_SEGMENTATION"),
    "normals": ("NORMAL_ESTIMATION",),
}
"""Task -> names of transformers' tables of model classes, of which older versions lack some."""
DENSE = {"Tipsv2DptForDensePrediction": "tipsv2_dpt"}
"""Classes with an output for each of the three tasks, which are in none of the tables -> `model_type`."""
PREDICTS = {
    "glpn": "metres",
    "zoedepth": "metres",
    "depth_pro": "metres",
    "tipsv2_dpt": "metres",
}
"""`model_type` -> what a depth network predicts, where all weights of a family predict the same."""
RELATIVE_BACKBONES = (None, "bit", "vit", "beit", "swin", "swinv2", "levit")
"""Backbones of MiDaS' DPT, for relative inverse depth. With DINOv2, DPT was published for metres."""
NO_DEPTH = {"chmv2": "the height of the canopy above the ground"}
"""`model_type` of AutoModelForDepthEstimation -> what it predicts instead of depth."""
MAY_LACK = dict.fromkeys(("dpt", "depth_anything", "prompt_depth_anything"), (UNUSED,))
MAY_HAVE = {"dpt": NOT_FOR_DEPTH, "depth_anything": (UNUSED,), "prompt_depth_anything": (UNUSED,)}
"""`model_type` -> prefixes of tensors that no output depends on."""


class Family(NamedTuple):
    """A class of transformers that labels for one task."""

    task: str
    model_type: str
    class_name: str


def families() -> list[Family]:
    """All classes of the installed transformers that label for a task, without importing them."""
    found: dict[Family, None] = {}
    for task, tables in MAPPINGS.items():
        for table in tables:
            names = getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES", {})
            found |= dict.fromkeys(Family(task, kind, name) for kind, name in names.items())
        found |= dict.fromkeys(Family(task, kind, name) for name, kind in DENSE.items())
    return list(found)


def family_of(config: dict[str, Any], task: str | None, path: str) -> Family:
    """The class for a saved model's `config` (the content of config.json, at `path`), which names it in
    `architectures`. task: the config's `network.task`. Raises CliptexError if there is none or more than one."""
    kind = config.get("model_type")
    of_kind = [family for family in families() if family.model_type == kind]
    if not of_kind:
        known = ", ".join(sorted({family.model_type for family in families()}))
        raise CliptexError(f"{path}: model_type {kind!r} has no dense output in this transformers; use one of {known}")
    named = config.get("architectures")
    named = named[0] if isinstance(named, list) and named else None
    candidates = [family for family in of_kind if named in (None, family.class_name)]
    if not candidates:
        raise CliptexError(
            f"{path}: architectures is {named!r}, whose output is not for a task here; use weights of"
            f" {' or '.join(sorted({family.class_name for family in of_kind}))}"
        )
    fitting = [family for family in candidates if task in (None, family.task)]
    tasks = sorted({family.task for family in candidates})
    if not fitting:
        raise CliptexError(f"{path}: {named or kind} is for {' or '.join(tasks)}, not {task}; correct network.task")
    if len({family.task for family in fitting}) > 1:
        raise CliptexError(f"{path}: {named or kind} is for {' and '.join(tasks)}; set network.task to one of them")
    if named is None and len(fitting) > 1:
        fitting = [family for family in fitting if family.class_name not in DENSE]
    return fitting[0]


def depth_kind(config: dict[str, Any], given: str | None, path: str) -> str:
    """What a depth network predicts: "inverse_depth" (relative, larger is nearer) or "metres". given: the config's
    `network.predicts`. Raises CliptexError if it is unknown, or not depth."""
    kind = config["model_type"]
    if kind in NO_DEPTH:
        raise CliptexError(f"{path}: {kind} predicts {NO_DEPTH[kind]}, which is no depth; use another network")
    if given is not None:
        return given
    if kind == "depth_anything":
        return "metres" if config.get("depth_estimation_type", "relative") == "metric" else "inverse_depth"
    if kind == "dpt":
        backbone = config.get("backbone_config")
        backbone = backbone.get("model_type") if isinstance(backbone, dict) else config.get("backbone")
        if backbone in RELATIVE_BACKBONES:
            return "inverse_depth"
    if kind not in PREDICTS:
        raise CliptexError(
            f"{path}: does not say what {kind} predicts; set network.predicts to metres, or to inverse_depth if larger"
            " values are nearer"
        )
    return PREDICTS[kind]


def default_segments(class_name: str, is_coco: bool, is_padded: bool) -> str:
    """How masks become classes of pixels, unless the config says it: classes of things only ("is_coco": COCO's 80) are
    painted as instances, since every pixel would get one of them otherwise. is_padded: see `cannot_be_semantic`."""
    if is_coco or class_name == "RfDetrForInstanceSegmentation":
        return "instance"
    return "panoptic" if cannot_be_semantic(class_name, is_padded) else "semantic"


def cannot_be_semantic(class_name: str, is_padded: bool) -> bool:
    """Whether semantic post-processing stretches the padding over the image: EoMT's removes it from segments only."""
    return class_name.startswith("Eomt") and is_padded
