"""Publish a label store as a folder for the Hugging Face hub, which `datasets` and `label_stores.*.from` read.

Reads   results/shards/index.json, its shards (for the images' digests), an indexed label store.
Writes  {out}/data/{shard}.parquet, labels.json, README.md (`cliptex.labels.card`), and last SHA256SUMS.
Holds   a data file has the rows of the label file and `image_sha256`; the same store gives the same bytes. A run that
        was killed resumes at its next file.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cliptex.config import Config
from cliptex.core.errors import CliptexError, working_on
from cliptex.core.files import read_json, replacing, sha256_file, sha256_json, write_json
from cliptex.core.licences import is_stated
from cliptex.core.progress import track
from cliptex.data.shard_index import read_index, read_indexed
from cliptex.data.shards import Pair
from cliptex.labels.card import card
from cliptex.labels.export import upright_file
from cliptex.labels.store import METADATA_KEY, LabelFile, open_store, read_label_index, task_of_store

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import parquet

RECORD, SUMS, STATE = "labels.json", "SHA256SUMS", ".publishing.json"
DIGEST_COLUMN = "image_sha256"
KIND = "cliptex label set"
MADE_BY = ("task", "expert", "plugin", "weights", "weights_sha256", "recipe_sha256", "codec")
HUB_IMAGE = {"info": {"features": {"image": {"_type": "Image"}}}}
"""Parquet metadata by which `datasets` decodes the column `image`."""


def publish_labels(
    config: Config,
    store: str,
    shard_index: Path,
    labels_dir: Path,
    out: Path,
    licence: str | None = None,
    images: bool = False,
    shards: range | None = None,
) -> dict[str, Any]:
    """Write the folder `out`; return the content of labels.json.

    licence: of the labels; None for that of the expert's weights. images: whether to include images and captions.
    shards: their numbers; None for all. Raises CliptexError for labels of random weights, without a licence, if `out`
    has other files, and as `open_store` does.
    """
    path = labels_dir / store / "index.json"
    index = read_label_index(config, store, path)
    if index["weights"] == "random":
        raise CliptexError(f"{path}: labels of a network with random weights cannot be published; use trained ones")
    licence = licence or index["licence"]
    if not is_stated(licence):
        raise CliptexError(f"{path}: the licence of the labels is unknown; give it with --licence, e.g. cc-by-4.0")
    entries = read_index(shard_index)["shards"]
    if shards is not None:
        entries = [entries[number] for number in shards if number < len(entries)]
    if not entries:
        raise CliptexError(f"{shard_index}: has none of the requested shards")
    begin(out, {"index_sha256": sha256_json(index), "images": images, "shards": [entry["shard"] for entry in entries]})
    task = task_of_store(config, store, path)
    files, first = [], {}
    for entry in track(entries, f"publish {store}"):
        data = out / "data" / f"{entry['shard']}.parquet"
        with working_on(f"{entry['path']} and {data}"):
            if not data.exists():  # it appears under its name when it is complete
                _write(open_store(path, entry, task), read_indexed(entry), data, images)
            file = LabelFile(data, task)
            first = first or file.metadata
            errors = file.column("error")
        sizes = {"sha256": sha256_file(data), "bytes": data.stat().st_size, "rows": len(file)}
        files.append({"file": f"data/{data.name}", **sizes, "labelled": errors.count(None)})
    record = {
        "schema_version": 1,
        "kind": KIND,
        **{name: index[name] for name in MADE_BY},
        "task_plugin": config.label_stores[store].task,
        "licence": licence,
        "weights_licence": index["licence"],
        "max_side_px": first["max_side_px"],
        "frame": first["frame"],
        "join": "digest",
        "images": images,
        "rows": sum(file["rows"] for file in files),
        "labelled": sum(file["labelled"] for file in files),
        "files": files,
    }
    write_json(out / RECORD, record)
    with replacing(out / "README.md") as scratch:
        scratch.write_text(card(record), encoding="utf-8")
    sums = {file["file"]: file["sha256"] for file in files}
    sums |= {name: sha256_file(out / name) for name in (RECORD, "README.md")}
    with replacing(out / SUMS) as scratch:
        scratch.write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()), encoding="utf-8")
    (out / STATE).unlink()
    return record


def begin(out: Path, state: dict[str, Any]) -> None:
    """Raise CliptexError unless the folder `out` is empty or of the same publication, which was not finished."""
    if out.exists() and not out.is_dir():
        raise CliptexError(f"--out: {out} is not a folder; choose another")
    if out.is_dir() and any(out.iterdir()):
        if not (out / STATE).is_file():
            raise CliptexError(f"--out: {out} is not empty; choose another folder")
        if read_json(out / STATE) != state:
            raise CliptexError(f"--out: {out} has the beginning of another label set; choose another folder")
    write_json(out / STATE, state)


def _write(file: LabelFile, pairs: list[Pair], path: Path, images: bool) -> None:
    """Copy a label file with the digests of its images, and with `images` these and the captions."""
    from pyarrow import parquet

    file.check_digest()

    def copy(source: "parquet.ParquetFile") -> None:
        about = json.loads(source.schema_arrow.metadata[METADATA_KEY])
        added = [DIGEST_COLUMN, *(("image", "caption") if images else ())]
        about["extra_columns"] = [*about.get("extra_columns", ()), *added]
        metadata = {METADATA_KEY: json.dumps(about)} | ({b"huggingface": json.dumps(HUB_IMAGE)} if images else {})
        schema = _with(source.schema_arrow.empty_table(), [], images).schema.with_metadata(metadata)
        names = [name for name in schema.names if name != "image"] + (["image.bytes", "image.path"] if images else [])
        compression = {name: "none" if name in ("payload", "image.bytes") else "zstd" for name in names}
        form = {"compression": compression, "use_dictionary": False, "write_page_checksum": True}
        with replacing(path) as scratch, parquet.ParquetWriter(scratch, schema, **form) as target:
            at = 0
            for group in range(source.num_row_groups):
                rows = source.read_row_group(group)
                table = _with(rows, pairs[at : at + len(rows)], images).replace_schema_metadata(metadata)
                target.write_table(table, row_group_size=max(len(rows), 1))
                at += len(rows)

    file.read_with(copy)


def _with(rows: "pa.Table", pairs: list[Pair], images: bool) -> "pa.Table":
    """The rows with the columns that a published file has in addition."""
    import pyarrow as pa

    digests = [hashlib.sha256(pair.image).hexdigest() for pair in pairs]
    rows = rows.append_column(DIGEST_COLUMN, pa.array(digests, pa.string()))
    if images:
        upright = [upright_file(pair.image) for pair in pairs]
        values = [{"bytes": data, "path": None} for _, data in upright]
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        rows = rows.append_column("image", pa.array(values, kind))
        rows = rows.append_column("caption", pa.array([pair.caption for pair in pairs], pa.string()))
    return rows
