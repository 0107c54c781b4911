import copy
import json
import re
import shutil

import huggingface_hub
import open_clip
import pytest
import torch
from safetensors.torch import save_file

import cliptex
from cliptex.config import Config, Student
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import write_json
from cliptex.data.official.status import is_published, weights_to_fetch
from cliptex.evaluation.suites import released
from cliptex.evaluation.zeroshot import load_zero_shot_model
from cliptex.models import clip as student
from cliptex.models.dense_features import dense_features, features_and_embedding, layer_features, layer_tokens, width
from cliptex.models.encoders import load_encoder
from cliptex.training.start import export_untrained

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def test_open_clip_loads_the_export_to_the_last_bit(tmp_path):
    model = student.build(Student(architecture=TINY), seed=3).eval()
    digest = student.export(model, Student(architecture=TINY), tmp_path)
    loaded, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}", require_pretrained=True)
    images, texts = torch.randn(2, 3, 32, 32), open_clip.get_tokenizer(f"local-dir:{tmp_path}")(["a cat", "a dog"])
    assert texts.shape == (2, 12)
    assert torch.equal(loaded.eval().encode_image(images), model.encode_image(images))
    assert torch.equal(loaded.encode_text(texts), model.encode_text(texts))
    assert "Normalize" in str(preprocess)
    assert len(digest) == 64
    assert torch.equal(student.load(tmp_path).encode_image(images), model.encode_image(images))


def test_the_seed_decides_the_weights():
    first, second, other = (student.build(Student(architecture=TINY), seed) for seed in (0, 0, 1))
    pairs = list(zip(first.parameters(), second.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.visual.conv1.weight, other.visual.conv1.weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "ViT-Z-99"}, "open_clip has no 'ViT-Z-99'"),
        ({"architecture": "ViT-B-16", "pretrained": "nobody"}, "'nobody' is neither a file nor a tag.*openai"),
        ({"architecture": TINY, "pretrained": "/nowhere/weights.pt"}, "no such file"),
    ],
)
def test_what_does_not_exist_is_named(settings, message):
    with pytest.raises(CliptexError, match=message):
        student.build(Student(**settings), 0)


def test_a_checkpoint_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"not weights")
    with pytest.raises(CliptexError, match=r"student\.pretrained: .*weights\.pt: damaged, or not a safetensors"):
        student.build(Student(architecture=TINY, pretrained=str(tmp_path / "weights.pt")), 0)


def test_an_export_without_weights_is_refused(tmp_path):
    student.export(student.build(Student(architecture=TINY), 0), Student(architecture=TINY), tmp_path)
    (tmp_path / student.WEIGHTS_FILE).write_bytes(b"cut")
    with pytest.raises(CliptexError, match="damaged, or not a safetensors"):
        student.load(tmp_path)
    (tmp_path / student.WEIGHTS_FILE).unlink()
    with pytest.raises(CliptexError, match="train that model first"):
        student.load(tmp_path)


def test_an_exported_folder_can_be_the_start(tmp_path):
    model = student.build(Student(architecture=TINY), seed=3).eval()
    student.export(model, Student(architecture=TINY), tmp_path)
    again = student.build(Student(architecture=TINY, pretrained=str(tmp_path)), seed=9)
    assert torch.equal(again.visual.conv1.weight, model.visual.conv1.weight)


def tokens_of_plain_forward(visual, images):
    """The patch tokens [B, C, h, w] that the plain forward makes its embedding from, after its final norm."""
    visual.output_tokens = True
    try:
        embedding, tokens_BNC = visual(images)
    finally:
        visual.output_tokens = False
    height, width = visual.grid_size
    return embedding, tokens_BNC.transpose(1, 2).reshape(len(images), -1, height, width)


