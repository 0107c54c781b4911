import errno
import json
import os

import pytest
import torch
from safetensors.torch import save_file

from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json, replacing, sha256_file, sha256_json, write_error, write_json


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


def test_json_refuses_nan_and_broken_files_are_named(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()
    (tmp_path / "b.json").write_text('{"x": ')
    with pytest.raises(CliptexError, match=r"b\.json"):
        read_json(tmp_path / "b.json")
    with pytest.raises(CliptexError, match=r"c\.json: no such file"):
        read_json(tmp_path / "c.json")


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
