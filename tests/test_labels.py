import json
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import drawn_pair
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import features
from pyarrow import dataset, parquet
from tiny import WeightlessExpert

from cliptex.config import Config
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json, sha256_file, write_json
from cliptex.core.plugins import find
from cliptex.data.images import decode_image, encode_jpeg
from cliptex.data.shard_index import index_shards, read_index, read_indexed
from cliptex.data.shards import Pair, write_shard
from cliptex.labels import files
from cliptex.labels.audit import audit_labels, report
from cliptex.labels.index import index_labels
from cliptex.labels.label import label_batch
from cliptex.labels.lost import batches_to_redo
from cliptex.labels.parquet_form import PLAIN, RLE, row_groups
from cliptex.labels.payloads import FILE, StoredPayloads
from cliptex.labels.store import LabelFile, open_store, read_label_index

calls: list[list[str]] = []
killed_at: set[str] = set()


class Brightness(WeightlessExpert):
    """Depth from brightness. `network` says on which keys it fails, and how."""

    task = "depth"

    def predict(self, images, keys):
        calls.append(keys)
        options = self.settings["network"]
        for key in keys:
            if key in options.get("raises", []):
                raise ValueError("no box")
            if key in killed_at:
                raise KeyboardInterrupt
            if options.get("broken") or (options.get("memory") and len(keys) > 2):
                raise (MemoryError if options.get("memory") else RuntimeError)("bug")
        labels = [image.mean(axis=-1).astype(np.float32) + options.get("bias", 0) for image in images]
        return [
            np.full_like(label, np.nan) if key in options.get("blind", []) else label
            for key, label in zip(keys, labels, strict=True)
        ]


class Threshold(Brightness):
    """Segmentation from brightness: dark pixels are persons."""

    task = "segmentation"

    def predict(self, images, keys):
        return [(image.mean(axis=-1) < 128).astype(np.uint8) for image in images]


