"""Probes: metrics against independent computations, solvers against scikit-learn, and that nothing leaks."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from official_layouts import write_ade20k, write_coco, write_imagenet, write_nyuv2, write_voc
from PIL import Image
from tiny import TINY

from cliptex.config import Config, Student
from cliptex.core.errors import CliptexError
from cliptex.core.files import sha256_file
from cliptex.core.plugins import find
from cliptex.evaluation import probe
from cliptex.evaluation.job import Job
from cliptex.evaluation.measures import measure
from cliptex.evaluation.metrics.normals import normals_metrics
from cliptex.evaluation.metrics.ranking import top_metrics
from cliptex.evaluation.per_image import main_metric, per_image_path, read_per_image
from cliptex.evaluation.probes import features as probe_features
from cliptex.evaluation.probes import training
from cliptex.evaluation.probes.feature_cache import FeatureCache, StoredFeatures
from cliptex.evaluation.probes.feature_plan import plan_features
from cliptex.evaluation.probes.features import Features, batches_on, split_holdout, standardised, statistics
from cliptex.evaluation.probes.heads import classification, ridge
from cliptex.evaluation.probes.heads.classification import fit_logistic, probe_classification
from cliptex.evaluation.probes.heads.depth import probe_depth
from cliptex.evaluation.probes.heads.detection import detect, evaluate_detections, train_detector, training_objects
from cliptex.evaluation.probes.heads.maps import resized
from cliptex.evaluation.probes.heads.normals import probe_normals
from cliptex.evaluation.probes.heads.segmentation import SegmentationData, probe_segmentation, resized_argmax
from cliptex.evaluation.probes.parts import Part, Reader
from cliptex.evaluation.probes.tasks import built_in, probe_task
from cliptex.evaluation.probes.training import batches, candidates
from cliptex.evaluation.probes.views import ImageView
from cliptex.evaluation.protocols.resolve import (
    SHIPPED,
    Entry,
    ProtocolFile,
    protocol_of,
    resolve,
    with_protocols,
    with_sections,
)
from cliptex.evaluation.results import tabulate
from cliptex.evaluation.targets import kinds, probe_files
from cliptex.evaluation.thumbnails import thumbnails_path
from cliptex.evaluation.training_free import tasks as training_free_tasks
from cliptex.models import clip as student
from cliptex.models.encoders import centre_crop, load_encoder, squash

pytestmark = pytest.mark.xdist_group("probes")


def miniature(benchmark: str, **changes) -> Entry:
    """The miniature's protocol for a benchmark, with changes to it."""
    return protocol_of(benchmark, changes)


def head_of(task: str, name: str, **changes):
    """A head of the miniature's protocol, with changes to it."""
    benchmark = {"semantic_segmentation": "voc", "detection": "coco", "classification": "imagenet"}.get(task, "nyuv2")
    return getattr(miniature(benchmark, **{task: {"heads": {name: changes}}}), task).heads[name]


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory):
    """Two exported models of a tiny architecture."""
    folder = tmp_path_factory.mktemp("models")
    for seed, model in enumerate(("clip", "cliptex")):
        student.export(student.build(TINY, seed), TINY, folder / model / "seed0")
    return folder


@pytest.fixture(scope="session")
def four_blocks(tmp_path_factory):
    """A model of four blocks, as some protocols need."""
    folder = tmp_path_factory.mktemp("deeper")
    vision = {**TINY.architecture["vision_cfg"], "layers": 4}
    deeper = Student(architecture={**TINY.architecture, "vision_cfg": vision})
    student.export(student.build(deeper, 0), deeper, folder / "clip" / "seed0")
    return folder


# Metrics


def test_identical_normals_are_at_zero_degrees_and_not_nan():
    normals = np.array([[[0.6, 0, 0.8]]], np.float32) * np.float32(1.0000001)
    assert normals_metrics([(normals, normals)])["mean"] == pytest.approx(0, abs=0.05)


def test_top_metrics_count_the_label_among_the_first_five():
    ranking = np.array([[3, 1, 2, 0, 4], [1, 3, 2, 0, 4], [9, 8, 7, 6, 5], [5, 6, 7, 8, 3]])
    assert top_metrics(ranking, np.array([3, 3, 3, 3])) == {"top1": 25.0, "top5": 75.0}


def test_average_precision_of_no_detections_is_zero():
    images = [{"id": 1, "height": 8, "width": 8, "file_name": "1.jpg"}]
    none = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int), "scores": np.zeros(0), "masks": np.zeros((0, 8, 8))}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0}
    data = {"images": images, "annotations": [box], "categories": [{"id": 1, "name": "a"}]}
    sizes = {"AP": 0, "AP50": 0, "AP75": 0, "APs": 0, "APm": None, "APl": None}
    for kind in ("bbox", "segm"):
        assert evaluate_detections(data, [1], [none], kind)[0] == sizes  # pycocotools says -1 where there is no object
        assert set(evaluate_detections(data | {"annotations": []}, [1], [none], kind)[0].values()) == {None}
    medium = {"APs": 0, "APm": 0, "APl": None}  # both bounds belong to a range
    assert sizes | medium == evaluate_detections(data | {"annotations": [box | {"area": 1024}]}, [1], [none], "bbox")[0]


# Solvers


def test_ridge_equals_scikit_learn_and_moments_add_up():
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(0)
    x = rng.normal(2, 3, (200, 5)).astype(np.float32)
    y = (x @ rng.normal(size=(5, 2)) + rng.normal(size=(200, 2)) + 4).astype(np.float32)
    parts = [(torch.from_numpy(x[rows]), torch.from_numpy(y[rows])) for rows in (slice(0, 70), slice(70, None))]
    sums = ridge.added(ridge.moments(iter(parts[:1])), ridge.moments(iter(parts[1:])))
    for penalty, (weights, bias) in zip((1e-3, 1.0, 50.0), ridge.ridge(sums, (1e-3, 1.0, 50.0)), strict=True):
        official = Ridge(alpha=penalty * 200).fit(x, y)
        np.testing.assert_allclose(weights.numpy().T, official.coef_, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(bias.numpy(), official.intercept_, rtol=1e-3, atol=1e-3)


def test_logistic_regression_equals_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6)).astype(np.float32)
    y = (x @ rng.normal(size=(6, 4)) + rng.gumbel(size=(300, 4))).argmax(1)
    for penalty in (1e-1, 1e-3):
        weights = fit_logistic(torch.from_numpy(x), torch.from_numpy(y), 4, penalty, 200).numpy()
        official = LogisticRegression(C=1 / (penalty * 300), max_iter=2000, tol=1e-8).fit(x, y)
        np.testing.assert_allclose(weights[:-1].T, official.coef_, atol=2e-3)


