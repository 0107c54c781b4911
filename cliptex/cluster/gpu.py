"""Whether PyTorch can use the GPUs that a machine or a job has, found out without loading it where that will do."""

import importlib.util
import logging
import os
import re
from pathlib import Path

from cliptex.core.errors import CliptexError

log = logging.getLogger("cliptex")
DRIVERS = {"/dev/nvidiactl": "CUDA", "/dev/kfd": "ROCm"}
"""Device file that a loaded driver makes, and the build of PyTorch that goes with it."""


def driver() -> str | None:
    """ "CUDA" or "ROCm" where this machine has the driver of such a GPU loaded."""
    return next((build for path, build in DRIVERS.items() if Path(path).exists()), None)


def torch_build() -> tuple[str, str]:
    """PyTorch's version, and what it was built for: "CUDA 12.4", "ROCm 6.2" or "CPU". ("", "") without PyTorch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return "", ""
    text = (Path(spec.origin).parent / "version.py").read_text()
    found = dict(re.findall(r"^(\w+)(?:: [^=]+)? = '([^']+)'", text, re.M))
    for key, build in (("cuda", "CUDA"), ("hip", "ROCm")):
        if key in found:
            return found["__version__"], f"{build} {found[key]}"
    return found.get("__version__", "?"), "CPU"


def allotted() -> bool:
    """Whether SLURM gave this job a GPU."""
    return any(os.environ.get(name) for name in ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS"))


def unseen() -> str | None:
    """What says that there is a GPU where none is to be seen; None where nothing does, or PyTorch has one."""
    names = ["SLURM_JOB_GPUS", "SLURM_STEP_GPUS", *(["CUDA_VISIBLE_DEVICES"] if "SLURM_JOB_ID" in os.environ else [])]
    given = {name: os.environ.get(name, "") for name in names}
    told = [f"{name}={value}" for name, value in given.items() if value not in ("", "-1", "NoDevFiles")]
    if not told or driver() is not None:
        return None
    import torch

    return None if torch.cuda.is_available() else f"{told[0]}, but the driver of a GPU is not to be seen here"


def problem() -> str | None:
    """Why PyTorch cannot use the GPU whose driver is loaded here; None where it can, or there is none."""
    present = driver()
    if present is None:
        return None
    version, build = torch_build()
    if not build.startswith(present):
        return f"torch {version or 'is missing'} ({build or 'no build'}) beside a GPU that needs a {present} build"
    import torch

    if not torch.cuda.is_available():
        return f"torch {version} ({build}) cannot use the GPU here: its driver may be too old, or no GPU is allotted"
    return None


def require_allotted() -> None:
    """Raise CliptexError in a SLURM job with a GPU that PyTorch cannot use, before it computes for days without.

    Where no driver is to be seen it is a warning, for clusters to try things on have GPUs that are made up.
    """
    if reason := unseen():
        log.warning("%s: computing without; see `cliptex doctor`", reason)
    if allotted() and (reason := problem()):
        raise CliptexError(f"{reason}; install a fitting build (https://pytorch.org/get-started), see `cliptex doctor`")
