"""The downloader: complete files, downloaded once, resumed, verified; with a local server."""

import hashlib
import shutil
from collections import namedtuple

import numpy as np
import pytest
from web_server import PlannedServer, RawServer, WebServer

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


def head(status: str, *headers: str) -> bytes:
    return "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", *headers, "")).encode()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (head("200 OK", "Content-Length: 3", "Content-Length: 4") + b"abcd", "its Content-Length is '3 and 4'"),
        (head("200 OK", "Content-Length: 3x") + b"abc", "its Content-Length is '3x'"),
        (head("200 OK", "Content-Length: -3") + b"abc", "its Content-Length is '-3'"),
        (head("200 OK", f"Content-Length: {'9' * 5000}") + b"abc", "its Content-Length is '9+'"),
        (head("302 Found", "Location: http://["), "redirects to an invalid URL"),
        (head("302 Found", "Location: {url}"), r"redirect error that would lead to an infinite loop\.?; correct"),
        ((head("302 Found", "Location: {url}"), b"x" * 100_000), "too many bytes"),
        (head("204 No Content"), "responds with 204 No Content, without the file"),
        (head("202 Accepted") + b"later", "responds with 202"),
        (head("206 Partial Content", "Content-Range: bytes 0-2/9") + b"abc", "responds with 206"),
        (head("200 OK") + b"\xef\xbb\xbf\n <!DOCTYPE HTML>", "is a web page"),
        (head("200 OK", "Content-Length: 0"), "sends an empty file"),
        (head("200 OK", "Content-Encoding: gzip") + b"abc", "with the encoding 'gzip'"),
        (head("200 OK", "Transfer-Encoding: chunked") + b"zz\r\nabc", "cannot be downloaded"),
        ((b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"), "got more than 100 headers"),
        ((b"HTTP/1.1 200 OK\r\nX: ", b"y" * 1000), "got more than 65536 bytes"),
        ((b"", head("100 Continue")), "timed out"),
        ((head("200 OK", "Transfer-Encoding: chunked") + b"3\r\nabc\r\n0\r\n", b"X: y\r\n"), "timed out"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH-2.0"),
    ],
)
def test_what_no_file_can_be_is_named_and_never_kept(answer, message, tmp_path, monkeypatch):
    monkeypatch.setattr(downloader, "PAUSES_S", ())
    monkeypatch.setattr(downloader, "SLOW_S", 0.3)
    with RawServer(answer) as server, pytest.raises(CliptexError, match=f"^key: .*{message}") as caught:
        fetch_file(f"{server.url}/net.pth", tmp_path / "net.pth", "key")
    assert "\n" not in str(caught.value) and not (tmp_path / "net.pth").exists()


FIRST = head("200 OK", 'ETag: "a"', "Content-Length: 6") + b"aaa"
WHOLE = head("200 OK", 'ETag: "b"', "Content-Length: 6") + b"bbbbbb"


@pytest.mark.parametrize(
    ("rest", "content"),
    [
        (head("206 Partial Content", 'ETag: "a"', "Content-Range: bytes 3-5/6") + b"aaa", b"aaaaaa"),
        (head("206 Partial Content", "Content-Range: bytes 3-5/*") + b"aaa", b"aaaaaa"),
        (head("206 Partial Content", 'ETag: "b"', "Content-Range: bytes 3-5/6") + b"bbb", b"bbbbbb"),
        (head("206 Partial Content", 'ETag: "a"', "Content-Range: bytes 3-6/7") + b"bbbb", b"bbbbbb"),
        (head("206 Partial Content", 'ETag: "a"', "Content-Range: bytes 0-2/6") + b"bbb", b"bbbbbb"),
        (head("206 Partial Content", 'ETag: "a"') + b"bbb", b"bbbbbb"),
        (head("206 Partial Content", "Content-Type: multipart/byteranges; boundary=x") + b"--x", b"bbbbbb"),
    ],
)
def test_bytes_of_two_files_are_never_joined(rest, content, tmp_path, monkeypatch):
    monkeypatch.setattr(downloader, "PAUSES_S", (0, 0, 0))
    with RawServer(FIRST, rest, WHOLE) as server:
        fetch_file(f"{server.url}/net.pth", tmp_path / "net.pth", "key")
    assert (tmp_path / "net.pth").read_bytes() == content
    assert "Range: bytes=3-" in server.asked[1] and 'If-Range: "a"' in server.asked[1]


def test_a_part_of_the_rest_is_not_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(downloader, "PAUSES_S", (0, 0, 0))
    middle = head("206 Partial Content", 'ETag: "a"', "Content-Range: bytes 3-4/6", "Content-Length: 2") + b"aa"
    end = head("206 Partial Content", 'ETag: "a"', "Content-Range: bytes 5-5/6", "Content-Length: 1") + b"a"
    with RawServer(FIRST, middle, end) as server:
        fetch_file(f"{server.url}/net.pth", tmp_path / "net.pth", "key")
    assert (tmp_path / "net.pth").read_bytes() == b"aaaaaa"


@pytest.mark.parametrize("state", ["", "[]", "{}", "[" * 100_000, '{"url": 1, "validator": 2, "bytes": "x"}'])
def test_a_broken_note_about_a_partial_download_begins_it_anew(state, server, tmp_path):
    server.files["/net.pth"] = BODY
    (tmp_path / ".net.pth.part").write_bytes(BODY[:1000])
    (tmp_path / ".net.pth.part.json").write_text(state)
    fetch_file(f"{server.url}/net.pth", tmp_path / "net.pth", "url")
    assert (tmp_path / "net.pth").read_bytes() == BODY


@pytest.mark.parametrize(
    "url",
    ["http://[", "http://", "http://h:99999/", "http://h:x/", "http://h/a b", "http://h/é", "http://h/\n", "http:a"],
)
def test_an_invalid_address_is_named_before_it_is_asked(url, tmp_path):
    for download in (lambda: fetch_file(url, tmp_path / "a", "key"), lambda: start_of_file(url, "key", 9)):
        with pytest.raises(CliptexError, match=r"^key: .* is not a valid URL"):
            download()


def test_a_signed_address_goes_on_with_a_new_signature_and_is_noted_without(server, tmp_path):
    server.files["/net.pth"], server.plan = BODY, ["cut", 503, 503]
    with pytest.raises(CliptexError, match=r"resumes after 100000") as caught:
        fetch_file(f"{server.url}/net.pth?X-Amz-Signature=old-secret", tmp_path / "net.pth", "url")
    assert "secret" not in str(caught.value) + (tmp_path / ".net.pth.part.json").read_text()
    fetch_file(f"{server.url}/net.pth?X-Amz-Signature=new-secret", tmp_path / "net.pth", "url")
    assert (tmp_path / "net.pth").read_bytes() == BODY and server.asked[-1][1] == "bytes=100000-"


def test_progress_shows_no_query(server, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(downloader, "track", lambda blocks, what: shown.append(what) or blocks)
    server.files["/net.pth"] = BODY
    fetch_file(f"{server.url}/net.pth?sig=private/1", tmp_path / "net.pth", "url")
    assert shown == ["download net.pth, blocks"]
