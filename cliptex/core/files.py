"""Write files atomically, identify them by SHA-256, read and write JSON, and say what to do about unreadable files."""

import errno
import hashlib
import json
import os
import platform
import re
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from cliptex.core import paths
from cliptex.core.errors import CliptexError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, or of a file that cannot grow."""
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
"""Error numbers of a missing write permission."""
IN_THE_WAY = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST)
BROKEN_DISK = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV, errno.ENXIO)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a scratch path in the folder of `path`; on success it replaces `path`, on error it is deleted.

    The parent folder is created. The scratch file already exists, empty and readable only by its owner. The data are
    synced to disk (fsync) before the rename, so that a crash leaves either the old or the new file. The scratch name
    keeps the suffix, since some writers choose the format by it, and names the process: the next process that writes to
    the folder deletes the files of those that were killed. Raises CliptexError if the disk is full or not writable,
    whatever error the writer raised.
    """
    path = Path(path)
    owner = f"{_machine()}-{os.getpid()}-{_start_of(os.getpid())}"
    scratch = path.with_name(f".{path.stem}.{owner}-{uuid4().hex[:12]}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise CliptexError(f"{path}: {IS_A_FOLDER}")
        _remove_abandoned(path.parent.resolve())
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
        with suppress(OSError):  # its folder may be a file, or not be accessible
            scratch.unlink()


SCRATCH = re.compile(r"^\..*\.(?:([0-9a-f]{12})-(\d+)-(\d+)-[0-9a-f]{12}|[0-9a-f]{32})(?:\.[^.]*)?$")
"""Name of a scratch file: machine, number and start of the process; earlier versions wrote 32 digits."""
FORGOTTEN_S = 7 * 24 * 3600


@cache
def _machine() -> str:
    """Identifies processes with distinct numbers: a machine since its start or, in a container, the container."""
    parts = [platform.node()]
    for place in (Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")):
        with suppress(OSError):
            parts.append(str(place.readlink()) if place.is_symlink() else place.read_text(encoding="utf-8"))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _start_of(process: int) -> str | None:
    """When a process started, in clock ticks since the system did; "0" if unknown, None if there is no such process."""
    try:
        os.kill(process, 0)
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        return status.rpartition(")")[2].split()[19]
    except ProcessLookupError:
        return None
    except (OSError, IndexError):  # of another user, or without /proc
        return "0"


@cache
def _remove_abandoned(folder: Path) -> None:
    """Delete the scratch files in `folder` whose process has ended. Nothing is known of processes on other machines:
    theirs are deleted if nothing was written to them for a week. Once for each folder, since listing takes time."""
    found_there: list[Path] = []
    with suppress(OSError):  # it cannot be listed
        found_there = list(folder.iterdir())
    for path in found_there:
        if found := SCRATCH.match(path.name):
            machine, process, start = found.groups()
            with suppress(OSError):  # another job was faster
                if machine == _machine():
                    abandoned = _start_of(int(process)) not in ("0", start)
                else:
                    abandoned = time.time() - path.stat().st_mtime > FORGOTTEN_S
                if abandoned:
                    path.unlink()


def write_error(error: Exception, path: Path | None = None) -> CliptexError | None:
    """The user's message for an error that means that a file cannot be written, because the disk is full or not
    writable, or something else is in its place; None for other errors.

    path: the file being written, for errors that do not name it.
    """
    if isinstance(error, CliptexError):
        return None
    if "No usable temporary directory" in str(error):  # of Python's tempfile
        return CliptexError(
            f"TMPDIR: {getattr(error, 'strerror', error)}; make room there, or set it to another folder"
        )
    number = getattr(error, "errno", None)
    if number is None:  # not an OSError: safetensors, HDF5
        text = str(error)
        number = next((code for code in (*NO_SPACE, *NOT_WRITABLE[:1]) if os.strerror(code) in text), None)
    if number not in (*NO_SPACE, *NOT_WRITABLE, *IN_THE_WAY, *BROKEN_DISK):
        return None
    named = getattr(error, "filename", None)
    if path and (named is None or SCRATCH.match(Path(os.fsdecode(named)).name)):
        named = path
    where = named or Path.cwd()
    remedy = "make it writable, or use another --directory"
    if number in NO_SPACE:
        remedy = "make room"
    elif number in (errno.EACCES, errno.EPERM):
        remedy = "correct its permissions, or use another --directory"
    elif number in IN_THE_WAY:
        remedy = "move away the file that is in a folder's place, or the folder in a file's"
    elif number in BROKEN_DISK:
        remedy = "check the disk or the network file system"
    return CliptexError(f"{where}: {os.strerror(number)}; {remedy}, then run the same command again")


IS_A_FOLDER = "is a folder, not a file; move it away, then run the same command again"
RESTORE = "restore a copy, or delete it, and run the same command again"


def require_file(path: Path, missing: str = "run the step that creates it first") -> None:
    """Raise CliptexError, with a remedy, unless `path` is a regular file that can be opened. A pipe is not waited for.

    missing: remedy if there is no such file.
    """
    if problem := _no_access(Path(path), missing):
        raise CliptexError(f"{path}: {problem}")


def _no_access(path: Path, missing: str) -> str | None:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return IS_A_FOLDER
        if not stat.S_ISREG(mode):
            return "is a pipe, a socket or a device, not a file; move it away, then run the same command again"
        with path.open("rb") as file:
            file.read(1)
    except (FileNotFoundError, NotADirectoryError):
        return f"no such file; {missing}"
    except OSError as error:
        return _no_fault(error)
    except ValueError:
        return "its name has a zero character; correct the file that names it"
    return None


def _no_fault(error: OSError) -> str:
    if error.errno in NOT_WRITABLE:
        return f"{error.strerror}; correct its permissions, or those of its folders, then run the same command again"
    return f"{error.strerror}; check the disk or the network file system, then run the same command again"


def read_error(
    error: Exception,
    path: Path,
    kind: str,
    remedy: str | None = None,
    missing: str = "run the step that creates it first",
) -> CliptexError:
    """The user's message for a file that cannot be read, whatever error the reader raised.

    kind: what its content should be, such as "valid JSON". remedy: for other content; by default, a file in the working
    directory's `results` or `resources` may be deleted, and one elsewhere, which is the user's, may not. It is not
    given for what is missing, not readable or not a file, or if memory or the disk failed: the content may be right.
    """
    if isinstance(error, CliptexError):
        return error
    problem = _no_access(Path(path), missing)
    if not problem and isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        problem = _no_fault(error)
    if not problem and isinstance(error, MemoryError):
        problem = "not enough memory to read it; request more"
    if not problem:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, KeyError):
            reason = f"it has no {reason}"
        remedy = remedy or (RESTORE if _is_ours(path) else "replace it with a complete copy")
        problem = f"damaged, or not {kind} ({reason}); {remedy}"
    return CliptexError(f"{path}: {problem}")


@contextmanager
def reading(path: Path, kind: str, remedy: str | None = None) -> Iterator[None]:
    """Any error in this context, which must only read `path`, becomes a `read_error`."""
    try:
        yield
    except Exception as error:
        raise read_error(error, path, kind, remedy) from error


def _is_ours(path: Path) -> bool:
    place = Path(path).resolve()
    return any(place.is_relative_to(folder.resolve()) for folder in (paths.RESULTS, paths.RESOURCES))


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes. Raises CliptexError if it cannot be read."""
    return digest_file(path, "sha256")


def digest_file(path: Path, algorithm: Literal["sha256", "md5"]) -> str:
    """Hex digest of a file's bytes. MD5 detects an incomplete download; it is not secure."""
    require_file(path)
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise read_error(error, path, "readable") from error


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_json(path: Path, value: Any, default: Callable[[Any], Any] | None = None) -> None:
    """Write `value` as indented JSON, atomically. NaN is refused, since it is not JSON. default: see `json.dump`."""
    with replacing(path) as scratch, scratch.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, allow_nan=False, default=default)  # not dumps: the text may not fit in memory
        file.write("\n")