def test_a_solver_gives_the_same_result_wherever_its_features_are_held(monkeypatch):
    monkeypatch.setattr(classification, "CHUNK", 100)
    x, labels = torch.randn(330, 6).half().numpy(), torch.arange(330) % 4
    source, split = StoredFeatures(x[:, None], None), split_holdout(330, 0.2, 0)
    options = head_of("classification", "linear")
    solved = []
    # as float32 in memory; as stored, in memory; from a file; on a GPU with space for them
    for memory_bytes, free in ((1e9, 0), (330 * 6 * 2, 0), (1, 0), (1, 1e9)):
        monkeypatch.setattr(probe_features, "free_bytes", lambda device, free=free: free)
        (values,) = standardised([source], None, memory_bytes=memory_bytes)
        held = probe_features.held_on(values, torch.device("cpu"))
        assert isinstance(values, torch.Tensor) == (memory_bytes == 1e9)
        assert isinstance(held, torch.Tensor) == (memory_bytes == 1e9 or free > 0)
        solved.append(classification.solve_logistic(values, labels, 4, options, split))
    for weights, chosen in solved[1:]:
        assert torch.equal(weights, solved[0][0]) and chosen == solved[0][1]


def test_regression_and_resizing_commute():
    features = torch.randn(2, 5, 4, 4)
    weights, bias = torch.randn(5, 3), torch.randn(3)
    small = ridge.regressed(features, (weights, bias))
    large = F.interpolate(features, size=(11, 9), mode="bilinear", align_corners=False)
    expected = torch.einsum("nchw,ct->nhwt", large, weights) + bias
    np.testing.assert_allclose(resized(small[1], (11, 9)), expected[1], atol=1e-5)


@pytest.mark.parametrize(("classes", "height", "width"), [(3, 50, 33), (150, 20, 41), (21, 5, 6)])
def test_argmax_after_resizing_equals_the_plain_computation(classes, height, width):
    logits = torch.randn(classes, 7, 9, generator=torch.Generator().manual_seed(classes))
    plain = F.interpolate(logits[None], size=(height, width), mode="bilinear", align_corners=False)[0].argmax(0)
    np.testing.assert_array_equal(resized_argmax(logits, height, width), plain)


def test_argmax_of_equal_logits_is_the_first_class():
    assert (resized_argmax(torch.zeros(4, 2, 2), 5, 5) == 0).all()


def rows(features, cls=None) -> StoredFeatures:
    """Features [V, C, h, w] as they are kept, with the class tokens [V, C] before them if there are any."""
    tokens = features.flatten(2).transpose(1, 2)
    tokens = tokens if cls is None else torch.cat([cls[:, None], tokens], 1)
    return StoredFeatures(tokens.contiguous().numpy(), None)


