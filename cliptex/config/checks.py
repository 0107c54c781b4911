"""Checks between sections: names that must exist, names that are reserved, values that contradict each other.

Imports nothing heavy: the workflow checks its configuration at every start.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cliptex.config.explain import nearest, not_one_of
from cliptex.config.files import short
from cliptex.config.labels import ExpertConfig, LabelStore
from cliptex.config.training import Model
from cliptex.core.plugins import built_in

if TYPE_CHECKING:
    from cliptex.config import Config

Path = tuple[str, ...]
Problem = tuple[Path, str]
"""The path of a key, and what is wrong with it."""
BASELINES = ("random", "position")
"""Names of the probes' baselines, whose results are in the same folders as those of models."""
FOLDERS = ("archives", "expert_renders", "pairs", "published_labels", "weights", "clip_benchmark")
"""Folders in resources/ that hold no benchmark and no captioned images."""
MODULE_NAMES = re.compile(
    "add_module|apply|bfloat16|buffers|children|clear|compile|cpu|cuda|double|dump_patches|eval|extra_repr|float"
    "|forward|half|items|keys|modules|mtia|ipu|xpu|parameters|pop|share_memory|to|to_empty|train|training|type|update"
    "|values|zero_grad|((call|get|load|named|register|requires|set|state)_.*)"
)
"""Attributes of PyTorch's modules: a model's heads are a module, with one head for each label store."""


HUB_SET = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
"""A data set on the Hugging Face hub, in `label_stores.*.from`."""


@dataclass(frozen=True)
class Runs:
    """The entries that may name each other."""

    experts: dict[str, ExpertConfig]
    label_stores: dict[str, LabelStore]
    models: dict[str, Model]


def problems(config: "Config", is_whole: bool) -> Iterator[Problem]:
    """All mistakes between sections. is_whole: also name references to sections that a job's subset may lack."""
    yield from _runs((), Runs(config.experts, config.label_stores, config.models), is_whole)
    if config.study is not None:
        study = config.study
        own = Runs(study.experts, study.label_stores, study.models)
        runs = Runs(config.experts | own.experts, config.label_stores | own.label_stores, config.models | own.models)
        yield from _runs(("study",), runs, is_whole, own)
    for name in config.probes.models:
        yield from _one_of(("probes", "models"), name, config.models, is_whole)
    for name in config.report.yardstick or ():
        yield from _one_of(("report", "yardstick"), name, config.models, is_whole)
    for name, accuracies in config.zeroshot.published.items():
        path = ("zeroshot", "published", name)
        yield from _one_of(path, name, config.models, is_whole)
        for benchmark in accuracies:
            yield from _one_of((*path, benchmark), benchmark, config.zeroshot.benchmarks, is_whole)
    yield from _caption_sets(config)
    if is_whole:
        yield from _benchmarks(config)
        yield from _data(config)


def _one_of(path: Path, name: str, names: Collection[str], is_whole: bool) -> Iterator[Problem]:
    """Without names, a subset lacks their section."""
    if name not in names and (names or is_whole):
        yield path, not_one_of(name, names)


def _runs(parent: Path, runs: Runs, is_whole: bool, own: Runs | None = None) -> Iterator[Problem]:
    """own: the entries to check, if these are not all."""
    own = own or runs
    for name, expert in own.experts.items():
        path = (*parent, "experts", name)
        key = {"url": "url", "hub": "repo", "local": "path"}.get(expert.weights)
        if key and getattr(expert, key) is None:
            yield (*path, key), f"is required for weights {expert.weights!r}; see docs/experts.md"
        if is_whole:
            yield from _plugin((*path, "plugin"), "experts", expert.plugin or name)
    for name, store in own.label_stores.items():
        path = (*parent, "label_stores", name)
        if MODULE_NAMES.fullmatch(name):
            yield path, f"{name!r} is the name of an attribute of PyTorch modules; choose another name"
        yield from _origin(path, store)
        if store.expert is not None:
            yield from _one_of((*path, "expert"), store.expert, runs.experts, is_whole)
        if is_whole:
            yield from _plugin((*path, "task"), "tasks", store.task)
        if store.of is not None and is_whole:
            yield from _one_of((*path, "of"), store.of, runs.label_stores, is_whole)
        if store.of in runs.label_stores and runs.label_stores[store.of].of is not None:
            yield (*path, "of"), f"{store.of!r} is itself derived from another store; name that store"
    for name, model in own.models.items():
        yield from _model((*parent, "models", name), name, model, runs, is_whole)


def _origin(path: Path, store: LabelStore) -> Iterator[Problem]:
    """A store needs an expert or a published label set, and not both."""
    if store.from_ is None:
        if store.expert is None:
            yield (*path, "expert"), "is required, or `from` with a published label set; see docs/labels.md"
        if store.join is not None:
            yield (*path, "join"), "is of labels taken `from` a published set; remove the key"
        return
    for key in ("expert", "of"):
        if getattr(store, key) is not None:
            yield (
                (*path, "from"),
                f"not allowed together with `{key}`; remove one of them (`{key}: null` in an overlay)",
            )
    if store.from_.startswith("hf://") and not HUB_SET.fullmatch(store.from_):
        yield (*path, "from"), f"{short(repr(store.from_))} is not hf://owner/name or hf://owner/name@revision"
    elif "://" in store.from_ and re.search(r"[?#]", store.from_):
        yield (
            (*path, "from"),
            "must be the URL of a folder, without ? and #; or download it, and give its path",
        )
    elif "://" in store.from_ and not store.from_.startswith(("hf://", "http://", "https://")):
        yield (*path, "from"), f"{short(repr(store.from_))} is neither hf://, http:// nor https://, nor a folder"


