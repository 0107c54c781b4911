"""The probes: heads trained on a frozen encoder. Which heads a benchmark has follows from its protocol.

Imports nothing heavy: the workflow asks for the heads to know a job's outputs.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from cliptex.core import plugins
from cliptex.evaluation.protocols import protocol_of


def heads(benchmark: str, values: Mapping[str, Any] = MappingProxyType({})) -> list[str]:
    """Names of a benchmark's heads, e.g. `["linear", "deeplabv3", "pspnet"]`; one result file each.

    benchmark: a module in cliptex/benchmarks/, or "package.module:Class". values: its entry in `probes.benchmarks`.
    """
    return list(protocol_of(benchmark, values).heads)


def kinds(benchmark: str) -> list[str]:
    """Endings of the files that each head of a benchmark writes, such as `json`."""
    dense = "classification" not in plugins.find("benchmarks", benchmark).tasks
    return ["json", "per_image.npz", *(["thumbnails.npz"] if dense else [])]