def read_json(path: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Read a JSON file. Raises CliptexError if it is missing or not strict JSON: NaN, a key that occurs twice and half
    a surrogate pair are refused, since their meaning is unknown. object_hook: see `json.loads`."""

    def unique(pairs: list[tuple[str, Any]]) -> Any:
        value = dict(pairs)
        if len(value) < len(pairs):
            raise ValueError(f"the key {Counter(key for key, _ in pairs).most_common(1)[0][0]!r} occurs twice")
        return object_hook(value) if object_hook else value

    try:
        require_file(path)
        text = Path(path).read_text(encoding="utf-8")
        value = json.loads(text, object_pairs_hook=unique, parse_constant=_refuse)
        if re.search(r"\\u[dD][89a-fA-F]", text):
            # the halves that Python uses for file names that are not UTF-8 may pass
            json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "surrogateescape")
        return value
    except RecursionError as error:
        raise read_error(ValueError("nested too deeply"), path, "valid JSON") from error
    except (OSError, ValueError, MemoryError, TypeError, AttributeError) as error:  # also of `object_hook`
        raise read_error(error, path, "valid JSON") from error


def read_checked(
    path: Path, form: Any, object_hook: Callable[[dict[str, Any]], Any] | None = None, remedy: str | None = None
) -> Any:
    """`read_json` of a file of this package, which must have the given form: a type, a list of one form, a dictionary
    with the form of each key that is needed, or {str: form} for any keys. Raises CliptexError that names the key."""
    value = read_json(path, object_hook)
    check_form(path, value, form, remedy)
    return value


def check_form(path: Path, value: Any, form: Any, remedy: str | None = None) -> None:
    """Raise CliptexError unless `value`, read from `path`, has a form (see `read_checked`)."""
    if problem := _unlike(value, form, ""):
        remedy = remedy or (RESTORE if _is_ours(path) else "replace it with a complete copy")
        raise CliptexError(f"{path}: {problem}; {remedy}")


def _unlike(value: Any, form: Any, key: str) -> str | None:
    kind = type(form) if isinstance(form, dict | list) else form
    if not isinstance(value, kind):
        return f"{key or 'its content'} is wrong ({str(value)[:60]!r})"
    if isinstance(form, dict):
        if str in form:
            form = dict.fromkeys(value, form[str])
        if missing := [name for name in form if name not in value]:
            return f"{f'{key}.{missing[0]}'.lstrip('.')} is missing"
        inner = ((value[name], of, f"{key}.{name}".lstrip(".")) for name, of in form.items())
    else:
        inner = ((item, form[0], f"{key}[{number}]") for number, item in enumerate(value if kind is list else ()))
    return next(filter(None, (_unlike(*item) for item in inner)), None)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number of JSON")
