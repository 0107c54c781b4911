"""Run `cliptex check` before the first job, once per configuration. Imports nothing heavy.

The check imports torch and the plugins, which takes seconds, so the workflow runs it in a process of its own and keeps
the digest of what it accepted in the user's cache.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cliptex
from cliptex.config import Config
from cliptex.core.errors import ConfigError
from cliptex.core.files import sha256_json
from cliptex.data.official.status import benchmarks_in_use
from cliptex.data.shard_paths import caption_tars
from cliptex.experts import option_checks

CHECKED = (
    *("student", "models", "train.heads", "train.multi_scale", "train.multi_scale_channels", "train.multi_scale_rates"),
    *("backbone", "experts", "label_stores", "zeroshot", "train.decoder"),
    *("train.watch.zero_shot", "probes.benchmarks", "finetune.benchmarks", "training_free"),
    *("dataset.source", "benchmark_data", "miniature.benchmarks"),
)
"""The keys of the configuration that `cliptex.cluster.check` reads."""


def light_problems(config: Config) -> Iterator[str]:
    """The mistakes that are found without torch and the user's own classes, a line each."""
    yield from (f"{'.'.join(path)}: {problem}" for path, problem in option_checks.problems(config))
    for name in benchmarks_in_use(config):
        if config.benchmark_source(name).source == "miniature" and name not in config.miniature.benchmarks:
            yield f"miniature.benchmarks: has no {name}, which is to be rendered; add its numbers of images, or drop it"
    for name, captions in config.zeroshot.retrieval.items():
        for tar in caption_tars(config, name) if captions and captions.shards else ():
            if not tar.is_file():
                yield f"zeroshot.retrieval.{name}.shards: {tar} does not exist"


def require_checked(config: Config) -> None:
    """Raise ConfigError with the mistakes that `cliptex check` finds.

    What needs no torch is checked at every start. The rest of an accepted configuration is not checked again, unless it
    has classes of the user's own, which may change.
    """
    if found := list(light_problems(config)):
        raise ConfigError(found)
    accepted = accepted_mark(config)
    if accepted.exists():
        return
    command = [sys.executable, "-m", "cliptex", "check", "--config", config.subset(*CHECKED)]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
    # 1: mistakes of the configuration. Other codes: this machine cannot check, for example a login node without torch
    if result.returncode == 1:
        lines = [line.partition("error: ")[2] for line in result.stderr.splitlines()]
        raise ConfigError(list(filter(None, lines)))
    if result.returncode == 0 and not _has_own_classes(config):
        try:
            accepted.parent.mkdir(parents=True, exist_ok=True)
            accepted.touch()
        except OSError:  # it is checked again by the next command
            pass


def accepted_mark(config: Config) -> Path:
    """The file that is there when a configuration has been accepted."""
    return _cache_dir() / sha256_json([cliptex.__version__, version("open_clip_torch"), _imported(config)])


def _imported(config: Config) -> list[Any]:
    """What `cliptex check` tests beyond `light_problems`; configurations that differ elsewhere share a result."""
    models = [model for model in config.models.values() if model.interpolate is None]
    heads = {(model.multi_scale, model.heads) for model in models if model.tasks}
    train = config.train.model_dump(mode="json", include={"decoder", "heads", "multi_scale", "multi_scale_channels"})
    rates, student = config.train.multi_scale_rates, config.student.model_dump(mode="json")
    names = [config.zeroshot.benchmarks, config.train.watch.zero_shot, benchmarks_in_use(config)]
    names += [config.training_free.benchmarks] if config.training_free.benchmarks else []
    return [bool(models), sorted(heads, key=str), train, rates, student, names]


def _has_own_classes(config: Config) -> bool:
    plugins = [expert.plugin or "" for expert in config.experts.values()]
    plugins += config.own_benchmarks.values()
    return any(":" in name for name in [*plugins, *(store.task for store in config.label_stores.values())])


def _cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "cliptex" / "checked"
