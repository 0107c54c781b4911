"""Build shards from img2dataset's downloads or from remote tars, and check the user's own tars.

Reads   resources/pairs/batch-000.json and the files it names (source `urls`), tars at URLs or paths (`webdataset`).
Writes  results/shards/{shard}.tar and .parquet (one row per sample, with the reason if it is dropped),
        then results/shards/batch-000.json, last.
Holds   the same downloads give the same bytes, in whatever order they arrived; each row of the URL list is a row of a
        table. Failures of the web are counted; local failures (disk full, codec missing) stop the job.
"""

import hashlib
import io
import logging
import shutil
import subprocess
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cliptex.config import Config, Urls
from cliptex.core import paths
from cliptex.core.errors import CliptexError, working_on
from cliptex.core.files import NO_SPACE, read_checked, reading, require_file, sha256_file, write_json
from cliptex.core.progress import track
from cliptex.core.redact import without_credentials
from cliptex.data.foreign import copy_tar, decompress
from cliptex.data.images import BadImage, has_orientation, open_image, require_codecs, shrunk
from cliptex.data.img2dataset_job import reason_of
from cliptex.data.shard_index import (
    OK,
    describe_shard,
    read_shard_table,
    require_yield,
    to_table,
    verify_shard,
    write_shard_table,
)
from cliptex.data.shard_paths import is_remote, shard_paths, shard_sources, shards_of_download
from cliptex.data.shards import Pair, compression, write_shard
from cliptex.data.web import PAUSES_S, check_digest, fetch_file, start_of_file

log = logging.getLogger("cliptex")
CHUNK = 256  # samples converted at a time, which bounds the memory
RAW_COLUMNS = dict.fromkeys(("row", "key", "status", "error_message", "url", "caption", "sha256"), pa.string())
RAW_COLUMNS["row"] = pa.int64()
"""The columns of img2dataset's tables that are used."""
MIN_ROWS_FOR_YIELD = 1000  # samples from which a job's yield is checked; of fewer it is too noisy


def run_img2dataset(config: Config, batch: int, processes: int) -> None:
    """Download a batch in the environment of img2dataset (`download.python`); see `cliptex.data.img2dataset_job`."""
    if config.dataset.urls is None:
        raise CliptexError("dataset.urls: is not set, so there is nothing to download")
    python = shutil.which(config.download.python)
    if python is None:
        raise CliptexError(f"download.python: {config.download.python!r} is not a program; give the path of a Python")
    job = Path(__file__).with_name("img2dataset_job.py")
    command = [python, "-P", job, "--batch", batch, "--processes", processes]
    command += ["--config", config.subset("dataset.urls"), "--how", config.subset("download")]
    if subprocess.run(list(map(str, command))).returncode:
        raise CliptexError(f"download of batch {batch}: failed; see the error above")


def build_shards(config: Config, batch: int, threads: int = 1, min_yield: float | None = None) -> dict[str, Any]:
    """Build, or check, the shards of a batch and write `results/shards/batch-000.json`, a list of descriptions.

    Shards that were already built from the same rows with the same configuration are only checked. Raises CliptexError
    for local failures, or if the share of usable samples, of at least 1,000, is below `min_yield` (by default
    `dataset.min_yield`).
    """
    require_codecs()
    numbers, shards = shards_of_download(config, batch), []
    if config.dataset.source == "urls":
        form = {"folder": str, "shards": [{"shard": str, "part": int | None, "rows": int, "fingerprint": str}]}
        downloaded = read_checked(paths.RESOURCES / "pairs" / f"batch-{batch:03d}.json", form)
        for item in downloaded["shards"]:
            with working_on(paths.shard(int(item["shard"]))):
                shards.append(_build(config.dataset.urls, {**item, "folder": Path(downloaded["folder"])}, threads))
    else:
        targets, sources = shard_paths(config), shard_sources(config)
        for number in track(numbers, "check shards"):
            with working_on(sources[number]):
                shards.append(_check(number, targets[number], sources[number], config.dataset.sha256))
    reasons = Counter()
    for shard in shards:
        reasons.update(read_shard_table(_table(shard["shard"]))[1]["status"].to_pylist())
    usable = reasons.pop(OK, 0)
    if usable + sum(reasons.values()) >= MIN_ROWS_FOR_YIELD:
        min_yield = config.dataset.min_yield if min_yield is None else min_yield
        require_yield(usable, reasons, min_yield, f"shards {numbers[0]} to {numbers[-1]}: ")
    out = {"schema_version": 1, "shards": shards}
    write_json(paths.SHARDS / f"batch-{batch:03d}.json", out)
    return out


