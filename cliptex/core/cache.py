"""Renders and weights that were made before, copied from a folder; off unless the environment names one.

Reads   the environment variable CLIPTEX_CACHE.
Writes  {CLIPTEX_CACHE}/{key}/: files/ and digests.json. The key is the digest of all that determines the files.
Holds   a result never needs the cache: a damaged entry is created again, with a warning. Copies have the recorded
        SHA-256. An entry appears complete, also if several jobs write it.
"""

import logging
import os
import platform
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from cliptex.core.errors import CliptexError
from cliptex.core.files import read_checked, replacing, sha256_file, sha256_json, write_json
from cliptex.core.provenance import PACKAGES, code_sha256, installed

log = logging.getLogger("cliptex")
VARIABLE = "CLIPTEX_CACHE"
LIBRARIES = (*PACKAGES, "embreex", "h5py", "safetensors", "scipy")


def cached(settings: Any, folder: Path, make: Callable[[], None], inputs: Sequence[Path] = (), file: str = "") -> None:
    """Call `make`, which fills `folder`, or copy what it made before with the same settings and inputs.

    settings: stage, options and seed, as JSON. inputs: files that `make` reads. file: the only one of `folder` that it
    writes; all by default. Nothing is copied over existing files: there, `make` decides.
    """
    place = os.environ.get(VARIABLE)
    if not place or ((folder / file).exists() if file else folder.is_dir() and any(folder.iterdir())):
        return make()
    entry = Path(place).expanduser() / sha256_json([settings, [sha256_file(path) for path in inputs], _environment()])
    try:
        if entry.is_dir():
            return _restore(entry, folder, file)
    except (CliptexError, OSError) as error:
        log.warning("%s: %s; created again", VARIABLE, error)
        shutil.rmtree(entry, ignore_errors=True)
    make()
    try:
        _store(entry, folder, [folder / file] if file else _files(folder))
    except (CliptexError, OSError) as error:
        log.warning("%s: %s; nothing is kept there", VARIABLE, error)


def _environment() -> dict[str, Any]:
    """What else determines the bits of a result: code, libraries, threads and processor."""
    text = platform.processor()
    with suppress(OSError):  # no Linux
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    processor = set(re.findall(r"^(?:model name|flags|CPU part|Features)\s*:.*$", text, re.MULTILINE)) or {text}
    return {
        "code": code_sha256(),
        "versions": [platform.python_version(), installed(LIBRARIES)],
        "devices": [os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")],
        "processor": [Path("/dev/nvidiactl").exists(), *sorted(processor)],
    }


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _store(entry: Path, folder: Path, files: list[Path]) -> None:
    scratch = entry.with_name(f".{uuid4().hex}")
    try:
        digests = {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}
        for name, digest in digests.items():
            _copy(folder / name, scratch / "files" / name, digest)
        write_json(scratch / "digests.json", digests)
        if not entry.exists():  # another job may have been faster
            scratch.replace(entry)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _restore(entry: Path, folder: Path, file: str) -> None:
    digests = read_checked(entry / "digests.json", {str: str}, remedy="it is damaged")
    names = {path.relative_to(entry / "files").as_posix() for path in _files(entry / "files") if not path.is_symlink()}
    if names != digests.keys():
        raise CliptexError(f"{entry}: has other files than its digests.json lists")
    if file:
        with replacing(folder / file) as scratch:
            _copy(entry / "files" / file, scratch, digests[file])
    else:
        scratch = folder.with_name(f".{folder.name}.restored")
        shutil.rmtree(scratch, ignore_errors=True)
        for name, digest in digests.items():
            _copy(entry / "files" / name, scratch / name, digest)
        scratch.replace(folder)
    log.info("%s: made before, copied from %s", folder / file, entry)


def _copy(path: Path, to: Path, digest: str) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, to)
    if sha256_file(to) != digest:
        raise CliptexError(f"{path}: its SHA-256 is not the recorded one")
