"""Download one batch of shards of web images with img2dataset. Runs alone, in the environment of img2dataset.

Reads   a list of urls and captions (TSV, CSV or Parquet; sections `dataset` and `download` of the configuration).
Writes  resources/pairs/batch-000/: img2dataset's tars, tables and statistics with the images as they came,
        then resources/pairs/batch-000.json, last.
Holds   every row of the list has a row in a table; a kill loses at most the shards that were being fetched.

img2dataset does the downloading. Here it gets what it lacks: an opener that refuses private addresses, other schemes
than http(s) and endless bodies, a check of what it wrote (it ends with success when its disk is full), and one later
second try of the rows whose failure may have been temporary. This file imports nothing of cliptex, because img2dataset
needs an OpenCV, a pandas and a webdataset of its own.
"""

import argparse
import contextlib
import hashlib
import http.client
import io
import ipaddress
import json
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
"""What servers' messages may not do to the terminal that shows a log."""
WHICH = ("files", "columns", "url_column", "caption_column", "sha256_column", "rows", "rows_per_shard")
"""Keys of `dataset.urls` that say which rows a shard has; in its fingerprint the rows themselves stand for them."""


class Refused(OSError):
    """A response that is not wanted; the message is the reason."""


def public_addresses(host: str, port: int) -> list[str]:
    """Addresses of a host. Raises Refused if any of them is not public, OSError if there is none."""
    found = [item[4][0] for item in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for text in found:
        address = ipaddress.ip_address(text.partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        if not address.is_global or address.is_multicast:
            raise Refused("private address")
    return found


def connect_publicly(address, timeout=None, source_address=None):
    """`socket.create_connection` to public addresses only; the address checked is the one connected to."""
    host, port = address
    error = None
    for found in public_addresses(host, port):
        try:
            return socket.create_connection((found, port), timeout, source_address)
        except OSError as caught:
            error = caught
    raise error


class Until(io.RawIOBase):
    """What comes by a socket until `end` (of `time.monotonic`), which a read's own time limit does not see as long as
    there is a byte now and then."""

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


def limited_response(max_bytes: int, max_seconds: float) -> type[http.client.HTTPResponse]:
    """Responses with a longest duration, and whose body has a largest size; a short one is an error."""

    class Limited(http.client.HTTPResponse):
        def __init__(self, sock, *given, **options):
            super().__init__(sock, *given, **options)
            self.fp.close()
            self.fp = io.BufferedReader(Until(sock, time.monotonic() + max_seconds))

        def read(self, amt=None):
            if amt is not None:
                return super().read(amt)
            if (self.length or 0) > max_bytes:
                raise Refused("too many bytes")
            size, parts = 0, []
            while part := self.read1(BLOCK):
                parts.append(part)
                size += len(part)
                if size > max_bytes:
                    raise Refused("too many bytes")
            if self.length:
                raise http.client.IncompleteRead(b"", self.length)
            return b"".join(parts)

    return Limited


def guarded_opener(max_bytes: int, max_seconds: float, allow_private: list[str]) -> urllib.request.OpenerDirector:
    """An opener for http and https alone, at public addresses and the hosts in `allow_private`, redirects included.

    Behind a proxy, the proxy decides about addresses.
    """
    response = limited_response(max_bytes, max_seconds)

    def connection(kind, request):
        def make(host, **options):
            made = kind(host, **options)
            made.response_class = response
            if made.host not in allow_private and not request.has_proxy():
                made._create_connection = connect_publicly
            return made

        return make

    class Http(urllib.request.HTTPHandler):
        def http_open(self, request):
            return self.do_open(connection(http.client.HTTPConnection, request), request)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, request):
            make = connection(http.client.HTTPSConnection, request)
            return self.do_open(make, request, context=self._context)

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        Http(),
        Https(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def die_with_parent() -> None:
    """End this process when its parent ends: img2dataset's workers would go on writing after a kill."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_with_workers(say) -> None:
    """End this process when one of its workers is killed: their pool would wait for its shard for ever."""
    seen = set()

    def watch():
        while True:
            time.sleep(0.5)
            seen.update(multiprocessing.active_children())
            for code in [worker.exitcode for worker in seen]:
                if code not in (None, 0, -signal.SIGTERM):  # the pool itself ends them so
                    say(f"a worker of img2dataset ended with code {code} (-9: killed, as for want of memory)")
                    os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def output_to(log: Path | None):
    """What this process and its children print goes to a file, and to nowhere once that file takes no more.

    The children print into a pipe: img2dataset prints what it fails at, and waits for ever when that fails too,
    as it does when the log lies on the disk that is full.
    """
    if log is None:
        yield
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    file = log.open("wb", buffering=0)
    out, into = os.pipe()
    before, ended = (os.dup(1), os.dup(2)), threading.Event()

    def copy():
        while select.select([out], [], [], 0.1)[0] or not ended.is_set():
            if select.select([out], [], [], 0)[0]:
                part = os.read(out, BLOCK)
                if not part:
                    return
                with contextlib.suppress(OSError):
                    file.write(part.translate(None, CONTROLS))

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    os.dup2(into, 1)
    os.dup2(into, 2)
    os.close(into)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(before[0], 1)
        os.dup2(before[1], 2)
        ended.set()
        thread.join()


def open_list(path: Path, columns: list[str], wanted: list[str]):
    """Batches of a list of urls as an iterator; the format follows from the name."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    kinds = [suffix for suffix in path.suffixes if suffix in (".tsv", ".csv", ".parquet")]
    if not kinds:
        raise SystemExit(f"{path}: not a list of urls; give a .tsv, .csv (also .gz) or .parquet file")
    if kinds[-1] == ".parquet":
        return pa.parquet.ParquetFile(path).iter_batches()
    tabs = kinds[-1] == ".tsv"
    return pa.csv.open_csv(
        path,
        read_options=pa.csv.ReadOptions(column_names=columns or None),
        # the official CC3M list quotes nothing, and some captions begin with a quotation mark
        parse_options=pa.csv.ParseOptions(
            delimiter="\t" if tabs else ",", quote_char=False if tabs else '"', newlines_in_values=not tabs
        ),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
        ),
    )


def read_list(path: Path, columns: list[str], wanted: list[str]):
    """As `open_list`; what its reader stumbles on is told with the list's name."""
    try:
        yield from open_list(path, columns, wanted)
    except ValueError as error:
        raise SystemExit(f"{path}: {error}; mend the list") from None


def read_rows(urls: dict, first: int, count: int):
    """Rows `first` to `first + count` of the lists: columns row, url, caption and, if there is one, sha256."""
    import pyarrow as pa

    wanted = {"url": urls["url_column"], "caption": urls["caption_column"]}
    if urls["sha256_column"]:
        wanted["sha256"] = urls["sha256_column"]
    parts, seen = [], 0
    for name in urls["files"]:
        path = Path(name)
        if not path.exists():
            raise SystemExit(f"{path}: no such file; dataset.urls.files names the lists of urls")
        for batch in read_list(path, urls["columns"], list(wanted.values())):
            missing = [column for column in wanted.values() if column not in batch.schema.names]
            if missing:
                raise SystemExit(
                    f"{path}: no column {missing[0]!r} among {batch.schema.names}; set dataset.urls.columns (a list"
                    " without a header), url_column and caption_column"
                )
            low, high = max(first - seen, 0), min(first + count - seen, batch.num_rows)
            if low < high:
                table = pa.table({new: batch.column(old).cast(pa.string()) for new, old in wanted.items()})
                parts.append(table.slice(low, high - low))
            seen += batch.num_rows
            if seen >= first + count:
                table = pa.concat_tables(parts).combine_chunks()
                filled = [column.fill_null("") for column in table.columns]
                rows = pa.array(range(first, first + count), pa.int64())
                return pa.table({"row": rows, **dict(zip(wanted, filled, strict=True))})
    raise SystemExit(f"dataset.urls.rows: the list has only {seen} rows; set it to that, or lower")


def fingerprint(urls: dict, rows) -> str:
    """What a shard is made of: its rows and every setting that shapes it."""
    settings = {key: value for key, value in urls.items() if key not in WHICH}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in rows.column_names:
        for value in rows.column(name).to_pylist():
            digest.update(f"{value}\0".encode())
    return digest.hexdigest()


def is_whole(folder: Path, number: int, count: int) -> bool:
    """Whether img2dataset has finished a shard: statistics, a table of all rows, a tar with its end mark."""
    import pyarrow.parquet

    try:
        stats = json.loads((folder / f"{number:05d}_stats.json").read_text())
        rows = pyarrow.parquet.ParquetFile(folder / f"{number:05d}.parquet").metadata.num_rows
        with (folder / f"{number:05d}.tar").open("rb") as tar:
            tar.seek(-1024, os.SEEK_END)
            ended = tar.read() == b"\0" * 1024
    except (OSError, ValueError):
        return False
    return stats["count"] == rows == count and ended


def fetch(parts: list, folder: Path, urls: dict, how: dict, processes: int) -> None:
    """Let img2dataset download tables of rows, one shard each, into `folder`; what is there already is kept."""
    import pyarrow.parquet
    from img2dataset import download

    lists = folder / "lists"
    lists.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(parts):
        pyarrow.parquet.write_table(rows, lists / f"{number:05d}.parquet")
        if not is_whole(folder, number, rows.num_rows):
            (folder / f"{number:05d}_stats.json").unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # no disk left; what is missing is seen below
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
            # kept as they came: img2dataset's resizing ignores how a photograph is turned and whitens 16-bit images
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
    lost = [number for number, rows in enumerate(parts) if not is_whole(folder, number, rows.num_rows)]
    if lost:
        for number in lost:
            for path in folder.glob(f"{number:05d}[._]*"):
                path.unlink()
        free = shutil.disk_usage(folder).free
        raise SystemExit(
            f"{folder}: img2dataset did not finish {len(lost)} of {len(parts)} shards, and not because of the web"
            f" ({free >> 20} MiB are free there); its messages in the log say why; then run the same command again"
        )


def download_batch(urls: dict, how: dict, batch: int, processes: int) -> None:
    """Download the shards of a batch that are not built yet; write the batch's file."""
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

    # named by what is in it, so that another list or other settings never continue what these began
    wanted = "".join(item["fingerprint"] for item in shards if item["part"] is not None)
    folder = RAW / f"batch-{batch:03d}" / hashlib.sha256(wanted.encode()).hexdigest()[:16]
    for other in folder.parent.glob("*"):
        if other != folder:
            shutil.rmtree(other)
    if parts:
        fetch(parts, folder, urls, how, processes)
        again = []
        for number in range(len(parts)):
            table = pa.parquet.read_table(folder / f"{number:05d}.parquet", columns=["row", "error_message"])
            failed = [row for row, why in zip(*table.to_pydict().values(), strict=True) if reason_of(why) in TEMPORARY]
            start = parts[number]["row"][0].as_py()
            if failed:
                again.append(parts[number].take([row - start for row in sorted(failed)]))
        if again and how["second_try"]:
            fetch(again, folder / "again", urls, how, processes)
    done = RAW / f"batch-{batch:03d}.json"
    scratch = done.with_name(f".{done.name}.{uuid4().hex}")
    scratch.parent.mkdir(parents=True, exist_ok=True)
    scratch.write_text(json.dumps({"folder": str(folder), "shards": shards}, indent=1) + "\n")
    scratch.replace(done)


def is_built(item: dict) -> bool:
    """Whether the finished shard is there and was made of the same rows with the same settings."""
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_schema(FINAL / f"{item['shard']}.parquet").metadata or {}
        made = json.loads(metadata.get(b"cliptex", b"{}"))
        return made.get("fingerprint") == item["fingerprint"] and made["bytes"] == Path(made["path"]).stat().st_size
    except (OSError, ValueError):
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
    ("codec can't encode", "bad URL"),
    ("label empty or too long", "bad URL"),
    ("url", "bad URL"),
)
"""Part of img2dataset's message, lower case -> reason; the first that fits."""
TEMPORARY = {
    "timed out",
    "name not resolved",
    "body cut off",
    "connection failed",
    *(f"HTTP {code}" for code in (408, 425, 429, 500, 502, 503, 504)),
}
"""Reasons that are worth a second try later."""


