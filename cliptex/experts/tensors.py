"""Read the weight files of others: tensors only, finite, and at a cost that the bytes of the file bound.

Holds   nothing in a file runs; a file that unpacks to more than its own size is refused before memory is taken.
"""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from cliptex.core.errors import CliptexError
from cliptex.core.files import read_error, read_json, require_file
from cliptex.core.finite import require_finite

MAX_EXPANSION = 2
"""Largest allowed ratio of the tensors' bytes to those of their file; PyTorch and safetensors do not compress."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HOLE = 64 << 20
"""Bytes of holes, which occupy no disk, that a file may have."""
CODE_CONFIGS = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
"""Files in which transformers looks for the names of classes and of Python files."""


class _File(io.BufferedReader):
    """Reads what the file has: Python takes the memory of all that is asked for, which may be a length in the file."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > HOLE:
            size = min(size, os.fstat(self.fileno()).st_size)
        return super().read(size)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Name -> tensor of a safetensors file or of a PyTorch file (read with `weights_only=True`), told apart by content.

    The state dict may be nested under `model` or `state_dict`; a prefix `module.` of its names is removed. Raises
    CliptexError, naming the tensor, if the file cannot be read, has neither format, holds anything but finite
    floating-point weights and integer counters, or would take more memory than its size suggests.
    """
    path = Path(path)
    require_file(path, "train the network that it belongs to, or correct its path")
    require_bounded(path)
    try:
        with path.open("rb") as file:
            is_safetensors = file.read(9)[8:] == b"{"
        if is_safetensors:
            with safe_open(path, framework="pt") as file:
                state: Any = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        else:
            with _File(io.FileIO(path)) as file:  # given a path, torch.load would choose the format by its suffix
                state = torch.load(file, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise CliptexError(f"{path}: damaged safetensors file ({error}); copy it again") from error
    except (OSError, MemoryError) as error:
        raise read_error(error, path, "a file of tensors", "copy it again") from error
    except Exception as error:  # torch.load raises many types of errors for invalid files
        raise CliptexError(f"{path}: {refused(error)}") from error
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise CliptexError(f"{path}: not a state dict (names and tensors); save the network's `state_dict()`")
    tensors: dict[str, torch.Tensor] = {}
    for given, tensor in state.items():
        name = str(given).removeprefix("module.")
        if name in tensors:
            raise CliptexError(f"{path}: has both {name} and module.{name}; save the state dict of one network")
        tensors[name] = tensor.detach()
    require_finite_weights(tensors, path)
    return tensors


def require_bounded(path: Path) -> None:
    """Raise CliptexError for a zip whose members are larger than the file (compressed, or overlapping), a TorchScript
    program, and a file of holes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    if is_zip:
        try:
            with zipfile.ZipFile(path) as archive:
                names, unpacked = archive.namelist(), sum(member.file_size for member in archive.infolist())
        except (zipfile.BadZipFile, NotImplementedError, ValueError):
            return  # PyTorch says what is wrong with it
        if any(name.endswith("/constants.pkl") for name in names):
            raise CliptexError(
                f"{path}: a TorchScript archive, i.e. a program, which is not executed here; use weights as safetensors"
                " or, for a published CLIP, the name of its tag"
            )
        if unpacked > MAX_EXPANSION * size:
            raise CliptexError(
                f"{path}: its members unpack to {unpacked:,} bytes, the file has {size:,}; use the file as torch.save"
                " writes it, which is not compressed"
            )
    if (holes := _holes(path, size)) > max(HOLE, size // 2):
        raise CliptexError(f"{path}: {holes:,} of its {size:,} bytes were never written; copy the file again")


def _holes(path: Path, size: int) -> int:
    """Bytes of a file that occupy no disk; 0 where the file system cannot tell."""
    holes, position = 0, 0
    with path.open("rb") as file:
        try:
            while position < size:
                start = os.lseek(file.fileno(), position, os.SEEK_HOLE)
                if start >= size:
                    break
                try:
                    position = os.lseek(file.fileno(), start, os.SEEK_DATA)
                except OSError:  # nothing but a hole until the end
                    position = size
                holes += position - start
        except OSError:
            return 0
    return holes


def require_finite_weights(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Raise CliptexError for a tensor that no network is trained with, and for values that are not finite."""
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
            raise CliptexError(f"{path}: {name} is not a plain tensor; save the network's `state_dict()`")
        if tensor.dtype not in (*FLOATS, torch.int32, torch.int64):
            raise CliptexError(
                f"{path}: {name} is {tensor.dtype}; only floating-point weights and integer counters are read, so use"
                " the file that is not quantised"
            )
    # before the values are read: a few bytes can be strided to any shape, and be shared by any number of tensors
    total, size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()), path.stat().st_size
    if total > MAX_EXPANSION * size:
        raise CliptexError(f"{path}: its tensors have {total:,} bytes, the file {size:,}; save contiguous tensors")
    for name, tensor in tensors.items():
        if tensor.dtype in FLOATS:
            require_finite(tensor, f"{path}: {name}", "use another copy, or weights from before training diverged")


def load_strictly(module: torch.nn.Module, tensors: dict[str, torch.Tensor], problem: str, remedy: str) -> None:
    """Load tensors into `module`. Raises CliptexError, `problem: what differs; remedy`, unless names, shapes and kinds
    of numbers are the same."""
    expected = module.state_dict()
    problems = [f"missing {name}" for name in expected if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in expected]
    for name, own in expected.items():
        given = tensors.get(name, own)
        if own.shape != given.shape:
            problems.append(f"{name} is {list(given.shape)} instead of {list(own.shape)}")
        elif own.is_floating_point() != given.is_floating_point():
            problems.append(f"{name} is {given.dtype} instead of {own.dtype}")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CliptexError(f"{problem}: {', '.join(problems[:3])}{more}; {remedy}")
    if any(own.is_meta for own in expected.values()):
        module.to_empty(device="cpu")  # a copy: sums over the file's own, unaligned memory are made in another order
    module.load_state_dict(tensors)


def refused(error: Exception) -> str:
    """Message for a file that PyTorch cannot read with `weights_only=True`; PyTorch's own advises to disable that."""
    return (
        f"damaged, or not a safetensors or PyTorch file of tensors only ({type(error).__name__}); copy it again, or, if"
        " you trust it, save its tensors as safetensors: pickled code is not executed here"
    )


def require_no_code(folder: Path) -> None:
    """Raise CliptexError if a configuration of transformers in `folder` names Python code, here or on a hub."""
    for path in (Path(folder) / name for name in CODE_CONFIGS):
        if path.exists():
            require_names_no_code(read_json(path), str(path))


def require_names_no_code(value: Any, where: str) -> None:
    """Raise CliptexError if a configuration of transformers names Python code: classes in a file next to it
    (`auto_map`), or kernels of a hub."""
    if isinstance(value, dict):
        for key, inner in value.items():
            kernel = key.endswith("_implementation") and "/" in str(inner)
            if kernel or (key in ("auto_map", "trust_remote_code", "custom_pipelines") and inner):
                raise CliptexError(
                    f"{where}: {key} names code, and code of a model is never executed; remove the key if the model"
                    " works without, or use one with transformers' own classes"
                )
            require_names_no_code(inner, where)
    elif isinstance(value, list):
        for inner in value:
            require_names_no_code(inner, where)
