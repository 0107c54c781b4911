"""How a function becomes a command, and what several commands share."""

import inspect
import logging
import re
from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer

from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.plugins import put_on_path
from cliptex.core.redact import escape_controls

if TYPE_CHECKING:
    from cliptex.config import Config

log = logging.getLogger("cliptex")
Index = Annotated[int, typer.Option(min=0)]
Count = Annotated[int, typer.Option(min=1)]
Seed = Annotated[int, typer.Option(min=0, help="Random seed.")]
Store = Annotated[str, typer.Option(help="Name of an entry in `label_stores`.")]
Model = Annotated[str, typer.Option(help="Name of an entry in `models`.")]
ConfigFiles = Annotated[
    list[str],
    typer.Option(
        "--config",
        metavar="FILE",
        help="YAML file that overrides parts of the default configuration; several in their order, then key=value, as"
        " for Snakemake. Or a whole one as JSON.",
        show_default=False,
    ),
]
DEFAULT: list[str] = []
"""No files: the default configuration alone."""
started_in = Path()
"""Where the command was started, relative to where --directory has led; files of --config are relative to it."""
CONFIGFILE = re.compile(r'^configfile: f"\{workflow\.basedir\}/(.+)"$', re.MULTILINE)
"""How the Snakefile of a clone, or of a folder made by `cliptex init`, names a configuration file."""
VALUE = re.compile(r"[a-zA-Z_]\w*=.*", re.DOTALL)
"""What is `key=value` and no file."""


def commands_of(module: ModuleType) -> list[Callable[..., Any]]:
    """The public functions that a module defines, in its order."""
    functions = [value for name, value in vars(module).items() if inspect.isfunction(value) and name[0] != "_"]
    return [function for function in functions if function.__module__ == module.__name__]


def documented(function: Callable[..., Any]) -> str:
    """Describe a command's options to typer, and return its help text.

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


def default_files() -> list[Path]:
    """The configuration files of the Snakefile where the command was started, later ones overriding parts of earlier
    ones; without a Snakefile config/config.yaml; without that the one that comes with the package."""
    from cliptex.config import DEFAULT as DEFAULT_CONFIG

    try:
        names = CONFIGFILE.findall((started_in / "Snakefile").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        names = []
    if not names and not (started_in / DEFAULT_CONFIG).is_file():
        return [paths.SHIPPED / DEFAULT_CONFIG]
    return [started_in / name for name in names or [DEFAULT_CONFIG]]


def files_and_values(config_files: list[str]) -> tuple[list[Path], list[str]]:
    """The files of --config, and its `key=value`. A file that is not here may be one that comes with the package, such
    as config/paper.yaml."""
    values = [text for text in config_files if VALUE.fullmatch(text) and not (started_in / text).exists()]
    places = [(started_in / text, paths.SHIPPED / text) for text in config_files if text not in values]
    return [shipped if shipped.is_file() and not here.exists() else here for here, shipped in places], values


def load_config(config_files: list[str]) -> "Config":
    """The checked configuration: files, then `key=value`, over the default one, as by Snakemake; or JSON text.

    A job's JSON may be a part of a configuration. Raises CliptexError for JSON together with files.
    """
    # imported here, since pydantic's models take longer than `cliptex --help` may
    from cliptex.config import Config
    from cliptex.config.files import parse_values

    if any(text.lstrip().startswith("{") for text in config_files):
        if len(config_files) > 1:
            raise CliptexError("--config: JSON text is a whole configuration; give it alone, or write it to a file")
        return Config.load(config_files[0])
    default, *overrides = default_files()
    if not config_files and paths.SHIPPED in default.parents:
        log.info("no config/config.yaml here and no --config: the default configuration of the installed package")
    files, values = files_and_values(config_files)
    config = Config.from_files([*overrides, *files], parse_values(values), default)
    put_on_path(config.plugin_folders(started_in))
    return config


def load_config_with_protocols(config_files: list[str]) -> "Config":
    """The checked configuration, in which every benchmark has the values of its protocol in place of its name."""
    from cliptex.evaluation.protocols.resolve import with_protocols

    return with_protocols(load_config(config_files), [default_files()[0].parent / "protocols"])


def require_store(config: "Config", name: str, option: str = "--store") -> str:
    """`name`. Raises CliptexError if `label_stores` has no such entry."""
    if name not in config.label_stores:
        from cliptex.config.explain import not_one_of

        raise CliptexError(f"{option}: {not_one_of(name, config.label_stores)}")
    return name


def require_model(config: "Config", name: str, baselines: Sequence[str] = ()) -> None:
    """Raise CliptexError if a configuration with models has none of this name, and it is not a baseline."""
    if config.models and name not in (*config.models, *baselines):
        from cliptex.config.explain import not_one_of

        raise CliptexError(f"models: {not_one_of(name, [*config.models, *baselines])}")


def echo(text: str) -> None:
    """Print text that may contain untrusted parts: keys, error messages, class names."""
    typer.echo(escape_controls(text))
