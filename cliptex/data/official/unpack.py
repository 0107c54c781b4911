"""Unpack a tar, a tar of tars, or a zip into a folder, whoever made it.

Writes  regular files and folders below the folder, and nothing else and nowhere else. Each file takes its name when it
        is whole; one that is there with the right size is not written again, so that a killed unpacking goes on.
Holds   a member that would lie elsewhere, a link, a device, or more than the limits ends it with CliptexError. Modes,
        owners and times of the archive are not taken over.
"""

import errno
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, Any

from cliptex.core.errors import CliptexError
from cliptex.core.files import NO_SPACE
from cliptex.core.progress import track

BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    UnicodeDecodeError,
)
"""What the libraries raise for a damaged archive, or one with features that they do not know."""


@dataclass(frozen=True)
class Limits:
    """Above these an archive is taken for a bomb. The largest official one has 1,839,960 members, the most compressed
    one shrinks to a quarter."""

    members: int = 5_000_000
    ratio: float = 100.0
    """Unpacked bytes for one of the archive."""
    spared: int = 64 << 20
    """Bytes below which no ratio is looked at."""
    header: int = 1 << 20
    """Bytes of one extended header."""


@dataclass
class Unpacked:
    """What came out: regular files of the archive and their bytes, also those that were there already."""

    files: int = 0
    bytes: int = 0
    _read: int = field(default=0, repr=False)
    _members: int = field(default=0, repr=False)


def unpack(
    archive: Path,
    kind: str,
    into: Path,
    only: tuple[str, ...] = (),
    reserved: tuple[str, ...] = (),
    limits: Limits = Limits(),
    room: bool = True,
) -> Unpacked:
    """Unpack `archive` into the folder `into`.

    kind: "tar" (plain or compressed), "zip", or "tars": a tar of tars, `a.tar` of which becomes the folder `a`. only:
    patterns, of which a member's path must match one; all members by default. reserved: names that nothing directly in
    `into` may have. room: look for free space before. Raises CliptexError naming the archive and the member.
    """
    into.mkdir(parents=True, exist_ok=True)
    work = _Unpacking(archive, into, only, reserved, limits)
    try:
        if room:
            _require_room(archive, kind, into)
        if kind == "zip":
            work.zip()
        else:
            with tarfile.open(archive, "r:*", tarinfo=_bounded_header(archive, limits)) as tar:
                work.tar(tar, PurePosixPath(), nested=kind == "tars")
    except (*BROKEN, OSError) as error:
        # of OSErrors, gzip's own have no number, and EINVAL is of a zip whose member lies before its beginning
        if not isinstance(error, OSError) or error.errno in (None, errno.EINVAL):
            raise CliptexError(f"{archive}: damaged, or no {kind.removesuffix('s')} ({error}); get it again") from error
        if error.errno in NO_SPACE:
            raise CliptexError(
                f"{into}: {error.strerror}, while {archive.name} is unpacked; make room, then run the same command"
                " again: it goes on where it was"
            ) from error
        raise
    return work.done


def _require_room(archive: Path, kind: str, into: Path) -> None:
    """Of a compressed tar the size is not known before; then its own is the least."""
    needed = archive.stat().st_size
    if kind == "zip":
        with zipfile.ZipFile(archive) as file:
            needed = sum(info.file_size for info in file.infolist())
    free = shutil.disk_usage(into).free
    if needed > free:
        raise CliptexError(
            f"{into}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed to unpack {archive.name}; make room, or"
            " give an unpacked copy by its path"
        )