# parameters as counted by others: open_clip's docs/model_profile.csv, in millions
@pytest.mark.parametrize(
    ("name", "millions", "dense", "embedding"),
    [
        ("ViT-B-16", 149.62, (768, 14, 14), 512),
        ("ViT-L-14", 427.62, (1024, 16, 16), 768),
        ("ViT-H-14", 986.11, (1280, 16, 16), 1024),
    ],
)
def test_any_vision_transformer_builds_and_has_dense_features(name, millions, dense, embedding):
    """At full depth without memory or arithmetic (meta tensors); of one layer with both, to the last bit."""
    with torch.device("meta"):
        whole = student.build(Student(architecture=name), 0)
        map_BChw, vector_BD = features_and_embedding(whole.visual, torch.zeros(2, 3, 224, 224))
    assert student.parameters(whole) / 1e6 == pytest.approx(millions, abs=0.01)
    assert map_BChw.shape == (2, *dense)
    assert vector_BD.shape == (2, embedding)

    config = copy.deepcopy(student.model_config(Student(architecture=name)))
    config["vision_cfg"]["layers"] = config["text_cfg"]["layers"] = 1
    config["text_cfg"] |= {"vocab_size": 100, "width": 64, "heads": 1}
    visual = student.build(Student(architecture=config), 0).visual.eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        wanted_embedding, wanted = tokens_of_plain_forward(visual, images)
        found, found_embedding = features_and_embedding(visual, images)
        assert torch.equal(dense_features(visual, images), wanted)
        assert torch.equal(found, wanted)
        assert torch.equal(found_embedding, wanted_embedding)
        assert torch.equal(found_embedding, visual(images))


def test_every_vision_transformer_of_open_clip_has_dense_features_and_an_embedding():
    """All names that begin with ViT, of one layer each, without memory; of timm's, which are whole, two small ones."""
    kinds = set()
    for name in open_clip.list_models():
        config = copy.deepcopy(open_clip.get_model_config(name))
        timm_tower = "timm_model_name" in config["vision_cfg"]
        if not name.startswith("ViT-") or (timm_tower and name not in ("ViT-B-16-SigLIP", "ViT-B-32-SigLIP2-256")):
            continue
        config["vision_cfg"]["layers"] = config["text_cfg"]["layers"] = 1
        size = config["vision_cfg"]["image_size"]
        with torch.device("meta"):
            model = student.build(Student(architecture=config), 0)
            map_BChw, vector_BD = features_and_embedding(model.visual, torch.zeros(2, 3, size, size))
            tokens_BL = torch.zeros(2, config["text_cfg"].get("context_length", 77), dtype=torch.long)
            assert model.encode_text(tokens_BL).shape == vector_BD.shape == (2, config["embed_dim"]), name
        assert map_BChw.shape[:2] == (2, width(model.visual)), name
        assert map_BChw.shape[2] == map_BChw.shape[3] >= 7, name
        kinds.add(type(model.visual).__name__)
    assert kinds == {"VisionTransformer", "TimmModel"}


@pytest.mark.parametrize(
    ("name", "channels", "has_class_token"),
    [
        ("MobileCLIP-S1", 512, False),
        ("convnext_tiny", 768, False),
        ("swin_base_patch4_window7_224", 1024, False),
        ("ViTamin-S", 384, False),
        ("vit_medium_patch16_gap_256", 512, False),
        ("EVA02-B-16", 768, True),
        ("PE-Core-T-16-384", 192, True),
    ],
)
def test_timms_other_towers_have_dense_features(name, channels, has_class_token):
    with torch.device("meta"):
        visual = student.build(Student(architecture=name), 0).visual.eval()
        images = torch.zeros(1, 3, *visual.image_size)
        map_BChw, vector_BD = features_and_embedding(visual, images)
        tokens = layer_tokens(visual, images, 1, class_tokens=True)
    assert map_BChw.shape[1] == width(visual) == channels
    assert tokens["image_intermediates"][0].shape == map_BChw.shape
    assert ("image_intermediates_prefix" in tokens) == has_class_token
    assert vector_BD.ndim == 2


def test_openais_residual_networks_have_none():
    with torch.device("meta"):
        visual = student.build(Student(architecture="RN50"), 0).visual
    with pytest.raises(CliptexError, match=r"student\.architecture: training with tasks and .* not ModifiedResNet"):
        width(visual)


