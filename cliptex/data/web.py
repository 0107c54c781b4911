"""Download files over HTTP: resume, retry and verify.

Reads   an http or https URL.
Writes  the file, under its final name only when complete and verified; before that, `.{name}.part` in the same folder,
        with the URL, size and ETag in `.{name}.part.json`.
Holds   a file under its final name is verified. Interrupted downloads resume; parallel jobs download a file once.
"""

import logging
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib import request
from urllib.error import HTTPError
from urllib.parse import urlsplit

from cliptex import __version__
from cliptex.core.errors import CliptexError
from cliptex.core.files import NO_SPACE, digest_file, read_json, write_json
from cliptex.core.progress import track
from cliptex.core.redact import escape_controls, without_secrets
from cliptex.data.img2dataset_job import TimedResponse, http_opener

log = logging.getLogger("cliptex")
PAUSES_S = (1, 4, 16, 64)
"""Seconds between attempts."""
AGENT = f"cliptex/{__version__}"
TIMEOUT_S = 60
PEEK_TIMEOUT_S = 10
MIN_BYTES_S, SLOW_S = 1000, 60
"""An attempt fails if the rate stays below MIN_BYTES_S for SLOW_S seconds, or if the headers take longer than that."""
BLOCK = 1 << 20
MIN_FREE_BYTES = 1 << 30
"""Free disk space below which a download of unknown length fails."""


