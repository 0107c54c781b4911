import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cliptex.benchmarks.coco_names import coco_categories
from cliptex.core.errors import CliptexError
from cliptex.core.plugins import find
from cliptex.tasks.base import View
from cliptex.tasks.depth import LEVELS
from cliptex.tasks.grid import INVALID_COLOUR
from cliptex.tasks.normals import KAPPA_CODES, KAPPA_MAX, KAPPA_MIN
from cliptex.tasks.segmentation import IGNORE, palette
from cliptex.training.batch import crop_image

NAMES = ("segmentation", "depth", "normals")
TASKS = {name: find("tasks", name)() for name in NAMES}
WHOLE, MIRROR = View(0, 0, 1, 1, False), View(0, 0, 1, 1, True)
settings.register_profile("quick", max_examples=40, deadline=None)
settings.load_profile("quick")


def make_label(name: str, height: int, width: int, seed: int, invalid: float) -> np.ndarray:
    """A random label; about a share `invalid` of its pixels is invalid, one is certainly valid."""
    rng = np.random.default_rng(seed)
    holes = rng.random((height, width)) < invalid
    holes.flat[rng.integers(holes.size)] = False
    if name == "segmentation":
        label = rng.integers(0, 81, (height, width)).astype(np.uint8)
        label[holes] = IGNORE
        return label
    if name == "depth":
        label = (rng.normal(size=(height, width)) * 10 ** rng.uniform(-6, 6) + rng.normal() * 10).astype(np.float32)
    else:
        label = np.empty((height, width, 4), np.float32)
        label[..., :3] = rng.normal(size=(height, width, 3))
        label[..., :3] /= np.linalg.norm(label[..., :3], axis=-1, keepdims=True)
        label[..., 3] = KAPPA_MIN * (KAPPA_MAX / KAPPA_MIN) ** rng.random((height, width))
    label[holes] = np.nan
    return label


@st.composite
def labels(draw, name, smallest=1):
    side = st.integers(smallest, 24)
    return make_label(name, draw(side), draw(side), draw(st.integers(0, 10**6)), draw(st.sampled_from([0, 0.3, 0.95])))


@st.composite
def views(draw):
    height, width = (draw(st.floats(0.2, 1)) for _ in range(2))
    top, left = draw(st.floats(0, 1)) * (1 - height), draw(st.floats(0, 1)) * (1 - width)
    return View(top, left, height, width, draw(st.booleans()))


def is_invalid(name: str, label: np.ndarray) -> np.ndarray:
    if name == "segmentation":
        return label == IGNORE
    return np.isnan(label) if name == "depth" else np.isnan(label).any(axis=-1)


def angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Degrees, exact also for small angles."""
    a, b = a[..., :3].astype(np.float64), b[..., :3].astype(np.float64)
    return np.degrees(2 * np.arcsin(np.clip(np.linalg.norm(a - b, axis=-1) / 2, 0, 1)))


# ---- codec


@given(labels("segmentation"))
def test_segmentation_survives_its_codec_unchanged(label):
    task = TASKS["segmentation"]
    np.testing.assert_array_equal(task.decode(task.encode(label), *label.shape), label)


@given(labels("depth"))
def test_depth_survives_its_codec_within_half_a_step(label):
    task = TASKS["depth"]
    decoded = task.decode(task.encode(label), *label.shape)
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(decoded), np.isnan(label))
    extent = np.nanmax(label).astype(np.float64) - np.nanmin(label)
    rounding = np.spacing(np.nanmax(np.abs(label)))
    error = np.nanmax(np.abs(decoded.astype(np.float64) - label))
    assert error <= extent / (LEVELS - 1) / 2 * 1.0001 + rounding


@pytest.mark.parametrize("value", [0.0, -3.5, 1e30, 1e-38])
def test_flat_depth_survives_exactly(value):
    label = np.full((5, 7), value, np.float32)
    label[2, 3] = np.nan
    np.testing.assert_array_equal(TASKS["depth"].decode(TASKS["depth"].encode(label), 5, 7), label)


def test_depth_over_the_whole_float32_range_does_not_overflow():
    extremes = np.finfo(np.float32)
    label = np.array([[extremes.min, 0, extremes.max]], np.float32)
    decoded = TASKS["depth"].decode(TASKS["depth"].encode(label), 1, 3)
    np.testing.assert_allclose(decoded, label, atol=float(extremes.max) / LEVELS)


def test_infinite_depth_is_invalid_not_a_value():
    label = np.array([[1, np.inf, -np.inf, 2]], np.float32)
    decoded = TASKS["depth"].decode(TASKS["depth"].encode(label), 1, 4)
    np.testing.assert_array_equal(np.isnan(decoded), [[False, True, True, False]])
    np.testing.assert_allclose(decoded[0, [0, 3]], [1, 2])


@given(labels("normals"))
def test_normals_survive_their_codec_within_two_degrees_and_stay_unit(label):
    task = TASKS["normals"]
    decoded = task.decode(task.encode(label), *label.shape[:2])
    valid = ~is_invalid("normals", label)
    np.testing.assert_array_equal(~is_invalid("normals", decoded), valid)
    np.testing.assert_allclose(np.linalg.norm(decoded[valid][:, :3], axis=-1), 1, atol=1e-5)
    assert angles(decoded[valid], label[valid]).max() <= 2
    half_a_step = np.log(KAPPA_MAX / KAPPA_MIN) / (KAPPA_CODES - 1) / 2
    assert np.abs(np.log(decoded[valid][:, 3] / label[valid][:, 3])).max() <= half_a_step * 1.0001


def test_directions_of_all_kinds_survive_the_codec_within_a_degree_on_average():
    rng = np.random.default_rng(0)
    label = rng.standard_normal((64, 64, 4)).astype(np.float32)
    label[..., :3] /= np.linalg.norm(label[..., :3], axis=-1, keepdims=True)
    label[..., 3] = 10
    decoded = TASKS["normals"].decode(TASKS["normals"].encode(label), 64, 64)
    assert angles(decoded, label).mean() <= 1


def test_a_label_larger_than_its_container_can_hold_is_refused():
    with pytest.raises(ValueError, match="larger than 16383"):
        TASKS["depth"].encode(np.zeros((1, 16384), np.float32))


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("sign", [1, -1])
def test_axes_survive_the_codec_exactly(axis, sign):
    label = np.zeros((1, 2, 4), np.float32)
    label[..., axis], label[..., 3] = sign, 1
    label[0, 1] = 0  # a zero vector is no normal
    decoded = TASKS["normals"].decode(TASKS["normals"].encode(label), 1, 2)
    np.testing.assert_array_equal(decoded[0, 0, :3], label[0, 0, :3])
    assert np.isnan(decoded[0, 1]).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_label_that_is_all_invalid_or_misshapen_is_refused(name):
    task = TASKS[name]
    with pytest.raises(ValueError, match="every pixel is invalid"):
        task.encode(task.missing(4))
    with pytest.raises(ValueError, match="got float64"):
        task.encode(task.missing(4).astype(np.float64))
    with pytest.raises(ValueError, match="got"):
        task.encode(task.missing(4)[None])
    with pytest.raises(ValueError, match="got"):
        task.encode(task.missing(4)[:0])


def test_a_class_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="class 81"):
        TASKS["segmentation"].encode(np.array([[81]], np.uint8))


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_payload_is_an_error(name):
    task = TASKS[name]
    payload = task.encode(make_label(name, 9, 9, 0, 0))
    with pytest.raises(ValueError, match="damaged"):
        task.decode(payload[:-4], 9, 9)


# ---- geometry


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_flip_twice_is_the_identity(name, data):
    task = TASKS[name]
    side = data.draw(st.integers(1, 16))
    label = make_label(name, side, side, data.draw(st.integers(0, 1000)), 0.3)
    flipped = task.crop(label, MIRROR, side)
    again = task.crop(flipped, MIRROR, side)
    np.testing.assert_array_equal(is_invalid(name, again), is_invalid(name, label))
    np.testing.assert_allclose(again, label, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_a_target_is_the_crop_of_the_decoded_label(name, data):
    task, label = TASKS[name], data.draw(labels(name))
    view, size = data.draw(views()), data.draw(st.integers(1, 24))
    payload, sides = task.encode(label), label.shape[:2]
    found, expected = task.target(payload, *sides, view, size), task.crop(task.decode(payload, *sides), view, size)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    if name == "segmentation":
        np.testing.assert_array_equal(found, expected)
        return
    extent = np.nanmax(np.abs(label)) if name == "depth" else 1
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * extent)


@pytest.mark.parametrize("name", ["depth", "normals"])
def test_a_target_of_a_damaged_or_misfitting_payload_is_an_error(name):
    task = TASKS[name]
    payload = task.encode(make_label(name, 9, 9, 0, 0))
    with pytest.raises(ValueError, match="damaged"):
        task.target(payload[:-4], 9, 9, WHOLE, 4)
    with pytest.raises(ValueError, match="damaged"):
        task.target(payload, 9, 8, WHOLE, 4)


@given(labels("normals"), views())
def test_a_flip_mirrors_normals_and_negates_their_x(label, view):
    task = TASKS["normals"]
    plain = task.crop(label, View(view.top, view.left, view.height, view.width, False), 8)
    flipped = task.crop(label, View(view.top, view.left, view.height, view.width, True), 8)
    np.testing.assert_allclose(flipped, plain[:, ::-1] * (-1, 1, 1, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_the_whole_view_on_the_same_grid_changes_nothing(name, data):
    task = TASKS[name]
    label = data.draw(labels(name))
    resized = task.resize(label, *label.shape[:2])
    np.testing.assert_array_equal(is_invalid(name, resized), is_invalid(name, label))
    np.testing.assert_allclose(resized, label, rtol=1e-5)


@given(labels("segmentation"), views(), st.integers(1, 40))
def test_class_ids_after_crop_and_resize_were_there_before(label, view, size):
    task = TASKS["segmentation"]
    before = set(np.unique(label))
    assert set(np.unique(task.crop(label, view, size))) <= before
    assert set(np.unique(task.resize(label, size, size + 3))) <= before


@given(labels("normals"), views(), st.integers(1, 40))
def test_normals_remain_unit_after_a_crop(label, view, size):
    target = TASKS["normals"].crop(label, view, size)
    valid = ~is_invalid("normals", target)
    np.testing.assert_allclose(np.linalg.norm(target[valid][:, :3], axis=-1), 1, atol=1e-5)
    assert (target[valid][:, 3] > 0).all()


@given(labels("depth"), views(), st.integers(1, 40))
def test_invalid_depth_does_not_bleed_into_valid(label, view, size):
    target = TASKS["depth"].crop(label, view, size)
    valid = ~np.isnan(target)
    slack = 1e-5 * np.nanmax(np.abs(label))
    assert ((target[valid] >= np.nanmin(label) - slack) & (target[valid] <= np.nanmax(label) + slack)).all()
    poisoned = TASKS["depth"].crop(np.where(np.isnan(label), np.float32(np.inf), label), view, size)
    np.testing.assert_array_equal(poisoned, target)


def centre_of(weights: np.ndarray) -> np.ndarray:
    """Row and column of the centre of mass."""
    return np.array([np.average(axis, weights=weights) for axis in np.indices(weights.shape)])


def centre_between(start: float, end: float, radius: int, share: float) -> int:
    """Where a mark of `radius` pixels lies wholly within start..end."""
    least, most = np.ceil(start) + radius, np.floor(end) - radius - 1
    return round(least + share * (most - least))


@pytest.mark.parametrize("name", NAMES)
@given(view=views(), spot=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_mark_lands_where_the_images_crop_puts_it(name, view, spot):
    height, width, size, radius = 60, 80, 32, 3
    row = centre_between(view.top * height, (view.top + view.height) * height, radius, spot[0])
    column = centre_between(view.left * width, (view.left + view.width) * width, radius, spot[1])
    marked = np.zeros((height, width), bool)
    marked[row - radius : row + radius + 1, column - radius : column + radius + 1] = True
    image = crop_image(Image.fromarray(marked.astype(np.uint8) * 255).convert("RGB"), view, size)
    if name == "segmentation":
        found = TASKS[name].crop(marked.astype(np.uint8), view, size)
    elif name == "depth":
        found = TASKS[name].crop(marked.astype(np.float32), view, size)
    else:
        normals = np.stack([0 * marked, marked, ~marked, marked], axis=-1).astype(np.float32)
        found = TASKS[name].crop(normals, view, size)[..., 3]
    shift = centre_of(found) - centre_of(image[..., 0])
    # a nearest pixel is at most half a pixel off; the image's bicubic filter overshoots at its borders
    assert np.abs(shift).max() < (0.55 if name == "segmentation" else 0.15)


def test_a_crop_of_aligned_blocks_is_exact():
    label = np.arange(16, dtype=np.uint8).reshape(4, 4)
    view = View(0.25, 0.5, 0.5, 0.5, False)
    np.testing.assert_array_equal(TASKS["segmentation"].crop(label, view, 2), label[1:3, 2:4])
    np.testing.assert_allclose(TASKS["depth"].crop(label.astype(np.float32), view, 1), [[label[1:3, 2:4].mean()]])


# ---- loss


def predictions(task, target, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(target), task.channels, *target.shape[1:3])
    return torch.randn(shape, generator=generator).requires_grad_()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("invalid", [0.0, 0.5, 0.98])
def test_invalid_pixels_have_no_gradient_and_valid_ones_have(name, invalid):
    task = TASKS[name]
    label = torch.from_numpy(np.stack([make_label(name, 16, 16, seed, invalid) for seed in range(3)]))
    prediction = predictions(task, label)
    loss = task.loss(prediction, label)
    loss.backward()
    assert torch.isfinite(loss)
    assert loss > 0
    assert torch.isfinite(prediction.grad).all()
    holes = torch.from_numpy(is_invalid(name, label.numpy()))
    touched = prediction.grad.abs().amax(dim=1) > 0
    assert not touched[holes].any()
    assert touched[~holes].float().mean() > 0.9


def check_a_missing_label_costs_nothing(task):
    target = torch.from_numpy(np.stack([task.missing(8)] * 2))
    prediction = predictions(task, target)
    loss = task.loss(prediction, target)
    loss.backward()
    assert loss.item() == 0
    assert (prediction.grad == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_label_gives_zero_loss_that_still_has_a_graph(name):
    check_a_missing_label_costs_nothing(TASKS[name])


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_label_does_not_change_the_loss_of_the_others(name):
    task = TASKS[name]
    target = torch.from_numpy(make_label(name, 8, 8, 3, 0.2)[None])
    prediction = predictions(task, target)
    alone = task.loss(prediction, target)
    both = torch.cat([target, torch.from_numpy(task.missing(8)[None])])
    torch.testing.assert_close(task.loss(torch.cat([prediction, prediction]), both), alone)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_descent_on_the_loss_finds_the_label(name):
    task = TASKS[name]
    yy, xx = np.mgrid[:8, :8] / 8
    if name == "segmentation":
        label = (yy * 5).astype(np.uint8)
    elif name == "depth":
        label = (yy + 0.3 * xx).astype(np.float32)
    else:
        label = np.stack([xx - 0.5, yy, np.ones_like(xx), np.full_like(xx, 5)], axis=-1).astype(np.float32)
        label[..., :3] /= np.linalg.norm(label[..., :3], axis=-1, keepdims=True)
    target = torch.from_numpy(label[None])
    prediction = predictions(task, target)
    optimizer = torch.optim.Adam([prediction], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        task.loss(prediction, target).backward()
        optimizer.step()
    found = prediction.detach()[0].movedim(0, -1).numpy()
    if name == "segmentation":
        np.testing.assert_array_equal(found.argmax(-1), label)
    elif name == "depth":
        assert np.corrcoef(found.ravel(), label.ravel())[0, 1] > 0.99
    else:
        assert angles(found / np.linalg.norm(found, axis=-1, keepdims=True), label).mean() < 3


@given(st.floats(1e-3, 1e3), st.floats(-100, 100), st.sampled_from([0.0, 0.4]))
def test_depth_loss_does_not_change_with_scale_and_shift_of_the_label(scale, shift, invalid):
    rng = np.random.default_rng(0)
    base = rng.normal(size=(2, 12, 12))
    base[rng.random(base.shape) < invalid] = np.nan
    task = TASKS["depth"]
    target, other = (torch.from_numpy((a * base + b).astype(np.float32)) for a, b in ((1, 0), (scale, shift)))
    prediction = predictions(task, target)
    # float32 cannot hold 1e-3 * d + 100 better than this
    tolerance = 1e-4 + 1e-5 * abs(shift) / scale
    torch.testing.assert_close(task.loss(prediction, other), task.loss(prediction, target), rtol=tolerance, atol=0)


def test_depth_loss_tells_near_from_far():
    target = torch.linspace(0, 1, 64).view(1, 8, 8)
    right = (target - target.median()) / (target - target.median()).abs().mean()
    loss = TASKS["depth"].loss
    assert loss(right[:, None], target) < 1e-5
    assert loss(-right[:, None], target) > 1


@pytest.mark.parametrize("values", [np.full(64, 7.0), np.r_[5.0, np.full(63, np.nan)], np.r_[1e30, np.zeros(63)]])
def test_depth_loss_is_finite_for_flat_mostly_invalid_and_wild_labels(values):
    target = torch.from_numpy(values.reshape(1, 8, 8).astype(np.float32))
    prediction = predictions(TASKS["depth"], target)
    loss = TASKS["depth"].loss(prediction, target)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(prediction.grad).all()


def test_normals_loss_trusts_a_sure_expert_more():
    label = np.zeros((1, 4, 4, 4), np.float32)
    label[..., 2] = 1
    prediction = torch.zeros(1, 3, 4, 4)
    prediction[:, 0] = 1  # at a right angle: 1 - cos = 1
    losses = []
    for kappa in (0.05, 1.0, 5.0, 1000.0):
        label[..., 3] = kappa
        losses.append(TASKS["normals"].loss(prediction, torch.from_numpy(label)).item())
    assert losses == sorted(losses)
    assert losses[0] < 0.1
    assert losses[-1] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("kappa", [0.3, 2.0, 9.0])
def test_normals_weight_is_the_mean_cosine_of_the_experts_distribution(kappa):
    angle = (np.arange(200_000) + 0.5) * np.pi / 200_000
    density = np.exp(-kappa * angle) * np.sin(angle)
    wanted = np.sum(density * np.cos(angle)) / np.sum(density)
    label = torch.tensor([0.0, 0.0, 1.0, kappa]).view(1, 1, 1, 4)
    right_angle = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    assert TASKS["normals"].loss(right_angle, label).item() == pytest.approx(wanted, abs=1e-4)


# ---- options of the losses

LOSSES = [
    ("segmentation", {}),
    ("scored_segmentation", {}),
    ("scored_segmentation", {"confidence": False}),
    ("depth", {}),
    ("depth", {"alignment": "robust"}),
    ("depth", {"alignment": "least_squares"}),
    ("depth", {"gradient_weight": 0.0}),
    ("normals", {}),
    ("normals", {"confidence": False}),
    ("normals", {"kind": "angmf"}),
    ("normals", {"kind": "angmf", "confidence": False}),
]


def with_loss(name, options):
    return find("tasks", name)().with_loss(options, f"models.m.losses.{name}")


def make_target(name: str, height: int, width: int, seed: int, invalid: float) -> np.ndarray:
    if name != "scored_segmentation":
        return make_label(name, height, width, seed, invalid)
    classes = make_label("segmentation", height, width, seed, invalid)
    scores = np.random.default_rng(seed).integers(1, 256, classes.shape).astype(np.uint8)
    return np.stack([classes, scores], axis=-1)


def holes_of(name: str, target: np.ndarray) -> np.ndarray:
    if name == "scored_segmentation":
        return target[..., 0] == IGNORE
    return is_invalid(name, target)


@pytest.mark.parametrize(("name", "options"), LOSSES)
@given(data=st.data())
def test_any_label_gives_a_finite_loss_and_no_gradient_where_it_is_invalid(name, options, data):
    """Constant, random, mostly invalid and missing labels, in one batch; predictions of any size, flat ones too."""
    task = with_loss(name, options)
    shares = data.draw(st.lists(st.sampled_from([0.0, 0.5, 0.9, 0.999]), min_size=1, max_size=3))
    targets = [make_target(name, 9, 7, data.draw(st.integers(0, 999)), share) for share in shares]
    constant = np.broadcast_to(targets[0][:1, :1], targets[0].shape)
    missing = task.missing(9)[:, :7]
    target = torch.from_numpy(np.stack([*targets, constant, missing]))
    size = data.draw(st.sampled_from([0.0, 1e-3, 1.0, 30.0]))
    prediction = (size * predictions(task, target, data.draw(st.integers(0, 999)))).detach()
    if data.draw(st.booleans()):
        prediction = prediction.mean(dim=(2, 3), keepdim=True).expand_as(prediction).clone()
    prediction.requires_grad_()
    loss = task.loss(prediction, target)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(prediction.grad).all()
    holes = torch.from_numpy(holes_of(name, target.numpy()))
    assert (prediction.grad.movedim(1, -1)[holes] == 0).all()
    assert (prediction.grad[-1] == 0).all()


@pytest.mark.parametrize(("name", "options"), LOSSES)
def test_a_missing_label_costs_nothing_whatever_the_options(name, options):
    check_a_missing_label_costs_nothing(with_loss(name, options))


@pytest.mark.parametrize("alignment", ["robust", "least_squares"])
def test_aligned_depth_losses_are_free_of_the_scale_and_shift_of_both_sides(alignment):
    task = with_loss("depth", {"alignment": alignment})
    rng = np.random.default_rng(0)
    relief = rng.normal(size=(2, 12, 12)).astype(np.float32)
    target = torch.from_numpy(np.where(rng.random(relief.shape) < 0.3, np.float32(np.nan), relief))
    prediction = torch.from_numpy(relief + rng.normal(size=relief.shape).astype(np.float32))[:, None]
    loss = task.loss(prediction, target)
    torch.testing.assert_close(task.loss(7 * prediction - 3, target), loss, rtol=1e-3, atol=0)
    torch.testing.assert_close(task.loss(prediction, 2 * target + 5), loss, rtol=1e-3, atol=0)
    affine = 0.3 * target.nan_to_num() + 4
    assert task.loss((affine / affine.abs().amax(dim=(1, 2), keepdim=True))[:, None], target) < 0.02


def test_least_squares_alignment_is_the_best_one():
    """Against NumPy's solution of equation 2 of Ranftl et al. 2020, image by image, without invalid pixels."""
    task = with_loss("depth", {"alignment": "least_squares", "gradient_weight": 0.0})
    rng = np.random.default_rng(0)
    target, noise = (rng.normal(size=(2, 6, 6)).astype(np.float32) for _ in range(2))
    prediction = noise + target
    errors = []
    for p, t in zip(prediction.astype(np.float64), target.astype(np.float64), strict=True):
        t = t - np.sort(t, axis=None)[17]  # torch's median of 36 values is the lower one
        t = (t / np.abs(t).mean()).ravel()
        design = np.stack([p.ravel(), np.ones(36)], axis=1)
        errors.append(np.abs(design @ np.linalg.lstsq(design, t, rcond=None)[0] - t))
    found = task.loss(torch.from_numpy(prediction[:, None]), torch.from_numpy(target))
    assert found.item() == pytest.approx(np.mean(errors), rel=1e-4)


