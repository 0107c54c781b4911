"""Fetch a published label set and look its rows up by image.

Reads   `label_stores.*.from`: labels.json and data/*.parquet of a data set on the Hugging Face hub, a folder, or a URL.
Writes  {folder}/rows.arrow (a record batch for each of its files: all columns but the payloads, and where these are),
        {folder}/{key,digest}.{hashes,places}.npy (sorted, memory-mapped), and last set.json.
Holds   every file has the size and SHA-256 that labels.json states. Nothing in the set is trusted: names stay in its
        folder, files have the form of label files, and memory is bounded by one of them.
"""

import hashlib
import logging
import os
import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from cliptex.config import Config
from cliptex.config.checks import HUB_SET
from cliptex.core.errors import CliptexError, working_on
from cliptex.core.files import check_form, read_checked, read_json, replacing, sha256_file, write_json
from cliptex.core.licences import is_stated
from cliptex.core.plugins import find
from cliptex.core.progress import track
from cliptex.data.web import fetch_file, start_of_file
from cliptex.labels.payloads import find_payloads
from cliptex.labels.publish import DIGEST_COLUMN, KIND, RECORD
from cliptex.labels.store import COLUMNS, LabelFile, again_without
from cliptex.tasks.base import Task

log = logging.getLogger("cliptex")
SET, ROWS = "set.json", "rows.arrow"
FILE_FORM = {"file": str, "sha256": str, "bytes": int, "rows": int, "labelled": int}
FORM = {
    **dict.fromkeys(("kind", "task", "expert", "plugin", "licence", "weights_licence", "frame", "join"), str),
    "recipe_sha256": str,
    "max_side_px": int,
    "codec": {"name": str},
    "files": [FILE_FORM],
}
ONE_LINE, MAX_CHARACTERS = ("expert", "plugin", "licence", "weights_licence", "frame", "recipe_sha256"), 300
FILE_NAME = re.compile(r"data/[0-9A-Za-z_][\w.-]{0,200}\.parquet", re.ASCII)
MAX_RECORD_BYTES = 1 << 26
EXTRA_TYPES = ("string", "int32", "int64", "float", "double", "bool", "binary")
MAX_COLLISIONS = 8
PLACES = ("offset", "bytes", "crc32")
ASK = "take another set, or ask its publisher for a repaired one"
Get = Callable[[str, dict[str, Any] | None], Path]
"""Path of a file of the set, downloaded if necessary. Arguments: its name, and its entry in labels.json."""


def fetch_labels(config: Config, store: str, folder: Path) -> dict[str, Any]:
    """Fetch and check the set that `label_stores.{store}.from` names; return the content of set.json. Raises
    CliptexError that names the key if it cannot be fetched, is damaged, is of another task or codec, or states no
    licence."""
    settings, where = config.label_stores[store], f"label_stores.{store}.from"
    source = str(settings.from_)
    get, revision = _source(source, where, folder)
    path = get(RECORD, None)
    if path.stat().st_size > MAX_RECORD_BYTES:
        raise CliptexError(f"{where}: {source}: {RECORD} has {path.stat().st_size:,} bytes; {ASK}")
    record = read_json(path)
    check_form(path, record, FORM, ASK)
    task = _checked(record, settings.task, f"{where}: {source}")
    files = []
    for item in track(record["files"], f"fetch {store}"):
        file = get(item["file"], item)
        if file.stat().st_size != item["bytes"] or sha256_file(file) != item["sha256"]:
            raise CliptexError(f"{where}: {file} differs from its size or SHA-256 in {RECORD}; {ASK}")
        files.append(file.absolute())
    joins = _index(files, record, task, folder, where)
    join = settings.join or record["join"]
    if join not in joins:
        raise CliptexError(f"label_stores.{store}.join: {source} has no {join}; use one of {', '.join(joins)}")
    about = {"source": source, "revision": revision(), "set_sha256": sha256_file(path), "join": join}
    out = {"schema_version": 1, **about, "files": [str(file) for file in files], "record": record}
    write_json(folder / SET, out)
    log.info("%s: %d labels by %s, licence %s", source, record["labelled"], record["expert"], record["licence"])
    return out


