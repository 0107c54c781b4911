"""Segmentation with classes of the expert: from its labels to heads, predictions, export and report."""

import io
import json
import tarfile
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import WeightlessExpert
from tiny_teachers import NAMES, save_teacher

import cliptex
from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json, write_json
from cliptex.core.plugins import find
from cliptex.data.shard_index import read_index
from cliptex.experts.training import load_expert, train_expert
from cliptex.labels.audit import audit_labels
from cliptex.labels.export import export_labels
from cliptex.labels.index import index_labels
from cliptex.labels.inspect import contact_sheet, statistics
from cliptex.labels.label import label_batch
from cliptex.labels.store import LabelFile, open_store, task_of_store
from cliptex.models.heads import load_heads
from cliptex.models.predict import draw_predictions
from cliptex.report.gallery import _label_image
from cliptex.tasks.contact_sheet import legend
from cliptex.tasks.segmentation import Segmentation, palette
from cliptex.training.run import train


def names(count):
    return [f"class {number}" for number in range(count)]


class Many(WeightlessExpert):
    """`network`: classes, and optionally what it gives wrongly. Class 0 is no background, as in ADE20K."""

    task = "segmentation"

    def task_parameters(self):
        network = self.settings["network"]
        colours = [[number % 256, number // 256, 9] for number in range(network["classes"])]
        return {"class_names": network.get("names", names(network["classes"])), "colours": colours}

    def predict(self, images, keys):
        network = self.settings["network"]
        last, dtype = network["classes"] - 1, network.get("dtype", "uint8" if network["classes"] <= 255 else "uint16")
        labels = []
        for image in images:
            label = (image.mean(axis=-1) / 255 * last).astype(dtype)
            label[:4, :6] = last + network.get("beyond", 0)
            label[-3:, :] = np.iinfo(dtype).max
            labels.append(label)
        return labels


def configured(tiny, **network):
    plain = tiny.plain()
    plain["experts"]["many"] = {"plugin": "test_own_segmentation:Many", "network": network}
    plain["experts"]["worse"] = {"plugin": "degraded", "network": {"task": "segmentation", "strength": 0.5}}
    plain["label_stores"]["many"] = {"task": "segmentation", "expert": "many"}
    plain["label_stores"]["worse"] = {"task": "segmentation", "expert": "worse", "of": "many"}
    plain["models"] = {"clip": {"steps": 1}, "both": {"steps": 2, "tasks": {"many": 1.0, "segmentation": 1.0}}}
    plain["train"] |= {"held_out": 2}
    return Config.load(plain)


def labelled(config, store):
    expert = config.label_stores[store].expert
    train_expert(config, expert, paths.EXPERT_RENDERS, paths.expert(expert), 0)
    label_batch(config, store, 0, paths.SHARD_INDEX, paths.expert(expert), paths.labels(store))
    return index_labels(config, store, paths.SHARD_INDEX, paths.labels(store))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 1000), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99), st.sampled_from(["", "scored_"]))
def test_any_number_of_classes_survives_the_codec(count, height, width, seed, kind):
    task = find("tasks", f"{kind}segmentation").from_codec({"class_names": names(count)})
    codec = task.codec()
    assert type(task).from_codec(json.loads(json.dumps(codec))).codec() == codec
    assert (task.channels, codec["dtype"]) == (count, "uint8" if count <= 255 else "uint16")
    rng = np.random.default_rng(seed)
    label = rng.integers(0, count, (height, width)).astype(codec["dtype"])
    label[0, 0] = count - 1
    label[rng.random(label.shape) < 0.2] = codec["invalid"]
    label[-1, -1] = 0
    if kind:
        label = np.stack([label, rng.integers(0, 256, label.shape).astype(label.dtype)], axis=-1)
    again = task.decode(task.encode(label), height, width)
    np.testing.assert_array_equal(again, label, strict=True)
    assert task.picture(again).shape == (height, width, 3)
    assert list(task.scalars(label)) == ["coverage", "confidence"][: 2 if kind else 1]


