"""Read protocols (config/protocols/*.yaml); resolve the entries of `probes.benchmarks` and `training_free.benchmarks`.

A file has a section for each task that it covers. An entry names a protocol and may override values; a resolved entry
holds every value of the benchmark's tasks, and a digest of them. Imports nothing heavy: the workflow resolves protocols
on every start.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from pydantic import create_model

from cliptex.config import Config, Positive, Section
from cliptex.config.explain import validated
from cliptex.config.files import Keys, Layers, dotted, read
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import sha256_json
from cliptex.evaluation.probes import tasks as probe_tasks
from cliptex.evaluation.protocols.base import PooledTask
from cliptex.evaluation.training_free import tasks as training_free_tasks

DEFAULT = "miniature"
SHIPPED = paths.SHIPPED / "config" / "protocols"
"""The shipped protocols."""
DIGEST_DIGITS = 12


class ProtocolFile(Section):
    """A protocol file: `about`, and a section for each task that it covers (see `with_sections`)."""

    about: str = ""
    """Source of the recipe, in a sentence."""


class ResolvedProtocol(ProtocolFile):
    """What all entries have: name of a protocol, and overriding values; once resolved, all values."""

    protocol: str = DEFAULT
    """Name of a file in config/protocols/ without its suffix, or the path of your own file."""
    digest: str = ""
    """Digest of all values, 12 hexadecimal digits; set when the entry is resolved."""

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that are evaluated."""
        others = Entry.model_fields.keys() | TrainingFreeEntry.model_fields.keys()
        return [name for name in type(self).model_fields if name not in others and self.section(name) is not None]

    def section(self, task: str) -> Any:
        """The section of a task; None if the protocol has none."""
        return getattr(self, task)


class TrainingFreeEntry(ResolvedProtocol):
    """An entry of `training_free.benchmarks`."""

    max_eval: Positive | None = None
    """Number of evaluation images, the first ones; null: all. For quick experiments."""


class Entry(ResolvedProtocol):
    """An entry of `probes.benchmarks`."""

    max_train: Positive | None = None
    """Number of training images, drawn once from the seed; null: all."""
    max_eval: Positive | None = None
    """Number of evaluation images, the first ones; null: all. For quick experiments."""

    @property
    def tasks_by_features(self) -> list[list[str]]:
        """Names of tasks, grouped by equal input, augmentation and features."""
        groups: dict[str, list[str]] = {}
        for task in self.tasks:
            section = self.section(task)
            values = section.model_dump(mode="json", include={"input", "augment", "features"})
            groups.setdefault(sha256_json([isinstance(section, PooledTask), values]), []).append(task)
        return list(groups.values())

    @property
    def heads(self) -> dict[str, list[str]]:
        """Name of a head -> the tasks that have a head of that name; one result file each."""
        heads: dict[str, list[str]] = {}
        for task in self.tasks:
            for name in self.section(task).heads:
                heads.setdefault(name, []).append(task)
        return heads


class SectionTask(Protocol):
    """A probe task, or a task of the evaluation without training, with its section of a protocol."""

    name: str
    section: type[Section]


@dataclass(frozen=True)
class Evaluator:
    """What resolves the entries of a part of the configuration.

    key: of its entries. entry: their class. built_in: its tasks in the package, by name. tasks_of: benchmark -> those
    of its tasks that can be evaluated on it.
    """

    key: str
    entry: type[ResolvedProtocol]
    built_in: Callable[[], Mapping[str, SectionTask]]
    tasks_of: Callable[[str], Mapping[str, SectionTask]]


PROBES = Evaluator("probes.benchmarks", Entry, probe_tasks.built_in, probe_tasks.tasks_of)
TRAINING_FREE = Evaluator(
    "training_free.benchmarks", TrainingFreeEntry, training_free_tasks.built_in, training_free_tasks.tasks_of
)


@cache
def with_sections(base: type[ProtocolFile], tasks: tuple[SectionTask, ...]) -> Any:
    """`base` with an optional section for each task, as a pydantic model."""
    return create_model(base.__name__, __base__=base, **{task.name: (task.section | None, None) for task in tasks})