@pytest.mark.parametrize("alignment", ["target", "robust", "least_squares"])
def test_a_head_that_starts_flat_learns_near_from_far(alignment):
    """Heads may start at zero, where a scale that is solved for could be zero for ever, or of the wrong sign."""
    task = with_loss("depth", {"alignment": alignment})
    target = torch.linspace(0, 1, 64).view(1, 8, 8)
    prediction = torch.zeros(1, 1, 8, 8, requires_grad=True)
    optimizer = torch.optim.Adam([prediction], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        task.loss(prediction, target).backward()
        optimizer.step()
    assert np.corrcoef(prediction.detach().ravel(), target.ravel())[0, 1] > 0.99


def test_the_robust_depth_loss_of_an_untrained_head_has_a_bounded_gradient():
    task = with_loss("depth", {"alignment": "robust"})
    target = torch.from_numpy(make_label("depth", 12, 12, 0, 0)[None])
    prediction = (1e-6 * predictions(task, target)).detach().requires_grad_()
    task.loss(prediction, target).backward()
    assert prediction.grad.abs().max() < 100 * 2  # 1 / least spread, times a pixel's share of both terms


def test_the_angmf_loss_is_the_negative_log_likelihood():
    task = with_loss("normals", {"kind": "angmf", "confidence": False})
    assert task.channels == 4
    assert TASKS["normals"].channels == 3
    kappa, angle = 3.0, 0.7
    target = torch.tensor([0.0, 0.0, 1.0, 5.0]).view(1, 1, 1, 4)
    raw = torch.tensor([np.sin(angle), 0, np.cos(angle), kappa - 1 - 0.01], dtype=torch.float32).view(1, 4, 1, 1)
    density = (kappa**2 + 1) * np.exp(-kappa * angle) / (2 * np.pi * (1 + np.exp(-kappa * np.pi)))
    assert task.loss(raw, target).item() + np.log(2 * np.pi) == pytest.approx(-np.log(density), abs=1e-4)


def test_without_confidence_every_valid_pixel_weighs_the_same():
    label = np.zeros((1, 4, 4, 4), np.float32)
    label[..., 2], label[..., 3] = 1, 0.05
    right_angle = torch.zeros(1, 3, 4, 4)
    right_angle[:, 0] = 1
    assert with_loss("normals", {"confidence": False}).loss(right_angle, torch.from_numpy(label)).item() == 1
    assert TASKS["normals"].loss(right_angle, torch.from_numpy(label)).item() < 0.1


def test_segmentation_weighted_by_the_score_is_the_plain_loss_where_the_expert_is_sure():
    target = torch.from_numpy(make_target("scored_segmentation", 8, 8, 0, 0.3)[None])
    prediction = predictions(TASKS["segmentation"], target[..., 0]).detach()
    plain = TASKS["segmentation"].loss(prediction, target[..., 0])
    scored = with_loss("scored_segmentation", {})
    sure = torch.stack([target[..., 0], torch.full_like(target[..., 0], 255)], dim=-1)
    torch.testing.assert_close(scored.loss(prediction, sure), plain)
    torch.testing.assert_close(
        scored.loss(prediction, torch.stack([target[..., 0], torch.full_like(target[..., 0], 51)], dim=-1)), plain / 5
    )
    torch.testing.assert_close(with_loss("scored_segmentation", {"confidence": False}).loss(prediction, target), plain)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("segmentation", {"confidence": True}, r"models\.m\.losses\.segmentation\.confidence: unknown key.*none"),
        ("depth", {"alignment": "best"}, r"models\.m\.losses\.depth\.alignment: .*'best'"),
        ("normals", {"kind": 3}, r"models\.m\.losses\.normals\.kind: .*got 3"),
        ("normals", {"kapa": 3}, r"losses\.normals\.kapa: unknown key; there are kind, confidence"),
    ],
)
def test_options_that_do_not_exist_are_named(name, options, message):
    with pytest.raises(CliptexError, match=message):
        with_loss(name, options)


