"""Read configuration files, later ones overriding parts of earlier ones, as Snakemake does.

Reads   YAML or JSON.
Holds   every value has its file and line; what YAML reads in a surprising way is refused; cost is bounded.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cliptex.core.errors import ConfigError

REPLACE = "_replace"
"""Key of a mapping that replaces the one below it: `_replace: true`."""
MAX_BYTES = 8_000_000
MAX_VALUES = 100_000
"""Largest number of values of a file, with aliases expanded: a few lines can stand for billions."""
MAX_DIGITS = 40
LONGEST = 60
"""Longest value or key, in characters, that a message repeats."""
NULL = re.compile(r"~|null|Null|NULL|")
TRUE = re.compile(r"true|True|TRUE|yes|Yes|YES|on|On|ON")
FALSE = re.compile(r"false|False|FALSE|no|No|NO|off|Off|OFF")
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?")
SURPRISES = {
    re.compile(r"[-+]?0[0-9_]+"): "YAML reads a number that begins with 0 as octal; remove the 0, or quote a text",
    re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"): "YAML reads this as a number of base 60; quote a text",
    re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"): "numbers must be finite",
    re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt \t].*)?"): "YAML reads this as a date; quote it",
}
"""Plain values that are refused, and why."""

Keys = tuple[str | int, ...]
"""The path of keys and indices to a value."""


@dataclass(frozen=True)
class Place:
    """Where a value is, and how it is written there."""

    line: int
    text: str


@dataclass(frozen=True)
class ConfigFile:
    """The content of one configuration file. places: by the path of keys and indices."""

    name: str
    values: dict[str, Any]
    places: dict[Keys, Place] = field(default_factory=dict)


class Layers:
    """Configurations, each of which overrides parts of those before; `values` is the result."""

    def __init__(self, files: list[ConfigFile], default: ConfigFile | None = None):
        self._files = [*([default] if default else []), *files]
        over: dict[str, Any] = {}
        for file in files:
            over = overlay(over, file.values)
        self.values = _without_markers(overlay(_copy(default.values) if default else {}, over))

    def where(self, path: Keys) -> str:
        """`file:line: key: ` of a value, or of the section that lacks it."""
        shown = dotted(path)
        lengths = [length for length in range(len(path), 0, -1) if _holds(self.values, path[:length])]
        for length in lengths:
            for file in reversed(self._files):
                if place := file.places.get(path[:length]):
                    return f"{file.name}:{place.line}: {shown}: "
                if not file.places and _holds(file.values, path[:length]):
                    return f"{file.name}: {shown}: "
        return ": ".join([*(file.name for file in self._files[-1:]), *([shown] if shown else []), ""])

    @property
    def texts(self) -> dict[Keys, str]:
        """How values are written in their files."""
        return {path: place.text for file in self._files for path, place in file.places.items()}


def dotted(path: Keys) -> str:
    """The dotted key of a path, as it may be shown."""
    return ".".join(part if part.isprintable() else repr(part) for part in map(short, path))


def short(value: Any) -> str:
    """A value, cut to `LONGEST` characters."""
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _holds(values: Any, path: Keys) -> bool:
    for part in path:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True


def overlay(base: Any, over: Mapping[str, Any]) -> Any:
    """Lay `over` over `base`, in place, and return the result, as `snakemake.utils.update_config` does: mappings are
    merged, everything else is replaced; so is a mapping below one with `_replace: true`."""
    if over.get(REPLACE):
        base = {}
    for name, value in over.items():
        if not isinstance(base, Mapping):
            base = {}
        base[name] = overlay(base.get(name, {}), value) if isinstance(value, Mapping) else value
    return base


def _copy(values: Any) -> Any:
    return {name: _copy(value) for name, value in values.items()} if isinstance(values, Mapping) else values


def _without_markers(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {name: _without_markers(value) for name, value in values.items() if name != REPLACE}
    return values


def read(path: str | Path) -> ConfigFile:
    """Read a YAML or JSON file. Raises ConfigError."""
    name, path = str(path), Path(path)
    try:
        if path.exists() and not path.is_file():
            raise ConfigError([f"{name}: not a file; give a configuration file: --config FILE"])
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        remedy = "give a configuration file: --config FILE"
        raise ConfigError([f"{name}: cannot be read ({error.strerror}); {remedy}"]) from error
    if len(data) > MAX_BYTES:
        raise ConfigError([f"{name}: larger than {MAX_BYTES // 10**6} MB; this is not a configuration"])
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError([f"{name}: UTF-16 text; save the file as UTF-8"])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{name}:{line}: not UTF-8 text; save the file as UTF-8"]) from error
    return parse(text, name)


def parse(text: str, name: str) -> ConfigFile:
    """Parse YAML or JSON text. Raises ConfigError."""
    try:
        if text.lstrip().startswith("{") and _is_json(text):
            text = text.replace("\t", " ")  # which JSON allows between values, and YAML does not
        node = _Loader(text).get_single_node()
        reader = _Reader(name)
        values = None if node is None else reader.value(node, ())
    except yaml.YAMLError as error:
        raise ConfigError([_not_yaml(error, name)]) from error
    except RecursionError as error:
        raise ConfigError([f"{name}: not a configuration; nested too deeply"]) from error
    if reader.problems:
        raise ConfigError(list(dict.fromkeys(reader.problems)))
    if values is None:
        raise ConfigError([f"{name}: empty; write sections such as train: into it"])
    if not isinstance(values, dict):
        raise ConfigError([f"{name}: not a configuration; it must be a mapping with sections such as train:"])
    return ConfigFile(name, values, reader.places)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _not_yaml(error: yaml.YAMLError, name: str) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
    if "'\\t'" in problem:
        problem = "a tab; indent with spaces"
    elif problem == "mapping values are not allowed here":
        problem += "; a text with a colon needs quotes"
    line = f":{mark.line + 1}" if mark else ""
    return f"{name}{line}: not valid YAML: {' '.join(problem.split())}"


def parse_values(entries: Sequence[str]) -> dict[str, Any]:
    """What Snakemake makes of `--config key=value ...`: scalars are still text. Raises ConfigError."""
    values: dict[str, Any] = {}
    for entry in entries:
        name, _, text = entry.partition("=")
        try:
            overlay(values, {name: yaml.load(text.strip("'\""), yaml.BaseLoader) if text else None})
        except (yaml.YAMLError, RecursionError) as error:
            raise ConfigError([_not_yaml(error, f"--config {name}")]) from error
    return values


def given(values: Mapping[str, Any], as_text: bool = False) -> ConfigFile:
    """The values of Snakemake's `--config key=value`, in which most scalars are still text.

    as_text: leave them so, but for null.
    """
    return ConfigFile("--config", _resolved(values, (), as_text))


def _resolved(values: Any, path: Keys, as_text: bool) -> Any:
    if isinstance(values, Mapping):
        return {str(name): _resolved(value, (*path, name), as_text) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_resolved(value, (*path, number), as_text) for number, value in enumerate(values)]
    if not isinstance(values, str) or (as_text and not NULL.fullmatch(values)):
        return values
    try:
        return resolve(values)
    except ValueError as error:
        raise ConfigError([f"--config: {dotted(path)}: {short(values)}: {error}"]) from None


def resolve(text: str) -> Any:
    """The value of a plain YAML scalar: null, bool, int, float or str. Raises ValueError for a surprising one."""
    for pattern, reason in SURPRISES.items():
        if pattern.fullmatch(text):
            raise ValueError(reason)
    if NULL.fullmatch(text):
        return None
    if TRUE.fullmatch(text) or FALSE.fullmatch(text):
        return bool(TRUE.fullmatch(text))
    if INTEGER.fullmatch(text) and len(text) <= MAX_DIGITS:
        return int(text.replace("_", ""), 0)
    if FLOAT.fullmatch(text):
        number = float(text.replace("_", ""))
        if not math.isfinite(number):
            raise ValueError("numbers must be finite")
        return number
    return text


def _text(node: yaml.Node) -> str:
    return node.value if isinstance(node, yaml.ScalarNode) else ""


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise yaml.MarkedYAMLError(problem=f"the tag {tag}; remove it", problem_mark=event.start_mark)
        return super().compose_node(parent, index)


class _Reader:
    """Makes values of YAML nodes; notes the line of each, and all problems."""

    def __init__(self, name: str):
        self.name = name
        self.places: dict[Keys, Place] = {}
        self.problems: list[str] = []
        self._open: list[yaml.Node] = []
        self._count = 0

    def value(self, node: yaml.Node, path: Keys) -> Any:
        self._count += 1
        if self._count > MAX_VALUES:
            problem = f"more than {MAX_VALUES:,} values, with its aliases expanded"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        if any(node is above for above in self._open):
            raise yaml.MarkedYAMLError(problem="an alias that contains itself", problem_mark=node.start_mark)
        self.places.setdefault(path, Place(node.start_mark.line + 1, _text(node)))
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        self._open.append(node)
        if isinstance(node, yaml.SequenceNode):
            out: Any = [self.value(item, (*path, number)) for number, item in enumerate(node.value)]
        else:
            out = self._mapping(node, path)
        self._open.pop()
        return out

    def _scalar(self, node: yaml.ScalarNode, path: Keys) -> Any:
        if node.style is not None:
            # JSON writes an emoji as two escapes, which YAML does not join
            text = node.value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            if "\ufffd" in text and "\ufffd" not in node.value:
                self._problem(node, path, "half a character: an escape such as \\ud83d without its second half")
            return text
        try:
            return resolve(node.value)
        except ValueError as error:
            self._problem(node, path, f"{short(node.value)}: {error}")
            return None

    def _mapping(self, node: yaml.MappingNode, path: Keys) -> dict[str, Any]:
        out: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for name_node, value_node in node.value:
            name = self._name(name_node, path)
            if name == "<<" and name_node.style is None:
                continue
            if name in lines:
                first = f"also in line {lines[name]}; YAML would take the last one; remove one"
                self._problem(name_node, (*path, name), f"given twice, {first}")
            lines[name] = name_node.start_mark.line + 1
            self.places[(*path, name)] = Place(lines[name], _text(value_node))
            out[name] = self.value(value_node, (*path, name))
        for merged in self._merged(node):
            out = {**self.value(merged, path), **out}
        if out.get(REPLACE, True) is not True:
            self._problem(node, (*path, REPLACE), "must be true; remove the key to merge")
        return out

    def _merged(self, node: yaml.MappingNode) -> Iterator[yaml.MappingNode]:
        """Mappings that `<<: *alias` or `<<: [*alias, *other]` adds; the first has precedence."""
        for name_node, value_node in node.value:
            if isinstance(name_node, yaml.ScalarNode) and name_node.value == "<<" and name_node.style is None:
                nodes = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                if not all(isinstance(merged, yaml.MappingNode) for merged in nodes):
                    raise yaml.MarkedYAMLError(problem="<< needs a mapping", problem_mark=value_node.start_mark)
                yield from nodes

    def _name(self, node: yaml.Node, path: Keys) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a key that is not text", problem_mark=node.start_mark)
        try:
            is_text = node.style is not None or isinstance(resolve(node.value), str)
        except ValueError:
            is_text = False
        if not is_text:
            self._problem(node, (*path, node.value), "YAML does not read this key as text; put it in quotes")
        return node.value

    def _problem(self, node: yaml.Node, path: Keys, problem: str) -> None:
        self.problems.append(f"{self.name}:{node.start_mark.line + 1}: {dotted(path)}: {problem}")