def reason_of(message: str | None) -> str | None:
    """The reason a failed download is counted under; None where there is no message."""
    if message is None:
        return None
    text = message.lower()
    if text.startswith("http error "):
        return f"HTTP {text.split()[2].strip(':')}"
    return next((reason for part, reason in REASONS if part in text), "download failed")


def main(arguments: list[str] | None = None) -> None:
    """Download a batch; an error is one line on stderr and exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="JSON with dataset.urls, all keys filled")
    parser.add_argument("--how", required=True, help="JSON with the section download, all keys filled")
    parser.add_argument("--batch", required=True, type=int)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--log", type=Path, help="write what img2dataset says to this file")
    options = parser.parse_args(arguments)
    urls, how = json.loads(options.config)["dataset"]["urls"], json.loads(options.how)["download"]
    os.environ[GUARD] = json.dumps([urls["max_bytes"], how["max_seconds"], urls["allow_private"]])
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # a library of img2dataset's asks the web for its latest version
    terminal = os.dup(2)

    def say(what: str) -> None:
        message = f"error: {what}\n".encode()
        for output in (terminal, 2) if options.log else (terminal,):
            os.write(output, message)

    with output_to(options.log):
        end_with_workers(say)
        try:
            download_batch(urls, how, options.batch, options.processes)
            return
        except ImportError as error:
            say(
                f"{sys.executable} cannot import img2dataset ({error}); make an environment of its own, for example"
                " python3 -m venv .venv-download && .venv-download/bin/pip install img2dataset, and name its Python in"
                " download.python"
            )
        except SystemExit as error:
            say(str(error.code or "interrupted"))  # img2dataset answers Ctrl-C with success
        except OSError as error:
            say(f"{error.filename or RAW}: {error.strerror or error}; mend that and run the same command again")
    sys.exit(1)


if __name__ in ("__main__", "__mp_main__"):
    # webdataset, which img2dataset brings, would load it into each process where it is there: seconds, for nothing
    sys.modules["torch"] = None

if __name__ == "__mp_main__" and GUARD in os.environ:  # img2dataset's worker processes come by here
    die_with_parent()
    urllib.request.install_opener(guarded_opener(*json.loads(os.environ[GUARD])))

if __name__ == "__main__":
    main()
