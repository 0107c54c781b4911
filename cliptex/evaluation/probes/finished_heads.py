"""Trained heads of a job that has not ended, kept so that a job that is killed does not train them again.

Writes  {folder of the results}/.heads/{digest}.safetensors: the tensors of one training, with the seconds that it took
        and a SHA-256 of the tensors. The digest is of everything that the training depends on.
Holds   with kept heads a result is the same, bit for bit, as without; a file of other settings has another name and is
        not read, a damaged one is trained again. All are deleted at the end of the job (`remove`).

Snakemake deletes the outputs of a killed job before it starts it again. These files are not outputs.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cliptex import versions
from cliptex.core.files import replacing

log = logging.getLogger("cliptex")
FOLDER = ".heads"
Tensors = dict[str, torch.Tensor]


@dataclass
class Keeper:
    """Where the heads of one task are kept. dependencies: JSON, all that their training depends on, but for what is
    given to `trained`. seconds: that the heads which were found had taken."""

    folder: Path
    dependencies: Mapping[str, Any]
    seconds: float = 0.0


_keeper: ContextVar[Keeper | None] = ContextVar("keeper", default=None)


@contextmanager
def keeping(results: Path, dependencies: Mapping[str, Any]) -> Iterator[Keeper]:
    """Within this context, `trained` keeps what it trains next to the results of the folder `results`."""
    keeper = Keeper(results / FOLDER, dependencies)
    token = _keeper.set(keeper)
    try:
        yield keeper
    finally:
        _keeper.reset(token)


def remove(results: Path) -> None:
    """Delete the heads that are kept in the folder `results`."""
    shutil.rmtree(results / FOLDER, ignore_errors=True)


def trained(train: Callable[[], Tensors], *dependencies: Any) -> Tensors:
    """The tensors that `train` returns, from the file of an earlier training if there is one. dependencies: what tells
    this training from others of the same task and head; see `digest`."""
    if (keeper := _keeper.get()) is None:
        return train()
    machine = [versions.PROBE, torch.__version__, *_device()]
    name = digest([json.dumps(keeper.dependencies, sort_keys=True), machine, dependencies])
    path = keeper.folder / f"{name}.safetensors"
    if (found := _read(path)) is not None:
        log.info("%s: found; not trained again", path)
        keeper.seconds += found[1]
        return found[0]
    start = time.perf_counter()
    tensors = train()
    seconds = time.perf_counter() - start
    # copies, since a file holds no two tensors that share memory
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path) as scratch:
        save_file(copies, scratch, {"seconds": repr(seconds), "sha256": digest(copies)})
    return tensors


def _device() -> list[str]:
    return [torch.cuda.get_device_name()] if torch.cuda.is_available() else ["cpu", str(torch.get_num_threads())]


def _read(path: Path) -> tuple[Tensors, float] | None:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            metadata = file.metadata() or {}
        if metadata["sha256"] != digest(tensors):
            raise ValueError("it has changed since it was written")
        return tensors, float(metadata["seconds"])
    except FileNotFoundError:
        return None
    except (SafetensorError, LookupError, ValueError, OSError) as error:
        log.warning("%s: %s; this head is trained again", path, error)
        return None


def digest(value: Any) -> str:
    """Hexadecimal SHA-256 of arrays, tensors, text, bytes, numbers, and of dataclasses, mappings and sequences of them.
    Other values count by their `repr`."""
    out = hashlib.sha256()
    _update(out, value)
    return out.hexdigest()


def _update(out: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) and value.dtype != object:
        out.update(f"array {value.dtype} {value.shape} ".encode())
        out.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    elif isinstance(value, bytes):
        out.update(b"bytes %d " % len(value))
        out.update(value)
    elif is_dataclass(value):
        _update(out, {entry.name: getattr(value, entry.name) for entry in fields(value)})
    elif isinstance(value, Mapping):
        out.update(b"mapping %d " % len(value))
        for key in sorted(value, key=repr):
            _update(out, key)
            _update(out, value[key])
    elif isinstance(value, Sequence) and not isinstance(value, str):
        out.update(b"sequence %d " % len(value))
        for item in value:
            _update(out, item)
    else:
        _update(out, repr(value).encode())