def built_shards(batches: int) -> Iterator[tuple[dict[str, Any], pa.Table]]:
    """Descriptions and rows of all shards, in order, for `cliptex.data.shard_index.write_index`."""
    for batch in track(range(batches), "index shards"):
        form = {"shards": [{"shard": str, "path": str, "bytes": int}]}
        for shard in read_checked(paths.SHARDS / f"batch-{batch:03d}.json", form)["shards"]:
            path = Path(shard["path"])
            if not path.exists() or path.stat().st_size != shard["bytes"]:
                raise CliptexError(
                    f"{path}: missing or changed since it was checked; mount or restore it, or run:"
                    f" rm -f {paths.SHARDS}/batch-{batch:03d}.json   and then the same command again"
                )
            yield shard, read_shard_table(_table(shard["shard"]))[1]


def _table(shard: str) -> Path:
    return paths.SHARDS / f"{shard}.parquet"


def _existing(path: Path, table: Path, fingerprint: str) -> dict[str, Any] | None:
    """Description of a shard that exists, is complete and has the same fingerprint; None otherwise."""
    if not path.is_file() or not table.is_file():
        return None
    try:
        shard, _ = read_shard_table(table)
    except CliptexError:
        return None
    same = shard.get("fingerprint") == fingerprint and sha256_file(path) == shard["sha256"]
    return shard if same else None


# Source `webdataset`


def _check(number: int, path: Path, source: str, digests: dict[str, str]) -> dict[str, Any]:
    """Download a tar if it is remote, decompress it if it is compressed, read it once, and write its table."""
    fingerprint = without_credentials(source)  # others may read the table, and sources are signed anew each day
    table = _table(f"{number:05d}")
    packed = None
    if not is_remote(source):
        path = Path(source)
        if compression(path):
            packed, path = path, paths.shard(number)
            fingerprint = f"{fingerprint} {sha256_file(packed)}"
    # the user may have replaced a tar; _existing compares its digest
    if description := _existing(path, table, fingerprint):
        return description
    if is_remote(source):
        fetch_tar(source, path, digests.get(source))
        packed = path if compression(path) else None
    if packed:
        decompress(packed, path)
    ignored = Counter()
    rows = verify_shard(path, ignored)
    description = {**describe_shard(number, path, ignored), "fingerprint": fingerprint}
    write_shard_table(table, rows, description)
    return description


def fetch_tar(source: str, path: Path, sha256: str | None = None) -> None:
    """Download a tar from http(s) or the Hugging Face hub (`hf://datasets/owner/name[@revision]/file.tar`), or copy
    what `webdataset.gopen` reads of another source.

    An existing file is replaced; an interrupted download resumes. Raises CliptexError if the server refuses, if the
    file is still incomplete after several attempts, or if its SHA-256 is not `sha256` (by default the hub's).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remedy = "correct dataset.sha256, or try another mirror"
    if source.startswith(("http://", "https://")):
        fetch_file(source, path, "dataset.shards", sha256 and f"sha256:{sha256}", remedy, replace=True)
        return
    if not source.startswith("hf://"):
        copy_tar(source, path)
        if sha256:
            check_digest(path, f"sha256:{sha256}", source, remedy, remove=True)
        return
    part = path.with_name(f".{path.name}.part")
    hub_sha256 = _fetch_from_hub(source, part)
    if digest := sha256 or hub_sha256:
        check_digest(part, f"sha256:{digest}", source, remedy, remove=True)
    part.replace(path)


def start_of_tar(source: str, count: int) -> tuple[bytes, int | None]:
    """The first `count` bytes of a remote tar, and its size; see `start_of_file`. No token is used."""
    if source.startswith("hf://"):
        from huggingface_hub import hf_hub_url

        source = hf_hub_url(**_hub_location(source))
    return start_of_file(source, "dataset.shards", count)


def _hub_location(source: str) -> dict[str, Any]:
    """The location of a tar on the hub, as arguments of huggingface_hub's functions."""
    kind, _, rest = source.removeprefix("hf://").partition("/")
    owner, _, rest = rest.partition("/")
    name, _, filename = rest.partition("/")
    name, _, revision = name.partition("@")
    if kind != "datasets" or not filename:
        raise CliptexError(f"{source}: not a file on the hub; write hf://datasets/owner/name/file.tar")
    return {"repo_id": f"{owner}/{name}", "filename": filename, "repo_type": "dataset", "revision": revision or None}


