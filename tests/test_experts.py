"""Experts: the formulas of their losses, the published shapes, the painting rule, training, labelling."""

import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import SMALL
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.torch import save_file

from cliptex.config import Config
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json
from cliptex.experts import average_precision, dpt, mask_rcnn, nll_angmf, truth
from cliptex.experts.fitting import augment
from cliptex.experts.network import load_weights
from cliptex.experts.option_checks import problems
from cliptex.experts.options import TrainingOptions
from cliptex.experts.training import load_expert, train_expert
from cliptex.labels import pipeline
from cliptex.tasks import angular_mf

pytestmark = pytest.mark.xdist_group("experts")
ROOT = Path(__file__).parents[1]

EXPERTS = {"mask_rcnn": mask_rcnn.PLUGIN, "dpt": dpt.PLUGIN, "nll_angmf": nll_angmf.PLUGIN}


def ball_scenes(count: int, height: int, width: int, seed: int) -> dict[str, np.ndarray]:
    """Two balls before a wall on a floor, under a sky strip: every dataset of the labelled renders, by ray casting."""
    rng = np.random.default_rng(seed)
    x = (np.arange(width) + 0.5 - width / 2) / width
    y = (np.arange(height) + 0.5 - height / 2) / width
    rays = np.stack(np.broadcast_arrays(x[None, :], y[:, None], 1.0), axis=-1)
    out = {
        "image": np.zeros((count, height, width, 3), np.uint8),
        "instance": np.zeros((count, height, width), np.uint8),
        "instance_class": np.zeros((count, 3), np.uint8),
        "depth": np.full((count, height, width), np.nan, np.float32),
        "normals": np.full((count, height, width, 3), np.nan, np.float16),
    }
    for index in range(count):
        depth = np.where(y[:, None] > 0.02, 1.0 / np.maximum(y[:, None], 0.02), np.inf) + 0 * x
        normal = np.broadcast_to([0.0, 1.0, 0.0], rays.shape).copy()
        wall = rng.uniform(6, 9)
        behind = (depth > wall) & (y[:, None] > -0.3)
        depth[behind], normal[behind] = wall, (0, 0, 1)
        colour = np.where(behind[..., None], rng.uniform(0.3, 0.9, 3), rng.uniform(0.2, 0.8, 3))
        for number, category in enumerate(rng.choice([1, 17, 57], size=2, replace=False), start=1):
            radius = rng.uniform(0.8, 1.2)
            centre = np.array([(number - 1.5) * 2.4, 1 - radius, rng.uniform(3.5, 5)])
            along, square = rays @ centre, np.sum(rays**2, axis=-1)
            inside = along**2 - square * (centre @ centre - radius**2)
            near = (along - np.sqrt(np.maximum(inside, 0))) / square
            seen = (inside > 0) & (near < depth)
            depth[seen] = near[seen]
            normal[seen] = -(rays * near[..., None] - centre)[seen] / radius
            tint = {1: (0.9, 0.1, 0.1), 17: (0.1, 0.8, 0.1), 57: (0.1, 0.2, 0.9)}[int(category)]
            colour = np.where(seen[..., None], np.array(tint), colour)
            out["instance"][index][seen] = number
            out["instance_class"][index, number - 1] = category
        known = np.isfinite(depth)
        shade = np.where(known, 0.4 + 0.6 * np.abs(normal @ [0.3, 0.5, 0.81]), 1.0)
        out["image"][index] = np.clip(colour * shade[..., None] * 255 + rng.normal(0, 4, rays.shape), 0, 255)
        out["depth"][index][known] = depth[known]
        out["normals"][index][known] = normal[known]
    return out


@pytest.fixture(scope="module")
def renders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("expert_renders")
    for part, count, seed in (("train", 16, 1), ("val", 6, 2)):
        with h5py.File(folder / f"{part}.h5", "w") as file:
            for name, array in ball_scenes(count, 48, 64, seed).items():
                file[name] = array
    return folder


def expert(name: str, **training):
    defaults = {"steps": 12, "batch_size": 4, "learning_rate": 2e-3}
    return EXPERTS[name]({"network": SMALL[name], "training": defaults | training, "batch_size": 3})


@pytest.fixture(scope="module")
def trained(renders):
    """Each expert after a few steps, and its log."""
    out = {}
    for name in EXPERTS:
        one = expert(name)
        out[name] = one, one.fit(renders / "train.h5", seed=5)
    return out


# formulas


@pytest.mark.parametrize("kappa", [0.01, 0.5, 2.0, 10.0])
def test_angmf_loss_is_the_log_likelihood_of_a_density(kappa):
    theta = np.linspace(0, np.pi, 200_001)
    normals = torch.from_numpy(np.stack([np.sin(theta), 0 * theta, np.cos(theta)]))[None]
    prediction = torch.tensor([0.0, 0.0, 1.0, kappa], dtype=torch.float64)[None, :, None].expand(1, 4, len(theta))
    loss = angular_mf.angular_mf_loss(prediction, normals)[0].numpy()
    density = np.exp(-loss) / (2 * np.pi)
    assert_allclose(np.trapezoid(density * 2 * np.pi * np.sin(theta), theta), 1, atol=1e-3)
    mean, decay = np.trapezoid(theta * density * 2 * np.pi * np.sin(theta), theta), np.exp(-kappa * np.pi)
    assert_allclose(2 * kappa / (kappa**2 + 1) + np.pi * decay / (1 + decay), mean, rtol=2e-3)  # equation 12


