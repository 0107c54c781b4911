"""GPU checks: whether PyTorch can use the GPUs of this machine or job. Imports torch only if necessary."""

import importlib.util
import logging
import os
import re
from pathlib import Path

from cliptex.core.errors import CliptexError

log = logging.getLogger("cliptex")
DRIVERS = {"/dev/nvidiactl": "CUDA", "/dev/kfd": "ROCm"}
"""Device file of each loaded driver, and the PyTorch build for it."""


def loaded_driver() -> str | None:
    """ "CUDA" or "ROCm" if this machine has loaded the driver of such a GPU, else None."""
    return next((build for path, build in DRIVERS.items() if Path(path).exists()), None)


def torch_build() -> tuple[str, str]:
    """PyTorch's version and build: "CUDA 12.4", "ROCm 6.2" or "CPU". ("", "") without PyTorch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return "", ""
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    constants = dict(re.findall(r"^(\w+)(?:: [^=]+)? = '([^']+)'", text, re.M))
    for key, build in (("cuda", "CUDA"), ("hip", "ROCm")):
        if key in constants:
            return constants["__version__"], f"{build} {constants[key]}"
    return constants.get("__version__", "?"), "CPU"


def is_allocated() -> bool:
    """Whether SLURM allocated a GPU to this job."""
    return any(os.environ.get(name) for name in ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS"))


def missing_gpu() -> str | None:
    """The environment variable that announces a GPU which PyTorch cannot see, as a message; None if there is none."""
    names = ["SLURM_JOB_GPUS", "SLURM_STEP_GPUS", *(["CUDA_VISIBLE_DEVICES"] if "SLURM_JOB_ID" in os.environ else [])]
    values = {name: os.environ.get(name, "") for name in names}
    announced = [f"{name}={value}" for name, value in values.items() if value not in ("", "-1", "NoDevFiles")]
    if not announced or loaded_driver() is not None:
        return None
    import torch

    return None if torch.cuda.is_available() else f"{announced[0]}, but no GPU driver is visible here"


def unusable_gpu() -> str | None:
    """Why PyTorch cannot use the GPU whose driver is loaded; None if it can, or if no driver is loaded."""
    driver = loaded_driver()
    if driver is None:
        return None
    version, build = torch_build()
    if not build.startswith(driver):
        return f"torch {version or 'is missing'} ({build or 'no build'}) on a machine whose GPU needs a {driver} build"
    import torch

    if not torch.cuda.is_available():
        return f"torch {version} ({build}) cannot use the GPU: its driver may be too old, or no GPU is allocated"
    return None


def require_allocated_gpu() -> None:
    """Raise CliptexError in a SLURM job with a GPU that PyTorch cannot use, instead of running on the CPU for days.

    If no driver is visible it is only a warning, since test clusters have fake GPUs.
    """
    if reason := missing_gpu():
        log.warning("%s: running without a GPU; see `cliptex doctor`", reason)
    if is_allocated() and (reason := unusable_gpu()):
        remedy = "install a matching build (https://pytorch.org/get-started), see `cliptex doctor`"
        raise CliptexError(f"{reason}; {remedy}")
