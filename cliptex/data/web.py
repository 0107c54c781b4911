"""Download files over HTTP: resume, retry and verify.

Reads   an http or https URL.
Writes  the file, under its final name only when complete and verified; before that, `.{name}.part` in the same folder,
        with the URL, size and ETag in `.{name}.part.json`.
Holds   a file under its final name is verified. Interrupted downloads resume; parallel jobs download a file once.
"""

import logging
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from email.utils import parsedate
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib import request
from urllib.error import HTTPError
from urllib.parse import urlsplit

from cliptex import __version__
from cliptex.core.errors import CliptexError
from cliptex.core.files import NO_SPACE, digest_file, read_json, write_json
from cliptex.core.progress import track
from cliptex.core.redact import escape_controls, without_credentials
from cliptex.data.img2dataset_job import LimitedResponse, http_opener

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
        with _open(url, {"Range": f"bytes=0-{count - 1}"}, PEEK_TIMEOUT_S) as response:
            size = _range(response, 0, None) if response.status == 206 else _length(response)
            data = response.read(count)
            _refuse_page(response, data, url, key)
            return data, size
    except (OSError, HTTPException) as error:
        raise CliptexError(f"{key}: {url} cannot be read ({_reason(error)}); correct the URL, or try again") from error


def _check_url(url: str, key: str) -> None:
    try:
        parts = urlsplit(url)
        url.encode("ascii")
        if re.search(r"[\s\x00-\x1f\x7f]", url):
            raise ValueError("it has a blank")
        if parts.scheme in ("http", "https") and (not parts.hostname or parts.port == 0):
            raise ValueError("no host or port")
    except ValueError as error:  # also of the port
        raise CliptexError(f"{key}: {url!r} is not a valid URL ({error}); correct it") from error
    if parts.username is not None:
        raise CliptexError(
            f"{key}: {url} contains a user name or password, which would be recorded; download"
            " the file by other means and give its path"
        )
    if parts.scheme not in ("http", "https"):
        raise CliptexError(f"{key}: {url} is not an http or https URL; for a local file, give its path")


def check_digest(path: Path, digest: str, subject: str, remedy: str, remove: bool = False) -> None:
    """Raise CliptexError, from `subject` to `remedy`, if a file has another digest ("sha256:..." or "md5:...").

    remove: whether to delete such a file.
    """
    algorithm, _, expected = digest.partition(":")
    actual = digest_file(path, algorithm)
    if not actual.startswith(expected):
        if remove:
            path.unlink()
        name = {"sha256": "SHA-256", "md5": "MD5"}[algorithm]
        raise CliptexError(f"{subject} is not the expected file: its {name} is {actual}, not {expected}; {remedy}")


def _state_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _fetch_with_retries(url: str, part: Path, key: str, resume: bool) -> None:
    for pause in (*PAUSES_S, None):
        try:
            _fetch(url, part, key, resume)
        except HTTPError as error:
            if error.code == 416:  # the partial file is longer than the remote one, or of another file
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code not in (408, 425, 429):
                raise CliptexError(
                    f"{key}: {url} responds with {error.code} {_reason(error.reason)}; correct the URL"
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
                f"{key}: {url} cannot be downloaded ({_reason(problem)}); run the same command again, it resumes after"
                f" {done} bytes"
            ) from problem
        log.warning("%s: %s; next attempt in %d s", url, _reason(problem), pause)
        time.sleep(pause)