def _plugin(path: Path, kind: str, name: str) -> Iterator[Problem]:
    if ":" not in name and name not in built_in(kind):
        problem = f"{short(repr(name))} is no module of cliptex/{kind}/ and no package.module:Class"
        yield path, f"{problem}{nearest(name, built_in(kind))}"


def _model(path: Path, name: str, model: Model, runs: Runs, is_whole: bool) -> Iterator[Problem]:
    if name in BASELINES:
        yield path, f"{name!r} is the name of a baseline; choose another name"
    for store in model.tasks:
        if runs.label_stores or not is_whole:
            yield from _one_of((*path, "tasks", store), store, runs.label_stores, is_whole)
        else:
            yield (*path, "tasks", store), f"label_stores is empty; add label_stores.{store} with its task and expert"
    for store in model.losses:
        if store not in model.tasks:
            yield (*path, "losses", store), not_one_of(store, model.tasks, "its tasks, ")
    if model.epochs is not None and "steps" in model.model_fields_set:
        yield (*path, "epochs"), "not allowed together with `steps`; remove one of them (`steps: null` in an overlay)"
    if model.tasks and model.patch_dropout:
        yield (*path, "patch_dropout"), "models with tasks need all patches; set it to 0"
    if model.interpolate is not None:
        for key, field in Model.model_fields.items():
            if key != "interpolate" and getattr(model, key) != field.get_default(call_default_factory=True):
                yield (*path, key), "not allowed together with `interpolate`; remove one of them"
        for key, other in zip(("of", "with"), model.sources(), strict=True):
            yield from _one_of((*path, "interpolate", key), other, runs.models, True)
    elif model.pretrained is not None:
        if model.is_trained or model.init is not None:
            key = "init" if model.init is not None else "steps" if model.epochs is None else "epochs"
            yield (*path, "pretrained"), f"is for a released model to compare with; remove it, or `{key}`"
        if other := next((other for other, entry in runs.models.items() if name in entry.sources()), None):
            yield (*path, "pretrained"), f"{other!r} starts from this model; give student.pretrained these weights"
    elif is_whole and model.init is not None:
        yield from _one_of((*path, "init"), model.init, runs.models, is_whole)
    if (cycle := _cycle(runs.models, [name])) and cycle[-1] == name:
        yield (*path, "init" if model.interpolate is None else "interpolate"), f"{' -> '.join(cycle)} is a cycle"


def _cycle(models: dict[str, Model], chain: list[str]) -> list[str] | None:
    """A chain of models, each made from the next, that returns to one of them; None if there is none."""
    for other in models[chain[-1]].sources():
        if other in chain:
            return [*chain, other]
        if other in models and (cycle := _cycle(models, [*chain, other])):
            return cycle
    return None


def _caption_sets(config: "Config") -> Iterator[Problem]:
    used = {*config.zeroshot.benchmarks, *config.probes.benchmarks, *config.miniature.benchmarks}
    used |= {*config.finetune.benchmarks, *config.benchmark_data.benchmarks, *config.training_free.benchmarks}
    for name in config.zeroshot.caption_sets:
        path, is_rendered = ("zeroshot", "retrieval", name), config.zeroshot.retrieval[name].rendered is not None
        if name in used or (is_rendered and name.removesuffix("_dusk") in {*used, *built_in("benchmarks")}):
            yield path, f"{name!r} is the name of a benchmark; choose another name"
        elif is_rendered and name in FOLDERS:
            yield path, f"{name!r} is the name of a folder in resources/; choose another name"


def _benchmarks(config: "Config") -> Iterator[Problem]:
    places: list[Problem] = [(("zeroshot", "benchmarks"), name) for name in config.zeroshot.benchmarks]
    for section in ("probes", "finetune", "training_free", "miniature", "benchmark_data"):
        places += [((section, "benchmarks", name), name) for name in getattr(config, section).benchmarks]
    if config.train.watch.zero_shot:
        places.append((("train", "watch", "zero_shot"), config.train.watch.zero_shot))
    for name, captions in config.zeroshot.retrieval.items():
        if captions and captions.benchmark:
            places.append((("zeroshot", "retrieval", name, "benchmark"), captions.benchmark))
    for path, name in places:
        if name not in built_in("benchmarks") and (path[0] == "miniature" or name not in config.own_benchmarks):
            known = nearest(name, built_in("benchmarks"))
            problem = f"{short(repr(name))} is no module of cliptex/benchmarks/{known}"
            own = f"; of your own, name the class in benchmark_data.benchmarks.{name}.plugin"
            yield path, problem + ("" if known or not name.isidentifier() else own)
    for name, entry in config.benchmark_data.benchmarks.items():
        path = ("benchmark_data", "benchmarks", name)
        if entry.plugin and name in built_in("benchmarks"):
            yield (*path, "plugin"), f"{name!r} is a benchmark of the package; choose another name for yours"
        if entry.plugin and entry.source in ("miniature", "subset"):
            yield (*path, "source"), f"{entry.source!r} is not for a benchmark of your own; remove the key"
        if entry.source == "own" and not entry.plugin and name in built_in("benchmarks"):
            yield (*path, "source"), f"{name!r} is a benchmark of the package; use official, subset or miniature"
        if entry.source == "subset" and not entry.path:
            yield (*path, "path"), "is not set; 'subset' needs the folder of your images in the official layout"


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
    if pairs is None or not any(model.is_trained for model in config.models.values()):
        return
    batch_size, held_out = config.train.batch_size, config.train.held_out
    if batch_size > pairs:
        yield ("train", "batch_size"), f"{batch_size} is more than the {pairs} pairs of {key}"
    elif batch_size + held_out > pairs:
        yield ("train", "held_out"), f"{held_out} and a batch of {batch_size} are more than the {pairs} pairs of {key}"
