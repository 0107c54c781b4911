"""The expert that does any of the three tasks, and knows as many classes as it is told."""

import numpy as np
import pytest
import torch
from conftest import ENCODER

from cliptex.benchmarks.coco_names import coco_categories
from cliptex.core.errors import CliptexError
from cliptex.core.plugins import find
from cliptex.experts.pyramid import PyramidExpert

pytestmark = pytest.mark.xdist_group("experts")
CLASSES = [name for _, name, _ in coco_categories()]


def expert(task, **network):
    small = {"encoder": "cliptex_resnet", "encoder_options": ENCODER, "channels": 16, "input_size_px": 32}
    training = {"steps": 60, "batch_size": 8, "learning_rate": 0.01, "colour": 0.0}
    return PyramidExpert({"network": {"task": task, **small, **network}, "training": training})


def coloured(count, seed):
    """Renders of one square before a plain wall: red is a person (1), blue a car (3)."""
    rng = np.random.default_rng(seed)
    out = {
        "image": np.full((count, 32, 32, 3), 128, np.uint8),
        "instance": np.zeros((count, 32, 32), np.uint8),
        "instance_class": np.zeros((count, 2), np.uint8),
        "depth": np.full((count, 32, 32), 8, np.float32),
        "normals": np.broadcast_to(np.array([0, 0, 1], np.float16), (count, 32, 32, 3)).copy(),
    }
    for index in range(count):
        top, left = rng.integers(0, 16, 2)
        place = index, slice(top, top + 16), slice(left, left + 16)
        red = index % 2
        out["image"][place] = (220, 20, 20) if red else (20, 20, 220)
        out["instance"][place] = 1
        out["instance_class"][index, 0] = 1 if red else 3
        out["depth"][place] = 2
        out["normals"][place] = (0, 0.6, 0.8)  # a flip would turn x
    return out


@pytest.fixture(scope="module")
def renders(tmp_path_factory):
    import h5py

    path = tmp_path_factory.mktemp("renders") / "train.h5"
    with h5py.File(path, "w") as file:
        for name, array in coloured(32, 0).items():
            file[name] = array
    return path


@pytest.mark.parametrize("task", ["depth", "normals"])
def test_it_learns_shapes(task, renders):
    one = expert(task)
    one.check_methods("trained", has_backbone=True)  # as the stage does
    one.fit(renders, 0)
    data = coloured(6, 1)
    labels = one.predict(list(data["image"]), [""] * 6)
    find("tasks", task)().encode(labels[0])
    inside = data["instance"] == 1
    if task == "depth":
        assert np.mean(np.stack(labels)[inside]) > np.mean(np.stack(labels)[~inside])  # nearer
    else:
        y = np.stack(labels)[..., 1]
        assert np.mean(y[inside]) > np.mean(y[~inside]) + 0.2


def test_classes_that_it_is_not_taught_are_background_to_it(renders):
    found = {}
    for classes in (None, ["person"]):
        one = expert("segmentation", classes=classes)
        one.fit(renders, 0)
        found[classes and classes[0]] = np.stack(one.predict(list(coloured(8, 1)["image"]), [""] * 8))
    assert {1, 3} <= set(np.unique(found[None]).tolist())
    assert set(np.unique(found["person"]).tolist()) == {0, 1}
    truth = coloured(8, 1)
    cars = (truth["instance"] == 1) & (truth["instance_class"][:, 0] == 3)[:, None, None]
    assert np.mean(found["person"][cars] == 0) > 0.8
    assert np.mean(found[None][cars] == 3) > 0.6


def test_it_starts_from_a_backbone_and_its_weights_survive_the_file(renders, tmp_path):
    from safetensors.torch import save_file

    one = expert("normals")
    one.load(None)
    state = one.state()
    save_file({name: torch.ones_like(value) for name, value in state.items()}, tmp_path / "backbone.safetensors")
    one.settings |= {"backbone": str(tmp_path / "backbone.safetensors"), "training": {"steps": 1, "batch_size": 2}}
    one.fit(renders, 0)
    moved = one.state()
    assert all(torch.allclose(moved[name], torch.ones(()), atol=0.1) for name in moved if name.startswith("fpn."))
    save_file(moved, tmp_path / "weights.safetensors")
    again = expert("normals")
    again.load(tmp_path / "weights.safetensors")
    image = coloured(1, 2)["image"][0]
    assert np.array_equal(again.predict([image], ["a"])[0], one.predict([image], ["a"])[0])


def test_an_unknown_class_is_named():
    with pytest.raises(CliptexError, match=r"network.classes: 'cars' is not a COCO class"):
        expert("segmentation", classes=["cars"])