def test_without_parameters_the_task_is_that_of_earlier_versions():
    default = Segmentation.from_codec({})
    assert default.codec() == Segmentation.from_codec(default.codec()).codec() == Segmentation().codec()
    assert list(default.codec())[-1] == "class_names" and default.codec()["name"] == "uint8-zstd"
    many = palette(1000)
    np.testing.assert_array_equal(many[:81], palette()[:81])
    assert len(np.unique(many[:1000], axis=0)) == 1000 and many.shape == (65536, 3)


@pytest.mark.parametrize(
    ("codec", "problem"),
    [
        ({"class_names": ["one"]}, "list of 2 to 1000 names, got 1"),
        ({"class_names": names(1001)}, "got 1001"),
        ({"class_names": "wall"}, "got str"),
        ({"class_names": {"0": "wall"}}, "got dict"),
        ({"class_names": ["wall", 7]}, "'7' .class 1. is not a printable name"),
        ({"class_names": ["wall", " "]}, "not a printable name"),
        ({"class_names": ["wall", "a\nb"]}, "not a printable name"),
        ({"class_names": ["wall", "x" * 201]}, "at most 200 characters"),
        ({"class_names": ["wall", "sky", "wall"]}, "'wall' is the name of class 0 and of class 2"),
        ({"colours": [[0, 0, 0]]}, "there are no class_names"),
        ({"class_names": names(2), "colours": [[0, 0, 0]]}, "one colour for each of the 2 classes"),
        ({"class_names": names(2), "colours": [[0, 0, 0], [0, 0, 256]]}, r"\[0, 0, 256\] \(class 1\) is not"),
        ({"class_names": names(2), "colours": [[0, 0, 0], [True, 0, 0]]}, "is not .red, green, blue"),
    ],
)
def test_a_class_list_that_cannot_be_used_is_named_in_one_line(codec, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        Segmentation.from_codec(codec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [150, 300])
def test_classes_of_the_expert_reach_heads_predictions_and_export(tiny, tmp_path, count):
    config = configured(tiny, classes=count)
    index = labelled(config, "many")
    assert index["codec"]["class_names"] == names(count) and len(index["codec"]["colours"]) == count
    assert 0 < sum(each["share"] for each in index["statistics"]["classes"].values()) <= 1 + 1e-9
    assert f"class {count - 1}" in index["statistics"]["classes"]
    task = task_of_store(config, "many", paths.labels("many") / "index.json")
    expert = load_expert("many", config.experts["many"], paths.expert("many"))
    assert all(found.agrees for found in audit_labels(config, "many", paths.SHARD_INDEX, expert, paths.labels("many")))

    # a store that is made from this one has its classes
    assert labelled(config, "worse")["codec"] == index["codec"]

    # trained with the default task next to it; the heads file knows the classes
    train(config, "both", 0)
    lines = [json.loads(line) for line in (paths.model("both", 0) / "metrics.jsonl").read_text().splitlines()]
    assert 0.5 < lines[-1]["valid/many"] < 1 and lines[-1]["many"] > np.log(count) / 2
    assert {"held_out/many/mIoU", "held_out/segmentation/mIoU"} <= set(lines[-1])
    heads, tasks = load_heads(paths.model("both", 0) / "heads.safetensors")
    assert (tasks["many"].codec(), tasks["segmentation"].channels) == (index["codec"], 81)
    assert heads.arguments["channels"]["many"] == count

    # used as documented
    model = cliptex.load(paths.model("both", 0))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)).save(tmp_path / "a.png")
    label = model.predict(tmp_path / "a.png")["many"]
    assert (label.shape, label.dtype) == ((40, 56), task.dtype) and label.max() < count
    assert set(draw_predictions(model, [tmp_path / "a.png"], tmp_path / "sheet.png")["many"]) <= set(names(count))

    # exported and shown
    record = export_labels(config, ["many"], paths.SHARD_INDEX, paths.LABELS, tmp_path / "out", images=False)
    about = record["stores"]["many"]
    assert about["codec"]["class_names"] == names(count)
    assert about["format"].startswith("8-bit" if count <= 255 else "16-bit") and str(task.ignore) in about["format"]
    entry = read_index(paths.SHARD_INDEX)["shards"][0]
    file = open_store(paths.labels("many") / "index.json", entry, task)
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        member = tar.extractfile(f"{entry['keys'][0]}.many.png").read()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(member))), file.label(0))
    contact_sheet(config, ["many"], paths.SHARD_INDEX, paths.LABELS, tmp_path / "inspect.png", 2)
    assert f"codec {task.dtype}-zstd" in statistics(config, "many", paths.LABELS)
    page, entries = _label_image(file, task, entry["keys"][0], "many")
    assert f"class {count - 1}" in page.alt and "no label" in [entry.text for entry in entries]
    colour = task.picture(np.array([[count - 1]], task.dtype))[0, 0].tolist()
    assert colour == index["codec"]["colours"][count - 1]
    assert legend(task, Counter({count - 1: 5}))[0][1] == names(count)[-1]


