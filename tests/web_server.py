"""A web server for tests with good, missing, busy, slow, wrong and hostile responses."""

import contextlib
import hashlib
import io
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image


def picture(seed: int, width: int = 120, height: int = 90, kind: str = "JPEG", **options) -> bytes:
    """A smooth random image without white, encoded."""
    coarse = np.random.default_rng(seed).integers(0, 200, (3, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(out, kind, **options)
    return out.getvalue()


def turned_photograph() -> bytes:
    """A portrait image, 90 x 300, red above blue, stored in landscape format with an EXIF orientation."""
    pixels = np.zeros((300, 90, 3), np.uint8)
    pixels[:150, :, 0], pixels[150:, :, 2] = 200, 200
    image, out = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90), io.BytesIO()
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(out, "JPEG", quality=95, exif=exif)
    return out.getvalue()


def bomb() -> bytes:
    """A valid black and white PNG of 20,000 x 20,000 pixels in about 50 kB; 1.2 GB as RGB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20000, 20000, 1, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 2501 * 20000, 6)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


PAGE = b"<!DOCTYPE html><html><body><h1>404</h1>The page you look for is not here.</body></html>"
PLACEHOLDER = picture(999, 200, 200)


class WebServer:
    """Serves on all loopback addresses. `requests` counts paths; `files` are served with ranges and ETags; `hub` like
    large files of the Hugging Face hub: a redirect that states commit, size and SHA-256.

    Paths: /ok/N.jpg (an image with seed N), /wide.png (400 x 200), /turned.jpg, /404.jpg, /busy/N.jpg (503 once, then
    the image), /down/N.jpg (503 `down` times), /stall.jpg, /drip.jpg (a byte every 0.2 s), /head.jpg (the same, within
    the headers), /cut.jpg (fewer bytes than Content-Length), /endless.jpg, /huge.jpg (a large Content-Length),
    /gone/N.jpg (a placeholder), /page.jpg (HTML with status 200), /bomb.png, /inside.jpg (a redirect to `private`),
    /moved.jpg (a redirect to an image), /robots.jpg (an image with X-Robots-Tag: noai).
    """

    def __init__(self, delay: float = 0.0, down: int = 3) -> None:
        self.requests: Counter[str] = Counter()
        self.files: dict[str, bytes] = {}
        self.hub: dict[str, bytes] = {}
        self.cut_after: int | None = None
        self.private = "http://127.0.0.2/secret.jpg"
        self.delay, self.down, self.closing = delay, down, threading.Event()
        self.bomb = bomb()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                owner.answer(self, body=False)

            def do_GET(self):
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    owner.answer(self)

        # all loopback addresses, so that forbidden requests are detected
        self.server = ThreadingHTTPServer(("", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self.cdn = f"http://127.0.0.3:{self.port}"  # not the hub's host, as for real redirects

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler, body: bool = True) -> None:
        path = handler.path.partition("?")[0]
        own = handler.headers["Host"] in (f"127.0.0.1:{self.port}", self.cdn.removeprefix("http://"))
        self.requests[path if own else handler.headers["Host"]] += 1
        time.sleep(self.delay)
        kind = path.strip("/").rpartition("/")[0]
        if path in self.files:
            return self.file(handler, self.files[path], body)
        if path in self.hub:
            data = self.hub[path]
            digest = hashlib.sha256(data).hexdigest()
            self.files.setdefault(f"/cdn/{digest}", data)
            headers = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data)), "X-Repo-Commit": "0" * 40}
            return self.send(handler, 302, b"", Location=f"{self.cdn}/cdn/{digest}", **headers)
        if path == "/404.jpg":
            return self.send(handler, 404, PAGE)
        if kind in ("busy", "down") and self.requests[path] <= (1 if kind == "busy" else self.down):
            return self.send(handler, 503, b"busy")
        if path == "/stall.jpg":
            handler.wfile.flush()
            self.closing.wait(20)
            return None
        if path in ("/drip.jpg", "/head.jpg"):
            if path == "/drip.jpg":
                self.send(handler, 200, b"\xff\xd8\xff", length=5000)
            else:
                handler.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
            while not self.closing.wait(0.2):
                handler.wfile.write(b"\0")
                handler.wfile.flush()
            return None
        if path == "/cut.jpg":
            return self.send(handler, 200, picture(5)[:1000], length=len(picture(5)))
        if path == "/endless.jpg":
            self.send(handler, 200, b"", length=None)
            while not self.closing.is_set():
                handler.wfile.write(b"\0" * (1 << 20))
            return None
        if path == "/huge.jpg":
            return self.send(handler, 200, b"\xff\xd8\xff", length=10**12)
        if path in ("/inside.jpg", "/moved.jpg"):
            target = self.private if path == "/inside.jpg" else f"{self.url}/ok/77.jpg"
            return self.send(handler, 302, b"", Location=target)
        if path == "/robots.jpg":
            return self.send(handler, 200, picture(6), **{"X-Robots-Tag": "noai, nofollow"})
        content = self.body(path)
        return self.send(handler, 404, PAGE) if content is None else self.send(handler, 200, content)

    def body(self, path: str) -> bytes | None:
        """The final content of a path, after retries and redirects; None if there is none."""
        kind, _, name = path.strip("/").rpartition("/")
        special = {
            "/wide.png": lambda: picture(1, 400, 200, "PNG"),
            "/turned.jpg": turned_photograph,
            "/moved.jpg": lambda: picture(77),
            "/page.jpg": lambda: PAGE,
            "/bomb.png": lambda: self.bomb,
            "/tiny.gif": lambda: picture(2, 1, 1, "GIF"),
            "/strip.jpg": lambda: picture(3, 1200, 70),
            "/empty.jpg": lambda: b"",
        }
        if path in special:
            return special[path]()
        if kind in ("ok", "busy", "down"):
            return picture(int(name.partition(".")[0]))
        return PLACEHOLDER if kind == "gone" else None

    def send(self, handler, status: int, data: bytes, length: int | None = -1, **headers: str) -> None:
        handler.send_response(status)
        length = len(data) if length == -1 else length
        if length is not None:
            handler.send_header("Content-Length", str(length))
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(data)

    def file(self, handler, data: bytes, body: bool) -> None:
        """Serve a file with ETag and ranges. If `cut_after` is set, responses end after so many bytes."""
        tag = f'"{hashlib.sha256(data).hexdigest()}"'
        requested = handler.headers["Range"]
        first = int(requested.removeprefix("bytes=").partition("-")[0]) if requested else 0
        if requested and handler.headers["If-Range"] not in (None, tag):
            requested, first = None, 0
        if requested and first >= len(data):
            return self.send(handler, 416, b"")
        headers = {"ETag": tag, "Accept-Ranges": "bytes", "X-Repo-Commit": "0" * 40}
        if requested:
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        rest = data[first:]
        part = rest if self.cut_after is None or not body else rest[: self.cut_after]
        return self.send(handler, 206 if requested else 200, part, length=len(rest), **headers)


class PlannedServer(ThreadingHTTPServer):
    """Serves `files` (path -> bytes). `plan` has the behaviour of the next responses, `asked` the requests so far.

    plan: an HTTP status, "cut" (a third of the content), or "page" (content type HTML). tag: whether it sends ETags.
    """

    def __init__(self):
        self.files, self.plan, self.asked, self.tag = {}, [], [], True
        super().__init__(("127.0.0.1", 0), PlannedHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class PlannedHandler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server = self.server
        server.asked.append((self.path, self.headers.get("Range")))
        todo = server.plan.pop(0) if server.plan else "whole"
        body = server.files.get(self.path.partition("?")[0])
        if body is None or isinstance(todo, int):
            self.send_response(404 if body is None else todo)
            if body is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        start, wanted = 0, self.headers.get("Range")
        if wanted and self.headers.get("If-Range", etag) == etag:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Type", "text/html" if todo == "page" else "application/octet-stream")
        self.send_header("Content-Length", str(len(body) - start))
        if server.tag:
            self.send_header("ETag", etag)
        self.send_header("X-Repo-Commit", "c0ffee" + "0" * 34)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[start : start + len(body) // 3] if todo == "cut" else body[start:])
            if todo == "cut":
                self.wfile.flush()
                self.connection.close()


class RawServer:
    """Answers each connection with the next of `answers` (the last one again and again), byte by byte as given.

    An answer is bytes, or (bytes, bytes): the second part is sent until the client ends the connection. `asked` has the
    heads of the requests.
    """

    def __init__(self, *answers: bytes | tuple[bytes, bytes]) -> None:
        self.answers, self.asked = answers, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def __enter__(self):
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self._answer, args=(connection, len(self.asked)), daemon=True).start()
                self.asked.append(connection.recv(65536).decode())

    def _answer(self, connection: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError), connection:
            while len(self.asked) <= number:
                time.sleep(0.001)
            answer = self.answers[min(number, len(self.answers) - 1)]
            first, more = answer if isinstance(answer, tuple) else (answer, b"")
            connection.sendall(first.replace(b"{url}", self.url.encode()))
            while more:
                connection.sendall(more)
