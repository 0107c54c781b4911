"""A server that dies in the middle of a file, and locks of downloads that are no more."""

import hashlib
import multiprocessing
import os
import time

import pytest
from commands import PATIENCE_S
from pipeline import fault, moments
from web_server import WebServer

from cliptex.core.errors import CliptexError
from cliptex.data import web as web_files
from cliptex.data.web import fetch_file

pytestmark = pytest.mark.faults
DATA = b"".join(hashlib.sha256(str(number).encode()).digest() for number in range(40_000))


@pytest.mark.parametrize("share", moments("the server", 6))
@pytest.mark.parametrize("known", [True, False], ids=["digest known", "no digest"])
def test_a_server_that_dies_half_way(tmp_path, monkeypatch, share, known):
    """The error states where the next attempt resumes; it resumes there once the server is back."""
    monkeypatch.setattr(web_files, "PAUSES_S", ())
    path, digest = tmp_path / "a.tar", f"sha256:{hashlib.sha256(DATA).hexdigest()}" if known else None
    with fault("server that dies", f"after {share:.0%}, {'with' if known else 'without'} a digest"):
        with WebServer() as server:
            server.files["/a.tar"], server.cut_after = DATA, int(share * len(DATA))
            url = f"{server.url}/a.tar"
            with pytest.raises(CliptexError, match=f"resumes after {server.cut_after} bytes"):
                fetch_file(url, path, "dataset.shards", digest)
            server.cut_after = None
            server.closing.set()
            server.server.shutdown()
            server.server.server_close()
            with pytest.raises(CliptexError, match=f"{url} cannot be downloaded .*same command again"):
                fetch_file(url, path, "dataset.shards", digest)
            assert not path.exists()
            back = WebServer.__new__(WebServer)
            back.__dict__.update(server.__dict__)
            back.server = type(server.server)(("", server.port), server.server.RequestHandlerClass)
            with back:
                fetch_file(url, path, "dataset.shards", digest)
        assert path.read_bytes() == DATA
        assert list(tmp_path.glob("[!.]*")) == [path]


def _hold(path, held) -> None:
    from filelock import FileLock

    with FileLock(path):
        held.set()
        time.sleep(PATIENCE_S)


def test_a_lock_of_a_download_that_was_killed(tmp_path):
    """The lock goes with the process that held it; its file may stay."""
    held = multiprocessing.get_context("spawn").Event()
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(str(tmp_path / ".a.tar.lock"), held))
    with fault("stale lock", "of a download"), WebServer() as server:
        process.start()
        assert held.wait(PATIENCE_S)
        os.kill(process.pid, 9)
        process.join()
        assert (tmp_path / ".a.tar.lock").exists()
        server.files["/a.tar"] = DATA
        fetch_file(f"{server.url}/a.tar", tmp_path / "a.tar", "dataset.shards")
        assert (tmp_path / "a.tar").read_bytes() == DATA
