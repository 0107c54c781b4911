"""Run `cliptex check` before the first job, once per configuration and code. Imports nothing heavy.

The check imports torch and the plugins, which takes seconds, so the workflow runs it in a process of its own and keeps
the digest of what it accepted in the user's cache.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from cliptex.config import Config
from cliptex.core.errors import ConfigError
from cliptex.core.files import sha256_json
from cliptex.core.provenance import code_sha256, versions
from cliptex.experts.options import problems

CHECKED = (
    "backbone",
    "experts",
    "label_stores",
    "student",
    "models",
    *(
        f"train.{key}"
        for key in ("heads", "multi_scale", "multi_scale_channels", "multi_scale_rates", "watch.zero_shot")
    ),
    *(f"{section}.benchmarks" for section in ("probes", "zeroshot", "finetune")),
    "zeroshot.retrieval",
    "plugins",
)
"""The keys of the configuration that `cliptex.cluster.check` reads."""


def require_checked(config: Config) -> None:
    """Raise ConfigError with the mistakes that `cliptex check` finds.

    What needs no torch is checked at every start. The rest of an accepted configuration is not checked again, unless it
    has plugins, which may change.
    """
    if found := [f"{'.'.join(path)}: {problem}" for path, problem in problems(config)]:
        raise ConfigError(found)
    text = config.subset(*CHECKED)
    accepted = _cache_dir() / sha256_json([json.loads(text), code_sha256(), versions()])
    if accepted.exists():
        return
    command = [sys.executable, "-m", "cliptex", "check", "--config", text]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
    # 1: mistakes of the configuration. Other codes: this machine cannot check, for example a login node without torch
    if result.returncode == 1:
        lines = [line.partition("error: ")[2] for line in result.stderr.splitlines()]
        raise ConfigError(list(filter(None, lines)))
    if result.returncode == 0 and not config.plugins:
        try:
            accepted.parent.mkdir(parents=True, exist_ok=True)
            accepted.touch()
        except OSError:  # it is checked again by the next command
            pass


def _cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "cliptex" / "checked"
