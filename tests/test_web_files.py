"""The downloader: complete files, downloaded once, resumed, verified; with a local server."""

import hashlib
import shutil
from collections import namedtuple

import numpy as np
import pytest
from web_server import PlannedServer, WebServer

from cliptex.core.errors import CliptexError
from cliptex.data import web as downloader
from cliptex.data.web import fetch_file, start_of_file

BODY = np.random.default_rng(0).bytes(300_000)
DIGEST = hashlib.sha256(BODY).hexdigest()
MD5 = hashlib.md5(BODY).hexdigest()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloader, "PAUSES_S", (0, 0))
    with PlannedServer() as one:
        yield one


def test_a_download_is_checked_and_happens_once(server, tmp_path):
    server.files["/net.pth"] = BODY
    for _ in range(2):
        fetch_file(f"{server.url}/net.pth", tmp_path / "net.pth", "url", f"sha256:{DIGEST[:8]}")
    assert (tmp_path / "net.pth").read_bytes() == BODY
    assert server.asked == [("/net.pth", None)]
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == ["net.pth"]


def test_an_interrupted_download_goes_on_where_it_was(server, tmp_path):
    server.files["/net.pth"], server.plan = BODY, ["cut", 503, "cut"]
    with pytest.raises(CliptexError, match="resumes after 200000 bytes"):
        fetch_file(f"{server.url}/net.pth", tmp_path / "net.pth", "url", f"sha256:{DIGEST}")
    assert not (tmp_path / "net.pth").exists()
    fetch_file(f"{server.url}/net.pth", tmp_path / "net.pth", "url", f"sha256:{DIGEST}")
    assert (tmp_path / "net.pth").read_bytes() == BODY
    assert [asked for _, asked in server.asked] == [None, "bytes=100000-", "bytes=100000-", "bytes=200000-"]


def test_a_file_that_changed_meanwhile_is_fetched_anew(server, tmp_path):
    server.files["/net.pth"], server.plan = BODY[::-1], ["cut", 503, 503]
    with pytest.raises(CliptexError, match="503"):
        fetch_file(f"{server.url}/net.pth", tmp_path / "net.pth", "url")
    server.files["/net.pth"] = BODY
    fetch_file(f"{server.url}/net.pth", tmp_path / "net.pth", "url")
    assert (tmp_path / "net.pth").read_bytes() == BODY


def test_without_a_tag_only_a_file_of_known_digest_goes_on(server, tmp_path):
    """The digest then shows whether the parts belong together."""
    server.tag = None
    url, path = f"{server.url}/net.tar", tmp_path / "net.tar"
    for digest, asked in ((f"md5:{MD5}", [None, "bytes=100000-"]), (None, [None, None])):
        server.files["/net.tar"], server.plan, server.asked = BODY, ["cut"], []
        fetch_file(url, path, "url", digest)
        assert path.read_bytes() == BODY
        assert [asked for _, asked in server.asked] == asked
        path.unlink()


def test_pieces_of_two_files_are_found_out_and_fetched_anew_the_next_time(server, tmp_path):
    server.tag = None
    url, path = f"{server.url}/net.tar", tmp_path / "net.tar"
    server.files["/net.tar"], server.plan = BODY[::-1], ["cut", 503, 503]
    with pytest.raises(CliptexError, match="resumes after 100000 bytes"):
        fetch_file(url, path, "url", f"md5:{MD5}")
    server.files["/net.tar"] = BODY
    with pytest.raises(CliptexError, match=rf"net\.tar is not the expected file: its MD5 is \w+, not {MD5}; try again"):
        fetch_file(url, path, "url", f"md5:{MD5}", "try again")
    assert not path.exists()
    fetch_file(url, path, "url", f"md5:{MD5}", "try again")
    assert path.read_bytes() == BODY