@pytest.mark.parametrize(
    ("network", "problem"),
    [
        ({"classes": 150, "beyond": 1}, r"class 150 is not one of 0\.\.149"),
        ({"classes": 300, "beyond": 1}, r"class 300 is not one of 0\.\.299"),
        ({"classes": 150, "dtype": "int64", "beyond": 0}, "segmentation is uint8 .H, W., got int64"),
        ({"classes": 300, "dtype": "uint8", "beyond": -100}, "segmentation is uint16 .H, W., got uint8"),
        ({"classes": 2, "names": ["a", "a"]}, "experts.many: class_names: 'a' is the name of class 0 and of class 1"),
    ],
)
def test_labels_beyond_the_class_list_or_of_another_dtype_are_refused(tiny, network, problem):
    with pytest.raises(CliptexError, match=problem) as caught:
        labelled(configured(tiny, **network), "many")
    assert "\n" not in str(caught.value)


def test_a_damaged_class_list_of_an_index_is_named_with_the_file(tiny):
    config = configured(tiny, classes=7)
    labelled(config, "many")
    index = paths.labels("many") / "index.json"
    for codec, problem in (({"class_names": [1, 2]}, "not a printable name"), ([], "codec")):
        write_json(index, read_json(index) | {"codec": {"name": "uint8-zstd"} | codec if codec else codec})
        with pytest.raises(CliptexError, match=f"{index}: .*{problem}"):
            task_of_store(config, "many", index)


def test_a_store_of_other_classes_is_not_read_with_the_default_ones(tiny):
    labelled(configured(tiny, classes=7), "many")
    with pytest.raises(CliptexError, match="holds segmentation as 'uint8-zstd'"):
        LabelFile(paths.labels("many") / "00000.parquet", find("tasks", "segmentation")())


def test_the_loss_ignores_what_is_ignored_and_has_a_gradient_for_wide_labels():
    task = Segmentation.from_codec({"class_names": names(300)})
    target = torch.from_numpy(np.stack([np.array([[299, 65535], [0, 256]], np.uint16), task.missing(2)]))
    prediction = torch.zeros(2, 300, 2, 2, requires_grad=True)
    loss = task.loss(prediction, target)
    assert loss.item() == pytest.approx(np.log(300), rel=1e-5)
    loss.backward()
    assert prediction.grad[0, :, 0, 1].abs().sum() == 0 and prediction.grad[1].abs().sum() == 0


def test_a_saved_network_labels_with_its_own_classes(tiny, tmp_path):
    save_teacher("segformer", tmp_path / "segformer")
    plain = tiny.plain()
    plain["experts"]["own"] = {"plugin": "transformers", "weights": "local", "path": str(tmp_path / "segformer")}
    plain["label_stores"]["own"] = {"task": "segmentation", "expert": "own"}
    config = Config.load(plain)
    index = labelled(config, "own")
    assert index["codec"]["class_names"] == list(NAMES.values())
    assert set(index["statistics"]["classes"]) <= set(NAMES.values()) and index["coverage"] == 1
    record = read_json(paths.expert("own") / "expert.json")
    assert (record["task"], record["source"]) == ("segmentation", "local")
    assert task_of_store(config, "own", paths.labels("own") / "index.json").channels == len(NAMES)