def protocol_of(
    benchmark: str, values: Mapping[str, Any], folders: Iterable[Path] = (), evaluator: Evaluator = PROBES
) -> Any:
    """Resolve and validate the entry of a benchmark, of the class `evaluator.entry`.

    Tasks without a section in the protocol, or with null in the entry, are not evaluated. values: the entry in the
    configuration; if it is already resolved, it is only validated. folders: searched for protocols before the shipped
    ones. Raises CliptexError that names the file, or the entry, and the key.
    """
    entry_key = f"{evaluator.key}.{benchmark}"

    def where(path: Keys) -> str:
        return f"{entry_key}.{dotted(path)}: "

    tasks = evaluator.tasks_of(benchmark)
    if not tasks:
        known = ", ".join(evaluator.built_in())
        raise CliptexError(f"{entry_key}: {benchmark} has the data of none of {known}; remove the entry")
    model = with_sections(evaluator.entry, tuple((evaluator.built_in() | tasks).values()))
    if values.get("digest"):
        return validated(model, values, where)
    name = values.get("protocol", DEFAULT)
    path = _path(name, folders, f"{entry_key}.protocol")
    layers = Layers([read(path)])
    file = layers.values
    every = PROBES.built_in() | TRAINING_FREE.built_in()
    validated(with_sections(ProtocolFile, tuple((every | tasks).values())), file, layers.where)
    for task in every.keys() - tasks.keys():
        if task in values:
            raise CliptexError(f"{entry_key}.{task}: {benchmark} has no such task; it has {', '.join(tasks)}")
    base = {key: file[key] for key in ("about", *tasks) if file.get(key) is not None}
    entry = validated(model, _merged(base, {**values, "protocol": name}), where)
    if not entry.tasks:
        needed = " or ".join(map(repr, tasks))
        raise CliptexError(f"{path}: has no section {needed}, which {benchmark} needs ({entry_key}.protocol names it)")
    sections = entry.model_dump(mode="json", include={*tasks, "max_train", "max_eval"})
    return entry.model_copy(update={"digest": sha256_json(sections)[:DIGEST_DIGITS]})


def resolve(
    benchmark: str, values: Mapping[str, Any], folders: Iterable[Path] = (), evaluator: Evaluator = PROBES
) -> dict[str, Any]:
    """`protocol_of` as JSON values."""
    return protocol_of(benchmark, values, folders, evaluator).model_dump(mode="json", exclude_none=True)


def with_protocols(config: Config, folders: Iterable[Path] = ()) -> Config:
    """`config` with all entries of `probes.benchmarks` and `training_free.benchmarks` resolved."""
    folders, sections = tuple(folders), {}
    for evaluator in (PROBES, TRAINING_FREE):
        key = evaluator.key.partition(".")[0]
        section = getattr(config, key)
        resolved = {name: resolve(name, values, folders, evaluator) for name, values in section.benchmarks.items()}
        sections[key] = section.model_copy(update={"benchmarks": resolved})
    return config.model_copy(update=sections)


def _path(name: str, folders: Iterable[Path], key: str) -> Path:
    if "/" in name or name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise CliptexError(f"{key}: {name}: no such file")
        return Path(name)
    existing = [folder for folder in (*folders, SHIPPED) if folder.is_dir()]
    for folder in existing:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted({path.stem for folder in existing for path in folder.glob("*.yaml")})
    remedy = f"there are {', '.join(known)}" if known else "none were found; set the path of a file"
    raise CliptexError(f"{key}: {name!r} is not a protocol; {remedy}")


def _merged(base: Any, over: Any) -> Any:
    """`base` overridden by `over`, recursively. Heads and variants of another kind are replaced as a whole, null ones
    removed."""
    if not isinstance(base, Mapping) or not isinstance(over, Mapping):
        return over
    if "kind" in base and over.get("kind", base["kind"]) != base["kind"]:
        return over
    out = {**base, **{key: _merged(base.get(key), value) for key, value in over.items()}}
    for key in ("heads", "variants"):
        if isinstance(out.get(key), Mapping):
            out[key] = {name: options for name, options in out[key].items() if options is not None}
    return out
