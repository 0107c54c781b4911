"""The heads of the protocols: their shapes and parameters, that they learn, and that pyramids fit maps of odd sides."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cliptex.evaluation.metrics.depth import affine_aligned
from cliptex.evaluation.metrics.segmentation import IGNORE
from cliptex.evaluation.probes.features import split_holdout
from cliptex.evaluation.probes.heads import decoders
from cliptex.evaluation.probes.heads.classification import GridPoint, grid_of, probe_classification, train_grid
from cliptex.evaluation.probes.heads.depth import probe_depth
from cliptex.evaluation.probes.heads.detection import build_detector, detect, train_detector, training_objects
from cliptex.evaluation.probes.heads.detectors import Anchors, Pyramid, frames
from cliptex.evaluation.probes.heads.maps import evaluation_window
from cliptex.evaluation.probes.heads.normals import probe_normals
from cliptex.evaluation.probes.heads.ridge import fit_ridge, regressed
from cliptex.evaluation.probes.heads.segmentation import build_head, class_weights
from cliptex.evaluation.probes.training import (
    Candidate,
    NotFinite,
    Optimisation,
    batches,
    best_candidate,
    candidates,
    finite,
    rate_factor,
    train_network,
)
from cliptex.evaluation.probes.views import ImageView
from cliptex.evaluation.protocols.base import Training
from cliptex.evaluation.protocols.resolve import protocol_of

pytestmark = pytest.mark.xdist_group("probes")


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def heads_of(protocol, benchmark, task, **changes):
    return getattr(protocol_of(benchmark, {"protocol": protocol, **changes}), task).heads


# Segmentation


def test_the_papers_and_dinov2s_segmentation_heads_have_their_parameters():
    paper = heads_of("paper", "voc", "semantic_segmentation")
    assert parameters(build_head(paper["linear"], 768, 21)) == 768 * 21 + 21
    # of mmsegmentation's ASPPHead with 256 channels and dilations 1, 6, 12, 18
    assert parameters(build_head(paper["deeplabv3"], 768, 21)) == pytest.approx(8.7e6, rel=0.01)
    assert build_head(paper["pspnet"], 768, 21).head.pool_scales == (1, 2, 3, 6)
    linear = build_head(heads_of("dinov2", "ade20k", "semantic_segmentation")["linear"], 768, 150)
    assert parameters(linear) == 2 * 768 + 768 * 150 + 150
    assert linear(torch.randn(2, 768, 5, 7)).shape == (2, 150, 5, 7)
    # the batch's own statistics in training
    out = linear.norm(torch.randn(4, 768, 5, 7) * 9 + 3)
    assert out.mean().abs() < 0.01 and abs(out.std() - 1) < 0.01


# Depth and normals


def test_the_decoders_of_dinov2_and_probe3d_have_their_shapes_and_parameters():
    options = heads_of("dinov2", "nyuv2", "depth")["linear"]
    head = decoders.depth_head(options, 2 * 768, 1e-3, 10)
    assert parameters(head) == 2 * 768 * 256 + 256
    assert head(torch.randn(2, 2 * 768, 3, 4)).shape == (2, 1, 12, 16)
    options = heads_of("probe3d", "nyuv2", "depth")["dpt"]
    conv = 512 * 512 * 9 + 512
    shared = 4 * (768 * 512 + 512) + 14 * conv + conv
    head = decoders.depth_head(options, 4 * 768, 1e-3, 10)
    assert parameters(head) == shared + 512 * 256 * 9 + 256
    options = heads_of("probe3d", "nyuv2", "normals")["dpt"]
    assert parameters(decoders.build_decoder(options, 4 * 768, 4)) == shared + 512 * 4 * 9 + 4
    small = options.model_copy(update={"channels": 8})
    assert decoders.build_decoder(small, 4 * 6, 4)(torch.randn(2, 24, 3, 5)).shape == (2, 4, 48, 80)


def test_bins_give_depths_within_their_range_and_those_that_are_asked_for():
    bins = decoders.Bins(256, 0.001, 10.0)
    flat = bins(torch.full((1, 256, 2, 2), -3.0))
    torch.testing.assert_close(flat, torch.full((1, 1, 2, 2), 5.0005))
    scores = torch.zeros(1, 256, 1, 1)
    scores[0, 51] = 1e6
    assert bins(scores).item() == pytest.approx(0.001 + 51 * 9.999 / 255, rel=1e-3)


def test_the_linear_decoder_is_a_convolution_of_resized_features():
    head, features = decoders.LinearDecoder(5, 3, 4), torch.randn(2, 5, 3, 4)
    resized = F.interpolate(features, scale_factor=4, mode="bilinear", align_corners=False)
    torch.testing.assert_close(head(features), head.conv(resized), atol=1e-5, rtol=1e-4)


def test_depth_losses_by_hand():
    g = torch.tensor([[[0.0, 0.1, 0.4, 0.2], [0.3, 0.0, 0.2, 0.1]]])
    known = torch.tensor([[[True, True, True, True], [True, False, True, True]]])
    g = g * known
    values = torch.tensor([0.0, 0.1, 0.4, 0.2, 0.3, 0.2, 0.1])
    expected = (values.square().mean() - 0.85 * values.mean() ** 2).sqrt()
    torch.testing.assert_close(decoders.scale_invariant_loss(g, known), expected)
    # across, two apart: |0.4 - 0| + |0.2 - 0.1| + |0.2 - 0.3|, over 7 pixels; nothing two apart at coarser steps
    torch.testing.assert_close(decoders.gradient_loss(g, known), torch.tensor(0.6 / 7))
    # a prediction that is wrong by a factor has no gradient loss, and a small scale-invariant one
    truth = torch.rand(2, 16, 16) * 5 + 1
    options = heads_of("probe3d", "nyuv2", "depth")["dpt"]
    right, twice = (decoders.depth_loss(options)(truth[:, None] * factor, truth) for factor in (1.0, 2.0))
    assert right < 1e-4 and twice == pytest.approx(10 * np.sqrt(0.15) * np.log(2), rel=0.01)


@pytest.fixture(scope="module")
def scenes():
    """Features that tell depth and normals, and maps of both, [V, C, h, w] and lists of [R, S, ...]."""
    rng = np.random.default_rng(0)
    depth = torch.from_numpy(rng.uniform(1, 8, (40, 1, 4, 4)).astype(np.float32))
    normal = F.normalize(torch.from_numpy(rng.normal(size=(40, 3, 4, 4)).astype(np.float32)))
    features = torch.cat([depth / 4 - 1, normal], 1).repeat(1, 4, 1, 1)  # as of four blocks
    depths = list(F.interpolate(depth, size=(16, 16))[:, 0].numpy())
    normals = list(F.interpolate(normal, size=(16, 16)).permute(0, 2, 3, 1).numpy().copy())
    depths[0][:5], normals[0][:5] = np.nan, np.nan
    return features, depths, normals


FAST = {"steps": 80, "batch_size": 8, "learning_rates": [5e-3], "weight_decays": [0.0], "channels": 16}


@pytest.mark.parametrize("decoder", ["linear", "dpt"])
def test_trained_decoders_find_depth_and_normals_in_features_that_tell_them(decoder, scenes):
    features, depths, normals = scenes
    fast = {**FAST, "decoder": decoder, "bins": 32} | ({"learning_rates": [0.3]} if decoder == "linear" else {})
    task = protocol_of("nyuv2", {"protocol": "probe3d", "depth": {"heads": {"dpt": fast}}}).depth
    split, parts = split_holdout(30, 0.2, 0), (slice(0, 30), slice(30, None))
    maps = [features[part] for part in parts]
    judged = probe_depth(*maps, *(depths[part] for part in parts), task, "dpt", split, 0, keep=1)
    assert judged.metrics["rmse"] < 0.6 * np.std(np.concatenate(depths[30:]))
    assert judged.metrics["affine_rmse"] <= judged.metrics["rmse"] + 1e-6
    assert judged.predictions["depth_prediction_0"].shape == (16, 16)
    fast = {**FAST, "decoder": decoder} | ({"learning_rates": [0.05]} if decoder == "linear" else {})
    task = protocol_of("nyuv2", {"protocol": "probe3d", "normals": {"heads": {"dpt": fast}}}).normals
    judged = probe_normals(*maps, *(normals[part] for part in parts), task, "dpt", split, 0, keep=1)
    assert judged.metrics["mean"] < 40  # 90 by chance
    assert judged.predictions["normals_prediction_0"].shape == (16, 16, 3)
    # where it is surer than elsewhere, the fourth channel is higher: it is trained at all
    plain = {**fast, "uncertainty": False, "steps": 8}
    task = protocol_of("nyuv2", {"protocol": "probe3d", "normals": {"heads": {"dpt": plain}}}).normals
    assert probe_normals(*maps, *(normals[part] for part in parts), task, "dpt", split, 0, 0).metrics["mean"] < 100


def test_depth_and_normals_choose_rate_and_decay_on_the_holdout(scenes):
    features, depths, normals = scenes
    grid = {**FAST, "decoder": "linear", "steps": 20, "bins": 16}
    grid |= {"learning_rates": [1e-9, 0.1], "weight_decays": [0.0, 0.1]}
    split = split_holdout(30, 0.2, 0)
    chosen = []
    for shift in (0, 3):  # another truth of the evaluation images
        task = protocol_of("nyuv2", {"protocol": "probe3d", "depth": {"heads": {"dpt": grid}}}).depth
        others = [depth + shift for depth in depths[30:]]
        one = probe_depth(features[:30], features[30:], depths[:30], others, task, "dpt", split, 0, 0)
        chosen.append(one.hyperparameters)
    assert chosen[0] == chosen[1] and chosen[0]["learning_rate"] == 0.1
    assert len(chosen[0]["holdout_rmse"]) == 4
    grid = {key: value for key, value in grid.items() if key != "bins"}
    task = protocol_of("nyuv2", {"protocol": "probe3d", "normals": {"heads": {"dpt": grid}}}).normals
    one = probe_normals(features[:30], features[30:], normals[:30], normals[30:], task, "dpt", split, 0, 0)
    scores = one.hyperparameters["holdout_mean"]
    assert one.hyperparameters["learning_rate"] == 0.1
    assert min(scores, key=scores.get).startswith("rate 0.1,")


# Detection


@pytest.mark.parametrize("shape", [(8, 8), (7, 5), (9, 4), (5, 11)])
def test_the_pyramid_has_a_map_a_stride_also_at_odd_sizes(shape):
    pyramid = Pyramid(6, 4, (4, 8, 16, 32, 64))
    maps = pyramid(torch.randn(2, 6, *shape))
    height, width = shape
    expected = [(height * 4, width * 4), (height * 2, width * 2), shape]
    expected += [(-(-height // 2), -(-width // 2)), (-(-height // 4), -(-width // 4))]
    assert [one.shape for one in maps.values()] == [(2, 4, *size) for size in expected]
    # anchors lie at every stride from the corner on, whatever the map's size
    strides = (4, 8, 16, 32)
    anchors = Anchors(strides, [(float(stride),) for stride in strides], (1.0,))
    images = frames(torch.randn(2, 6, *shape))
    assert images.image_sizes == [(16 * height, 16 * width)] * 2
    (boxes, _) = anchors(images, list(maps.values())[:4])
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    start = 0
    for stride, (rows, columns) in zip(strides, expected[:4], strict=True):
        level = centres[start : start + rows * columns].reshape(rows, columns, 2)
        assert level[-1, -1].tolist() == [(columns - 1) * stride, (rows - 1) * stride]
        start += rows * columns
    assert start == len(boxes)


@pytest.mark.parametrize("name", ["mask_rcnn", "ssd"])
@pytest.mark.parametrize("grid", [(6, 6), (5, 7)])
def test_the_papers_detectors_take_maps_of_any_size(name, grid):
    small = {"channels": 8, "proposals": 20, "box_units": 16} if name == "mask_rcnn" else {"channels": 8}
    options = heads_of("paper", "coco", "detection", detection={"heads": {name: small}})[name]
    detector = build_detector(12, 3, options).train()
    sample = {
        "image": np.zeros((30, 50, 3), np.uint8),
        "boxes": np.array([[4, 5, 28, 25]], np.float32),
        "labels": np.array([1]),
        "masks": np.ones((1, 30, 50), bool),
        "crowd": np.array([False]),
    }
    frame = (16 * grid[0], 16 * grid[1])
    target = training_objects(sample, frame, ImageView(0, 0, 30, 50)).target()
    nothing = {key: value[:0] for key, value in target.items()}
    losses = detector(torch.randn(2, 12, *grid), [target, nothing])
    wanted = {"bbox_regression", "classification"} if name == "ssd" else {"loss_mask", "loss_box_reg"}
    assert wanted <= losses.keys()
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in detector.parameters())
    found = detect(detector.eval(), torch.randn(2, 12, *grid), [(30, 50), (40, 20)])
    for one, (height, width) in zip(found, [(30, 50), (40, 20)], strict=True):
        assert (one["boxes"] >= 0).all() and (one["boxes"][:, 2] <= width + 1e-3).all()
        assert (one["boxes"][:, 3] <= height + 1e-3).all() and one["labels"].min(initial=0) >= 0
        assert ("masks" in one) == (name == "mask_rcnn")


def test_the_papers_detectors_have_their_parameters():
    heads = heads_of("paper", "coco", "detection")
    ssd = build_detector(768, 80, heads["ssd"])
    assert ssd.network.anchor_generator.num_anchors_per_location() == [6] * 4
    predictors = 4 * (256 * 9 * 6 * (81 + 4) + 6 * (81 + 4))
    assert parameters(ssd.network.head) == predictors
    rcnn = build_detector(768, 80, heads["mask_rcnn"])
    assert rcnn.network.backbone.strides == (4, 8, 16, 32)
    assert rcnn.network.roi_heads.box_predictor.cls_score.out_features == 81
    assert rcnn.network.roi_heads.mask_predictor.mask_fcn_logits.out_channels == 81


def test_ssd_finds_objects_in_features_that_tell_them():
    rng = np.random.default_rng(0)
    features, samples = torch.zeros(88, 4, 8, 8), []
    features[:, 3] = torch.linspace(-1, 1, 8)
    for index in range(88):
        x, y, label = *rng.integers(0, 5, 2), rng.integers(2)
        features[index, label, y : y + 4, x : x + 4] = 1
        samples.append(
            {
                "image": np.zeros((64, 64, 3), np.uint8),
                "boxes": np.array([[x, y, x + 4, y + 4]], np.float32) * 8,
                "labels": np.array([label]),
                "masks": np.zeros((1, 64, 64), bool),
                "crowd": np.array([False]),
            }
        )
    changes = {"channels": 16, "steps": 80, "batch_size": 8, "learning_rates": [2e-3], "optimizer": "adamw"}
    changes |= {"strides": [16, 32], "scales": [0.3, 0.7]}
    options = heads_of("paper", "coco", "detection", detection={"heads": {"ssd": changes}})["ssd"]
    objects = [training_objects(one, (128, 128), ImageView(0, 0, 64, 64)) for one in samples]
    detector = train_detector(features[:64], objects[:64], 2, options, candidates(options)[0], seed=0)
    right = 0
    for one, sample in zip(detect(detector, features[64:], [(64, 64)] * 24), samples[64:], strict=True):
        box, truth = one["boxes"][0], sample["boxes"][0]
        overlap = np.prod(np.clip(np.minimum(box[2:], truth[2:]) - np.maximum(box[:2], truth[:2]), 0, None))
        union = np.prod(box[2:] - box[:2]) + np.prod(truth[2:] - truth[:2]) - overlap
        right += overlap / union > 0.5 and one["labels"][0] == sample["labels"][0]
    assert right >= 20


# Classification


def test_a_grid_of_classifiers_trained_together_is_that_of_each_trained_alone_by_torch():
    torch.manual_seed(0)
    features, labels = torch.randn(40, 6), torch.randint(0, 3, (40,))
    grid = {"learning_rates": [0.1, 1.0], "weight_decays": [0.0, 0.05], "steps": 30, "batch_size": 10, "blocks": [1]}
    changes = {"classification": {"heads": {"linear": {**grid, "mean_patch": [False], "warmup": 0.2}}}}
    options = protocol_of("imagenet", {"protocol": "dinov2", **changes}).classification.heads["linear"]
    (points,) = grid_of(options, 6, 0)
    together = train_grid(features, labels, 3, points, options, seed=5)
    from cliptex.evaluation.probes.training import batches

    for point, ours in zip(points, together, strict=True):
        generator = torch.Generator().manual_seed(5)
        linear = torch.nn.Linear(6, 3)
        with torch.no_grad():
            linear.weight.copy_((torch.randn(6, 3, generator=generator) * 0.01).T)
            linear.bias.zero_()
        sgd = torch.optim.SGD(linear.parameters(), lr=1.0, momentum=0.9, weight_decay=point.weight_decay)
        for step, batch in enumerate(batches(40, 10, 30, generator)):
            sgd.param_groups[0]["lr"] = point.learning_rate * rate_factor(options, step)
            sgd.zero_grad()
            F.cross_entropy(linear(features[batch]), labels[batch]).backward()
            sgd.step()
        torch.testing.assert_close(ours[:-1], linear.weight.data.T, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(ours[-1], linear.bias.data, atol=1e-4, rtol=1e-3)


def test_classifiers_of_tokens_read_what_they_say():
    options = protocol_of("imagenet", {"protocol": "dinov2"}).classification.heads["linear"]
    groups = grid_of(options, 5 * 7, 4)
    assert [(one[0].blocks, one[0].mean_patch) for one in groups] == [(1, False), (1, True), (4, False), (4, True)]
    read = [list(range(35))[one[0].columns] for one in groups]
    assert read == [list(range(21, 28)), list(range(21, 35)), list(range(28)), list(range(35))]
    assert all(len(one) == 13 for one in groups)
    assert str(groups[1][0]) == "1 blocks and mean patch, rate 4e-05, decay 0"


def test_the_best_of_the_grid_is_chosen_on_the_holdout_and_by_nothing_else():
    torch.manual_seed(0)
    # the class stands in the class token of the last block but one; four tokens and a mean patch of 3 channels
    labels = torch.randint(0, 3, (90,))
    features = torch.randn(90, 15)
    features[:, 6:9] += 3 * F.one_hot(labels, 3)
    changes = {"steps": 60, "batch_size": 32, "learning_rates": [1e-7, 0.5]}
    entry = {"protocol": "dinov2", "classification": {"heads": {"linear": changes}}}
    task = protocol_of("imagenet", entry).classification
    split = split_holdout(60, 0.3, 0)
    outcomes = [
        probe_classification(features[:60], features[60:], labels[:60], judged, 3, task, "linear", split, 0, 3)
        for judged in (labels[60:], (labels[60:] + 1) % 3)
    ]
    chosen = outcomes[0].hyperparameters
    assert chosen == outcomes[1].hyperparameters
    assert (chosen["learning_rate"], chosen["blocks"]) == (0.5, 4) and len(chosen["holdout_top1"]) == 8
    assert outcomes[0].metrics["top1"] > 80 > 20 > outcomes[1].metrics["top1"]
    assert outcomes[0].num_parameters in (3 * 13, 3 * 16)
    assert outcomes[0].predictions["prediction"].shape == (3, 3)
    assert isinstance(grid_of(task.heads["linear"], 15, 4)[0][0], GridPoint)


# Ridge regression


def test_ridge_regression_is_its_normal_equations():
    """On maps of the grid's size, so that nothing is interpolated, and more views than one chunk has."""
    rng = np.random.default_rng(0)
    maps, views = rng.normal(1, 2, (150, 3, 2, 2)).astype(np.float32), np.arange(150)
    weights = rng.normal(size=(3, 2))
    targets = np.moveaxis(maps, 1, 3) @ weights + rng.normal(0.5, 3, (150, 2, 2, 2))
    targets = targets.astype(np.float32)
    targets[::7, 0, 1, 0] = np.nan
    x, y = np.moveaxis(maps, 1, 3), targets

    def solved(chosen, penalty):
        known = np.isfinite(y[chosen]).all(-1)
        points, values = x[chosen][known].astype(np.float64), y[chosen][known].astype(np.float64)
        centred = points - points.mean(0)
        covariance = centred.T @ centred / len(points) + penalty * np.eye(3)
        found = np.linalg.solve(covariance, centred.T @ (values - values.mean(0)) / len(points))
        return found, values.mean(0) - points.mean(0) @ found, points, values

    def error(truth, prediction):
        return float(np.abs(truth - prediction).mean())

    fit, held, penalties = views[:100], views[100:], (0.01, 2.0, 500.0)
    errors, best, (found, bias) = fit_ridge(torch.from_numpy(maps), targets, fit, held, penalties, error)
    _, _, points, values = solved(held, 0)
    for penalty in penalties:
        slope, shift, _, _ = solved(fit, penalty)
        assert errors[str(penalty)] == pytest.approx(error(values, points @ slope + shift), rel=1e-4)
    assert best == min(penalties, key=lambda penalty: errors[str(penalty)]) < 500
    slope, shift, _, _ = solved(views, best)
    np.testing.assert_allclose(found.numpy(), slope, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(bias.numpy(), shift, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        regressed(torch.from_numpy(maps), (found, bias)).permute(0, 2, 3, 1), x @ slope + shift, rtol=1e-3, atol=1e-3
    )


# Training


def test_batches_are_full_and_cut_from_permutations_of_all_views():
    cut = batches(10, 4, 6, torch.Generator().manual_seed(0))
    assert [len(batch) for batch in cut] == [4] * 6
    drawn = torch.cat(cut)
    assert sorted(drawn[:10].tolist()) == sorted(drawn[10:20].tolist()) == list(range(10))
    assert len(set(drawn[20:].tolist())) == 4 and drawn[:10].tolist() != drawn[10:20].tolist()
    assert [sorted(batch.tolist()) for batch in batches(3, 8, 2, torch.Generator())] == [[0, 1, 2]] * 2


@pytest.mark.parametrize(("clip", "step"), [(None, 0.1 * (3 + 0.5 * 2)), (1.0, 0.1 * (1 + 0.5 * 2))])
def test_a_step_of_sgd_has_its_rate_decay_and_clipping(clip, step):
    values = {"steps": 4, "batch_size": 1, "learning_rates": [0.2], "weight_decays": [0.5], "warmup": 0.5}
    options = Training.model_validate({**values, "optimizer": "sgd", "momentum": 0.0, "clip": clip})
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    optimisation = Optimisation([weight], options, candidates(options)[0])
    optimisation.step(3 * weight.sum())  # at half the rate, in the warm-up
    assert weight.item() == pytest.approx(2 - step, rel=1e-5)
    optimisation.step(0 * weight.sum())
    assert weight.item() == pytest.approx((2 - step) * (1 - 0.2 * 0.5), rel=1e-5)


def test_rates_rise_and_fall_as_they_should():
    def factors(**changes):
        values = {"steps": 100, "batch_size": 1, "learning_rates": [1.0], "weight_decays": [0.0]}
        options = Training.model_validate({**values, **changes})
        return [rate_factor(options, step) for step in range(100)]

    linear = factors(warmup=0.1, power=1.0)
    assert linear[:3] == pytest.approx([0.1, 0.2, 0.3]) and linear[9:11] == [1, 1]
    assert linear[55] == pytest.approx(0.5) and linear[99] == pytest.approx(1 / 90)
    cosine = factors(warmup=0.0, decay="cosine", final=0.01)
    assert (
        cosine[0] == 1 and cosine[50] == pytest.approx(0.505, abs=0.01) and cosine[99] == pytest.approx(0.01, abs=1e-3)
    )
    steps = factors(warmup=0.0, decay="steps", milestones=[0.88, 0.96], gamma=0.1)
    assert [steps[at] for at in (0, 87, 88, 95, 96)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_a_lone_candidate_is_not_tried_and_of_many_the_best_is_taken():
    values = {"steps": 1, "batch_size": 1, "learning_rates": [0.1, 0.2], "weight_decays": [0.0, 1.0]}
    options = Training.model_validate(values)
    best, scores = best_candidate(options, lambda one: one.learning_rate - one.weight_decay)
    assert best == Candidate(0.2, 0.0) and len(scores) == 4
    lone = Training.model_validate({**values, "learning_rates": [0.3], "weight_decays": [0.0]})
    assert best_candidate(lone, lambda one: 1 / 0) == (Candidate(0.3, 0.0), {})
    # of equals the first
    assert best_candidate(options, lambda one: 1.0)[0] == Candidate(0.1, 0.0)


def test_a_candidate_that_diverges_is_never_chosen_and_if_all_do_that_is_an_error():
    values = {"steps": 1, "batch_size": 1, "learning_rates": [0.1, 0.2, 0.3], "weight_decays": [0.0]}
    options = Training.model_validate(values)

    def score(one):
        finite(np.array([1.0, np.inf if one.learning_rate < 0.25 else 1.0]), "weights")
        return -5.0

    best, scores = best_candidate(options, score)
    assert best.learning_rate == 0.3
    assert scores == {"rate 0.1, decay 0": None, "rate 0.2, decay 0": None, "rate 0.3, decay 0": -5.0}
    with pytest.raises(NotFinite, match="weights: has 1 NaN or infinite values; lower its learning rates"):
        best_candidate(options, lambda one: finite(np.nan, "weights"))
    with pytest.raises(NotFinite, match=r"score on the holdout of rate 0\.1, decay 0"):
        best_candidate(options, lambda one: float("nan"))


def test_heads_whose_weights_or_predictions_are_not_finite_are_refused():
    labels, features = torch.arange(60) % 3, torch.randn(60, 15)
    broken = features.clone()
    broken[41, 3] = np.nan
    task, split = protocol_of("imagenet", {}).classification, split_holdout(40, 0.3, 0)
    for train, judged in ((features, broken), (broken.roll(30, 0), features)):
        with pytest.raises(NotFinite):
            probe_classification(train[:40], judged[40:], labels[:40], labels[40:], 3, task, "linear", split, 0, 0)
    # a grid with a learning rate at which the weights overflow
    changes = {"steps": 20, "batch_size": 32, "learning_rates": [1e30, 0.5], "blocks": [1], "mean_patch": [False]}
    entry = {"protocol": "dinov2", "classification": {"heads": {"linear": changes}}}
    task = protocol_of("imagenet", entry).classification
    chosen = probe_classification(
        features[:40] * 1e6, features[40:], labels[:40], labels[40:], 3, task, "linear", split, 0, 0
    ).hyperparameters
    assert chosen["learning_rate"] == 0.5 and None in chosen["holdout_top1"].values()
    for name, truth in (("depth", np.ones((8, 9), np.float32)), ("normals", np.ones((8, 9, 3), np.float32))):
        probe = {"depth": probe_depth, "normals": probe_normals}[name]
        section = getattr(protocol_of("nyuv2", {name: {"heads": {"linear": {"grid": 4}}}}), name)
        maps = torch.randn(20, 5, 2, 2)
        maps[17, 0, 0, 0] = np.inf
        with pytest.raises(NotFinite, match="prediction of image number 3 of the evaluation split"):
            probe(maps[:15], maps[15:], [truth] * 15, [truth] * 5, section, "linear", split_holdout(15, 0.3, 0), 0, 0)
    values = {"steps": 3, "batch_size": 4, "learning_rates": [1e38], "weight_decays": [0.0], "optimizer": "sgd"}
    options = Training.model_validate(values)
    with pytest.raises(NotFinite, match="weight weight after training"):
        train_network(
            lambda: torch.nn.Linear(4, 1),
            lambda head, features, batch, generator: head(features).square().mean(),
            torch.randn(9, 4),
            options,
            candidates(options)[0],
            0,
        )


def test_class_weights_are_shares_of_valid_pixels_and_nothing_is_counted_without_balance():
    masks = np.array([[[0, 0], [1, IGNORE]], [[0, 0], [1, 3]]], np.uint8)
    assert torch.allclose(class_weights(masks, 4, 0.5), torch.tensor([1, 0.5**-0.5, 1, 0.25**-0.5]))
    assert class_weights(masks, 4, 0.0).tolist() == [1, 1, 1, 1]


def test_affine_alignment_is_the_least_squares_fit_of_the_valid_pixels():
    rng = np.random.default_rng(0)
    truth, prediction = rng.uniform(0.5, 9, (6, 7)), rng.uniform(0.5, 9, (6, 7))
    truth[0, :3] = [0, np.nan, 11]
    valid = np.isfinite(truth) & (truth > 1e-3) & (truth <= 10)
    scale, shift = np.polyfit(prediction[valid], truth[valid], 1)
    np.testing.assert_allclose(affine_aligned(truth, prediction, 1e-3, 10), scale * prediction + shift, rtol=1e-9)


def test_the_crop_of_eigen_keeps_what_mmsegmentations_keeps():
    from mmseg.evaluation import DepthMetric

    theirs = DepthMetric(crop_type="nyu_crop", min_depth_eval=1e-3, max_depth_eval=10)
    kept = theirs._get_eval_mask(torch.ones(480, 640)).numpy()
    task = protocol_of("nyuv2", {"protocol": "paper"}).depth
    assert task.crop == "eigen"
    ours = np.zeros((480, 640), bool)
    ours[evaluation_window(task, ours)] = True
    np.testing.assert_array_equal(ours, kept)
