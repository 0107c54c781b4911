"""Label sets travel: published by one run, taken by another with other shards, from a folder, a URL and the hub."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import drawn_pair
from hosts import COMMIT, Hosts
from huggingface_hub import DatasetCard
from tiny import WeightlessExpert
from web_server import WebServer

from cliptex.config import Config
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json, sha256_file, write_json
from cliptex.core.licences import hub_terms, is_non_commercial
from cliptex.core.plugins import find
from cliptex.data.shard_index import index_shards, read_index
from cliptex.data.shards import Pair, write_shard
from cliptex.labels.index import index_labels
from cliptex.labels.label import label_batch
from cliptex.labels.publish import publish_labels
from cliptex.labels.published import _checked, fetch_labels
from cliptex.labels.store import LabelFile, open_store
from cliptex.labels.take import _check_label, audit_taken, take_batch
from cliptex.report.integrity import _check_sources
from cliptex.report.tables.data import labels_table

NUM_IMAGES, FAILED = 12, "a004"


class Bright(WeightlessExpert):
    """Depth from brightness; fails on an image."""

    task = "depth"

    def predict(self, images, keys):
        if FAILED in keys and len(keys) == 1:
            raise ValueError("no box")
        if FAILED in keys:
            raise RuntimeError
        return [image.mean(axis=-1).astype("float32") for image in images]


def pairs(keys="a"):
    return [drawn_pair(f"{keys}{number:03d}", number, 40, 56 if number % 2 else 40) for number in range(NUM_IMAGES)]


class Run:
    """A run with its own shards of some pairs."""

    def __init__(self, root, given, per_shard):
        self.root, self.index, self.labels = root, root / "shards/index.json", root / "labels"
        self.shards = []
        for start in range(0, len(given), per_shard):
            self.shards.append(root / f"shards/{start // per_shard:05d}.tar")
            write_shard(self.shards[-1], sorted(given[start : start + per_shard], key=lambda pair: pair.key))
        index_shards(self.shards, self.index, min_yield=0.5)
        self.folder = root / "published_labels"

    def config(self, store, licence="Apache-2.0", weights="trained"):
        expert = {"plugin": "test_published_labels:Bright", "licence": licence, "weights": weights, "batch_size": 2}
        return Config.load(
            {"experts": {"bright": expert}, "label_stores": {"depth": store}, "labels": {"shards_per_job": 2}}
        )

    def label(self, **options):
        config = self.config({"task": "depth", "expert": "bright"}, **options)
        write_json(self.root / "expert/expert.json", {"weights": None, "weights_sha256": "w", "miniature": None})
        for batch in range(-(-len(self.shards) // 2)):
            label_batch(config, "depth", batch, self.index, self.root / "expert", self.labels / "depth")
        index_labels(config, "depth", self.index, self.labels / "depth")
        return config

    def take(self, source, **options):
        config = self.config({"task": "depth", "from": str(source), **options})
        fetch_labels(config, "depth", self.folder)
        for batch in range(-(-len(self.shards) // 2)):
            take_batch(config, "depth", batch, self.index, self.folder, self.labels / "depth")
        return index_labels(config, "depth", self.index, self.labels / "depth")

    def rows(self, store="depth"):
        """Key -> payload, height, width, error."""
        rows = {}
        for entry in read_index(self.index)["shards"]:
            file = open_store(self.labels / store / "index.json", entry, find("tasks", "depth")())
            errors = file.column("error")
            rows |= {key: (file.get(row), errors[row]) for row, key in enumerate(file.keys)}
        return rows


@pytest.fixture(scope="session")
def publisher(tmp_path_factory):
    """A run with shards of five images, and its published set."""
    run = Run(tmp_path_factory.mktemp("publisher"), pairs(), 5)
    config = run.label()
    publish_labels(config, "depth", run.index, run.labels, run.root / "set")
    return run


@pytest.fixture
def published(publisher, tmp_path):
    """A copy of the published set, which a test may damage."""
    return shutil.copytree(publisher.root / "set", tmp_path / "set")


@pytest.fixture
def server():
    with WebServer() as server:
        yield server


def other_images():
    """The images of `pairs` under other keys and in another order, without two of them, and one more."""
    renamed = [Pair(f"b{50 - number:03d}", pair.image, pair.caption, {}) for number, pair in enumerate(pairs())]
    there = [number for number in reversed(range(NUM_IMAGES)) if number not in (2, 7)]
    return [*(renamed[number] for number in there), drawn_pair("c000", 99)]


def edit_record(folder, change):
    record = read_json(folder / "labels.json")
    change(record)
    write_json(folder / "labels.json", record)


# ---- publish


def test_a_published_set_is_a_folder_that_the_hub_and_sha256sum_take(publisher):
    out = publisher.root / "set"
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    data = [f"data/{shard:05d}.parquet" for shard in range(3)]
    assert files == ["README.md", "SHA256SUMS", *data, "labels.json"]
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=out, check=True)
    assert len((out / "SHA256SUMS").read_text().splitlines()) == 5
    card = DatasetCard.load(out / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.task_categories == ["depth-estimation"] and card.data.size_categories == ["n<1K"]
    (split,) = card.data.to_dict()["configs"][0]["data_files"]
    assert sorted(str(path.relative_to(out)) for path in out.glob(split["path"])) == data
    table = pq.read_table(out / "data/00000.parquet")
    assert table["image_sha256"].to_pylist() == list(map(digest, pairs()[:5]))
    record = read_json(out / "labels.json")
    assert (record["expert"], record["weights"], record["weights_sha256"]) == ("bright", "trained", "w")
    assert (record["rows"], record["labelled"]) == (12, 11)


def digest(pair):
    return hashlib.sha256(pair.image).hexdigest()


def test_datasets_loads_a_published_set_with_images(publisher, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    config, out = publisher.config({"task": "depth", "expert": "bright"}), tmp_path / "with_images"
    publish_labels(config, "depth", publisher.index, publisher.labels, out, images=True, shards=range(1))
    rows = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["key"][:] == [pair.key for pair in pairs()[:5]]
    assert rows[1]["image"].size == (56, 40) and rows[1]["caption"] == "a picture number 1"
    taker = Run(tmp_path / "taker", pairs()[:5], 3)
    assert taker.take(out)["from"]["share"] == 1


@pytest.mark.parametrize("task", ["segmentation", "scored_segmentation", "depth", "normals"])
def test_the_example_of_the_card_decodes_as_the_task_does(task, publisher, tmp_path, monkeypatch, capsys):
    import numpy as np

    from cliptex.labels.card import card

    plugin, rng = find("tasks", task)(), np.random.default_rng(0)
    label = rng.integers(0, 3, (6, 8, 2)).astype(np.uint8)
    if task == "segmentation":
        label = label[..., 0]
    elif task == "depth":
        label = rng.normal(size=(6, 8)).astype(np.float32)
        label[0, 0] = np.nan
    elif task == "normals":
        label = np.abs(rng.normal(size=(6, 8, 4))).astype(np.float32) * [1, -1, 1, 50]
        label = label.astype(np.float32)
        label[0, 0] = np.nan
    record = read_json(publisher.root / "set/labels.json") | {"task": task, "codec": plugin.codec()}
    text = card(record)
    example = re.search(r"```python\n(.*?)```", text, re.S)[1]
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    row = {"key": "a", "error": None, "height": 6, "width": 8, "payload": plugin.encode(label)}
    pq.write_table(pa.Table.from_pylist([row]), "data/00000.parquet")
    names = {}
    exec(compile(example, "card", "exec"), names)
    expected = plugin.decode(row["payload"], 6, 8)
    shown = np.moveaxis(names["label"], 0, -1) if task == "scored_segmentation" else names["label"]
    np.testing.assert_allclose(shown, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_an_interrupted_publication_resumes_and_other_folders_are_left_alone(publisher, tmp_path, monkeypatch):
    from cliptex.labels import publish

    config, out = publisher.config({"task": "depth", "expert": "bright"}), tmp_path / "set"
    given = (config, "depth", publisher.index, publisher.labels, out)
    monkeypatch.setattr(publish, "card", lambda record: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        publish_labels(*given)
    kept = (out / "data/00001.parquet").stat().st_ino
    monkeypatch.undo()
    with pytest.raises(CliptexError, match="has the beginning of another label set"):
        publish_labels(*given, images=True)
    publish_labels(*given)
    assert (out / "data/00001.parquet").stat().st_ino == kept
    assert sha256_file(out / "SHA256SUMS") == sha256_file(publisher.root / "set/SHA256SUMS")
    with pytest.raises(CliptexError, match="is not empty; choose another folder"):
        publish_labels(*given)


def test_labels_without_a_licence_or_of_random_weights_are_not_published(tmp_path):
    run = Run(tmp_path, pairs()[:2], 2)
    config = run.label(licence="unknown")
    with pytest.raises(CliptexError, match="licence of the labels is unknown; give it with --licence"):
        publish_labels(config, "depth", run.index, run.labels, tmp_path / "set")
    publish_labels(config, "depth", run.index, run.labels, tmp_path / "set", "cc-by-4.0")
    card = (tmp_path / "set/README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "cc-by-4.0"
    shutil.rmtree(run.labels)
    config = run.label(weights="random")
    with pytest.raises(CliptexError, match="random weights cannot be published"):
        publish_labels(config, "depth", run.index, run.labels, tmp_path / "other")


# ---- take


def check_taken(index, run, publisher):
    theirs, rows = publisher.rows(), run.rows()
    by_image = {digest(pair): pair.key for pair in pairs()}
    assert len(rows) == 11
    for pair in other_images():
        label, error = rows[pair.key]
        if pair.key == "c000":
            assert label is None and error == "not in the published set"
        elif by_image[digest(pair)] == FAILED:
            assert label is None and error == "published without a label: expert failed: ValueError: no box"
        else:
            assert label == theirs[by_image[digest(pair)]][0]
    assert index["failures"] == {"not in the published set": 1, "published without a label": 1}
    assert (index["from"]["found"], index["images"], index["labelled"]) == (10, 11, 9)
    assert (index["expert"], index["weights"], index["licence"]) == ("bright", "trained", "Apache-2.0")


def test_other_shards_of_the_same_images_get_the_same_labels(publisher, tmp_path, caplog):
    run = Run(tmp_path, other_images(), 3)
    check_taken(run.take(publisher.root / "set"), run, publisher)
    assert "images are in" in caplog.text
    config = run.config({"task": "depth", "from": str(publisher.root / "set")})
    findings = audit_taken(config, "depth", run.index, run.folder, run.labels / "depth", 20)
    assert len(findings) == 11 and all(finding.identical for finding in findings)
    # another run of the same stage keeps the files, and these can be published in turn
    before = {path: path.stat().st_ino for path in run.labels.rglob("*.parquet")}
    run.take(publisher.root / "set")
    assert before == {path: path.stat().st_ino for path in run.labels.rglob("*.parquet")}
    record = publish_labels(config, "depth", run.index, run.labels, tmp_path / "again")
    assert record["labelled"] == 9 and record["codec"] == find("tasks", "depth")().codec()
    first = LabelFile(run.labels / "depth/00000.parquet").metadata
    assert first["from"]["join"] == "digest" and first["extra_columns"] == []


def test_labels_come_over_http_by_key(publisher, published, tmp_path, server):
    for path in published.rglob("*.*"):
        server.files[f"/sets/depth/{path.relative_to(published)}"] = path.read_bytes()
    run = Run(tmp_path / "run", pairs()[3:][::-1], 3)
    index = run.take(f"{server.url}/sets/depth", join="key")
    assert (index["from"]["join"], index["from"]["share"]) == ("key", 1)
    theirs = publisher.rows()
    assert all(label == theirs[key][0] for key, (label, _) in run.rows().items())


def test_labels_come_from_the_hub_at_one_commit(publisher, published, tmp_path):
    """Over the hub of the rehearsal, which is busy and breaks off, in a process of its own, since huggingface_hub reads
    HF_ENDPOINT when it is imported."""
    run = Run(tmp_path / "run", other_images(), 3)
    config = run.config({"task": "depth", "from": "hf://me/depth@main"})
    code = (
        "import sys; from pathlib import Path; from cliptex.config import Config\n"
        "from cliptex.labels.published import _checked, fetch_labels\n"
        "fetch_labels(Config.load(sys.argv[1]), 'depth', Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, json.dumps(config.plain()), run.folder]
    cut = f"/cdn/{sha256_file(published / 'data/00001.parquet')}"
    with Hosts() as hub:
        hub.repositories["datasets/me/depth"] = published
        hub.busy, hub.cut = {"/datasets/me/depth/resolve/main/labels.json"}, {cut}
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        subprocess.run(command, env=environment, check=True)
        assert not hub.busy and not hub.cut
    fetched = read_json(run.folder / "set.json")
    assert fetched["revision"] == COMMIT
    assert all(Path(file).is_relative_to(tmp_path / "home") for file in fetched["files"])
    for batch in range(2):
        take_batch(config, "depth", batch, run.index, run.folder, run.labels / "depth")
    check_taken(index_labels(config, "depth", run.index, run.labels / "depth"), run, publisher)


def escape(record):
    record["files"][0]["file"] = "data/../../x.parquet"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (escape, r"names 'data/\.\./\.\./x\.parquet', which is not data/NAME\.parquet"),
        (lambda record: record["codec"].update(version=9), "its codec is linear-uint8-webp, version 9"),
        (lambda record: record.update(task="normals"), "labels of 'normals', not of 'depth'; correct `task`"),
        (lambda record: record.update(licence="unknown"), "states no licence"),
        (lambda record: record.pop("licence"), "licence is missing"),
        (lambda record: record.update(expert="a\n# b"), "expert is not one line of plain text"),
        (lambda record: record.update(weights="random"), "a network with random weights"),
        (lambda record: record["files"][1].update(sha256="0" * 64), "differs from its size or SHA-256"),
        (lambda record: record["files"][1].update(rows=9), "has 5 rows, 9 in labels.json"),
        (lambda record: record.update(join="url"), "has no url; use one of key, digest"),
    ],
)
def test_a_set_that_does_not_fit_is_one_line(published, tmp_path, change, message):
    edit_record(published, change)
    config = Config.load({"label_stores": {"depth": {"task": "depth", "from": str(published)}}})
    with pytest.raises(CliptexError, match=message) as error:
        fetch_labels(config, "depth", tmp_path / "folder")
    assert "\n" not in str(error.value) and "rm " not in str(error.value)
    assert "label_stores.depth" in str(error.value) or "labels.json" in str(error.value)
    assert not (tmp_path / "folder/set.json").exists()


def test_a_key_of_another_image_and_no_image_at_all_are_named(publisher, tmp_path):
    wide = [drawn_pair(pair.key, 100 + number, 40, 80) for number, pair in enumerate(pairs()[:3])]
    run = Run(tmp_path, wide, 3)
    with pytest.raises(CliptexError, match=r"'a000' is 80 x 40 pixels, but its label .* is 40 x 40; another image has"):
        run.take(publisher.root / "set", join="key")
    with pytest.raises(CliptexError, match=r"no image has a label .* set label_stores\.depth\.join"):
        run.take(publisher.root / "set")


def test_a_label_that_cannot_be_decoded_is_named_before_anything_learns_from_it(published, tmp_path):
    path = published / "data/00000.parquet"
    table = pq.read_table(path)
    damaged = [payload and payload[:9] for payload in table["payload"].to_pylist()]
    table = table.set_column(3, "payload", pa.array(damaged, pa.binary()))
    pq.write_table(table, path, compression="none", use_dictionary=False)
    sizes = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    edit_record(published, lambda record: record["files"][0].update(sizes))
    with pytest.raises(CliptexError, match=r"the label of 'a000' in .* cannot be decoded \(.*; use another set"):
        Run(tmp_path / "run", pairs(), 3).take(published)


def test_a_payload_that_changed_after_it_was_fetched_is_named(published, tmp_path):
    run = Run(tmp_path / "run", pairs(), 3)
    config = run.config({"task": "depth", "from": str(published)})
    fetch_labels(config, "depth", run.folder)
    path = published / "data/00000.parquet"
    data = bytearray(path.read_bytes())
    data[data.find(LabelFile(path).get(0)[0]) + 40] ^= 1
    path.write_bytes(data)
    with pytest.raises(CliptexError, match=r"00000\.parquet: changed since it was fetched; run: rm .*set\.json"):
        take_batch(config, "depth", 0, run.index, run.folder, run.labels / "depth")


def test_a_store_by_an_expert_is_recorded_as_before_there_were_published_sets():
    config = Config.load(
        {"label_stores": {"a": {"task": "depth", "expert": "dpt"}, "b": {"task": "depth", "from": "x"}}}
    )
    stores = json.loads(config.subset("label_stores"))["label_stores"]
    assert stores["a"] == {"task": "depth", "expert": "dpt", "of": None}
    assert stores["b"] == {"task": "depth", "expert": None, "of": None, "from": "x"}


# ---- licences


@pytest.mark.parametrize("licence", ["CC-BY-NC-4.0", "cc by-nc-sa 4.0", "research only", "Noncommercial", "apple-amlr"])
def test_licences_that_exclude_commercial_use_are_known(licence):
    assert is_non_commercial(licence)


@pytest.mark.parametrize("licence", ["Apache-2.0", "MIT", "cc-by-4.0", "ncsa", "unknown", "", None])
def test_other_licences_are_not_called_non_commercial(licence):
    assert not is_non_commercial(licence)


def test_the_report_marks_labels_that_exclude_commercial_use_and_the_share_that_a_set_has():
    taken = {"source": "hf://me/depth", "found": 9, "share": 0.9}
    index = {
        "task": "depth",
        "expert": "dpt",
        "licence": "CC-BY-NC-4.0",
        "codec": {"name": "uint8"},
        "images": 10,
        "labelled": 9,
        "coverage": 0.9,
        "bytes_per_image": 9.5,
        "statistics": {"scalars": {}},
    }
    stores = {"depth": index | {"from": taken}, "other": index | {"licence": "MIT"}}
    results = SimpleNamespace(stores=stores, experts={}, runs={})
    table = labels_table(results)
    assert table.notes[-1].startswith("Labels whose licence excludes commercial use: depth (CC-BY-NC-4.0);")
    row = table.groups[0].rows[0]
    assert row["expert"].note == "licence CC-BY-NC-4.0, taken from hf://me/depth, which has 90.0 % of the images"
    (note,) = _check_sources(results)
    assert note == "The published set hf://me/depth, from which depth is taken, has 9 of 10 images (90.0 %)."
    assert len(labels_table(SimpleNamespace(stores={"other": stores["other"]}, experts={})).notes) == 1


def test_licences_unknown_to_the_hub_are_others_by_name():
    assert hub_terms("Apache 2.0") == {"license": "apache-2.0"}
    assert hub_terms("My Lab's terms")["license_name"] == "my-lab-s-terms"


def test_a_class_list_of_a_set_is_not_trusted_and_a_grid_of_features_has_no_image_shape(publisher):
    record = read_json(publisher.root / "set/labels.json") | {"task": "segmentation"}
    codec = find("tasks", "segmentation").from_codec({"class_names": ["wall", "floor"]}).codec()
    assert _checked(record | {"codec": codec}, "segmentation", "set").class_names == ["wall", "floor"]
    with pytest.raises(CliptexError, match=r"set: labels.json: .*class"):
        _checked(record | {"codec": codec | {"class_names": ["wall"]}}, "segmentation", "set")
    features = find("tasks", "features")()
    label = np.zeros((14, 14, features.channels), np.float32)
    row = {"height": 14, "width": 14, "payload": features.encode(label)}
    published = SimpleNamespace(task=features, join="digest", about={"source": "set"})
    _check_label(Pair("a", b"", ""), (56, 40), row, published, "00000.tar")
    with pytest.raises(CliptexError, match=r"'a' is 13 x 9 pixels, but its label in set is 14 x 14"):
        _check_label(Pair("a", b"", ""), (13, 9), row, published, "00000.tar")