def test_angmf_loss_has_a_finite_gradient_at_the_exact_normal():
    prediction = torch.tensor([[0.0, 0.0, 1.0, 5.0], [0.0, 0.0, -1.0, 5.0]], requires_grad=True)
    angular_mf.angular_mf_loss(prediction, torch.tensor([[0.0, 0.0, 1.0]] * 2)).sum().backward()
    assert torch.isfinite(prediction.grad).all()


def test_norm_normalize_gives_unit_normals_and_positive_kappa():
    out = angular_mf.norm_normalize(torch.randn(5, 4, 7, 9) * 10)
    assert_allclose(out[:, :3].norm(dim=1), 1, rtol=1e-5)
    assert out[:, 3].min() >= angular_mf.MIN_KAPPA * 0.999


def test_pixels_to_learn_from_are_the_least_sure_valid_ones_and_some_others():
    uncertainty, valid = torch.arange(100.0).view(1, 10, 10), torch.ones(1, 10, 10, dtype=torch.bool)
    valid[0, 9] = False  # the ten least sure
    chosen = nll_angmf._sample_pixels(uncertainty, valid, 0.4, 0.7, torch.Generator().manual_seed(0))[0].tolist()
    assert len(set(chosen)) == 40
    assert set(chosen[:28]) == set(range(62, 90))
    assert set(chosen[28:]) <= set(range(62)) | set(range(90, 100))


