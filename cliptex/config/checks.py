"""Checks between sections: names that must exist, names that are reserved, values that contradict each other.

Imports nothing heavy: the workflow checks its configuration at every start.
"""

import re
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from cliptex.config.explain import nearest, not_one_of
from cliptex.config.training import Model
from cliptex.core.plugins import built_in

if TYPE_CHECKING:
    from cliptex.config import Config

Problem = tuple[tuple[str, ...], str]
"""The path of a key, and what is wrong with it."""
BASELINES = ("random", "position")
"""Names of the probes' baselines, whose results are in the same folders as those of models."""
FOLDERS = ("archives", "expert_renders", "pairs", "weights", "clip_benchmark")
"""Folders in resources/ that hold no benchmark and no captioned images."""
MODULE_NAMES = re.compile(
    "add_module|apply|bfloat16|buffers|children|clear|compile|cpu|cuda|double|dump_patches|eval|extra_repr|float"
    "|forward|half|items|keys|modules|mtia|ipu|xpu|parameters|pop|share_memory|to|to_empty|train|training|type|update"
    "|values|zero_grad|((call|get|load|named|register|requires|set|state)_.*)"
)
"""Attributes of PyTorch's modules: a model's heads are a module, with one head for each label store."""


def problems(config: "Config", is_whole: bool) -> Iterator[Problem]:
    """All mistakes between sections. is_whole: also name references to sections that a job's subset may lack."""
    yield from _experts_and_stores(config, is_whole)
    for name, model in config.models.items():
        yield from _model(config, name, model, is_whole)
    for name in config.probes.models:
        yield from _one_of(("probes", "models"), name, config.models, is_whole)
    for name, accuracies in config.zeroshot.published.items():
        path = ("zeroshot", "published", name)
        yield from _one_of(path, name, config.models, is_whole)
        for benchmark in accuracies:
            yield from _one_of((*path, benchmark), benchmark, config.zeroshot.benchmarks, is_whole)
    yield from _reserved_names(config)
    if is_whole:
        yield from _benchmarks(config)
        yield from _data(config)


def _one_of(path: tuple[str, ...], name: str, names: Collection[str], is_whole: bool) -> Iterator[Problem]:
    """Without names, a subset lacks their section."""
    if name not in names and (names or is_whole):
        yield path, not_one_of(name, names)


def _experts_and_stores(config: "Config", is_whole: bool) -> Iterator[Problem]:
    for name, expert in config.experts.items():
        key = {"url": "url", "hub": "repo", "local": "path"}.get(expert.weights)
        if key and getattr(expert, key) is None:
            yield ("experts", name, key), f"is required for weights {expert.weights!r}; see docs/experts.md"
        plugin = expert.plugin or name
        if is_whole and ":" not in plugin and plugin not in built_in("experts"):
            hint = nearest(plugin, built_in("experts"))
            yield (
                ("experts", name, "plugin"),
                f"{plugin!r} is no module of cliptex/experts/ and no package.module:Class{hint}",
            )
    for name, store in config.label_stores.items():
        path = ("label_stores", name)
        if is_whole or config.experts:
            yield from _one_of((*path, "expert"), store.expert, config.experts, is_whole)
        if is_whole and ":" not in store.task and store.task not in built_in("tasks"):
            hint = nearest(store.task, built_in("tasks"))
            yield (*path, "task"), f"{store.task!r} is no module of cliptex/tasks/ and no package.module:Class{hint}"
        if store.of is None:
            continue
        if is_whole and config.study is None:
            yield from _one_of((*path, "of"), store.of, config.label_stores, is_whole)
        if store.of in config.label_stores and config.label_stores[store.of].of is not None:
            yield (*path, "of"), f"{store.of!r} is itself derived from another store; name that store"


