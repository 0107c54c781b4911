"""Write files atomically, identify them by SHA-256, and read and write JSON."""

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
"""Error numbers of a full disk, or of a file that cannot grow."""
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
"""Error numbers of a missing write permission."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a scratch path in the folder of `path`; on success it replaces `path`, on error it is deleted.

    The parent folder is created. The scratch file already exists, empty and readable only by its owner. The data are
    synced to disk (fsync) before the rename, so that a crash leaves either the old or the new file. The scratch name
    keeps the suffix, since some writers choose the format by it. Raises CliptexError if the disk is full or not
    writable, whatever error the writer raised.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.stem}.{uuid4().hex}{path.suffix}")
    try:
        scratch.touch()
        mode = scratch.stat().st_mode  # set by the umask, as a shared disk needs it
        scratch.unlink()
        os.close(os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        yield scratch
        scratch.chmod(mode)
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
    except Exception as error:
        # writers of tensors, tables and images raise their own errors, some without the file's name
        if unwritable := write_error(error, path):
            raise unwritable from error
        if isinstance(error, FileNotFoundError) and str(error.filename) == str(scratch):
            raise CliptexError(
                f"{path}: its scratch file was deleted, probably by the clean-up of another job of the same stage; wait"
                " until that job has ended, then run the same command again"
            ) from error
        raise
    finally:
        scratch.unlink(missing_ok=True)


def write_error(error: Exception, path: Path | None = None) -> CliptexError | None:
    """The user's message for an error that means that the disk is full or not writable; None for other errors.

    path: the file being written, for errors that do not name it.
    """
    if isinstance(error, CliptexError):
        return None
    number = getattr(error, "errno", None)
    if number is None:  # not an OSError: safetensors, HDF5
        text = str(error)
        number = next((code for code in (*NO_SPACE, *NOT_WRITABLE[:1]) if os.strerror(code) in text), None)
    if number not in (*NO_SPACE, *NOT_WRITABLE):
        return None
    where = path or getattr(error, "filename", None) or Path.cwd()
    remedy = "make room" if number in NO_SPACE else "make it writable, or use another --directory"
    if number in (errno.EACCES, errno.EPERM):
        remedy = "correct its permissions, or use another --directory"
    return CliptexError(f"{where}: {os.strerror(number)}; {remedy}, then run the same command again")


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    return digest_file(path, "sha256")


def digest_file(path: Path, algorithm: Literal["sha256", "md5"]) -> str:
    """Hex digest of a file's bytes. MD5 detects an incomplete download; it is not secure."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_json(path: Path, value: Any, default: Callable[[Any], Any] | None = None) -> None:
    """Write `value` as indented JSON, atomically. NaN is refused, since it is not JSON. default: see `json.dump`."""
    with replacing(path) as scratch, scratch.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, allow_nan=False, default=default)  # not dumps: the text may not fit in memory
        file.write("\n")


def read_json(path: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Read a JSON file. Raises CliptexError if it is missing or broken. object_hook: see `json.loads`."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_hook=object_hook)
    except FileNotFoundError as error:
        raise CliptexError(f"{path}: no such file; run the step that creates it first") from error
    except ValueError as error:
        raise CliptexError(f"{path}: not valid JSON ({error}); delete it and run the same command again") from error
