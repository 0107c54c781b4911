"""A trained model in use: embeddings, dense predictions, and the sheet that `cliptex predict` draws."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

import cliptex
from cliptex.cli import app
from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json, write_json
from cliptex.data.shard_index import read_index, read_indexed
from cliptex.models.heads import DenseHeads, load_heads, save_heads
from cliptex.models.predict import draw_predictions
from cliptex.report.model_card import export_model, model_card, timm_arguments
from cliptex.training.run import train

TASKS = ("segmentation", "depth", "normals")


KEPT = []


@pytest.fixture
def trained(request, monkeypatch, tmp_path_factory):
    """`clip` without heads and `cliptex` with heavy ones, dilated convolutions and losses of other kinds.

    Trained once; tests that change files do so in a copy.
    """
    if not KEPT:
        plain = request.getfixturevalue("tiny").plain()
        plain["train"] |= {"multi_scale": "aspp", "multi_scale_rates": [1, 2], "multi_scale_channels": 16}
        plain["train"] |= {"heads": "heavy"}
        plain["models"]["cliptex"] |= {
            "steps": 120,
            "learning_rate": 3e-3,
            "losses": {"normals": {"kind": "angmf"}, "depth": {"alignment": "robust"}},
        }
        config = Config.load(plain)
        for name in ("clip", "cliptex"):
            train(config, name, 0)
        kept = tmp_path_factory.mktemp("kept") / "run"
        shutil.copytree(Path.cwd(), kept)
        KEPT.append((config, kept))
    config, kept = KEPT[0]
    monkeypatch.chdir(kept)
    return config


@pytest.fixture
def pictures(trained, tmp_path):
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
    """The expert's depth is brightness; that is soon learned on a training image."""
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
    with pytest.raises(CliptexError, match=r"h\.safetensors: damaged, or not a heads file of this version"):
        load_heads(path)
    path.write_bytes(b"cut")
    with pytest.raises(CliptexError, match=r"h\.safetensors: damaged, or not a safetensors or PyTorch file"):
        load_heads(path)


