"""A trained model in use: embeddings, dense predictions, and the sheet that `cliptex predict` draws."""

import json
import subprocess
import sys

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import cliptex
from cliptex import paths
from cliptex.cli import app
from cliptex.config import Config
from cliptex.errors import CliptexError
from cliptex.multi_scale import DenseHeads, load_heads, save_heads
from cliptex.predict import draw_predictions
from cliptex.shards import read_index, read_indexed
from cliptex.train import train

TASKS = ("segmentation", "depth", "normals")


@pytest.fixture
def trained(tiny):
    """`clip` without heads and `cliptex` with heavy ones, dilated convolutions and losses of other kinds."""
    plain = tiny.plain()
    plain["train"] |= {"multi_scale": "aspp", "multi_scale_rates": [1, 2], "heads": "heavy", "multi_scale_channels": 16}
    plain["models"]["cliptex"] |= {
        "steps": 40,
        "learning_rate": 3e-3,
        "losses": {"normals": {"kind": "angmf"}, "depth": {"alignment": "robust"}},
    }
    config = Config.load(plain)
    for name in ("clip", "cliptex"):
        train(config, name, 0)
    return config


@pytest.fixture
def pictures(tmp_path):
    """Files of two images of the shards, of unlike sizes."""
    entry = read_index(paths.SHARD_INDEX)["shards"][0]
    out = []
    for number, pair in enumerate(read_indexed(entry)[:2]):
        path = tmp_path / f"picture{number}.jpg"
        path.write_bytes(pair.image)
        if number:
            Image.open(path).resize((30, 70)).save(path)
        out.append(path)
    return out


def test_a_loaded_model_embeds_as_open_clip_does_and_predicts_in_the_images_frame(trained, pictures):
    folder = paths.model("cliptex", 0)
    model = cliptex.load(folder)
    assert list(model.tasks) == list(TASKS)
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}", require_pretrained=True)
    theirs.eval()
    batch = torch.stack([preprocess(Image.open(path).convert("RGB")) for path in pictures])
    with torch.no_grad():
        assert torch.equal(model.encode_image(pictures), theirs.encode_image(batch, normalize=True))
        tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(["a cat"])
        assert torch.equal(model.encode_text(["a cat"]), theirs.encode_text(tokens, normalize=True))
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path in pictures]
    assert torch.equal(model.encode_image(arrays), model.encode_image([Image.fromarray(one) for one in arrays]))
    assert model.dense_features(pictures).shape == (2, 32, 4, 4)
    for image, path in zip(arrays, pictures, strict=True):
        found = model.predict(path)
        size = image.shape[:2]
        assert {name: (value.shape, value.dtype) for name, value in found.items()} == {
            "segmentation": (size, np.uint8),
            "depth": (size, np.float32),
            "normals": ((*size, 4), np.float32),
        }
        np.testing.assert_allclose(np.linalg.norm(found["normals"][..., :3], axis=-1), 1, atol=1e-5)
        assert (found["normals"][..., 3] > 0).all()


def test_the_heads_predict_what_they_were_taught(trained, pictures):
    """The expert's depth is brightness; forty steps are enough to follow that on a training image."""
    image = np.asarray(Image.open(pictures[0]).convert("RGB"))
    depth = cliptex.load(paths.model("cliptex", 0)).predict(image)["depth"]
    assert np.corrcoef(depth.ravel(), image.mean(axis=-1).ravel())[0, 1] > 0.5


def test_the_heads_are_those_of_training_to_the_last_bit(tmp_path):
    torch.manual_seed(0)
    heads = DenseHeads(8, {"depth": 1, "normals": 4}, "aspp", 16, "heavy", (1, 3))
    heads(torch.randn(4, 8, 5, 5))  # moves the running statistics
    save_heads(
        heads, tmp_path / "h.safetensors", {"depth": "depth", "normals": "normals"}, {"normals": {"kind": "angmf"}}
    )
    again, tasks = load_heads(tmp_path / "h.safetensors")
    assert tasks["normals"].options.kind == "angmf"
    features = torch.randn(1, 8, 5, 5)
    for store, output in heads.eval()(features).items():
        assert torch.equal(output, again(features)[store])


