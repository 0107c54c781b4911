"""Video object segmentation: DAVIS' layout, J and F by hand and by loops, propagation, and rendered videos."""

import json

import numpy as np
import pytest
import torch
from official_layouts import write_davis2017
from PIL import Image
from tiny import TINY

from cliptex.benchmarks.davis2017 import Davis2017
from cliptex.config import Config, Miniature
from cliptex.core.errors import CliptexError
from cliptex.data.miniature.layouts import render_benchmark
from cliptex.data.miniature.scenes import SceneOptions
from cliptex.data.miniature.sequences import NUM_FRAMES, video
from cliptex.evaluation.job import Job
from cliptex.evaluation.metrics.video import (
    contour,
    contour_accuracy,
    evaluate_video,
    region_and_contour,
    region_similarity,
    video_metrics,
    video_statistics,
)
from cliptex.evaluation.per_image import main_metric, read_per_image
from cliptex.evaluation.thumbnails import thumbnails_path
from cliptex.evaluation.training_free import run as training_free
from cliptex.evaluation.training_free.video_propagation import (
    PLUGIN,
    Propagation,
    cell_labels,
    neighbourhood,
    propagated,
    stretched,
)
from cliptex.models import clip as student

# ---- the official layout


def test_a_video_has_its_frames_and_masks_in_order(tmp_path):
    davis = Davis2017(write_davis2017(tmp_path, 1, 2, frames=5))
    sample = davis.samples("eval")[1]
    assert sample["id"] == "val-car-roundabout1" and len(sample["frames"]) == len(sample["masks"]) == 5
    for number in range(5):
        path = tmp_path / f"DAVIS/Annotations/480p/{sample['id']}/{number:05d}.png"
        np.testing.assert_array_equal(sample["masks"][number], np.asarray(Image.open(path)))
        assert sample["frames"][number].shape == sample["image"].shape
    np.testing.assert_array_equal(sample["frames"][0], sample["image"])
    assert sample["num_objects"] == sample["masks"][0].max() and davis.prepare() == {}


def test_a_video_that_cannot_be_evaluated_is_an_error(tmp_path):
    root = write_davis2017(tmp_path, 1, 1, frames=3)
    davis, folder = Davis2017(root), root / "DAVIS/Annotations/480p/val-car-roundabout0"
    sample, first = davis.samples("eval")[0], np.asarray(Image.open(folder / "00000.png"))
    Image.fromarray(np.where(first == 0, 9, first)).save(folder / "00001.png")
    with pytest.raises(CliptexError, match=r"00001\.png: has object 9, but the video's first mask"):
        sample["masks"][1]
    Image.fromarray(first[:-1]).save(folder / "00001.png")
    with pytest.raises(CliptexError, match=r"00001\.png: its size is not that of the video's first mask"):
        sample["masks"][1]
    Image.fromarray(np.where(first > 0, np.uint8(255), np.uint8(0))).save(folder / "00000.png")
    with pytest.raises(CliptexError, match=r"00000\.png: has no object"):
        davis.samples("eval")[0]
    (folder / "00001.png").unlink()
    with pytest.raises(CliptexError, match=r"00001\.png: is missing"):
        davis.prepare()
    (root / "DAVIS/JPEGImages/480p/val-car-roundabout0/00002.jpg").unlink()
    with pytest.raises(CliptexError, match="has 2 frames, and needs 3"):
        davis.samples("eval")[0]


# ---- J and F


