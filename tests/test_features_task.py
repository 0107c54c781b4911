"""Dense features of a frozen teacher: the teachers, their principal components, the task, and all of it together."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.nn import functional

from cliptex.cluster.check import problems
from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json, sha256_file
from cliptex.core.plugins import find
from cliptex.experts import pca
from cliptex.experts.options import FeaturesOptions
from cliptex.experts.teachers import load_teacher
from cliptex.experts.training import load_expert, train_expert
from cliptex.labels.audit import audit_labels
from cliptex.labels.fit_pca import fit_pca
from cliptex.labels.index import index_labels
from cliptex.labels.label import label_batch
from cliptex.labels.store import LabelFile, task_of_store
from cliptex.models.heads import load_heads
from cliptex.report.tables.data import _store_row
from cliptex.tasks.base import View
from cliptex.tasks.features import LIMIT, SIGMAS, TeacherFeatures
from cliptex.training.loader import JointLoader
from cliptex.training.position_prior import fit_position_prior
from cliptex.training.run import train

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in ((40, 40), (30, 50))]


def by_hand(size, mean, std):
    """What a published example does: squash, 0..1, normalise."""
    squashed = [
        functional.interpolate(one[None] / 255, size=(size, size), mode="bilinear", antialias=True) for one in images()
    ]
    return (torch.cat(squashed) - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def task_of(dims=5, **more):
    parameters = {
        "dims": dims,
        "grid": [4, 4],
        "scales": [0.5 / (k + 1) for k in range(dims)],
        "teacher": {"name": "t"},
    }
    return TeacherFeatures.from_codec(parameters | more)


# ---- teachers


@pytest.mark.parametrize(
    ("kind", "more", "prefix"),
    [
        ("dinov2", {}, 1),
        ("dinov2_with_registers", {"num_register_tokens": 3}, 4),
        ("dinov3_vit", {"num_register_tokens": 3}, 4),
        ("siglip", {}, 0),
        ("siglip2", {}, 0),
        ("clip", {}, 1),
        ("radio", {"num_registers": 2, "num_cls_tokens": 2}, 4),
    ],
)
def test_a_folder_of_transformers_gives_its_own_patch_tokens(tmp_path, kind, more, prefix):
    from transformers import AutoConfig, AutoModel

    vision = {"image_size": 48, "patch_size": 12, **SMALL, **more}
    if kind == "siglip2":
        vision = {"num_patches": 16, "patch_size": 12, **SMALL}
    if kind in ("clip", "siglip", "siglip2"):
        text = {"vocab_size": 50, **SMALL, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
        config = AutoConfig.for_model(kind, vision_config=vision, text_config=text)
    else:
        config = AutoConfig.for_model(kind, **vision)
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    model.save_pretrained(tmp_path)
    mean, std = ((0.0,) * 3, (1.0,) * 3) if kind == "radio" else IMAGENET
    given = {"image_mean": mean, "image_std": std, "resample": 3, "rescale_factor": 1 / 255}
    size = {"size": {"shortest_edge": 60}, "crop_size": {"height": 48, "width": 48}} if kind == "dinov2" else {}
    size = size or ({"max_num_patches": 16} if kind == "siglip2" else {"size": {"height": 48, "width": 48}})
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(given | size), encoding="utf-8")
    teacher = load_teacher(FeaturesOptions(library="transformers"), tmp_path)
    pixels = by_hand(48, mean, std)
    if kind == "siglip2":
        patches = pixels.unfold(2, 12, 12).unfold(3, 12, 12).permute(0, 2, 3, 4, 5, 1).reshape(2, 16, -1)
        own = {"pixel_attention_mask": torch.ones(2, 16), "spatial_shapes": torch.tensor([[4, 4]] * 2)}
        tokens = model.vision_model(patches, **own).last_hidden_state
    else:
        tokens = getattr(model, "vision_model", model)(pixels).last_hidden_state
    assert tokens.shape[1] == prefix + 16
    with torch.no_grad():
        found = teacher.features(images(), (4, 4))
    assert torch.allclose(found.flatten(1, 2), tokens[:, prefix:].detach(), atol=1e-4)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict() | {"auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(CliptexError, match="never executed"):
        load_teacher(FeaturesOptions(library="transformers"), tmp_path)


@pytest.mark.parametrize("form", ["file", "folder"])
def test_a_teacher_of_timm_gives_its_own_patch_tokens(tmp_path, form):
    name = "test_vit4"
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": name, "num_classes": 10, "pretrained_cfg": {"mean": IMAGENET[0], "std": IMAGENET[1]}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = tmp_path if form == "folder" else tmp_path / "model.safetensors"
    mean, std = IMAGENET if form == "folder" else ((0.5,) * 3, (0.5,) * 3)
    options = FeaturesOptions(library="timm", model=None if form == "folder" else name)
    teacher = load_teacher(options, weights)
    with torch.no_grad():
        tokens = model.forward_features(by_hand(160, mean, std))[:, model.num_prefix_tokens :]
        assert torch.allclose(teacher.features(images(), (10, 10)).flatten(1, 2), tokens, atol=1e-4)
    save_file({"head.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CliptexError, match="do not match the teacher"):
        load_teacher(options, weights)


def test_a_teacher_of_open_clip_gives_its_own_patch_tokens(tmp_path, monkeypatch):
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 48, "patch_size": 12, "width": 32, "layers": 2, "head_width": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1},
    }
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    torch.manual_seed(0)
    model = open_clip.create_model("tiny").eval()
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    options = {"library": "open_clip", "model": "tiny"}
    with pytest.raises(CliptexError, match="set `mean` and `std`"):  # no published weights tell them
        load_teacher(FeaturesOptions(**options), tmp_path / "open_clip_model.safetensors")
    teacher = load_teacher(
        FeaturesOptions(**options, mean=IMAGENET[0], std=IMAGENET[1]), tmp_path / "open_clip_model.safetensors"
    )
    with torch.no_grad():
        out = model.visual.forward_intermediates(by_hand(48, *IMAGENET), normalize_intermediates=True)
        tokens = out["image_intermediates"][-1].permute(0, 2, 3, 1)
        assert torch.allclose(teacher.features(images(), (4, 4)), tokens, atol=1e-4)
        halved = functional.interpolate(tokens.permute(0, 3, 1, 2), (2, 2), mode="bilinear", antialias=True)
        assert torch.allclose(teacher.features(images(), (2, 2)), halved.permute(0, 2, 3, 1), atol=1e-4)


@pytest.mark.parametrize(
    ("over", "problem"),
    [
        ({"network": {"library": "timm"}, "weights": "trained"}, "is not trained here; use hub, url or local"),
        ({"network": {"library": "backbone"}, "weights": "hub", "repo": "a/b"}, "takes the workflow's own backbone"),
        ({"network": {"library": "open_clip"}, "weights": "hub", "repo": "a/b"}, "name of open_clip's architecture"),
        ({"network": {"library": "transformers"}, "weights": "random"}, "need the values of config.json"),
        ({"network": {"library": "backbone", "grid": [7, 0]}}, "grid"),
        ({"network": {"library": "backbone", "dims": 0}}, "dims"),
    ],
)
def test_a_wrong_teacher_is_named_before_the_first_job(over, problem):
    expert = {"plugin": "features", **over}
    config = Config.load(
        {"experts": {"teacher": expert}, "label_stores": {"depth": {"task": "depth", "expert": "teacher"}}}
    )
    found = [*problems(config)]
    assert any(problem in line for line in found), found
    assert any("makes features, but the task is 'depth'" in line for line in found)
    assert any("no `backbone`" in line for line in found) == (expert["network"]["library"] == "backbone")


# ---- principal components


def test_principal_components_are_those_of_numpys_svd():
    rng = np.random.default_rng(0)
    data = (rng.normal(size=(600, 12)) @ rng.normal(size=(12, 12)) + 100 * rng.normal(size=12)).astype(np.float32)
    fitted, kept = pca.fit(iter(np.split(data, 6)), 4)
    centred = data - data.mean(axis=0, dtype=np.float64)
    _, values, rows = np.linalg.svd(centred, full_matrices=False)
    assert fitted.variance_kept == pytest.approx((values[:4] ** 2).sum() / (values**2).sum(), rel=1e-6)
    assert np.allclose(np.abs((fitted.components * rows[:4]).sum(axis=1)), 1, atol=1e-4)
    assert (np.take_along_axis(fitted.components, np.abs(fitted.components).argmax(1)[:, None], 1) > 0).all()
    labels = fitted.labels(data)
    assert labels.var(axis=0).mean() == pytest.approx(1, rel=1e-3)
    assert len(kept) == 6 * np.ceil(100 / pca.KEPT_EACH)
    whole, _ = pca.fit([data], None)  # a rotation: angles between all channels stay
    some = whole.labels(data)
    assert np.allclose((some[0] @ some[1]) * whole.unit**2, centred[0] @ centred[1], rtol=1e-3)
    with pytest.raises(ValueError, match="13 components of 12 channels"):
        pca.fit([data], 13)


def test_channels_without_variance_have_a_step():
    data = np.zeros((50, 6), np.float32)
    data[:, 0] = np.arange(50)
    fitted, _ = pca.fit([data], None)
    assert min(fitted.scales(SIGMAS, LIMIT)) > 0 and np.isfinite(fitted.labels(data)).all()
    constant, _ = pca.fit([np.ones((4, 3), np.float32)], 2)
    assert constant.variance_kept == 1 and min(constant.scales(SIGMAS, LIMIT)) > 0


# ---- the task


@st.composite
def maps(draw, dims=5):
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    label = rng.normal(size=(draw(st.integers(1, 8)), draw(st.integers(1, 8)), dims)).astype(np.float32)
    label *= draw(st.sampled_from([0.1, 10, 1000]))
    holes = rng.random(label.shape[:2]) < draw(st.sampled_from([0, 0.3]))
    holes.flat[rng.integers(holes.size)] = False
    label[holes] = np.nan
    return label


@given(maps())
@settings(max_examples=40, deadline=None)
def test_codes_are_off_by_half_a_step_or_clipped(label):
    task = task_of()
    payload = task.encode(label)
    decoded = task.decode(payload, *label.shape[:2])
    scales = np.array(task.scales, np.float32)
    clipped = np.clip(label, -LIMIT * scales, LIMIT * scales)
    assert decoded.dtype == np.float32
    assert np.array_equal(np.isnan(decoded), np.isnan(label))
    assert np.nanmax(np.abs(decoded - clipped) / scales) <= 0.5 + 1e-3
    assert task.encode(decoded) == payload
    assert not task.differs(decoded, decoded).any()
    assert task.scalars(label)["coverage"] == pytest.approx(np.isfinite(label[..., 0]).mean())


@given(maps(), st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0.2, 0.5), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_a_flip_mirrors_the_crop_and_nothing_leaves_the_range(label, top, left, side, size):
    task = task_of()
    crop, mirrored = (task.crop(label, View(top, left, side, side, flip), size) for flip in (False, True))
    assert crop.shape == (min(size, 4), min(size, 4), 5) == task.missing(size).shape
    assert np.array_equal(crop[:, ::-1], mirrored, equal_nan=True)
    values = crop[np.isfinite(crop).all(-1)]
    assert np.isfinite(label).all(-1).all() <= np.isfinite(crop).all()
    if len(values):
        low, high = np.nanmin(label, axis=(0, 1)), np.nanmax(label, axis=(0, 1))
        assert (values >= low - 1e-3 * np.abs(low) - 1e-4).all() and (values <= high + 1e-3 * np.abs(high) + 1e-4).all()


def test_resampling_is_torchs_bilinear_with_antialiasing():
    label = np.random.default_rng(0).normal(size=(8, 6, 5)).astype(np.float32)
    for size in ((3, 4), (8, 6), (16, 9)):
        torchs = functional.interpolate(
            torch.from_numpy(label).permute(2, 0, 1)[None], size, mode="bilinear", antialias=True
        )[0].permute(1, 2, 0)
        assert np.allclose(task_of().resize(label, *size), torchs.numpy(), atol=1e-5)


def test_a_label_takes_the_promised_bytes():
    noise = np.random.default_rng(0).normal(size=(14, 14, 64)).astype(np.float32)
    assert len(TeacherFeatures().encode(noise)) <= 12_600


def test_the_loss_is_finite_and_invalid_cells_have_no_gradient():
    task = task_of()
    rng = np.random.default_rng(0)
    target = torch.from_numpy(rng.normal(size=(3, 4, 4, 5)).astype(np.float32))
    target[0], target[1, 0] = torch.nan, torch.nan
    target[2, 0, 0] = 0
    for start in (torch.zeros(3, 5, 4, 4), torch.randn(3, 5, 4, 4)):
        prediction = start.requires_grad_()
        loss = task.loss(prediction, target)
        (gradient,) = torch.autograd.grad(loss, prediction)
        assert loss.isfinite() and gradient.isfinite().all()
        assert (gradient[0] == 0).all() and (gradient[1, :, 0] == 0).all()
        assert (gradient[1, :, 1:] != 0).any() and gradient.abs().max() < 10
    perfect = target[1:, 1:].permute(0, 3, 1, 2)
    assert task.loss(perfect, target[1:, 1:]) < 0.01 < task.loss(-perfect, target[1:, 1:])
    only = task.with_loss({"cosine_weight": 0.0, "l1_weight": 1.0}, "here")
    smooth = functional.smooth_l1_loss(torch.zeros(2, 3, 4, 5), target[1:, 1:])
    assert torch.isclose(only.loss(torch.zeros(2, 5, 3, 4), target[1:, 1:]), smooth)
    assert task.loss(torch.ones(1, 5, 4, 4), target[:1]) == 0


def test_the_position_prior_is_the_mean_map():
    task = task_of()
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(4, 4, 5)).astype(np.float32)
    priors = torch.nn.ParameterDict({"features": torch.nn.Parameter(torch.zeros(5, 4, 4))})
    batches = [{"features": mean + 0.3 * rng.normal(size=(32, 4, 4, 5)).astype(np.float32)} for _ in range(40)]
    fit_position_prior(priors, {"features": task}, batches)
    found = priors["features"].detach().permute(1, 2, 0).numpy()
    assert task.quality([(found, mean)])["cosine"] > 0.98
    assert task.quality([(found, mean)])["explained_variance"] > 0.9


def test_a_picture_shows_three_channels_and_a_wrong_codec_is_not_taken():
    for dims in (2, 5):
        label = np.zeros((3, 4, dims), np.float32)
        label[0, 0], label[1, 1, 0] = np.nan, 100
        picture = task_of(dims).picture(label)
        assert picture.dtype == np.uint8 and picture.shape == (3, 4, 3)
        assert tuple(picture[0, 0]) == (64, 64, 64) and tuple(picture[1, 1]) == (255, 127, 127)
    codec = task_of().codec()
    assert TeacherFeatures.from_codec(json.loads(json.dumps(codec))).codec() == codec
    for wrong in ({"scales": [1.0]}, {"scales": [0.0] * 5}, {"dims": 10**9}, {"grid": [0]}, {"teacher": None}):
        assert TeacherFeatures.from_codec(codec | wrong).codec() == TeacherFeatures().codec()
    with pytest.raises(ValueError, match="every cell is invalid"):
        task_of().encode(task_of().missing(4))
    with pytest.raises(ValueError, match="features are float32"):
        task_of().encode(np.zeros((2, 2, 4), np.float32))


# ---- all of it


@pytest.fixture
def distilled(tiny):
    """The working directory `tiny` with a teacher in place of its experts."""
    shutil.rmtree(paths.LABELS)
    network = {"library": "timm", "model": "test_vit4", "input_size_px": 64, "dims": 8, "grid": [5, 6], "sample": 20}
    plain = tiny.model_dump(mode="json")
    plain |= {
        "experts": {"teacher": {"plugin": "features", "weights": "random", "network": network}},
        "label_stores": {"features": {"task": "features", "expert": "teacher"}},
        "models": {
            "clip": plain["models"]["clip"],
            "distilled": {"steps": 3, "tasks": {"features": 1.0}, "losses": {"features": {"l1_weight": 0.5}}},
        },
    }
    return Config.load(plain)


def test_from_shards_to_a_prediction(distilled):
    folder, store = paths.expert("teacher"), paths.labels("features")
    train_expert(distilled, "teacher", paths.EXPERT_RENDERS, folder, 0)
    with pytest.raises(CliptexError, match="run: cliptex fit-pca --name teacher"):
        label_batch(distilled, "features", 0, paths.SHARD_INDEX, folder, store)
    record = fit_pca(distilled, "teacher", paths.SHARD_INDEX, folder)
    first = sha256_file(folder / "pca.safetensors")
    assert record["dims"] == 8 and record["width"] == 96 and 0 < record["variance_kept"] < 1
    fit_pca(distilled, "teacher", paths.SHARD_INDEX, folder)
    assert sha256_file(folder / "pca.safetensors") == first == record["sha256"]

    label_batch(distilled, "features", 0, paths.SHARD_INDEX, folder, store)
    digests = {path.name: sha256_file(path) for path in store.glob("*.parquet")}
    index = index_labels(distilled, "features", paths.SHARD_INDEX, store)
    assert index["statistics"]["variance_kept"] == record["variance_kept"] == index["codec"]["teacher"]["variance_kept"]
    assert index["statistics"]["scalars"]["clipped"]["mean"] < 0.01
    row = _store_row(SimpleNamespace(experts={}), "features", index, {})
    assert f"{100 * record['variance_kept']:.1f} % of the teacher’s variance kept" in row["store"].note

    task = task_of_store(distilled, "features", store / "index.json")
    assert task.channels == 8 and task.missing(99).shape == (6, 6, 8)
    file = LabelFile(next(iter(sorted(store.glob("*.parquet")))), task)
    row = next(number for number in range(len(file)) if file.get(number))
    assert file.label(row).shape == (5, 6, 8)
    expert = load_expert("teacher", distilled.experts["teacher"], folder)
    findings = audit_labels(distilled, "features", paths.SHARD_INDEX, expert, store, samples=4)
    assert all(finding.agrees for finding in findings)

    loader = JointLoader(paths.SHARD_INDEX, {"features": (task, store / "index.json")}, distilled.train, 32, 0)
    batch = next(loader.batches(0))
    assert batch.targets["features"].shape == (4, 6, 6, 8)

    train(distilled, "clip", 0)
    train(distilled, "distilled", 0)
    heads, tasks = load_heads(paths.model("distilled", 0) / "heads.safetensors")
    assert tasks["features"].codec() == task.codec() and tasks["features"].options.l1_weight == 0.5
    assert heads.heads["features"].out_channels == 8
    logged = [json.loads(line) for line in (paths.model("distilled", 0) / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([line["features"] for line in logged]).all()

    shutil.rmtree(store)  # the same bytes again
    label_batch(distilled, "features", 0, paths.SHARD_INDEX, folder, store)
    assert {path.name: sha256_file(path) for path in store.glob("*.parquet")} == digests

    (folder / "pca.json").write_text(json.dumps(read_json(folder / "pca.json") | {"weights_sha256": "0"}))
    with pytest.raises(CliptexError, match="fitted to other weights"):
        load_expert("teacher", distilled.experts["teacher"], folder).task_parameters()


def test_the_backbone_is_a_teacher_as_it_is(tmp_path):
    body = timm.create_model("cliptex_resnet", features_only=True, out_indices=(1, 2, 3, 4))
    save_file({f"body.{name}": value for name, value in body.state_dict().items()}, tmp_path / "backbone.safetensors")
    settings = {"network": {"library": "backbone", "input_size_px": 64}, "backbone": tmp_path / "backbone.safetensors"}
    expert = find("experts", "features")(settings)
    expert.fit(tmp_path, 0)
    state, own = expert.state(), body.state_dict()
    assert state.keys() == own.keys() and all(torch.equal(state[name], value) for name, value in own.items())
    (found,) = expert.features([images()[0].permute(1, 2, 0).numpy()])
    assert found.shape == (14, 14, 320)
