"""Weights: fetched whole and once, checked, never executed, and recorded; a local server stands in for the web."""

import json
import os
import resource
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import torch
from conftest import SMALL
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.torch import save_file
from tiny import DPT as LARGE
from tiny import hybrid_dpt
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
)
from web_server import PlannedServer

from cliptex.config import Config
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json
from cliptex.data import web as downloader
from cliptex.experts import dpt, mask_rcnn, nll_angmf, weights
from cliptex.experts.network import load_weights
from cliptex.experts.tensors import read_tensors
from cliptex.experts.training import load_expert, train_expert

SHAPES, NORMALS = SMALL["mask_rcnn"], SMALL["nll_angmf"]
HYBRID = hybrid_dpt([16, 32, 64], "bottleneck", neck_hidden_sizes=[16, 32, 16, 16])
# as published with both: squashed, bilinear, halves
PREPROCESSING = {
    "image_processor_type": "DPTImageProcessor",
    "do_resize": True,
    "size": {"height": 64, "width": 64},
    "keep_aspect_ratio": False,
    "ensure_multiple_of": 1,
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


# config.json and preprocessor_config.json of depth-anything/Depth-Anything-V2-Small-hf
DEPTH_ANYTHING = {
    "architectures": ["DepthAnythingForDepthEstimation"],
    "backbone": None,
    "backbone_config": {
        "architectures": ["Dinov2Model"],
        "hidden_size": 384,
        "image_size": 518,
        "model_type": "dinov2",
        "num_attention_heads": 6,
        "out_features": ["stage3", "stage6", "stage9", "stage12"],
        "out_indices": [3, 6, 9, 12],
        "patch_size": 14,
        "reshape_hidden_states": False,
        "torch_dtype": "float32",
    },
    "fusion_hidden_size": 64,
    "head_hidden_size": 32,
    "head_in_index": -1,
    "initializer_range": 0.02,
    "model_type": "depth_anything",
    "neck_hidden_sizes": [48, 96, 192, 384],
    "patch_size": 14,
    "reassemble_factors": [4, 2, 1, 0.5],
    "reassemble_hidden_size": 384,
    "torch_dtype": "float32",
    "transformers_version": None,
    "use_pretrained_backbone": False,
}
KEEPS_ASPECT = PREPROCESSING | {
    "_valid_processor_keys": ["images", "do_resize", "size", "keep_aspect_ratio", "ensure_multiple_of"],
    "size": {"height": 518, "width": 518},
    "keep_aspect_ratio": True,
    "ensure_multiple_of": 14,
    "resample": 3,
    "do_pad": False,
    "size_divisor": None,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


class Planted:
    """What a hostile weight file would hold: unpickling it makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def save_dpt(folder: Path, config: dict, form: str = "safetensors", seed: int = 0) -> DPTForDepthEstimation:
    """A folder as on the hub; the unused weights of the first fusion are left out, as in the published files."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = DPTForDepthEstimation(DPTConfig(**config)).eval()
        for part in module.modules():  # signals neither vanish nor explode, so that outputs vary over the image
            if isinstance(part, torch.nn.Conv2d | torch.nn.ConvTranspose2d | torch.nn.Linear):
                torch.nn.init.kaiming_normal_(part.weight)
        torch.nn.init.constant_(module.head.head[-2].bias, 3.0)
    folder.mkdir(parents=True, exist_ok=True)
    module.config.save_pretrained(folder)
    state = {name: tensor for name, tensor in module.state_dict().items() if not name.startswith(dpt.UNUSED)}
    if form == "safetensors":
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    elif form == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        names = sorted(state)
        parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
        for file, kept in parts.items():
            save_file({name: state[name] for name in kept}, folder / file, metadata={"format": "pt"})
        index = {"metadata": {}, "weight_map": {name: file for file, kept in parts.items() for name in kept}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    return module


def save_depth_anything(
    folder: Path, change: dict | None = None, processor: dict | None = None
) -> DepthAnythingForDepthEstimation:
    """A folder as on the hub, with random weights."""
    given = DEPTH_ANYTHING | (change or {})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = DepthAnythingForDepthEstimation(DepthAnythingConfig(**given)).eval()
        for part in module.neck.modules():  # as in `save_dpt`
            if isinstance(part, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                torch.nn.init.kaiming_normal_(part.weight)
        torch.nn.init.constant_(module.head.conv3.bias, 3.0)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(module.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(given, indent=2))
    (folder / "preprocessor_config.json").write_text(json.dumps(KEEPS_ASPECT | (processor or {}), indent=2))
    return module


def config(**experts) -> Config:
    return Config.load({"experts": experts})


def pictures(count: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [
        np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((8, 10 + index, 1))).astype(np.uint8) for index in range(count)
    ]


# a server


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloader, "PAUSES_S", (0, 0))
    with PlannedServer() as one:
        yield one


BODY = np.random.default_rng(0).bytes(300_000)
DIGEST = sha256(BODY).hexdigest()


@pytest.mark.parametrize(
    ("plan", "url", "message"),
    [
        ([404], "/net.pth", r"experts\.a\.url: .* responds with 404"),
        ([], "/gone.pth", "responds with 404"),
        ([503, 503, 503], "/net.pth", "cannot be downloaded"),
        (["page"], "/net.pth", "is a web page"),
        ([], "/net-00000000.pth", f"its SHA-256 is {DIGEST}, not 00000000"),
    ],
)
def test_what_cannot_be_had_is_an_error_and_leaves_no_file(plan, url, message, server, tmp_path):
    server.files |= {"/net.pth": BODY, "/net-00000000.pth": BODY}
    server.plan = plan
    settings = config(a={"weights": "url", "url": server.url + url}).experts["a"]
    with pytest.raises(CliptexError, match=message):
        weights.resolve("a", settings, tmp_path)
    assert not list(tmp_path.glob("[!.]*"))


def test_only_web_addresses_are_fetched(tmp_path):
    settings = config(a={"weights": "url", "url": "file:///etc/passwd"}).experts["a"]
    with pytest.raises(CliptexError, match="not an http or https URL"):
        weights.resolve("a", settings, tmp_path)


# from each source to labels


def test_mask_rcnn_by_url_is_recorded_and_labels(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expert = mask_rcnn.PLUGIN({"network": SHAPES})
    expert.randomise(3)
    torch.save(expert.state(), tmp_path / "made.pth")
    data = (tmp_path / "made.pth").read_bytes()
    digest = sha256(data).hexdigest()
    server.files[f"/models/shapes-{digest[:8]}.pth"] = data
    given = {"weights": "url", "url": f"{server.url}/models/shapes-{digest[:8]}.pth", "licence": "BSD-3-Clause"}
    settings = config(mask_rcnn=given | {"network": SHAPES})
    train_expert(settings, "mask_rcnn", tmp_path / "no renders", tmp_path / "out", seed=0)
    record = read_json(tmp_path / "out" / "expert.json")
    assert (record["source"], record["licence"], record["weights_sha256"]) == ("url", "BSD-3-Clause", digest)
    assert record["origin"] == {"url": given["url"]}
    assert Path(record["weights"]).parent == tmp_path / "resources" / "weights"
    loaded = load_expert("mask_rcnn", settings.experts["mask_rcnn"], tmp_path / "out")
    for a, b in zip(loaded.predict(pictures(), list("abc")), expert.predict(pictures(), list("abc")), strict=True):
        assert_array_equal(a, b)


@pytest.mark.parametrize("form", ["safetensors", "bin", "parts"])
@pytest.mark.parametrize("kind", [LARGE, HYBRID], ids=["large", "hybrid"])
def test_a_dpt_folder_labels_as_transformers_does(kind, form, tmp_path):
    module = save_dpt(tmp_path / "dpt", kind, form)
    given = {"weights": "local", "path": str(tmp_path / "dpt"), "licence": "MIT", "precision": "fp32"}
    settings = config(dpt=given)
    train_expert(settings, "dpt", tmp_path / "no renders", tmp_path / "out", seed=0)
    record = read_json(tmp_path / "out" / "expert.json")
    assert len(record["files"]) == {"safetensors": 3, "bin": 3, "parts": 5}[form]
    assert record["num_parameters"] == sum(parameter.numel() for parameter in module.parameters())
    expert = load_expert("dpt", settings.experts["dpt"], tmp_path / "out")
    assert expert.weights_sha256 == record["weights_sha256"]
    processor = DPTImageProcessor.from_pretrained(tmp_path / "dpt")
    for image, label in zip(pictures(), expert.predict(pictures(), list("abc")), strict=True):
        with torch.inference_mode():
            outputs = module(**processor(images=image, return_tensors="pt"))
        (expected,) = processor.post_process_depth_estimation(outputs, target_sizes=[image.shape[:2]])
        assert label.shape == image.shape[:2]
        assert label.std() > 1e-3
        # of one pass for all three, in which sums are made in another order
        assert_allclose(label, expected["predicted_depth"].clamp(min=0), atol=5e-4)


def test_another_preprocessing_gives_other_labels(tmp_path):
    save_dpt(tmp_path / "dpt", LARGE)
    one, other = dpt.PLUGIN({"precision": "fp32"}), dpt.PLUGIN({"precision": "fp32"})
    one.load(tmp_path / "dpt")
    changed = PREPROCESSING | {"image_mean": [0.4, 0.5, 0.6], "size": {"height": 96, "width": 96}}
    (tmp_path / "dpt" / "preprocessor_config.json").write_text(json.dumps(changed))
    other.load(tmp_path / "dpt")
    (a,), (b,) = one.predict(pictures(1), ["a"]), other.predict(pictures(1), ["a"])
    assert np.abs(a - b).max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (LARGE, {"keep_aspect_ratio": True}, "takes square images"),
        (LARGE, {"size": {"height": 64, "width": 96}}, "takes square images"),
        (HYBRID, {"size": {"height": 96, "width": 96}}, "set `size` to the image_size of a hybrid DPT, 64"),
        (LARGE, {"size": None}, "set height and width of `size` to 1 to 4096"),
        (LARGE, {"size": {"height": 10**6, "width": 10**6}}, "set height and width of `size` to 1 to 4096"),
        (LARGE, {"image_mean": [0.5, 0.5]}, "preprocessor_config.json: cannot preprocess an image"),
        (LARGE, {"image_mean": "grey"}, "preprocessor_config.json: cannot preprocess an image"),
        (LARGE, {"rescale_factor": None}, "preprocessor_config.json: cannot preprocess an image"),
        (LARGE, {"image_std": [0, 0, 0]}, "preprocessor_config.json: cannot preprocess an image"),
        (LARGE, {"resample": 99}, "preprocessor_config.json: cannot preprocess an image"),
    ],
)
def test_a_preprocessing_that_transformers_cannot_do_is_refused(kind, change, message, tmp_path):
    save_dpt(tmp_path / "dpt", kind)
    (tmp_path / "dpt" / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING | change))
    with pytest.raises(CliptexError, match=message):
        dpt.PLUGIN({}).load(tmp_path / "dpt")


def test_depth_anything_labels_as_transformers_does(tmp_path):
    """With the published config.json and preprocessing, on a landscape and a portrait."""
    module = save_depth_anything(tmp_path / "hub")
    given = {"plugin": "dpt", "weights": "local", "path": str(tmp_path / "hub"), "precision": "fp32"}
    settings = config(small=given)
    train_expert(settings, "small", tmp_path / "no renders", tmp_path / "out", seed=0)
    assert read_json(tmp_path / "out" / "expert.json")["num_parameters"] == 24_785_089
    expert = load_expert("small", settings.experts["small"], tmp_path / "out")
    processor = DPTImageProcessor.from_pretrained(tmp_path / "hub")
    images = [pictures(1)[0], np.ascontiguousarray(pictures(1)[0].transpose(1, 0, 2))]
    assert [expert.input_size(*image.shape[:2]) for image in images] == [(308, 518), (518, 308)]
    for image, label in zip(images, expert.predict(images, ["a", "b"]), strict=True):
        with torch.inference_mode():
            outputs = module(**processor(images=image, return_tensors="pt"))
        (expected,) = processor.post_process_depth_estimation(outputs, target_sizes=[image.shape[:2]])
        assert label.shape == image.shape[:2]
        assert label.std() > 1e-3
        assert_allclose(label, expected["predicted_depth"].clamp(min=0), atol=5e-4)


@pytest.mark.parametrize("height", [37, 200, 518, 700])
def test_the_input_of_depth_anything_has_the_size_of_transformers(height):
    expert = dpt.PLUGIN({"repo": "depth-anything/Depth-Anything-V2-Small-hf"})
    for width in (53, 300, 518, 683, 1333):
        processed = expert.processor(images=torch.zeros(3, height, width), return_tensors="pt")["pixel_values"]
        assert expert.input_size(height, width) == tuple(processed.shape[-2:])


def test_depth_anything_labels_an_image_of_a_few_rows(tmp_path):
    """transformers resizes it to no rows at all."""
    small = {"size": {"height": 56, "width": 56}}
    save_depth_anything(tmp_path, processor=small)
    expert = dpt.PLUGIN({"precision": "fp32"})
    expert.load(tmp_path)
    image = np.kron(np.arange(5, 245, 12)[None, :, None], np.ones((2, 20, 3))).astype(np.uint8)
    assert expert.input_size(*image.shape[:2]) == (14, 56)
    (label,) = expert.predict([image], ["a"])
    assert label.shape == (2, 400)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"depth_estimation_type": "metric", "max_depth": 20}, "predicts metres"),
        ("config.json", {"backbone_config": {"model_type": "timm_backbone", "backbone": "x"}}, "model_type dinov2"),
        ("config.json", {"backbone": "facebook/dinov2-small"}, "model_type dinov2"),
        (
            "config.json",
            {"model_type": "zoedepth"},
            "use a network of dpt or depth_anything",
        ),
        ("config.json", {"model_type": {}}, "use a network of dpt or depth_anything"),
        ("config.json", {"patch_size": 0}, "patch"),
        ("preprocessor_config.json", {"ensure_multiple_of": 1}, "`ensure_multiple_of` to .* 14"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 518}}, "height and width of `size`"),
    ],
)
def test_another_depth_anything_is_refused(file, change, message, tmp_path):
    save_depth_anything(tmp_path)
    (tmp_path / file).write_text(json.dumps(read_json(tmp_path / file) | change))
    with pytest.raises(CliptexError, match=f"{file}: .*{message}"):
        dpt.PLUGIN({}).load(tmp_path)