@given(scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
@settings(max_examples=20, deadline=None)
def test_depth_loss_ignores_scale_and_shift(scale, shift):
    target = torch.rand(2, 12, 16, generator=torch.Generator().manual_seed(0))
    assert dpt.scale_shift_invariant_loss(target * scale + shift, target) < 1e-3
    assert dpt.scale_shift_invariant_loss(-target * scale + shift, target) > 0.5


def test_depth_loss_is_what_the_paper_writes():
    generator = torch.Generator().manual_seed(1)
    prediction, target = torch.rand(1, 8, 8, generator=generator), torch.rand(1, 8, 8, generator=generator)

    def normalised(map_HW):
        values = map_HW.numpy()
        median = np.sort(values.ravel())[31]  # torch's median is the lower of the two
        return (values - median) / np.abs(values - median).mean()

    difference = normalised(prediction[0]) - normalised(target[0])
    expected = np.abs(difference).mean()
    for step in (1, 2):
        part = difference[::step, ::step]
        expected += 0.5 * (np.abs(np.diff(part, axis=0)).sum() + np.abs(np.diff(part, axis=1)).sum()) / part.size
    assert_allclose(dpt.scale_shift_invariant_loss(prediction, target, 0.5, scales=2), expected, rtol=1e-5)


@pytest.mark.parametrize("case", ["all invalid", "flat", "partly invalid", "one pixel"])
def test_depth_loss_and_its_gradient_are_finite(case):
    prediction = torch.rand(2, 8, 8, requires_grad=True)
    target = torch.rand(2, 8, 8)
    if case == "all invalid":
        target[:] = torch.nan
    elif case == "flat":
        target[:] = 0.25
    elif case == "partly invalid":
        target[0, :4] = torch.nan
        target[1] = torch.nan
    else:
        target[:, 1:] = torch.nan
        target[:, 0, 1:] = torch.nan
    loss = dpt.scale_shift_invariant_loss(prediction, target)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(prediction.grad).all()


def test_invalid_pixels_do_not_move_the_depth_loss():
    prediction, target = torch.rand(1, 8, 8), torch.rand(1, 8, 8)
    target[0, 2:5, 2:5] = torch.nan
    other = prediction.clone()
    other[0, 2:5, 2:5] = 100.0
    assert dpt.scale_shift_invariant_loss(prediction, target) == dpt.scale_shift_invariant_loss(other, target)


# published shapes


def counts(module):
    return sum(parameter.numel() for parameter in module.parameters()), len(module.state_dict())


def test_mask_rcnn_has_the_published_size():
    with torch.device("meta"):
        module, quick = (mask_rcnn.PLUGIN({"network": given}).build() for given in ({}, {"proposals": 300}))
    assert counts(module)[0] == 46_359_409
    assert (module.eval().rpn.post_nms_top_n(), quick.eval().rpn.post_nms_top_n()) == (1000, 300)
    assert module.roi_heads.box_predictor.cls_score.out_features == 91


@pytest.mark.parametrize(
    ("repo", "expected"),
    [("Intel/dpt-large", (343_030_465, 462)), ("Intel/dpt-hybrid-midas", (122_377_985, 414))],
    ids=["dpt-large", "dpt-hybrid-midas"],
)
def test_dpt_has_the_published_size(repo, expected):
    """By its config, and by its repository's name where a plan has nothing else."""
    with torch.device("meta"):
        assert counts(dpt.PLUGIN({"network": {"config": dpt.PUBLISHED[repo]}}).build()) == expected
        assert counts(dpt.PLUGIN({"repo": repo}).build()) == expected
        depth_anything = dpt.PLUGIN({"repo": "depth-anything/Depth-Anything-V2-Small-hf"}).build()
    assert counts(depth_anything)[0] == 24_785_089


def test_sparse_and_contiguous_classes_are_inverse():
    assert_array_equal(mask_rcnn.CONTIGUOUS[average_precision.COCO_IDS], np.arange(81))
    assert mask_rcnn.CONTIGUOUS[[1, 11, 12, 13, 90]].tolist() == [1, 11, 0, 12, 80]


# masks and the painting rule


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
def test_masks_within_boxes_are_those_that_torchvision_pastes(threshold):
    """Also of boxes that reach beyond the image, and of narrow ones."""
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    generator, (height, width) = torch.Generator().manual_seed(0), (37, 53)
    corners_NC2 = torch.rand((40, 2, 2), generator=generator).sort(dim=1).values * torch.tensor([width, height])
    boxes_N4 = torch.cat([corners_NC2.flatten(1), torch.tensor([[0, 0, width, height], [5, 0, 5, height]])])
    output = {"boxes": boxes_N4, "masks": torch.rand((42, 1, 28, 28), generator=generator)}
    found = mask_rcnn.masks_in_boxes(output, (height, width), threshold)
    expected = paste_masks_in_image(output["masks"], boxes_N4, (height, width))[:, 0] >= threshold
    assert_array_equal(found.whole(), expected)
    none = {"boxes": boxes_N4[:0], "masks": output["masks"][:0]}
    assert mask_rcnn.masks_in_boxes(none, (height, width), threshold).whole().shape == (0, height, width)


def placed(masks_NHW: np.ndarray) -> mask_rcnn.Masks:
    """Masks whose windows are the whole image."""
    return mask_rcnn.Masks(masks_NHW.shape[1:], [(slice(None),) * 2] * len(masks_NHW), list(masks_NHW))


def test_the_surest_instance_lies_on_top_and_unsure_ones_are_left_out():
    masks = np.zeros((4, 3, 6), bool)
    for index in range(4):
        masks[index, :, index : index + 3] = True
    classes, scores = np.array([5, 6, 7, 8]), np.array([0.5, 0.9, 0.2, 0.5])
    assert mask_rcnn.paint(placed(masks), classes, scores, 0.4)[0].tolist() == [5, 6, 6, 6, 8, 8]
    assert mask_rcnn.paint(placed(masks), classes, scores, 0.95).max() == 0


def test_of_equal_scores_the_first_lies_on_top():
    masks = np.ones((2, 2, 2), bool)
    assert (mask_rcnn.paint(placed(masks), np.array([3, 4]), np.array([0.7, 0.7]), 0.5) == 3).all()


def test_pixels_that_only_unsure_instances_claim_can_be_ignored():
    masks = np.zeros((3, 1, 4), bool)
    masks[0, :, :2] = masks[1, :, 1:3] = masks[2, :, 3:] = True
    label = mask_rcnn.paint(placed(masks), np.array([9, 8, 7]), np.array([0.8, 0.3, 0.1]), 0.5, ignore_below=0.2)
    assert label[0].tolist() == [9, 9, 255, 0]


def test_no_instance_is_all_background():
    label = mask_rcnn.paint(placed(np.zeros((0, 4, 5), bool)), np.zeros(0), np.zeros(0), 0.5)
    assert label.shape == (4, 5)
    assert label.dtype == np.uint8
    assert not label.any()


def test_an_unsure_instance_never_covers_a_sure_one():
    masks = np.ones((2, 1, 3), bool)
    for order in ([0, 1], [1, 0]):
        scores, classes = np.array([0.9, 0.4])[order], np.array([4, 5])[order]
        assert mask_rcnn.paint(placed(masks), classes, scores, 0.5, ignore_below=0.3).tolist() == [[4, 4, 4]]


def test_a_pixel_has_the_score_of_what_was_painted_there():
    masks = np.zeros((3, 1, 5), bool)
    masks[0, 0, :2], masks[1, 0, 1:4], masks[2, 0, 3:] = True, True, True
    scores = np.array([0.6, 0.8, 0.4])
    painted = mask_rcnn.paint(placed(masks), np.array([3, 4, 5]), scores, 0.5)[0]
    assert painted.tolist() == [3, 4, 4, 4, 0]
    sure = mask_rcnn.paint_scores(placed(masks), scores, 0.5)[0] / 255
    assert_allclose(sure, [0.6, 0.8, 0.8, 0.8, 0.6], atol=0.002)  # the background is doubted by 0.4
    assert mask_rcnn.paint_scores(placed(masks), scores, 0.5, ignore_below=0.3)[0, 4] == 0
    assert (mask_rcnn.paint_scores(placed(np.zeros((0, 2, 2), bool)), np.zeros(0), 0.5) == 255).all()


def test_a_store_with_scores_has_the_same_classes_as_one_without(tiny):
    from cliptex.core import paths
    from cliptex.core.plugins import find
    from cliptex.labels.index import index_labels
    from cliptex.labels.label import label_batch
    from cliptex.labels.store import LabelFile

    network = SMALL["mask_rcnn"] | {"score_threshold": 0.015, "mask_threshold": 0.3}
    found = {}
    for task in ("segmentation", "scored_segmentation"):
        given = {"weights": "random", "network": network | {"keep_scores": task != "segmentation"}, "batch_size": 4}
        over = {"experts": {"mask_rcnn": given}, "label_stores": {"s": {"task": task, "expert": "mask_rcnn"}}}
        settings = Config.load(tiny.plain() | over | {"models": {}})
        folder, out = paths.expert("mask_rcnn"), paths.labels("s")
        train_expert(settings, "mask_rcnn", paths.EXPERT_RENDERS, folder, 0)
        label_batch(settings, "s", 0, paths.SHARD_INDEX, folder, out)
        index = index_labels(settings, "s", paths.SHARD_INDEX, out)
        file = LabelFile(out / "00000.parquet", find("tasks", task)())
        found[task] = [file.label(row) for row in range(len(file))], index["statistics"]
    (plain, plain_statistics), (scored, scored_statistics) = found.values()
    for label, other in zip(plain, scored, strict=True):
        assert_array_equal(label, other[..., 0])
    assert plain_statistics["classes"] == scored_statistics["classes"]
    assert 0 < scored_statistics["scalars"]["confidence"]["mean"] < 1


def test_instances_are_kept_as_coco_results():
    from pycocotools import mask as rle

    masks = np.zeros((2, 5, 7), bool)
    masks[0, 1:3, 2:6], masks[1, 0, 0] = True, True
    boxes = np.array([[2, 1, 6, 3], [0, 0, 1, 1]], np.float32)
    output = {"boxes": boxes, "labels": np.array([90, 1]), "scores": np.array([0.25, 0.75], np.float32)}
    results = mask_rcnn.coco_results({name: torch.from_numpy(array) for name, array in output.items()}, masks)
    assert [(one["category_id"], one["score"], one["bbox"]) for one in results] == [
        (1, 0.75, [0, 0, 1, 1]),
        (90, 0.25, [2, 1, 4, 2]),
    ]
    for one, mask in zip(results, masks[::-1], strict=True):
        assert_array_equal(rle.decode(one["segmentation"]), mask)


def test_the_label_store_carries_the_instances(tiny):
    """Beside the same painted maps as without them; in image pixels, though the label is smaller."""
    from pyarrow import parquet
    from pycocotools import mask as rle

    from cliptex.core import paths
    from cliptex.labels.index import index_labels
    from cliptex.labels.label import label_batch
    from cliptex.labels.store import LabelFile

    network = SMALL["mask_rcnn"] | {"score_threshold": 0.015, "mask_threshold": 0.3}
    tables = {}
    for keep in (False, True):
        given = {"weights": "random", "network": network | {"keep_instances": keep}, "batch_size": 4}
        over = {"experts": {"mask_rcnn": given}, "label_stores": {"s": {"task": "segmentation", "expert": "mask_rcnn"}}}
        settings = Config.load(tiny.plain() | over | {"models": {}, "labels": {"max_side_px": 32}})
        folder, out = paths.expert("mask_rcnn"), paths.labels("s")
        train_expert(settings, "mask_rcnn", paths.EXPERT_RENDERS, folder, 0)
        label_batch(settings, "s", 0, paths.SHARD_INDEX, folder, out)
        index = index_labels(settings, "s", paths.SHARD_INDEX, out)
        assert set(index["statistics"]["scalars"]) == {"coverage", "foreground"}
        tables[keep] = parquet.read_table(out / "00000.parquet")
        assert LabelFile(out / "00000.parquet").metadata["extra_columns"] == (["instances"] if keep else [])
    assert "instances" not in tables[False].column_names
    assert tables[True]["payload"] == tables[False]["payload"]
    rows = tables[True].to_pylist()
    assert any(row["instances"] for row in rows)
    for row in rows:
        scores = [one["score"] for one in row["instances"]]
        assert scores == sorted(scores, reverse=True)
        for one in row["instances"]:
            assert one["segmentation"]["size"] == [40, 56]  # the label is 23 x 32
            assert rle.decode(one["segmentation"]).shape == (40, 56)
            assert mask_rcnn.CONTIGUOUS[one["category_id"]] > 0


def test_boxes_are_exact_where_the_network_computes_in_bf16():
    """In bf16 these coordinates would be rounded to 1000, 504, 1184 and 776."""
    module = mask_rcnn.PLUGIN({"network": SMALL["mask_rcnn"]}).build()
    boxes = torch.tensor([[1001.5, 503.0, 1187.25, 777.0]])
    for part in (module.rpn, module.roi_heads):
        found = part.box_coder.decode(torch.zeros(1, 4, dtype=torch.bfloat16), [boxes])
        assert_array_equal(found[0], boxes)


def test_boxes_enclose_their_masks_at_pixel_edges():
    instance = torch.zeros(20, 30, dtype=torch.int64)
    instance[3:9, 5:12], instance[0:2, 0:2] = 1, 2  # the second is a sliver
    target = mask_rcnn.instance_targets(instance, torch.tensor([80, 3, 0], dtype=torch.uint8))
    assert target["boxes"].tolist() == [[5, 3, 12, 9]]
    assert target["labels"].tolist() == [90]
    assert_array_equal(target["masks"][0], instance == 1)


def test_average_precision_of_the_truth_is_100_and_of_nothing_0():
    data = ball_scenes(3, 48, 64, 3)
    found = []
    for instance, classes in zip(data["instance"], data["instance_class"], strict=True):
        target = mask_rcnn.instance_targets(torch.from_numpy(instance).long(), torch.from_numpy(classes))
        scores = torch.full((len(target["labels"]),), 0.9)
        found.append(target | {"masks": target["masks"][:, None].float(), "scores": scores})
    best = average_precision.average_precision(data, found, 0.5)
    assert best == pytest.approx({"box_AP": 100, "box_AP50": 100, "mask_AP": 100, "mask_AP50": 100})
    nothing = [{name: tensor[:0] for name, tensor in one.items()} for one in found]
    assert average_precision.average_precision(data, nothing, 0.5)["mask_AP"] == 0


# augmentation


def test_a_flip_mirrors_labels_and_negates_x_of_the_normals():
    scenes = ball_scenes(2, 48, 64, 4)
    plain, flipped = (
        augment(
            scenes, (48, 64), TrainingOptions(flip=flip, crop_scale=(1, 1), colour=0), torch.Generator().manual_seed(0)
        )
        for flip in (0, 1)
    )
    assert_allclose(plain["image"], np.moveaxis(scenes["image"], 3, 1) / 255, atol=1e-4)
    assert_array_equal(plain["instance"], scenes["instance"])
    assert_array_equal(plain["depth"], scenes["depth"])
    for name in ("image", "instance", "depth"):
        assert_allclose(flipped[name], plain[name].flip(-1), atol=1e-4)
    assert_allclose(flipped["normals"], plain["normals"].flip(-1) * torch.tensor([-1, 1, 1])[:, None, None])


def test_image_and_labels_stay_aligned_under_crops():
    scenes = ball_scenes(8, 48, 64, 5)
    # a picture that shows its own labels
    scenes["image"] = np.repeat((scenes["instance"] * 100)[..., None], 3, axis=3)
    out = augment(scenes, (40, 56), TrainingOptions(crop_scale=(0.3, 0.6), colour=0), torch.Generator().manual_seed(1))
    agree = (out["image"][:, 0] * 255 / 100).round() == out["instance"]
    assert agree.float().mean() > 0.95
    assert set(out["instance"].unique().tolist()) <= {0, 1, 2}
    assert_array_equal(out["depth"].isnan(), out["normals"][:, 0].isnan())


def test_colours_stay_in_range_and_differ_between_images():
    scenes = ball_scenes(1, 48, 64, 6)
    batch = {"image": np.repeat(scenes["image"], 6, axis=0)}
    training = TrainingOptions(flip=0, crop_scale=(1, 1))
    out = augment(batch, (48, 64), training, torch.Generator().manual_seed(0))["image"]
    assert out.min() >= 0
    assert out.max() <= 1
    assert out.mean((1, 2, 3)).std() > 0.01


# training


@pytest.mark.parametrize("name", EXPERTS)
def test_training_lowers_the_loss(name, renders):
    losses = expert(name, steps=40, colour=0, crop_scale=(1, 1)).fit(renders / "train.h5", seed=0)["losses"]
    assert all(np.isfinite(loss) for _, loss in losses)
    assert np.mean([loss for _, loss in losses[-3:]]) < np.mean([loss for _, loss in losses[:3]]) - 0.05


@pytest.mark.parametrize("name", EXPERTS)
def test_weights_survive_the_file(name, trained, tmp_path):
    one, _ = trained[name]
    save_file(one.state(), tmp_path / "weights.safetensors")
    other = expert(name)
    other.load(tmp_path / "weights.safetensors")
    images = list(ball_scenes(2, 48, 64, 7)["image"])
    for a, b in zip(one.predict(images, ["a", "b"]), other.predict(images, ["a", "b"]), strict=True):
        assert_array_equal(a, b)


@pytest.mark.parametrize("name", EXPERTS)
def test_the_same_seed_gives_the_same_weights(name, renders, trained):
    again = expert(name)
    torch.rand(3)  # the state of the global generator does not matter
    before = torch.random.get_rng_state()
    again.fit(renders / "train.h5", seed=5)
    assert_array_equal(torch.random.get_rng_state(), before)
    for key, tensor in trained[name][0].state().items():
        assert_array_equal(tensor, again.state()[key], err_msg=key)
    other = expert(name, steps=1)
    other.fit(renders / "train.h5", seed=6)
    assert any(not torch.equal(tensor, other.state()[key]) for key, tensor in trained[name][0].state().items())


def test_a_loss_that_is_not_finite_ends_the_training(renders):
    with pytest.raises(CliptexError, match="learning_rate"):
        expert("nll_angmf", learning_rate=1e20, steps=50, grad_clip=1e20).fit(renders / "train.h5", seed=0)


def test_renders_without_a_dataset_are_named(tmp_path):
    with h5py.File(tmp_path / "train.h5", "w") as file:
        file["image"] = np.zeros((1, 32, 32, 3), np.uint8)
    with pytest.raises(CliptexError, match=r"train\.h5.*depth"):
        expert("dpt").fit(tmp_path / "train.h5", seed=0)


def test_normals_loss_is_finite_when_every_pixel_is_sky():
    one = expert("nll_angmf")
    one.load(None)
    batch = {"image": torch.rand(2, 3, 64, 64), "normals": torch.full((2, 3, 64, 64), torch.nan)}
    loss = one.loss(batch, torch.Generator().manual_seed(0))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in one.module.parameters() if p.grad is not None)