def square(top: int, left: int, side: int = 10, shape: tuple[int, int] = (100, 100)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_equal_masks_have_1_and_a_moved_one_what_a_hand_counts():
    mask = square(40, 40)
    assert region_similarity(mask, mask) == contour_accuracy(mask, mask) == 1.0
    # moved by 4 columns: 6 of 14 columns in both
    assert region_similarity(mask, square(40, 44)) == pytest.approx(60 / 140)
    # 0.008 of the diagonal, 141.4 pixels, is 1.13, so that 2 pixels match; the contour is a ring of 11 x 11 pixels
    assert contour_accuracy(mask, square(40, 42)) == 1.0
    # moved by 4, which is too far for most of the vertical sides
    ring, other = contour(mask), contour(square(40, 44))
    assert ring.sum() == other.sum() == 40
    near = sum(
        any((y - b) ** 2 + (x - a) ** 2 <= 4 for b, a in zip(*np.nonzero(other), strict=True))
        for y, x in zip(*np.nonzero(ring), strict=True)
    )
    assert 0 < near < 40 and contour_accuracy(mask, square(40, 44)) == pytest.approx(near / 40)


def test_empty_masks_are_equal_and_nothing_else_equals_them():
    empty, mask = np.zeros((50, 60), bool), square(10, 10, shape=(50, 60))
    assert region_similarity(empty, empty) == contour_accuracy(empty, empty) == 1.0
    for pair in ((empty, mask), (mask, empty)):
        assert region_similarity(*pair) == contour_accuracy(*pair) == 0.0


def test_contours_and_f_are_those_of_loops():
    rng = np.random.default_rng(0)
    for shape in ((13, 17), (40, 9), (3, 150)):
        height, width = shape
        masks = rng.random((2, *shape)) < 0.3
        for mask in masks:
            loops = np.zeros(shape, bool)
            for y in range(height):
                for x in range(width):
                    down, right = min(y + 1, height - 1), min(x + 1, width - 1)
                    loops[y, x] = len({mask[y, x], mask[down, x], mask[y, right], mask[down, right]}) > 1
            np.testing.assert_array_equal(contour(mask), loops)
        radius = np.ceil(0.008 * np.hypot(*shape))
        points = [np.argwhere(contour(mask)) for mask in masks]
        distances = np.linalg.norm(points[0][:, None] - points[1], axis=2)
        precision, recall = (distances.min(1) <= radius).mean(), (distances.min(0) <= radius).mean()
        assert contour_accuracy(*masks) == pytest.approx(2 * precision * recall / (precision + recall))


def test_objects_are_averaged_without_first_and_last_frame_and_without_void():
    truths = [np.zeros((40, 40), np.uint8) for _ in range(4)]
    for frame, truth in enumerate(truths):
        truth[10:20, 10 + frame : 20 + frame] = 1
        truth[25:35, 5:15] = 2
    half = truths[2].copy()
    half[25:30, 5:15] = 0
    values = evaluate_video([truths[1], half], truths, 2)
    assert values.shape == (2, 2, 2)
    np.testing.assert_allclose(values[0], [[1, 1], [1, 0.5]])
    truths[2][25:30, 5:15] = 255  # what is not evaluated
    assert evaluate_video([truths[1], half], truths, 2)[0, 1, 1] == 1
    other = np.array([[[0.2, 0.6]], [[0.4, 0.0]]])  # a video with one object: J, F by frame
    metrics = video_metrics([values, other])
    j, f = [*values[0].mean(1), 0.4], [*values[1].mean(1), 0.2]
    assert metrics["J"] == pytest.approx(100 * np.mean(j)) and metrics["F"] == pytest.approx(100 * np.mean(f))
    assert metrics["JF"] == pytest.approx((metrics["J"] + metrics["F"]) / 2)
    assert metrics["J_recall"] == pytest.approx(100 * np.mean([1, 0.5, 0.5]))
    parts = video_statistics([values, other])
    weighted = region_and_contour(parts, np.array([[1, 1], [0, 1], [1, 0]]))
    first = 50 * (np.mean(j[:2]) + np.mean(f[:2]))
    np.testing.assert_allclose(weighted, [metrics["JF"], 50 * (0.4 + 0.2), first])


# ---- propagation


def slow_propagation(maps, labels, options):
    """Labels [1 + objects, cells] of all frames, one cell after the other."""
    frames, _, height, width = maps.shape
    tokens = maps.reshape(frames, maps.shape[1], -1)
    tokens = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    known = [labels]
    for frame in range(1, frames):
        context = sorted({0, *range(max(1, frame - options.frames), frame)})
        out = np.zeros_like(labels)
        for cell in range(height * width):
            candidates = [
                (float(tokens[frame][:, cell] @ tokens[earlier][:, other]), earlier, other)
                for earlier in context
                for other in range(height * width)
                if options.radius is None
                or max(abs(cell // width - other // width), abs(cell % width - other % width)) <= options.radius
            ]
            best = sorted(candidates, reverse=True)[: options.neighbours]
            weights = np.exp(np.array([value for value, _, _ in best]) / options.temperature)
            for weight, (_, earlier, other) in zip(weights / weights.sum(), best, strict=True):
                out[:, cell] += weight * known[earlier][:, other]
        known.append(out)
    return known


@pytest.mark.parametrize("radius", [None, 1])
def test_labels_are_those_of_loops(radius):
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(5, 6, 3, 4)).astype(np.float32)
    mask = rng.integers(0, 3, (3, 4)).astype(np.uint8)
    options = Propagation(kind="propagation", frames=2, neighbours=3, radius=radius, stretch=False)
    labels = cell_labels(torch.from_numpy(mask), 2, (3, 4), "nearest")
    expected = slow_propagation(maps, labels.numpy(), options)[1:]
    # at the size of the grid, masks are the largest labels
    found = list(propagated(torch.from_numpy(maps), mask, 2, options))
    np.testing.assert_array_equal(found, [label.argmax(0).reshape(3, 4) for label in expected])


def test_a_mask_follows_features_that_move():
    rng = np.random.default_rng(0)
    first = torch.from_numpy(rng.normal(size=(32, 6, 10)).astype(np.float32))
    maps = torch.stack([torch.roll(first, frame, 2) for frame in range(4)])
    mask = np.zeros((60, 100), np.uint8)
    mask[20:40, 10:30], mask[40:60, 50:70] = 1, 2
    options = Propagation(kind="propagation", neighbours=1, radius=None)
    for frame, found in enumerate(propagated(maps, mask, 2, options), start=1):
        assert (found != np.roll(mask, 10 * frame, 1)).mean() < 0.05  # only corners, which the resize rounds


def test_a_neighbourhood_is_a_square_of_cells():
    near = neighbourhood((3, 4), 1).numpy()
    for a in range(12):
        for b in range(12):
            assert near[a, b] == (abs(a // 4 - b // 4) <= 1 and abs(a % 4 - b % 4) <= 1)


def test_cells_have_the_class_of_their_centre_or_the_shares_of_all():
    mask = torch.zeros(4, 6, dtype=torch.uint8)
    mask[:2, :1], mask[2:, 3:] = 1, 255
    shares = cell_labels(mask, 1, (2, 2), "area")
    np.testing.assert_allclose(shares[1].numpy(), [1 / 3, 0, 0, 0])
    np.testing.assert_allclose(shares.sum(0).numpy(), 1)
    assert cell_labels(mask, 1, (2, 2), "nearest")[1].tolist() == [0, 0, 0, 0]
    assert cell_labels(mask, 1, (4, 6), "nearest")[1].sum() == 2


def test_stretched_maps_end_at_0_and_1_and_empty_ones_stay():
    maps = stretched(torch.stack([torch.linspace(0.2, 0.4, 6).reshape(2, 3), torch.zeros(2, 3)]))
    assert maps[0].min() == 0 and maps[0].max() == pytest.approx(1) and not maps[1].any()


# ---- rendered videos


def test_a_rendered_object_keeps_its_number_while_it_moves():
    clip = video(5, "benchmark", 15, 2, 48, 85, SceneOptions(subject="chair", things=(1, 3), share=(0.3, 0.6)))
    assert len(clip.frames) == len(clip.masks) == NUM_FRAMES
    numbers = {}
    for frame, mask in zip(clip.frames, clip.masks, strict=True):
        for number in np.unique(mask[mask > 0]):
            (placed,) = np.unique(frame.instances[mask == number])  # one object of the scene
            assert numbers.setdefault(int(number), int(placed)) == placed
        assert (mask == 1).any() and frame.image.shape == (48, 85, 3)
    assert len({frame.image.tobytes() for frame in clip.frames}) == NUM_FRAMES
    assert (clip.masks[0] != clip.masks[-1]).mean() > 0.02


def test_all_models_are_evaluated_and_parts_give_the_metric(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    miniature = Miniature(seed=2, image_size_px=48, benchmarks={"davis2017": {"train": 1, "val": 3}})
    render_benchmark(miniature, "davis2017", tmp_path / "resources/davis2017")
    student.export(student.build(TINY, 0), TINY, tmp_path / "results/models/clip/seed0")
    entry = {"protocol": "miniature", "video_propagation": {"input": {"short_px": 48}}}
    config = Config.load({"models": {"clip": {}}, "training_free": {"benchmarks": {"davis2017": entry}}})
    training_free.run(config, Job(name="davis2017"))
    path = tmp_path / "results/training_free/davis2017.json"
    rows = {row["model"]: row for row in json.loads(path.read_text())["results"]}
    parts = read_per_image(path.with_suffix("").with_suffix(".per_image.npz"))
    assert rows.keys() == {"random", "position", "clip"} and len(parts.ids) == 3
    for model, row in rows.items():
        own = parts.of("video_propagation", f"propagation/{model}/seed0")
        assert main_metric("video_propagation", own)[0] == pytest.approx(row["metrics"]["JF"])
        assert "at 48 x 84 pixels" in row["protocol"]
    small = read_per_image(thumbnails_path(path)).tasks["video_propagation/propagation/clip/seed0"]
    sample, task = Davis2017(tmp_path / "resources/davis2017").samples("eval")[2], PLUGIN()
    drawing = task.drawing()([], [])
    truth, found = drawing.truth(sample), task.thumbnail(small, 2)
    assert truth["mask"].shape == found["mask"].shape
    pixels, _ = drawing.pixels(sample, truth)
    assert pixels.shape == (*truth["mask"].shape, 3) and len(drawing.legend(sample, [])) >= 1
