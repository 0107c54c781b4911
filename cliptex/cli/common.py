"""How a function becomes a command, and what several commands share."""

import inspect
import re
from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer

from cliptex.core.errors import CliptexError
from cliptex.core.redact import escape_controls

if TYPE_CHECKING:
    from cliptex.config import Config

Index = Annotated[int, typer.Option(min=0)]
Count = Annotated[int, typer.Option(min=1)]
Seed = Annotated[int, typer.Option(min=0, help="Random seed.")]
ConfigFile = Annotated[str, typer.Option("--config", help="YAML file, or JSON text that starts with {.")]
CONFIG = "config/config.yaml"


def documented(function: Callable[..., Any]) -> str:
    """Describe a command's options to typer by the function's signature and docstring, and return its help text.

    A parameter is an option unless its annotation has a `typer.Argument`. Its help text is that of the annotation, or
    the line `name: text` below `Args:` in the docstring. Raises TypeError for a line that fits no parameter.
    """
    help_text, _, lines = (inspect.getdoc(function) or "").partition("\n\nArgs:\n")
    texts = dict(re.findall(r"^ +(\w+): (.+)$", lines, re.MULTILINE))
    signature = inspect.signature(function)
    parameters = []
    for name, parameter in signature.parameters.items():
        annotation = parameter.annotation
        if annotation is not typer.Context:
            kind, *infos = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
            info = copy(infos[0]) if infos else typer.Option()
            info.help = texts.pop(name, info.help)
            annotation = Annotated[kind, info]
        parameters.append(parameter.replace(annotation=annotation))
    if texts:
        raise TypeError(f"{function.__name__}: its docstring describes no parameter of it: {', '.join(texts)}")
    function.__signature__ = signature.replace(parameters=parameters)
    return help_text


def load_config(config_file: str) -> "Config":
    """The checked configuration. Imported here, since pydantic's models take longer than `cliptex --help` may."""
    from cliptex.config import Config

    return Config.load(config_file)


def load_config_with_protocols(config_file: str) -> "Config":
    """The checked configuration, in which every benchmark has the values of its protocol in place of its name."""
    from cliptex.evaluation.protocols.resolve import folders_near, with_protocols

    return with_protocols(load_config(config_file), folders_near(config_file))


def require_store(config: "Config", name: str, option: str = "--store") -> str:
    """`name`. Raises CliptexError if `label_stores` has no such entry."""
    if name not in config.label_stores:
        raise CliptexError(f"{option}: {name!r} is not one of {sorted(config.label_stores)}")
    return name


def echo(text: str) -> None:
    """Print text that may contain untrusted parts: keys, error messages, class names."""
    typer.echo(escape_controls(text))