class _Unpacking:
    """One archive being unpacked."""

    def __init__(self, archive: Path, into: Path, only: tuple[str, ...], reserved: tuple[str, ...], limits: Limits):
        self.archive, self.into, self.only, self.reserved, self.limits = archive, into, only, reserved, limits
        self.most = limits.ratio * archive.stat().st_size + limits.spared
        self.folders = {into}
        self.done = Unpacked()

    def tar(self, tar: tarfile.TarFile, below: PurePosixPath, nested: bool = False) -> None:
        """below: the folder of `into` to which it belongs."""
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
                    self.refuse(member.name, "is not a tar, and this should be a tar of tars")
                with tarfile.open(fileobj=data, mode="r:", tarinfo=_bounded_header(self.archive, self.limits)) as inner:
                    self.tar(inner, below / name.with_suffix(""))
            elif self.wanted(name):
                self.write(member.name, below / name, data, size)

    def zip(self) -> None:
        """All of a zip file."""
        with zipfile.ZipFile(self.archive) as file:
            for info in track(file.infolist(), f"unpack {self.archive.name}"):
                name = self.path(info.filename)
                kind = stat.S_IFMT(info.external_attr >> 16)
                if kind == stat.S_IFLNK:
                    self.refuse(info.filename, "is a link")
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    self.refuse(info.filename, "is neither a file nor a folder")
                if info.flag_bits & 1:
                    self.refuse(info.filename, "is encrypted")
                self.count(info.filename, info.file_size)
                if not info.is_dir() and self.wanted(name):
                    with file.open(info) as data:
                        self.write(info.filename, name, data, info.file_size)

    def wanted(self, name: PurePosixPath) -> bool:
        return not self.only or any(fnmatchcase(str(name), pattern) for pattern in self.only)

    def refuse(self, member: str, why: str) -> None:
        raise CliptexError(
            f"{self.archive}: its member {member[:200]!r} {why}; it is unpacked no further, and nothing outside of"
            f" {self.into} was touched. If you trust it, unpack it yourself and give the folder by its path"
        )

    def path(self, member: str) -> PurePosixPath:
        """A member's name as a path below `into`."""
        if "\0" in member or "\\" in member or PurePosixPath(member).is_absolute() or member[1:2] == ":":
            self.refuse(member, "has a path of another system, or an absolute one")
        if not member:
            self.refuse(member, "has no name")
        name = PurePosixPath(member)
        if ".." in name.parts:
            self.refuse(member, "lies outside of the archive")
        if any(len(os.fsencode(part)) > 240 for part in name.parts):
            self.refuse(member, "has too long a name")
        if name.parts and name.parts[0] in self.reserved:
            self.refuse(member, "has a name that is kept for other things")
        return name

    def count(self, member: str, size: int) -> None:
        """Looks at the limits, by what the archive says of itself; `write` sees to it that it said the truth."""
        self.done._members += 1
        self.done._read += size
        if self.done._members > self.limits.members:
            self.refuse(member, f"is one of more than {self.limits.members:,}")
        if size < 0 or self.done._read > self.most:
            self.refuse(
                member, f"makes it {self.done._read:,} bytes, {self.limits.ratio:.0f} times those of the archive"
            )

    def write(self, member: str, name: PurePosixPath, data: IO[bytes], size: int) -> None:
        """One file. It takes its name when all its bytes are there."""
        if not name.parts:
            self.refuse(member, "has no name")
        target = self.into / name
        try:
            self.folder(member, target.parent)
            there = target.lstat() if os.path.lexists(target) else None
            if there and not stat.S_ISREG(there.st_mode):
                self.refuse(member, "has the name of a folder or a link")
            if not there or there.st_size != size:
                self._write(member, target, data, size)
        except (NotADirectoryError, FileExistsError, IsADirectoryError):
            self.refuse(member, "is a file and a folder")
        self.done.files += 1
        self.done.bytes += size

    def _write(self, member: str, target: Path, data: IO[bytes], size: int) -> None:
        scratch = target.with_name(f".{target.name}.unpacking")
        # whatever lies under the scratch name is ours, of an unpacking that was killed, and never a link to follow
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                left = size
                while left and (block := data.read(min(left, 1 << 20))):
                    file.write(block)
                    left -= len(block)
            if left or data.read(1):  # at its end a zip member's checksum is compared
                raise CliptexError(f"{self.archive}: damaged: {member!r} is not {size:,} bytes long; get it again")
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
        scratch.replace(target)

    def folder(self, member: str, folder: Path) -> None:
        """Make a folder and those above it; one that is a link is not entered, for it may lead anywhere."""
        if folder in self.folders:
            return
        self.folder(member, folder.parent)
        if folder.is_symlink():
            self.refuse(member, f"would be written through the link {folder}")
        folder.mkdir(exist_ok=True)
        self.folders.add(folder)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members one by one; those of the past are forgotten, for they would fill the memory."""
    while (member := tar.next()) is not None:
        yield member
        tar.members = []


def _bounded_header(archive: Path, limits: Limits) -> Any:
    """A kind of TarInfo that refuses long extended headers, which are read into memory at once."""
    extended = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, *tarfile.GNU_TYPES)

    class Header(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
            found = super().frombuf(buf, encoding, errors)
            if found.type in extended and found.type != tarfile.GNUTYPE_SPARSE and found.size > limits.header:
                raise CliptexError(f"{archive}: an extended header of {found.size:,} bytes; this is no data set")
            return found

    return Header
