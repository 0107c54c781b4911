import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cliptex.core import files
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_error, read_json, replacing, sha256_file, sha256_json, write_error, write_json


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "out.txt"
    with pytest.raises(RuntimeError), replacing(path) as scratch:
        scratch.write_text("half")
        raise RuntimeError
    assert list(path.parent.iterdir()) == []
    with replacing(path) as scratch:
        scratch.write_text("whole")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_the_old_file_stays_when_writing_fails(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as scratch:
        scratch.write_text("new")
        raise RuntimeError
    assert path.read_text() == "old"


def test_mode_follows_the_umask(tmp_path):
    old = os.umask(0o022)
    try:
        with replacing(tmp_path / "a") as scratch:
            scratch.write_text("x")
        with replacing(tmp_path / "b.safetensors") as scratch:
            save_file({"w": torch.zeros(2)}, scratch)  # which has a mode of its own
    finally:
        os.umask(old)
    for name in ("a", "b.safetensors"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o644


def test_a_scratch_file_is_private_and_another_one_each_time(tmp_path):
    old = os.umask(0)
    try:
        for _ in range(2):
            with replacing(tmp_path / "a") as scratch, scratch.open("w") as file:
                file.write("half")
                (private,) = tmp_path.glob(".a.*")
                assert private == scratch and private.stat().st_mode & 0o777 == 0o600
            assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666
    finally:
        os.umask(old)


def test_scratch_files_of_killed_processes_are_deleted_and_no_others(tmp_path):
    """By the next process that writes to the folder."""
    code = (
        "import os, signal, sys; from pathlib import Path; from cliptex.core.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as scratch:\n"
        "    print(scratch, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if sys.argv[2] == 'kill' else sys.stdin.read()"
    )
    ask = [sys.executable, "-c", code, tmp_path / "00000.tar"]
    killed = Path(subprocess.run([*ask, "kill"], capture_output=True, text=True).stdout.strip())
    running = subprocess.Popen([*ask, "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    alive = Path(running.stdout.readline().strip())
    assert not killed.exists() and alive.exists()  # deleted by the second process
    killed.touch()
    other = alive.name.replace(files._machine(), "0" * 12)
    kept = [tmp_path / name for name in (other, ".hidden", ".00000.notes.tar", f".old.{'0' * 32}.tar")]
    forgotten = [tmp_path / other.replace(".00000.", ".1."), tmp_path / f".older.{'0' * 32}.tar"]
    os.link(alive, tmp_path / ".another name of it")
    for path in (*kept, *forgotten):
        path.touch()
    for path in (alive, *forgotten):  # that of a process that runs stays, however old
        os.utime(path, (0, time.time() - 8 * 24 * 3600))
    files._remove_abandoned.cache_clear()
    write_json(tmp_path / "a.json", 1)
    assert not killed.exists() and not any(path.exists() for path in forgotten)
    assert alive.exists() and all(path.exists() for path in kept)
    running.communicate("")
    assert running.returncode == 0 and not alive.exists() and (tmp_path / "00000.tar").exists()


def test_json_refuses_nan_and_broken_files_are_named(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"x": ', "Expecting value"),
        (b"", "Expecting value"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b"9" * 5000, "Exceeds the limit"),
        (b'{"x": NaN}', "NaN is not a number of JSON"),
        (b"[-Infinity]", "-Infinity is not a number"),
        (b'{"x": 1, "y": {"b": 1, "a": 2, "b": 3}}', "the key 'b' occurs twice"),
        (b'{"x": "\\ud83d"}', "surrogates not allowed"),
        (b'{"\\uDE00": 1}', "surrogates not allowed"),
        ('{"x": "é"}'.encode("latin-1"), "can't decode byte 0xe9"),
        ('{"x": "é"}'.encode("utf-16"), "can't decode byte 0xff"),
        (b"\x00" * 100, "Expecting value"),
    ],
)
def test_what_is_not_strict_json_is_an_error_of_one_line(text, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, remedy in (
        (tmp_path / "mine.json", "replace it"),
        (tmp_path / "results" / "a.json", "restore a copy, or"),
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text)
        with pytest.raises(
            CliptexError, match=rf"{path}: damaged, or not valid JSON \(.*{reason}.*\); {remedy}"
        ) as caught:
            read_json(path)
        assert "\n" not in str(caught.value)


def test_json_that_is_unusual_is_read(tmp_path):
    value = {"emoji": "\U0001f600", "name of a file": "caf\udce9.tar", "deep": [[[[1]]]], "large": 10**400}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert read_json(tmp_path / "a.json", lambda item: sorted(item)) == sorted(value)


def broken(path: Path, how: str, monkeypatch) -> None:
    """Put something in a file's place that says nothing about its content."""
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "below a file":
        path.parent.rmdir()
        path.parent.touch()
    elif how != "missing":
        path.write_bytes(b"")
        number = {"permission": errno.EACCES, "disk": errno.EIO, "mount": errno.ESTALE}[how]
        monkeypatch.setattr(Path, "open", lambda *_, **__: (_ for _ in ()).throw(OSError(number, os.strerror(number))))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", "no such file; run the step that creates it first"),
        ("below a file", "no such file; run the step that creates it first"),
        ("folder", "is a folder, not a file; move it away"),
        ("pipe", "is a pipe, a socket or a device, not a file; move it away"),
        ("permission", "Permission denied; correct its permissions"),
        ("disk", "Input/output error; check the disk or the network file system"),
        ("mount", "Stale file handle; check the disk or the network file system"),
    ],
)
def test_a_file_that_cannot_be_read_is_never_to_be_deleted(how, said, tmp_path, monkeypatch):
    """Neither JSON, nor a file to be identified, nor what a library says about it."""
    monkeypatch.chdir(tmp_path)
    path = Path("results/of a run/a.json")
    path.parent.mkdir(parents=True)
    broken(path, how, monkeypatch)
    readers = (read_json, sha256_file, lambda path: files.require_file(path))
    for read in readers:
        with pytest.raises(CliptexError, match=rf"^{path}: {said}") as caught:
            read(path)
        assert "delete" not in str(caught.value) and "\n" not in str(caught.value)
    for error in (RuntimeError("unable to open file"), ValueError("bad\nmagic"), OSError("truncated")):
        assert str(read_error(error, path, "a table")).startswith(f"{path}: {said}")


def test_a_readable_file_with_other_content_may_be_made_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    for path in (Path("results/a"), Path("mine")):
        path.write_text("x")
    said = (
        "results/a: damaged, or not a table (bad magic); restore a copy, or delete it, and run the same command again"
    )
    assert str(read_error(ValueError("bad magic\nmore"), Path("results/a"), "a table")) == said
    assert (
        str(read_error(ValueError("x"), Path("mine"), "a table"))
        == "mine: damaged, or not a table (x); replace it with a complete copy"
    )
    assert "delete" not in str(read_error(MemoryError(), Path("results/a"), "a table"))
    assert "delete" not in str(read_error(OSError(errno.EIO, "Input/output error"), Path("results/a"), "a table"))


def test_what_is_in_the_way_of_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path, said in (
        (tmp_path / "file" / "a.json", r"file.*: (Not a directory|File exists); move away"),
        (tmp_path / "folder", "folder: is a folder, not a file; move it away"),
    ):
        with pytest.raises(CliptexError, match=said):
            write_json(path, 1)
    assert not list((tmp_path / "folder").iterdir())


@pytest.mark.skipif(shutil.which("localedef") is None, reason="needs localedef")
def test_names_and_texts_are_utf8_whatever_the_locale(tmp_path):
    from cliptex.data.shards import Pair, write_shard

    subprocess.run(["localedef", "-i", "en_US", "-f", "ISO-8859-1", tmp_path / "en_US.ISO-8859-1"], check=True)
    unset = ("LC_", "LANG", "PYTHONUTF8", "PYTHONIOENCODING")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
    environment |= {"LOCPATH": str(tmp_path), "LC_ALL": "en_US.ISO-8859-1"}
    (tmp_path / "größe").mkdir()
    write_shard(tmp_path / "größe" / "日本.tar", [Pair("0", b"", "日本", {})])
    config = {"dataset": {"source": "webdataset", "shards": ["größe/日本.tar"]}}
    command = [sys.executable, "-m", "cliptex", "--log", "größe/日.log", "build-shards", "--batch=0", "--config"]
    done = subprocess.run([*command, json.dumps(config)], cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert read_json(tmp_path / "results/shards/batch-000.json")["shards"][0]["path"] == "größe/日本.tar"
    assert "größe/日本.tar" in (tmp_path / "größe" / "日.log").read_text(encoding="utf-8")
    failed = subprocess.run([*command, "日本.yaml"], cwd=tmp_path, env=environment, capture_output=True)
    assert failed.returncode == 1 and "日本.yaml: " in failed.stderr.decode("utf-8")


def test_digests(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_json({"a": 1, "b": 2}) == sha256_json(json.loads('{"b": 2, "a": 1}'))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:668] . file write failed: No space left on device"),
        OSError("Can't write data (file write failed: errno = 28, error message = 'No space left on device')"),
    ],
)
def test_a_full_disk_is_named_whatever_the_writer_says(tmp_path, error):
    path = tmp_path / "tensors.bin"
    with (
        pytest.raises(CliptexError, match=r"tensors\.bin: No space left on device; make room, then run the same"),
        replacing(path),
    ):
        raise error
    assert not list(tmp_path.iterdir())


def test_where_nothing_may_be_written_the_file_is_named():
    said = str(write_error(PermissionError(errno.EACCES, "Permission denied", "results/a.json")))
    assert said.startswith("results/a.json: Permission denied; correct its permissions")
    assert write_error(ValueError("no such thing")) is None
    nowhere = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")
    assert str(write_error(nowhere)).startswith("TMPDIR: No usable temporary directory found in ['/tmp']; make room")
    assert write_error(FileNotFoundError(errno.ENOENT, "No such file", "a")) is None


def test_a_scratch_file_that_another_job_took_away_is_an_error_with_a_remedy(tmp_path):
    with (
        pytest.raises(CliptexError, match=r"a\.txt: its scratch file was deleted"),
        replacing(tmp_path / "a.txt") as scratch,
    ):
        scratch.write_text("a")
        scratch.unlink()
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a.txt"):
        (tmp_path / "another").read_text()