def test_a_captioner_is_refused():
    with pytest.raises(CliptexError, match=r"student\.architecture: 'coca_ViT-B-32' is CoCa"):
        student.build(Student(architecture="coca_ViT-B-32"), 0)


@pytest.fixture
def with_own_tokenizer(tmp_path):
    """SigLIP's kind of model, small: a timm tower, a text tower of its own, a tokenizer of transformers."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "cat": 4, "dog": 5}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(tmp_path / "words")
    vision = {"image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "map"}
    return {
        "embed_dim": 192,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": vision | {"timm_proj": "none"},
        "text_cfg": {
            "context_length": 8,
            "vocab_size": 6,
            "hf_tokenizer_name": str(tmp_path / "words"),
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": 16,
            "heads": 2,
            "layers": 1,
            "no_causal_mask": True,
            "pool_type": "last",
        },
    }


def test_a_tokenizer_of_transformers_goes_into_the_export_and_on_from_there(with_own_tokenizer, tmp_path):
    settings = Student(architecture=with_own_tokenizer)
    model = student.build(settings, 0).eval()
    student.export(model, settings, tmp_path / "one")
    shutil.rmtree(tmp_path / "words")
    again = Student(pretrained=str(tmp_path / "one"))
    student.export(student.build(again, 0), again, tmp_path / "two")
    loaded, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'two'}")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'two'}")(["A cat!"])
    assert tokens.tolist()[0][:2] == [3, 4]  # small letters and no signs: SigLIP's own way to clean
    assert torch.equal(student.tokenizer(again)(["A cat!"]), tokens)
    images = torch.randn(2, 3, 224, 224)
    assert torch.equal(loaded.eval().encode_text(tokens), model.encode_text(tokens))
    assert torch.equal(loaded.encode_image(images), model.encode_image(images))
    with pytest.raises(CliptexError, match=r"its tokenizer .*words cannot be loaded .*cache of the Hugging Face hub"):
        student.tokenizer(settings)


@pytest.fixture
def given(tmp_path):
    """A small model and its state dict."""
    model = student.build(Student(architecture=TINY), seed=3).eval()
    return model, model.state_dict()


def same(model, other):
    found = other.state_dict()
    return all(torch.equal(tensor, found[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "bin"])
def test_a_local_file_can_be_the_start(given, tmp_path, suffix):
    model, state = given
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(state, path)
    else:
        # as open_clip's own training saves it
        torch.save({"epoch": 1, "state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    assert same(model, student.build(Student(architecture=TINY, pretrained=str(path)), seed=9))


def test_a_file_that_lacks_a_tensor_is_refused(given, tmp_path):
    _, state = given
    del state["visual.conv1.weight"]
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(
        CliptexError, match=r"weights\.safetensors: the weights do not match .*missing visual\.conv1\.weight;"
    ):
        student.build(Student(architecture=TINY, pretrained=str(tmp_path / "weights.safetensors")), 0)


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "open_clip_model.safetensors"])
def test_a_folder_as_the_hub_gives_it_says_its_own_architecture(given, tmp_path, name):
    model, state = given
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": preprocess}))
    if name.endswith("safetensors"):
        save_file(state, tmp_path / name)
    else:
        torch.save(state, tmp_path / name)
    settings = Student(architecture="ViT-B-16", pretrained=str(tmp_path))
    again = student.build(settings, seed=9)
    assert same(model, again)
    # its preprocessing goes with it into the export, and so does its architecture
    student.export(again, settings, tmp_path / "out")
    assert student.exported_config(tmp_path / "out") == {"model_cfg": TINY, "preprocess_cfg": preprocess}
    assert same(model, student.load(tmp_path / "out"))


def test_maps_of_blocks_are_normalised_on_request(given):
    visual, images = given[0].visual, torch.randn(2, 3, 32, 32)
    raw, normalised = (layer_features(visual, images, [0, 1], normalised=flag) for flag in (False, True))
    for one, other in zip(raw, normalised, strict=True):
        assert torch.equal(visual.ln_post(one.movedim(1, 3)).movedim(3, 1), other)
        assert not torch.equal(one, other)
    assert torch.equal(features_and_embedding(visual, images)[0], normalised[1])


def test_weights_that_train_json_does_not_record_are_used_by_nothing(given, tmp_path):
    model, state = given
    digest = student.export(model, Student(architecture=TINY), tmp_path)
    write_json(tmp_path / "train.json", {"model_sha256": digest})
    assert student.load(tmp_path).weights_sha256 == load_encoder(tmp_path).sha256 == digest
    assert load_zero_shot_model("clip", 0, tmp_path).sha256 == digest
    save_file({name: tensor + 1 for name, tensor in state.items()}, tmp_path / student.WEIGHTS_FILE)
    for use in (
        student.load,  # of training, for `init`
        load_encoder,
        cliptex.load,
        lambda folder: load_zero_shot_model("clip", 0, folder),
        lambda folder: student.build(Student(pretrained=str(folder)), 0),
    ):
        with pytest.raises(CliptexError, match=r"model\.safetensors: not the weights that train\.json records"):
            use(tmp_path)


def test_weights_that_are_not_finite_are_not_exported(given, tmp_path):
    model, _ = given
    model.visual.conv1.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(CliptexError, match=r"visual\.conv1\.weight: has 1 NaN or infinite values; nothing was saved"):
        student.export(model, Student(architecture=TINY), tmp_path)
    assert not (tmp_path / student.WEIGHTS_FILE).exists()


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "model.safetensors"])
def test_a_folder_is_loaded_as_open_clip_does(given, tmp_path, name):
    """Sizes in `preprocess_cfg`, keys of later versions and null are ignored; weights may have other names."""
    _, state = given
    preprocess = {"size": 64, "mode": "RGB", "mean": [0.5] * 3, "std": None, "resize_mode": "squash", "later": 1}
    write_json(tmp_path / student.CONFIG_FILE, {"model_cfg": TINY, "preprocess_cfg": preprocess})
    if name.endswith("bin"):
        torch.save(state, tmp_path / name)
    else:
        save_file(state, tmp_path / name)
        save_file({"a": torch.zeros(1)}, tmp_path / "heads.safetensors")
        (tmp_path / "heads.safetensors").rename(tmp_path / "adapter.safetensors")
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}", require_pretrained=True)
    ours = cliptex.load(tmp_path)
    assert same(theirs, ours.model)
    assert str(ours.preprocess) == str(preprocess)
    assert load_encoder(tmp_path).std == open_clip.OPENAI_DATASET_STD


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_cfg": {"layers": 2_000}}, "more than 1,000 layers"),
        ({"vision_cfg": {"width": 10**9}}, r"vision_cfg\.width: 1000000000 is out of range"),
        ({"vision_cfg": {"width": 2**17, "layers": 24}}, r"bytes for a network of [\d,]{15,} parameters"),
        ({"vision_cfg": {"patch_size": 0}}, r"open_clip_config\.json: cannot be built"),
        ({"embed_dim": "x"}, r"open_clip_config\.json: cannot be built"),
        ({"multimodal_cfg": {}}, r"open_clip_config\.json is CoCa"),
        ({"vision_cfg": {"later": 1}}, r"the option vision_cfg\.later is not supported"),
        ({"vision_cfg": None}, "needs embed_dim, vision_cfg and text_cfg"),
    ],
)
def test_a_folders_description_is_bounded_and_checked(given, tmp_path, change, message):
    merged = {
        key: TINY[key] | value if isinstance(value, dict) and key in TINY else value for key, value in change.items()
    }
    write_json(tmp_path / student.CONFIG_FILE, {"model_cfg": TINY | merged})
    save_file(given[1], tmp_path / student.WEIGHTS_FILE)
    with pytest.raises(CliptexError, match=message) as caught:
        student.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"std": [0, 1, 1]}, {"mean": ["a"] * 3}, {"resize_mode": "x"}, {"interpolation": 1}]
)
def test_a_preprocessing_that_gives_no_numbers_is_refused(given, tmp_path, change):
    write_json(tmp_path / student.CONFIG_FILE, {"model_cfg": TINY, "preprocess_cfg": change})
    with pytest.raises(CliptexError, match=rf"preprocess_cfg\.{next(iter(change))}: "):
        student.load(tmp_path)


def test_a_bare_file_is_told_apart_from_one_trained_with_quickgelu(given, tmp_path, monkeypatch, caplog):
    """`ViT-B-32` has weights of both kinds, and a file does not say of which it is."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32", TINY)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32-quickgelu", TINY | {"quick_gelu": True})
    path = tmp_path / "weights.safetensors"
    save_file(given[1], path)
    with caplog.at_level("WARNING", "cliptex"):
        student.build(Student(architecture="ViT-B-32-quickgelu", pretrained=str(path)), 0)
        assert not caplog.records
        student.build(Student(architecture="ViT-B-32", pretrained=str(path)), 0)
    assert "GELU is used. For weights of OpenAI, DFN or MetaCLIP, set student.architecture: ViT-B-32-quickgelu" in (
        caplog.text
    )
    caplog.clear()
    for repository, quick in (
        ("vit_base_patch32_clip_224.openai", True),
        ("vit_base_patch32_clip_224.laion2b_e16", False),
    ):
        snapshot = tmp_path / f"models--timm--{repository}" / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        path = path.rename(snapshot / path.name)
        settings = Student(architecture="ViT-B-32", pretrained=str(path))
        if quick:
            with pytest.raises(
                CliptexError, match=r"was trained with QuickGELU; set student\.architecture: ViT-B-32-q"
            ):
                student.build(settings, 0)
        else:
            student.build(settings, 0)
    assert not caplog.records
    path = path.rename(tmp_path / "vit_b_32-quickgelu-laion400m_e32-46683a32.safetensors")
    with pytest.raises(CliptexError, match="was trained with QuickGELU"):
        student.build(Student(architecture="ViT-B-32", pretrained=str(path)), 0)


