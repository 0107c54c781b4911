"""Unpack untrusted archives safely: a tar, a tar of tars, a zip, or a zip with zips in it.

Writes  only regular files and folders, only below the target folder. A file is renamed into place when complete; files
        of the right size are skipped, so that an interrupted run resumes.
Holds   paths outside the folder, links, devices and anything beyond the limits raise CliptexError. Modes, owners and
        times of the archive are ignored.
"""

import errno
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, Any

from cliptex.core.errors import CliptexError
from cliptex.core.files import NO_SPACE, require_file
from cliptex.core.progress import track

BROKEN = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(EOFError, NotImplementedError, UnicodeDecodeError, MemoryError),
)
"""Errors of the libraries for damaged archives and unsupported features."""


@dataclass(frozen=True)
class Limits:
    """Limits against decompression bombs. The largest official archive has 1,839,960 members; the most compressed
    one has a quarter of its unpacked size."""

    members: int = 5_000_000
    ratio: float = 100.0
    """Maximum ratio of unpacked bytes to the archive's bytes."""
    always_allowed: int = 64 << 20
    """Unpacked bytes that are allowed in addition, whatever the ratio."""
    header: int = 1 << 20
    """Maximum bytes of an extended header."""


@dataclass
class Unpacked:
    """Number of regular files and their bytes, including files that existed already."""

    files: int = 0
    bytes: int = 0


def unpack(
    archive: Path,
    kind: str,
    into: Path,
    only: tuple[str, ...] = (),
    reserved: tuple[str, ...] = (),
    limits: Limits = Limits(),
    check_space: bool = True,
) -> Unpacked:
    """Unpack `archive` into the folder `into`.

    kind: "tar" (plain or compressed), "zip", "tars": a tar of tars, whose `a.tar` is unpacked to the folder `a`, or
    "zips": a zip whose `a/b.zip` is unpacked to the folder `a`, and zips in that one are not.
    only: glob patterns; members whose path matches none are skipped (default: none are); of "zips", the path of a
    member of `a/b.zip` begins with `a/`. reserved: names that are not allowed directly in `into`. check_space: check
    the free disk space first. Raises CliptexError with the archive and the member.
    """
    require_file(archive, "download it again")
    into.mkdir(parents=True, exist_ok=True)
    unpacker = _Unpacker(archive, into, only, reserved, limits)
    try:
        if check_space:
            _require_space(archive, kind, into)
        if kind in ("zip", "zips"):
            with zipfile.ZipFile(archive) as file:
                unpacker.zip(file, PurePosixPath(), nested=kind == "zips")
        else:
            with tarfile.open(archive, "r:*", tarinfo=_bounded_header(archive, limits)) as tar:
                unpacker.tar(tar, PurePosixPath(), nested=kind == "tars")
    except (*BROKEN, OSError) as error:
        # gzip raises OSError without a number; EINVAL means that a zip member has a negative offset
        if not isinstance(error, OSError) or error.errno in (None, errno.EINVAL):
            problem = f"damaged, or not a {kind.removesuffix('s')} ({error})"
            raise CliptexError(f"{archive}: {problem}; download it again") from error
        if error.errno in NO_SPACE:
            remedy = "make room, then run the same command again, which resumes"
            raise CliptexError(f"{into}: {error.strerror} while unpacking {archive.name}; {remedy}") from error
        raise
    return unpacker.done


def _require_space(archive: Path, kind: str, into: Path) -> None:
    """Raise CliptexError if the disk has too little free space. The unpacked size of a compressed tar is not known in
    advance; its own size is then the lower bound."""
    needed = archive.stat().st_size
    if kind in ("zip", "zips"):  # of zips a lower bound
        with zipfile.ZipFile(archive) as file:
            needed = sum(info.file_size for info in file.infolist())
    free = shutil.disk_usage(into).free
    if needed > free:
        problem = f"{free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed to unpack {archive.name}"
        raise CliptexError(f"{into}: {problem}; make room, or give an unpacked copy by its path")


