"""Download one batch of shards of web images with img2dataset. Runs alone, in the environment of img2dataset.

Reads   a list of URLs and captions (TSV, CSV or Parquet; sections `dataset` and `download` of the configuration).
Writes  resources/pairs/batch-000/: img2dataset's tars, tables and statistics with the original images,
        then resources/pairs/batch-000.json, last.
Holds   each row of the list has a row in a table; a kill loses at most the shards being downloaded.

img2dataset downloads. This script adds what it lacks: an opener that refuses private addresses, schemes other than
http(s) and oversized bodies; a check of its output (it exits with 0 even if the disk is full); and a later retry of
rows with errors that may be temporary. It is a single file that imports nothing of cliptex, because img2dataset needs
its own versions of OpenCV, pandas and webdataset; that is why it is this long.
"""

import argparse
import contextlib
import hashlib
import http.client
import io
import ipaddress
import json
import math
import multiprocessing
import os
import select
import shutil
import signal
import socket
import sys
import threading
import time
import urllib.request
from pathlib import Path
from uuid import uuid4

GUARD = "CLIPTEX_DOWNLOAD_GUARD"
RAW = Path("resources/pairs")
FINAL = Path("results/shards")
BLOCK = 1 << 16
CONTROLS = bytes({*range(32), 127} - set(b"\t\n\r"))
"""Control characters stripped from log output, since servers' messages are untrusted."""
ROW_KEYS = ("files", "columns", "url_column", "caption_column", "sha256_column", "rows", "rows_per_shard")
"""Keys of `dataset.urls` that select a shard's rows; its fingerprint contains the rows in place of them."""


class Refused(OSError):
    """A refused response; the message is the reason."""


NOT_PUBLIC = [
    ipaddress.ip_network(network)
    for network in (
        # the IANA registry of IPv4 special-purpose addresses, and multicast
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/3",
        # that of IPv6 within 2000::/3: Teredo, benchmarking, ORCHID and other protocols; documentation
        "2001::/23", "2001:db8::/32", "3fff::/20",
    )
]  # fmt: skip
UNICAST = ipaddress.ip_network("2000::/3")
NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""Networks without IPv4 see all public IPv4 addresses here."""


def is_public(address: str) -> bool:
    """Whether an address is global unicast, and so is the IPv4 address in it, if any (mapped, NAT64, 6to4, ISATAP).

    Held against the IANA registries here, since Python's `is_global` differs between versions.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6:
        number = int(ip)
        embedded = ip.ipv4_mapped or ip.sixtofour
        if ip in NAT64 or (number >> 32) & 0xFDFFFFFF == 0x5EFE:
            embedded = ipaddress.ip_address(number & 0xFFFFFFFF)
        if embedded and not is_public(str(embedded)):
            return False
        if not (ip in UNICAST or ip.ipv4_mapped or ip in NAT64):
            return False
    return not any(ip in network for network in NOT_PUBLIC)


