"""Take the labels of shards from a published set instead of an expert.

Reads   results/shards/index.json and its shards, and the set that `cliptex.labels.published` fetched.
Writes  results/labels/{store}/{shard}.parquet and, last, batch-{batch}.json, as `cliptex.labels.label` does.
Holds   a payload is that of the set, byte for byte; an image that the set lacks is a row with a reason.
"""

import hashlib
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from cliptex import versions
from cliptex.config import Config, LabelStore
from cliptex.core.errors import CliptexError, working_on
from cliptex.core.files import sha256_file, sha256_json
from cliptex.core.progress import track
from cliptex.data.images import BadImage, open_image, require_codecs
from cliptex.data.sample_reader import reindex_command
from cliptex.data.shard_index import read_index, read_indexed
from cliptex.data.shards import Pair
from cliptex.labels.audit import Finding, compare
from cliptex.labels.files import describe_labels, open_label_writer
from cliptex.labels.label import is_complete, write_batch
from cliptex.labels.published import PublishedSet
from cliptex.labels.store import SCHEMA_VERSION, open_store, rows_by_shard

log = logging.getLogger("cliptex")
WINDOW = 256
NOT_FOUND = "not in the published set"
NO_LABEL = "published without a label"
RECIPE = (
    *("schema_version", "task", "expert", "plugin", "weights_sha256", "max_side_px", "codec", "frame", "from"),
    "versions",
)


def take_batch(config: Config, store: str, batch: int, shard_index: Path, folder: Path, out_dir: Path) -> None:
    """Write the label files of one batch of shards. folder: of `fetch_labels`. A shard is skipped if its label file is
    complete and of the same set. Raises CliptexError if a shard has changed, and for a label of another shape than its
    image."""
    require_codecs()
    published = _open(config, store, folder)
    task = published.task
    per_job = config.labels.shards_per_job
    entries = read_index(shard_index)["shards"][batch * per_job : (batch + 1) * per_job]
    recipe, extras = recipe_of(published), published.extras()
    scalars = list(task.scalars(task.missing(1)))
    start, records = time.monotonic(), []
    for entry in track(entries, f"take {store}"):
        path = out_dir / f"{entry['shard']}.parquet"
        metadata = {**recipe, "store": store, "shard": entry["shard"], "shard_sha256": entry["sha256"]}
        metadata["extra_columns"] = list(extras)
        with working_on(f"{entry['path']} and {path}"):
            if not (resumed := is_complete(path, entry, metadata, scalars, extras)):
                if sha256_file(Path(entry["path"])) != entry["sha256"]:
                    raise CliptexError(f"{entry['path']}: differs from the index; {reindex_command()}")
                pairs = read_indexed(entry)
                with open_label_writer(path, scalars, extras, metadata) as write:
                    for first in range(0, len(pairs), WINDOW):
                        write(take_rows(published, pairs[first : first + WINDOW], entry["path"]))
            records.append({**describe_labels(path, entry, task), "resumed": resumed})
    images = sum(record["rows"] for record in records)
    lacking = sum(record["failures"].get(NOT_FOUND, 0) for record in records)
    say = log.warning if lacking else log.info
    say("%s: %d of %d images are in %s", store, images - lacking, images, published.about["source"])
    write_batch(config, store, batch, recipe, records, time.monotonic() - start, out_dir)


def take_rows(published: PublishedSet, pairs: list[Pair], shard: str) -> list[dict[str, Any]]:
    """The rows of the label file for some pairs of a shard."""
    digests = [hashlib.sha256(pair.image).hexdigest() for pair in pairs]
    found = published.find(digests if published.join == "digest" else [pair.key for pair in pairs])
    rows = []
    for pair, row in zip(pairs, found, strict=True):
        if row is None:
            rows.append({"key": pair.key, "error": NOT_FOUND})
        elif row["payload"] is None:
            rows.append({"key": pair.key, "error": f"{NO_LABEL}: {row['error']}"})
        else:
            try:
                size = open_image(pair.image).size
            except BadImage as error:
                rows.append({"key": pair.key, "error": f"bad image: {error}"})
                continue
            _check_label(pair, size, row, published, shard)
            rows.append(row | {"key": pair.key, "error": None})
    return rows


