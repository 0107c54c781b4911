"""Find the tasks that are evaluated without training. Imports nothing heavy."""

from functools import cache

from cliptex.core.plugins import find
from cliptex.evaluation.probes.base import Measure
from cliptex.evaluation.training_free.base import TrainingFreeTask

MODULES = (
    *("text_segmentation", "region_classification", "semantic_correspondence", "geometric_correspondence"),
    "video_propagation",
)
"""The modules next to this one that hold a task in `PLUGIN`, in the order of a protocol's sections."""


@cache
def built_in() -> dict[str, TrainingFreeTask]:
    """All tasks by name."""
    tasks = [find("evaluation.training_free", module)() for module in MODULES]
    return {task.name: task for task in tasks}


def tasks_of(benchmark: str) -> dict[str, TrainingFreeTask]:
    """The tasks that can be evaluated on a benchmark, by name; empty without any.
    benchmark: a module in cliptex/benchmarks/, or "package.module:Class"."""
    plugin = find("benchmarks", benchmark)
    return {name: task for name, task in built_in().items() if task.suits(plugin)}


def training_free_measures() -> dict[str, Measure]:
    """All measures of the tasks, by name."""
    return {measure.name: measure for task in built_in().values() for measure in task.measures}


def task_of_measure(name: str) -> TrainingFreeTask | None:
    """The task whose rows have this measure; None for another kind of row."""
    return next((task for task in built_in().values() if name in {one.name for one in task.measures}), None)