# labelling


@pytest.mark.parametrize("name", EXPERTS)
def test_labels_are_what_the_task_encodes_at_any_size(name, trained):
    from cliptex.core.plugins import find

    rng = np.random.default_rng(0)
    shapes = [(48, 64), (33, 71), (64, 40), (48, 64), (8, 9)]
    images = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    one = trained[name][0]
    labels = one.predict(images, list("abcde"))
    task = find("tasks", one.task)()
    for shape, label in zip(shapes, labels, strict=True):
        assert label.shape[:2] == shape
        task.encode(label)
    if name == "dpt":
        assert all(label.min() >= 0 and np.isfinite(label).all() for label in labels)
    if name == "nll_angmf":
        assert all(np.allclose(np.linalg.norm(label[..., :3], axis=-1), 1, atol=1e-4) for label in labels)


@pytest.mark.skipif(torch.cuda.is_available(), reason="only on CPUs")
@pytest.mark.parametrize(
    ("size", "narrow"), [((31, 640), True), ((640, 40), True), ((64, 64), False), ((96, 128), False)]
)
def test_narrow_images_are_not_labelled_in_bf16_on_a_cpu(size, narrow):
    """There, PyTorch's convolutions in bf16 read beyond maps of one row: NaN, or values that differ from run to run."""
    for name, network in (("nll_angmf", SMALL["nll_angmf"]), ("mask_rcnn", SMALL["mask_rcnn"] | {"min_side_px": 64})):
        one = EXPERTS[name]({"network": network, "precision": "bf16"})
        one.randomise(0)
        used = []
        one.module.register_forward_pre_hook(lambda *_, used=used: used.append(torch.is_autocast_enabled("cpu")))
        with one.session():
            one.predict([np.zeros((*size, 3), np.uint8)], ["a"])
            assert torch.is_autocast_enabled("cpu")
        assert used == [not narrow]