def test_what_came_whole_before_a_kill_is_not_fetched_again(server, tmp_path):
    server.files["/net.tar"] = BODY
    url, path = f"{server.url}/net.tar", tmp_path / "net.tar"
    fetch_file(url, path, "url", f"md5:{MD5}")
    # as it is just before the file gets its name
    path.rename(tmp_path / ".net.tar.part")
    downloader.write_json(tmp_path / ".net.tar.part.json", {"url": url, "validator": None, "bytes": len(BODY)})
    fetch_file(url, path, "url", f"md5:{MD5}")
    assert path.read_bytes() == BODY and len(server.asked) == 1


def test_no_room_is_said_before_anything_is_fetched(server, tmp_path, monkeypatch):
    server.files["/net.tar"] = BODY
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(CliptexError, match=rf"{tmp_path}: 1,000 bytes free, 300,000 needed for .*make room"):
        fetch_file(f"{server.url}/net.tar", tmp_path / "net.tar", "url")
    assert not (tmp_path / ".net.tar.part").exists()


def test_the_beginning_of_a_file_and_its_size_with_or_without_ranges(server):
    server.files = {"/net.tar": BODY, "/short.tar": BODY[:5]}
    assert start_of_file(f"{server.url}/net.tar", "url", 1000) == (BODY[:1000], len(BODY))
    assert start_of_file(f"{server.url}/short.tar", "url", 1000) == (BODY[:5], 5)
    assert server.asked == [("/net.tar", "bytes=0-999"), ("/short.tar", "bytes=0-999")]
    with WebServer() as ranges:
        ranges.files = {"/net.tar": BODY}
        assert start_of_file(f"{ranges.url}/net.tar", "url", 1000) == (BODY[:1000], len(BODY))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///etc/passwd", "not an http or https URL"),
        ("https://me:secret@example.org/a.tar", "contains a user name or password"),
        ("{}/gone.tar", r"cannot be read \(HTTP Error 404"),
        ("{}/page.tar", "is a web page"),
        ("{}/inside.jpg", "cannot be read"),
    ],
)
def test_a_beginning_is_refused_as_a_download_is(url, message, server):
    with WebServer() as web:
        web.private = "file:///etc/passwd"
        server.files, server.plan = {"/page.tar": BODY}, ["page"] if "page" in url else []
        place = url.format(web.url if "inside" in url else server.url)
        with pytest.raises(CliptexError, match=f"^key: .*{message}"):
            start_of_file(place, "key", 10)


@pytest.fixture
def trickling_server(monkeypatch):
    """Given up after a second, without further attempts."""
    monkeypatch.setattr(downloader, "PAUSES_S", ())
    monkeypatch.setattr(downloader, "SLOW_S", 1)
    with WebServer() as running:
        yield running


def test_a_server_that_trickles_is_given_up(trickling_server, tmp_path):
    """Its bytes come often enough for the timeout of a single read."""
    with pytest.raises(CliptexError, match=r"too slow: \d bytes per second for 1 s.*resumes after \d+ bytes"):
        fetch_file(f"{trickling_server.url}/drip.jpg", tmp_path / "drip.jpg", "url")
    assert trickling_server.requests["/drip.jpg"] == 1


def test_headers_and_beginnings_that_trickle_are_given_up(trickling_server, tmp_path):
    with pytest.raises(CliptexError, match=r"cannot be downloaded \(timed out"):
        fetch_file(f"{trickling_server.url}/head.jpg", tmp_path / "head.jpg", "url")
    for name in ("head", "drip"):
        with pytest.raises(CliptexError, match=r"cannot be read \(timed out"):
            start_of_file(f"{trickling_server.url}/{name}.jpg", "url", 1000)
    assert trickling_server.requests == {"/head.jpg": 2, "/drip.jpg": 1}


def test_progress_shows_no_query(server, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(downloader, "track", lambda blocks, what: shown.append(what) or blocks)
    server.files["/net.pth"] = BODY
    fetch_file(f"{server.url}/net.pth?sig=private/1", tmp_path / "net.pth", "url")
    assert shown == ["download net.pth, blocks"]