def _fetch_from_hub(source: str, part: Path) -> str | None:
    """Download to `part`; returns the hub's SHA-256, which is known for large files only."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    location = _hub_location(source)
    for pause in (*PAUSES_S, None):
        try:
            tag = get_hf_file_metadata(hf_hub_url(**location)).etag or ""
            downloaded = hf_hub_download(**location, local_dir=paths.RESOURCES / "pairs" / "hub")
            break
        except Exception as error:  # the library and its dependencies raise many kinds of errors
            if isinstance(error, OSError) and error.errno in NO_SPACE:
                raise
            message = (str(error).strip().splitlines() or [type(error).__name__])[0]
            status = getattr(getattr(error, "response", None), "status_code", None)
            permanent = status is not None and status < 500 and status not in (408, 429)
            if pause is None or permanent or isinstance(error, ValueError):
                raise CliptexError(
                    f"{source}: cannot be downloaded from the hub ({message}); check the name, or try again later,"
                    " which resumes the download"
                ) from error
            log.warning("%s: %s; next attempt in %d s", source, message, pause)
            time.sleep(pause)
    shutil.move(downloaded, part)
    return tag if len(tag) == 64 else None


# Source `urls`


def _build(urls: Urls, item: dict[str, Any], threads: int) -> dict[str, Any]:
    """Build one shard from img2dataset's raw shard, and delete that. part: its number, None if already built."""
    shard, fingerprint = item["shard"], item["fingerprint"]
    path = paths.shard(int(shard))
    description = _existing(path, _table(shard), fingerprint)
    if description is None:
        if item["part"] is None or not _raw(item, ".tar").exists():
            folder = paths.RESOURCES / "pairs"
            raise CliptexError(
                f"{path}: missing or changed, and its download was deleted; restore it, or run: rm -f"
                f" {folder}/batch-*.json {paths.SHARDS}/batch-*.json   and then the same command again, which downloads"
                " it again"
            )
        rows: list[tuple] = []
        write_shard(path, _pairs(urls, item, rows, threads))
        if len(rows) != item["rows"]:
            raise CliptexError(
                f"{_raw(item, '.tar')}: {len(rows)} of {item['rows']} rows; run: rm {_raw(item, '.tar')}   and then the"
                " same command again, which downloads them again"
            )
        description = {**describe_shard(int(shard), path), "fingerprint": fingerprint}
        write_shard_table(_table(shard), to_table(rows), description)
    if item["part"] is not None:
        for suffix in (".tar", ".parquet", "_stats.json"):
            _raw(item, suffix).unlink(missing_ok=True)
    return description


def _raw(item: dict[str, Any], suffix: str) -> Path:
    return item["folder"] / f"{item['part']:05d}{suffix}"