@pytest.mark.parametrize("name", EXPERTS)
def test_a_network_without_finite_output_gives_no_label(name):
    one = EXPERTS[name]({"network": SMALL[name], "precision": "fp32"})
    one.randomise(0)
    with torch.no_grad():
        next(parameter for parameter in one.module.parameters() if parameter.ndim == 4)[:] = torch.inf
    with pytest.raises(ValueError, match="output has NaN or infinite values"):
        one.predict([np.full((64, 64, 3), 99, np.uint8)], ["a"])


@pytest.mark.parametrize("name", EXPERTS)
def test_a_label_does_not_depend_on_batch_mates(name, trained):
    one = trained[name][0]
    images = [*ball_scenes(4, 48, 64, 8)["image"], *ball_scenes(1, 40, 72, 9)["image"]]
    together = one.predict(images, list("abcde"))
    backwards = one.predict(images[::-1], list("edcba"))[::-1]
    for image, a, b in zip(images, together, backwards, strict=True):
        (alone,) = one.predict([image], ["x"])
        for other in (alone, b):
            if name == "mask_rcnn":
                assert np.mean(a != other) < 1e-3
            else:
                assert_allclose(a, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["dpt", "nll_angmf"])
def test_images_of_all_shapes_share_a_pass_where_the_network_sees_one_size(name, trained):
    rng = np.random.default_rng(0)
    shapes = [(48, 64), (33, 71), (64, 40), (20, 90), (48, 64)]
    images = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    network = SMALL[name] | ({"input_size_px": [32, 64]} if name == "nll_angmf" else {})
    one = EXPERTS[name]({"network": network, "batch_size": 4, "precision": "fp32"})
    one.load(None)
    one.module.load_state_dict(trained[name][0].module.state_dict())
    passes = []
    one.module.register_forward_pre_hook(
        lambda module, arguments, keywords: passes.append(len(next(iter((*arguments, *keywords.values()))))),
        with_kwargs=True,
    )
    together = one.predict(images, list("abcde"))
    assert passes == [4, 1]
    for image, label in zip(images, together, strict=True):
        assert label.shape[:2] == image.shape[:2]
        assert_allclose(one.predict([image], ["x"])[0], label, rtol=1e-4, atol=1e-4)


