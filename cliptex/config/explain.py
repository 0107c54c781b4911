"""Mistakes in a configuration as sentences: what is wrong with which key, and the nearest right name."""

import difflib
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from cliptex.config.files import LONGEST, Keys, short
from cliptex.core.errors import ConfigError

Section = TypeVar("Section", bound=BaseModel)

MOST_NAMES = 20
KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "list": "a list, such as [a, b]",
    "tuple": "a list, such as [a, b]",
    "dict": "a mapping of keys and values",
    "model": "a mapping of keys and values",
    "mapping": "a mapping of keys and values",
}
"""What a value must be, by the first word of pydantic's error type."""
LIMITS = {
    "greater_than": ("gt", "must be greater than {}"),
    "greater_than_equal": ("ge", "must be at least {}"),
    "less_than": ("lt", "must be less than {}"),
    "less_than_equal": ("le", "must be at most {}"),
}
NAMES = "a name has lower-case letters, digits and _, and begins with a letter"
PATTERNS = {r"^[a-z][a-z0-9_]*$": NAMES, r"^[0-9a-f]{8,64}$": "it must be 8 to 64 hexadecimal digits in lower case"}


def nearest(name: str, names: Collection[str]) -> str:
    """`; did you mean X?` if one of the names is similar, else an empty text."""
    close = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {close[0]}?" if close else ""


def not_one_of(name: str, names: Collection[str], what: str = "") -> str:
    """That a name is none of those, and the nearest, as the end of a sentence."""
    listed = [*sorted(names)[:MOST_NAMES], *(["..."] if len(names) > MOST_NAMES else [])]
    return f"{short(repr(name))} is not one of {what}[{', '.join(listed)}]{nearest(name, names)}"


def shown(value: Any, text: str | None = None) -> str:
    """A value in a message, cut to `LONGEST` characters. text: how it is written in its file."""
    if isinstance(value, Mapping | list | tuple) and len(repr(value)) > LONGEST:
        return f"a {'mapping' if isinstance(value, Mapping) else 'list'} of {len(value)}"
    if text and not isinstance(value, str):
        return short(text)
    return "null" if value is None else short(repr(value))


def explain(
    error: ValidationError, model: Any, values: Any, texts: Mapping[Keys, str] | None = None
) -> Iterator[tuple[Keys, str]]:
    """The path of each wrong value, and what is wrong with it.

    model: the class, or the type, that was validated. values: what was validated. texts: how values are written, by
    path.
    """
    problems: dict[Keys, list[Any]] = {}
    for item in error.errors(include_url=False):
        problems.setdefault(_path(values, item), []).append(item)
    for path, items in problems.items():
        yield path, _sentence(path, items, model, (texts or {}).get(path))


def validated(model: type[Section], values: Mapping[str, Any], where: Callable[[Keys], str]) -> Section:
    """`values` as a section. where: begins the line about a wrong value, by its path. Raises ConfigError."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problems = explain(error, model, values)
        raise ConfigError([f"{where(path)}{problem}" for path, problem in problems]) from error


def _sentence(path: Keys, items: list[Any], model: Any, text: str | None) -> str:
    item = items[0]
    kind, value, context = item["type"], item["input"], item.get("ctx", {})
    got = f", got {shown(value, text)}"
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown key{_elsewhere(path, model)}"
    if kind == "missing":
        return "is missing; the list has too few values" if isinstance(path[-1], int) else "is missing"
    if kind == "yaml_truth":
        read = str(value).lower()
        return f"YAML reads {text} as {read}; write a number" if text else f"must be a number, got {read}"
    if kind == "unique":
        return item["msg"]
    if kind == "value_error":
        return str(context["error"])
    if kind == "union_tag_invalid":
        return f"kind must be one of {context['expected_tags']}, got {context['tag']!r}"
    if kind in LIMITS:
        name, sentence = LIMITS[kind]
        return sentence.format(_number(context[name])) + got
    if kind == "literal_error":
        expected = context["expected"].replace(" or ", ", ").split(", ")
        options = [option.strip("'") if option[0] == "'" else option.lower() for option in expected]
        wanted = f"one of {', '.join(options)}" if len(options) > 1 else options[0]
        return f"must be {wanted}{got}{nearest(str(value), options)}"
    if kind == "string_pattern_mismatch":
        return f"{shown(value)}: {PATTERNS.get(context['pattern'], 'has characters that are not allowed')}"
    if kind == "too_short":
        return f"must have at least {context['min_length']} value{'s' * (context['min_length'] > 1)}"
    if kind == "too_long":
        return f"must have at most {context['max_length']} values"
    if (word := kind.partition("_")[0]) in KINDS:
        if value is None and not isinstance(path[-1], int):
            return "is empty; give it a value, or remove the line"
        wanted = list(dict.fromkeys(KINDS[other["type"].partition("_")[0]] for other in items if _known(other)))
        is_number = word == "string" and isinstance(value, bool | int | float)
        return f"must be {' or '.join(wanted)}{got}" + ("; put a text in quotes" if is_number else "")
    message = item["msg"].replace("Input should be", "must be")
    return message[0].lower() + message[1:] + got


def _known(item: Any) -> bool:
    return item["type"].partition("_")[0] in KINDS


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _path(values: Any, item: Any) -> tuple[int | str, ...]:
    """The path of an error without what is no key of the file: the tags of unions, and the mark of a wrong name."""
    out: list[int | str] = []
    for part in item["loc"]:
        is_index = isinstance(values, list | tuple) and isinstance(part, int) and part < len(values)
        if is_index or (isinstance(values, Mapping) and part in values):
            values = values[part]
        elif item["type"] != "missing" or part is not item["loc"][-1]:
            continue
        out.append(part)
    return tuple(out)


def _elsewhere(path: Keys, model: Any) -> str:
    """Where an unknown key belongs."""
    *parents, name = path
    name = str(name)
    if "." in name:  # --config train.batch_size=32
        section, _, rest = name.partition(".")
        return f"; write {section}: {{{rest.replace('.', ': {')}: ...{'}' * rest.count('.')}}}"
    known = _keys(_inner(model, parents))
    if hint := nearest(name, known):
        return hint
    if homes := [home for home in _homes(model) if home.rpartition(".")[2] == name]:
        return f"; did you mean {homes[0]}?"
    return f"; there are {', '.join(known)}" if 0 < len(known) <= MOST_NAMES else ""


def _keys(annotation: Any) -> list[str]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [field.alias or name for name, field in annotation.model_fields.items()]
    return [field.name for field in fields(annotation)] if is_dataclass(annotation) else []


def _inner(annotation: Any, path: Collection[str | int]) -> Any:
    """The type at a path below a type; None if it is not a model."""
    for part in path:
        annotation = _child(annotation, part)
    return _without_none(annotation)


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        options = [option for option in get_args(annotation) if option is not type(None)]
        return next((option for option in options if _keys(option)), options[0])
    return annotation


def _child(annotation: Any, part: str | int) -> Any:
    annotation = _without_none(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = {field.alias or name: field.annotation for name, field in annotation.model_fields.items()}
        return fields.get(str(part))
    return get_args(annotation)[-1] if get_origin(annotation) in (dict, list, tuple) else None


def _homes(model: Any) -> Iterator[str]:
    """The dotted keys of the sections at the top."""
    if isinstance(model, type) and issubclass(model, BaseModel):
        for name, field in model.model_fields.items():
            yield from (f"{name}.{key}" for key in _keys(_without_none(field.annotation)))