def _pairs(urls: Urls, item: dict[str, Any], rows: list[tuple], threads: int) -> Iterator[Pair]:
    """Yield the usable pairs of a shard in the order of the list; append every row to `rows` (see `TABLE_SCHEMA`)."""
    raw = _raw_rows(_raw(item, ".parquet"))
    first = min(raw)
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        bodies = _bodies(stack, _raw(item, ".tar"), raw)
        for table in sorted((item["folder"] / "again").glob("*.parquet")):
            second = {number: row for number, row in _raw_rows(table).items() if number in raw}
            if second:
                raw |= second
                bodies |= _bodies(stack, table.with_suffix(".tar"), second)
        order = sorted(raw)
        for start in track(range(0, len(order), CHUNK), f"build shard {item['shard']}"):
            chunk = [raw[number] for number in order[start : start + CHUNK]]
            data = [bodies[row["row"]]().read() if row["row"] in bodies else None for row in chunk]
            converted = pool.map(partial(_converted_row, urls, _raw(item, ".tar")), chunk, data)
            for row, (image, size, status) in zip(chunk, converted, strict=True):
                key = f"{item['shard']}{row['row'] - first:04d}"
                url, detail = (without_credentials(row[name] or "") or None for name in ("url", "error_message"))
                caption = (row["caption"] or "").strip()
                if row["status"] != "success":
                    status = reason_of(row["error_message"]) or "download failed"
                elif status == OK and not caption:
                    status = "no caption"
                if status != OK:
                    rows.append((key, status, detail, url, None, None, None))
                    continue
                width, height = size
                rows.append((key, OK, None, url, hashlib.sha256(image).hexdigest(), width, height))
                source = {"url": url, "source_sha256": row["sha256"], "width": width, "height": height}
                yield Pair(key, image, caption, source)


def _raw_rows(path: Path) -> dict[int, dict[str, Any]]:
    """The rows of img2dataset's table by their number in the list."""
    require_file(path)
    with reading(path, "a table of img2dataset"):
        table = pq.read_table(path)
        columns = {name: table[name].cast(kind).to_pylist() for name, kind in RAW_COLUMNS.items()}
        rows = {row[0]: dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)}
        if not rows or None in rows or any(row["status"] == "success" and not row["key"] for row in rows.values()):
            raise ValueError("no rows, or one without number or key")
        return rows


def _bodies(stack: ExitStack, path: Path, rows: dict[int, dict[str, Any]]) -> dict[int, Callable[[], IO[bytes]]]:
    """Row number -> a function that opens its image in the tar; img2dataset's tars are in order of arrival."""
    require_file(path)
    with reading(path, "a tar of img2dataset with an image for each row"):
        tar = stack.enter_context(tarfile.TarFile.open(path, "r:"))
        members = {member.name: member for member in tar if member.isreg()}
        names = {number: f"{row['key']}.jpg" for number, row in rows.items() if row["status"] == "success"}
        return {number: partial(tar.extractfile, members[name]) for number, name in names.items()}


def _converted_row(urls: Urls, tar: Path, row: dict[str, Any], data: bytes | None) -> tuple:
    with working_on(f"{tar}, key {row['key']}"):
        return _converted(data, urls)


def _converted(data: bytes | None, urls: Urls) -> tuple[bytes | None, tuple[int, int] | None, str]:
    """The image to store, its width and height, and "ok" or a reason.

    A JPEG of the right size is stored unchanged; any other image is decoded, resized and encoded once.
    """
    if data is None:
        return None, None, ""
    try:
        image = open_image(data)
    except BadImage as error:
        return None, None, str(error)
    short, long = sorted(image.size)
    if short < urls.min_side_px:
        return None, None, "too small"
    if long > urls.max_aspect_ratio * short:
        return None, None, "too elongated"
    if short <= urls.size_px and _is_plain_jpeg(data):
        return data, image.size, OK
    if short > urls.size_px:
        image = shrunk(image, *(max(1, round(side * urls.size_px / short)) for side in image.size))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=urls.jpeg_quality)
    return out.getvalue(), image.size, OK


def _is_plain_jpeg(data: bytes) -> bool:
    """Whether the bytes can be stored unchanged: a grey or RGB JPEG without EXIF orientation."""
    if not data.startswith(b"\xff\xd8\xff"):
        return False
    with Image.open(io.BytesIO(data)) as image:
        return image.format == "JPEG" and image.mode in ("L", "RGB") and not has_orientation(image)
