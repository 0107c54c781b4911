"""The probes: heads trained on a frozen encoder. Which heads a benchmark has follows from its tasks.

Imports nothing heavy: the workflow asks for the heads to know a job's outputs.
"""

from cliptex import plugins

HEADS = {
    "semantic_segmentation": ("linear", "deeplabv3", "pspnet"),
    "detection": ("mask_rcnn",),
    "depth": ("linear",),
    "normals": ("linear",),
    "classification": ("linear",),
}


def heads(benchmark: str) -> list[str]:
    """Names of a benchmark's heads, e.g. `["linear", "deeplabv3", "pspnet"]`; one result file each.

    benchmark: a module in cliptex/benchmarks/, or "package.module:Class".
    """
    tasks = plugins.find("benchmarks", benchmark).tasks
    return list(dict.fromkeys(head for task in tasks for head in HEADS[task]))
