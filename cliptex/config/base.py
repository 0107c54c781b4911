"""The base class of all configuration sections, and the types that several sections share.

A section is a pydantic model: its fields are the keys, the docstring below a field is its description in
`config/README.md` and in the JSON schema.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

Items = TypeVar("Items", list, tuple)
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
EncoderPrecision = Literal["fp32", "bf16", "fp16", "auto"]
"""Precision of a frozen encoder."""


def _in_order(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise PydanticCustomError("order", "the smaller value must come first")
    return limits


def _unique(values: Items) -> Items:
    repeated = next((value for number, value in enumerate(values) if value in values[:number]), None)
    if repeated is not None:
        raise PydanticCustomError("unique", "{value} is given twice; remove one", {"value": repeated})
    return values


def _expanded(path: str) -> str:
    if "://" in path or path.startswith("pipe:"):
        return path
    try:
        out = os.path.expandvars(str(Path(path).expanduser()) if path.startswith("~") else path)
    except RuntimeError as error:
        home = {"home": path.partition("/")[0]}
        raise PydanticCustomError("path", "{home} is no known home folder; write the whole path", home) from error
    if unset := re.search(r"\$(\w+|\{[^}]*\})", out):
        raise PydanticCustomError("path", "{name} is not set in the environment", {"name": unset[0]})
    return out


def _single(path: str) -> str:
    if "://" not in path and re.search(r"[*?]", path):
        raise PydanticCustomError("path", "patterns are not expanded here; name the files")
    return path


Shares = Annotated[tuple[Share, Share], AfterValidator(_in_order)]
"""Lower and upper limit of a share."""
Rates = Annotated[tuple[Rate, Rate], AfterValidator(_in_order)]
"""Lower and upper limit of a positive number."""
Unique = AfterValidator(_unique)
"""A list in which no value is given twice."""
Pattern = Annotated[str, AfterValidator(_expanded)]
"""A path, or paths with a pattern: ~ and $VARIABLE are expanded. URLs and pipe: are left as they are."""
FilePath = Annotated[Pattern, AfterValidator(_single)]
"""A single path; ~ and $VARIABLE are expanded."""


def without(values: dict[str, Any], key: str, default: Any) -> dict[str, Any]:
    """A section's values without a newer key that has its default, so that recorded values stay what they were."""
    if values.get(key) == default:
        del values[key]
    return values


class Section(BaseModel):
    """Base of all sections: immutable; unknown keys are errors. In a mapping of names, null removes an entry."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(values, Mapping):
            return handler(values)
        fields = {field.alias or name: (name, field.annotation) for name, field in cls.model_fields.items()}
        values = {
            key: _without_null(value, fields[key][1]) if key in fields else value for key, value in values.items()
        }
        section = handler(values)
        problem = PydanticCustomError("yaml_truth", "YAML reads yes, no, on and off as true and false")
        errors = [
            InitErrorDetails(type=problem, loc=(key, *path), input=value)
            for key, (name, _) in fields.items()
            if key in values
            for path, value in _lost_bools(values[key], getattr(section, name))
        ]
        if errors:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return section


def _without_null(value: Any, annotation: Any) -> Any:
    """A mapping without its null entries, if its type has names as keys and does not allow null."""
    if not isinstance(value, Mapping) or get_origin(annotation) is not dict:
        return value
    inner = get_args(annotation)[1]
    if inner is Any or type(None) in get_args(inner):
        return value
    return {name: _without_null(item, inner) for name, item in value.items() if item is not None}


def _lost_bools(value: Any, result: Any) -> Iterator[tuple[tuple[str | int, ...], bool]]:
    """Paths of bools that were taken for numbers, which pydantic does."""
    if isinstance(value, bool) and not isinstance(result, bool):
        yield (), value
    pairs: Any = ()
    if isinstance(value, list | tuple) and isinstance(result, list | tuple):
        pairs = enumerate(zip(value, result, strict=False))
    elif isinstance(value, Mapping) and isinstance(result, Mapping):
        pairs = ((name, (item, result.get(name))) for name, item in value.items())
    for name, pair in pairs:
        yield from (((name, *path), lost) for path, lost in _lost_bools(*pair))
