"""GPUs of this machine or job: whether PyTorch can use them, and which ones a command takes.

Imports torch only if necessary.
"""

import errno
import importlib.util
import logging
import os
import random
import re
import shutil
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from cliptex.core.errors import CliptexError

log = logging.getLogger("cliptex")
DRIVERS = {"/dev/nvidiactl": "CUDA", "/dev/kfd": "ROCm"}
"""Device file of each loaded driver, and the PyTorch build for it."""
NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")
"""The driver's own list, for containers without an nvidia-smi that works."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
WAIT_S = 1.0
"""Mean time between two looks for a free GPU."""


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


def cards() -> list[str]:
    """UUIDs of the NVIDIA GPUs, or of their MIG devices, that CUDA_VISIBLE_DEVICES leaves to this process.

    Its numbers are those of nvidia-smi. Empty without an NVIDIA driver. Raises CliptexError if it names an unknown GPU.
    """
    gpus = _listed()
    visible = os.environ.get(VISIBLE)
    if not gpus or visible is None:
        return [card for parts in gpus.values() for card in parts]
    chosen: list[str] = []
    for name in filter(None, map(str.strip, visible.split(","))):
        if name in ("-1", "NoDevFiles"):  # CUDA ignores what follows
            break
        found = _named(name, gpus)
        if not found:
            problem = f"{VISIBLE}={visible}: no GPU {name} among the {len(gpus)} of this machine"
            raise CliptexError(f"{problem}; choose from `nvidia-smi -L`, or unset it")
        chosen += [card for card in found if card not in chosen]
    return chosen


def _listed() -> dict[str, list[str]]:
    """The UUID of each GPU in the driver's order, with the UUIDs of its MIG devices, or its own."""
    found: list[str] = []
    if shutil.which("nvidia-smi"):
        with suppress(OSError, subprocess.TimeoutExpired):
            process = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
            found = re.findall(r"UUID: ((?:GPU|MIG)-[\w/-]+)", process.stdout) if process.returncode == 0 else []
    if not found:
        texts = [path.read_text(encoding="utf-8") for path in sorted(NVIDIA_GPUS.glob("*/information"))]
        found = [name for text in texts for name in re.findall(r"GPU UUID:\s*(GPU-[\w-]+)", text)]
    gpus: dict[str, list[str]] = {}
    for name in found:
        if name.startswith("GPU-"):
            gpus[name] = []
        elif gpus:
            gpus[list(gpus)[-1]].append(name)
    return {name: parts or [name] for name, parts in gpus.items()}


def _named(name: str, gpus: dict[str, list[str]]) -> list[str]:
    """The cards of a number, or of a UUID or its beginning."""
    if name.isdecimal():
        return list(gpus.values())[int(name)] if int(name) < len(gpus) else []
    whole = next((parts for gpu, parts in gpus.items() if gpu.startswith(name)), [])
    return whole or [card for parts in gpus.values() for card in parts if card == name]


def require_cards(count: int, asked: str) -> None:
    """Raise CliptexError if `asked` needs more GPUs than there are; without any, everything runs on the CPU."""
    found = len(cards())
    if found and count > found:
        gpus = "1 GPU" if found == 1 else f"{found} GPUs"
        limit = f" in {VISIBLE}" if VISIBLE in os.environ else ""
        raise CliptexError(f"{asked}: this machine has {gpus}{limit}; ask for at most {found}")


def require_whole_gpus(count: int, asked: str) -> None:
    """Raise CliptexError if one training would get several MIG devices: CUDA shows a process only the first.

    Source: NVIDIA's Multi-Instance GPU user guide, "CUDA Device Enumeration".
    """
    if count > 1 and any(name.startswith("MIG-") for name in cards()):
        raise CliptexError(f"{asked}: CUDA lets a process use only one MIG device; ask for 1, or turn MIG off")


def take(count: int) -> list[socket.socket]:
    """Take `count` free GPUs, 0: all, wait until they are free, and set CUDA_VISIBLE_DEVICES to them.

    They are taken until the sockets are closed or the process has ended, also across exec. Does nothing without NVIDIA
    GPUs, in a process of torchrun, and in a SLURM job with no more GPUs than `count`, where nothing is left to choose.
    Call it before CUDA is initialised. Raises CliptexError if there are fewer.
    """
    if "RANK" in os.environ:
        return []
    available = cards()
    if not available or ("SLURM_JOB_ID" in os.environ and not 0 < count < len(available)):
        return []
    require_cards(count, f"--gpus {count}")
    count = count or len(available)
    require_whole_gpus(count, f"--gpus {count}")
    is_waiting = False
    while len(held := _lock(available, count)) < count:
        # all or none: two commands that each keep a part would wait for each other for ever
        for lock in held.values():
            lock.close()
        if not is_waiting:
            log.info("waiting for %d of %d GPUs: the others are used by other cliptex commands", count, len(available))
        is_waiting = True
        time.sleep(WAIT_S * random.uniform(0.5, 1.5))
    os.environ[VISIBLE] = ",".join(held)
    log.info("%s=%s", VISIBLE, os.environ[VISIBLE])
    return list(held.values())


def _lock(available: list[str], count: int) -> dict[str, socket.socket]:
    """Locks of at most `count` free cards.

    A lock is a name in Linux's abstract namespace: it needs no file, and the kernel releases it when its holder ends.
    """
    held: dict[str, socket.socket] = {}
    for card in available:
        if len(held) == count:
            break
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            lock.bind(f"\0cliptex-{card}")
        except OSError as error:
            lock.close()
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        lock.set_inheritable(True)  # torchrun replaces this process
        held[card] = lock
    return held