def _checked(record: dict[str, Any], task_name: str, subject: str) -> Task:
    """The task of a set. Raises CliptexError, from `subject` on, for what labels.json must not say."""
    names = [item["file"] for item in record["files"]]
    if record.get("schema_version") != 1 or record["kind"] != KIND:
        raise CliptexError(f"{subject}: {RECORD} is not that of a label set in a form that this version reads; {ASK}")
    if wrong := [name for name in names if not FILE_NAME.fullmatch(name)]:
        raise CliptexError(f"{subject}: {RECORD} names {wrong[0][:80]!r}, which is not data/NAME.parquet; {ASK}")
    if not names or len(set(names)) < len(names):
        raise CliptexError(f"{subject}: {RECORD} names no file, or one twice; {ASK}")
    for name in ONE_LINE:
        if not (record[name].isprintable() and 0 < len(record[name]) <= MAX_CHARACTERS):
            raise CliptexError(f"{subject}: {RECORD}: {name} is not one line of plain text; {ASK}")
    if not is_stated(record["licence"]):
        raise CliptexError(f"{subject}: it states no licence; ask its publisher, or use another set")
    if record.get("weights") == "random":
        raise CliptexError(f"{subject}: its labels are of a network with random weights; use another set")
    plugin = find("tasks", task_name)
    if plugin.name != record["task"]:
        raise CliptexError(f"{subject}: it has labels of {record['task']!r}, not of {task_name!r}; correct `task`")
    try:
        task = plugin.from_codec(record["codec"])
    except ValueError as error:
        raise CliptexError(f"{subject}: {RECORD}: {error}; {ASK}") from error
    if task.codec() != record["codec"]:
        has, reads = ((codec["name"], codec.get("version")) for codec in (record["codec"], task.codec()))
        raise CliptexError(
            f"{subject}: its codec is {has[0]}, version {has[1]}, with other parameters than {reads[0]}, version"
            f" {reads[1]}, of this version of cliptex; use the version that wrote it, or another set"
        )
    return task


# ---- sources


def _source(source: str, where: str, folder: Path) -> tuple[Get, Callable[[], str | None]]:
    """A function that gets a file of the set, and one that returns the commit of those that were got."""
    if named := HUB_SET.fullmatch(source):
        hub = _Hub(named["repo"], named["revision"], where)
        return hub.get, lambda: hub.commit
    if source.startswith(("http://", "https://")):
        return partial(_from_url, source.rstrip("/"), where, folder / "files"), lambda: None
    return partial(_from_folder, Path(source), where), lambda: None


class _Hub:
    """A data set on the Hugging Face hub, all files of one commit."""

    def __init__(self, repo: str, revision: str | None, where: str):
        self.repo, self.revision, self.where = repo, revision, where
        self.commit: str | None = None

    def get(self, name: str, _: dict[str, Any] | None) -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError

        revision = self.commit or self.revision
        try:
            path = Path(hf_hub_download(self.repo, name, revision=revision, repo_type="dataset"))
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise CliptexError(
                f"{self.where}: {name} of {self.repo} cannot be fetched from the hub ({str(error).splitlines()[0]});"
                " correct the name and the revision, or give the path of a local copy"
            ) from error
        self.commit = path.parents[len(Path(name).parts) - 1].name
        return path


def _from_url(base: str, where: str, folder: Path, name: str, item: dict[str, Any] | None) -> Path:
    url, path = f"{base}/{quote(name)}", folder / name
    if item is None:
        fetch_file(url, path, where, replace=True)
        return path
    if not (path.is_file() and sha256_file(path) == item["sha256"]):
        size = start_of_file(url, where, 1)[1]
        if size not in (None, item["bytes"]):
            raise CliptexError(f"{where}: {url} has {size:,} bytes, {item['bytes']:,} in {RECORD}; {ASK}")
        fetch_file(url, path, where, f"sha256:{item['sha256']}", ASK, replace=True)
    return path