def test_heads_without_a_description_are_refused(tmp_path):
    path = tmp_path / "h.safetensors"
    save_file({"heads.depth.weight": torch.zeros(1, 8, 1, 1)}, path)
    with pytest.raises(CliptexError, match=r"h\.safetensors: not a file of heads by this version"):
        load_heads(path)
    path.write_bytes(b"cut")
    with pytest.raises(CliptexError, match="train the model again"):
        load_heads(path)


def test_the_sheet_shows_every_head_and_names_the_classes(trained, pictures, tmp_path):
    model = cliptex.load(paths.model("cliptex", 0))
    found = draw_predictions(model, pictures, tmp_path / "out.png")
    classes = set(np.concatenate([np.unique(model.predict(path)["segmentation"]) for path in pictures]).tolist())
    names = model.tasks["segmentation"].class_names
    assert set(found["segmentation"]) == {names[code] for code in classes}
    sheet = np.asarray(Image.open(tmp_path / "out.png"))
    assert sheet.shape[1] == 10 + 4 * 234  # image, segmentation, depth, normals
    cell = sheet[32 + 32 : 32 + 192, 10 + 2 * 234 : 10 + 2 * 234 + 224]  # depth of the first image
    assert len(np.unique(cell.reshape(-1, 3), axis=0)) > 10
    again = tmp_path / "again.png"
    draw_predictions(model, pictures, again)
    assert again.read_bytes() == (tmp_path / "out.png").read_bytes()


def run(*arguments):
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


def test_the_command_says_what_it_found(trained, pictures, tmp_path):
    result = run(*pictures, "--model", paths.model("cliptex", 0), "--out", tmp_path / "sheet.png")
    assert result.exit_code == 0, result.output
    assert "segmentation: " in result.output
    assert (tmp_path / "sheet.png").exists()


def test_what_cannot_be_drawn_is_named_and_nothing_is_written(trained, pictures, tmp_path):
    folder, out = paths.model("cliptex", 0), tmp_path / "sheet.png"
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(pictures[0].read_bytes()[:300])
    (tmp_path / "text.png").write_text("not an image")
    for arguments, message in [
        ([broken, "--model", folder, "--out", out], r"broken\.jpg: not a usable image \(truncated or corrupt\)"),
        ([pictures[0], tmp_path / "text.png", "--model", folder, "--out", out], r"text\.png: not a usable image"),
        ([tmp_path / "nowhere.jpg", "--model", folder, "--out", out], r"nowhere\.jpg: cannot be read \(No such file"),
        ([pictures[0], "--model", paths.model("clip", 0), "--out", out], "has no heads"),
        ([pictures[0], "--model", tmp_path / "nothing", "--out", out], "no such file; train that model first"),
        ([pictures[0], "--model", folder, "--out", tmp_path / "sheet.jpg"], r"sheet\.jpg is not a \.png file"),
    ]:
        result = run(*arguments)
        assert isinstance(result.exception, CliptexError), result.output
        with pytest.raises(CliptexError, match=message):
            raise result.exception
        assert not out.exists()
    with pytest.raises(CliptexError, match=r"uint8 RGB \[H, W, 3\], got float64"):
        cliptex.load(folder).predict(np.zeros((4, 4, 3)))


def test_importing_the_package_imports_no_network():
    code = "import sys, cliptex; print([name for name in ('torch', 'numpy', 'open_clip') if name in sys.modules])"
    assert json.loads(subprocess.check_output([sys.executable, "-c", code], text=True).replace("'", '"')) == []


def test_a_model_that_lost_its_heads_still_embeds(trained, pictures):
    folder = paths.model("cliptex", 0)
    assert load_file(folder / "heads.safetensors")
    (folder / "heads.safetensors").unlink()
    model = cliptex.load(folder)
    assert model.encode_image(pictures).shape == (2, 16)
    with pytest.raises(CliptexError, match="has no heads"):
        model.predict(pictures[0])
