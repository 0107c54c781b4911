"""The base class of all configuration sections, and the types that several sections share.

A section is a pydantic model: its fields are the keys, the docstring below a field is its description in
`config/README.md` and in the JSON schema.
"""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def _in_order(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise PydanticCustomError("order", "The smaller value must come first")
    return limits


Shares = Annotated[tuple[Share, Share], AfterValidator(_in_order)]
"""Lower and upper limit of a share."""
Rates = Annotated[tuple[Rate, Rate], AfterValidator(_in_order)]
"""Lower and upper limit of a positive number."""


class Section(BaseModel):
    """Base of all sections: immutable; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