class Workplace:
    """An expert folder, a label store and the configuration that joins them."""

    def __init__(self, root, index):
        self.index, self.entries = index, read_index(index)["shards"]
        self.expert, self.out = root / "results/experts/bright", root / "results/labels/depth"
        self.weights("first")

    def weights(self, name):
        write_json(
            self.expert / "expert.json", {"weights": None, "weights_sha256": name, "miniature": None, "task": "depth"}
        )

    def config(
        self,
        shards_per_job=1,
        plugin="test_labels:Brightness",
        max_side_px=256,
        task="depth",
        batch_size=3,
        precision="auto",
        **network,
    ):
        expert = {"plugin": plugin, "batch_size": batch_size, "precision": precision, "network": network}
        return Config.load(
            {
                "dataset": {"source": "webdataset", "shards": [entry["path"] for entry in self.entries]},
                "experts": {"bright": expert},
                "label_stores": {"depth": {"task": task, "expert": "bright"}},
                "labels": {"shards_per_job": shards_per_job, "max_side_px": max_side_px},
            }
        )

    def label(self, batch, **options):
        label_batch(self.config(**options), "depth", batch, self.index, self.expert, self.out)
        return read_json(self.out / f"batch-{batch:03d}.json")

    def label_all(self, **options):
        for batch in range(-(-len(self.entries) // options.get("shards_per_job", 1))):
            self.label(batch, **options)
        return self.check(**options)

    def check(self, **options):
        return index_labels(self.config(**options), "depth", self.index, self.out)

    def file(self, shard):
        return self.out / f"{shard:05d}.parquet"

    def rows(self, shard):
        return parquet.read_table(self.file(shard)).to_pylist()


@pytest.fixture
def work(tmp_path, shard_index):
    calls.clear()
    killed_at.clear()
    return Workplace(tmp_path, shard_index)


def keys_of(work, shard):
    return work.entries[shard]["keys"]


# ---- labelling


def test_labels_keep_keys_and_order_and_are_what_the_expert_said(work):
    work.label_all()
    for entry in work.entries:
        file = open_store(work.out / "index.json", entry, find("tasks", "depth")())
        assert file.keys == entry["keys"]
        expert = Brightness({"network": {}})
        images = [decode_image(pair.image) for pair in read_indexed(entry)]
        for row, wanted in enumerate(expert.predict(images, file.keys)):
            label = file.label(row)
            assert label.shape == wanted.shape == (40, 56)
            np.testing.assert_allclose(label, wanted, atol=np.ptp(wanted) / 500)


def test_batches_of_images_depend_on_the_shard_and_batch_size_alone(work):
    work.label(0, shards_per_job=2)
    together = list(calls)
    shutil.rmtree(work.out)
    calls.clear()
    work.label(0)
    work.label(1)
    assert calls == together
    assert [len(keys) for keys in calls] == [3, 3, 2] * 2


def test_the_same_shard_labelled_again_gives_the_same_bytes(work):
    work.label_all()
    before = [sha256_file(work.file(shard)) for shard in range(2)]
    index = (work.out / "index.json").read_bytes()
    shutil.rmtree(work.out)
    work.label_all()
    assert [sha256_file(work.file(shard)) for shard in range(2)] == before
    assert (work.out / "index.json").read_bytes() == index


def test_resume_after_a_kill_keeps_finished_shards_untouched(work):
    killed_at.add(keys_of(work, 1)[4])
    with pytest.raises(KeyboardInterrupt):
        work.label(0, shards_per_job=2)
    assert [path.name for path in work.out.iterdir()] == ["00000.parquet"]
    before = work.file(0).stat()
    killed_at.clear()
    calls.clear()
    record = work.label(0, shards_per_job=2)
    assert (work.file(0).stat().st_mtime_ns, work.file(0).stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert [key for keys in calls for key in keys] == keys_of(work, 1)
    assert [shard["resumed"] for shard in record["shards"]] == [True, False]


def test_a_second_run_labels_nothing(work):
    work.label(0)
    calls.clear()
    record = work.label(0)
    assert calls == []
    assert record["shards"][0]["resumed"]
    assert record["images_per_second"] is None


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_label_file_is_done_again(work, share):
    work.label(0)
    whole = work.file(0).read_bytes()
    work.file(0).write_bytes(whole[: int(len(whole) * share)])
    assert not work.label(0)["shards"][0]["resumed"]
    assert work.file(0).read_bytes() == whole


def test_a_label_file_with_a_flipped_byte_is_done_again(work):
    work.label(0)
    whole = work.file(0).read_bytes()
    payload = next(row["payload"] for row in work.rows(0))
    place = whole.index(payload) + 20
    work.file(0).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(CliptexError, match=r"00000\.parquet: label file is damaged"):
        LabelFile(work.file(0)).get(0)
    assert not work.label(0)["shards"][0]["resumed"]
    assert work.file(0).read_bytes() == whole


def test_a_flipped_bit_anywhere_in_a_label_file_is_mended(work):
    """Also where no checksum is: in what the file says of itself."""
    work.label(0)
    whole = work.file(0).read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for place in np.linspace(footer, len(whole) - 9, 25).astype(int).tolist():
        work.file(0).write_bytes(whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :])
        work.label(0)
        assert work.file(0).read_bytes() == whole, place
    assert not list(work.file(0).parent.glob(".*.parquet"))


@pytest.mark.parametrize("change", ["weights", "network", "batch_size", "precision", "shard", "max_side_px"])
def test_labels_made_otherwise_are_done_again(work, change):
    work.label(0)
    if change == "weights":
        work.weights("second")
    if change == "shard":
        write_shard(work.index.parent / "00000.tar", [drawn_pair(f"00000{i:04d}", 90 + i) for i in range(8)])
        index_shards([work.index.parent / f"{i:05d}.tar" for i in range(2)], work.index, 0.5)
    options = {"network": {"bias": 5}, "max_side_px": {"max_side_px": 28}}
    options |= {"batch_size": {"batch_size": 2}, "precision": {"precision": "fp32"}}
    options = options.get(change, {})
    assert not work.label(0, **options)["shards"][0]["resumed"]


def test_another_licence_is_written_into_the_files_without_labelling_again(work):
    work.label(0)
    before = work.rows(0)
    calls.clear()
    config = work.config()
    expert = config.experts["bright"].model_copy(update={"licence": "MIT", "revision": "v2", "sha256": "0" * 8})
    config = config.model_copy(update={"experts": {"bright": expert}})
    label_batch(config, "depth", 0, work.index, work.expert, work.out)
    assert calls == [] and work.rows(0) == before
    assert LabelFile(work.file(0)).metadata["licence"] == "MIT"


def test_how_shards_are_shared_out_does_not_matter(work):
    work.label_all()
    calls.clear()
    work.label(0, shards_per_job=2)
    assert calls == []


def test_large_images_get_smaller_labels(work):
    work.label(0, max_side_px=28)
    assert {(row["height"], row["width"]) for row in work.rows(0)} == {(20, 28)}


def test_huge_images_are_shrunk_before_an_expert_sees_them(work, monkeypatch):
    shapes = set()
    monkeypatch.setattr(
        Brightness,
        "predict",
        lambda self, images, keys: (
            shapes.update(image.shape for image in images) or [i.mean(-1, dtype=np.float32) for i in images]
        ),
    )
    config = Config.load({**work.config().plain(), "labels": {"max_image_side_px": 28, "shards_per_job": 1}})
    label_batch(config, "depth", 0, work.index, work.expert, work.out)
    assert shapes == {(20, 28, 3)}


def test_no_half_written_file_is_left(work):
    work.label_all()
    assert sorted(path.name for path in work.out.iterdir()) == [
        *("00000.parquet", "00001.parquet", "batch-000.json", "batch-001.json", "index.json", "payloads.arrow")
    ]


# ---- failures


def test_images_on_which_the_expert_fails_are_rows_with_a_reason(work):
    bad, blind = keys_of(work, 0)[1], keys_of(work, 0)[6]
    record = work.label(0, raises=[bad], blind=[blind])
    rows = {row["key"]: row for row in work.rows(0)}
    assert list(rows) == keys_of(work, 0)
    assert rows[bad]["error"] == "expert failed: ValueError: no box"
    assert rows[blind]["error"] == "unusable label: every pixel is invalid"
    for row in rows.values():
        assert (row["payload"] is None) == (row["error"] is not None) == (row["key"] in (bad, blind))
    assert record["failures"] == {"expert failed": 1, "unusable label": 1}
    assert (record["images"], record["labelled"]) == (8, 6)


def test_failures_do_not_change_the_labels_of_batch_mates(work):
    work.label(0)
    before = {row["key"]: row["payload"] for row in work.rows(0)}
    bad = keys_of(work, 0)[1]
    work.label(0, raises=[bad])
    assert {row["key"]: row["payload"] for row in work.rows(0)} == before | {bad: None}


def test_the_index_counts_failures(work):
    options = {"raises": [keys_of(work, 0)[0], keys_of(work, 1)[0]], "blind": [keys_of(work, 1)[3]]}
    index = work.label_all(**options)
    assert index["failures"] == {"expert failed": 2, "unusable label": 1}
    assert index["coverage"] == 13 / 16
    file = open_store(work.out / "index.json", work.entries[1])
    assert [file.get(row) is None for row in range(8)] == [True, False, False, True, *[False] * 4]


def test_a_bug_in_the_expert_stops_the_run(work):
    with pytest.raises(CliptexError, match=r"8 images in a row failed.*RuntimeError: bug.*'bright'"):
        work.label(0, broken=True)
    assert not work.out.exists() or not list(work.out.iterdir())


def test_memory_that_runs_out_is_not_blamed_on_an_image(work):
    with pytest.raises(MemoryError):
        work.label(0, memory=True)


def test_a_missing_codec_is_not_blamed_on_images(work, monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: name != "jpg")
    with pytest.raises(CliptexError, match="Pillow cannot decode JPEG"):
        work.label(0)


def test_a_label_of_another_size_than_the_image_stops_the_run(work, monkeypatch):
    monkeypatch.setattr(Brightness, "predict", lambda self, images, keys: [np.ones((9, 9), np.float32) for _ in keys])
    with pytest.raises(TypeError, match="9, 9"):
        work.label(0)


def test_an_expert_of_another_task_is_refused(work):
    with pytest.raises(CliptexError, match=r"label_stores\.depth\.expert: 'bright' makes segmentation"):
        work.label(0, plugin="test_labels:Threshold")


def test_a_shard_that_changed_since_it_was_indexed_is_refused(work):
    path = work.index.parent / "00000.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1  # within the first image
    path.write_bytes(data)
    with pytest.raises(CliptexError, match=r"00000\.tar.*differs from the index"):
        work.label(0)


# ---- the index


def test_a_deleted_label_file_is_named_and_redone(work):
    index = work.label_all(shards_per_job=2)
    work.file(1).unlink()
    with pytest.raises(CliptexError, match=r"00001\.parquet: label file is missing; run: rm -f .*batch-000\.json"):
        work.check(shards_per_job=2)
    batch = work.out / "batch-000.json"
    assert batches_to_redo([work.out]) == {batch: [work.file(1)]}
    calls.clear()
    record = work.label(0, shards_per_job=2)
    assert {key for keys in calls for key in keys} == set(keys_of(work, 1))
    assert [shard["resumed"] for shard in record["shards"]] == [True, False]
    assert batches_to_redo([work.out]) == {}
    assert work.check(shards_per_job=2) == index


def test_batches_to_redo_sees_cut_files_and_broken_batch_files(work, tmp_path):
    work.label_all()
    assert batches_to_redo([work.out, tmp_path / "absent"]) == {}
    with work.file(0).open("r+b") as file:
        file.truncate(100)
    broken = work.out / "batch-001.json"
    broken.write_text("{")
    assert batches_to_redo([work.out]) == {work.out / "batch-000.json": [work.file(0)], broken: [broken]}


@pytest.mark.parametrize("damage", ["flip", "cut", "replace"])
def test_a_changed_label_file_is_refused_with_the_command_to_mend_it(work, damage):
    work.label_all()
    data = bytearray(work.file(1).read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    work.file(1).write_bytes(
        {"flip": bytes(data), "cut": bytes(data[:-9]), "replace": work.file(0).read_bytes()}[damage]
    )
    with pytest.raises(CliptexError, match=r"00001\.parquet: differs from the record in batch-001\.json") as error:
        work.check()
    command = str(error.value).partition("run: rm -f ")[2].split("  ")[0]
    assert command.split() == [str(work.file(1)), str(work.out / "batch-001.json")]


def edit(work, shard, batch, change):
    """Rewrite a label file and the record of it, as somebody with another program would."""
    table = parquet.read_table(work.file(shard))
    parquet.write_table(change(table), work.file(shard), use_dictionary=False)
    path = work.out / f"batch-{batch:03d}.json"
    record = read_json(path)
    for item in record["shards"]:
        if item["shard"] == f"{shard:05d}":
            item |= {"sha256": sha256_file(work.file(shard)), "bytes": work.file(shard).stat().st_size}
    write_json(path, record)


def test_missing_keys_are_refused_naming_shard_and_key(work):
    work.label_all()
    edit(work, 1, 1, lambda table: table.slice(0, 5))
    with pytest.raises(CliptexError, match=f"shard 00001: key '{keys_of(work, 1)[5]}' has no label row"):
        work.check()


def test_swapped_rows_are_refused_naming_shard_and_key(work):
    work.label_all()
    edit(work, 0, 0, lambda table: table.take([1, 0, *range(2, 8)]))
    with pytest.raises(CliptexError, match=f"shard 00000: key '{keys_of(work, 0)[1]}' is out of order"):
        work.check()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("expert", "other", "made by the expert 'other'"),
        ("weights_sha256", "other", "other weights"),
        ("recipe_sha256", "other", "other settings"),
        ("shard_sha256", "other", "another version of shard 00001"),
        ("schema_version", 99, "label schema 99 is not 1"),
        ("task", "normals", "holds normals"),
    ],
)
def test_a_file_made_otherwise_is_refused(work, field, value, message):
    def foreign(table):
        metadata = json.loads(table.schema.metadata[b"cliptex"]) | {field: value}
        return table.replace_schema_metadata({b"cliptex": json.dumps(metadata)})

    work.label_all()
    edit(work, 1, 1, foreign)
    with pytest.raises(CliptexError, match=rf"00001\.parquet: .*{message}"):
        work.check()


def test_a_store_of_another_expert_than_the_config_says_is_refused(work):
    work.label_all()
    config = Config.load(
        {
            "experts": {"other": {}, "bright": {}},
            "label_stores": {"depth": {"task": "depth", "expert": "other"}},
        }
    )
    with pytest.raises(CliptexError, match=r"index\.json: the label store's expert is 'bright'.*'other'.*mv "):
        read_label_index(config, "depth", work.out / "index.json")
    assert read_label_index(work.config(), "depth", work.out / "index.json")["expert"] == "bright"


def test_a_store_without_any_label_is_refused(work):
    every = [key for entry in work.entries for key in entry["keys"]]
    # seven failures in a row at most, so that the run is not stopped
    work.entries = work.entries[:1]
    write_json(work.index, {"shards": [{**work.entries[0], "keys": every[:4], "dropped": {}}]})
    work.label(0, blind=every)
    with pytest.raises(CliptexError, match="no image has a label"):
        work.check(blind=every)


def test_the_index_tells_what_was_made(work):
    index = work.label_all()
    assert (index["task"], index["expert"], index["weights_sha256"]) == ("depth", "bright", "first")
    assert index["coverage"] == 1
    assert index["codec"] == find("tasks", "depth")().codec()
    payloads = [len(row["payload"]) for shard in range(2) for row in work.rows(shard)]
    assert index["bytes_per_image"] == pytest.approx(np.mean(payloads), abs=0.1)
    ranges = [row["range"] for shard in range(2) for row in work.rows(shard)]
    assert index["statistics"]["scalars"]["range"] == pytest.approx(
        {"mean": np.mean(ranges), "least": min(ranges), "greatest": max(ranges)}
    )


def test_the_index_has_a_class_histogram_where_there_are_classes(work):
    options = {"plugin": "test_labels:Threshold", "task": "segmentation"}
    index = work.label_all(**options)
    task = find("tasks", "segmentation")()
    labels = [LabelFile(work.file(shard), task).label(row) for shard in range(2) for row in range(8)]
    classes = index["statistics"]["classes"]
    assert set(classes) == {"background", "person"}
    assert classes["person"] == pytest.approx(
        {"share": np.mean(np.stack(labels) == 1), "images": sum((label == 1).any() for label in labels)}
    )


def test_a_store_with_one_class_only_is_pointed_out(work, caplog, monkeypatch):
    options = {"plugin": "test_labels:Threshold", "task": "segmentation"}
    monkeypatch.setattr(Threshold, "predict", lambda self, images, keys: [np.zeros_like(i[..., 0]) for i in images])
    work.label_all(**options)
    assert "every pixel is background" in caplog.text


# ---- reading


def test_training_refuses_labels_that_are_not_those_indexed(work):
    work.label_all()
    index = work.out / "index.json"
    entry = {**work.entries[1], "keys": [*keys_of(work, 1)[:-1], "another"]}
    with pytest.raises(CliptexError, match="shard 00001: key 'another' has no label row"):
        open_store(index, entry)
    with pytest.raises(CliptexError, match=f"does not hold shard 00007, first key '{keys_of(work, 0)[0]}'"):
        open_store(index, {**work.entries[0], "shard": "00007"})
    with pytest.raises(CliptexError, match="another version of shard 00000"):
        open_store(index, {**work.entries[0], "sha256": "other"})
    work.file(0).unlink()
    with pytest.raises(CliptexError, match=r"00000\.parquet: label file is missing"):
        open_store(index, work.entries[0])
    with work.file(1).open("ab") as file:
        file.write(b"x")
    with pytest.raises(CliptexError, match="labels of shard 00001 changed since they were indexed"):
        open_store(index, work.entries[1])


def test_another_file_of_the_same_size_is_refused_when_its_labels_are_read(work):
    work.label_all()
    whole = work.file(0).read_bytes()
    other = bytearray(whole)
    other[whole.index(b"RIFF") + 40] ^= 1
    work.file(0).write_bytes(other)
    for read in (lambda file: file.get(0), lambda file: file.label(5)):
        with pytest.raises(
            CliptexError, match=r"00000\.parquet: differs from the file that was indexed.*put the indexed"
        ):
            read(open_store(work.out / "index.json", work.entries[0], find("tasks", "depth")()))


def stored_payloads(work):
    """As a worker process of training gets it."""
    index, task = work.out / "index.json", find("tasks", "depth")()
    return pickle.loads(pickle.dumps(StoredPayloads(index, work.entries, task, shards=2)))


def test_labels_are_read_by_their_places(work, monkeypatch):
    monkeypatch.setattr(files, "ROWS_PER_GROUP", 3)
    failing = {"raises": [keys_of(work, 0)[4], keys_of(work, 1)[0]]}
    work.label_all(**failing)
    expected = {
        (shard, row): open_store(work.out / "index.json", entry).get(row)
        for shard, entry in enumerate(work.entries)
        for row in range(len(entry["keys"]))
    }
    assert [place for place, label in expected.items() if label is None] == [(0, 4), (1, 0)]
    for form in ("as written", "of an earlier version", "compressed by another program"):
        if form.startswith("of"):
            (work.out / FILE).unlink()
        elif form.startswith("compressed"):
            for number in range(2):
                parquet.write_table(parquet.read_table(work.file(number)), work.file(number), use_dictionary=False)
                record = read_json(work.out / f"batch-{number:03d}.json")
                record["shards"][0] |= {
                    "bytes": work.file(number).stat().st_size,
                    "sha256": sha256_file(work.file(number)),
                }
                write_json(work.out / f"batch-{number:03d}.json", record)
            work.check(**failing)
        stored = stored_payloads(work)
        for shard in range(2):
            stored.check(shard)
            stored.read_ahead(shard)
        assert {place: stored.get(*place) for place in expected} == expected


@pytest.mark.parametrize("damage", ["cut", "empty", "of other labels", "of other shards", "of another task", "rows"])
def test_places_that_are_not_those_of_the_labels_are_named_with_the_remedy(work, tmp_path, damage):
    work.label_all()
    path = work.out / FILE
    whole = path.read_bytes()
    opened = pa.ipc.open_file(path)
    batches = [opened.get_batch_with_custom_metadata(shard) for shard in range(2)]
    if damage in ("cut", "empty"):
        path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
    else:
        (one, about), (_, other) = batches
        about = dict(about)
        changed = {
            "of other labels": (one, {**about, b"bytes": b"1"}),
            "of other shards": (one, dict(other)),
            "of another task": (one.select(["offset"]), about),
            "rows": (one.slice(1), about),
        }
        batch, about = changed[damage]
        with pa.ipc.new_file(str(path), batch.schema) as writer:
            for _ in range(2):
                writer.write_batch(batch, custom_metadata=about)
    for read in (lambda stored: stored.get(0, 3), lambda stored: stored.check(0)):
        with pytest.raises(CliptexError, match=r"payloads\.arrow: .*; run: rm -f \S*payloads\.arrow "):
            read(stored_payloads(work))
    path.unlink()
    assert stored_payloads(work).get(0, 3)


def test_a_changed_byte_of_the_places_gives_no_other_label(work):
    work.label_all()
    whole, expected = (work.out / FILE).read_bytes(), stored_payloads(work).get(0, 3)
    for at in range(0, len(whole), 5):
        (work.out / FILE).write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        try:
            assert stored_payloads(work).get(0, 3) == expected, at
        except CliptexError as error:
            assert "payloads.arrow: " in str(error)


def test_training_refuses_a_label_file_that_changed(work):
    work.label_all()
    whole = work.file(0).read_bytes()
    place = whole.index(work.rows(0)[0]["payload"]) + 40
    for data, problem in (
        (whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :], "differs from the file that was indexed"),
        (whole + b"x", "labels of shard 00000 changed since they were indexed"),
        (None, "label file is missing"),
    ):
        work.file(0).unlink() if data is None else work.file(0).write_bytes(data)
        with pytest.raises(CliptexError, match=rf"00000\.parquet: {problem}"):
            stored_payloads(work).get(0, 0)
    assert stored_payloads(work).get(1, 0)


