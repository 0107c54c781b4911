"""An expert's `network` and `training` options, checked."""

from typing import Any, TypeVar

from pydantic import ValidationError

from cliptex.config import Section
from cliptex.core.errors import CliptexError

Options = TypeVar("Options", bound=Section)


def parse_options(model: type[Options], values: dict[str, Any], where: str, section: str = "experts.*") -> Options:
    """`values` as `model`; raises CliptexError naming the wrong key. where: "network" or "training" of `section`."""
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
