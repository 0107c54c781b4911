"""The shard index: which samples of which shards are usable, checked once and recorded with the shards' digests.

Reads   results/shards/{shard}.tar (or existing tars, source `webdataset`).
Writes  results/shards/{shard}.parquet (sources `urls` and `webdataset`): one row per sample, with the reason if it is
        dropped; results/shards/samples.arrow: keys, places and reasons of all samples; index.json, last: each
        shard's digest and counts, and what identifies samples.arrow.
Holds   keys are unique over all shards and in order; each sample in the index has a caption and an image that decodes.

Single samples are read by `cliptex.data.sample_reader`. An index of an earlier version has keys and reasons in
index.json.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cliptex.core.errors import CliptexError, working_on
from cliptex.core.files import check_form, read_checked, read_error, replacing, require_file, sha256_file, write_json
from cliptex.core.progress import track
from cliptex.core.redact import without_credentials
from cliptex.data.images import BadImage, open_image, require_codecs
from cliptex.data.index_writer import OK, FirstPass, SecondPass
from cliptex.data.packed import Keys, Reasons
from cliptex.data.sample_reader import check_indexed, locations_of, reindex_command
from cliptex.data.samples_file import LOCATION, SCHEMA, Entries, SamplesFile, checksums, footer_sha256
from cliptex.data.shards import Pair, iterate_shard, read_shard

log = logging.getLogger("cliptex")
MAX_REPEATS = 10
NAMED = ("key", "status")
TABLE_SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "status": pa.string(),  # "ok", or the reason why it is dropped
        "detail": pa.string(),  # the original message of the reason, if any
        "url": pa.string(),
        "sha256": pa.string(),  # of the stored image's bytes
        "width": pa.int32(),
        "height": pa.int32(),
    }
)
"""A shard's table: one row per sample, or per row of the URL list."""


def verify_shard(path: Path, ignored: Counter[str] | None = None) -> pa.Table:
    """Read every sample of a shard once and decode its image. Returns the table (`TABLE_SCHEMA`), sorted by key.

    ignored: as of `cliptex.data.shards.samples`.
    """
    rows, ignored = [], Counter() if ignored is None else ignored
    for pair in iterate_shard(path, ignored):
        with working_on(f"{path}: {pair.key}"):
            status, size = pair.problem or (OK if pair.caption else "no caption"), (None, None)
            try:
                if pair.image is not None:
                    size = open_image(pair.image).size
            except BadImage as error:
                status = str(error)
            if status != OK:
                log.warning("%s: %s dropped: %s", path, pair.key, status)
            digest = hashlib.sha256(pair.image).hexdigest() if pair.image else None
            url = without_credentials(str(pair.metadata.get("url") or "")).encode("utf-8", "replace").decode() or None
            rows.append((pair.key, status, None, url, digest, *size))
    for reason, count in ignored.items():
        log.warning("%s: %d members belong to no sample: %s", path, count, reason)
    return to_table(sorted(rows, key=lambda row: row[0]))


def to_table(rows: list[tuple]) -> pa.Table:
    """Rows with one value per column of `TABLE_SCHEMA` as a table."""
    columns = list(zip(*rows, strict=True)) or [()] * len(TABLE_SCHEMA)
    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, TABLE_SCHEMA, strict=True)]
    return pa.table(arrays, schema=TABLE_SCHEMA)


def describe_shard(number: int, path: Path, ignored: Mapping[str, int] = MappingProxyType({})) -> dict[str, Any]:
    """Identity of a shard: `shard` (5 digits), `path`, `sha256`, `bytes`; and `ignored`, if there are such members."""
    described = {"shard": f"{number:05d}", "path": str(path), "sha256": sha256_file(path), "bytes": path.stat().st_size}
    return described | ({"ignored": dict(ignored)} if ignored else {})


def with_locations(rows: pa.Table, path: Path) -> pa.Table:
    """A shard's table with the columns `LOCATION` of the samples' file, 0 for dropped samples. Reads the tar,
    unless the table has them. Raises CliptexError if a usable sample is not in the tar."""
    if set(LOCATION) <= set(rows.column_names):
        return rows
    keys = [key if status == OK else None for key, status in zip(*(rows[n].to_pylist() for n in NAMED), strict=True)]
    rows = rows.drop_columns([name for name in LOCATION if name in rows.column_names])  # of an earlier version
    for name, values in zip(LOCATION, locations_of(path, keys, with_crc32=True).T, strict=True):
        rows = rows.append_column(SCHEMA.field(name), pa.array(values).cast(SCHEMA.field(name).type))
    return rows


def write_shard_table(path: Path, rows: pa.Table, shard: dict[str, Any]) -> None:
    """Write a shard's table, with its description `shard` as Parquet metadata under `cliptex`."""
    rows = with_locations(rows, Path(shard["path"]))
    with replacing(path) as scratch:
        pq.write_table(rows.replace_schema_metadata({"cliptex": json.dumps(shard)}), scratch, compression="zstd")


def read_shard_table(path: Path) -> tuple[dict[str, Any], pa.Table]:
    """Read the file that `write_shard_table` wrote: the shard's description and its rows."""
    require_file(path)
    try:
        table = pq.read_table(path)
        return json.loads(table.schema.metadata[b"cliptex"]), table
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        files = f"{path} {path.parent}/index.json {path.parent}/batch-*.json"
        redo = f"run: rm -f {files}   and then the same command again"
        raise read_error(error, path, "a shard's table", redo) from error