def test_options_of_one_task_are_not_those_of_another():
    task = TASKS["depth"]
    assert task.with_loss({"alignment": "robust"}, "here").options.alignment == "robust"
    assert task.options.alignment == find("tasks", "depth")().options.alignment == "target"


# ---- segmentation with scores


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 999), views())
def test_classes_and_scores_survive_codec_and_crop_together(height, width, seed, view):
    task = find("tasks", "scored_segmentation")()
    label = make_target("scored_segmentation", height, width, seed, 0.2)
    np.testing.assert_array_equal(task.decode(task.encode(label), height, width), label)
    cropped = task.crop(label, view, 6)
    assert cropped.shape == task.missing(6).shape == (6, 6, 2)
    np.testing.assert_array_equal(cropped[..., 0], TASKS["segmentation"].crop(label[..., 0], view, 6))
    there = {tuple(pixel) for pixel in label.reshape(-1, 2).tolist()}
    assert {tuple(pixel) for pixel in cropped.reshape(-1, 2).tolist()} <= there


def test_segmentation_with_scores_is_judged_drawn_and_counted_by_its_classes():
    task = find("tasks", "scored_segmentation")()
    label = make_target("scored_segmentation", 12, 20, 0, 0.3)
    assert task.name == "segmentation"
    assert task.codec() != TASKS["segmentation"].codec()
    assert task.quality([(label, label[..., 0])])["mIoU"] == 100
    np.testing.assert_array_equal(task.picture(label), TASKS["segmentation"].picture(label[..., 0]))
    valid = label[..., 0] != IGNORE
    assert task.scalars(label)["confidence"] == pytest.approx(label[..., 1][valid].mean() / 255)
    with pytest.raises(ValueError, match="keep_scores"):
        task.encode(label[..., 0])


