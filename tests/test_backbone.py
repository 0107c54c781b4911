import json

import pytest
import timm
import torch
from conftest import ENCODER, SMALL
from safetensors.torch import load_file, save_file
from test_experts import ball_scenes

from cliptex.config import Config
from cliptex.core.errors import CliptexError
from cliptex.experts import dpt, mask_rcnn, nll_angmf
from cliptex.experts.backbone import train_backbone

pytestmark = pytest.mark.xdist_group("backbone")

SMALL_RESNET = {"encoder": "cliptex_resnet", "encoder_options": {"channels": [16, 16, 16, 16], "stem_width": 8}}


@pytest.fixture(scope="module")
def renders(tmp_path_factory):
    import h5py

    path = tmp_path_factory.mktemp("renders") / "train.h5"
    with h5py.File(path, "w") as file:
        for name, array in ball_scenes(12, 48, 64, 1).items():
            file[name] = array
    return path


def trained(renders, out, seed=0, **training):
    training = {"steps": 3, "batch_size": 4} | training
    settings = SMALL_RESNET | {"channels": 16, "input_size_px": 64, "training": training}
    train_backbone(Config.load({"backbone": settings}), renders, out, seed)
    return out


@pytest.fixture(scope="module")
def backbone(renders, tmp_path_factory):
    return trained(renders, tmp_path_factory.mktemp("backbone") / "backbone.safetensors")


def test_the_same_seed_gives_the_same_backbone_and_it_is_recorded(renders, backbone, tmp_path):
    again = trained(renders, tmp_path / "backbone.safetensors")
    other = trained(renders, tmp_path / "other.safetensors", seed=1)
    assert again.read_bytes() == backbone.read_bytes() != other.read_bytes()
    record = json.loads(again.with_suffix(".json").read_text())
    assert record["training"]["images_seen"] == 12
    assert record["provenance"]


def test_pre_training_lowers_the_loss(renders, tmp_path):
    path = trained(renders, tmp_path / "backbone.safetensors", steps=40, colour=0.0, crop_scale=(1.0, 1.0), flip=0.0)
    losses = [loss for _, loss in json.loads(path.with_suffix(".json").read_text())["training"]["losses"]]
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])


def expert_of(name):
    network = {key: dict(value) if isinstance(value, dict) else value for key, value in SMALL[name].items()}
    if name == "mask_rcnn":
        network["small"] = network["small"] | SMALL_RESNET
        return mask_rcnn.PLUGIN({"network": network, "training": {"steps": 1, "learning_rate": 1e-9}})
    if name == "nll_angmf":
        return nll_angmf.PLUGIN({"network": network | SMALL_RESNET, "training": {"steps": 1, "learning_rate": 1e-9}})
    raise KeyError(name)


@pytest.mark.parametrize("name", ["mask_rcnn", "nll_angmf"])
def test_an_expert_starts_from_the_backbone(name, renders, backbone):
    expert = expert_of(name)
    expert.settings["backbone"] = str(backbone)
    expert.fit(renders, seed=0)  # a step too small to see
    given = load_file(backbone)
    for part, module in expert.shared().items():
        for tensor, value in module.state_dict().items():
            if tensor.endswith(("weight", "bias")):
                torch.testing.assert_close(value, given[f"{part}.{tensor}"], rtol=0, atol=1e-6)


def test_dpt_takes_the_stages_that_it_has(renders, tmp_path):
    body = timm.create_model("cliptex_resnet", features_only=True, out_indices=(1, 2, 3, 4))
    given = {f"body.{name}": tensor.contiguous() for name, tensor in body.state_dict().items()}
    save_file(given, tmp_path / "backbone.safetensors")
    config = SMALL["dpt"]["config"] | {
        "backbone_featmap_shape": [1, 96, 2, 2],
        "neck_hidden_sizes": [32, 64, 16, 16],
        "backbone_config": {"model_type": "timm_backbone", "backbone": "cliptex_resnet", "out_indices": [1, 2, 3]},
    }
    expert = dpt.PLUGIN({"network": {"config": config}, "training": {"steps": 1, "learning_rate": 1e-9}})
    expert.settings["backbone"] = str(tmp_path / "backbone.safetensors")
    expert.fit(renders, seed=0)
    tensors = expert.shared()["body"].state_dict()
    torch.testing.assert_close(tensors["layer3.0.conv1.weight"], given["body.layer3.0.conv1.weight"], rtol=0, atol=1e-6)
    assert not any(name.startswith("layer4") for name in tensors)


def test_a_backbone_of_another_size_is_refused_by_name(renders, backbone):
    expert = nll_angmf.PLUGIN({"network": SMALL["nll_angmf"] | {"encoder_options": ENCODER | {"stem_width": 16}}})
    expert.settings |= {"backbone": str(backbone), "training": {"steps": 1}}
    with pytest.raises(CliptexError, match=r"backbone\.safetensors: does not match .*body\."):
        expert.fit(renders, seed=0)