@pytest.fixture
def tagged(given, tmp_path, monkeypatch):
    """An open_clip architecture `tiny` with a pretrained tag `made` whose download is a file made here."""
    save_file(given[1], tmp_path / "made.safetensors")
    tag = {"url": "https://example.org/made", "mean": (0.1, 0.2, 0.3), "std": (0.5,) * 3, "quick_gelu": True}
    tag |= {"interpolation": "bilinear", "resize_mode": "squash"}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", TINY)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", {"made": tag})
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: str(tmp_path / "made.safetensors"))
    return given[0]


def test_a_pretrained_tag_brings_weights_preprocessing_and_activation(tagged, tmp_path, recwarn):
    settings = Student(architecture="tiny", pretrained="made")
    model = student.build(settings, 0)
    assert same(tagged, model)
    # weights trained with QuickGELU compute with it, here and in the export; open_clip alone would only warn
    assert type(model.visual.transformer.resblocks[0].mlp.gelu) is open_clip.transformer.QuickGELU
    assert not [warning for warning in recwarn if "QuickGELU" in str(warning.message)]
    student.export(model, settings, tmp_path / "out")
    described = student.exported_config(tmp_path / "out")
    assert described["model_cfg"] == TINY | {"quick_gelu": True}
    assert described["preprocess_cfg"] == {
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5] * 3,
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(student.load(tmp_path / "out").encode_image(images), model.eval().encode_image(images))