def test_a_batch_window_fills_passes_with_images_of_one_padded_size(trained, tmp_path):
    """Rows stay in the shard's order, and labels are those of images labelled alone."""
    from cliptex.core.plugins import find
    from cliptex.data.images import encode_png
    from cliptex.data.shard_index import index_shards
    from cliptex.data.shards import Pair, write_shard
    from cliptex.labels.files import label_recipe
    from cliptex.labels.label import labelling
    from cliptex.labels.store import SCHEMA_VERSION, LabelFile

    shapes = [(48, 64), (48, 72), (64, 48), (40, 72), (62, 48), (48, 71), (48, 62), (48, 96), (48, 64), (60, 48)]
    large = ball_scenes(10, 64, 96, 8)["image"]
    scenes = [scene[:height, :width] for scene, (height, width) in zip(large, shapes, strict=True)]
    pairs = [Pair(f"{number:09d}", encode_png(scene), "balls") for number, scene in enumerate(scenes)]
    write_shard(tmp_path / "00000.tar", pairs)
    (entry,) = index_shards([tmp_path / "00000.tar"], tmp_path / "index.json", 1.0)["shards"]
    task, files, passes = find("tasks", "segmentation")(), [], []
    for window in (None, 8):
        plain = {"batch_size": 3, "batch_window": window, "precision": "fp32", "network": SMALL["mask_rcnn"]}
        stores = {"s": {"task": "segmentation", "expert": "mask_rcnn"}}
        given = Config.load({"experts": {"mask_rcnn": plain}, "label_stores": stores})
        settings = given.experts["mask_rcnn"]
        for recorded in (given.subset("experts.mask_rcnn"), label_recipe(given, "s", task, None, tmp_path)):
            assert ("batch_window" in recorded) == (window is not None)
        one = EXPERTS["mask_rcnn"](settings.model_dump(mode="json"))
        one.load(None)
        one.module.load_state_dict(trained["mask_rcnn"][0].module.state_dict())
        seen = []
        one.module.register_forward_pre_hook(
            lambda module, images, seen=seen: seen.append([tuple(image.shape[1:]) for image in images[0]])
        )
        metadata = {"schema_version": SCHEMA_VERSION, "store": "s", "task": task.name, "codec": task.codec()}
        with labelling("mask_rcnn", one, task, settings, given.labels) as labeller:
            for again in range(2):
                labeller.label_shard(entry, metadata, path := tmp_path / f"{window}-{again}.parquet")
        assert path.read_bytes() == (tmp_path / f"{window}-0.parquet").read_bytes()
        files.append(LabelFile(path, task))
        passes.append(seen[: len(seen) // 2])
    assert [len(batch) for batch in passes[0]] == [1] * 10
    assert [len(batch) for batch in passes[1]] == [3, 3, 1, 1, 2]
    for batch in passes[1]:
        assert len({one.batch_key(*size) for size in batch}) == 1
    assert files[0].keys == files[1].keys == [pair.key for pair in pairs]
    for row in range(len(pairs)):
        assert task.differs(files[0].label(row), files[1].label(row)).sum() <= 8


def test_images_of_a_window_wait_for_others_of_their_size_within_a_limit(monkeypatch):
    def sizes(window, batch_size=2):
        images = [(str(n), "bad" if size is None else np.zeros((size, 4, 3), np.uint8)) for n, size in window]
        return [" ".join(batch) for batch in pipeline.batches(images, batch_size, lambda height, width: height)]

    window = list(enumerate([8, 6, None, 8, 8, 6, 7, 8, 7, 6]))
    assert sizes(window) == ["0 3", "1 5", "4 7", "6 8", "2", "9"]
    assert sizes(window[:4], 8) == ["0 3", "1", "2"]
    monkeypatch.setattr(pipeline, "MAX_GATHERED_BYTES", 250)
    assert sizes(window, 8) == ["0 3", "1", "2", "4", "5", "6", "7", "8", "9"]
    assert [*map(list, pipeline.batches([("a", "bad"), ("b", np.zeros((2, 2, 3)))], 1, None))] == [["a", "b"]]


def test_mirrored_images_have_mirrored_normals(tmp_path):
    # slanted walls, bright at the side that is turned to the right; trained on one slant, seen flipped half the time
    ramp = np.linspace(40, 210, 64)[None, :, None] * np.ones((48, 1, 3))
    image = np.repeat(ramp[None], 4, axis=0).astype(np.uint8)
    normals = np.broadcast_to(np.array([0.6, 0.0, 0.8], np.float16), image.shape)
    with h5py.File(tmp_path / "train.h5", "w") as file:
        file["image"], file["normals"] = image, normals
    one = expert("nll_angmf", steps=120, learning_rate=2e-3, crop_scale=(1, 1), colour=0)
    one.fit(tmp_path / "train.h5", seed=0)
    plain, mirrored = one.predict([image[0], image[0, :, ::-1].copy()], ["a", "b"])
    assert plain[..., 0].mean() > 0.1
    assert mirrored[..., 0].mean() < -0.1


# the stage


def config(**experts):
    return Config.load({"experts": experts})


def test_the_stage_writes_weights_quality_and_record(renders, tmp_path):
    training = {"steps": 3, "batch_size": 4}
    settings = config(shapes={"plugin": "mask_rcnn", "network": SMALL["mask_rcnn"], "training": training})
    train_expert(settings, "shapes", renders, tmp_path, seed=0)
    record, quality = read_json(tmp_path / "expert.json"), read_json(tmp_path / "quality.json")
    assert record["source"] == "miniature"
    assert record["quality"] == quality["quality"]
    assert set(quality["quality"]) >= {"mIoU", "box_AP50", "mask_AP50"}
    assert set(quality["prior"]) == {"mIoU", "aAcc"}
    one = load_expert("shapes", settings.experts["shapes"], tmp_path)
    assert one.weights_sha256 == record["weights_sha256"] == quality["weights_sha256"]
    assert one.predict([np.zeros((32, 32, 3), np.uint8)], ["k"])[0].shape == (32, 32)


def test_local_weights_are_recorded_in_place(trained, tmp_path):
    path = tmp_path / "given.safetensors"
    save_file(trained["dpt"][0].state(), path)
    settings = config(dpt={"weights": "local", "path": str(path), "network": SMALL["dpt"], "licence": "MIT"})
    train_expert(settings, "dpt", tmp_path / "no renders", tmp_path / "out", seed=0)
    record = read_json(tmp_path / "out" / "expert.json")
    assert (record["source"], record["licence"], record["quality"]) == ("local", "MIT", None)
    assert record["num_parameters"] == counts(trained["dpt"][0].module)[0]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["expert.json"]
    one = load_expert("dpt", settings.experts["dpt"], tmp_path / "out")
    image = ball_scenes(1, 48, 64, 11)["image"][0]
    assert_array_equal(one.predict([image], ["k"])[0], trained["dpt"][0].predict([image], ["k"])[0])


def test_weights_that_changed_since_are_refused(trained, tmp_path):
    path = tmp_path / "given.safetensors"
    save_file(trained["dpt"][0].state(), path)
    settings = config(dpt={"weights": "local", "path": str(path), "network": SMALL["dpt"]})
    train_expert(settings, "dpt", tmp_path, tmp_path / "out", seed=0)
    state = trained["dpt"][0].state()
    save_file({name: tensor + 1 for name, tensor in state.items()}, path)
    with pytest.raises(CliptexError, match="records"):
        load_expert("dpt", settings.experts["dpt"], tmp_path / "out")
    path.unlink()
    with pytest.raises(CliptexError, match="are missing"):
        load_expert("dpt", settings.experts["dpt"], tmp_path / "out")


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "pickle", "absent"])
def test_weights_that_do_not_fit_are_refused_by_name(change, tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    state = dict(module.state_dict())
    path = tmp_path / "weights.safetensors"
    words = {"missing": "0.bias", "unknown": "extra", "shape": "0.weight", "pickle": "executed", "absent": "no such"}
    if change == "missing":
        del state["0.bias"]
    elif change == "unknown":
        state["extra"] = torch.zeros(1)
    elif change == "shape":
        state["0.weight"] = torch.zeros(4, 3, 3, 3)
    if change == "pickle":
        torch.save(state | {"0.bias": Path("0.bias")}, path)
    elif change != "absent":
        save_file(state, path)
    with pytest.raises(CliptexError, match=words[change]):
        load_weights(module, path)


def test_a_local_expert_needs_a_file_that_is_there(tmp_path):
    settings = config(dpt={"weights": "local", "path": "nowhere.safetensors", "network": SMALL["dpt"]})
    with pytest.raises(CliptexError, match=r"experts\.dpt\.path: nowhere\.safetensors does not exist"):
        train_expert(settings, "dpt", tmp_path, tmp_path / "out", seed=0)


@pytest.mark.parametrize(
    ("name", "network", "training"),
    [
        ("mask_rcnn", {"architektur": "small"}, {}),
        ("dpt", {"config": {"hiden_size": 3}}, {}),
        ("nll_angmf", {"architecture": "layer"}, {}),
        ("nll_angmf", {"input_size_px": [48, 64]}, {}),
        ("nll_angmf", SMALL["nll_angmf"], {"stepz": 3}),
    ],
)
def test_wrong_options_are_named(name, network, training, renders):
    wrong = next(
        key for key in ("architektur", "hiden_size", "layer", "48", "stepz") if key in str((network, training))
    )
    if name == "nll_angmf" and training:
        wrong = "stepz"
    with pytest.raises(CliptexError, match=wrong):
        EXPERTS[name]({"network": network, "training": training}).fit(renders / "train.h5", seed=0)


# exact labels


def test_true_labels_have_the_form_of_each_task():
    from cliptex.core.plugins import find

    scene = {name: array[0] for name, array in ball_scenes(1, 48, 64, 12).items()}
    labels = {task: truth.true_label(task, scene) for task in ("segmentation", "depth", "normals")}
    for task, label in labels.items():
        find("tasks", task)().encode(label)
    number = int(scene["instance"].max())
    assert (labels["segmentation"][scene["instance"] == number] == scene["instance_class"][number - 1]).all()
    sky = np.isnan(scene["depth"])
    assert (labels["depth"][sky] == 0).all()
    assert_allclose(labels["depth"][~sky], 1 / scene["depth"][~sky], rtol=1e-6)
    assert np.isnan(labels["normals"][sky]).all()
    assert_allclose(np.linalg.norm(labels["normals"][~sky][:, :3], axis=-1), 1, atol=1e-3)


def test_the_truth_is_the_pair_rendered_again(tmp_path):
    from cliptex.data.images import decode_image
    from cliptex.data.miniature.sets import render_pairs
    from cliptex.data.shards import read_shard

    names = ("segmentation", "depth", "normals")
    experts = {f"true_{task}": {"plugin": "truth", "network": {"task": task}} for task in names}
    small = {"image_size_px": 64, "pairs": 2, "pairs_per_shard": 2}
    settings = Config.load({"miniature": small, "experts": experts})
    render_pairs(settings.miniature, 0, tmp_path / "00000.tar")
    pairs = read_shard(tmp_path / "00000.tar")
    images = [decode_image(pair.image) for pair in pairs]
    labels = {}
    for task in names:
        folder = tmp_path / task
        train_expert(settings, f"true_{task}", tmp_path, folder, seed=0)
        assert read_json(folder / "expert.json")["source"] == "none"
        one = load_expert(f"true_{task}", settings.experts[f"true_{task}"], folder)
        assert one.task == task
        assert one.weights_sha256
        labels[task] = one.predict(images, [pair.key for pair in pairs])
        with pytest.raises(CliptexError, match="000000007"):
            one.predict(images[:1], ["000000007"])
        with pytest.raises(CliptexError, match="miniature"):
            one.predict([images[0][:40]], [pairs[0].key])
    for segmentation, depth, normals in zip(*labels.values(), strict=True):
        assert segmentation.shape == depth.shape == normals.shape[:2] == (64, 64)
        assert segmentation.max() <= 80
        assert_array_equal(np.isnan(normals[..., 0]), depth == 0)
        # what lies in the sky belongs to no object
        assert not segmentation[depth == 0].any()


# options


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("experts.dpt.network.confg", {}, "unknown key; did you mean config"),
        ("experts.mask_rcnn.network.small.encodr", "x", "unknown key; did you mean encoder"),
        ("experts.mask_rcnn.network.score_threshold", 2, "at most 1"),
        ("experts.nll_angmf.training.learning_rate", float("nan"), "finite"),
        ("experts.nll_angmf.network", {}, "network.encoder: set it for a network that is trained here"),
        ("experts.mask_rcnn.network.keep_scores", True, "makes scored_segmentation.*but the task is 'segmentation'"),
        ("experts.dpt.plugin", "no.such.module:Expert", "'no.such.module' is not importable"),
        ("backbone.training.stepz", 3, "unknown key; did you mean steps"),
        ("label_stores.normals.expert", "dpt", "makes depth, but the task is 'normals'"),
        ("label_stores.normals.of", "depth", "labels images itself"),
        ("models.cliptex.losses", {"depth": {"alignment": "best"}}, "losses.depth.alignment: must be one of target"),
        ("models.cliptex.losses", {"depth": {"gradient_weight": -1}}, "at least 0"),
    ],
)
def test_mistakes_in_options_are_found_before_any_job(key, value, problem):
    plain = Config.load(ROOT / "config/config.yaml").plain()
    assert not list(problems(Config.load(plain)))
    section, *parents, name = key.split(".")
    section = plain[section]
    for parent in parents:
        section = section[parent]
    section[name] = value
    found = [f"{'.'.join(path)}: {sentence}" for path, sentence in problems(Config.load(plain))]
    assert len([one for one in found if re.search(problem, one)]) == 1, found


def test_options_are_checked_without_pytorch():
    code = (
        "import sys; from cliptex.config import Config; from cliptex.experts.option_checks import problems;"
        " list(problems(Config.load('config/config.yaml')));"
        " print(sorted({'torch', 'timm', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "[]\n"