def columns_of(keys):
    """The columns of a label file without labels; keys: an array."""
    count, text = len(keys), pa.string()
    empty = {"payload": pa.nulls(count, pa.binary()), "error": pa.nulls(count, text)}
    sides = {name: pa.array([8] * count, pa.int32()) for name in ("height", "width")}
    return {"key": keys, **sides, **empty}


LONG_KEY = "k" * 250_000
SPARE = 1 << 28
"""Bytes of memory to read a crafted file in."""


def read_in_little_memory(path):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE, resource.RLIM_INFINITY))
    try:
        LabelFile(path)
    except CliptexError as error:
        path.with_name("said.txt").write_text(str(error))


@pytest.mark.parametrize(
    ("columns", "options", "problem"),
    [
        (columns_of(pa.array([1, 2])), {}, "column key is int64"),
        (columns_of(pa.array(["a"])) | {"payload": pa.array(["x"])}, {}, "column payload is string"),
        (columns_of(pa.array(["a", None])), {}, "a row without a key"),
        (columns_of(pa.DictionaryArray.from_arrays([0] * 4000, [LONG_KEY])), {}, "encodings that repeat values"),
        (columns_of(pa.array([LONG_KEY] * 200)), {"compression": "zstd"}, "uncompressed more than 64 times"),
    ],
)
def test_a_crafted_label_file_is_one_line_before_it_takes_memory(columns, options, problem, tmp_path):
    """The last two are 1 GB and 50 MB of keys in some kB."""
    path, is_dictionary = tmp_path / "00000.parquet", pa.types.is_dictionary(columns["key"].type)
    schema = pa.schema(
        {name: array.type for name, array in columns.items()}, metadata={"cliptex": '{"task": 1, "codec": 2}'}
    )
    options = {"use_dictionary": is_dictionary, "store_schema": not is_dictionary} | options
    parquet.write_table(pa.table(columns, schema=schema), path, **options)
    process = multiprocessing.get_context("fork").Process(target=read_in_little_memory, args=(path,))
    process.start()
    process.join(60)
    said = path.with_name("said.txt").read_text()
    assert re.search(rf"00000\.parquet: label file is damaged \(.*{problem}", said), said
    assert "\n" not in said and process.exitcode == 0


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(CliptexError, match="is not a file"):
            LabelFile(path)


