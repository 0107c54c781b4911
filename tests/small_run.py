"""Snakemake on config/test.yaml; one configuration laid over another."""

import os
import subprocess
import sys
from pathlib import Path

from forked_jobs import forked

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


def environment() -> dict[str, str]:
    """For runs whose jobs are forks of one process (`forked_jobs`)."""
    return {**os.environ, "PATH": os.pathsep.join(map(str, [forked("cliptex").parent, BIN, os.environ["PATH"]]))}


def snakemake(directory, *arguments, cores=2):
    program = forked("snakemake") if "--dry-run" in arguments else BIN / "snakemake"
    command = [program, "--configfile", ROOT / "config/test.yaml", "--cores", str(cores)]
    command += ["--directory", directory, "--snakefile", ROOT / "Snakefile", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment(), cwd=ROOT)


def merged(base: dict, over: dict) -> dict:
    """`over` laid over `base`, as Snakemake does with several --configfile."""
    out = dict(base)
    for key, value in over.items():
        out[key] = merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out
