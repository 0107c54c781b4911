"""Load tasks, experts and benchmarks by name: built-in modules, or the user's own classes by import path."""

import difflib
import importlib
import os
import re
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from cliptex.core.errors import CliptexError

BASES = {
    "tasks": "cliptex.tasks.base.Task",
    "experts": "cliptex.experts.base.Expert",
    "benchmarks": "cliptex.benchmarks.base.Benchmark",
    "probe tasks": "cliptex.evaluation.probes.base.ProbeTask",
}
"""Kind of plugin -> the class that its plugins extend."""
_own_benchmarks: dict[str, str] = {}


def name_benchmarks(own: Mapping[str, str]) -> None:
    """Let `find` know the benchmarks outside the package by their names. own: name -> "package.module:Class"."""
    _own_benchmarks.update(own)


def find(kind: str, name: str) -> Any:
    """Return the class of a plugin.

    kind: a key of `BASES`, or a package in `cliptex/`. name: a module in `cliptex/<kind>/`, whose `PLUGIN` is the
    class, or "package.module:Class" for a class outside the package, or a name given to `name_benchmarks`, which the
    class then has as its `name`. Raises CliptexError if there is no such class, or if one outside the package does not
    extend the base class of its kind.
    """
    if kind == "benchmarks" and name in _own_benchmarks:
        try:
            return _named(find(kind, _own_benchmarks[name]), name)
        except CliptexError as error:
            raise CliptexError(f"benchmark_data.benchmarks.{name}.plugin: {error}") from error
    module_name, _, attribute = name.partition(":") if ":" in name else (f"cliptex.{kind}.{name}", "", "PLUGIN")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            if close := difflib.get_close_matches(name, built_in(kind), 1):
                message = f"{kind}: {name!r} is neither a module of cliptex/{kind}/ nor an importable class"
                raise CliptexError(f"{message}; did you mean {close[0]}?") from error
            raise CliptexError(
                f"{kind}: {name!r} is neither a module of cliptex/{kind}/ nor an importable 'package.module:Class';"
                " your own module must be installed, or its folder must be in PYTHONPATH"
            ) from error
        raise
    if not hasattr(module, attribute):
        raise CliptexError(f"{kind}: module {module_name!r} has no {attribute!r}")
    plugin = getattr(module, attribute)
    if ":" in name and not (isinstance(plugin, type) and issubclass(plugin, _base(kind))):
        raise CliptexError(f"{kind}: {name} does not extend {BASES[kind]}")
    return plugin


def _base(kind: str) -> type:
    module, _, name = BASES[kind].rpartition(".")
    return getattr(importlib.import_module(module), name)


@cache
def _named(plugin: type, name: str) -> type:
    """The class itself if it has this `name`, else a subclass that has: a class may read several data sets."""
    return plugin if getattr(plugin, "name", None) == name else type(plugin.__name__, (plugin,), {"name": name})


@cache
def built_in(kind: str) -> tuple[str, ...]:
    """Names of the plugins in `cliptex/<kind>/`, without importing them."""
    files = sorted((Path(__file__).parent.parent / kind).glob("*.py"))
    return tuple(file.stem for file in files if re.search(r"^PLUGIN\b", file.read_text(encoding="utf-8"), re.M))


def put_on_path(folders: Iterable[str]) -> None:
    """Put `folders` first on the Python path of all processes that this one starts, and last on its own."""
    new = [folder for folder in folders if folder not in os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    if new:
        os.environ["PYTHONPATH"] = os.pathsep.join([*new, *filter(None, [os.environ.get("PYTHONPATH")])])
    sys.path += [folder for folder in new if folder not in sys.path]