@pytest.fixture
def hub(given, tmp_path, monkeypatch):
    """An architecture `tiny` with a tag whose weights are on the hub, a cache folder, and no network."""
    tag = {"hf_hub": "somebody/tiny/", "mean": (0.1, 0.2, 0.3), "std": (0.5,) * 3, "interpolation": "bicubic"}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", TINY)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", {"hosted": tag | {"resize_mode": "shortest"}})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return given, tmp_path / "cache"


def test_a_tag_in_the_hubs_cache_needs_no_network(hub):
    (model, state), cache = hub
    repository = cache / "models--somebody--tiny"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    save_file(state, repository / "snapshots" / "abc" / "open_clip_model.safetensors")
    found = student.build(Student(architecture="tiny", pretrained="hosted"), 0)
    assert same(model, found)
    assert student.preprocessing(found)["mean"] == (0.1, 0.2, 0.3)


def test_a_tag_that_cannot_be_fetched_is_one_line_that_says_what_to_do(hub):
    with pytest.raises(CliptexError, match=r"student\.pretrained: hosted .*somebody/tiny.*network") as caught:
        student.build(Student(architecture="tiny", pretrained="hosted"), 0)
    assert "\n" not in str(caught.value)


def test_published_weights_are_fetched_before_any_job_needs_them(tagged, tmp_path):
    record = tmp_path / "student.json"
    student.fetch(Student(architecture="tiny", pretrained="made"), record)
    found = json.loads(record.read_text())
    assert (found["architecture"], found["pretrained"]) == ("tiny", "made")
    assert found["num_parameters"] == student.parameters(tagged)
    record.unlink()
    (tmp_path / "made.safetensors").write_bytes(b"broken")
    with pytest.raises(CliptexError, match=r"student\.pretrained: .*made\.safetensors: damaged"):
        student.fetch(Student(architecture="tiny", pretrained="made"), record)
    assert not record.exists()


