"""Evaluation without training equals computations by hand: masks and regions by text."""

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from official_layouts import write_coco, write_panoptic, write_voc
from PIL import Image
from safetensors.numpy import load_file

from cliptex.cluster.check import problems
from cliptex.config import Config, Student
from cliptex.core.errors import CliptexError
from cliptex.core.plugins import find
from cliptex.evaluation.job import Job
from cliptex.evaluation.per_image import main_metric, per_image_path, read_per_image
from cliptex.evaluation.protocols.resolve import TRAINING_FREE, protocol_of, with_protocols
from cliptex.evaluation.training_free import run as training_free
from cliptex.models import clip as student
from cliptex.models.mmcv_ops import import_heads
from cliptex.report.differences import compare
from cliptex.report.gains import training_free_gains
from cliptex.report.gallery import evaluation_albums
from cliptex.report.gather import read_scores
from cliptex.report.integrity import check_metric

TINY = Student(
    architecture={
        "embed_dim": 16,
        "vision_cfg": {"image_size": 48, "patch_size": 12, "width": 32, "layers": 2, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
)
WITHOUT_BACKGROUND = {"last": {"tokens": "last"}, "maskclip": {"tokens": "value"}}


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        student.export(student.build(TINY, seed), TINY, folder / "clip" / f"seed{seed}")
    return folder


def config_of(benchmark: str, entry: dict, baselines=(), keep: int = 0, seeds=(0,)) -> Config:
    values = {"models": {"clip": {}}, "seeds": list(seeds), "training_free": {"benchmarks": {benchmark: entry}}}
    values["probes"] = {"baselines": list(baselines), "save_predictions": keep}
    return Config.load(values)


def evaluate(config: Config, name: str, models_dir, root, out):
    training_free.run(config, Job(name=name, models_dir=models_dir, benchmark_dir=root, out=out))
    return json.loads(out.read_text()), read_per_image(out.with_suffix(".per_image.npz"))


def layer_norm(x, weights, name):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def block_by_hand(x, weights, name, heads, attends):
    """A pre-norm transformer block on tokens [T, C]; without attention every token has its own value."""
    width, y = x.shape[1], layer_norm(x, weights, f"{name}.ln_1")
    qkv = y @ weights[f"{name}.attn.in_proj_weight"].T + weights[f"{name}.attn.in_proj_bias"]
    q, k, v = np.split(qkv, 3, axis=1)
    if attends:
        side, mixed = width // heads, []
        for head in range(heads):
            part = slice(head * side, (head + 1) * side)
            scores = q[:, part] @ k[:, part].T / math.sqrt(side)
            scores = np.exp(scores - scores.max(1, keepdims=True))
            mixed.append(scores / scores.sum(1, keepdims=True) @ v[:, part])
        v = np.concatenate(mixed, axis=1)
    x = x + v @ weights[f"{name}.attn.out_proj.weight"].T + weights[f"{name}.attn.out_proj.bias"]
    y = layer_norm(x, weights, f"{name}.ln_2")
    y = gelu(y @ weights[f"{name}.mlp.c_fc.weight"].T + weights[f"{name}.mlp.c_fc.bias"])
    return x + y @ weights[f"{name}.mlp.c_proj.weight"].T + weights[f"{name}.mlp.c_proj.bias"]


def tokens_by_hand(pixels, weights, value_path: bool) -> np.ndarray:
    """Unit projected patch tokens [h, w, D] of uint8 [48, 48, 3], float64."""
    image = (pixels / 255 - np.array(open_clip.OPENAI_DATASET_MEAN)) / np.array(open_clip.OPENAI_DATASET_STD)
    patches = image.reshape(4, 12, 4, 12, 3).transpose(0, 2, 4, 1, 3).reshape(16, -1)
    x = patches @ weights["visual.conv1.weight"].reshape(32, -1).T
    x = np.concatenate([weights["visual.class_embedding"][None], x]) + weights["visual.positional_embedding"]
    x = layer_norm(x, weights, "visual.ln_pre")
    x = block_by_hand(x, weights, "visual.transformer.resblocks.0", 2, attends=True)
    x = block_by_hand(x, weights, "visual.transformer.resblocks.1", 2, attends=not value_path)
    x = layer_norm(x, weights, "visual.ln_post") @ weights["visual.proj"]
    return (x / np.linalg.norm(x, axis=1, keepdims=True))[1:].reshape(4, 4, -1)


def texts_by_hand(folder, texts: list[str]) -> np.ndarray:
    """Unit embeddings [T, D] of the mean over the prompts."""
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokenizer, out = open_clip.get_tokenizer(f"local-dir:{folder}"), []
    for text in texts:
        with torch.no_grad():
            rows = model.encode_text(tokenizer([one(text) for one in open_clip.SIMPLE_IMAGENET_TEMPLATES])).numpy()
        mean = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(0)
        out.append(mean / np.linalg.norm(mean))
    return np.array(out)


def resized_by_hand(logits_hwK, height, width):
    """Bilinear, pixel centres, borders repeated: [H, W, K]."""

    def weights(cells, size):
        at = np.clip((np.arange(size) + 0.5) * cells / size - 0.5, 0, cells - 1)
        low = np.minimum(at.astype(int), cells - 1)
        high, share = np.minimum(low + 1, cells - 1), at - low
        out = np.zeros((size, cells))
        out[np.arange(size), low] += 1 - share
        out[np.arange(size), high] += share
        return out

    down, across = weights(logits_hwK.shape[0], height), weights(logits_hwK.shape[1], width)
    return np.einsum("Hh,Ww,hwk->HWk", down, across, logits_hwK)


def mmseg_miou(pairs, classes) -> float:
    """mIoU in percent by mmsegmentation's IoUMetric, not rounded."""
    metric = import_heads().IoUMetric(iou_metrics=["mIoU"])
    metric.dataset_meta = {"classes": classes}
    areas = [
        metric.intersect_and_union(
            torch.from_numpy(mask.astype(np.int64)), torch.from_numpy(truth.astype(np.int64)), len(classes), 255
        )
        for mask, truth in pairs
    ]
    hit, union = (sum(area[number] for area in areas) for number in (0, 1))
    return float(100 * np.nanmean((hit / union).numpy()))


@pytest.mark.parametrize("variant", ["last", "maskclip"])
def test_masks_by_text_equal_a_vision_transformer_written_out_and_mmsegmentations_iou(variant, models_dir, tmp_path):
    root, folder = tmp_path / "voc", models_dir / "clip" / "seed0"
    write_voc(root, 2, 6)
    config = config_of("voc", {"text_segmentation": {"variants": WITHOUT_BACKGROUND}}, keep=2)
    result, parts = evaluate(config, "voc", models_dir, root, tmp_path / "out.json")
    (row,) = [row for row in result["results"] if row["head"] == variant]
    data, weights = find("benchmarks", "voc")(root), load_file(folder / student.WEIGHTS_FILE)
    weights = {name: values.astype(np.float64) for name, values in weights.items()}
    texts, pairs = texts_by_hand(folder, data.class_names[1:]), []
    for sample in data.samples("eval"):
        view = np.asarray(Image.fromarray(sample["image"]).resize((48, 48), Image.Resampling.BICUBIC))
        cosines = tokens_by_hand(view, weights, value_path=variant == "maskclip") @ texts.T
        mask = 1 + resized_by_hand(cosines, *sample["mask"].shape).argmax(-1)
        pairs.append((mask, np.where(sample["mask"] == 0, 255, sample["mask"])))
    assert row["metrics"]["mIoU"] == pytest.approx(mmseg_miou(pairs, data.class_names), abs=0.01)
    assert len({int(value) for mask, _ in pairs for value in np.unique(mask)}) > 2
    assert main_metric("text_segmentation", parts.of("text_segmentation", f"{variant}/clip/seed0"))[0] == pytest.approx(
        row["metrics"]["mIoU"]
    )
    with np.load(tmp_path / "out.npz") as kept:
        number = kept["text_segmentation.rows"].tolist().index(f"{variant}/clip/seed0")
        for index in range(2):
            prediction = kept[f"text_segmentation.prediction_{index}"][number]
            assert (prediction != pairs[index][0]).mean() < 0.002  # where two classes are equal but for rounding


def test_regions_by_text_equal_a_computation_by_hand(models_dir, tmp_path):
    root, folder = tmp_path / "coco", models_dir / "clip" / "seed0"
    write_coco(root, 2, 7, height=48, width=60)
    config = config_of("coco", {}, keep=2)
    result, parts = evaluate(config, "coco", models_dir, root, tmp_path / "out.json")
    data, weights = find("benchmarks", "coco")(root), load_file(folder / student.WEIGHTS_FILE)
    weights = {name: values.astype(np.float64) for name, values in weights.items()}
    texts, model = texts_by_hand(folder, data.class_names), open_clip.create_model(f"local-dir:{folder}").eval()
    hits = {name: {} for name in ("boxes", "masks", "crops")}
    nearest = {name: [] for name in hits}
    for sample in data.samples("eval"):
        image = Image.fromarray(sample["image"])
        view = np.asarray(image.resize((48, 48), Image.Resampling.BICUBIC))
        tokens = tokens_by_hand(view, weights, value_path=False)
        for box, mask, label, crowd in zip(
            *(sample[key] for key in ("boxes", "masks", "labels", "crowd")), strict=True
        ):
            if crowd or box[3] == box[1]:
                continue
            shares = mask.reshape(4, 12, 4, 15).mean((1, 3))
            # as torchvision: the number of samples depends on rounding
            scale = np.array([4 / 60, 4 / 48, 4 / 60, 4 / 48], np.float32)
            crop = np.asarray(image.resize((48, 48), Image.Resampling.BICUBIC, box=tuple(box.tolist())))
            pixels = (crop / 255 - np.array(open_clip.OPENAI_DATASET_MEAN)) / np.array(open_clip.OPENAI_DATASET_STD)
            with torch.no_grad():
                whole = model.encode_image(torch.from_numpy(pixels).permute(2, 0, 1)[None].float())[0].numpy()
            found = {
                "boxes": roi_by_hand(tokens, box * scale),
                "masks": (tokens * shares[..., None]).sum((0, 1)),
                "crops": whole,
            }
            for name, embedding in found.items():
                cosines = texts @ (embedding / np.linalg.norm(embedding))
                order = np.argsort(-cosines, kind="stable")
                nearest[name].append((order[0], cosines[order[0]]))
                hits[name].setdefault(int(label), []).append((order[0] == label, label in order[:5]))
    for row in result["results"]:
        classes = hits[row["head"]].values()
        assert len(classes) == 3
        for number, metric in enumerate(("mean_top1", "mean_top5")):
            by_hand = 100 * np.mean([np.mean([hit[number] for hit in one]) for one in classes])
            assert row["metrics"][metric] == pytest.approx(by_hand, abs=0.01), row["head"]
        own = parts.of("region_classification", f"{row['head']}/clip/seed0")
        assert own["regions"].shape == (7, 80) and own["regions"].sum() == sum(map(len, classes))
    drawn = read_per_image(tmp_path / "out.thumbnails.npz").tasks
    for name, found in nearest.items():
        labels, cosines = zip(*sorted(found, key=lambda one: -one[1]), strict=True)
        kept = drawn[f"region_classification/{name}/clip/seed0"]
        order = np.argsort(-kept["scores"], kind="stable")
        np.testing.assert_allclose(kept["scores"][order], cosines, atol=1e-5)
        assert kept["labels"][order].tolist() == list(labels)
    assert result["chance"]["region_classification"]["mean_top1"] == 1.25


def roi_by_hand(tokens_hwD, box):
    """RoIAlign with one bin (He et al. 2017, as torchvision with aligned=True): ceil(side) samples an axis."""
    x0, y0, x1, y1 = box - np.float32(0.5)
    columns, rows = math.ceil(x1 - x0), math.ceil(y1 - y0)
    total = 0
    for row in range(rows):
        for column in range(columns):
            y, x = y0 + (row + 0.5) * (y1 - y0) / rows, x0 + (column + 0.5) * (x1 - x0) / columns
            y, x = max(y, 0), max(x, 0)
            top, left = min(int(y), 3), min(int(x), 3)
            bottom, right = min(top + 1, 3), min(left + 1, 3)
            dy, dx = (0 if top == 3 else y - top), (0 if left == 3 else x - left)
            total = total + (1 - dy) * ((1 - dx) * tokens_hwD[top, left] + dx * tokens_hwD[top, right])
            total = total + dy * ((1 - dx) * tokens_hwD[bottom, left] + dx * tokens_hwD[bottom, right])
    return total / (rows * columns)


def test_the_background_is_left_out_or_below_a_threshold_or_named(models_dir, tmp_path):
    write_voc(tmp_path / "voc", 2, 3)
    variants = {"none": {}, "sure": {"background": "threshold", "threshold": 1.0}}
    variants |= {"always": {"background": "threshold", "threshold": 0.0}, "twenty": {"background": "none"}}
    variants |= {"named": {"background": "prompts", "background_names": ["wall", "a cat"]}}
    section = {"variants": {"last": None, "maskclip": None, **variants}}
    config = config_of("voc", {"text_segmentation": section}, keep=3)
    result, parts = evaluate(config, "voc", models_dir, tmp_path / "voc", tmp_path / "out.json")
    with np.load(tmp_path / "out.npz") as kept:
        rows = kept["text_segmentation.rows"].tolist()
        masks = {
            row.partition("/")[0]: kept["text_segmentation.prediction_0"][number] for number, row in enumerate(rows)
        }
    assert set(masks) == {"none", "sure", "always", "twenty", "named"}
    assert (masks["sure"] == 0).all() and (masks["none"] > 0).all() and (masks["always"] == masks["none"]).all()
    assert set(np.unique(masks["named"])) - {0} <= set(np.unique(masks["none"]))
    assert ((masks["named"] == 0) | (masks["named"] == masks["none"])).all()
    none, always = (parts.of("text_segmentation", f"{name}/clip/seed0") for name in ("none", "always"))
    assert none["truth"][:, 0].sum() == 0 < always["truth"][:, 0].sum()
    assert (none["truth"][:, 1:] == always["truth"][:, 1:]).all()
    assert len(set(result["details"]["text_segmentation"]["prompts_sha256"].values())) == 2


def test_windows_average_cosines_and_one_window_is_the_squashed_image(models_dir, tmp_path):
    write_voc(tmp_path / "voc", 2, 3, height=48, width=48)
    out = {}
    for name, given in {
        "squash": {"fit": "squash"},
        "one": {"fit": "windows"},
        "several": {"fit": "windows", "resize_px": 96, "stride_px": 24},
    }.items():
        section = {"input": given, "variants": WITHOUT_BACKGROUND}
        config = config_of("voc", {"text_segmentation": section})
        out[name] = evaluate(config, "voc", models_dir, tmp_path / "voc", tmp_path / f"{name}.json")
    squash, one, several = (out[name][1].of("text_segmentation", "last/clip/seed0") for name in out)
    # resized twice, so that single pixels differ
    assert np.abs(squash["predicted"] - one["predicted"]).sum() < 0.01 * squash["predicted"].sum()
    assert np.abs(squash["predicted"] - several["predicted"]).sum() > 0.01 * squash["predicted"].sum()
    assert "windows of 48 px every 24 px, shorter side 96" in out["several"][0]["results"][0]["protocol"]
    with pytest.raises(CliptexError, match=r"input\.resize_px: 40 is less than size_px|resize_px: 40 is less"):
        entry = {"text_segmentation": {"input": {"fit": "windows", "size_px": 48, "resize_px": 40}}}
        protocol_of("voc", entry, evaluator=TRAINING_FREE)


def test_equal_weights_are_evaluated_once_and_baselines_need_a_text_tower(models_dir, tmp_path):
    write_voc(tmp_path / "voc", 2, 3)
    config = config_of("voc", {}, baselines=["random", "position"], seeds=(0, 1))
    result, parts = evaluate(config, "voc", models_dir, tmp_path / "voc", tmp_path / "out.json")
    names = {f"{row['model']}/seed{row['seed']}" for row in result["results"]}
    assert (
        names
        == {"random/seed0", "random/seed1", "clip/seed0", "clip/seed1"}
        == set(result["provenance"]["model_sha256"])
    )
    assert len(result["results"]) == 8 == len(parts.rows_of["text_segmentation"])
    assert {row["protocol_name"] for row in result["results"]} == {"miniature"}
    assert result["num_eval"] == 3 and result["num_train"] == 0 and len(parts.ids) == 3


def test_mistakes_are_found_before_any_job(models_dir, tmp_path):
    def message(benchmark, entry):
        with pytest.raises(CliptexError) as error:
            with_protocols(config_of(benchmark, entry))
        return str(error.value)

    assert "training_free.benchmarks.imagenet: imagenet has the data of none of text_seg" in message("imagenet", {})
    assert "voc.region_classification: voc has no such task; it has text_seg" in message(
        "voc", {"region_classification": {}}
    )
    assert "training_free.benchmarks.voc.text_segmentation.variants.x" in message(
        "voc", {"text_segmentation": {"variants": {"x": {"background": "threshold"}}}}
    )
    assert "voc.max_train" in message("voc", {"max_train": 3})
    with pytest.raises(CliptexError, match=r"probes\.benchmarks\.voc\.text_segmentation: voc has no such task"):
        protocol_of("voc", {"text_segmentation": {}})
    write_voc(tmp_path / "voc", 2, 2)
    config = config_of("voc", {"text_segmentation": {"names": {"televison": ["television"]}}})
    with pytest.raises(CliptexError, match=r"text_segmentation\.names: 'televison' is not one of the 20 classes"):
        evaluate(config, "voc", models_dir, tmp_path / "voc", tmp_path / "out.json")


def test_towers_that_cannot_be_compared_with_text_are_told_by_the_check():
    timm = {"embed_dim": 16, "text_cfg": TINY.architecture["text_cfg"]}
    timm["vision_cfg"] = {
        "timm_model_name": "vit_tiny_patch16_224",
        "image_size": 32,
        "timm_pool": "",
        "timm_proj": "linear",
    }
    config = config_of("voc", {}).model_copy(update={"student": Student(architecture=timm)})
    (problem,) = [line for line in problems(config) if "training_free" in line]
    assert (
        problem.startswith("training_free.benchmarks.voc.text_segmentation: timm's towers")
        and "open_clip's own" in problem
    )
    own = config.model_copy(update={"student": TINY})
    assert [line for line in problems(own) if "training_free" in line] == []


def test_stuff_is_classified_among_all_categories_of_the_panoptic_annotations(models_dir, tmp_path):
    root = tmp_path / "coco"
    write_coco(root, 2, 4, height=48, width=60)
    entry = {"region_classification": {"classes": "panoptic", "variants": {"crops": None}}}
    with pytest.raises(CliptexError, match=r"panoptic_val2017\.json: not found; .* --part panoptic"):
        evaluate(config_of("coco", entry), "coco", models_dir, root, tmp_path / "out.json")
    samples = find("benchmarks", "coco")(root).samples("eval")
    write_panoptic(root, {sample["id"]: (48, 60) for sample in samples})
    result, parts = evaluate(config_of("coco", entry), "coco", models_dir, root, tmp_path / "out.json")
    assert result["class_names"][80:] == ["sky-other-merged", "grass-merged"]
    assert sorted((row["task"], row["head"]) for row in result["results"]) == [
        ("region_classification", "boxes"),
        ("region_classification", "masks"),
        ("stuff_classification", "masks"),
    ]
    stuff = parts.of("stuff_classification", "masks/clip/seed0")
    assert stuff["regions"].sum(0)[80:].tolist() == [4, 4] and stuff["regions"].sum() == 8
    labels, masks = find("benchmarks", "coco")(root).stuff("eval").of(samples[0]["id"], (48, 60))
    assert labels.tolist() == [0, 1] and masks.sum((1, 2)).tolist() == [1180, 1180] and masks[0, :20, 1:].all()
    path = root / "annotations" / "panoptic_val2017.json"
    whole = path.read_text()
    for damaged in (whole.replace('"segments_info"', '"x"'), whole.replace('"id": 70000', '"id": "a"'), "[]"):
        path.write_text(damaged)
        with pytest.raises(CliptexError, match=r"panoptic_val2017\.json: .*; .* --part panoptic"):
            find("benchmarks", "coco")(root).stuff("eval")
    path.write_text(whole)
    with pytest.raises(CliptexError, match=r"its image 61 x 48; .* --part panoptic"):
        find("benchmarks", "coco")(root).stuff("eval").of(samples[0]["id"], (48, 61))


def test_the_report_reads_checks_and_draws_results_without_training(models_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = tmp_path / "results/models"
    for name, source in {"clip": 0, "clip_ft": 0, "cliptex": 1}.items():
        shutil.copytree(models_dir / "clip" / f"seed{source}", models / name / "seed0")
    write_voc(tmp_path / "resources/voc", 2, 8)
    values = {"models": {name: {} for name in ("clip", "clip_ft", "cliptex")}, "probes": {"baselines": ["random"]}}
    config = Config.load({**values, "training_free": {"benchmarks": {"voc": {}}}, "report": {"resamples": 100}})
    training_free.run(config, Job(name="voc"))
    scores = read_scores(tmp_path / "results/training_free/voc.json")
    for row in scores.results:
        check_metric(scores.path, per_image_path(scores.head_path(row)), row, scores.parts(row))
    results = SimpleNamespace(
        yardstick=(), config=config, workdir=tmp_path, models=list(values["models"]), baselines=["random", "position"]
    )
    results.probes, results.zeroshot, results.training_free = {}, {}, {"voc": scores}
    gains = training_free_gains(results)
    assert [(gain.benchmark, gain.task, gain.head) for gain in gains] == [
        ("voc", "text_segmentation", "last"),
        ("voc", "text_segmentation", "maskclip"),
    ]
    assert gains[0].draws["cliptex"].shape == (100,) and set(gains[0].values) == {"random", *values["models"]}
    assert gains[0].label == "Pascal VOC segmentation by text, patch tokens"
    (comparison,) = compare(results)
    assert comparison.differences.shape == (8,)
    albums = evaluation_albums(results, [comparison])
    assert albums.missing == [] and len(albums.spread[0].items) == 6
    assert len(albums.spread[0].items[0].images) == 2 + 3 and "without training" in albums.spread[0].note
    scores.results[0].metrics["mIoU"] += 1
    with pytest.raises(CliptexError, match="put the file of that run back"):
        check_metric(scores.path, per_image_path(scores.path), scores.results[0], scores.parts(scores.results[0]))
