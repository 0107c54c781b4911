"""Where a result comes from: versions, code state, configuration."""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cliptex
from cliptex.core.files import sha256_file, sha256_json

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


@cache
def _code_sha256() -> str:
    """A digest of all modules of the package: the same for a clone and what is installed from it."""
    root = Path(cliptex.__file__).parent
    return sha256_json({path.relative_to(root).as_posix(): sha256_file(path) for path in root.rglob("*.py")})


def code(source: dict[str, Any]) -> str | None:
    """What tells the code of a result: `git describe`, or else the beginning of the digest of the modules."""
    return source.get("git") or (source.get("code_sha256") or "")[:12] or None


def versions() -> dict[str, str]:
    """The package and its commit or digest, Python, the system, and what computes; nothing of it is imported."""
    git = _git()
    found = {"cliptex": f"{cliptex.__version__} ({f'commit {git}' if git else f'modules {_code_sha256()[:12]}'})"}
    found["python"] = platform.python_version()
    found["system"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    return found | _installed(("snakemake", *PACKAGES, "mmcv", "mmcv-lite", "pyarrow"))


def _installed(names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def provenance(config: dict[str, Any]) -> dict[str, Any]:
    """What every result JSON holds under `provenance`: versions, code, configuration (docs/results-json.md)."""
    return {
        "cliptex": cliptex.__version__,
        "git": _git(),
        "code_sha256": _code_sha256(),
        "config_sha256": sha256_json(config),
        "packages": _installed(PACKAGES),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