class _Unpacker:
    def __init__(self, archive: Path, into: Path, only: tuple[str, ...], reserved: tuple[str, ...], limits: Limits):
        self.archive, self.into, self.only, self.reserved, self.limits = archive, into, only, reserved, limits
        self.max_bytes = limits.ratio * archive.stat().st_size + limits.always_allowed
        self.folders = {into}
        self.members, self.bytes = 0, 0
        self.names: set[int] = set()  # hashes, since there are millions
        self.done = Unpacked()

    def tar(self, tar: tarfile.TarFile, below: PurePosixPath, nested: bool = False) -> None:
        """below: target folder, relative to `into`."""
        for member in track(_members(tar), f"unpack {tar.name and Path(tar.name).name}"):
            name = self.path(member.name)
            if member.issym() or member.islnk():
                self.refuse(member.name, "is a link")
            if not (member.isdir() or member.isreg()) or member.issparse():
                self.refuse(member.name, "is neither a file nor a folder")
            size = member.size if member.isreg() else 0
            self.count(member.name, 0 if nested else size)
            if member.isdir():
                continue
            data = tar.extractfile(member)
            if nested:
                if name.suffix != ".tar":
                    self.refuse(member.name, "is not a tar, as expected of a tar of tars")
                with tarfile.open(fileobj=data, mode="r:", tarinfo=_bounded_header(self.archive, self.limits)) as inner:
                    self.tar(inner, below / name.with_suffix(""))
            elif self.selected(name):
                self.write(member.name, below / name, data, size)

    def zip(self, file: zipfile.ZipFile, below: PurePosixPath, nested: bool = False) -> None:
        """below: target folder, relative to `into`."""
        for info in track(file.infolist(), f"unpack {self.archive.name}"):
            name = below / self.path(info.filename)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind == stat.S_IFLNK:
                self.refuse(info.filename, "is a link")
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                self.refuse(info.filename, "is neither a file nor a folder")
            if info.flag_bits & 1:
                self.refuse(info.filename, "is encrypted")
            self.count(info.filename, info.file_size)
            if info.is_dir() or not self.selected(name):
                continue
            with file.open(info) as data:
                if nested and name.suffix == ".zip":
                    self.inner_zip(info, data, name.parent)
                else:
                    self.write(info.filename, name, data, info.file_size)

    def inner_zip(self, info: zipfile.ZipInfo, data: IO[bytes], below: PurePosixPath) -> None:
        """A zip is read from its end, and its compressed bytes only from their beginning, so it is copied first."""
        with tempfile.TemporaryFile(dir=self.into) as scratch:
            self.copy(info.filename, data, scratch, info.file_size)
            with zipfile.ZipFile(scratch) as inner:
                self.zip(inner, below)

    def selected(self, name: PurePosixPath) -> bool:
        return not self.only or any(fnmatchcase(str(name), pattern) for pattern in self.only)

    def refuse(self, member: str, problem: str) -> None:
        stopped = f"unpacking stopped, and nothing outside of {self.into} was written"
        remedy = "If you trust the archive, unpack it manually and give the folder's path"
        raise CliptexError(f"{self.archive}: its member {member[:200]!r} {problem}; {stopped}. {remedy}")

    def path(self, member: str) -> PurePosixPath:
        """A member's name as a path below `into`."""
        if "\0" in member or "\\" in member or PurePosixPath(member).is_absolute() or member[1:2] == ":":
            self.refuse(member, "has an absolute path, or one of another system")
        if not member:
            self.refuse(member, "has no name")
        name = PurePosixPath(member)
        if ".." in name.parts:
            self.refuse(member, "is outside of the archive")
        if any(len(os.fsencode(part)) > 240 for part in name.parts):
            self.refuse(member, "has a name that is too long")
        if name.parts and name.parts[0] in self.reserved:
            self.refuse(member, "has a reserved name")
        return name

    def count(self, member: str, size: int) -> None:
        """Check the limits by the sizes that the archive declares; `write` verifies these sizes."""
        self.members += 1
        self.bytes += size
        if self.members > self.limits.members:
            self.refuse(member, f"is one of more than {self.limits.members:,}")
        if size < 0 or self.bytes > self.max_bytes:
            excess = f"over {self.limits.ratio:.0f} times the archive's"
            self.refuse(member, f"brings the total to {self.bytes:,} bytes, {excess}")

    def write(self, member: str, name: PurePosixPath, data: IO[bytes], size: int) -> None:
        """Write one file, unless it exists with the right size. It is renamed into place when complete."""
        if not name.parts:
            self.refuse(member, "has no name")
        if (key := hash(str(name).casefold())) in self.names:
            self.refuse(member, "has the name of another one, or differs from it only in letter case")
        self.names.add(key)
        target = self.into / name
        try:
            self.folder(member, target.parent)
            existing = target.lstat() if os.path.lexists(target) else None
            if existing and not stat.S_ISREG(existing.st_mode):
                self.refuse(member, "has the name of a folder or a link")
            if not existing or existing.st_size != size:
                self._write(member, target, data, size)
        except (NotADirectoryError, FileExistsError, IsADirectoryError):
            self.refuse(member, "is both a file and a folder")
        self.done.files += 1
        self.done.bytes += size

    def _write(self, member: str, target: Path, data: IO[bytes], size: int) -> None:
        scratch = target.with_name(f".{target.name}.unpacking")
        # an existing scratch file is from an interrupted run; links are never followed
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                self.copy(member, data, file, size)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
        scratch.replace(target)

    def copy(self, member: str, data: IO[bytes], file: IO[bytes], size: int) -> None:
        left = size
        while left and (block := data.read(min(left, 1 << 20))):
            file.write(block)
            left -= len(block)
        if left or data.read(1):  # reading to the end verifies a zip member's checksum
            raise CliptexError(f"{self.archive}: damaged: {member!r} is not {size:,} bytes long; download it again")

    def folder(self, member: str, folder: Path) -> None:
        """Create a folder and its parents. A link among them is refused, since it may lead outside."""
        if folder in self.folders:
            return
        self.folder(member, folder.parent)
        if folder.is_symlink():
            self.refuse(member, f"would be written through the link {folder}")
        folder.mkdir(exist_ok=True)
        self.folders.add(folder)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members; tarfile's list of them is cleared, since it would fill the memory."""
    while (member := tar.next()) is not None:
        yield member
        tar.members = []


def _bounded_header(archive: Path, limits: Limits) -> Any:
    """A TarInfo class that refuses long extended headers, which tarfile reads into memory at once."""
    extended = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, *tarfile.GNU_TYPES)

    class Header(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
            header = super().frombuf(buf, encoding, errors)
            if header.type in extended and header.type != tarfile.GNUTYPE_SPARSE and header.size > limits.header:
                raise CliptexError(f"{archive}: an extended header of {header.size:,} bytes; this is not a data set")
            return header

    return Header