@pytest.mark.parametrize("what", ["a weight", "config.json", "preprocessor_config.json", "model.safetensors", "shape"])
def test_a_dpt_folder_that_is_not_whole_is_refused_by_name(what, tmp_path):
    folder = tmp_path / "dpt"
    save_dpt(folder, LARGE)
    if what == "a weight":
        state = read_tensors(folder / "model.safetensors")
        del state["head.head.0.weight"]
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    elif what == "shape":
        written = read_json(folder / "config.json")
        (folder / "config.json").write_text(json.dumps(written | {"fusion_hidden_size": 24}))
    else:
        (folder / what).unlink()
    settings = config(dpt={"weights": "local", "path": str(folder)})
    with pytest.raises(
        CliptexError, match={"a weight": r"head\.head\.0\.weight", "shape": "do not match"}.get(what, what)
    ):
        train_expert(settings, "dpt", tmp_path, tmp_path / "out", seed=0)
    assert not (tmp_path / "out" / "expert.json").exists()


def test_weights_without_a_place_in_a_dpt_are_refused_by_name(tmp_path):
    """As of another network; but for those from which no depth is computed."""
    folder = tmp_path / "dpt"
    save_dpt(folder, LARGE)
    state = read_tensors(folder / "model.safetensors")
    unused = {"dpt.pooler.dense.weight": torch.zeros(32, 32), "dpt.pooler.dense.bias": torch.zeros(32)}
    save_file(state | unused, folder / "model.safetensors", metadata={"format": "pt"})
    dpt.PLUGIN({}).load(folder)
    deeper = {
        name.replace("layer.3.", "layer.4."): tensor.clone() for name, tensor in state.items() if "layer.3." in name
    }
    assert len(deeper) == 16
    save_file(state | unused | deeper, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CliptexError, match=r"dpt: unexpected weights.*: dpt\.encoder\.layer\.4\.\w.*, 16 in all; copy"):
        dpt.PLUGIN({}).load(folder)


