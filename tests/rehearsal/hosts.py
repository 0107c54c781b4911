"""A server that plays the hosts of a run's data and weights, as those of the first day: the Hugging Face hub, the
publishers of archives, the sites of images."""

import hashlib
import re
from pathlib import Path

from web_server import WebServer

COMMIT = "c0ffee" + "0" * 34
BLOCK = 1 << 20
SMALL = (".json", ".md", ".txt")
"""Files that are not in the hub's storage of large files."""


class Hosts(WebServer):
    """`published`: path -> file. `repositories`: "owner/name" or "datasets/owner/name" -> folder, on the hub.

    busy: paths whose first request is refused with 429. cut: paths whose first response ends after a third.
    """

    def __init__(self) -> None:
        super().__init__()
        self.published: dict[str, Path] = {}
        self.repositories: dict[str, Path] = {}
        self.busy: set[str] = set()
        self.cut: set[str] = set()
        self.stored: dict[str, Path] = {}  # SHA-256 -> file

    def answer(self, handler, body: bool = True) -> None:
        path = handler.path.partition("?")[0]
        on_hub = re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if path in self.busy:
            self.busy.discard(path)
            self.requests[f"429 {path}"] += 1
            self.send(handler, 429, b"", **{"Retry-After": "1"})
        elif on_hub:
            self.requests[path] += 1
            self._resolve(handler, *on_hub.groups())
        elif path.startswith("/api/resolve-cache/"):
            self.requests[path] += 1
            repository, _, name = path.removeprefix("/api/resolve-cache/").partition(f"/{COMMIT}/")
            self._send_file(handler, path, self.repositories[repository] / name, {"X-Repo-Commit": COMMIT}, body)
        elif path.startswith("/cdn/"):
            self.requests[path] += 1
            self._send_file(handler, path, self.stored[path.removeprefix("/cdn/")], {}, body)
        elif path in self.published:
            self.requests[path] += 1
            self._send_file(handler, path, self.published[path], {}, body)
        else:
            super().answer(handler, body)

    def _resolve(self, handler, repository: str, revision: str, name: str) -> None:
        """As the hub: the commit, and a redirect; to another host, with size and SHA-256, for large files."""
        file = self.repositories.get(repository, Path("/nowhere")) / name
        if revision not in ("main", COMMIT) or not file.is_file():
            self.send(handler, 404, b"Entry not found", **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        elif file.suffix in SMALL:
            where = f"/api/resolve-cache/{repository}/{COMMIT}/{name}?etag=1"
            self.send(handler, 307, b"", Location=where, **{"X-Repo-Commit": COMMIT})
        else:
            digest = sha256(file)
            self.stored[digest] = file
            headers = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(file.stat().st_size)}
            headers |= {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            self.send(handler, 302, b"", Location=f"{self.cdn}/cdn/{digest}?X-Amz-Signature=0", **headers)

    def _send_file(self, handler, path: str, file: Path, headers: dict[str, str], body: bool) -> None:
        size, tag = file.stat().st_size, f'"{sha256(file)}"'
        first, last = 0, size - 1
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers["Range"] or "")
        if asked and handler.headers["If-Range"] in (None, tag):
            first, last = int(asked[1]), min(int(asked[2] or last), last)
            headers = {**headers, "Content-Range": f"bytes {first}-{last}/{size}"}
        headers = {**headers, "ETag": tag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        status = 206 if "Content-Range" in headers else 200
        left = last - first + 1
        self.send(handler, status, b"", length=left, **headers)
        if not body:
            return
        if path in self.cut:
            self.cut.discard(path)
            self.requests[f"cut {path}"] += 1
            left //= 3
        with file.open("rb") as opened:
            opened.seek(first)
            while left and (block := opened.read(min(BLOCK, left))):
                handler.wfile.write(block)
                left -= len(block)


DIGESTS: dict[Path, str] = {}


def sha256(file: Path) -> str:
    """Digest of a file, computed once."""
    if file not in DIGESTS:
        with file.open("rb") as opened:
            DIGESTS[file] = hashlib.file_digest(opened, "sha256").hexdigest()
    return DIGESTS[file]