def fetch_file(
    url: str,
    path: Path,
    key: str,
    digest: str | None = None,
    remedy: str = "correct the URL",
    replace: bool = False,
) -> None:
    """Download `url` to `path`, unless the file exists and `replace` is false.

    digest: "sha256:" or "md5:" and the hexadecimal digits, or the first of them. Raises CliptexError, beginning with
    `key`, if the download fails, is a web page, or has another digest (this message ends with `remedy`).
    """
    from filelock import FileLock

    _check_url(url, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with FileLock(path.with_name(f".{path.name}.lock")):  # two jobs may download the same file
        if path.is_file() and not replace:
            return
        log.info("downloading %s", url)
        _fetch_with_retries(url, part, key, resume=digest is not None)
        if digest:
            check_digest(part, digest, f"{key}: {url}", remedy, remove=True)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
        _state_file(part).unlink(missing_ok=True)


def start_of_file(url: str, key: str, count: int) -> tuple[bytes, int | None]:
    """The first `count` bytes of a remote file (all of a shorter one), and its size if the server states it.

    No retries. Raises CliptexError, beginning with `key`, if they cannot be fetched or belong to a web page.
    """
    _check_url(url, key)
    try:
        with _open(TimedResponse, url, {"Range": f"bytes=0-{count - 1}"}, PEEK_TIMEOUT_S) as response:
            _refuse_page(response, url, key)
            length = response.headers.get("Content-Range" if response.status == 206 else "Content-Length", "")
            size = length.rpartition("/")[2]
            return response.read(count), int(size) if size.isdecimal() else None
    except (OSError, HTTPException) as error:
        raise CliptexError(f"{key}: {url} cannot be read ({error}); correct the URL, or try again") from error


def _check_url(url: str, key: str) -> None:
    parts = urlsplit(url)
    if parts.username is not None:
        raise CliptexError(
            f"{key}: {without_secrets(url)} contains a user name or password, which would be recorded; download"
            " the file by other means and give its path"
        )
    if parts.scheme not in ("http", "https"):
        raise CliptexError(f"{key}: {url} is not an http or https URL; for a local file, give its path")


def check_digest(path: Path, digest: str, subject: str, remedy: str, remove: bool = False) -> None:
    """Raise CliptexError, from `subject` to `remedy`, if a file has another digest ("sha256:..." or "md5:...").

    remove: delete such a file.
    """
    algorithm, _, expected = digest.partition(":")
    actual = digest_file(path, algorithm)
    if not actual.startswith(expected):
        if remove:
            path.unlink()
        name = {"sha256": "SHA-256", "md5": "MD5"}[algorithm]
        raise CliptexError(f"{subject} is not the expected file: its {name} is {actual}, not {expected}; {remedy}")


def _state_file(part: Path) -> Path:
    """URL, validator and size of a partial download."""
    return part.with_name(f"{part.name}.json")


def _fetch_with_retries(url: str, part: Path, key: str, resume: bool) -> None:
    for pause in (*PAUSES_S, None):
        try:
            _fetch(url, part, key, resume)
        except HTTPError as error:
            if error.code == 416:  # the partial file is longer than the remote one, or of another file
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code not in (408, 429):
                raise CliptexError(
                    f"{key}: {url} responds with {error.code} {error.reason}; correct the URL"
                ) from error
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
            done = part.stat().st_size if part.exists() else 0
            raise CliptexError(
                f"{key}: {url} cannot be downloaded ({problem}); run the same command again, it resumes after {done}"
                " bytes"
            ) from problem
        log.warning("%s: %s; next attempt in %d s", url, problem, pause)
        time.sleep(pause)


class _Headers(TimedResponse):
    """A response with a deadline for its headers only."""

    def begin(self):
        super().begin()
        self.deadline.end = math.inf


def _open(response: type[TimedResponse], url: str, headers: dict[str, str], timeout: float) -> HTTPResponse:
    """Send a request; the deadline of `response` is SLOW_S seconds."""
    opener = http_opener(type("Response", (response,), {"max_seconds": SLOW_S}))
    headers = {"User-Agent": AGENT, "Accept-Encoding": "identity", **headers}
    return opener.open(request.Request(url, headers=headers), timeout=timeout)


def _refuse_page(response: HTTPResponse, url: str, key: str) -> None:
    if response.headers.get_content_type() == "text/html":
        raise CliptexError(f"{key}: {url} is a web page, not a file; download the file manually and give its path")


def _check_rate(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield `blocks`; raise OSError if the rate stays below MIN_BYTES_S, which a socket timeout does not detect."""
    start, received = time.monotonic(), 0
    for block in blocks:
        received += len(block)
        seconds = time.monotonic() - start
        if seconds >= SLOW_S:
            if received < MIN_BYTES_S * seconds:
                raise OSError(f"too slow: {received / seconds:.0f} bytes per second for {seconds:.0f} s")
            start, received = time.monotonic(), 0
        yield block


def _fetch(url: str, part: Path, key: str, resume: bool) -> None:
    """One attempt. Raises OSError if the response ends early, and CliptexError if it is a web page.

    resume: also resume if the server sends no validator (ETag, Last-Modified) to tell whether the file has changed.
    """
    state = read_json(_state_file(part)) if part.exists() and _state_file(part).exists() else {}
    done = part.stat().st_size if state.get("url") == url else 0
    headers = {}
    if done and (state["validator"] or resume):
        if done == state["bytes"]:
            return
        headers["Range"] = f"bytes={done}-"
        if state["validator"]:  # if the file has changed, the server sends all of it
            headers["If-Range"] = state["validator"]
    with _open(_Headers, url, headers, TIMEOUT_S) as response:
        _refuse_page(response, url, key)
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        if not resumed:
            done = 0
        length = response.headers.get("Content-Length")
        total = None if length is None else done + int(length)
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - done > free:
            raise CliptexError(
                f"{part.parent}: {free:,} bytes free, {total - done:,} needed for {url}; make room, then run the same"
                " command again"
            )
        if not resumed:
            tag = response.headers.get("ETag")
            # weak tags are not valid for ranges
            validator = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")
            write_json(_state_file(part), {"url": url, "validator": validator, "bytes": total})
        with part.open("ab" if resumed else "wb") as file:
            blocks = _check_rate(iter(lambda: response.read1(BLOCK), b""))
            # without the query string, which may hold credentials
            for block in track(blocks, f"download {escape_controls(urlsplit(url).path.rpartition('/')[2])}, blocks"):
                if total is None and shutil.disk_usage(part.parent).free < MIN_FREE_BYTES:
                    raise CliptexError(
                        f"{part.parent}: less than {MIN_FREE_BYTES:,} bytes free, and the size of {url} is unknown;"
                        " make room, then run the same command again"
                    )
                file.write(block)
    size = part.stat().st_size
    if total is not None and size != total:
        raise OSError(f"the response ended early, after {size} of {total} bytes")