def test_what_is_here_needs_no_fetching(tmp_path):
    (tmp_path / "weights.pt").touch()
    assert [
        is_published(Student(pretrained=given)) for given in (None, str(tmp_path), str(tmp_path / "weights.pt"))
    ] == [False] * 3
    assert is_published(Student(pretrained="openai"))


def test_a_released_model_is_one_more_model_to_compare_with(tmp_path, monkeypatch):
    """`models.*.pretrained`: exported with its own weights for any seed, and downloaded by name."""
    monkeypatch.chdir(tmp_path)
    other = student.build(Student(architecture=TINY), seed=5)
    student.export(other, Student(architecture=TINY), tmp_path / "released")
    models = {"clip": {}, "released": {"pretrained": str(tmp_path / "released")}}
    config = Config.load({"student": {"architecture": TINY}, "models": models})
    export_untrained(config, "released", 0)
    assert torch.equal(student.load(paths.model("released", 0)).visual.proj, other.visual.proj)
    assert json.loads((paths.model("released", 0) / "train.json").read_text())["init"] == str(tmp_path / "released")
    assert config.is_seedless("released") and not config.is_seedless("clip")
    assert weights_to_fetch(config) == []
    tags = {"released": {"pretrained": "datacomp_xl_s13b_b90k"}}
    config = Config.load({"student": {"architecture": "ViT-B-16"}, "models": tags})
    assert weights_to_fetch(config) == ["models.released"]
    assert released(config, "released") == ("ViT-B-16", "datacomp_xl_s13b_b90k")
    paths.released("released").parent.mkdir(parents=True)
    paths.released("released").touch()
    assert weights_to_fetch(config) == []


@pytest.mark.parametrize(
    ("models", "problem"),
    [
        ({"a": {"pretrained": "openai", "steps": 3}}, "models.a.pretrained: is for a released model to compare with"),
        ({"a": {}, "b": {"init": "a", "pretrained": "openai"}}, "remove it, or `init`"),
        ({"a": {"pretrained": "openai"}, "b": {"init": "a", "steps": 1}}, "'b' starts from this model"),
    ],
)
def test_nothing_is_trained_from_a_model_to_compare_with(models, problem):
    with pytest.raises(CliptexError, match=re.escape(problem)):
        Config.load({"models": models})


def test_the_published_tags_that_need_quick_gelu_get_it():
    for tag, wanted in (("openai", True), ("dfn2b", True), ("datacomp_xl_s13b_b90k", False)):
        config = student.model_config(Student(architecture="ViT-B-16", pretrained=tag))
        assert config.get("quick_gelu", False) is wanted
    assert "quick_gelu" not in student.model_config(Student(architecture="ViT-B-16"))
