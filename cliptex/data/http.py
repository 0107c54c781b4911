"""Fetch a file from the web: what was interrupted goes on, what fails is tried again, what has come is checked. Or look
at its beginning alone.

Reads   an http or https address.
Writes  the file, under its name only when it is whole and checked; until then beside it, `.{name}.part`, with a note of
        what the server said of it.
Holds   a file under its name is the one wanted. Nothing is fetched twice, whoever asks and however often it was killed.
"""

import io
import logging
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from urllib import request
from urllib.error import HTTPError
from urllib.parse import urlsplit

from cliptex import __version__
from cliptex.core.errors import CliptexError
from cliptex.core.files import NO_SPACE, digest_file, read_json, write_json
from cliptex.core.progress import track
from cliptex.core.redact import harmless, without_secrets
from cliptex.data.img2dataset_job import Until

log = logging.getLogger("cliptex")
PAUSES_S = (1, 4, 16, 64)
"""Waits between attempts."""
AGENT = f"cliptex/{__version__}"
TIMEOUT_S = 60
GLANCE_TIMEOUT_S = 10
LEAST_BYTES_S, SLOW_S = 1000, 60
"""An attempt ends when fewer bytes a second have come for so many seconds, or headers have taken so long."""
BLOCK = 1 << 20
SPARED = 1 << 30
"""Bytes that an answer of unknown length leaves free on the disk."""