def _model(config: "Config", name: str, model: Model, is_whole: bool) -> Iterator[Problem]:
    path = ("models", name)
    for store in model.tasks:
        if config.label_stores or not is_whole:
            yield from _one_of((*path, "tasks", store), store, config.label_stores, is_whole)
        else:
            yield (*path, "tasks", store), f"label_stores is empty; add label_stores.{store} with its task and expert"
    for store in model.losses:
        if store not in model.tasks:
            yield (
                (*path, "losses", store),
                f"{store!r} is not one of its tasks, {sorted(model.tasks)}{nearest(store, model.tasks)}",
            )
    if model.tasks and model.patch_dropout:
        yield (*path, "patch_dropout"), "models with tasks need all patches; set it to 0"
    if model.interpolate is not None:
        for key, field in Model.model_fields.items():
            if key != "interpolate" and getattr(model, key) != field.get_default(call_default_factory=True):
                yield (*path, key), "not allowed together with `interpolate`; remove one of them"
        for key, other in zip(("of", "with"), model.sources(), strict=True):
            yield from _one_of((*path, "interpolate", key), other, config.models, True)
    elif is_whole and model.init is not None:
        yield from _one_of((*path, "init"), model.init, config.models, is_whole)
    if (cycle := _cycle(config, [name])) and cycle[-1] == name:
        yield (*path, "init" if model.interpolate is None else "interpolate"), f"{' -> '.join(cycle)} is a cycle"


def _cycle(config: "Config", chain: list[str]) -> list[str] | None:
    """A chain of models, each made from the next, that returns to one of them; None if there is none."""
    for other in config.models[chain[-1]].sources():
        if other in chain:
            return [*chain, other]
        if other in config.models and (cycle := _cycle(config, [*chain, other])):
            return cycle
    return None


def _reserved_names(config: "Config") -> Iterator[Problem]:
    models, stores = ("models", config.models), ("label_stores", config.label_stores)
    study = config.study
    for path, names in ((models[:1], models[1]), *([(("study", "models"), study.models)] if study else [])):
        for name in names:
            if name in BASELINES:
                yield (*path, name), f"{name!r} is the name of a baseline; choose another name"
    for path, names in ((stores[:1], stores[1]), *([(("study", "label_stores"), study.label_stores)] if study else [])):
        for name in names:
            if MODULE_NAMES.fullmatch(name):
                yield (*path, name), f"{name!r} is the name of an attribute of PyTorch modules; choose another name"
    used = {*config.zeroshot.benchmarks, *config.probes.benchmarks, *config.miniature.benchmarks}
    used |= {*config.finetune.benchmarks, *config.benchmark_data.benchmarks}
    for name in config.zeroshot.caption_sets:
        benchmark = name.removesuffix("_dusk")
        if benchmark in used or benchmark in built_in("benchmarks"):
            yield ("zeroshot", "retrieval", name), f"{name!r} is the name of a benchmark; choose another name"
        elif name in FOLDERS:
            yield (
                ("zeroshot", "retrieval", name),
                f"{name!r} is the name of a folder in resources/; choose another name",
            )


def _benchmarks(config: "Config") -> Iterator[Problem]:
    places: list[tuple[tuple[str, ...], str]] = [
        (("zeroshot", "benchmarks"), name) for name in config.zeroshot.benchmarks
    ]
    for section in ("probes", "finetune", "miniature", "benchmark_data"):
        places += [((section, "benchmarks", name), name) for name in getattr(config, section).benchmarks]
    if config.train.watch.zero_shot:
        places.append((("train", "watch", "zero_shot"), config.train.watch.zero_shot))
    for name, captions in config.zeroshot.retrieval.items():
        if captions and captions.benchmark:
            places.append((("zeroshot", "retrieval", name, "benchmark"), captions.benchmark))
    for path, name in places:
        if name not in built_in("benchmarks"):
            yield path, f"{name!r} is no module of cliptex/benchmarks/{nearest(name, built_in('benchmarks'))}"


def _data(config: "Config") -> Iterator[Problem]:
    dataset, pairs = config.dataset, None
    if dataset.source == "webdataset" and not dataset.shards:
        yield ("dataset", "shards"), "source 'webdataset' needs the paths of the tars"
    if dataset.source == "urls" and dataset.urls is None:
        yield ("dataset", "urls"), "source 'urls' needs a URL list and its number of rows"
    if dataset.source == "miniature":
        pairs, key = config.miniature.pairs, "miniature.pairs"
    elif dataset.source == "urls" and dataset.urls is not None:
        pairs, key = dataset.urls.rows, "dataset.urls.rows"
    needed = config.train.batch_size + config.train.held_out
    if pairs is not None and pairs < needed and any(model.steps for model in config.models.values()):
        held = f" and held_out {config.train.held_out}" if config.train.held_out else ""
        yield ("train", "batch_size"), f"{config.train.batch_size}{held} are more than the {pairs} pairs of {key}"