def _reason(error: object) -> str:
    """One line about an error; urllib's have several, and a server writes some of them."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _open(url: str, headers: dict[str, str], timeout: float) -> LimitedResponse:
    """Send a request. Raises OSError for a response that has no file, or if a redirect leads to an invalid URL."""
    # for the headers, and for the bodies of redirects, which urllib reads
    opener = http_opener(type("Response", (LimitedResponse,), {"max_seconds": SLOW_S, "max_bytes": BLOCK}))
    headers = {"User-Agent": AGENT, "Accept-Encoding": "identity", **headers}
    try:
        answer = opener.open(request.Request(url, headers=headers), timeout=timeout)
    except (ValueError, OverflowError) as error:  # OverflowError: a port above 65535
        raise OSError(f"it redirects to an invalid URL: {error}") from error
    encoding = answer.headers.get("Content-Encoding", "identity").lower()
    if answer.status not in ((200, 203, 206) if "Range" in headers else (200, 203)):
        problem = f"it responds with {answer.status} {answer.reason}, without the file"
    elif encoding != "identity" and not urlsplit(url).path.endswith((".gz", ".tgz")):
        problem = f"it sends the file with the encoding {encoding!r}, which was not asked for"
    else:
        return answer
    answer.close()
    raise OSError(problem)


def _length(response: HTTPResponse) -> int | None:
    """The length of the body; None if the server does not state it. Raises OSError for contradictory statements."""
    values = {part.strip() for value in response.headers.get_all("Content-Length", []) for part in value.split(",")}
    if response.chunked or not values:
        return None
    if len(values) > 1 or not re.fullmatch("[0-9]{1,18}", min(values)):
        raise OSError(f"its Content-Length is {' and '.join(sorted(values))[:60]!r}")
    return int(min(values))


def _range(response: HTTPResponse, first: int, expected: int | None) -> int | None:
    """The size of the whole file, of which a response with status 206 has the bytes from `first` on; None if unknown.
    Raises OSError for another range, or if the size is not `expected`."""
    stated = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", stated.strip())
    size = None if not found or found[3] == "*" else int(found[3])
    if not found or int(found[1]) != first or (None not in (expected, size) and size != expected):
        raise OSError(f"it sends the range {stated[:60]!r}, not the bytes from {first} of {expected or 'the file'} on")
    return size


def _refuse_page(response: HTTPResponse, start: bytes, url: str, key: str) -> None:
    """Raises CliptexError for HTML, whether the server says so or the file begins so."""
    text = start[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if response.headers.get_content_type() == "text/html" or text.startswith((b"<!doctype html", b"<html", b"<head")):
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
    # without credentials: others may read the file, and the same file is signed anew each day
    address = without_credentials(url)
    state = _state(part)
    done = part.stat().st_size if state.get("url") == address else 0
    headers = {}
    if done and (state["validator"] or resume):
        if done == state["bytes"]:
            return
        headers["Range"] = f"bytes={done}-"
        if state["validator"]:  # if the file has changed, the server sends all of it
            headers["If-Range"] = state["validator"]
    with _open(url, headers, TIMEOUT_S) as response:
        total = _length(response)
        resumed = response.status == 206
        if resumed:
            total = _continued(response, part, done, state)
        else:
            done = 0
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - done > free:
            raise CliptexError(
                f"{part.parent}: {free:,} bytes free, {total - done:,} needed for {url}; make room, then run the same"
                " command again"
            )
        blocks = _check_rate(iter(lambda: _read(response), b""))
        start = b"" if resumed else next(blocks, b"")
        if not resumed:
            _refuse_page(response, start, url, key)
            if not start:
                raise OSError("it sends an empty file")
            tag = response.headers.get("ETag")
            # weak tags are not valid for ranges
            validator = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")
            write_json(_state_file(part), {"url": address, "validator": validator, "bytes": total})
        with part.open("ab" if resumed else "wb") as file:
            file.write(start)
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


def _read(response: HTTPResponse) -> bytes:
    """The next bytes of the body, whose trailers have a deadline."""
    response.deadline.end = time.monotonic() + 2 * SLOW_S
    return response.read1(BLOCK)


def _continued(response: HTTPResponse, part: Path, done: int, state: dict[str, Any]) -> int | None:
    """The size of the file of which a response continues `part`. Raises OSError, and deletes that, if it does not: some
    servers send the rest of another file."""
    try:
        validator = state["validator"] or ""
        now = response.headers.get("Last-Modified" if parsedate(validator) else "ETag")
        if validator and now not in (None, validator):
            raise OSError("the file has changed since the download began")
        return _range(response, done, state["bytes"])
    except OSError:
        part.unlink()
        raise


def _state(part: Path) -> dict[str, Any]:
    """URL, validator and size of a partial download; empty if there is none, or if the file does not say so."""
    if not part.is_file() or not _state_file(part).is_file():
        return {}
    try:
        state = read_json(_state_file(part))
    except CliptexError:
        return {}
    return state if isinstance(state, dict) and state.keys() >= {"url", "validator", "bytes"} else {}