@pytest.mark.parametrize(("height", "width"), [(1 << 30, 1 << 30), (0, 8), (-8, 8), (8, None)])
def test_a_label_of_an_impossible_size_is_refused_by_key(work, height, width):
    work.label_all()
    file = LabelFile(work.file(0), find("tasks", "depth")())
    payload, *_ = file.get(2)
    file.get = lambda row: (payload, height, width)
    with pytest.raises(CliptexError, match=f"label of '{keys_of(work, 0)[2]}' cannot be decoded"):
        file.label(2)


def test_payloads_are_read_when_asked_for(work, monkeypatch):
    monkeypatch.setattr(files, "ROWS_PER_GROUP", 3)
    work.label_all(raises=[keys_of(work, 0)[4]])
    file = open_store(work.out / "index.json", work.entries[0])
    light = len(pickle.dumps(file))
    payload, height, width = file.get(7)
    assert payload == work.rows(0)[7]["payload"]
    assert (height, width) == (40, 56)
    assert len(pickle.dumps(file)) > light + 6 * len(payload)


def test_a_label_file_opens_in_other_tools(work):
    pandas = pytest.importorskip("pandas")
    work.label_all(raises=[keys_of(work, 1)[2]])
    frame = pandas.read_parquet(work.file(1))
    assert list(frame.columns[:5]) == ["key", "height", "width", "payload", "error"]
    assert frame.key.tolist() == keys_of(work, 1)
    assert frame.payload.isna().tolist() == [row == 2 for row in range(8)]
    table = dataset.dataset(sorted(map(str, work.out.glob("*.parquet")))).to_table(
        columns=["key"], filter=dataset.field("error").is_valid()
    )
    assert table["key"].to_pylist() == [keys_of(work, 1)[2]]


