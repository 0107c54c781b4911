"""Snakemake on config/test.yaml; one configuration laid over another."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


def snakemake(directory, *arguments, cores=2):
    command = [BIN / "snakemake", "--configfile", ROOT / "config/test.yaml", "--cores", str(cores)]
    command += ["--directory", directory, "--snakefile", ROOT / "Snakefile", *arguments]
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, cwd=ROOT)


def merged(base: dict, over: dict) -> dict:
    """`over` laid over `base`, as Snakemake does with several --configfile."""
    out = dict(base)
    for key, value in over.items():
        out[key] = merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out