def _from_folder(folder: Path, where: str, name: str, _: dict[str, Any] | None) -> Path:
    if not (folder / name).is_file():
        raise CliptexError(f"{where}: {folder / name} is not a file; correct the path of the published folder")
    return folder / name


# ---- rows


def _index(files: list[Path], record: dict[str, Any], task: Task, folder: Path, where: str) -> list[str]:
    """Write rows.arrow and the sorted hashes; return by what images can be found: "key", and "digest"."""
    scalars, schema = list(task.scalars(task.missing(1))), None
    hashes: dict[str, list[np.ndarray]] = {"key": [], "digest": []}
    places = []
    with replacing(folder / ROWS) as scratch, pa.OSFile(str(scratch), "wb") as sink:
        writer = None
        for number, (path, item) in enumerate(zip(files, record["files"], strict=True)):
            with working_on(path):
                batch = _rows(path, task, scalars, where)
                if batch.num_rows != item["rows"]:
                    raise CliptexError(
                        f"{where}: {path} has {batch.num_rows:,} rows, {item['rows']:,} in {RECORD}; {ASK}"
                    )
                schema = schema or batch.schema
                if batch.schema != schema:
                    raise CliptexError(f"{where}: {path} has other columns than {files[0].name}; {ASK}")
                writer = writer or pa.ipc.new_file(sink, schema)
                writer.write_batch(batch)
                hashes["key"].append(key_hashes(batch["key"].to_pylist()))
                if DIGEST_COLUMN in schema.names:
                    hashes["digest"].append(digest_hashes(batch[DIGEST_COLUMN].to_pylist(), f"{where}: {path}"))
                of_file = np.full(batch.num_rows, number)
                places.append(np.stack([of_file, np.arange(batch.num_rows)], axis=1).astype(np.uint32))
        writer.close()
    joins = [join for join, parts in hashes.items() if parts]
    for join in joins:
        values = np.concatenate(hashes[join])
        order = np.argsort(values, kind="stable")
        for name, array in (("hashes", values[order]), ("places", np.concatenate(places)[order])):
            with replacing(folder / f"{join}.{name}.npy") as scratch, scratch.open("wb") as file:
                np.save(file, array, allow_pickle=False)
    return joins


def _rows(path: Path, task: Task, scalars: list[str], where: str) -> pa.RecordBatch:
    """All columns of a data file but payloads, images and captions, and where the payloads are."""
    try:
        file = LabelFile(path, task)
        types = file.read_with(lambda opened: {field.name: str(field.type) for field in opened.schema_arrow})
        if lacking := [name for name in scalars if types.get(name) != "double"]:
            raise CliptexError(f"{path}: lacks the column {lacking[0]} as double")
        extras = [name for name in file.metadata.get("extra_columns", ()) if name not in ("image", "caption")]
        if wrong := [name for name in extras if types.get(name) not in EXTRA_TYPES]:
            raise CliptexError(f"{path}: the column {wrong[0]} is {types.get(wrong[0], 'missing')}")
        names = [name for name in (*COLUMNS, *scalars, *extras) if name != "payload"]
        table = file.read_with(lambda opened: opened.read(names).combine_chunks())
        found = find_payloads(file)
    except CliptexError as error:  # its remedy is for files that this workflow makes
        raise CliptexError(f"{where}: {str(error).partition('; ')[0]}; {ASK}") from error
    columns = {name: table[name].combine_chunks() for name in names} | {name: found[name] for name in PLACES}
    return pa.RecordBatch.from_arrays(
        [column.chunk(0) if isinstance(column, pa.ChunkedArray) else column for column in columns.values()],
        names=list(columns),
    )


def key_hashes(keys: Iterable[str]) -> np.ndarray:
    """uint64 [N]: the first 8 bytes of each key's SHA-256."""
    return np.frombuffer(b"".join(hashlib.sha256(key.encode()).digest()[:8] for key in keys), ">u8").astype(np.uint64)