def test_the_file_says_how_it_was_made(work):
    work.label_all()
    metadata = json.loads(parquet.read_schema(work.file(0)).metadata[b"cliptex"])
    assert metadata["codec"]["invalid"].startswith("NaN")
    assert {"task", "expert", "weights_sha256", "codec", "frame", "versions", "shard_sha256", "licence"} <= set(
        metadata
    )


# ---- audit


def test_the_audit_finds_labels_that_cannot_be_made_again(work):
    bad = keys_of(work, 0)[2]
    work.label_all(raises=[bad])
    config = work.config(raises=[bad])
    same = Brightness(config.experts["bright"].model_dump())
    found = audit_labels(config, "depth", work.index, same, work.out, samples=16)
    assert [(one.shard, one.key) for one in found] == [
        (f"{shard:05d}", key) for shard in range(2) for key in keys_of(work, shard)
    ]
    assert all(one.identical for one in found)
    assert report(found, "depth") == "depth: 16 of 16 images agree, 16 are byte-identical"

    healed = audit_labels(config, "depth", work.index, Brightness({"network": {}}), work.out, samples=16)
    assert [one.key for one in healed if not one.agrees] == [bad]
    assert f"DIFFER shard 00000 key {bad}: has a label now, none in the store" in report(healed, "depth")