@pytest.mark.parametrize("memory_bytes", [1e9, 1])
def test_standardised_features_have_zero_mean_and_unit_variance_over_the_training_split(memory_bytes):
    train, other = torch.randn(50, 4, 3, 3) * 7 + 2, torch.randn(20, 4, 3, 3)
    train[:, 2] = 500.0  # a channel that does not vary
    scaled, scaled_other = standardised([rows(train), rows(other)], (3, 3), memory_bytes=memory_bytes)
    assert isinstance(scaled, torch.Tensor) == (memory_bytes > 1) and scaled.shape == (50, 4, 3, 3)
    scaled, scaled_other = scaled[:], scaled_other[torch.arange(20)]
    kept = [0, 1, 3]
    torch.testing.assert_close(scaled[:, kept].mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled[:, kept].var((0, 2, 3), correction=0), torch.ones(3))
    assert (scaled[:, 2] == 0).all() and (scaled_other[:, 2] == 0).all()
    expected = (other[:, 0] - train[:, 0].mean()) / train[:, 0].std(correction=0)
    torch.testing.assert_close(scaled_other[:, 0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("cls", [False, True])
def test_stored_features_become_what_they_were_where_they_are_used(precision, cls, tmp_path):
    tokens, cache = torch.randn(9, 6 + cls, 5) * 3, FeatureCache(tmp_path, 1e9)
    with cache.new("a", precision, 1, {}) as writer:
        writer.append(tokens)
    source = cache.find("a")
    mean, scale = statistics(source, cls)
    features = Features(source, (2, 3), cls, mean, scale)
    index = np.array([7, 0, 3, 3])
    # as NumPy computes it, one operation after the other in float32
    values = np.array(source.tokens[index]).astype(np.float32)
    if precision == "int8":
        values *= source.scales[index][:, None]
    if cls:
        values = np.concatenate([values[:, 1:], values[:, :1].repeat(6, 1)], 2)
    expected = ((values - mean.numpy()) * scale.numpy()).transpose(0, 2, 1).reshape(4, -1, 2, 3)
    assert np.array_equal(features[index].numpy(), expected)
    assert features.load(index)[0].dtype == getattr(
        torch, {"fp32": "float32", "fp16": "float16"}.get(precision, precision)
    )
    # as a GPU does: all views at once; and read ahead, also of some views and of a copy in memory
    index = torch.from_numpy(index)
    for those in (features, features.take(np.arange(9)), Features(source.in_memory(), (2, 3), cls, mean, scale)):
        read = list(batches_on(those, [index, slice(2, 4), index], "cpu"))
        assert [len(part) for part in read] == [4, 2, 4] and torch.equal(read[1], features[2:4])
        assert all(np.array_equal(part.numpy(), expected) for part in read[::2])
    loaded = features.load(index)
    if precision == "fp32":
        loaded = loaded[0].requires_grad_(), None
        (total := features.standardised(loaded).sum()).backward()
        assert np.array_equal(features.standardised(loaded).detach().numpy(), expected) and total.isfinite()
        assert loaded[0].grad.abs().min() > 0


def test_the_class_token_stands_beside_every_cell():
    features, cls = torch.randn(6, 2, 3, 4), torch.randn(6, 2)
    (plain,) = standardised([rows(features, cls)], (3, 4), cls=True, standardise=False)
    torch.testing.assert_close(plain, torch.cat([features, cls[..., None, None].expand(6, 2, 3, 4)], 1))
    (scaled,) = standardised([rows(features, cls)], (3, 4), cls=True, memory_bytes=0)
    torch.testing.assert_close(scaled[:].var((0, 2, 3), correction=0), torch.ones(4))
    torch.testing.assert_close(scaled.take(np.array([4, 1]))[:], scaled[:][[4, 1]])


def test_batches_go_through_the_training_set_again_and_again():
    drawn = torch.cat(batches(10, 4, 10, torch.Generator().manual_seed(0)))
    assert len(drawn) == 40 and torch.bincount(drawn).tolist() == [4] * 10


# Choices and leaks


def test_holdout_and_fitting_part_are_disjoint_and_repeatable():
    fit, held = split_holdout(100, 0.2, seed=3)
    assert len(held) == 20 and sorted([*fit, *held]) == list(range(100))
    np.testing.assert_array_equal(split_holdout(100, 0.2, seed=3)[1], held)
    assert split_holdout(2, 0.01, 0)[1].size == 1 and split_holdout(2, 0.99, 0)[0].size == 1


def test_the_evaluation_split_has_no_say_in_hyper_parameters():
    torch.manual_seed(0)
    train = torch.randn(60, 8)
    labels = (train[:, 0] > 0).long().tolist()
    task, split = miniature("imagenet").classification, split_holdout(60, 0.25, 0)
    a = probe_classification(train, torch.randn(30, 8), labels, [0] * 30, 2, task, "linear", split, 0, 0)
    b = probe_classification(train, torch.randn(30, 8), labels, [1] * 30, 2, task, "linear", split, 0, 0)
    assert a.hyperparameters == b.hyperparameters
    maps, depths = torch.randn(20, 8, 4, 4), list(np.random.default_rng(0).uniform(1, 8, (20, 24, 24)))
    task = miniature("nyuv2").depth
    c, d = (
        probe_depth(maps, maps, depths, other, task, "linear", split_holdout(20, 0.25, 0), 0, 0)
        for other in (depths, [depth * 0 + 9 for depth in depths])
    )
    assert c.hyperparameters == d.hyperparameters and c.metrics != d.metrics


def test_penalty_is_the_one_with_the_smallest_loss_on_the_holdout_and_all_images_are_refitted_with_it():
    torch.manual_seed(1)
    train, evaluated = torch.randn(60, 40), torch.randn(100, 40)
    rule = torch.randn(40)
    train_labels, eval_labels = ((x @ rule + 4 * torch.randn(len(x)) > 0).long().tolist() for x in (train, evaluated))

    def judge(*grid):
        task = miniature("imagenet", classification={"heads": {"linear": {"penalties": grid}}}).classification
        split = split_holdout(60, 0.3, 0)
        return probe_classification(train, evaluated, train_labels, eval_labels, 2, task, "linear", split, 0, keep=100)

    several = judge(1e-6, 1e-1, 1.0)
    losses, best = several.hyperparameters["holdout_log_loss"], several.hyperparameters["penalty"]
    assert losses[str(best)] == min(losses.values()) < losses["1e-06"]
    alone = judge(best)
    np.testing.assert_array_equal(several.predictions["prediction"], alone.predictions["prediction"])
    assert several.metrics["top1"] == alone.metrics["top1"] > 60


def planted_masks(seed, count, classes, side=4, size=48):
    """Random masks of `side` x `side` blocks, and features that tell the class of each block."""
    blocks = torch.from_numpy(np.random.default_rng(seed).integers(0, classes, (count, side, side)))
    masks = blocks.repeat_interleave(size // side, 1).repeat_interleave(size // side, 2).numpy().astype(np.uint8)
    return F.one_hot(blocks, classes).permute(0, 3, 1, 2).float(), masks


@pytest.mark.parametrize("head", ["linear", "deeplabv3", "pspnet"])
def test_an_encoder_that_tells_the_classes_gets_nearly_everything(head):
    (train, train_masks), (evaluated, eval_masks) = planted_masks(0, 80, 4), planted_masks(1, 40, 4)
    # away from block borders, where bilinear resizing of any logits must guess
    truth = eval_masks.copy()
    inner = np.zeros((12, 12), bool)
    inner[3:9, 3:9] = True
    truth[:, ~np.tile(inner, (4, 4))] = 255
    data = SegmentationData(train_masks, list(truth), 4)
    options = head_of("semantic_segmentation", head, batch_size=16)
    informed = probe_segmentation(
        *standardised([rows(train), rows(evaluated)], (4, 4)), data, options, split_holdout(80, 0.2, 0), 0, keep=2
    )
    assert informed.metrics["mIoU"] > 97
    assert set(informed.predictions) == {"prediction_0", "truth_0", "prediction_1", "truth_1"}
    blind = probe_segmentation(
        torch.zeros_like(train),
        torch.zeros_like(evaluated),
        data,
        options.model_copy(update={"steps": 10}),
        split_holdout(80, 0.2, 0),
        0,
        0,
    )
    assert blind.metrics["mIoU"] < 30


def test_learning_rate_is_chosen_on_the_holdout():
    (train, masks), (evaluated, eval_masks) = planted_masks(0, 60, 3), planted_masks(1, 20, 3)
    options = head_of("semantic_segmentation", "linear", steps=40, learning_rates=[1e-7, 3e-2])
    data = SegmentationData(masks, list(eval_masks), 3)
    outcome = probe_segmentation(train, evaluated, data, options, split_holdout(60, 0.3, 0), 0, 0)
    assert outcome.hyperparameters["learning_rate"] == 3e-2
    scores = outcome.hyperparameters["holdout_mIoU"]
    assert scores["rate 0.03, decay 0.0001"] > scores["rate 1e-07, decay 0.0001"]


def test_an_encoder_that_tells_depth_and_normals_gets_nearly_everything():
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(1, 8, (40, 1, 4, 4)).astype(np.float32))
    turned = torch.from_numpy(rng.normal(size=(40, 3, 4, 4)).astype(np.float32))
    depths = list(F.interpolate(coarse, size=(30, 42), mode="bilinear", align_corners=False)[:, 0].numpy())
    normals = F.interpolate(turned, size=(30, 42), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    normals = list(F.normalize(normals, dim=-1).numpy())
    depths[0][:5], normals[0][:5] = np.nan, np.nan
    features = torch.cat([coarse, turned, torch.randn(40, 4, 4, 4)], 1)
    train, evaluated = standardised([rows(features[:30]), rows(features[30:])], (4, 4))
    split = split_holdout(30, 0.2, 0)
    penalties = {"heads": {"linear": {"penalties": [1e-8, 1e-2]}}}
    both = miniature("nyuv2", depth=penalties, normals=penalties)
    depth = probe_depth(train, evaluated, depths[:30], depths[30:], both.depth, "linear", split, 0, keep=1)
    assert depth.hyperparameters["target"] == "metric" and depth.hyperparameters["penalty"] == 1e-8
    assert depth.metrics["delta1"] > 99 and depth.metrics["rmse"] < 0.1
    assert depth.predictions["depth_prediction_0"].shape == (30, 42)
    # normalising is not linear, so a regression of unit vectors is near, not exact
    informed = probe_normals(train, evaluated, normals[:30], normals[30:], both.normals, "linear", split, 0, keep=1)
    assert informed.metrics["mean"] < 15
    blind = probe_normals(
        train * 0, evaluated * 0, normals[:30], normals[30:], both.normals, "linear", split, 0, keep=0
    )
    assert blind.metrics["mean"] > 60


def test_depth_outside_the_range_is_neither_learned_nor_judged():
    features = torch.randn(20, 3, 4, 4)
    depths = [np.full((24, 24), 2.0, np.float32) for _ in range(20)]
    for depth in depths:
        depth[:, :12] = 50.0
    task = miniature("nyuv2", depth={"heads": {"linear": {"penalties": [1.0]}}}).depth
    split = split_holdout(20, 0.2, 0)
    informed = probe_depth(features, features, depths, depths, task, "linear", split, 0, 0)
    assert informed.metrics["rmse"] == pytest.approx(0, abs=1e-3)


def test_eigen_crop_needs_its_image_size():
    features, depths = torch.randn(4, 3, 4, 4), [np.full((24, 24), 2.0, np.float32)] * 4
    task = miniature("nyuv2", depth={"crop": "eigen"}).depth
    with pytest.raises(CliptexError, match=r"crop.*480 x 640"):
        probe_depth(features, features, depths, depths, task, "linear", split_holdout(4, 0.25, 0), 0, 0)


def planted_objects(seed, count, side=8, size=64):
    """One square of one of two classes on whole cells, and features that tell where it is and which class."""
    rng = np.random.default_rng(seed)
    features, samples = torch.zeros(count, 6, side, side), []
    ramp = torch.linspace(-1, 1, side)
    features[:, 4], features[:, 5] = ramp, ramp[:, None]
    for index in range(count):
        x, y, label = *rng.integers(0, side - 4, 2), rng.integers(2)
        features[index, label, y : y + 4, x : x + 4] = 1
        features[index, 2, y : y + 4, x : x + 4] = 1
        cell = size // side
        mask = np.zeros((1, size, 2 * size), bool)
        mask[:, y * cell : (y + 4) * cell, 2 * x * cell : 2 * (x + 4) * cell] = True
        samples.append(
            {
                "image": np.zeros((size, 2 * size, 3), np.uint8),
                "boxes": np.array([[2 * x, y, 2 * x + 8, y + 4]], np.float32) * cell,
                "labels": np.array([label]),
                "masks": mask,
                "crowd": np.array([False]),
            }
        )
    return features, samples


def test_an_encoder_that_tells_the_objects_is_near_in_boxes_and_masks():
    (train, train_samples), (evaluated, eval_samples) = planted_objects(0, 64), planted_objects(1, 24)
    options = head_of("detection", "mask_rcnn", steps=100, batch_size=8, learning_rates=[5e-3], proposals=20)
    objects = [training_objects(one, (128, 128), ImageView(0, 0, 64, 128)) for one in train_samples]
    detector = train_detector(train, objects, 2, options, candidates(options)[0], seed=0)
    found = detect(detector, evaluated, [(64, 128)] * 24)
    annotations = []
    for index, one in enumerate(eval_samples):
        x0, y0, x1, y1 = one["boxes"][0].tolist()
        annotations.append(
            {
                "id": index + 1,
                "image_id": index,
                "category_id": int(one["labels"][0]) * 5 + 3,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": 0,
                "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
            }
        )
    images = [{"id": index, "height": 64, "width": 128, "file_name": str(index)} for index in range(24)]
    truth = {"images": images, "annotations": annotations, "categories": [{"id": n, "name": str(n)} for n in (8, 3)]}
    assert evaluate_detections(truth, range(24), found, "bbox")[0]["AP50"] > 80
    assert evaluate_detections(truth, range(24), found, "segm")[0]["AP50"] > 80


def test_training_objects_leave_out_crowds_and_live_in_the_virtual_frame():
    sample = {
        "image": np.zeros((32, 64, 3), np.uint8),
        "boxes": np.array([[0, 0, 32, 16], [8, 8, 16, 16], [5, 5, 5, 9]], np.float32),
        "labels": np.array([4, 0, 1]),
        "masks": np.zeros((3, 32, 64), bool),
        "crowd": np.array([False, True, False]),
    }
    sample["masks"][0, :16, :32] = True
    target = training_objects(sample, (128, 128), ImageView(0, 0, 32, 64)).target()
    assert target["boxes"].tolist() == [[0, 0, 64, 64]] and target["labels"].tolist() == [5]
    assert target["masks"].shape == (1, 128, 128) and target["masks"][0, :64, :64].all()
    assert target["masks"].sum() == 64 * 64


# Encoders


def test_position_baseline_is_the_same_for_every_image_and_differs_over_positions(models_dir):
    encoder = load_encoder("position", reference=models_dir / "clip" / "seed0")
    images = np.random.default_rng(0).integers(0, 255, (3, 48, 48, 3), dtype=np.uint8)
    dense = encoder.dense(encoder.normalised(images))
    assert dense.shape == (3, 32, 4, 4) and encoder.grid == 4
    assert (dense[0] == dense[1]).all() and (dense[0] == dense[2]).all()
    assert len(torch.unique(dense[0].flatten(1), dim=1).T) == 16
    pooled = encoder.pooled(encoder.normalised(images))
    assert (pooled[0] == pooled[1]).all()


def test_random_baseline_has_the_models_shape_and_follows_its_seed(models_dir):
    reference = models_dir / "clip" / "seed0"
    one, same, other = (load_encoder("random", reference=reference, seed=seed) for seed in (1, 1, 2))
    trained = load_encoder(reference)
    assert one.sha256 == same.sha256 and len({one.sha256, other.sha256, trained.sha256}) == 3
    images = np.random.default_rng(0).integers(0, 255, (2, 48, 48, 3), dtype=np.uint8)
    first, again, shape = (each.dense(each.normalised(images)) for each in (one, same, trained))
    assert torch.equal(first, again) and first.shape == shape.shape


def test_pooled_feature_times_the_projection_is_the_embedding(models_dir):
    import open_clip

    folder = models_dir / "clip" / "seed0"
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    encoder = load_encoder(folder)
    image = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    ours = encoder.normalised(centre_crop(image, 48, "bicubic")[None].copy())
    theirs = preprocess(Image.fromarray(image))[None]
    torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        embedding = encoder.pooled(ours) @ model.visual.proj
        torch.testing.assert_close(embedding, model.eval().encode_image(theirs), atol=1e-5, rtol=1e-4)


def test_resizing_keeps_images_that_fit_already():
    image = np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    assert squash(image, 48, "bicubic") is image and centre_crop(image, 48, "bicubic") is image
    assert squash(image[:30], 48, "bicubic").shape == centre_crop(image[:30], 48, "bicubic").shape == (48, 48, 3)


def test_missing_model_is_refused_by_name(tmp_path):
    with pytest.raises(CliptexError, match=r"open_clip_config\.json"):
        load_encoder("random", reference=tmp_path)
    with pytest.raises(CliptexError, match=str(tmp_path)):
        load_encoder(tmp_path)


# The stage

TRAINED = ["linear", "deeplabv3", "pspnet"]
HEADS = {"voc": [*TRAINED, "in_context"], "coco": ["mask_rcnn"], "nyuv2": ["linear"], "imagenet": ["linear", "knn"]}
HEADS["ade20k"] = HEADS["voc"]
TASKS = {"coco": ["detection", "instance_segmentation"], "nyuv2": ["depth", "normals"], "imagenet": ["classification"]}
FEW = {"semantic_segmentation": {"heads": {name: {"steps": 8, "batch_size": 8} for name in TRAINED}}}
WRITERS = {
    "voc": (write_voc, FEW),
    "ade20k": (write_ade20k, {**FEW, "max_train": 10}),
    "coco": (write_coco, {"detection": {"heads": {"mask_rcnn": {"steps": 4, "channels": 16}}}}),
    "nyuv2": (write_nyuv2, {"depth": {"heads": {"linear": {"grid": 12}}}}),
    "imagenet": (write_imagenet, {}),
}


def run(name, models_dir, tmp_path, models, keep=2, limits=None, seed=0, **changes):
    writer, options = WRITERS[name]
    options = _merged(options, changes)
    root = tmp_path / "resources" / name
    if not root.exists():
        root.mkdir(parents=True)
        writer(root, 16, 8)
    config = Config.load({"probes": {"benchmarks": {name: options}, "save_predictions": keep, **(limits or {})}})
    out = tmp_path / "results" / "probes" / name
    job = Job(name=name, models=tuple(models), seeds=(seed,), models_dir=models_dir, benchmark_dir=root)
    probe.run(config, replace(job, out=out, cache_dir=tmp_path / "results" / "features"))
    return out


def metrics_of(out, model="clip", seed=0):
    """All metrics of all heads, by name."""
    return {
        f"{path.stem} {row['task']} {name}": value
        for path in sorted((out / model / f"seed{seed}").glob("*.json"))
        for row in json.loads(path.read_text())["results"]
        for name, value in row["metrics"].items()
        if value is not None
    }


@pytest.mark.parametrize("name", list(WRITERS))
def test_a_job_writes_one_file_a_model_and_head(name, models_dir, tmp_path):
    models = ["random", "position", "clip"]
    out = run(name, models_dir, tmp_path, models)
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.json"))
    assert files == sorted(f"{model}/seed0/{head}.json" for model in models for head in HEADS[name])
    shas = set()
    for file in files:
        result = json.loads((out / file).read_text())
        assert [row["task"] for row in result["results"]] == TASKS.get(name, ["semantic_segmentation"])
        for row in result["results"]:
            assert {"model", "seed", "head", "metrics", "num_parameters", "seconds", "protocol"} <= row.keys()
            assert row["protocol_name"] == "miniature" and f"miniature ({row['protocol_digest']}): " in row["protocol"]
            assert all(value is None or np.isfinite(value) for value in row["metrics"].values())
        assert (result["source"], result["num_eval"]) == ("miniature", 8)
        assert result["num_train"] == (10 if name == "ade20k" else 16)
        shas |= set(result["provenance"]["model_sha256"].values())
        with np.load((out / file).with_suffix(".npz")) as kept:
            assert len(kept["ids"]) == 2 and kept["image_1"].dtype == np.uint8
            first = kept["ids"].tolist()
        evaluated = read_per_image(per_image_path(out / file))
        assert evaluated.ids[:2].tolist() == first and len(evaluated.ids) == 8
        for row in result["results"]:
            assert row["per_image_sha256"] == sha256_file(per_image_path(out / file))
            value = row["metrics"][measure(row["task"]).main]
            assert main_metric(row["task"], evaluated.tasks[row["task"]])[0] == pytest.approx(value)
        written = {path.name.partition(".")[2] for path in (out / file).parent.glob(f"{Path(file).stem}.*")}
        assert written == {*kinds(name), "npz"}
        digest = sha256_file(thumbnails_path(out / file)) if "thumbnails.npz" in written else None
        assert {row.get("thumbnails_sha256") for row in result["results"]} == {digest}
        if "thumbnails.npz" in written:
            shown = read_per_image(thumbnails_path(out / file))
            assert shown.ids.tolist() == evaluated.ids.tolist()
            assert set(shown.tasks) == set(evaluated.tasks) - {"instance_segmentation"}
    assert len(shas) == 3


def test_position_baseline_classifies_like_the_most_frequent_class(models_dir, tmp_path):
    out = run("imagenet", models_dir, tmp_path, ["position"], keep=8)
    with np.load(out / "position" / "seed0" / "linear.npz") as kept:
        assert (kept["prediction"] == kept["prediction"][0]).all()


def test_the_same_seed_gives_the_same_result_whatever_models_share_the_job(models_dir, tmp_path):
    together = run("voc", models_dir, tmp_path, ["random", "clip", "cliptex"])
    first = {path.relative_to(together): json.loads(path.read_text()) for path in together.rglob("*.json")}
    alone = run("voc", models_dir, tmp_path, ["cliptex"])
    for head in HEADS["voc"]:
        again = json.loads((alone / "cliptex" / "seed0" / f"{head}.json").read_text())
        before = next(value for path, value in first.items() if path.as_posix() == f"cliptex/seed0/{head}.json")
        assert again["results"][0]["metrics"] == before["results"][0]["metrics"]


# Features, computed once

SEEN = [
    ("voc", {"semantic_segmentation": {"input": {"fit": "windows", "size_px": 24, "stride_px": 12}}}),
    (
        "voc",
        {
            "semantic_segmentation": {
                "input": {"fit": "crop", "size_px": 36},
                "augment": {"views": 3, "scale": [0.5, 2], "flip": 0.5},
                "features": {"layers": [0, -1], "norm": False, "cls": True, "precision": "int8"},
            }
        },
    ),
    ("nyuv2", {"depth": {"input": {"fit": "crop"}}, "normals": {"augment": {"views": 2, "flip": 1}}}),
    ("imagenet", {"classification": {"augment": {"views": 2}, "features": {"point": "embedding"}}}),
    ("coco", {"detection": {"input": {"size_px": [36, 60]}, "augment": {"views": 2, "scale": [0.8, 1.2]}}}),
]


@pytest.mark.parametrize(("name", "changes"), SEEN, ids=["windows", "int8", "two settings", "embedding", "not square"])
def test_features_are_computed_once_and_where_they_are_kept_changes_no_result(
    name, changes, models_dir, tmp_path, monkeypatch
):
    models = ["position", "clip"]
    first = metrics_of(run(name, models_dir, tmp_path, models, **changes))
    kept = sorted((tmp_path / "results/features").iterdir())
    assert len(kept) == (8 if "normals" in changes else 4)
    with monkeypatch.context() as patch:
        patch.setattr(Reader, "encode", lambda self, encoder, images: torch.zeros(encode(self, encoder, images).shape))
        assert metrics_of(run(name, models_dir, tmp_path, models, **changes)) == first
    assert sorted((tmp_path / "results/features").iterdir()) == kept
    # held in memory, and computed at every step
    for number, limits in enumerate(({"cache_gb": 0}, {"cache_gb": 0, "memory_gb": 1e-9})):
        elsewhere = tmp_path / str(number)
        assert metrics_of(run(name, models_dir, elsewhere, models, limits=limits, **changes)) == pytest.approx(first)
        assert not (elsewhere / "results/features").exists()


def test_heads_share_features_and_so_do_seeds_of_an_encoder_that_is_not_trained(models_dir, tmp_path, monkeypatch):
    seen, seconds = [], []

    def counted(self, encoder, images):
        seen.append(images)
        return encode(self, encoder, images)

    monkeypatch.setattr(Reader, "encode", counted)
    for seed in (0, 1):
        if seed:
            shutil.copytree(models_dir / "clip/seed0", models_dir / "clip/seed1", dirs_exist_ok=True)
        out = run("voc", models_dir, tmp_path, ["clip"], seed=seed)
        files = list((out / f"clip/seed{seed}").glob("*.json"))
        assert len(files) == len(HEADS["voc"])
        seconds.append({json.loads(path.read_text())["seconds_features"] for path in files})
    # all heads say the same, and the other seed computed nothing
    assert len(seconds[0]) == 1 and min(seconds[0]) > 0 and seconds[1] == {0.0}
    encoded = sum(len(images) for images in seen if images.any())  # without those by which the size is known
    assert encoded == 16 + 8
    scores = [metrics_of(out, seed=seed) for seed in (0, 1)]
    assert scores[0] != scores[1]  # first weights and batches are the seed's


TWO_RATES = {"semantic_segmentation": {"heads": {"linear": {"learning_rates": [0.01, 0.05]}}}}
KILLED_BEFORE = """
import json, os, signal, sys
from pathlib import Path
import torch
import test_probes
from cliptex.evaluation.probes import training

torch.set_num_threads({threads})
class Optimisation(training.Optimisation):
    number = 0
    def __init__(self, *args):
        Optimisation.number += 1
        if Optimisation.number == {number}:
            os.kill(os.getpid(), signal.SIGKILL)
        super().__init__(*args)

training.Optimisation = Optimisation
test_probes.run("voc", Path({models_dir!r}), Path({tmp_path!r}), ["clip"], **test_probes.TWO_RATES)
"""


def test_a_killed_job_does_not_train_its_finished_heads_again(models_dir, tmp_path, monkeypatch):
    started = []

    class Optimisation(training.Optimisation):
        def __init__(self, parameters, options, candidate):
            started.append((type(options).__name__, options.steps, candidate.learning_rate))
            super().__init__(parameters, options, candidate)

    monkeypatch.setattr(training, "Optimisation", Optimisation)

    def outputs(tmp_path, **changes):
        """What was trained, and the bytes of the results, without times."""
        started.clear()
        folder = run("voc", models_dir, tmp_path, ["clip"], **{**TWO_RATES, **changes}) / "clip/seed0"
        assert not (folder / ".heads").exists()
        files = {path.name: path.read_bytes() for path in folder.glob("*.npz")}
        results = {path.name: json.loads(path.read_text())["results"] for path in folder.glob("*.json")}
        for row in (row for rows in results.values() for row in rows):
            assert row.pop("seconds") > 0
        return started.copy(), files, results

    all_started, *uninterrupted = outputs(tmp_path / "uninterrupted")
    assert len(all_started) == 3 + 2
    # two rates and the final training of the first head are done, and one of the second
    values = {"models_dir": str(models_dir), "tmp_path": str(tmp_path / "killed"), "threads": torch.get_num_threads()}
    script = KILLED_BEFORE.format(number=5, **values)
    ended = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    folder = tmp_path / "killed/results/probes/voc/clip/seed0"
    assert len(list((folder / ".heads").glob("*.safetensors"))) == 4
    for path in folder.glob("*.*"):  # as Snakemake does before it starts the job again
        if path.is_file():
            path.unlink()
    shutil.copytree(tmp_path / "killed", tmp_path / "other")
    shutil.copytree(tmp_path / "killed", tmp_path / "damaged")
    again, *resumed = outputs(tmp_path / "killed")
    assert again == all_started[4:] and resumed == uninterrupted
    # those of other settings are not used, nor are damaged ones
    assert len(outputs(tmp_path / "other", limits={"holdout": 0.4})[0]) == 5
    for path in (tmp_path / "damaged/results/probes/voc/clip/seed0/.heads").iterdir():
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    again, *repaired = outputs(tmp_path / "damaged")
    assert again == all_started and repaired == uninterrupted


encode = Reader.encode
SHIPPED_RUNS = [
    *[("paper", name) for name in ("voc", "coco", "nyuv2", "imagenet")],
    *[("dinov2", name) for name in ("voc", "nyuv2", "imagenet")],
    ("probe3d", "nyuv2"),
]


def shrunk(protocol, benchmark):
    """A shipped protocol with fewer steps and channels on smaller images; all else is as it is."""
    entry = resolve(benchmark, {"protocol": protocol})
    sizes = {"steps": 2, "batch_size": 4, "channels": 8, "box_units": 8, "rois": 8, "proposals": 8, "grid": 8}
    changes = {}
    for task in protocol_of(benchmark, entry).tasks:
        size = [36, 48] if isinstance(entry[task]["input"].get("size_px"), list) else 36
        heads = {
            name: {key: value for key, value in sizes.items() if key in head}
            for name, head in entry[task]["heads"].items()
        }
        changes[task] = {"input": {"size_px": size}, "heads": heads}
        changes[task] |= {"mask_size_px": 24} if "mask_size_px" in entry[task] else {}
        changes[task] |= {"crop": "none"} if "crop" in entry[task] else {}  # Eigen's is for 480 x 640
        changes[task]["input"] |= {"stride_px": 24} if "stride_px" in entry[task]["input"] else {}
        changes[task]["input"] |= {"resize_px": 40} if "resize_px" in entry[task]["input"] else {}
    return {"protocol": protocol, **changes}


@pytest.mark.parametrize(("protocol", "name"), SHIPPED_RUNS, ids=["-".join(pair) for pair in SHIPPED_RUNS])
def test_every_shipped_protocol_runs_and_keeps_the_predictions_of_every_head(protocol, name, tmp_path, four_blocks):
    WRITERS[name][0](tmp_path / "data", 8, 4)
    entry = shrunk(protocol, name)
    config = Config.load({"probes": {"benchmarks": {name: entry}, "save_predictions": 2}})
    out = tmp_path / "results/probes" / name
    job = Job(name=name, models=("clip",), seeds=(0,), models_dir=four_blocks, benchmark_dir=tmp_path / "data")
    probe.run(config, replace(job, out=out, cache_dir=tmp_path / "features"))
    heads = protocol_of(name, entry).heads
    assert {path.stem for path in out.rglob("*.json")} == set(heads)
    for head, tasks in heads.items():
        rows = json.loads((out / f"clip/seed0/{head}.json").read_text())["results"]
        evaluated = [row["task"] for row in rows]
        assert evaluated == (["detection", "instance_segmentation"] if head == "mask_rcnn" else tasks)
        for row in rows:
            assert row["protocol_name"] == protocol
            assert (row["num_parameters"] > 0) is (head not in ("knn", "in_context"))
            assert all(value is None or np.isfinite(value) for value in row["metrics"].values())
        with np.load(out / f"clip/seed0/{head}.npz") as kept:
            for task in tasks:
                for number in range(1 if task == "classification" else 2):
                    for name_of in KEPT[head if task == "detection" else task]:
                        assert kept[name_of.format(number)].size >= 0
                if task == "depth":
                    assert kept["depth_prediction_1"].shape == kept["depth_truth_1"].shape


BOXES = ("prediction_boxes_{}", "prediction_scores_{}", "truth_boxes_{}", "truth_crowd_{}", "image_{}")
KEPT = {
    "semantic_segmentation": ("prediction_{}", "truth_{}", "image_{}"),
    "depth": ("depth_prediction_{}", "depth_truth_{}", "image_{}"),
    "normals": ("normals_prediction_{}", "normals_truth_{}", "image_{}"),
    "classification": ("prediction", "truth", "image_{}"),
    "ssd": BOXES,
    "mask_rcnn": (*BOXES, "prediction_masks_{}", "truth_masks_{}"),
}


def test_what_a_head_saw_is_in_the_result(models_dir, tmp_path):
    out = run("voc", models_dir, tmp_path, ["clip"], **SEEN[1][1])
    result = json.loads((out / "clip/seed0/linear.json").read_text())
    assert result["input"]["semantic_segmentation"] == {"size_px": [36, 36], "grid": [3, 3]}
    text = result["results"][0]["protocol"]
    for words in ("blocks [0, -1], raw, class token beside each", "the image's centre", "3 augmented views", "int8"):
        assert words in text
    with np.load(out / "clip/seed0/linear.npz") as kept:
        assert kept["image_0"].shape[:2] == kept["truth_0"].shape == kept["prediction_0"].shape == (48, 48)


PLANNED = [
    ("voc", {}),
    ("voc", SEEN[1][1]),
    ("nyuv2", SEEN[2][1]),
    ("imagenet", {"classification": {"augment": {"views": 2}, "features": {"point": "tokens"}}}),
]


@pytest.mark.parametrize(("name", "changes"), PLANNED, ids=["plain", "int8 with class token", "two settings", "tokens"])
def test_the_plan_tells_what_the_features_take(name, changes, models_dir, tmp_path):
    out = run(name, models_dir, tmp_path, ["clip"], **changes)
    files = list((tmp_path / "results/features").rglob("*.bin"))
    entry = json.loads((out / "clip/seed0/linear.json").read_text())["settings"]["protocol"]
    counts = {"miniature": {"benchmarks": {name: {"train": 16, "val": 8}}}, "student": TINY.model_dump(mode="json")}

    def plan(**limits):
        return plan_features(Config.load({**counts, "probes": {"benchmarks": {name: entry}, **limits}}), name)

    kept = sum(path.stat().st_size for path in files)
    planned = plan()
    assert planned["bytes_a_model"] == kept and planned["place"] == "disk"
    shapes = [json.loads(path.read_text())["shape"] for path in (tmp_path / "results/features").rglob("about.json")]
    assert sum(planned["views"].values()) == sum(shape[0] for shape in shapes)
    data, held = find("benchmarks", name)(tmp_path / "resources" / name), 0
    encoder = load_encoder(models_dir / "clip/seed0")
    for task in set(protocol_of(name, entry).tasks) - {"classification"}:
        section = getattr(protocol_of(name, entry), task)
        truths = {task: probe_task(task).truth(SimpleNamespace(protocol=protocol_of(name, entry)), encoder)}
        part, _ = Reader(data, "train", range(16), section, encoder, truths).read({})
        held += sum(truth.nbytes for truth in part.truths[task])
    assert planned["truths"] == held
    assert plan(cache_gb=kept / 5e9)["place"] == "memory"
    assert plan(cache_gb=kept / 5e9, memory_gb=kept / 5e9)["place"] == "nowhere"


def test_a_plan_of_official_data_has_their_numbers_and_says_what_it_does_not_know():
    given = {"student": {"architecture": "ViT-B-16"}, "benchmark_data": {"source": "official"}}
    config = Config.load({**given, "probes": {"benchmarks": {"voc": {"protocol": "dinov2"}}}})
    planned = plan_features(config, "voc")
    assert planned["views"] == {"train": 4 * 1_464, "eval": 3 * 1_449}
    # int8 with a float32 scale a channel; windows of 512 pixels in patches of 16
    assert planned["bytes_a_model"] == (4 * 1_464 + 3 * 1_449) * 768 * (32 * 32 + 4)
    assert planned["memory"] == (4 * 1_464 + 3 * 1_449) * 768 * 32 * 32 * 4 and planned["place"] == "disk"
    unknown = config.model_copy(update={"student": Student(architecture="ViT-B-16-SigLIP")})
    not_known = dict.fromkeys(("bytes_a_model", "memory", "truths", "place", "views_read", "bytes_read"))
    assert plan_features(unknown, "voc") == {**planned, **not_known}
    paper = {"probes": {"benchmarks": {name: {"protocol": "paper"} for name in ("coco", "imagenet")}}}
    config = Config.load({**given, **paper})
    # Mask R-CNN and SSD, and the evaluation images for both; what fits in memory as stored is read once
    assert plan_features(config, "coco")["views_read"] == 90_000 * (16 + 64) + 2 * 5_000
    assert plan_features(config, "imagenet")["views_read"] == 0


@pytest.mark.parametrize(("counts", "part"), [({"train": 17, "val": 8}, "17"), ({"train": 16, "val": 9}, "9")])
def test_another_number_of_images_than_there_should_be_is_refused(counts, part, models_dir, tmp_path):
    root = tmp_path / "resources/voc"
    write_voc(root, 16, 8)
    (root / "miniature.json").write_text(json.dumps({"counts": counts}))
    with pytest.raises(CliptexError, match=rf"images to \w+ were used, it has {part}"):
        run("voc", models_dir, tmp_path, ["clip"])
    run("voc", models_dir, tmp_path, ["clip"], max_train=10, max_eval=8)


def test_views_of_one_image_are_on_the_same_side_of_the_holdout():
    part = Part(ids=list("abcdefgh"), owner=[number // 3 for number in range(24)])
    fit, held = part.split(0.25, 0)
    assert len(held) == 6 and sorted([*fit, *held]) == list(range(24))
    assert not {index // 3 for index in fit} & {index // 3 for index in held}


def test_a_size_that_the_encoder_cannot_take_is_refused(models_dir, tmp_path):
    with pytest.raises(CliptexError, match="is not a multiple of the encoder's patch size 12"):
        run("voc", models_dir, tmp_path, ["clip"], semantic_segmentation={"input": {"size_px": 50}})
    with pytest.raises(CliptexError, match=r"features\.layers: block 7 is out of range"):
        run("voc", models_dir, tmp_path, ["clip"], semantic_segmentation={"features": {"layers": [7]}})
    with pytest.raises(CliptexError, match=r"detection\.input\.fit: must be squash, got 'crop'"):
        run("coco", models_dir, tmp_path, ["clip"], detection={"input": {"fit": "crop"}})


# Protocols


def test_an_entry_takes_its_protocol_and_what_is_laid_over_it():
    voc = miniature("voc", semantic_segmentation={"heads": {"linear": {"steps": 7}, "pspnet": None}})
    assert voc.semantic_segmentation.heads.keys() == {"linear", "deeplabv3", "in_context"}
    assert voc.semantic_segmentation.heads["linear"].steps == 7
    assert voc.semantic_segmentation.heads["linear"].batch_size == 32  # the file's
    assert (voc.protocol, voc.depth, len(voc.digest)) == ("miniature", None, 12)
    resolved = resolve("voc", {"semantic_segmentation": {"heads": {"linear": {"steps": 7}, "pspnet": None}}})
    assert protocol_of("voc", resolved) == voc and resolve("voc", resolved) == resolved


def test_the_digest_is_of_the_values_that_count_for_the_benchmark(tmp_path):
    file = yaml.safe_load((SHIPPED / "miniature.yaml").read_text())
    path = tmp_path / "mine.yaml"

    def digests():
        path.write_text(yaml.safe_dump(file))
        return [protocol_of(name, {"protocol": str(path)}).digest for name in ("voc", "nyuv2")]

    before = digests()
    assert before == [miniature(name).digest for name in ("voc", "nyuv2")]
    file["depth"]["max_depth_m"] = 8.0
    voc, nyuv2 = digests()
    assert voc == before[0] and nyuv2 != before[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"semantic_segmentation": {"mask_sise_px": 3}}, r"semantic_segmentation\.mask_sise_px: unknown key"),
        (
            {"semantic_segmentation": {"augment": {"scale": [2, 1]}}},
            r"semantic_segmentation\.augment\.scale: the smaller value must come first",
        ),
        (
            {"semantic_segmentation": {"heads": {"linear": {"stepz": 3}}}},
            r"semantic_segmentation\.heads\.linear\.stepz: unknown key",
        ),
        (
            {"semantic_segmentation": {"heads": {"linear": {"learning_rates": [0.1, -1]}}}},
            r"semantic_segmentation\.heads\.linear\.learning_rates\.1: .*greater than 0, got -1",
        ),
        ({"semantic_segmentation": {"heads": {"x": {"kind": "psp"}}}}, r"semantic_segmentation\.heads\.x: .*'psp'"),
    ],
)
def test_a_mistake_in_a_protocol_is_one_error_that_names_file_or_entry_and_key(change, message, tmp_path):
    with pytest.raises(CliptexError, match=r"^probes\.benchmarks\.voc\." + message):
        protocol_of("voc", change)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(_merged(yaml.safe_load((SHIPPED / "miniature.yaml").read_text()), change)))
    with pytest.raises(CliptexError, match=rf"^{path}:\d+: {message}"):
        protocol_of("voc", {"protocol": str(path)})


def _merged(base, over):
    both = isinstance(base, dict) and isinstance(over, dict)
    return {**base, **{key: _merged(base.get(key), value) for key, value in over.items()}} if both else over


def test_a_protocol_that_does_not_fit_is_named(tmp_path):
    with pytest.raises(CliptexError, match=r"probes\.benchmarks\.voc\.protocol: 'papper' is not a protocol; .*paper"):
        protocol_of("voc", {"protocol": "papper"})
    with pytest.raises(CliptexError, match=r"voc\.protocol: .*gone\.yaml: no such file"):
        protocol_of("voc", {"protocol": str(tmp_path / "gone.yaml")})
    with pytest.raises(CliptexError, match=r"benchmarks\.voc\.depth: voc has no such task"):
        protocol_of("voc", {"depth": {}})
    path = tmp_path / "half.yaml"
    path.write_text("about: nothing")
    with pytest.raises(CliptexError, match=r"half\.yaml: has no section 'semantic_segmentation', which voc needs"):
        protocol_of("voc", {"protocol": str(path)})


def test_protocols_beside_the_configuration_come_first(tmp_path):
    (tmp_path / "protocols").mkdir()
    text = (SHIPPED / "miniature.yaml").read_text().replace("grid: 24", "grid: 12")
    (tmp_path / "protocols/miniature.yaml").write_text(text)
    config = with_protocols(Config.load({"probes": {"benchmarks": {"nyuv2": {}}}}), [tmp_path / "protocols"])
    assert config.probes.benchmarks["nyuv2"]["depth"]["heads"]["linear"]["grid"] == 12


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_value_of_a_shipped_protocol_has_a_sentence_and_an_origin(path):
    model = with_sections(ProtocolFile, (*built_in().values(), *training_free_tasks.built_in().values()))
    file = model.model_validate(yaml.safe_load(path.read_text()))
    assert len(file.about) > 40
    schema = model.model_json_schema()["$defs"]
    assert [
        f"{name}.{key}"
        for name, section in schema.items()
        for key, value in section.get("properties", {}).items()
        if not value.get("description")
    ] == []


def test_heads_are_known_without_importing_torch():
    command = (
        "import sys; from cliptex.evaluation.targets import heads; import cliptex.evaluation.results;"
        "print([heads(n, {}) for n in ('voc', 'coco', 'nyuv2', 'imagenet')], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    expected = [HEADS[name] for name in ("voc", "coco", "nyuv2", "imagenet")]
    assert done.stdout.strip() == f"{expected} False"


def test_table_gathers_every_row_and_every_models_digest(models_dir, tmp_path, monkeypatch):
    run("imagenet", models_dir, tmp_path, ["random", "position", "clip", "cliptex"])
    monkeypatch.chdir(tmp_path)
    config = Config.load({"models": {"clip": {}, "cliptex": {}}})
    files = probe_files(config, "imagenet")
    tabulate("imagenet", files, tmp_path / "table.json")
    table = json.loads((tmp_path / "table.json").read_text())
    models = ["random", "position", "clip", "cliptex"]
    heads = [(model, head) for model in models for head in HEADS["imagenet"]]
    assert [(row["model"], row["head"]) for row in table["results"]] == heads
    assert list(table["provenance"]["model_sha256"]) == [f"{model}/seed0" for model in models]
    assert (table["schema_version"], table["split"], table["class_names"]) == (1, "val", ["dog", "cat", "car"])
    other = json.loads(files[4].read_text())
    files[4].write_text(json.dumps(other | {"num_train": 5}))
    with pytest.raises(CliptexError, match=r"clip/seed0/linear\.json.*num_train"):
        tabulate("imagenet", files, tmp_path / "table.json")
    files[6].unlink()
    with pytest.raises(CliptexError, match=r"cliptex/seed0/linear\.json"):
        tabulate("imagenet", files[6:], tmp_path / "table.json")