def fetch_file(
    url: str,
    path: Path,
    key: str,
    digest: str | None = None,
    remedy: str = "mend the address",
    replace: bool = False,
) -> None:
    """Fetch `url` to `path`; nothing is fetched when it is there already, unless it is to be replaced.

    digest: "sha256:" or "md5:" and the hexadecimal digits, or the first of them. Raises CliptexError, which begins with
    `key`, when the file cannot be had, is a web page, or has another digest; that one ends in `remedy`.
    """
    from filelock import FileLock

    _check_address(url, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with FileLock(path.with_name(f".{path.name}.lock")):  # two jobs may want one file
        if path.is_file() and not replace:
            return
        log.info("downloading %s", url)
        _fetch_patiently(url, part, key, resume=digest is not None)
        if digest:
            check_digest(part, digest, f"{key}: {url}", remedy, remove=True)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
        _note(part).unlink(missing_ok=True)


def start_of_file(url: str, key: str, count: int) -> tuple[bytes, int | None]:
    """The first `count` bytes of a file on the web, or all of a shorter one, and its size where the server says that.

    Tried once. Raises CliptexError, which begins with `key`, when they cannot be had or are of a web page.
    """
    _check_address(url, key)
    headers = {"User-Agent": AGENT, "Accept-Encoding": "identity", "Range": f"bytes=0-{count - 1}"}
    try:
        with _opener(whole=True).open(request.Request(url, headers=headers), timeout=GLANCE_TIMEOUT_S) as answer:
            _refuse_page(answer, url, key)
            whole = answer.headers.get("Content-Range" if answer.status == 206 else "Content-Length", "")
            size = whole.rpartition("/")[2]
            return answer.read(count), int(size) if size.isdecimal() else None
    except (OSError, HTTPException) as error:
        raise CliptexError(f"{key}: {url} cannot be looked at ({error}); mend the address, or try again") from error


def _check_address(url: str, key: str) -> None:
    parts = urlsplit(url)
    if parts.username is not None:
        raise CliptexError(
            f"{key}: {without_secrets(url)} has a user or a password in it, which would be written down with it; fetch"
            " the file by other means and give its path"
        )
    if parts.scheme not in ("http", "https"):
        raise CliptexError(f"{key}: {url} is not an http or https address; give a file that is here by its path")


def check_digest(path: Path, digest: str, what: str, remedy: str, remove: bool = False) -> None:
    """CliptexError, from `what` to `remedy`, where a file has another digest ("sha256:..." or "md5:...")."""
    algorithm, _, wanted = digest.partition(":")
    found = digest_file(path, algorithm)
    if not found.startswith(wanted):
        if remove:
            path.unlink()
        name = {"sha256": "SHA-256", "md5": "MD5"}[algorithm]
        raise CliptexError(f"{what} is not the file wanted: its {name} is {found}, not {wanted}; {remedy}")


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _fetch_patiently(url: str, part: Path, key: str, resume: bool) -> None:
    for pause in (*PAUSES_S, None):
        try:
            _fetch(url, part, key, resume)
        except HTTPError as error:
            if error.code == 416:  # what is here is longer than the file there, or of another one
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code not in (408, 429):
                raise CliptexError(f"{key}: {url} answers {error.code} {error.reason}; mend the address") from error
            problem: Exception = error
        except (OSError, HTTPException) as error:
            if isinstance(error, OSError) and error.errno in NO_SPACE:
                raise CliptexError(
                    f"{part.parent}: {error.strerror} for {url}; make room, then run the same command again"
                ) from error
            problem = error
        else:
            return
        if pause is None:
            here = part.stat().st_size if part.exists() else 0
            raise CliptexError(
                f"{key}: {url} cannot be fetched ({problem}); run the same command again, it goes on after {here} bytes"
            ) from problem
        log.warning("%s: %s; trying again in %d s", url, problem, pause)
        time.sleep(pause)


def _opener(whole: bool = False) -> request.OpenerDirector:
    """Opens http and https alone, redirects included: the usual one would also follow them to ftp. Answers have SLOW_S
    seconds for their headers; with `whole`, for all of them."""

    class Answer(HTTPResponse):
        def __init__(self, sock, *given, **options):
            super().__init__(sock, *given, **options)
            self.fp.close()
            self.until = Until(sock, time.monotonic() + SLOW_S)
            self.fp = io.BufferedReader(self.until)

        def begin(self):
            super().begin()
            if not whole:
                self.until.end = math.inf

    def connection(kind):
        return type("Connection", (kind,), {"response_class": Answer})

    class Http(request.HTTPHandler):
        def http_open(self, req):
            return self.do_open(connection(HTTPConnection), req)

    class Https(request.HTTPSHandler):
        def https_open(self, req):
            return self.do_open(connection(HTTPSConnection), req, context=self._context)

    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        request.UnknownHandler(),
        Http(),
        Https(),
        request.HTTPDefaultErrorHandler(),
        request.HTTPRedirectHandler(),
        request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _refuse_page(answer: HTTPResponse, url: str, key: str) -> None:
    if answer.headers.get_content_type() == "text/html":
        raise CliptexError(f"{key}: {url} is a web page, not a file; download it by hand and give its path")


def _quick_enough(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The blocks. Raises OSError for a server that trickles, which no time limit of a read ends."""
    since, came = time.monotonic(), 0
    for block in blocks:
        came += len(block)
        seconds = time.monotonic() - since
        if seconds >= SLOW_S:
            if came < LEAST_BYTES_S * seconds:
                raise OSError(f"{came / seconds:.0f} bytes a second for {seconds:.0f} s, too slow to wait for")
            since, came = time.monotonic(), 0
        yield block


def _fetch(url: str, part: Path, key: str, resume: bool) -> None:
    """One attempt. Raises OSError when the answer ends early, and CliptexError when it is a web page.

    resume: go on also where the server has nothing by which to tell whether its file is still the same.
    """
    note = read_json(_note(part)) if part.exists() and _note(part).exists() else {}
    have = part.stat().st_size if note.get("url") == url else 0
    headers = {"User-Agent": AGENT, "Accept-Encoding": "identity"}
    if have and (note["validator"] or resume):
        if have == note["bytes"]:
            return
        headers["Range"] = f"bytes={have}-"
        if note["validator"]:  # the whole file comes when it has changed since
            headers["If-Range"] = note["validator"]
    with _opener().open(request.Request(url, headers=headers), timeout=TIMEOUT_S) as answer:
        _refuse_page(answer, url, key)
        resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if not resumed:
            have = 0
        length = answer.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - have > free:
            raise CliptexError(
                f"{part.parent}: {free:,} bytes free, {total - have:,} needed for {url}; make room, then run the same"
                " command again"
            )
        if not resumed:
            tag = answer.headers.get("ETag")
            # a weak tag must not be used for ranges
            validator = tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified")
            write_json(_note(part), {"url": url, "validator": validator, "bytes": total})
        with part.open("ab" if resumed else "wb") as file:
            blocks = _quick_enough(iter(lambda: answer.read1(BLOCK), b""))
            # without the query, which may let one in
            for block in track(blocks, f"download {harmless(urlsplit(url).path.rpartition('/')[2])}, blocks"):
                if total is None and shutil.disk_usage(part.parent).free < SPARED:
                    raise CliptexError(
                        f"{part.parent}: less than {SPARED:,} bytes free, and {url} does not say how long it is; make"
                        " room, then run the same command again"
                    )
                file.write(block)
    size = part.stat().st_size
    if total is not None and size != total:
        raise OSError(f"the answer ended early, after {size} of {total} bytes")
