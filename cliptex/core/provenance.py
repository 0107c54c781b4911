"""Provenance of results: versions, state of the code, digest of the configuration."""

import os
import platform
import resource
import subprocess
import time
from collections import Counter, defaultdict
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cliptex
from cliptex.core.errors import CliptexError
from cliptex.core.files import sha256_file, sha256_json, write_json

PACKAGES = ("torch", "torchvision", "open_clip_torch", "transformers", "timm", "mmsegmentation", "numpy", "pillow")


def _source_dir() -> Path:
    """The folder that has the package in it; for an installed package whose job a clone's workflow has started, and
    whose modules are the same, the clone (`CLIPTEX_CODE`, set by workflow/rules/common.smk)."""
    expected, _, clone = os.environ.get("CLIPTEX_CODE", "").partition(":")
    return Path(clone) if clone and expected == code_sha256() else Path(cliptex.__file__).parent.parent


@cache
def _git() -> str | None:
    """`git describe` of the source tree; None if the package was installed without one."""
    source_dir = _source_dir()
    if not (source_dir / ".git").exists():
        return None
    command = ["git", "-C", str(source_dir), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


@cache
def code_sha256(package_dir: Path = Path(cliptex.__file__).parent) -> str:
    """A digest of all modules of the package in `package_dir`, equal for a clone and an installation of it."""
    return sha256_json(
        {path.relative_to(package_dir).as_posix(): sha256_file(path) for path in package_dir.rglob("*.py")}
    )


def require_code(expected: str, planned_dir: str, package_dir: Path = Path(cliptex.__file__).parent) -> None:
    """Raise CliptexError unless the digest of the package is `expected`, that of the code in `planned_dir`.

    A workflow plans with the modules of its clone, and its jobs run the installed package.
    """
    if code_sha256(package_dir) != expected:
        raise CliptexError(
            f"{package_dir}: the installed package differs from the workflow's, {planned_dir}/cliptex; run: pip install"
            f" {planned_dir}   and then the same command again"
        )


def code(source: dict[str, Any]) -> str | None:
    """Identifier of the code of a result: `git describe`, else the first digits of the digest of the modules."""
    return source.get("git") or (source.get("code_sha256") or "")[:12] or None


def versions() -> dict[str, str]:
    """Versions of the package (with commit or digest), Python, the system and the libraries, without importing them."""
    git = _git()
    out = {"cliptex": f"{cliptex.__version__} ({f'commit {git}' if git else f'modules {code_sha256()[:12]}'})"}
    out["python"] = platform.python_version()
    out["system"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    return out | installed(("snakemake", *PACKAGES, "mmcv", "mmcv-lite", "pyarrow"))


def installed(names: tuple[str, ...]) -> dict[str, str]:
    """Versions of those distributions that are installed."""
    out = {}
    for name in names:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out


def provenance(config: dict[str, Any]) -> dict[str, Any]:
    """The value of `provenance` in every result JSON: versions, code, configuration (docs/results-json.md)."""
    return {
        "cliptex": cliptex.__version__,
        "git": _git(),
        "code_sha256": code_sha256(),
        "config_sha256": sha256_json(config),
        "packages": installed(PACKAGES),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def machine() -> str:
    """Processor, usable cores, memory and NVIDIA GPUs of this machine, as far as Linux states them."""

    def stated(path: Path, key: str) -> str:
        with suppress(OSError):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
        return ""

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [stated(Path("/proc/cpuinfo"), "model name") or platform.machine(), f"{cores} core{'s' * (cores != 1)}"]
    if kilobytes := stated(Path("/proc/meminfo"), "MemTotal").removesuffix(" kB"):
        parts.append(f"{int(kilobytes) / 2**20:.0f} GB")
    gpus = Counter(stated(path, "Model") for path in Path("/proc/driver/nvidia/gpus").glob("*/information"))
    parts += [f"{number} × {name}" for name, number in gpus.items()]
    return ", ".join(" ".join(part.split()) for part in parts)


def record_usage(path: Path) -> None:
    """Write the processor seconds, user and system, that this process and its subprocesses have taken so far, the time
    and the machine. A file that cannot be written is left out: it is no result."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(one.ru_utime + one.ru_stime for one in used) + _living_descendants_seconds()
    with suppress(OSError):
        record = {"processor_seconds": round(seconds, 2), "ended": round(time.time(), 1), "machine": machine()}
        write_json(path, record)


def _living_descendants_seconds() -> float:
    """CPU seconds of processes below this one that have not ended, and of their ended children: of Python's fork
    server, whose children are the loader's workers. 0 without /proc."""
    children, ticks = defaultdict(list), {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # the name, in parentheses, may hold spaces; then state, parent, ..., and from the 12th four times
            _, parent, *rest = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            children[int(parent)].append(int(path.parent.name))
            ticks[int(path.parent.name)] = sum(map(int, rest[9:13]))
    total, below = 0, [*children[os.getpid()]]
    while below:
        process = below.pop()
        total += ticks[process]
        below += children[process]
    return total / os.sysconf("SC_CLK_TCK")
