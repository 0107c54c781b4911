"""Find probe tasks: the package's own by name, others by import path. Imports nothing heavy."""

from functools import cache

from cliptex.config import Config
from cliptex.core.errors import CliptexError
from cliptex.core.plugins import find
from cliptex.evaluation.probes.base import Measure, ProbeTask

MODULES = ("segmentation", "detection", "depth", "normals", "classification")
"""The modules next to this one that hold a task in `PLUGIN`, in the order of a protocol's sections."""
_others: dict[str, ProbeTask] = {}


@cache
def built_in() -> dict[str, ProbeTask]:
    """The package's own tasks by name."""
    tasks = [find("evaluation.probes", module)() for module in MODULES]
    return {task.name: task for task in tasks}


def probe_task(name: str) -> ProbeTask:
    """The task of that name. name: one of the package's, "package.module:Class", or the name of one that was found so.
    Raises CliptexError for a task that does not exist."""
    if ":" in name:
        task = find("probe tasks", name)()
        if type(known_tasks().get(task.name, task)) is not type(task):
            raise CliptexError(f"{name}: its name {task.name!r} is taken by another probe task; choose another")
        return _others.setdefault(task.name, task)
    tasks = known_tasks()
    if name not in tasks:
        raise CliptexError(f"probe task {name!r}: there are {', '.join(tasks)}; name your own as package.module:Class")
    return tasks[name]


def known_tasks() -> dict[str, ProbeTask]:
    """The package's tasks, and those that were found by import path, by name."""
    return built_in() | _others


def tasks_of(benchmark: str) -> dict[str, ProbeTask]:
    """The tasks of a benchmark by name. benchmark: a module in cliptex/benchmarks/, or "package.module:Class".
    Raises CliptexError for one without a training split, on which no head can be trained."""
    data = find("benchmarks", benchmark)
    if not data.has_training_split:
        problem = f"{benchmark} has no training split, which heads need"
        raise CliptexError(
            f"probes.benchmarks.{benchmark}: {problem}; name it in zeroshot.benchmarks or training_free.benchmarks"
        )
    tasks = [probe_task(name) for name in data.tasks]
    return {task.name: task for task in tasks}


def load_tasks(config: Config) -> None:
    """Find the tasks of all benchmarks in use, so that `known_tasks` has those from outside the package, too."""
    for benchmark in config.probes.benchmarks:
        tasks_of(benchmark)


def probe_measures() -> dict[str, Measure]:
    """All measures of the tasks that were found, by name."""
    return {measure.name: measure for task in known_tasks().values() for measure in task.measures}
