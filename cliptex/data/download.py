"""Build shards from what img2dataset downloaded, or from tars on the web; check the user's own tars.

Reads   resources/pairs/batch-000.json and what it points to (source `urls`), tars at urls or paths (`webdataset`).
Writes  results/shards/{shard}.tar and .parquet (a row a sample, kept or dropped and why),
        then results/shards/batch-000.json, last.
Holds   the same downloads give the same bytes, whatever the order in which they came and however often the job was
        killed; every row of the list of urls is a row of a table. What is wrong with the web is counted, what is
        wrong here (no space, no codec, a shard that cannot be read) stops the job.
"""

import hashlib
import io
import logging
import shutil
import subprocess
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cliptex.config import Config, Urls
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import NO_SPACE, read_json, sha256_file, write_json
from cliptex.core.progress import track
from cliptex.data.http import PAUSES_S, check_digest, fetch_file, start_of_file
from cliptex.data.images import BadImage, is_turned, open_image, require_codecs, shrunk
from cliptex.data.img2dataset_job import reason_of
from cliptex.data.shard_paths import is_remote, shard_paths, shard_sources, shards_of_download
from cliptex.data.shards import (
    OK,
    ROWS,
    Pair,
    describe_shard,
    read_rows,
    require_yield,
    verify_shard,
    write_rows,
    write_shard,
)

log = logging.getLogger("cliptex")
CHUNK = 256
"""Samples converted at a time; bounds the memory."""
JUDGED_FROM = 1000
"""Rows from which on a job's yield says something about the whole."""


def run_img2dataset(config: Config, batch: int, processes: int) -> None:
    """Download a batch in the environment of img2dataset (`download.python`); see `cliptex.data.img2dataset_job`."""
    if config.dataset.urls is None:
        raise CliptexError("dataset.urls: names no list, so there is nothing to download")
    python = shutil.which(config.download.python)
    if python is None:
        raise CliptexError(f"download.python: {config.download.python!r} is not a program; name a Python by its path")
    job = Path(__file__).with_name("img2dataset_job.py")
    command = [python, "-P", job, "--batch", batch, "--processes", processes]
    command += ["--config", config.subset("dataset.urls"), "--how", config.subset("download")]
    if subprocess.run(list(map(str, command))).returncode:
        raise CliptexError(f"download of batch {batch}: failed; the cause stands above")


def build_shards(config: Config, batch: int, threads: int = 1, min_yield: float | None = None) -> dict[str, Any]:
    """Build, or check, the shards of a batch and write `results/shards/batch-000.json`, a list of descriptions.

    A shard that is built already, of the same rows with the same settings, is only checked. Raises CliptexError
    where the cause is not the web, or where less than `min_yield` (by default `dataset.min_yield`) of at least 1,000
    samples is usable.
    """
    require_codecs()
    numbers = shards_of_download(config, batch)
    try:
        if config.dataset.source == "urls":
            shards = [_build(config.dataset.urls, item, threads) for item in _downloaded(batch)]
        else:
            targets, sources = shard_paths(config), shard_sources(config)
            shards = [
                _check(number, targets[number], sources[number], config.dataset.sha256)
                for number in track(numbers, "check shards")
            ]
    except OSError as error:
        if error.errno in NO_SPACE:
            raise CliptexError(f"{error.filename or paths.SHARDS}: {error.strerror}; make room, then go on") from error
        raise
    reasons = Counter()
    for shard in shards:
        reasons.update(read_rows(_table(shard["shard"]))[1]["status"].to_pylist())
    usable = reasons.pop(OK, 0)
    if usable + sum(reasons.values()) >= JUDGED_FROM:
        wanted = config.dataset.min_yield if min_yield is None else min_yield
        require_yield(usable, reasons, wanted, f"shards {numbers[0]} to {numbers[-1]}: ")
    out = {"schema_version": 1, "shards": shards}
    write_json(paths.SHARDS / f"batch-{batch:03d}.json", out)
    return out


def built_shards(batches: int) -> Iterator[tuple[dict[str, Any], pa.Table]]:
    """Descriptions and rows of all shards, in order, for `cliptex.data.shards.write_index`."""
    for batch in track(range(batches), "index shards"):
        for shard in read_json(paths.SHARDS / f"batch-{batch:03d}.json")["shards"]:
            path = Path(shard["path"])
            if not path.exists() or path.stat().st_size != shard["bytes"]:
                raise CliptexError(
                    f"{path}: missing or changed since it was checked; run: rm -f {paths.SHARDS}/batch-{batch:03d}.json"
                    "   and then the same command again"
                )
            yield shard, read_rows(_table(shard["shard"]))[1]


