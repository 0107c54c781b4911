"""Unpacking: the contents are right, and nothing else is written, whatever an archive declares."""

import io
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from cliptex.core.errors import CliptexError
from cliptex.data.official.unpack import Limits, unpack

CONTENT = {
    "data/a.txt": b"first",
    "data/deep/er/b.bin": np.random.default_rng(0).bytes(1_200_000),
    "data/empty": b"",
    "c.txt": b"third",
}


def make_tar(path: Path, content: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o4755
            tar.addfile(member, io.BytesIO(data))
    return path


def make_zip(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in content.items():
            file.writestr(name, data)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


MAKERS = {
    "tar": lambda path: make_tar(path, CONTENT),
    "tar.gz": lambda path: make_tar(path, CONTENT, "w:gz"),
    "tar.bz2": lambda path: make_tar(path, CONTENT, "w:bz2"),
    "zip": lambda path: make_zip(path, CONTENT),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_what_went_in_comes_out(tmp_path, kind):
    archive = MAKERS[kind](tmp_path / f"archive.{kind}")
    found = unpack(archive, kind.partition(".")[0], tmp_path / "out")
    assert tree(tmp_path / "out") == CONTENT
    assert (found.files, found.bytes) == (4, sum(map(len, CONTENT.values())))
    assert not stat.S_IMODE((tmp_path / "out/data/a.txt").stat().st_mode) & (stat.S_ISUID | 0o111)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_only_the_members_that_are_needed_come_out(tmp_path, kind):
    archive = MAKERS[kind](tmp_path / f"archive.{kind}")
    assert unpack(archive, kind, tmp_path / "out", only=("data/*.txt", "*/b.bin")).files == 2
    assert set(tree(tmp_path / "out")) == {"data/a.txt", "data/deep/er/b.bin"}


def test_a_tar_of_tars_becomes_a_folder_each(tmp_path):
    inner = {
        f"n0{number}.tar": make_tar(
            tmp_path / "one.tar", {f"n0{number}_{i}.JPEG": bytes([i]) for i in range(2)}
        ).read_bytes()
        for number in range(3)
    }
    archive = make_tar(tmp_path / "train.tar", inner)
    assert unpack(archive, "tars", tmp_path / "train").files == 6
    assert tree(tmp_path / "train") == {
        f"n0{number}/n0{number}_{index}.JPEG": bytes([index]) for number in range(3) for index in range(2)
    }
    hostile = make_tar(tmp_path / "one.tar", {"../../outside": b"x"}).read_bytes()
    with pytest.raises(CliptexError, match=r"train\.tar: its member '\.\./\.\./outside' is outside"):
        unpack(make_tar(tmp_path / "train.tar", {"n09.tar": hostile}), "tars", tmp_path / "train")
    with pytest.raises(CliptexError, match=r"train\.tar: its member 'n09\.JPEG' is not a tar"):
        unpack(make_tar(tmp_path / "train.tar", {"n09.JPEG": b"x"}), "tars", tmp_path / "train")


def test_zips_in_a_zip_are_unpacked_where_they_are(tmp_path):
    """Those in them stay files; nothing escapes, and the limits are those of all of them together."""
    innermost = make_zip(tmp_path / "one.zip", {"x": b"1"}).read_bytes()
    inner = make_zip(tmp_path / "one.zip", {"b/c.png": b"2", "b/d.zip": innermost, "e.txt": b"3"}).read_bytes()
    archive = make_zip(tmp_path / "a.zip", {"a/b.zip": inner, "a/f.json": b"{}", "g.zip": inner})
    assert unpack(archive, "zips", tmp_path / "out", only=("a/*.zip", "a/*.png", "*.json")).files == 3
    assert tree(tmp_path / "out") == {"a/b/c.png": b"2", "a/b/d.zip": innermost, "a/f.json": b"{}"}
    with pytest.raises(CliptexError, match=r"a\.zip: damaged, or not a zip"):
        unpack(make_zip(tmp_path / "a.zip", {"a/b.zip": inner[:-30]}), "zips", tmp_path / "out")
    outside = make_zip(tmp_path / "one.zip", {"../../../outside": b"x"}).read_bytes()
    with pytest.raises(CliptexError, match=r"a\.zip: its member '\.\./\.\./\.\./outside' is outside"):
        unpack(make_zip(tmp_path / "a.zip", {"a/b.zip": outside}), "zips", tmp_path / "out")
    bomb = make_zip(tmp_path / "one.zip", {"zeros": bytes(50_000_000)}).read_bytes()
    limits = Limits(always_allowed=1_000_000)
    with pytest.raises(CliptexError, match="100 times the archive"):
        unpack(make_zip(tmp_path / "a.zip", {"a/b.zip": bomb}), "zips", tmp_path / "out", limits=limits)
    assert everything(tmp_path / "out") == {"a", "a/b", "a/b/c.png", "a/b/d.zip", "a/f.json"}


def hostile_tar(path: Path, kind: str, out: Path) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        members = {
            "parent": ("../outside", tarfile.REGTYPE, ""),
            "deep parent": ("data/../../outside", tarfile.REGTYPE, ""),
            "absolute": (f"{out.parent}/outside", tarfile.REGTYPE, ""),
            "backslash": ("..\\outside", tarfile.REGTYPE, ""),
            "drive": ("C:outside", tarfile.REGTYPE, ""),
            "symbolic link": ("link", tarfile.SYMTYPE, ".."),
            "hard link": ("link", tarfile.LNKTYPE, "../secret"),
            "fifo": ("pipe", tarfile.FIFOTYPE, ""),
            "character device": ("null", tarfile.CHRTYPE, ""),
            "block device": ("disk", tarfile.BLKTYPE, ""),
            "no name": (".", tarfile.REGTYPE, ""),
            "our mark": ("official.json", tarfile.REGTYPE, ""),
            "long name": ("x" * 250, tarfile.REGTYPE, ""),
        }
        name, type_, target = members[kind]
        member = tarfile.TarInfo(name)
        member.type, member.linkname = type_, target
        member.size = 1 if type_ == tarfile.REGTYPE else 0
        member.devmajor = member.devminor = 1
        tar.addfile(member, io.BytesIO(b"x"))
    return path


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "kind",
    [
        *("parent", "deep parent", "absolute", "backslash", "drive", "symbolic link", "hard link", "fifo"),
        *("character device", "block device", "no name", "our mark", "long name"),
    ],
)
def test_a_hostile_tar_makes_nothing(tmp_path, kind):
    (tmp_path / "secret").write_text("secret")
    archive = hostile_tar(tmp_path / "hostile.tar", kind, tmp_path / "out")
    with pytest.raises(CliptexError, match=r"hostile\.tar: its member .*; unpacking stopped"):
        unpack(archive, "tar", tmp_path / "out", reserved=("official.json",))
    assert everything(tmp_path) == {"secret", "hostile.tar", "out"}


@pytest.mark.parametrize("kind", ["parent", "absolute", "backslash", "link", "device", "encrypted"])
def test_a_hostile_zip_makes_nothing(tmp_path, kind):
    names = {"parent": "../outside", "absolute": f"{tmp_path}/outside", "backslash": "..\\outside"}
    info = zipfile.ZipInfo(names.get(kind, "member"))
    info.create_system = 3
    info.external_attr = {"link": stat.S_IFLNK, "device": stat.S_IFBLK}.get(kind, stat.S_IFREG) << 16
    with zipfile.ZipFile(tmp_path / "hostile.zip", "w") as file:
        file.writestr(info, "../secret")
    if kind == "encrypted":  # a flag in the directory at the end
        data = bytearray((tmp_path / "hostile.zip").read_bytes())
        data[data.index(b"PK\x01\x02") + 8] |= 1
        (tmp_path / "hostile.zip").write_bytes(data)
    with pytest.raises(CliptexError, match=r"hostile\.zip: its member .*; unpacking stopped"):
        unpack(tmp_path / "hostile.zip", "zip", tmp_path / "out")
    assert everything(tmp_path) == {"hostile.zip", "out"}


def test_nothing_is_written_through_a_link_that_is_there(tmp_path):
    """For example a link to the user's folder, in place of unpacked data."""
    (tmp_path / "users").mkdir()
    (tmp_path / "users/a.txt").write_text("theirs")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/data").symlink_to(tmp_path / "users")
    for kind in ("tar", "zip"):
        with pytest.raises(CliptexError, match=r"its member 'data/a\.txt' would be written through the link"):
            unpack(MAKERS[kind](tmp_path / f"archive.{kind}"), kind, tmp_path / "out")
    assert (tmp_path / "users/a.txt").read_text() == "theirs"
    (tmp_path / "out/data").unlink()
    (tmp_path / "out/data").mkdir()
    (tmp_path / "out/data/a.txt").symlink_to(tmp_path / "users/a.txt")
    with pytest.raises(CliptexError, match=r"has the name of a folder or a link"):
        unpack(tmp_path / "archive.tar", "tar", tmp_path / "out")
    (tmp_path / "out/data/a.txt").unlink()
    (tmp_path / "out/data/.a.txt.unpacking").symlink_to(tmp_path / "users/a.txt")
    with pytest.raises(OSError, match="symbolic links"):
        unpack(tmp_path / "archive.tar", "tar", tmp_path / "out")
    assert (tmp_path / "users/a.txt").read_text() == "theirs"


def test_a_member_that_is_a_file_and_a_folder_is_refused(tmp_path):
    for content in ({"a": b"1", "a/b": b"2"}, {"a/b": b"2", "a": b"1"}):
        with pytest.raises(CliptexError, match=r"'a(/b)?' (is both a file and a folder|has the name of a folder)"):
            unpack(make_tar(tmp_path / "a.tar", content), "tar", tmp_path / "out")
        shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_names_that_differ_in_letter_case_only_are_refused(tmp_path, make):
    """On some file systems the second would take the place of the first."""
    with pytest.raises(CliptexError, match=r"its member 'data/A\.TXT' has the name of another one, or differs"):
        unpack(make(tmp_path / "a", {"data/a.txt": b"1", "data/A.TXT": b"2"}), make.__name__[5:], tmp_path / "out")
    assert tree(tmp_path / "out") == {"data/a.txt": b"1"}


def overlapping(path: Path, copies: int) -> Path:
    """A zip whose entries all refer to the same bytes of the file (Fifield 2019, "A better zip bomb")."""
    make_zip(path, {"a": bytes(2_000_000)})
    data = path.read_bytes()
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    entry = data[start:end]
    tail = bytearray(data[end:])
    struct.pack_into("<HHI", tail, 8, copies, copies, len(entry) * copies)
    names = [entry[:46] + bytes([97 + n // 26, *entry[47:]]) for n in range(copies)]
    path.write_bytes(data[:start] + b"".join(names) + bytes(tail))
    return path


def test_bombs_are_refused_before_they_fill_the_disk(tmp_path):
    limits = Limits(members=1000, ratio=100, always_allowed=1_000_000)
    bombs = {
        "zip": make_zip(tmp_path / "a.zip", {"zeros": bytes(50_000_000)}),
        "tar": make_tar(tmp_path / "a.tgz", {"zeros": bytes(50_000_000)}, "w:gz"),
        "zip that overlaps": overlapping(tmp_path / "b.zip", 40),
    }
    for kind, archive in bombs.items():
        with pytest.raises(CliptexError, match="100 times the archive"):
            unpack(archive, kind[:3], tmp_path / "out", limits=limits)
    many = {f"{number}": b"" for number in range(1001)}
    for kind, archive in (("tar", make_tar(tmp_path / "c.tar", many)), ("zip", make_zip(tmp_path / "c.zip", many))):
        with pytest.raises(CliptexError, match="is one of more than 1,000"):
            unpack(archive, kind, tmp_path / "out", limits=limits)
    assert sum(len(data) for data in tree(tmp_path / "out").values()) < 5_000_000


def test_a_tar_may_not_claim_what_it_does_not_have(tmp_path):
    """A sparse file of a terabyte, an extended header of a gigabyte, a member longer than the rest of the file."""
    for what, message in (
        ("sparse", "neither a file"),
        ("header", "extended header of"),
        ("size", "times the archive|end"),
    ):
        member = tarfile.TarInfo("x")
        if what == "sparse":
            member.type, member.size = tarfile.GNUTYPE_SPARSE, 0
            data = bytearray(member.tobuf(tarfile.GNU_FORMAT))
            data[483:495] = b"%011o\0" % (1 << 32)
        elif what == "header":
            member.type, member.size = tarfile.XHDTYPE, 1 << 30
            data = bytearray(member.tobuf(tarfile.USTAR_FORMAT))
        else:
            member.size = 1 << 32
            data = bytearray(member.tobuf(tarfile.USTAR_FORMAT))
        data[148:156] = b"%06o\0 " % (256 + sum(data[:148]) + sum(data[156:512]))
        (tmp_path / "a.tar").write_bytes(bytes(data) + bytes(1024))
        with pytest.raises(CliptexError, match=message):
            unpack(tmp_path / "a.tar", "tar", tmp_path / "out")
        assert tree(tmp_path / "out") == {}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_damaged_archive_is_an_error_with_its_name(tmp_path, kind):
    archive = MAKERS[kind](tmp_path / f"archive.{kind}")
    whole = archive.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"<html>no such file</html>"):
        archive.write_bytes(damaged)
        with pytest.raises(CliptexError, match=rf"archive\.{kind}: damaged"):
            unpack(archive, kind.partition(".")[0], tmp_path / "out")
        assert CONTENT.items() >= tree(tmp_path / "out").items()
    if kind == "zip":
        flipped = bytearray(make_zip(tmp_path / "flipped.zip", {"a": b"x" * 100}).read_bytes())
        flipped[40] ^= 1
        archive.write_bytes(flipped)
        with pytest.raises(CliptexError, match="damaged"):
            unpack(archive, "zip", tmp_path / "out2")
        assert tree(tmp_path / "out2") == {}


@pytest.mark.parametrize(
    ("local", "central", "words"),
    [
        (b"\x80a", b"\xc2\x80", "damaged, or not a zip"),
        (b"\xc2\x80", b"\x80a", "damaged, or not a zip"),
        (b"\0a", b"\0a", "its member '' has no name"),
    ],
)
def test_a_zip_whose_names_are_no_text_is_an_error_with_its_name(tmp_path, local, central, words):
    """A member's name is stored before its data and in the central directory."""
    before, between, after = make_zip(tmp_path / "odd.zip", {"\x80": b"x" * 100}).read_bytes().split(b"\xc2\x80")
    (tmp_path / "odd.zip").write_bytes(before + local + between + central + after)
    with pytest.raises(CliptexError, match=rf"odd\.zip: {words}"):
        unpack(tmp_path / "odd.zip", "zip", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_zip_whose_member_lies_before_its_beginning_is_an_error_with_its_name(tmp_path):
    whole = make_zip(tmp_path / "odd.zip", {"a": b"x" * 100}).read_bytes()
    end = len(whole) - 22  # of the list of members; its size stands 12 bytes in
    (size,) = struct.unpack_from("<L", whole, end + 12)
    (tmp_path / "odd.zip").write_bytes(whole[: end + 16] + struct.pack("<L", end - size + 5) + whole[end + 20 :])
    with pytest.raises(CliptexError, match=r"odd\.zip: damaged, or not a zip"):
        unpack(tmp_path / "odd.zip", "zip", tmp_path / "out")


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_what_is_there_already_is_not_written_again(tmp_path, kind):
    archive = MAKERS[kind](tmp_path / f"archive.{kind}")
    unpack(archive, kind, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    (tmp_path / "out/c.txt").write_text("cut")
    (tmp_path / "out/data/.a.txt.unpacking").write_text("left behind")
    found = unpack(archive, kind, tmp_path / "out")
    assert {name: tree(tmp_path / "out")[name] for name in CONTENT} == CONTENT and found.files == 4
    after = {path for path, at in before.items() if path.stat().st_mtime_ns != at}
    assert after == {tmp_path / "out/c.txt"}


def test_killed_at_any_moment_it_goes_on_to_the_same_files(tmp_path):
    """Repeated SIGKILL; a file under its final name is never incomplete."""
    rng = np.random.default_rng(0)
    content = {f"folder/{number:04d}": rng.bytes(20_000) for number in range(1500)}
    archive = make_tar(tmp_path / "a.tar", content)
    code = "import sys; from pathlib import Path; from cliptex.data.official.unpack import unpack\n"
    code += "print('begin', flush=True); unpack(Path(sys.argv[1]), 'tar', Path(sys.argv[2]))"
    kills, seen = 0, 0
    for pause in (0.005, 0.01, 0.02, 0.03, 10):
        command = [sys.executable, "-c", code, str(archive), str(tmp_path / "out")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        process.stdout.readline()
        end = time.monotonic() + pause
        while time.monotonic() < end and process.poll() is None:
            time.sleep(0.001)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        there = {name: data for name, data in tree(tmp_path / "out").items() if not name.endswith(".unpacking")}
        assert content.items() >= there.items() and len(there) >= seen
        seen = len(there)
    assert kills and process.returncode == 0 and tree(tmp_path / "out") == content


def test_no_room_is_said_before_and_while_it_is_unpacked(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    for kind in ("tar", "zip"):
        with pytest.raises(CliptexError, match=rf"{tmp_path}/out: 0\.0 GB free, .* needed to unpack archive\.{kind}"):
            unpack(MAKERS[kind](tmp_path / f"archive.{kind}"), kind, tmp_path / "out")
    monkeypatch.undo()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(CliptexError, match=r"out: No space left on device while unpacking archive\.tar; make room"):
        unpack(tmp_path / "archive.tar", "tar", tmp_path / "out")
