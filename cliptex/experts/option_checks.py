"""Check the options of experts and of the tasks' losses, and the label stores' choice of experts, before any job runs.

In      the configuration.
Out     the path of each wrong key, and what is wrong with it. Imports nothing heavy.
"""

import os
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

from cliptex.config import Config, ExpertConfig
from cliptex.core.plugins import find
from cliptex.experts.options import (
    BUILT_IN,
    UNSET,
    DegradedOptions,
    FeaturesOptions,
    Problem,
    TrainingOptions,
    TransformersOptions,
    TruthOptions,
    wrong_values,
)


def problems(config: Config) -> Iterator[Problem]:
    """All mistakes in the options of experts and of the tasks' losses, and in the stores' choice of experts.

    Own classes (package.module:Class) are found but not imported, since they may import PyTorch.
    """
    if config.backbone is not None:
        yield from wrong_values(TrainingOptions, config.backbone.training, ("backbone", "training"))
    for name, expert in config.experts.items():
        yield from _expert(name, expert, config.plugins)
        if expert.network.get("library") == "backbone" and config.backbone is None:
            yield ("experts", name, "network", "library"), "there is no `backbone`; add that section"
    for name, store in config.label_stores.items():
        yield from _not_found(store.task, ("label_stores", name, "task"), config.plugins)
        if store.expert in config.experts:
            yield from _store(config, name)
        if store.from_ and "://" not in store.from_ and not (Path(store.from_) / "labels.json").is_file():
            problem = f"{store.from_} is not a published label set: it has no labels.json; correct the path"
            yield ("label_stores", name, "from"), problem
    for name, model in config.models.items():
        for store, options in model.losses.items():
            task = config.label_stores[store].task if store in config.label_stores else ":"
            if ":" not in task:
                yield from find("tasks", task)().wrong_options(options, ("models", name, "losses", store))
        if model.weight_by_agreement:
            tasks = [config.label_stores[store].task for store in model.tasks if store in config.label_stores]
            if len({task if ":" in task else find("tasks", task).name for task in tasks}) == len(model.tasks):
                yield ("models", name, "weight_by_agreement"), "no two label stores of the model have the same task"


def _not_found(plugin: str, path: tuple[str, ...], folders: list[Path]) -> Iterator[Problem]:
    """Whether the module of an own class is in none of the folders, of PYTHONPATH or of this Python."""
    module, colon, _ = plugin.partition(":")
    package = module.partition(".")[0]
    places = [*map(str, folders), *os.environ.get("PYTHONPATH", "").split(os.pathsep), *sys.path]
    if colon and package not in sys.modules and PathFinder.find_spec(package, places) is None:
        yield path, f"module {module!r} is not importable; install it, or put its folder in PYTHONPATH"


def _expert(name: str, expert: ExpertConfig, folders: list[Path]) -> Iterator[Problem]:
    path, plugin = ("experts", name), expert.plugin or name
    yield from _not_found(plugin, (*path, "plugin"), folders)
    if expert.weights == "local" and expert.path is not None and not Path(expert.path).exists():
        yield (*path, "path"), f"{expert.path} does not exist"
    if (model := BUILT_IN.get(plugin)) is None:
        return
    yield from wrong_values(model, expert.network, (*path, "network"))
    if model in (TruthOptions, DegradedOptions):
        if expert.training:
            yield (*path, "training"), f"{plugin!r} has no weights to train; remove the key"
        return
    if model is TransformersOptions:
        if expert.weights not in ("hub", "local") or expert.file is not None:
            yield (
                (*path, "weights"),
                "a network of transformers is read from a folder: use hub without `file`, or local",
            )
        if expert.training:
            yield (*path, "training"), f"{plugin!r} is not trained here; remove the key"
        return
    yield from wrong_values(TrainingOptions, expert.training, (*path, "training"))
    if model is FeaturesOptions:
        yield from _features(expert, path)
    if expert.weights in ("trained", "random"):
        yield from (((*path, "network", name), UNSET) for name in model.size_options if name not in expert.network)


def _features(expert: ExpertConfig, path: tuple[str, ...]) -> Iterator[Problem]:
    """What a teacher of features lacks, or has that it must not have."""
    options, is_file = expert.network, expert.weights in ("url", "random") or bool(expert.file)
    library = options.get("library")
    if library == "backbone":
        if expert.weights not in ("trained", "random"):
            yield (*path, "weights"), "library 'backbone' takes the workflow's own backbone; use trained"
        return
    if expert.weights == "trained" and library:
        yield (*path, "weights"), f"a teacher of {library} is not trained here; use hub, url or local"
    if library == "transformers" and is_file and not options.get("config"):
        yield (*path, "network", "config"), "is not set; weights without a folder need the values of config.json"
    if not options.get("model") and (library == "open_clip" or (library == "timm" and is_file)):
        yield (*path, "network", "model"), f"is not set; give the name of {library}'s architecture"
    if library == "open_clip" and options.get("input_size_px"):
        yield (*path, "network", "input_size_px"), "a teacher of open_clip takes its own size; remove the key"


def _store(config: Config, name: str) -> Iterator[Problem]:
    """A store whose expert makes labels of another task, or needs another store or does not."""
    path, store = ("label_stores", name), config.label_stores[name]
    expert = config.experts[store.expert]
    plugin = expert.plugin or store.expert
    if plugin not in BUILT_IN:
        return
    makes = {"dpt": "depth", "nll_angmf": "normals", "features": "features"}.get(plugin) or expert.network.get("task")
    if plugin == "mask_rcnn":
        makes = "scored_segmentation" if expert.network.get("keep_scores") else "segmentation"
    if ":" not in store.task and makes not in (None, store.task):
        more = " (network.keep_scores)" if "scored_segmentation" in (makes, store.task) else ""
        yield (*path, "expert"), f"{store.expert!r} makes {makes}{more}, but the task is {store.task!r}"
    if plugin == "degraded" and store.of is None:
        yield (*path, "of"), f"{store.expert!r} changes the labels of another store; name that store"
    if plugin != "degraded" and store.of is not None:
        yield (*path, "of"), f"{store.expert!r} labels images itself; remove the key"
    other = config.label_stores.get(store.of or "")
    if other is not None and other.task != store.task:
        yield (*path, "of"), f"{store.of!r} has labels of {other.task}, not of {store.task}; name another store"