def public_addresses(host: str, port: int) -> list[str]:
    """Addresses of a host. Raises Refused if one of them is not public, OSError if there is none."""
    addresses = [item[4][0] for item in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not all(map(is_public, addresses)):
        raise Refused("private address")
    return addresses


def connect_to_public(address, timeout=None, source_address=None):
    """`socket.create_connection` to public addresses only. The checked address itself is connected to, so that a second
    DNS lookup cannot return another one."""
    host, port = address
    error = None
    for public_address in public_addresses(host, port):
        try:
            return socket.create_connection((public_address, port), timeout, source_address)
        except OSError as caught:
            error = caught
    raise error


class DeadlineReader(io.RawIOBase):
    """Reads from a socket until the deadline `end` (of `time.monotonic`). A socket's own timeout is per read, so it
    never expires while single bytes keep arriving."""

    def __init__(self, sock: socket.socket, end: float):
        self.raw, self.end = sock.makefile("rb", buffering=0), end

    def readable(self):
        return True

    def readinto(self, buffer):
        if time.monotonic() > self.end:
            raise TimeoutError("timed out")
        return self.raw.readinto(buffer)

    def close(self):
        self.raw.close()
        super().close()


class TimedResponse(http.client.HTTPResponse):
    """A response whose headers and body must arrive within `max_seconds`."""

    max_seconds = math.inf

    def __init__(self, sock, *args, **options):
        super().__init__(sock, *args, **options)
        self.fp.close()
        self.deadline = DeadlineReader(sock, time.monotonic() + self.max_seconds)
        self.fp = io.BufferedReader(self.deadline)


class LimitedResponse(TimedResponse):
    """A response with a maximum body size; an incomplete body is an error."""

    max_bytes = 0

    def read(self, amt=None):
        if amt is not None:
            return super().read(amt)
        if (self.length or 0) > self.max_bytes:
            raise Refused("too many bytes")
        size, parts = 0, []
        while part := self.read1(BLOCK):
            parts.append(part)
            size += len(part)
            if size > self.max_bytes:
                raise Refused("too many bytes")
        if self.length:
            raise http.client.IncompleteRead(b"", self.length)
        return b"".join(parts)


def http_opener(
    response: type[http.client.HTTPResponse], allow_private: list[str] | None = None
) -> urllib.request.OpenerDirector:
    """An opener for http and https only, also for redirects (urllib's default also follows them to ftp).

    allow_private: hosts that may have private addresses, None for all; a proxy is responsible for checking addresses.
    """

    def connection(kind, request):
        def make(host, **options):
            made = kind(host, **options)
            made.response_class = response
            if not (allow_private is None or made.host in allow_private or request.has_proxy()):
                made._create_connection = connect_to_public
            return made

        return make

    class HttpHandler(urllib.request.HTTPHandler):
        def http_open(self, request):
            return self.do_open(connection(http.client.HTTPConnection, request), request)

    class HttpsHandler(urllib.request.HTTPSHandler):
        def https_open(self, request):
            return self.do_open(connection(http.client.HTTPSConnection, request), request, context=self._context)

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        HttpHandler(),
        HttpsHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def guarded_opener(max_bytes: int, max_seconds: float, allow_private: list[str]) -> urllib.request.OpenerDirector:
    """An opener with limits for an image of the web, to public addresses and the hosts in `allow_private`."""
    limits = {"max_bytes": max_bytes, "max_seconds": max_seconds}
    return http_opener(type("Response", (LimitedResponse,), limits), allow_private)


def die_with_parent() -> None:
    """End this process when its parent ends: img2dataset's workers would otherwise continue to write after a kill."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_with_workers(say) -> None:
    """End this process when one of its workers is killed: the pool would otherwise wait for its shard forever."""
    workers = set()

    def watch():
        while True:
            time.sleep(0.5)
            workers.update(multiprocessing.active_children())
            for code in [worker.exitcode for worker in workers]:
                if code not in (None, 0, -signal.SIGTERM):  # the pool ends them with SIGTERM
                    say(f"a worker of img2dataset ended with code {code} (-9: killed, probably out of memory)")
                    os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def output_to(log: Path | None):
    """Redirect the output of this process and its children to a file; once the file cannot be written, discard it.

    The children print into a pipe: img2dataset prints its errors, and hangs if printing fails as well, for example
    because the log is on the full disk.
    """
    if log is None:
        yield
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    file = log.open("wb", buffering=0)
    read_end, write_end = os.pipe()
    saved, ended = (os.dup(1), os.dup(2)), threading.Event()

    def copy():
        while select.select([read_end], [], [], 0.1)[0] or not ended.is_set():
            if select.select([read_end], [], [], 0)[0]:
                part = os.read(read_end, BLOCK)
                if not part:
                    return
                with contextlib.suppress(OSError):
                    file.write(part.translate(None, CONTROLS))

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    os.dup2(write_end, 1)
    os.dup2(write_end, 2)
    os.close(write_end)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        ended.set()
        thread.join()


def read_list(path: Path, columns: list[str]):
    """Iterate over the record batches of a URL list; the file name determines the format."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    kinds = [suffix for suffix in path.suffixes if suffix in (".tsv", ".csv", ".parquet")]
    if not kinds:
        raise SystemExit(f"{path}: not a URL list; give a .tsv, .csv (also .gz) or .parquet file")
    tabs = kinds[-1] == ".tsv"
    # the official CC3M list does not use quoting, and some captions begin with a quotation mark
    quoting = {"quote_char": False if tabs else '"', "newlines_in_values": not tabs}
    types = dict.fromkeys(columns, pa.string())
    try:
        if kinds[-1] == ".parquet":
            yield from pa.parquet.ParquetFile(path).iter_batches()
        else:
            yield from pa.csv.open_csv(
                path,
                read_options=pa.csv.ReadOptions(column_names=columns or None),
                parse_options=pa.csv.ParseOptions(delimiter="\t" if tabs else ",", **quoting),
                convert_options=pa.csv.ConvertOptions(column_types=types, strings_can_be_null=False),
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise SystemExit(f"{path}: {' '.join(str(error).split())[:500]}; correct the list") from None


def read_rows(urls: dict, first: int, count: int):
    """Rows `first` to `first + count` of the lists: columns row, url, caption and, if configured, sha256."""
    import pyarrow as pa

    columns = {"url": urls["url_column"], "caption": urls["caption_column"]}
    if urls["sha256_column"]:
        columns["sha256"] = urls["sha256_column"]
    parts, seen = [], 0
    for name in urls["files"]:
        path = Path(name)
        if not path.is_file():
            raise SystemExit(f"{path}: no such file; set dataset.urls.files to the URL lists")
        for batch in read_list(path, urls["columns"]):
            try:
                missing = [column for column in columns.values() if column not in batch.schema.names]
                if missing:
                    raise SystemExit(
                        f"{path}: no column {missing[0]!r} among {str(batch.schema.names)[:500]}; set"
                        " dataset.urls.columns (a list without a header), url_column and caption_column"
                    )
                low, high = max(first - seen, 0), min(first + count - seen, batch.num_rows)
                if low < high:
                    table = pa.table({new: batch.column(old).cast(pa.string()) for new, old in columns.items()})
                    parts.append(table.slice(low, high - low))
            except (
                ValueError,
                RuntimeError,
                LookupError,
            ) as error:  # not UTF-8, lists, a column twice
                raise SystemExit(f"{path}: {' '.join(str(error).split())[:500]}; correct the list") from None
            seen += batch.num_rows
            if seen >= first + count:
                table = pa.concat_tables(parts).combine_chunks()
                filled = [column.fill_null("") for column in table.columns]
                rows = pa.array(range(first, first + count), pa.int64())
                return pa.table({"row": rows, **dict(zip(columns, filled, strict=True))})
    raise SystemExit(f"dataset.urls.rows: the list has only {seen} rows; set this number, or a lower one")


def fingerprint(urls: dict, rows) -> str:
    """Digest of a shard's inputs: its rows, and the configuration that affects its content."""
    config = {key: value for key, value in urls.items() if key not in ROW_KEYS}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in rows.column_names:
        for value in rows.column(name).to_pylist():
            digest.update(f"{value}\0".encode())
    return digest.hexdigest()


def is_complete(folder: Path, number: int, count: int) -> bool:
    """Whether img2dataset has finished a shard: statistics, a table with all rows, a tar with its end mark."""
    import pyarrow.parquet

    if not all((folder / f"{number:05d}{suffix}").is_file() for suffix in ("_stats.json", ".parquet", ".tar")):
        return False
    try:
        stats = json.loads((folder / f"{number:05d}_stats.json").read_text(encoding="utf-8"))
        rows = pyarrow.parquet.ParquetFile(folder / f"{number:05d}.parquet").metadata.num_rows
        with (folder / f"{number:05d}.tar").open("rb") as tar:
            tar.seek(-1024, os.SEEK_END)
            ended = tar.read() == b"\0" * 1024
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(stats, dict) and stats.get("count") == rows == count and ended


def fetch(parts: list, folder: Path, urls: dict, how: dict, processes: int) -> None:
    """Download with img2dataset. parts: tables of rows, one per shard. Complete shards in `folder` are kept."""
    import pyarrow.parquet
    from img2dataset import download

    lists = folder / "lists"
    lists.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)  # signed addresses in the lists and tables are nobody else's business
    for number, rows in enumerate(parts):
        pyarrow.parquet.write_table(rows, lists / f"{number:05d}.parquet")
        if not is_complete(folder, number, rows.num_rows):
            (folder / f"{number:05d}_stats.json").unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # disk full; missing shards are detected below
        download(
            url_list=str(lists),
            output_folder=str(folder),
            input_format="parquet",
            output_format="webdataset",
            url_col="url",
            caption_col="caption",
            save_additional_columns=["row"],
            verify_hash=["sha256", "sha256"] if urls["sha256_column"] else None,
            compute_hash="sha256",
            extract_exif=False,
            # original images: img2dataset's resizing ignores the EXIF orientation and clips 16-bit images to white
            resize_mode="no",
            disable_all_reencoding=True,
            number_sample_per_shard=max(rows.num_rows for rows in parts),
            processes_count=processes,
            thread_count=how["threads"],
            timeout=how["timeout_s"],
            retries=how["retries"],
            user_agent_token=urls["user_agent"],
            disallowed_header_directives=urls["refused_directives"],
            incremental_mode="incremental",
        )
    incomplete = [number for number, rows in enumerate(parts) if not is_complete(folder, number, rows.num_rows)]
    if incomplete:
        for number in incomplete:
            for path in folder.glob(f"{number:05d}[._]*"):
                path.unlink()
        free = shutil.disk_usage(folder).free
        raise SystemExit(
            f"{folder}: img2dataset did not finish {len(incomplete)} of {len(parts)} shards, because of a local error"
            f" ({free >> 20} MiB are free there); see its messages in the log, then run the same command again"
        )


def download_batch(urls: dict, how: dict, batch: int, processes: int) -> None:
    """Download the shards of a batch that are not built yet; write the batch's JSON file."""
    import pyarrow as pa
    import pyarrow.parquet

    size = urls["rows_per_shard"]
    first = batch * how["shards_per_job"]
    last = min(first + how["shards_per_job"], -(-urls["rows"] // size))
    rows = read_rows(urls, first * size, min(last * size, urls["rows"]) - first * size)
    shards, parts = [], []
    for shard in range(first, last):
        part = rows.slice((shard - first) * size, size)
        item = {"shard": f"{shard:05d}", "rows": part.num_rows, "fingerprint": fingerprint(urls, part), "part": None}
        if not is_built(item):
            item["part"] = len(parts)
            parts.append(part)
        shards.append(item)

    # the name depends on the content, so that a changed list or configuration never continues this download
    fingerprints = "".join(item["fingerprint"] for item in shards if item["part"] is not None)
    folder = RAW / f"batch-{batch:03d}" / hashlib.sha256(fingerprints.encode()).hexdigest()[:16]
    for other in folder.parent.glob("*"):
        if other != folder:
            shutil.rmtree(other)
    if parts:
        fetch(parts, folder, urls, how, processes)
        retries = []
        for number in range(len(parts)):
            table = pa.parquet.read_table(folder / f"{number:05d}.parquet", columns=["row", "error_message"])
            messages = zip(*table.to_pydict().values(), strict=True)
            failed = [row for row, message in messages if reason_of(message) in TEMPORARY]
            start = parts[number]["row"][0].as_py()
            if failed:
                retries.append(parts[number].take([row - start for row in sorted(failed)]))
        if retries and how["second_try"]:
            fetch(retries, folder / "again", urls, how, processes)
    path = RAW / f"batch-{batch:03d}.json"
    scratch = path.with_name(f".{path.name}.{uuid4().hex}")
    scratch.parent.mkdir(parents=True, exist_ok=True)
    scratch.write_text(json.dumps({"folder": str(folder), "shards": shards}, indent=1) + "\n", encoding="utf-8")
    scratch.replace(path)


def is_built(item: dict) -> bool:
    """Whether the finished shard exists and was made from the same rows with the same configuration."""
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_schema(FINAL / f"{item['shard']}.parquet").metadata or {}
        shard = json.loads(metadata.get(b"cliptex", b"{}"))
        return shard["fingerprint"] == item["fingerprint"] and shard["bytes"] == Path(shard["path"]).stat().st_size
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


REASONS = (
    ("x-robots-tag", "refused by X-Robots-Tag"),
    ("hash mismatch", "sha256 differs"),
    ("private address", "private address"),
    ("too many bytes", "too many bytes"),
    ("unknown url type", "not http(s)"),
    ("timed out", "timed out"),
    ("ssl", "TLS failed"),
    ("certificate", "TLS failed"),
    ("name or service", "name not resolved"),
    ("name resolution", "name not resolved"),
    ("no address associated", "name not resolved"),
    ("nodename nor servname", "name not resolved"),
    ("incompleteread", "body cut off"),
    ("connection refused", "connection failed"),
    ("connection reset", "connection failed"),
    ("connection aborted", "connection failed"),
    ("remote end closed", "connection failed"),
    ("unreachable", "connection failed"),
    ("no route to host", "connection failed"),
    ("no host given", "bad URL"),
    ("control characters", "bad URL"),
    ("nonnumeric port", "bad URL"),
    ("port must be", "bad URL"),
    ("codec can't encode", "bad URL"),
    ("label empty or too long", "bad URL"),
    ("url", "bad URL"),
)
"""Part of img2dataset's message, in lower case -> reason; the first match counts."""
TEMPORARY = {
    "timed out",
    "name not resolved",
    "body cut off",
    "connection failed",
    *(f"HTTP {code}" for code in (408, 425, 429, 500, 502, 503, 504)),
}
"""Reasons that justify a retry at the end of the job."""


def reason_of(message: str | None) -> str | None:
    """The reason of a failed download, as counted in the index; None without a message."""
    if message is None:
        return None
    text = message.lower()
    if text.startswith("http error "):
        return f"HTTP {text.split()[2].strip(':')}"
    return next((reason for part, reason in REASONS if part in text), "download failed")


def main(arguments: list[str] | None = None) -> None:
    """Download a batch. An error is one line on stderr and exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="JSON with all keys of dataset.urls")
    parser.add_argument("--how", required=True, help="JSON with all keys of download")
    parser.add_argument("--batch", required=True, type=int)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--log", type=Path, help="write the output of img2dataset to this file")
    options = parser.parse_args(arguments)
    urls, how = json.loads(options.config)["dataset"]["urls"], json.loads(options.how)["download"]
    os.environ[GUARD] = json.dumps([urls["max_bytes"], how["max_seconds"], urls["allow_private"]])
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # albumentations would check the web for a new version
    terminal = os.dup(2)

    def say(message: str) -> None:
        for output in (terminal, 2) if options.log else (terminal,):
            os.write(output, f"error: {message}\n".encode())

    with output_to(options.log):
        end_with_workers(say)
        try:
            download_batch(urls, how, options.batch, options.processes)
            return
        except ImportError as error:
            say(
                f"{sys.executable} cannot import img2dataset ({error}); create a separate environment, for example"
                " python3 -m venv .venv-download && .venv-download/bin/pip install img2dataset, and set"
                " download.python to its Python"
            )
        except SystemExit as error:
            say(str(error.code or "interrupted"))  # img2dataset exits with 0 after Ctrl-C
        except OSError as error:
            say(f"{error.filename or RAW}: {error.strerror or error}; fix this, then run the same command again")
    sys.exit(1)


if __name__ in ("__main__", "__mp_main__"):
    # webdataset, which img2dataset imports, would load torch in each process if it is installed: seconds, for no use
    sys.modules["torch"] = None

if __name__ == "__mp_main__" and GUARD in os.environ:  # img2dataset's worker processes import this file
    die_with_parent()
    urllib.request.install_opener(guarded_opener(*json.loads(os.environ[GUARD])))

if __name__ == "__main__":
    if sys.getfilesystemencoding() != "utf-8" and "PYTHONUTF8" not in os.environ:  # names of files are UTF-8
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "PYTHONUTF8": "1"})
    main()
