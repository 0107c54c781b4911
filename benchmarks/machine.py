"""What a figure was measured on."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def processor() -> str:
    """The processor's name; its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def commit() -> str | None:
    """`git describe` of this clone, with `-dirty` for changed files; None without git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def machine(device: str = "cpu") -> dict[str, Any]:
    """Processor, cores, versions, commit and date (UTC); the card's name for a CUDA device."""
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "device": card(device)["name"],
        "python": platform.python_version(),
        "torch": version("torch"),
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def card(device: str) -> dict[str, Any]:
    """`name` of the device and `peak_memory_mb` since the last call: of the card, or of this process on a CPU, which
    cannot be reset. The only lines of the benchmarks that need a GPU to run."""
    if device != "cuda":
        import resource

        return {"name": device, "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}
    import torch

    peak = torch.cuda.max_memory_allocated() / 2**20
    torch.cuda.reset_peak_memory_stats()
    return {"name": torch.cuda.get_device_name(), "peak_memory_mb": round(peak)}