def test_the_audit_finds_one_changed_block_among_a_thousand_labels(tmp_path):
    """In a store whose index fits the changed file."""
    shards = tmp_path / "results/shards"
    write_shard(shards / "00000.tar", [drawn_pair(f"{number:04d}", number, 16, 16) for number in range(1000)])
    index_shards([shards / "00000.tar"], shards / "index.json", min_yield=1)
    work = Workplace(tmp_path, shards / "index.json")
    work.label_all(batch_size=50)
    table, row, depth = parquet.read_table(work.file(0)), 617, find("tasks", "depth")()
    payloads = table["payload"].to_pylist()
    label = depth.decode(payloads[row], 16, 16)
    label[4:8, 8:12] = label.max() - label[4:8, 8:12]
    payloads[row] = depth.encode(label)
    column = table.schema.get_field_index("payload")
    parquet.write_table(table.set_column(column, "payload", [payloads]), work.file(0), use_dictionary=False)
    record = read_json(work.out / "batch-000.json")
    record["shards"][0] |= {"bytes": work.file(0).stat().st_size, "sha256": sha256_file(work.file(0))}
    write_json(work.out / "batch-000.json", record)
    work.check(batch_size=50)
    config = work.config(batch_size=50)
    found = audit_labels(config, "depth", work.index, Brightness({"network": {}}), work.out, samples=1000)
    assert [one.key for one in found if not one.identical] == ["0617"]
    assert "DIFFER shard 00000 key 0617: 16 of 256 pixels differ, in rows 4 to 7, columns 8 to 11" in report(
        found, "depth"
    )


def test_the_audit_tells_how_much_of_a_label_differs(work):
    options = {"plugin": "test_labels:Threshold", "task": "segmentation"}
    work.label_all(**options)

    class Shifted(Threshold):
        def predict(self, images, keys):
            labels = super().predict(images, keys)
            for label in labels:
                label[:4] = 7  # 4 of 40 lines
            return labels

    found = audit_labels(work.config(**options), "depth", work.index, Shifted({"network": {}}), work.out, samples=4)
    size = found[0].pixels * 10
    assert f"{size // 10} of {size} pixels differ, in rows 0 to 3, columns 0 to " in report(found, "depth")


