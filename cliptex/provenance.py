"""Where a result comes from: versions, code state, configuration."""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cliptex
from cliptex.files import sha256_json

PACKAGES = ("torch", "torchvision", "open_clip_torch", "transformers", "timm", "mmsegmentation", "numpy", "pillow")


@cache
def _git() -> str | None:
    """`git describe` of the source tree, or None where the package is installed without one."""
    root = Path(cliptex.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def provenance(config: dict[str, Any]) -> dict[str, Any]:
    """What every result JSON holds under `provenance`: `cliptex`, `git`, `config_sha256`, `packages`, `python`."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "cliptex": cliptex.__version__,
        "git": _git(),
        "config_sha256": sha256_json(config),
        "packages": packages,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
