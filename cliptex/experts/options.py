"""Validate an expert's `network` and `training` options."""

from typing import Any, TypeVar

from pydantic import ValidationError

from cliptex.config import Section
from cliptex.tasks.base import invalid_options

Options = TypeVar("Options", bound=Section)


def parse_options(model: type[Options], values: dict[str, Any], where: str, section: str = "experts.*") -> Options:
    """`values` as `model`. where: "network" or "training" of `section`. Raises CliptexError that names the key."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise invalid_options(error, f"{section}.{where}", model.model_fields) from error