def test_the_audit_wants_the_same_class_and_nearly_the_same_score():
    task = find("tasks", "scored_segmentation")()

    def differing(a, b):
        return int(task.differs(a, b).sum())

    label = np.stack(
        np.broadcast_arrays(np.arange(10, dtype=np.uint8)[:, None], np.arange(0, 250, 25, dtype=np.uint8)), -1
    )
    other = label.copy()  # 10 x 10; scores from 0 to 225, of which 2 % are 4.5
    other[..., 1] += 4
    assert differing(label, other) == 0
    other[0, :3, 1] += 1
    assert differing(label, other) == 3
    other[0, 2, 0] += 1  # in a pixel that differs already
    other[1, 2, 0] += 1
    assert differing(label, other) == differing(other, label) == 4
    assert differing(label[..., 0], other[..., 0]) == 2
    flat = np.full((4, 5, 2), 200, np.uint8)  # no object: one score everywhere, without a range
    assert differing(flat, flat + np.array([0, 1], np.uint8)) == 0
    assert differing(flat, flat + np.array([0, 2], np.uint8)) == 20


def test_the_audit_labels_in_the_stores_batches_what_differs_alone(work):
    class BatchDependent(Brightness):
        def predict(self, images, keys):
            labels = super().predict(images, keys)
            return [label.T.copy().reshape(label.shape) for label in labels] if len(labels) == 1 else labels

    work.label_all()
    found = audit_labels(work.config(), "depth", work.index, BatchDependent({"network": {}}), work.out, samples=16)
    assert all(one.identical for one in found)
    assert {len(keys) for keys in calls[-32:]} == {1, 2, 3}  # batches of 3 of 8 images