# ---- what a head's output means


def test_predicted_labels_are_what_the_loss_is_least_for():
    segmentation = np.zeros((81, 2, 3), np.float32)
    segmentation[7, 0], segmentation[0, 1] = 5, 5
    assert TASKS["segmentation"].predicted(segmentation).tolist() == [[7] * 3, [0] * 3]
    depth = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    np.testing.assert_array_equal(TASKS["depth"].predicted(depth), depth[0])
    raw = np.zeros((3, 1, 2), np.float32)
    raw[:, 0, 0] = (0, 3, 4)
    normals = TASKS["normals"].predicted(raw)
    np.testing.assert_allclose(normals[0, 0, :3], (0, 0.6, 0.8), rtol=1e-6)
    assert np.isnan(normals[0, 1]).all()
    assert normals[0, 0, 3] == 1
    with_kappa = with_loss("normals", {"kind": "angmf"}).predicted(np.full((4, 1, 1), 2, np.float32))
    np.testing.assert_allclose(with_kappa[0, 0, 3], 3.01, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_predictions_are_fine(name):
    task = TASKS[name]
    target = torch.from_numpy(make_label(name, 8, 8, 1, 0.2)[None])
    prediction = predictions(task, target).detach()
    torch.testing.assert_close(
        task.loss(prediction.bfloat16(), target), task.loss(prediction.bfloat16().float(), target)
    )


# ---- quality


def test_segmentation_quality_by_hand():
    truth = np.array([[0, 0, 1, 1], [2, 2, 255, 255]], np.uint8)
    found = np.array([[0, 1, 1, 1], [0, 255, 7, 8]], np.uint8)
    # background: 1 of {2 true, 1 more}; class 1: 2 of 3; class 2: 0 of 2; classes 7 and 8 only where truth is unknown
    quality = TASKS["segmentation"].quality([(found, truth)])
    assert quality == pytest.approx({"mIoU": 100 * (1 / 3 + 2 / 3 + 0) / 3, "aAcc": 50.0})


def test_segmentation_quality_pools_images():
    a, b = np.zeros((4, 4), np.uint8), np.ones((4, 4), np.uint8)
    assert TASKS["segmentation"].quality([(a, a), (a, b)]) == pytest.approx({"mIoU": 25.0, "aAcc": 50.0})


def test_depth_quality_ignores_scale_and_shift_but_not_errors():
    rng = np.random.default_rng(0)
    truth = (1 / rng.uniform(1, 8, (20, 30))).astype(np.float32)
    truth[0, :5], truth[1, :5] = np.nan, 0
    quality = TASKS["depth"].quality([(np.nan_to_num(truth) * 70 - 3, truth)])
    assert quality["delta1"] == 100
    assert quality["absrel"] < 1e-4
    noise = rng.normal(size=truth.shape).astype(np.float32)
    assert TASKS["depth"].quality([(noise, truth)])["delta1"] < 60
    assert np.isfinite(list(TASKS["depth"].quality([(np.ones_like(truth), truth)]).values())).all()


def test_normals_quality_by_hand():
    angle = np.radians([[5, 20, 25, 60]])
    truth = np.zeros((1, 4, 3), np.float32)
    truth[..., 2] = 1
    found = np.stack([np.sin(angle), 0 * angle, np.cos(angle), [[8.0, 4.0, 2.0, 1.0]]], axis=-1).astype(np.float32)
    quality = TASKS["normals"].quality([(found, truth)])
    assert quality == pytest.approx(
        {
            "mean": 27.5,
            "median": 22.5,
            "within_11_25": 25,
            "within_22_5": 50,
            "within_30": 75,
            "error_kappa_q1": 60,
            "error_kappa_q2": 25,
            "error_kappa_q3": 20,
            "error_kappa_q4": 5,
        },
        abs=1e-3,
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_perfect_expert_has_perfect_quality(name):
    label = make_label(name, 16, 16, 0, 0.2)
    if name == "depth":
        label = np.abs(label) + 1
    quality = TASKS[name].quality([(label, label)])
    perfect = {"segmentation": {"mIoU": 100, "aAcc": 100}, "depth": {"delta1": 100}, "normals": {"within_11_25": 100}}
    assert {key: quality[key] for key in perfect[name]} == perfect[name]


@pytest.mark.parametrize("name", NAMES)
def test_quality_without_a_valid_pixel_is_an_error(name):
    missing = TASKS[name].missing(4)
    with pytest.raises(ValueError, match="no valid pixel"):
        TASKS[name].quality([(missing, missing)])


# ---- pictures and records


@pytest.mark.parametrize("name", NAMES)
def test_pictures_show_invalid_pixels_dark_grey_and_only_those(name):
    label = make_label(name, 12, 20, 0, 0.3)
    picture = TASKS[name].picture(label)
    assert picture.shape == (12, 20, 3)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal((picture == INVALID_COLOUR).all(axis=-1), is_invalid(name, label))


def test_every_class_has_a_colour_of_its_own():
    colours = palette()[:81].astype(int)
    gaps = np.abs(colours[:, None] - colours[None]).sum(axis=-1) + 1000 * np.eye(81, dtype=int)
    assert gaps.min() > 20


def test_normals_have_the_usual_colours():
    floor, wall, left_wall = (0, 1, 0, 1), (0, 0, 1, 1), (-1, 0, 0, 1)
    picture = TASKS["normals"].picture(np.array([[floor, wall, left_wall]], np.float32))
    assert picture.argmax(axis=-1).tolist() == [[1, 2, 0]]  # green, blue, red


@pytest.mark.parametrize("name", NAMES)
def test_the_codec_record_is_json_and_scalars_are_finite(name):
    task = TASKS[name]
    record = json.loads(json.dumps(task.codec()))
    assert record == task.codec()
    assert {"name", "dtype", "invalid", "step", "resize"} <= set(record)
    assert TASKS[name].scalars(task.missing(3))["coverage"] == 0
    scalars = task.scalars(make_label(name, 10, 10, 0, 0.5))
    assert 0.2 < scalars["coverage"] < 0.8
    assert np.isfinite(list(scalars.values())).all()


def test_class_names_are_background_and_cocos():
    names = TASKS["segmentation"].codec()["class_names"]
    assert names == ["background", *(name for _, name, _ in coco_categories())]
    assert len(names) == TASKS["segmentation"].channels == 81