def digest_hashes(digests: Iterable[str | None], subject: str = "") -> np.ndarray:
    """uint64 [N]: the first 8 bytes of hexadecimal SHA-256 digests."""
    digests = list(digests)
    if wrong := [value for value in digests if value is None or not re.fullmatch("[0-9a-f]{64}", value)]:
        raise CliptexError(f"{subject}: {str(wrong[0])[:80]!r} is no SHA-256 of an image; {ASK}")
    return np.frombuffer(b"".join(bytes.fromhex(value[:16]) for value in digests), ">u8").astype(np.uint64)


@dataclass
class PublishedSet:
    """A fetched set, memory-mapped. folder: of `fetch_labels`. task_name: as in the configuration. Raises CliptexError
    if it was not fetched."""

    folder: Path
    task_name: str

    def __post_init__(self) -> None:
        form = {**dict.fromkeys(("source", "set_sha256", "join"), str), "files": [str], "record": FORM}
        out = read_checked(
            self.folder / SET, form, remedy=f"run: rm -f {self.folder / SET}   and then the same command again"
        )
        self.about: dict[str, Any] = {name: out[name] for name in ("source", "revision", "set_sha256", "join")}
        self.record, self.join, self.files = out["record"], out["join"], [Path(file) for file in out["files"]]
        self.task: Task = find("tasks", self.task_name).from_codec(self.record["codec"])
        self._hashes, self._places = (
            np.load(self.folder / f"{self.join}.{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in ("hashes", "places")
        )
        self._reader = pa.ipc.open_file(pa.memory_map(str(self.folder / ROWS)))
        self._open = lru_cache(maxsize=64)(lambda number: self.files[number].open("rb"))
        self._whole = lru_cache(maxsize=2)(lambda number: LabelFile(self.files[number]))

    def extras(self) -> dict[str, Any]:
        """Name -> pyarrow type of the extra columns."""
        known = {*COLUMNS, *self.task.scalars(self.task.missing(1)), *PLACES, DIGEST_COLUMN}
        return {field.name: field.type for field in self._reader.schema if field.name not in known}

    def find(self, values: list[str]) -> list[dict[str, Any] | None]:
        """For each image (its digest, or its key, as `join` says) its row with the payload, or None."""
        column = DIGEST_COLUMN if self.join == "digest" else "key"
        wanted = (digest_hashes if self.join == "digest" else key_hashes)(values)
        starts = np.searchsorted(self._hashes, wanted).tolist()
        rows: list[dict[str, Any] | None] = [None] * len(values)
        left = list(range(len(values)))
        for more in range(MAX_COLLISIONS):  # almost always the first row with this hash is the image's
            at = [(image, starts[image] + more) for image in left]
            at = [(image, place) for image, place in at if place < len(self._hashes)]
            at = [(image, place) for image, place in at if self._hashes[place] == wanted[image]]
            by_file: dict[int, list[tuple[int, int]]] = {}
            for image, place in at:
                number, row = self._places[place].tolist()
                by_file.setdefault(number, []).append((image, row))
            for number, pairs in by_file.items():
                found = self._reader.get_batch(number).take(pa.array([row for _, row in pairs])).to_pylist()
                for (image, row), values_of_row in zip(pairs, found, strict=True):
                    if values_of_row[column] == values[image]:
                        rows[image] = self._with_payload(number, row, values_of_row)
            left = [image for image, _ in at if rows[image] is None]
            if not left:
                break
        return rows

    def _with_payload(self, number: int, row: int, values: dict[str, Any]) -> dict[str, Any]:
        offset, size, crc32 = (values.pop(name) for name in PLACES)
        if offset < 0:  # compressed by another program
            encoded = self._whole(number).get(row)
            return values | {"payload": encoded and encoded[0]}
        if not offset:
            return values | {"payload": None}
        payload = os.pread(self._open(number).fileno(), size, offset)
        if len(payload) != size or zlib.crc32(payload) != crc32:
            problem = "changed since it was fetched"
            raise CliptexError(f"{self.files[number]}: {problem}; {again_without(self.folder / SET)}")
        return values | {"payload": payload}
