"""Names of the result files of evaluations. Imports nothing heavy: the workflow needs them to plan its jobs."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cliptex.config import Config, FineTuning
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.evaluation.probes.tasks import probe_task, tasks_of
from cliptex.evaluation.protocols.resolve import Entry, protocol_of


def heads(benchmark: str, values: Mapping[str, Any] = MappingProxyType({})) -> list[str]:
    """Names of a benchmark's heads, e.g. `["linear", "deeplabv3", "pspnet"]`; one result file each.
    benchmark: a module in cliptex/benchmarks/, or "package.module:Class". values: its entry in `probes.benchmarks`."""
    return list(protocol_of(benchmark, values).heads)


def kinds(benchmark: str) -> list[str]:
    """Suffixes of the files that each head of a benchmark writes, such as `json`."""
    has_thumbnails = any(task.has_thumbnails for task in tasks_of(benchmark).values())
    return ["json", "per_image.npz", *(["thumbnails.npz"] if has_thumbnails else [])]


def probe_files(config: Config, benchmark: str) -> list[Path]:
    """The result files of a benchmark's probes: baselines and models, seeds, heads, in this order."""
    models = [*config.probes.baselines, *(config.probes.models or config.models)]
    return [
        paths.probe(benchmark, model, seed) / f"{head}.json"
        for model in models
        for seed in config.seeds
        for head in heads(benchmark, config.probes.benchmarks.get(benchmark, {}))
    ]


def tuned_heads(benchmark: str, protocol: Entry, options: FineTuning) -> dict[str, list[str]]:
    """Name of a head -> its tasks, for heads that can be trained with an encoder.
    Raises CliptexError if there are none."""
    tuned: dict[str, list[str]] = {}
    for task in protocol.tasks:
        for name, head in protocol.section(task).heads.items():
            if head.kind in probe_task(task).tunable and (not options.heads or name in options.heads):
                tuned.setdefault(name, []).append(task)
    if missing := [name for name in options.heads if name not in tuned]:
        raise CliptexError(
            f"finetune.benchmarks.{benchmark}.heads: {missing[0]!r} is not a head of protocol"
            f" {protocol.protocol!r} that can be trained with an encoder"
        )
    if not tuned:
        raise CliptexError(
            f"finetune.benchmarks.{benchmark}: protocol {protocol.protocol!r} has no head that can be trained with an"
            " encoder; remove the benchmark"
        )
    return tuned


def tuned_models(config: Config) -> list[str]:
    """Baselines and models that are fine-tuned."""
    return [*config.finetune.baselines, *(config.probes.models or config.models)]


def finetune_files(config: Config, benchmark: str) -> list[Path]:
    """The result files of fine-tuning on a benchmark: baselines and models, seeds, heads, in this order."""
    protocol = protocol_of(benchmark, config.probes.benchmarks.get(benchmark, {}))
    names = tuned_heads(benchmark, protocol, config.finetune.benchmarks[benchmark])
    return [
        paths.finetuned(benchmark, model, seed) / f"{head}.json"
        for model in tuned_models(config)
        for seed in config.seeds
        for head in names
    ]