def _table(shard: str) -> Path:
    return paths.SHARDS / f"{shard}.parquet"


def _known(path: Path, table: Path, fingerprint: str) -> dict[str, Any] | None:
    """Description of a shard that is there, whole, and made of the same things; None otherwise."""
    if not path.exists() or not table.exists():
        return None
    try:
        shard, _ = read_rows(table)
    except CliptexError:
        return None
    same = shard.get("fingerprint") == fingerprint and sha256_file(path) == shard["sha256"]
    return shard if same else None


# Source `webdataset`


def _check(number: int, path: Path, source: str, digests: dict[str, str]) -> dict[str, Any]:
    """Fetch a tar if it is remote, read it once, and write its table."""
    shard = f"{number:05d}"
    # a tar of the user may be replaced by another at the same place; _known compares its bytes
    if known := _known(path, _table(shard), source):
        return known
    if is_remote(source):
        fetch_tar(source, path, digests.get(source))
    rows = verify_shard(path)
    known = {**describe_shard(number, path), "fingerprint": source}
    write_rows(_table(shard), rows, known)
    return known


def fetch_tar(source: str, path: Path, sha256: str | None = None) -> None:
    """Download a tar from http(s) or the Hugging Face hub (`hf://datasets/owner/name[@revision]/file.tar`).

    A file that is there already is replaced; a download that was cut off goes on where it was. Raises CliptexError
    where the server refuses, the bytes do not come whole after some tries, or their SHA-256 is not the one given, or
    else the one that the hub names.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remedy = "correct dataset.sha256, or try another mirror"
    if not source.startswith("hf://"):
        fetch_file(source, path, "dataset.shards", sha256 and f"sha256:{sha256}", remedy, replace=True)
        return
    part = path.with_name(f".{path.name}.part")
    named = _fetch_from_hub(source, part)
    if digest := sha256 or named:
        check_digest(part, f"sha256:{digest}", source, remedy, remove=True)
    part.replace(path)


def start_of_tar(source: str, count: int) -> tuple[bytes, int | None]:
    """The first `count` bytes of a tar on the web or the hub, and its size; see `start_of_file`. No token is used."""
    if source.startswith("hf://"):
        from huggingface_hub import hf_hub_url

        source = hf_hub_url(**_place_on_hub(source))
    return start_of_file(source, "dataset.shards", count)


def _place_on_hub(source: str) -> dict[str, Any]:
    """A tar of the hub as the arguments of its library's functions."""
    kind, _, rest = source.removeprefix("hf://").partition("/")
    owner, _, rest = rest.partition("/")
    name, _, filename = rest.partition("/")
    name, _, revision = name.partition("@")
    if kind != "datasets" or not filename:
        raise CliptexError(f"{source}: not a file of the hub; write hf://datasets/owner/name/file.tar")
    return {"repo_id": f"{owner}/{name}", "filename": filename, "repo_type": "dataset", "revision": revision or None}


def _fetch_from_hub(source: str, part: Path) -> str | None:
    """Download into `part`; the SHA-256 that the hub names, which it does for large files."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    where = _place_on_hub(source)
    for pause in (*PAUSES_S, None):
        try:
            tag = get_hf_file_metadata(hf_hub_url(**where)).etag or ""
            found = hf_hub_download(**where, local_dir=paths.RESOURCES / "pairs" / "hub")
            break
        except Exception as error:  # the library and what it uses have a kind of error for every way to fail
            if isinstance(error, OSError) and error.errno in NO_SPACE:
                raise
            what = (str(error).strip().splitlines() or [type(error).__name__])[0]
            status = getattr(getattr(error, "response", None), "status_code", None)
            for_good = status is not None and status < 500 and status not in (408, 429)
            if pause is None or for_good or isinstance(error, ValueError):
                raise CliptexError(
                    f"{source}: not given by the hub ({what}); check the name, or try again later (what came is kept)"
                ) from error
            log.warning("%s: %s; trying again in %d s", source, what, pause)
            time.sleep(pause)
    shutil.move(found, part)
    return tag if len(tag) == 64 else None


# Source `urls`


def _downloaded(batch: int) -> list[dict[str, Any]]:
    """The shards of a batch as the download left them; `part` is a shard's number in `folder`, None if it is built."""
    done = read_json(paths.RESOURCES / "pairs" / f"batch-{batch:03d}.json")
    return [{**shard, "folder": Path(done["folder"])} for shard in done["shards"]]


