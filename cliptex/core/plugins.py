"""Find a task, an expert or a benchmark by name: a module of ours, or a user's own by import path."""

import importlib
import os
from typing import Any

from cliptex.core.errors import CliptexError


def find(kind: str, name: str) -> Any:
    """Return the class for `name`.

    kind: "tasks", "experts" or "benchmarks". name: a module in `cliptex/<kind>/`, which holds exactly one class
    named in its `PLUGIN`, or "package.module:Class" for a class outside the package.
    Raises CliptexError when there is none.
    """
    module_name, _, attribute = name.partition(":") if ":" in name else (f"cliptex.{kind}.{name}", "", "PLUGIN")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise CliptexError(
                f"{kind}: {name!r} is neither a module of cliptex/{kind}/ nor an importable 'package.module:Class';"
                " a module of your own must be installed, or its folder be in PYTHONPATH"
            ) from error
        raise
    if not hasattr(module, attribute):
        raise CliptexError(f"{kind}: module {module_name!r} has no {attribute!r}")
    return getattr(module, attribute)


def put_on_path(folders: list[str]) -> None:
    """Let the processes that this one starts import modules from `folders`, before all others."""
    os.environ["PYTHONPATH"] = os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])