def test_heads_of_another_training_are_refused(trained, tmp_path):
    shutil.copytree("results", tmp_path / "copy/results")
    folder = tmp_path / "copy" / paths.model("cliptex", 0)
    (folder / "heads.safetensors").write_bytes((paths.model("clip", 0) / "heads.safetensors").read_bytes())
    with pytest.raises(CliptexError, match=r"seed0/heads\.safetensors: not the weights that train\.json records"):
        cliptex.load(folder)
    with pytest.raises(CliptexError, match=r"seed0/heads\.safetensors: is not the file that was trained"):
        export_model(trained, "cliptex", 0, tmp_path / "out", workdir=tmp_path / "copy")
    assert not (tmp_path / "out/heads.safetensors").exists()
    record = read_json(folder / "train.json")
    del record["heads_sha256"]  # as in models of earlier versions
    write_json(folder / "train.json", record)
    assert cliptex.load(folder).tasks == {}


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
    whole = pictures[0].read_bytes()
    broken.write_bytes(whole[: len(whole) * 3 // 4])
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


def test_one_text_or_picture_in_place_of_a_list_is_refused(trained, pictures):
    model = cliptex.load(paths.model("clip", 0))
    with pytest.raises(CliptexError, match=r"list of texts; write \['a cat'\]"):
        model.encode_text("a cat")
    for one in (str(pictures[0]), pictures[0], Image.open(pictures[0])):
        for method in (model.encode_image, model.dense_features):
            with pytest.raises(CliptexError, match="expected a list of images"):
                method(one)


def test_importing_the_package_imports_no_network():
    code = "import sys, cliptex; print([name for name in ('torch', 'numpy', 'open_clip') if name in sys.modules])"
    assert json.loads(subprocess.check_output([sys.executable, "-c", code], text=True).replace("'", '"')) == []


def test_a_model_that_lost_its_heads_still_embeds(trained, pictures, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(paths.model("cliptex", 0), folder)
    (folder / "heads.safetensors").unlink()
    model = cliptex.load(folder)
    assert model.encode_image(pictures).shape == (2, 16)
    with pytest.raises(CliptexError, match="has no heads"):
        model.predict(pictures[0])


# ---- export


@pytest.fixture
def exported(trained, tmp_path):
    """`cliptex` as a folder to publish, with results of two benchmarks beside it."""
    measured = {
        "voc": [
            ("cliptex", "semantic_segmentation", "linear", {"mIoU": 12.5}),
            ("cliptex", "semantic_segmentation", "pspnet", {"mIoU": 20.0}),
            ("clip", "semantic_segmentation", "linear", {"mIoU": 99.0}),
        ],
        "nyuv2": [
            ("cliptex", "depth", "linear", {"rmse": 1.5}),
            ("cliptex", "normals", "linear", {"mean": 30.0}),
        ],
    }
    config = Config.load(trained.plain() | {"probes": {"benchmarks": {key: {} for key in measured}}})
    for benchmark, rows in measured.items():
        results = [dict(zip(("model", "task", "head", "metrics"), row, strict=True), seed=0) for row in rows]
        table = {"benchmark": benchmark, "source": "miniature", "split": "val", "num_train": 8, "num_eval": 7}
        table |= {"class_names": [], "results": results}
        write_json(paths.RESULTS / "probes" / f"{benchmark}.json", table)
    out = tmp_path / "export"
    export_model(config, "cliptex", 0, out)
    return config, out


def test_an_export_holds_the_weights_untouched_and_no_more_than_it_says(exported, tmp_path):
    config, out = exported
    names = {"README.md", "open_clip_config.json", "open_clip_model.safetensors", "heads.safetensors", "train.json"}
    assert {path.name for path in out.iterdir()} == names
    for name in names - {"README.md"}:
        assert (out / name).read_bytes() == (paths.model("cliptex", 0) / name).read_bytes()
    export_model(config, "cliptex", 0, out, heads=False)  # over the first
    assert {path.name for path in out.iterdir()} == names - {"heads.safetensors"}
    assert "model.predict" not in (out / "README.md").read_text()
    with pytest.raises(CliptexError, match="has no heads"):
        cliptex.load(out).predict(np.zeros((8, 8, 3), np.uint8))


def test_a_teacher_whose_licence_excludes_commercial_use_marks_the_card(exported, caplog):
    config, out = exported
    path = paths.labels("depth") / "index.json"
    write_json(path, read_json(path) | {"licence": "CC-BY-NC-4.0"})
    export_model(config, "cliptex", 0, out)
    text = (out / "README.md").read_text()
    card = ModelCard(text)
    assert (card.data.license, card.data.license_name) == ("other", "non-commercial-see-model-card")
    assert "non-commercial-teacher" in card.data.tags and "but these weights" not in caplog.text
    assert "**These weights learned from labels whose licence excludes commercial use: bright" in text
    export_model(config, "cliptex", 0, out, licence="apache-2.0")
    assert ModelCard((out / "README.md").read_text()).data.license == "apache-2.0"
    assert "licence apache-2.0, but these weights learned from labels whose licence excludes" in caplog.text


def test_every_code_block_of_the_card_runs_and_all_libraries_agree(exported, pictures, monkeypatch):
    _, out = exported
    monkeypatch.chdir(pictures[0].parent)
    pictures[0].rename("photo.jpg")
    blocks = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    found = {}
    for block in blocks:
        scope = {}
        exec(block.replace("DIR", str(out)), scope)
        found |= {key: value for key, value in scope.items() if key in ("preprocess", "encoder")}
        found["cliptex" if "cliptex" in scope else "open_clip"] = scope.get("model", found.get("open_clip"))
    image = found["preprocess"](Image.open("photo.jpg").convert("RGB"))[None]
    with torch.no_grad():
        theirs = found["open_clip"].eval().encode_image(image)
        # timm computes attention in another order
        torch.testing.assert_close(found["encoder"].eval()(image), theirs, rtol=1e-4, atol=1e-5)
        assert torch.equal(found["cliptex"].encode_image(["photo.jpg"], normalize=False), theirs)


def test_the_card_has_front_matter_for_the_hub_and_tells_where_everything_is_from(exported):
    config, out = exported
    card = ModelCard((out / "README.md").read_text())
    assert card.data.library_name == "open_clip"
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    assert (card.data.license, card.data.license_link) == ("other", "README.md")
    told = [(one.task_name, one.metric_name, one.metric_value) for one in card.data.eval_results]
    assert set(told) == {
        ("Semantic segmentation", "mIoU, linear", 12.5),
        ("Semantic segmentation", "mIoU, PSPNet", 20.0),
        ("Depth", "RMSE, linear", 1.5),
        ("Surface normals", "Mean angle, linear", 30.0),
    }
    assert {one.dataset_name for one in card.data.eval_results} == {
        "Pascal VOC (rendered stand-in)",
        "NYUv2 (rendered stand-in)",
    }
    text = card.text
    for words in (
        "| segmentation | segmentation | bright_segmentation |",
        "15 of 16",  # one image has no label
        "learning_rate: 0.003",
        "kind: angmf",
        "Training started from clip.",
        "| Pascal VOC (rendered stand-in), val | 7 | Semantic segmentation | linear | mIoU | 12.5 % |",
        "No licence was chosen",
    ):
        assert words in text, words
    assert "99.0" not in text  # another model's
    export_model(config, "clip", 0, out, licence="mit")
    card = ModelCard((out / "README.md").read_text())
    assert card.data.license == "mit"
    assert card.data.eval_results[0].metric_value == 99.0
    assert "## Experts" not in card.text


def test_results_of_weights_that_are_no_more_are_left_out(exported, caplog):
    config, _ = exported
    record = read_json(paths.model("cliptex", 0) / "train.json")
    path = paths.RESULTS / "probes" / "voc.json"
    for sha, told in ((record["model_sha256"], True), ("0" * 64, False)):
        write_json(path, read_json(path) | {"provenance": {"model_sha256": {"cliptex/seed0": sha}}})
        card = model_card(config, "cliptex", 0, record, True, "")
        assert ("Pascal VOC" in card, "NYUv2" in card) == (told, True)
    assert "left out of the card: results/probes/voc.json: cliptex/seed0 was evaluated with" in caplog.text
    assert "evaluate cliptex/seed0 again" in caplog.text  # the weights are those of train.json


def test_random_experts_and_rendered_data_are_called_what_they_are(exported):
    config, _ = exported
    path = paths.labels("depth") / "index.json"
    index = read_json(path)
    record = read_json(paths.model("cliptex", 0) / "train.json") | {"source": "miniature"}
    try:
        write_json(path, index | {"weights": "random", "licence": "CC-BY-NC-4.0"})
        card = model_card(config, "cliptex", 0, record, True, "")
    finally:
        write_json(path, index)
    assert "**RANDOM: untrained, for tests only**" in card
    assert "bright_depth: CC-BY-NC-4.0" in card
    assert "rendered miniature" in card
    assert "- rendered-miniature" in card


def test_what_cannot_be_exported_is_named(exported):
    config, out = exported
    for arguments, message in (
        (("nobody", 0, out), r"--model: no model 'nobody'"),
        (("clip", 5, out), r"clip/seed5/train\.json: no such file"),
        (("clip", 0, paths.model("clip", 0)), "is the folder of the trained model"),
    ):
        with pytest.raises(CliptexError, match=message):
            export_model(config, *arguments)
    plain = config.plain()
    plain["train"]["batch_size"] = 8
    plain["models"]["cliptex"]["losses"]["normals"] = {}
    with pytest.raises(CliptexError) as caught:
        export_model(Config.load(plain), "cliptex", 0, out)
    assert "models.cliptex.losses.normals.kind = 'angmf', now 'absent'" in str(caught.value)
    assert "train.batch_size = 4, now 8; export it with the --config" in str(caught.value)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-H-14", "ViT-B-16-quickgelu", "ViT-L-14-336"])
def test_timm_builds_the_same_network_as_open_clip(name):
    """Every tensor by name and shape, without memory."""
    config = open_clip.get_model_config(name)
    timm_name, arguments = timm_arguments(config)
    with torch.device("meta"):
        ours = open_clip.CLIP(**config).visual
        theirs = timm.create_model(timm_name, **arguments)
    renamed = timm.models.vision_transformer.checkpoint_filter_fn(
        {f"visual.{key}": value for key, value in ours.state_dict().items()}, theirs
    )
    renamed.pop("head.bias")  # timm's, zero
    wanted = {key: value.shape for key, value in theirs.state_dict().items() if key != "head.bias"}
    assert {key: value.shape for key, value in renamed.items()} == wanted
    assert theirs.blocks[0].attn.num_heads == ours.transformer.resblocks[0].attn.num_heads
    assert (
        type(theirs.blocks[0].mlp.act).__name__.lower() == type(ours.transformer.resblocks[0].mlp.gelu).__name__.lower()
    )


def test_towers_that_timm_does_not_build_alike_have_no_recipe():
    for name in ("RN50", "convnext_base", "coca_ViT-B-32"):
        assert timm_arguments(open_clip.get_model_config(name)) is None