def _build(urls: Urls, item: dict[str, Any], threads: int) -> dict[str, Any]:
    """Build one shard of img2dataset's raw one, and remove that."""
    shard, fingerprint = item["shard"], item["fingerprint"]
    path = paths.shard(int(shard))
    known = _known(path, _table(shard), fingerprint)
    if known is None:
        if item["part"] is None or not _raw(item, ".tar").exists():
            folder = paths.RESOURCES / "pairs"
            raise CliptexError(
                f"{path}: missing or changed, and its download is gone; run: rm -f {folder}/batch-*.json"
                f" {paths.SHARDS}/batch-*.json   and then the same command again, which downloads it anew"
            )
        rows: list[tuple] = []
        write_shard(path, _pairs(urls, item, rows, threads))
        if len(rows) != item["rows"]:
            raise CliptexError(f"{_raw(item, '.tar')}: {len(rows)} of {item['rows']} rows; delete it and download anew")
        table = pa.table(
            [pa.array(column, kind.type) for column, kind in zip(zip(*rows, strict=True), ROWS, strict=True)],
            schema=ROWS,
        )
        known = {**describe_shard(int(shard), path), "fingerprint": fingerprint}
        write_rows(_table(shard), table, known)
    if item["part"] is not None:
        for suffix in (".tar", ".parquet", "_stats.json"):
            _raw(item, suffix).unlink(missing_ok=True)
    return known


def _raw(item: dict[str, Any], suffix: str) -> Path:
    return item["folder"] / f"{item['part']:05d}{suffix}"


def _pairs(urls: Urls, item: dict[str, Any], rows: list[tuple], threads: int) -> Iterator[Pair]:
    """The usable pairs of a shard in the order of the list; every row is appended to `rows` (see `ROWS`)."""
    raw = {row["row"]: row for row in pq.read_table(_raw(item, ".parquet")).to_pylist()}
    first = min(raw)
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        bodies = _bodies(stack, _raw(item, ".tar"), raw)
        for table in sorted((item["folder"] / "again").glob("*.parquet")):
            second = {row["row"]: row for row in pq.read_table(table).to_pylist() if row["row"] in raw}
            if second:
                raw |= second
                bodies |= _bodies(stack, table.with_suffix(".tar"), second)
        order = sorted(raw)
        for start in track(range(0, len(order), CHUNK), f"build shard {item['shard']}"):
            chunk = [raw[number] for number in order[start : start + CHUNK]]
            data = [_read(bodies.get(row["row"])) for row in chunk]
            for row, (image, size, status) in zip(chunk, pool.map(_converted, data, [urls] * len(chunk)), strict=True):
                key = f"{item['shard']}{row['row'] - first:04d}"
                caption = (row["caption"] or "").strip()
                if row["status"] != "success":
                    status = reason_of(row["error_message"]) or "download failed"
                elif status == OK and not caption:
                    status = "no caption"
                if status != OK:
                    rows.append((key, status, row["error_message"], row["url"], None, None, None))
                    continue
                width, height = size
                rows.append((key, OK, None, row["url"], hashlib.sha256(image).hexdigest(), width, height))
                source = {"url": row["url"], "source_sha256": row["sha256"], "width": width, "height": height}
                yield Pair(key, image, caption, source)


Body = tuple[tarfile.TarFile, tarfile.TarInfo]


def _bodies(stack: ExitStack, path: Path, rows: dict[int, dict[str, Any]]) -> dict[int, Body]:
    """Row number -> where its image's bytes are in a tar of img2dataset, which is in no order."""
    tar = stack.enter_context(tarfile.TarFile.open(path, "r:"))
    members = {member.name: member for member in tar}
    return {number: (tar, members[f"{row['key']}.jpg"]) for number, row in rows.items() if row["status"] == "success"}


def _read(body: Body | None) -> bytes | None:
    return body[0].extractfile(body[1]).read() if body else None


def _converted(data: bytes | None, urls: Urls) -> tuple[bytes | None, tuple[int, int] | None, str]:
    """The image to store, its width and height, and "ok" or a reason.

    A JPEG of the right size stays byte for byte what it was; anything else is decoded, shrunk and encoded once.
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
    return _jpeg(image, urls.jpeg_quality), image.size, OK


def _is_plain_jpeg(data: bytes) -> bool:
    """Whether every reader sees the same picture in these bytes: a JPEG, grey or colour, not turned by EXIF data."""
    if not data.startswith(b"\xff\xd8\xff"):
        return False
    with Image.open(io.BytesIO(data)) as image:
        return image.format == "JPEG" and image.mode in ("L", "RGB") and not is_turned(image)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()
