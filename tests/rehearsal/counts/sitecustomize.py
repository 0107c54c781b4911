"""On the path of all processes of a rehearsal: the official numbers of samples become those of the small archives.

Nothing else of the package is changed, and no configuration can do this. Python imports this module at its start.
"""

import json
import os
import sys
from importlib.machinery import PathFinder

COUNTS = json.loads(os.environ.get("REHEARSAL_COUNTS", "{}"))
"""Benchmark -> part -> number of samples."""


class Counted:
    """Finds the modules of `COUNTS`, and sets the numbers once one is imported."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        package, _, benchmark = name.rpartition(".")
        if package != "cliptex.benchmarks" or benchmark not in COUNTS:
            return None
        spec = PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            module.PLUGIN.official_counts = COUNTS[benchmark]

        spec.loader.exec_module = exec_module
        return spec


if COUNTS:
    sys.meta_path.insert(0, Counted)
