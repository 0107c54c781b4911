"""Validate an expert's `network` and `training` options."""

from typing import Any, TypeVar

from pydantic import ValidationError

from cliptex.config import Section
from cliptex.core.errors import CliptexError

Options = TypeVar("Options", bound=Section)


def parse_options(model: type[Options], values: dict[str, Any], where: str, section: str = "experts.*") -> Options:
    """`values` as `model`. where: "network" or "training" of `section`. Raises CliptexError that names the key."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            key = ".".join(str(part) for part in (section, where, *item["loc"]))
            if item["type"] == "extra_forbidden":
                problems.append(f"{key}: unknown key; known are {', '.join(model.model_fields)}")
            else:
                problems.append(f"{key}: {item['msg']}, got {item['input']!r}")
        raise CliptexError("; ".join(problems)) from error
