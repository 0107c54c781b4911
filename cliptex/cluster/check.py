"""Check a configuration before the first job, against the installed packages, the plugins and the files that it names.

`cliptex.config.Config` checks what the configuration alone can tell; this module imports what the jobs will import.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch

from cliptex.cluster.precheck import light_problems
from cliptex.config import Config
from cliptex.core.errors import CliptexError
from cliptex.core.plugins import find
from cliptex.data.images import require_decoder
from cliptex.data.official.status import benchmarks_in_use
from cliptex.evaluation.protocols.resolve import TRAINING_FREE, protocol_of
from cliptex.evaluation.training_free.tasks import tasks_of
from cliptex.models import clip
from cliptex.models.dense_features import width
from cliptex.models.heads import DenseHeads

log = logging.getLogger("cliptex")


def problems(config: Config) -> Iterator[str]:
    """The mistakes of a configuration, a line each, with key and remedy."""
    yield from light_problems(config)
    yield from _own_classes(config)
    yield from _benchmarks(config)
    yield from _problem("train.decoder", lambda: require_decoder(config.train.decoder))
    yield from _student(config)


def _problem(key: str, call: Callable[[], Any]) -> Iterator[str]:
    """The error of `call`, with the key if its message has none; nothing if it succeeds."""
    try:
        call()
    except CliptexError as error:
        text = str(error).replace("experts.*", key)  # an expert does not know its name
        yield text if text.startswith(key.partition(".")[0] + ".") else f"{key}: {text}"
    except Exception as error:  # a user's module may raise anything when it is imported
        yield f"{key}: cannot be loaded ({type(error).__name__}: {' '.join(str(error).split())})"


def _own_classes(config: Config) -> Iterator[str]:
    """Classes outside the package: whether they can be imported, and take their options."""
    for name, expert in config.experts.items():
        if ":" in (plugin := expert.plugin or name):
            values = expert.model_dump(mode="json")

            def build(plugin: str = plugin, values: dict[str, Any] = values) -> None:
                find("experts", plugin)(values).check_methods(values["weights"], config.backbone is not None)

            yield from _problem(f"experts.{name}", build)
    for name, store in config.label_stores.items():
        if ":" in store.task:
            yield from _problem(f"label_stores.{name}.task", lambda store=store: find("tasks", store.task)())
    for name, model in config.models.items():
        for store, losses in model.losses.items():
            key, task = f"models.{name}.losses.{store}", config.label_stores[store].task
            if ":" in task:
                yield from _problem(key, lambda t=task, o=losses, key=key: find("tasks", t)().with_loss(o, key))


def _benchmarks(config: Config) -> Iterator[str]:
    for name in benchmarks_in_use(config):
        yield from _problem(f"benchmark {name}", lambda name=name: _benchmark(name))
    zero_shot = {f"zeroshot.benchmarks: {name!r}": name for name in config.zeroshot.benchmarks}
    if config.train.watch.zero_shot:
        zero_shot["train.watch.zero_shot"] = config.train.watch.zero_shot
    for key, name in zero_shot.items():
        try:
            tasks = find("benchmarks", name).tasks
        except Exception:  # reported above
            continue
        if "classification" not in tasks:
            yield f"{key}: {name} has no image classes ({', '.join(tasks)}); choose imagenet or places365"


def _benchmark(name: str) -> None:
    """Raise CliptexError if a benchmark cannot be found, or if the user's own class lacks something."""
    plugin = find("benchmarks", name)
    key = f"benchmark_data.benchmarks.{name}.plugin: {plugin.__name__}"
    if lacks := [*plugin.__abstractmethods__, *(() if hasattr(plugin, "tasks") else ("tasks",))]:
        raise CliptexError(f"{key} lacks {min(lacks)!r}; define it")


def _student(config: Config) -> Iterator[str]:
    if not any(model.interpolate is None for model in config.models.values()):
        return
    broken = list(_problem("student", lambda: clip.model_config(config.student)))
    yield from broken
    if not broken:
        for student in config.students:
            yield from _problem("student.pretrained", lambda student=student: clip.check_pretrained(student))
        yield from _tower(config)


def _tower(config: Config) -> Iterator[str]:
    """Whether the image tower has what models with tasks and the evaluation without training read; built without memory
    for its weights."""
    if not config.training_free.benchmarks and not any(model.tasks for model in config.models.values()):
        return
    try:
        with torch.device("meta"):
            visual = clip.build(config.student.model_copy(update={"pretrained": None}), 0).visual
    except CliptexError as error:
        yield str(error)
        return
    except Exception as error:  # not every architecture can be built without memory; training builds it in full
        log.debug("student: not checked (%s)", error)
        return
    yield from _heads(config, visual)
    for name, values in config.training_free.benchmarks.items():
        yield from _problem(f"training_free.benchmarks.{name}", lambda name=name, v=values: _readable(name, v, visual))


def _readable(name: str, values: dict[str, Any], visual: torch.nn.Module) -> None:
    """Raise CliptexError if an image tower cannot be read by a task of an entry of `training_free.benchmarks`."""
    protocol = protocol_of(name, values, evaluator=TRAINING_FREE)
    for task in protocol.tasks:
        if problem := tasks_of(name)[task].tower_problem(protocol.section(task), visual):
            raise CliptexError(f"training_free.benchmarks.{name}.{task}: {problem}")


def _heads(config: Config, visual: torch.nn.Module) -> Iterator[str]:
    """Whether the heads of models with tasks fit the encoder's dense features."""
    for name, model in config.models.items():
        if not model.tasks:
            continue
        heads = (model.multi_scale or config.train.multi_scale, config.train.multi_scale_channels)
        kind = model.heads or config.train.heads

        def build(heads: tuple = heads, kind: str = kind, name: str = name) -> None:
            with torch.device("meta"):
                DenseHeads(width(visual), {"task": 1}, *heads, kind, config.train.multi_scale_rates, 0)

        yield from _problem(f"models.{name}", build)
