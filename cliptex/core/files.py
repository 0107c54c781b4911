"""How files are written and identified: atomically, and by SHA-256."""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from cliptex.core.errors import CliptexError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where a file cannot grow."""
NO_WRITING = (errno.EROFS, errno.EACCES, errno.EPERM)
"""What the system says where nothing may be written."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a scratch path beside `path`; it takes the place of `path` on success and is gone on error.

    The parent folder is made. The scratch file is there already, empty, and nobody else's to read. The data is on disk
    (fsync) before the name is, so that a crash leaves the old file or the new one. The scratch name keeps the suffix,
    since some writers choose the format by it. Raises CliptexError where the disk is full or not to be written to,
    whatever the writer's own error is.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.stem}.{uuid4().hex}{path.suffix}")
    try:
        scratch.touch()
        mode = scratch.stat().st_mode  # as the umask has it, which is what a shared disk needs
        scratch.unlink()
        os.close(os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        yield scratch
        scratch.chmod(mode)
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
    except Exception as error:
        # the writers of tensors, tables and pictures have errors of their own, some of which name no file
        if found := unwritable(error, path):
            raise found from error
        if isinstance(error, FileNotFoundError) and str(error.filename) == str(scratch):
            raise CliptexError(
                f"{path}: its scratch file is gone, as when another job of the same stage sweeps up after a kill; wait"
                " until that one has ended, then run the same command again"
            ) from error
        raise
    finally:
        scratch.unlink(missing_ok=True)


def unwritable(error: Exception, path: Path | None = None) -> CliptexError | None:
    """What to tell the user of an error that says that the disk is full or not to be written to; None of any other.

    path: the file that was being written, where the error does not name it.
    """
    if isinstance(error, CliptexError):
        return None
    number = getattr(error, "errno", None)
    if number is None:  # not an OSError: tensors, HDF5
        said = str(error)
        number = next((one for one in (*NO_SPACE, *NO_WRITING[:1]) if os.strerror(one) in said), None)
    if number not in (*NO_SPACE, *NO_WRITING):
        return None
    where = path or getattr(error, "filename", None) or Path.cwd()
    remedy = "make room" if number in NO_SPACE else "make it writable, or run with another --directory"
    if number in (errno.EACCES, errno.EPERM):
        remedy = "mend its permissions, or run with another --directory"
    return CliptexError(f"{where}: {os.strerror(number)}; {remedy}, then run the same command again")


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    return digest_file(path, "sha256")


def digest_file(path: Path, algorithm: Literal["sha256", "md5"]) -> str:
    """Hex digest of a file's bytes. MD5 tells whether a download is whole, and protects from nobody."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_json(path: Path, value: Any, default: Callable[[Any], Any] | None = None) -> None:
    """Write `value` as indented JSON, atomically. NaN is refused, since it is not JSON. default: as of `json.dump`."""
    with replacing(path) as scratch, scratch.open("w") as file:
        json.dump(value, file, indent=1, allow_nan=False, default=default)  # whole, the text may not fit into memory
        file.write("\n")


def read_json(path: Path, made_of: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Read a JSON file; a missing or broken one raises CliptexError with its name. made_of: what becomes of each
    object, as `object_hook` of `json.loads`."""
    path = Path(path)
    try:
        return json.loads(path.read_text(), object_hook=made_of)
    except FileNotFoundError as error:
        raise CliptexError(f"{path}: no such file; run the step that makes it first") from error
    except ValueError as error:
        raise CliptexError(f"{path}: not valid JSON ({error}); delete it and run the same command again") from error