@pytest.mark.parametrize("task", ["segmentation", "depth", "normals"])
def test_the_audit_calls_one_step_of_the_codec_rounding_and_finds_one_changed_block(task):
    """Also where the whole image is one flat wall, of which the range is a single step."""
    task, rng = find("tasks", task)(), np.random.default_rng(0)
    for flat in (False, True):
        x, y, noise = (axis.astype(np.float32) for axis in (*np.mgrid[:48, :64], rng.normal(size=(48, 64))))
        slope = 0.001 if flat else 0.05
        if task.name == "segmentation":
            label = again = np.full((48, 64), 3, np.uint8) if flat else (x // 9).astype(np.uint8)
            changed = np.uint8(7)
        elif task.name == "depth":
            label, again, changed = slope * x + 9, slope * x + 9 + 1e-4 * slope * noise, np.float32(9)
        else:
            raw = np.stack([slope * x, 0 * y, 0 * y + 1, 20 + y], axis=-1)
            label, again = raw, raw + np.float32(1e-3) * noise[..., None]
            changed = np.array([0, 1, 0, 20], np.float32)
        stored, other = (task.decode(task.encode(one), 48, 64) for one in (label, again))
        assert not task.differs(stored, other).any()
        broken = stored.copy()
        broken[40:44, 30:34] = changed
        assert task.differs(stored, broken).sum() == 16


def test_a_loss_is_remembered_by_the_index_when_the_batch_file_is_gone(tmp_path):
    item = {"batch": "batch-000.json", "file": "00000.parquet", "bytes": 3}
    write_json(tmp_path / "index.json", {"files": [item]})
    (tmp_path / "00000.parquet").write_bytes(b"abc")
    assert batches_to_redo([tmp_path]) == {}  # the batch file alone is no loss of labels
    (tmp_path / "00000.parquet").unlink()
    assert batches_to_redo([tmp_path]) == {tmp_path / "batch-000.json": [tmp_path / "00000.parquet"]}
    (tmp_path / "index.json").write_text("{")
    assert batches_to_redo([tmp_path]) == {}


# ---- workers


def test_worker_processes_change_nothing_in_what_is_written(work):
    bad = keys_of(work, 0)[1]
    work.label(0, raises=[bad])
    before = work.file(0).read_bytes()
    work.file(0).unlink()
    label_batch(work.config(raises=[bad]), "depth", 0, work.index, work.expert, work.out, workers=2)
    assert work.file(0).read_bytes() == before


class Deadly(find("tasks", "depth")):
    """Depth whose encoding gets a worker killed, as one is where memory runs out."""

    def encode(self, label):
        assert multiprocessing.parent_process() is not None  # else the tests themselves would be killed
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_ends_the_job_with_a_remedy(work):
    work.label(0)
    before = work.file(0).stat().st_mtime_ns
    config = work.config(shards_per_job=2, task="test_labels:Deadly")
    with pytest.raises(
        CliptexError, match=r"00001\.tar: a worker .* has died.*`mem`.*`threads`.*the same command again"
    ):
        label_batch(config, "depth", 0, work.index, work.expert, work.out, workers=2)
    assert sorted(path.name for path in work.out.iterdir()) == ["00000.parquet", "batch-000.json"]
    record = work.label(0, shards_per_job=2)
    assert [shard["resumed"] for shard in record["shards"]] == [True, False]
    assert work.file(0).stat().st_mtime_ns == before


def test_rows_go_to_disk_a_group_at_a_time(work, monkeypatch):
    monkeypatch.setattr(files, "ROWS_PER_GROUP", 5)
    work.label(0)
    groups = parquet.ParquetFile(work.file(0))
    assert [groups.metadata.row_group(number).num_rows for number in range(groups.num_row_groups)] == [5, 3]
    assert LabelFile(work.file(0)).keys == keys_of(work, 0)


# ---- as a process


JOB = """
import json, resource, sys, time
from pathlib import Path
from test_labels import Brightness, label_batch, Config

predict = Brightness.predict
def slowly(self, images, keys):
    time.sleep(float(sys.argv[2]))
    return predict(self, images, keys)
Brightness.predict = slowly
config = Config.load(json.loads(Path("config.json").read_text()))
label_batch(config, "depth", 0, Path("index.json"), Path("expert"), Path(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def job(folder, shards, images, side):
    """A folder with shards of noise, which no codec makes small, and the command that labels them in one job."""
    paths = [folder / f"{shard:05d}.tar" for shard in range(shards)]
    for shard, path in enumerate(paths):
        rng = np.random.default_rng(shard)
        pictures = rng.integers(0, 256, (images, side, side, 3), np.uint8)
        write_shard(path, [Pair(f"{shard:05d}{i:04d}", encode_jpeg(one), "noise") for i, one in enumerate(pictures)])
    index_shards(paths, folder / "index.json", 1.0)
    write_json(folder / "expert/expert.json", {"weights": None, "weights_sha256": "first", "miniature": None})
    write_json(
        folder / "config.json",
        {
            "dataset": {"source": "webdataset", "shards": list(map(str, paths))},
            "experts": {"bright": {"plugin": "test_labels:Brightness", "batch_size": 3}},
            "label_stores": {"depth": {"task": "depth", "expert": "bright"}},
            "labels": {"shards_per_job": shards},
        },
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    return lambda out, wait: subprocess.Popen(
        [sys.executable, "-c", JOB, out, str(wait)], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )


def test_memory_does_not_grow_with_the_shards_of_a_job(tmp_path):
    peaks = {}
    for shards in (2, 8):
        (tmp_path / str(shards)).mkdir()
        process = job(tmp_path / str(shards), shards, 40, 200)("out", 0)
        peaks[shards] = int(process.communicate()[0].split()[-1])
        assert process.returncode == 0
    images_kb = 6 * 40 * 200 * 200 * 3 / 1024  # of the six shards more, decoded
    assert peaks[8] - peaks[2] < 0.2 * images_kb


def test_a_job_killed_at_any_moment_goes_on_to_the_same_bytes(tmp_path):
    start = job(tmp_path, 6, 12, 40)
    process = start("whole", 0)
    process.communicate()
    assert process.returncode == 0
    rng = np.random.default_rng(0)
    done: list[int] = []
    for _ in range(5):
        process = start("killed", 0.02)
        had = len(list((tmp_path / "killed").glob("[0-9]*.parquet")))
        deadline = time.monotonic() + 20
        while len(list((tmp_path / "killed").glob("[0-9]*.parquet"))) <= had and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.12))  # anywhere in the next shard
        process.kill()
        process.communicate()
        done.append(len(list((tmp_path / "killed").glob("[0-9]*.parquet"))))
        if done[-1] == 6:
            break
    assert done == sorted(set(done))  # every try kept what there was and got further
    process = start("killed", 0)
    process.communicate()
    assert process.returncode == 0
    for path in sorted((tmp_path / "whole").glob("*.parquet")):
        assert (tmp_path / "killed" / path.name).read_bytes() == path.read_bytes()
    # the next process has deleted the scratch files that kills left
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }
    resumed = [shard["resumed"] for shard in read_json(tmp_path / "killed/batch-000.json")["shards"]]
    assert resumed == [number < done[-1] for number in range(6)]


FOOTERS = """
import sys
from pathlib import Path
from cliptex.core.errors import CliptexError
from cliptex.labels.store import LabelFile
path, results = Path(sys.argv[1]), []
whole = path.read_bytes()
footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
for place in range(footer, footer + 120):
    data = bytearray(whole)
    data[place] ^= 4
    path.write_bytes(data)
    try:
        results.append(len(LabelFile(path)))
    except CliptexError:
        results.append(None)
print(results.count(None), len(results))
"""


def test_no_damage_of_a_footer_ends_the_process(work):
    """pyarrow's RowGroupMetaData.column aborts on some of these."""
    work.label_all()
    path = work.out / "00000.parquet"
    ended = subprocess.run([sys.executable, "-c", FOOTERS, path], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    errors, count = map(int, ended.stdout.split())
    assert count == 120
    assert errors > 60


columns = st.sampled_from([pa.array([1, 2, 2]), pa.array(["a", None, "b"]), pa.array([[1], [], None])])


@settings(max_examples=30, deadline=None)
@given(st.lists(columns, min_size=1, max_size=5), st.booleans(), st.sampled_from(["none", "zstd"]), st.integers(1, 3))
def test_the_form_of_a_parquet_file_is_what_pyarrow_says(tmp_path_factory, arrays, dictionary, compression, rows):
    path = tmp_path_factory.mktemp("form") / "a.parquet"
    table = pa.table(dict(zip("abcde", arrays, strict=False)))
    parquet.write_table(table, path, use_dictionary=dictionary, compression=compression, row_group_size=rows)
    known = parquet.ParquetFile(path).metadata
    for number, group in enumerate(row_groups(path)):
        assert group.rows == known.row_group(number).num_rows
        for place, chunk in enumerate(group.chunks):
            column = known.row_group(number).column(place)
            assert chunk.has_dictionary == column.has_dictionary_page
            assert chunk.uncompressed_bytes == column.total_uncompressed_size
            assert (chunk.encodings <= {PLAIN, RLE}) == (set(column.encodings) <= {"PLAIN", "RLE"})