def test_a_config_beside_that_of_the_folder_is_refused(tmp_path):
    save_dpt(tmp_path / "dpt", LARGE)
    with pytest.raises(CliptexError, match=r"has its own config\.json"):
        dpt.PLUGIN({"network": {"config": LARGE}}).load(tmp_path / "dpt")


def test_a_folder_that_changed_since_is_refused(tmp_path):
    save_dpt(tmp_path / "dpt", LARGE)
    settings = config(dpt={"weights": "local", "path": str(tmp_path / "dpt")})
    train_expert(settings, "dpt", tmp_path, tmp_path / "out", seed=0)
    save_dpt(tmp_path / "dpt", LARGE, seed=1)
    with pytest.raises(CliptexError, match="records"):
        load_expert("dpt", settings.experts["dpt"], tmp_path / "out")


OWN = """
from safetensors.torch import load_file
from cliptex.experts.base import Expert

class Own(Expert):
    task = "depth"

    def load(self, weights):
        assert load_file(weights)["a"].sum() == 3

    def predict(self, images, keys):
        return [image.mean(axis=-1) for image in images]
"""


def test_a_hub_repository_is_fetched_at_one_commit(server, tmp_path):
    """In a process of its own, since huggingface_hub reads HF_ENDPOINT when it is imported."""
    commit, files = "c0ffee" + "0" * 34, {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}
    given = {"weights": "hub", "revision": "v1", "licence": "Apache-2.0"}
    experts, sizes = {"nothing": given | {"plugin": "dpt", "repo": "Intel/nothing"}}, {}
    for form, name in files.items():
        module = save_dpt(tmp_path / form, LARGE, form)
        sizes[form] = sum(parameter.numel() for parameter in module.parameters())
        for file in (tmp_path / form).iterdir():
            for revision in ("v1", commit):
                server.files[f"/Intel/dpt-{form}/resolve/{revision}/{file.name}"] = file.read_bytes()
        digest = sha256((tmp_path / form / name).read_bytes()).hexdigest()
        experts[form] = given | {"plugin": "dpt", "repo": f"Intel/dpt-{form}", "sha256": digest}
    (tmp_path / "own_hub.py").write_text(OWN)  # as docs/howto/own-expert.md has it: `load` and `predict` alone
    save_file({"a": torch.ones(3)}, tmp_path / "own.safetensors")
    for revision in ("v1", commit):
        server.files[f"/me/own/resolve/{revision}/own.safetensors"] = (tmp_path / "own.safetensors").read_bytes()
    experts["own"] = given | {"plugin": "own_hub:Own", "repo": "me/own", "file": "own.safetensors"}
    environment = os.environ | {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(tmp_path),
    }
    code = (
        "import sys; from cliptex.cli import main; settings = sys.argv[1]\n"
        "for name in sys.argv[2:]:\n"
        "    sys.argv[1:] = ['train-expert', '--name', name, '--config', settings]\n"
        "    try: main()\n"
        "    except SystemExit as end: print(name, end.code or 0)  # None is success, too\n"
    )
    command = [sys.executable, "-c", code, json.dumps({"experts": experts}), *files, "own", "nothing"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["safetensors 0", "bin 0", "own 0", "nothing 1"], done.stderr
    assert "experts.nothing.repo: Intel/nothing cannot be fetched from the hub" in done.stderr
    for form, name in files.items():
        record = read_json(tmp_path / "results" / "experts" / form / "expert.json")
        assert record["origin"] == {"repo": f"Intel/dpt-{form}", "revision": commit}
        assert record["source"] == "hub"
        assert set(record["files"]) == {"config.json", "preprocessor_config.json", name}
        assert record["num_parameters"] == sizes[form]
        assert Path(record["weights"]).is_relative_to(tmp_path / "home")
    record = read_json(tmp_path / "results" / "experts" / "own" / "expert.json")
    assert record["origin"] == {"repo": "me/own", "revision": commit, "file": "own.safetensors"}
    assert record["licence"] == "Apache-2.0"


def test_a_wrong_digest_names_the_key(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    settings = config(a={"weights": "local", "path": str(tmp_path / "a.safetensors"), "sha256": "0" * 8}).experts["a"]
    with pytest.raises(CliptexError, match=r"experts\.a\.sha256: .* not 00000000"):
        weights.resolve("a", settings)


@pytest.mark.parametrize(("source", "key"), [("url", "url"), ("hub", "repo"), ("local", "path")])
def test_a_source_without_its_key_is_a_configuration_error(source, key):
    with pytest.raises(CliptexError, match=rf"experts\.a\.{key}: is required for weights '{source}'"):
        config(a={"weights": source})


@pytest.mark.parametrize(
    ("given", "licence"),
    [
        ({}, "Apache-2.0"),
        ({"weights": "random"}, "Apache-2.0"),
        ({"weights": "local", "path": "x"}, "unknown"),
        ({"weights": "local", "path": "x", "licence": "MIT"}, "MIT"),
    ],
)
def test_a_licence_is_never_guessed_for_given_weights(given, licence):
    assert config(a=given).experts["a"].licence_name == licence


# random weights


def test_random_weights_mark_all_they_touch(tiny, caplog, monkeypatch):
    from cliptex.core import paths
    from cliptex.labels.index import index_labels
    from cliptex.labels.label import label_batch
    from cliptex.labels.store import LabelFile

    network = NORMALS | {"input_size_px": [32, 32]}
    settings = Config.load(
        tiny.plain()
        | {
            "experts": {"nll_angmf": {"weights": "random", "network": network, "batch_size": 4}},
            "label_stores": {"guess": {"task": "normals", "expert": "nll_angmf"}},
            "models": {},
        }
    )
    folder, out = paths.expert("nll_angmf"), paths.labels("guess")
    train_expert(settings, "nll_angmf", paths.EXPERT_RENDERS, folder, seed=0)
    first = (folder / "weights.safetensors").read_bytes()
    train_expert(settings, "nll_angmf", paths.EXPERT_RENDERS, folder, seed=0)
    assert (folder / "weights.safetensors").read_bytes() == first
    assert read_json(folder / "expert.json")["source"] == "random"
    label_batch(settings, "guess", 0, paths.SHARD_INDEX, folder, out)
    with caplog.at_level("WARNING", "cliptex"):
        index_labels(settings, "guess", paths.SHARD_INDEX, out)
    assert "RANDOM weights" in caplog.text
    assert read_json(out / "index.json")["weights"] == "random"
    assert LabelFile(out / "00000.parquet").metadata["weights"] == "random"
    assert read_json(paths.labels("depth") / "index.json")["weights"] == "trained"


@pytest.mark.parametrize("source", ["trained", "random"])
@pytest.mark.parametrize("name", ["mask_rcnn", "dpt", "nll_angmf"])
def test_a_network_made_here_needs_a_size(name, source, tmp_path):
    settings = config(**{name: {"weights": source}})
    with pytest.raises(CliptexError, match=r"experts\.\*\.network\.\w+: set it"):
        train_expert(settings, name, tmp_path, tmp_path / "out", seed=0)


# reading


@pytest.mark.parametrize(("where", "form"), [("file", "zip"), ("folder", "legacy"), ("folder", "pickle")])
def test_a_planted_pickle_does_not_run(where, form, tmp_path):
    import pickle

    marker = tmp_path / "marker"
    folder = tmp_path / "dpt"
    if where == "folder":
        save_dpt(folder, LARGE, "bin")
        path, given = folder / "pytorch_model.bin", {"path": str(folder)}
    else:
        path = tmp_path / "weights.pth"
        given = {"path": str(path), "network": {"config": LARGE}}
    bomb = {"head.head.0.weight": Planted(marker)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(bomb))
    else:
        torch.save(bomb, path, _use_new_zipfile_serialization=form == "zip")
    settings = config(dpt={"weights": "local"} | given)
    with pytest.raises(CliptexError, match="not executed here"):
        train_expert(settings, "dpt", tmp_path, tmp_path / "out", seed=0)
    assert not marker.exists()
    assert not (tmp_path / "out" / "expert.json").exists()
    if form == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.exists()  # it is a bomb indeed


@pytest.mark.parametrize("content", [b"", b"pickle", b"<html>", b"PK\x03\x04broken", b"\x08\0\0\0\0\0\0\0{broken}"])
def test_what_is_not_a_weight_file_is_refused(content, tmp_path):
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(CliptexError, match=r"weights\.pth: (not a whole file|damaged)"):
        read_tensors(tmp_path / "weights.pth")


@pytest.mark.parametrize("content", [[1, 2], {"a": 3}, {"model": {"a": "b"}}, torch.zeros(2)])
def test_what_is_not_a_state_dict_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CliptexError, match="not a state dict"):
        read_tensors(tmp_path / "weights.pth")


WRONG = {
    "nan": (torch.tensor([1.0, float("nan")]), "a: has 1 NaN or infinite values"),
    "infinity": (torch.full((2, 3), float("-inf"), dtype=torch.float16), "a: has 6 NaN or infinite values"),
    "int8": (torch.ones(3, dtype=torch.int8), r"a is torch\.int8; only floating-point"),
    "bool": (torch.ones(3, dtype=torch.bool), r"a is torch\.bool; only floating-point"),
    "complex": (torch.ones(3, dtype=torch.complex64), r"a is torch\.complex64; only floating-point"),
    "sparse": (torch.eye(3).to_sparse(), "a is not a plain tensor"),
    "meta": (torch.empty(3, device="meta"), "a is not a plain tensor"),
    "quantised": (torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "a is not a plain tensor"),
    "strided": (torch.ones(1).expand(2**40), "tensors have 4,398,046,511,104 bytes"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["safetensors", "pth"])
@pytest.mark.parametrize("wrong", WRONG)
def test_tensors_that_no_network_is_made_of_are_refused_by_name(wrong, form, tmp_path):
    tensor, message = WRONG[wrong]
    path = tmp_path / f"weights.{form}"
    if form == "pth":
        torch.save({"state_dict": {"module.a": tensor}}, path)
    elif wrong in ("sparse", "meta", "quantised", "strided"):
        return  # safetensors has none
    else:
        save_file({"a": tensor}, path)
    with pytest.raises(CliptexError, match=rf"weights\.{form}: .*{message}"):
        read_tensors(path)


def test_a_sum_that_overflows_is_finite(tmp_path):
    save_file({"a": torch.full((4,), 60000, dtype=torch.float16)}, tmp_path / "a.safetensors")
    assert read_tensors(tmp_path / "a.safetensors")["a"].isfinite().all()


def test_names_that_collide_without_their_prefix_are_refused(tmp_path):
    torch.save({"a": torch.zeros(1), "module.a": torch.ones(1)}, tmp_path / "weights.pth")
    with pytest.raises(CliptexError, match=r"has both a and module\.a"):
        read_tensors(tmp_path / "weights.pth")


def test_integers_in_the_place_of_weights_are_refused(tmp_path):
    save_file({"weight": torch.ones(1, 1, dtype=torch.int64), "bias": torch.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(CliptexError, match=r"weight is torch\.int64 instead of torch\.float32"):
        load_weights(torch.nn.Linear(1, 1), tmp_path / "w.safetensors")


@pytest.mark.parametrize("bomb", ["deflated", "overlapping", "holes", "header"])
def test_a_file_costs_no_more_than_its_bytes(bomb, tmp_path):
    path, start = tmp_path / "weights.pth", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if bomb == "header":
        path.write_bytes((2**62).to_bytes(8, "little") + b"{" + bytes(100))
    elif bomb == "holes":
        torch.save({"a": torch.zeros(8)}, path)
        header = json.dumps({"a": {"dtype": "F32", "shape": [2**28], "data_offsets": [0, 2**30]}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        os.truncate(path, 8 + len(header) + 2**30)
    else:
        torch.save({"a": torch.zeros(2**18)}, tmp_path / "plain.pth")
        with ZipFile(tmp_path / "plain.pth") as plain, ZipFile(path, "w", ZIP_DEFLATED) as archive:
            for name in plain.namelist():
                data = plain.read(name) if bomb == "deflated" else plain.read(name)[:64]
                archive.writestr(name, data, ZIP_DEFLATED if bomb == "deflated" else None)
            if bomb == "overlapping":
                for member in archive.infolist():
                    member.file_size = 2**31
    with pytest.raises(CliptexError, match=r"weights\.pth: "):
        read_tensors(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start < 300 * 1024


def test_nested_and_prefixed_names_are_read(tmp_path):
    torch.save({"state_dict": {"module.a.b": torch.ones(2)}, "epoch": 3}, tmp_path / "weights.pth")
    assert list(read_tensors(tmp_path / "weights.pth")) == ["a.b"]


def test_published_normals_by_local_file_label(tmp_path):
    expert = nll_angmf.PLUGIN({"network": NORMALS})
    expert.randomise(1)
    torch.save({"model": {f"module.{name}": tensor for name, tensor in expert.state().items()}}, tmp_path / "nyu.pt")
    settings = config(nll_angmf={"weights": "local", "path": str(tmp_path / "nyu.pt"), "network": NORMALS})
    train_expert(settings, "nll_angmf", tmp_path, tmp_path / "out", seed=0)
    loaded = load_expert("nll_angmf", settings.experts["nll_angmf"], tmp_path / "out")
    assert_array_equal(loaded.predict(pictures(1), ["a"])[0], expert.predict(pictures(1), ["a"])[0])