def index_shards(
    shards: list[Path],
    index: Path,
    min_yield: float,
    max_repeats: int = MAX_REPEATS,
    data_sha256: str | None = None,
) -> dict[str, Any]:
    """Read every sample of every shard once and write the index. Raises CliptexError for an unreadable shard, and as
    `write_index` does."""
    require_codecs()

    def verified() -> Iterator[tuple[dict[str, Any], pa.Table]]:
        for number, path in enumerate(track(shards, "index shards")):
            ignored = Counter()
            with working_on(path):
                described = verify_shard(path, ignored), describe_shard(number, path, ignored)
            yield described[::-1]

    return write_index(verified(), index, min_yield, max_repeats, data_sha256)


def write_index(
    shards: Iterable[tuple[dict[str, Any], pa.Table]],
    index: Path,
    min_yield: float,
    max_repeats: int = MAX_REPEATS,
    data_sha256: str | None = None,
) -> dict[str, Any]:
    """Write the index. shards: descriptions and rows of all shards, in order. data_sha256: see `shard_paths`.

    samples.arrow is written first. The index holds `shards` (a list of {shard, path, sha256, bytes, num_samples,
    num_dropped, crc32}, and `ignored` where members belong to no sample), `samples` (what identifies samples.arrow),
    `num_samples` (usable), `dropped` (reason -> count), `repeated` (SHA-256 -> count), and `held_out_order` (ids of the
    samples with the smallest key digests, numbered over all shards). Returns `read_index`.
    Images that occur more than `max_repeats` times are all dropped as "repeated image", since servers replace deleted
    images with a placeholder. Raises CliptexError for duplicate keys, or if the share of usable samples is below
    `min_yield`, with the most common reasons.
    """
    index, samples_path = Path(index), Path(index).with_name("samples.arrow")
    located = ((description, with_locations(rows, Path(description["path"]))) for description, rows in shards)
    first = FirstPass(located, index.parent)
    try:
        second = SecondPass(first, max_repeats)
        with replacing(samples_path) as scratch:
            second.write(scratch)
            num_usable = sum(usable for usable, _ in second.counts)
            require_yield(num_usable, second.dropped, min_yield)
            checks, size, footer = checksums(scratch), scratch.stat().st_size, footer_sha256(scratch)
    finally:
        first.close()
    names, entries = ("shard", "path", "sha256", "bytes", "ignored"), []
    described = zip(first.descriptions, first.num_rows, second.counts, checks, strict=True)
    for description, num_rows, (usable, dropped), crc32 in described:
        if usable + dropped != num_rows:
            raise RuntimeError(f"{description['path']}: {usable + dropped} of {num_rows} samples are usable or dropped")
        entry = {name: description[name] for name in names if name in description}
        entries.append(entry | {"num_samples": usable, "num_dropped": dropped, "crc32": crc32})
    samples_file = {"file": samples_path.name, "bytes": size, "footer_sha256": footer, "reasons": list(first.reasons)}
    out = {
        "schema_version": 1,
        "data_sha256": data_sha256,
        "num_samples": num_usable,
        "dropped": dict(second.dropped.most_common()),
        "repeated": dict(second.repeated.most_common()),
        "samples": samples_file,
        "held_out_order": second.held_out_order,
        "shards": entries,
    }
    write_json(index, out)
    return read_index(index)


def require_yield(usable: int, reasons: Counter[str], min_yield: float, prefix: str = "") -> None:
    """Raise CliptexError, which begins with `prefix` and has the three most common reasons, if the share of usable
    samples is below `min_yield`."""
    total = usable + sum(reasons.values())
    if not total or usable / total < min_yield:
        common = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common(3)) or "no samples at all"
        raise CliptexError(
            f"{prefix}only {usable} of {total} samples are usable, below dataset.min_yield = {min_yield} ({common});"
            " fix the cause, or lower dataset.min_yield"
        )


def read_index(index: Path) -> dict[str, Any]:
    """Read the shard index; see `cliptex.data.index_writer.write_index`. Keys and reasons of a shard are read from
    samples.arrow when needed; of an earlier version's index they are packed (`cliptex.data.packed`)."""

    def pack(item: dict[str, Any]) -> Any:
        if "keys" in item and "dropped" in item:  # a shard, packed before the next one is parsed
            item |= {"keys": Keys(item["keys"]), "dropped": Reasons(item["dropped"])}
        return Entries.pack(item) if "crc32" in item else item

    out = read_checked(index, {"shards": [object]}, pack)
    if "samples" in out:
        form = {"file": str, "bytes": int, "footer_sha256": str, "reasons": [str]}
        check_form(index, out, {"num_samples": int, "samples": form, "shards": [tuple]})
        samples = out["samples"]
        name = Path(samples["file"]).name  # next to the index, whatever the file says
        file = SamplesFile(Path(index).parent / name, samples["bytes"], samples["footer_sha256"], samples["reasons"])
        return out | {"shards": Entries.from_rows(out["shards"], file)}
    entry = {"shard": str, "path": str, "bytes": int, "sha256": str, "keys": Keys, "dropped": Reasons}
    check_form(index, out, {"shards": [entry]})
    return out


def num_usable(entries: Sequence[dict[str, Any]]) -> list[int]:
    """Number of usable samples of each shard of an index, without reading keys."""
    return entries.sizes() if isinstance(entries, Entries) else [len(entry["keys"]) for entry in entries]


def read_indexed(entry: dict[str, Any]) -> list[Pair]:
    """Read the usable samples of an indexed shard, sorted by key. Raises CliptexError if it differs from the index."""
    path = Path(entry["path"])
    check_indexed(entry)
    keys = set(entry["keys"])
    pairs = [pair for pair in read_shard(path) if pair.key in keys]
    if [pair.key for pair in pairs] != entry["keys"]:
        raise CliptexError(f"{path}: keys differ from the index; {reindex_command()}")
    return pairs