def _check_label(pair: Pair, size: tuple[int, int], row: dict[str, Any], published: PublishedSet, shard: str) -> None:
    """Raise CliptexError unless a label has its image's shape, is at most as large, and can be decoded: others made
    it, and training would find it out much later. size: width and height of the image."""
    width, height = size
    has = row["height"], row["width"]
    scale = max(has) / max(height, width) if None not in has else 0
    off = max(abs(has[0] - height * scale), abs(has[1] - width * scale)) if scale and published.task.aligned else 0
    if not 0 < scale <= 1 or off > 1.5:
        remedy = "another image has this key: use `join: digest`" if published.join == "key" else "use another set"
        raise CliptexError(
            f"{shard}: {pair.key!r} is {width} x {height} pixels, but its label in {published.about['source']} is"
            f" {has[1]} x {has[0]}; {remedy}"
        )
    label = f"{shard}: the label of {pair.key!r} in {published.about['source']}"
    try:
        shape = published.task.decode(row["payload"], *has).shape
    except MemoryError:
        raise
    except Exception as error:  # decoders raise many types of errors for damaged payloads
        raise CliptexError(f"{label} cannot be decoded ({error}); use another set") from error
    if shape[:2] != has:
        raise CliptexError(f"{label} is {shape[1]} x {shape[0]}, not {has[1]} x {has[0]}; use another set")


def recipe_of(published: PublishedSet) -> dict[str, Any]:
    """The metadata shared by all label files that are taken from a set; see `cliptex.labels.files.label_recipe`."""
    record = published.record
    made = {"schema_version": SCHEMA_VERSION, "from": published.about, "versions": {"label": versions.LABEL}}
    recipe = {name: made[name] if name in made else record.get(name) for name in RECIPE}
    licences = dict.fromkeys((f"{record['licence']} (labels)", f"{record['weights_licence']} (weights)"))
    licence = record["licence"] if record["licence"] == record["weights_licence"] else ", ".join(licences)
    return {**recipe, "recipe_sha256": sha256_json(recipe), "licence": licence, "weights": record.get("weights")}


def recorded_recipe(store: LabelStore, name: str, made: dict[str, Any], message: str) -> dict[str, Any]:
    """The recipe that the metadata `made` of a label file states. Raises CliptexError, `message` with the problem, if
    it was not taken from the set that the store `name` has in the configuration."""
    source = made.get("from") or {}
    if source.get("source") != store.from_ or store.join not in (None, source.get("join")):
        has = f"{source.get('source') or made.get('expert')!r}, joined by {source.get('join') or 'nothing'}"
        raise CliptexError(message.format(f"labels of {has}, not what label_stores.{name} has in `from` and `join`"))
    recipe = {key: made.get(key) for key in RECIPE}
    if sha256_json(recipe) != made["recipe_sha256"]:
        raise CliptexError(message.format("its metadata differ from their digest"))
    return {**recipe, **{key: made.get(key) for key in ("recipe_sha256", "licence", "weights")}}


def coverage(recipe: dict[str, Any], images: int, failures: dict[str, int]) -> dict[str, Any]:
    """For the index of a store that was taken: from which set, and how many of the images this has."""
    found = images - failures.get(NOT_FOUND, 0)
    return {**recipe["from"], "found": found, "share": found / images}


def audit_taken(
    config: Config, store: str, shard_index: Path, folder: Path, out_dir: Path, samples: int = 8, seed: int = 0
) -> list[Finding]:
    """Take `samples` random images again and compare them with the store, as `audit_labels` does with an expert."""
    published = _open(config, store, folder)
    entries, findings = read_index(shard_index)["shards"], []
    sizes = [len(entry["keys"]) for entry in entries]
    chosen = np.random.default_rng(seed).choice(sum(sizes), min(samples, sum(sizes)), replace=False)
    for shard, rows in rows_by_shard(sizes, chosen).items():
        entry = entries[shard]
        stored, pairs = open_store(out_dir / "index.json", entry, published.task), read_indexed(entry)
        for row, again in zip(rows, take_rows(published, [pairs[row] for row in rows], entry["path"]), strict=True):
            findings.append(compare(published.task, entry["shard"], again, stored.get(row)))
    return findings


def _open(config: Config, store: str, folder: Path) -> PublishedSet:
    settings = config.label_stores[store]
    published = PublishedSet(folder, settings.task)
    if published.about["source"] != settings.from_ or settings.join not in (None, published.join):
        raise CliptexError(
            f"{folder}: fetched {published.about['source']}, joined by {published.join}, not what label_stores.{store}"
            " says; run the step fetch_labels again"
        )
    return published
