"""Which heads are tuned with an encoder, and where their results lie. Imports nothing heavy: the workflow asks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cliptex.config import Config, FineTuning
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.evaluation.protocols import Entry, protocol_of

TUNABLE = {
    "semantic_segmentation": ("linear", "deeplabv3", "pspnet"),
    "detection": ("mask_rcnn", "ssd"),
    "depth": ("ridge",),
    "normals": ("ridge",),
    "classification": ("logistic",),
}
"""Task -> the kinds of heads that are trained together with an encoder."""


def tuned_heads(benchmark: str, protocol: Entry, options: FineTuning) -> dict[str, list[str]]:
    """Head -> its tasks, of the benchmark's protocol. Raises CliptexError where there is none to tune."""
    found: dict[str, list[str]] = {}
    for task in protocol.tasks:
        for name, head in getattr(protocol, task).heads.items():
            if head.kind in TUNABLE.get(task, ()) and (not options.heads or name in options.heads):
                found.setdefault(name, []).append(task)
    if missing := [name for name in options.heads if name not in found]:
        raise CliptexError(
            f"finetune.benchmarks.{benchmark}.heads: {missing[0]!r} is no head of protocol {protocol.protocol!r} that"
            " can be trained with an encoder"
        )
    if not found:
        raise CliptexError(
            f"finetune.benchmarks.{benchmark}: protocol {protocol.protocol!r} has no head that can be trained with an"
            " encoder; leave the benchmark out"
        )
    return found


def tuned_models(config: Config) -> list[str]:
    """Baselines and models that are tuned."""
    return [*config.finetune.baselines, *(config.probes.models or config.models)]


def finetune_files(config: Config, benchmark: str) -> list[Path]:
    """The result files of a benchmark: baselines and models, seeds, heads, in this order."""
    values: Mapping[str, Any] = config.probes.benchmarks.get(benchmark, {})
    heads = tuned_heads(benchmark, protocol_of(benchmark, values), config.finetune.benchmarks[benchmark])
    return [
        paths.finetuned(benchmark, model, seed) / f"{head}.json"
        for model in tuned_models(config)
        for seed in config.seeds
        for head in heads
    ]
