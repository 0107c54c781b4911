"""Geometric correspondence: the layout of ScanNet's pairs, recall by loops, matching, and rendered views of rooms."""

import json
import math

import numpy as np
import pytest
import torch
from official_layouts import write_scannet1500
from PIL import Image
from tiny import TINY

from cliptex.benchmarks.scannet1500 import Scannet1500
from cliptex.config import Config, Miniature
from cliptex.core.errors import CliptexError
from cliptex.data.miniature.layouts import render_benchmark
from cliptex.data.miniature.room_views import ANGLES, COARSE, OVERLAP, overlap, room_pair
from cliptex.evaluation.job import Job
from cliptex.evaluation.metrics.geometric_correspondence import (
    angle_bins,
    chance_recall,
    geometric_metrics,
    geometric_statistics,
    grid_points,
    in_second_view,
    match_errors,
    project,
    recall,
    unproject,
    view_angle,
)
from cliptex.evaluation.per_image import main_metric, read_per_image
from cliptex.evaluation.protocols.resolve import TRAINING_FREE, protocol_of
from cliptex.evaluation.thumbnails import thumbnails_path
from cliptex.evaluation.training_free import geometric_correspondence as evaluator
from cliptex.evaluation.training_free import run as training_free
from cliptex.evaluation.training_free.geometric_correspondence import PLUGIN, match_pair, nearest_points
from cliptex.models import clip as student

# ---- the official layout


@pytest.mark.parametrize("inside", [True, False])
def test_a_pair_has_the_frames_depth_and_geometry_of_its_files(tmp_path, inside):
    """LoFTR publishes the lists apart from the images, so they may be in the folder or next to it."""
    scannet = Scannet1500(write_scannet1500(tmp_path, 17, inside=inside))
    samples = scannet.samples("eval")
    assert len(samples) == 17 and scannet.prepare() == {} and scannet.parts == ("eval",)
    assert [samples[0]["id"], samples[16]["id"]] == ["scene0707_00_0_15", "scene0708_00_0_30"]
    sample, folder = samples[1], tmp_path / "scannet_test_1500/scene0707_00"
    assert sample["image_names"] == ("scene0707_00/0", "scene0707_00/30")
    np.testing.assert_array_equal(sample["target"], np.asarray(Image.open(folder / "color/30.jpg")))
    assert np.isnan(sample["depth"][::5]).all() and (sample["depth"][1:5] == 2).all()
    # two cameras further on, at 4 pixels each
    points = grid_points(sample["depth"], 4)
    places = project(in_second_view(sample, points), sample["intrinsics"])
    np.testing.assert_allclose(places, points - [8, 0], atol=1e-3)  # poses have six decimals
    inner = points[points[:, 0] >= 8]
    found = sample["target"][inner[:, 1], inner[:, 0] - 8].astype(int)
    assert np.abs(found - sample["image"][inner[:, 1], inner[:, 0]]).mean() < 6  # JPEG


def test_a_colour_image_is_resized_to_its_depth_map(tmp_path):
    scannet = Scannet1500(write_scannet1500(tmp_path, 1))
    path = tmp_path / "scannet_test_1500/scene0707_00/color/0.jpg"
    before = scannet.samples("eval")[0]["image"].astype(int)
    with Image.open(path) as image:
        image.resize((130, 97)).save(path, quality=95)  # ScanNet's aspect ratio, 1296 x 968
    resized = scannet.samples("eval")[0]["image"]
    assert resized.shape == before.shape and np.abs(resized - before).mean() < 6
    Image.new("RGB", (90, 48)).save(path)
    with pytest.raises(CliptexError, match=r"0\.jpg: has 90 x 48 pixels, which do not fit 64 x 48 of its depth map"):
        scannet.samples("eval")[0]


def text(place: str, content: str):
    return lambda folder: (folder / "scene0707_00" / place).write_text(content)


def arrays(file: str, /, **content):
    return lambda folder: np.savez(folder / file, **content)


def depth(pixels: np.ndarray):
    return lambda folder: Image.fromarray(pixels).save(folder / "scene0707_00/depth/15.png")


EYE = "1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n"
ROW = np.array([[707, 0, 0, 15]])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "scene0707_00/pose/15.txt").unlink(), r"pose/15\.txt: no such file; unpack"),
        (text("pose/15.txt", "-inf -inf -inf -inf\n" * 4), r"15\.txt: has no pose, .*remove its pairs from test\.npz"),
        (text("pose/15.txt", EYE.replace("0 1 0 0", "0 nan 0 0")), r"15\.txt: has no pose"),
        (text("pose/15.txt", EYE.replace("0 1 0 0", "0 2 0 0")), r"15\.txt: is not a rotation and a position"),
        (text("pose/15.txt", EYE.replace("0 1 0 0", "0 -1 0 0")), r"15\.txt: is not a rotation and a position"),
        (text("pose/15.txt", EYE[:-8]), r"15\.txt: is not a matrix of four lines with four numbers each"),
        (text("pose/15.txt", EYE.replace("0 1 0 0", "0 one 0 0")), r"15\.txt: is not a matrix"),
        (depth(np.zeros((48, 64), np.uint8)), r"depth/15\.png: .*must be a grey PNG with 16 bits, not L"),
        (depth(np.zeros((24, 32), np.uint16)), r"depth/15\.png: its size is not that of 0\.png"),
        (arrays("test.npz", name=ROW.astype(object)), r"test\.npz: damaged, or not an \.npz file of arrays"),
        (arrays("test.npz", pairs=ROW), r"test\.npz: name is no array, not integers \[N, 4\]"),
        (arrays("test.npz", name=ROW * 1.0), r"test\.npz: name is float64 \[1, 4\]"),
        (arrays("test.npz", name=-ROW), r"test\.npz: name has .* which is not a pair of frames"),
        (arrays("test.npz", name=ROW.repeat(2, 0)), r"test\.npz: name has \[707, 0, 0, 15\] 2 times"),
        (arrays("intrinsics.npz", scene0708_00=np.eye(3)), r"intrinsics\.npz: has no array scene0707_00"),
        (arrays("intrinsics.npz", scene0707_00=np.eye(4)), r"scene0707_00 is not a camera matrix, floats \[3, 3\]"),
        (arrays("intrinsics.npz", scene0707_00=np.full((3, 3), np.nan)), r"scene0707_00 is not a camera matrix"),
    ],
)
def test_a_damaged_file_is_an_error_of_one_line_that_names_it(tmp_path, damage, message):
    scannet = Scannet1500(write_scannet1500(tmp_path, 1))
    damage(tmp_path / "scannet_test_1500")
    with pytest.raises(CliptexError, match=message) as error:
        scannet.samples("eval")[0]
    assert "\n" not in str(error.value)


# ---- recall


def other_view(seed: int, height: int = 24, width: int = 32) -> dict:
    """A pair of views with random depth, a rotation about an oblique axis, and holes."""
    rng = np.random.default_rng(seed)
    axis, angle = np.array([0.6, 0.48, 0.64]), rng.uniform(0.05, 1.5)
    cross = np.cross(np.eye(3), axis)
    transform = np.eye(4)
    transform[:3, :3] = np.eye(3) + math.sin(angle) * cross.T + (1 - math.cos(angle)) * cross.T @ cross.T
    transform[:3, 3] = rng.uniform(-1.5, 1.5, 3)
    depths = rng.uniform(0.5, 4, (2, height, width)).astype(np.float32)
    depths[rng.random(depths.shape) < 0.2] = np.nan
    matrix = np.array([[30.0, 0, 15.3], [0, 31, 11.9], [0, 0, 1]])
    return {"depth": depths[0], "target_depth": depths[1], "intrinsics": matrix, "transform": transform, "angle": angle}


def error_by_hand(pair: dict, point: tuple[int, int], place: tuple[int, int]) -> float:
    """One number after another, from the pinhole model."""
    (fx, _, cx), (_, fy, cy), _ = pair["intrinsics"].tolist()
    z = float(pair["depth"][point[1], point[0]])
    here = [(point[0] - cx) / fx * z, (point[1] - cy) / fy * z, z, 1.0]
    x, y, z = (sum(value * h for value, h in zip(row, here, strict=True)) for row in pair["transform"].tolist()[:3])
    if z <= 0:
        return math.inf
    return math.hypot(fx * x / z + cx - place[0], fy * y / z + cy - place[1]) * 120 / len(pair["depth"])


def test_errors_and_recall_are_those_of_loops():
    rng, errors, angles, by_hand, behind = np.random.default_rng(0), [], [], [], 0
    for seed in range(40):
        pair = other_view(seed)
        points = grid_points(pair["depth"], 3)
        assert points.tolist() == [
            [x, y] for y in range(1, 24, 3) for x in range(1, 32, 3) if math.isfinite(pair["depth"][y, x])
        ]
        # half of the matches are near the truth, the others anywhere
        near = np.nan_to_num(project(in_second_view(pair, points), pair["intrinsics"])).round().astype(int)
        places = np.where(rng.random((len(points), 1)) < 0.5, near, rng.integers(0, 24, points.shape))
        loop = [
            error_by_hand(pair, point, place) for point, place in zip(points.tolist(), places.tolist(), strict=True)
        ]
        np.testing.assert_allclose(match_errors(pair, points, places), loop, rtol=1e-6)
        assert view_angle(pair["transform"]) == pytest.approx(math.degrees(pair["angle"]))
        errors.append(match_errors(pair, points, places))
        angles.append(math.degrees(pair["angle"]))
        by_hand.append(loop)
        behind += loop.count(math.inf)
    assert behind > 0
    parts = geometric_statistics(errors, angles)
    metrics = geometric_metrics(parts)
    for limit in (5, 10, 20):
        shares = [sum(error < limit for error in loop) / len(loop) for loop in by_hand]
        assert metrics[f"recall@{limit}px"] == pytest.approx(100 * sum(shares) / 40, abs=1e-6)
    shares = [sum(error < 10 for error in loop) / len(loop) for loop in by_hand]
    for low, high in ((0, 15), (15, 30), (30, 60), (60, 180)):
        own = [share for share, angle in zip(shares, angles, strict=True) if low <= angle < high]
        assert metrics[f"recall@10px_{low}_{high}"] == pytest.approx(100 * sum(own) / len(own), abs=1e-6)
    weights = np.array([[1] * 40, [2] + [1] * 39])
    expected = [100 * sum(shares) / 40, 100 * (sum(shares) + shares[0]) / 41]
    np.testing.assert_allclose(recall(parts, weights), expected)


def test_each_angle_is_in_one_bin_and_an_empty_bin_has_no_recall():
    bins = angle_bins(np.array([0.0, 14.9, 15.0, 30.0, 59.9, 60.0, 180.0]))
    assert {name: inside.astype(int).tolist() for name, inside in bins.items()} == {
        "0_15": [1, 1, 0, 0, 0, 0, 0],
        "15_30": [0, 0, 1, 0, 0, 0, 0],
        "30_60": [0, 0, 0, 1, 1, 0, 0],
        "60_180": [0, 0, 0, 0, 0, 1, 1],
    }
    metrics = geometric_metrics(geometric_statistics([np.array([1.0, 9.0, 10.0, np.inf])], [20.0]))
    assert metrics == {
        "recall@5px": 25, "recall@10px": 50, "recall@20px": 75, "recall@10px_0_15": None,
        "recall@10px_15_30": 50, "recall@10px_30_60": None, "recall@10px_60_180": None,
    }  # fmt: skip


def test_chance_is_the_recall_of_all_matches_of_one_view_with_the_other():
    for seed in range(5):
        pair = other_view(seed)
        points, places = grid_points(pair["depth"], 3), grid_points(pair["target_depth"], 3)
        hits = [match_errors(pair, points, np.broadcast_to(place, points.shape)) < 10 for place in places]
        assert chance_recall(pair, 3) == pytest.approx(np.mean(hits), abs=1e-12)


# ---- matching


@pytest.mark.parametrize("entries", [1, 300, 2**24])
def test_nearest_points_are_those_of_a_loop_whatever_is_in_memory_at_a_time(monkeypatch, entries):
    monkeypatch.setattr(evaluator, "SIMILARITIES", entries)
    generator = torch.Generator().manual_seed(0)
    first, second = (
        torch.nn.functional.normalize(torch.randn(count, 8, generator=generator), dim=1) for count in (40, 60)
    )
    second[7] = first[3]
    found, ratio, similarity = nearest_points(first, second)
    for index, row in enumerate(first.double().numpy()):
        distances = sorted((1 - float(row @ other), number) for number, other in enumerate(second.double().numpy()))
        assert found[index] == distances[0][1]
        assert similarity[index] == pytest.approx(1 - distances[0][0], abs=1e-6)
        assert ratio[index] == pytest.approx(max(distances[0][0], 0) / distances[1][0], abs=1e-5)
    assert found[3] == 7 and ratio[3] == 0
    same = torch.ones(5, 8) / math.sqrt(8)
    assert (nearest_points(same, same)[1] == 1).all()  # all are equally near
    assert (nearest_points(first, second[:1])[1] == 1).all()


def section(**values):
    entry = {"protocol": "miniature", "geometric_correspondence": values}
    return protocol_of("scannet1500", entry, evaluator=TRAINING_FREE).section("geometric_correspondence")


def rendered(index: int, height: int = 96, width: int = 128) -> tuple[dict, list[torch.Tensor]]:
    """A pair of views as a sample, and the positions in the world of their pixels, float32 [3, H, W]."""
    shots = room_pair(3, "benchmark", 20, index, height, width)
    transforms = [np.eye(4), np.eye(4)]
    for transform, shot in zip(transforms, shots, strict=True):
        rotation = shot.camera.rotation.astype(np.float64)
        transform[:3, :3], transform[:3, 3] = rotation, -rotation @ shot.camera.position
    focal = shots[0].camera.focal * width
    sample = {
        "id": str(index),
        "image_names": ("a", "b"),
        "image": shots[0].image,
        "target": shots[1].image,
        "depth": shots[0].hits.depth.reshape(height, width),
        "target_depth": shots[1].hits.depth.reshape(height, width),
        "intrinsics": np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]]),
        "transform": transforms[1] @ np.linalg.inv(transforms[0]),
    }
    positions = [torch.from_numpy(shot.hits.position.reshape(height, width, 3).transpose(2, 0, 1)) for shot in shots]
    return sample, positions


def test_positions_as_features_are_found_where_both_views_see_them_and_random_ones_by_chance():
    perfect, seen, chances, by_chance = [], [], [], []
    for index in range(4):
        sample, positions = rendered(index)
        options = section(matches=400, variants={"near": {"kind": "nearest", "ranking": "similarity"}})
        # on a sphere, where cosine is as near as distance is
        features = [
            torch.cat([position, 40 - position.square().sum(0, keepdim=True).div(80)]) for position in positions
        ]
        found = match_pair(dict(zip("ab", features, strict=True)), sample, options)["near"]
        perfect.append((found.errors < 5).mean())
        seen.append(len(found.points))
        noise = torch.randn(2, 16, 96, 128, generator=torch.Generator().manual_seed(index))
        random = match_pair(dict(zip("ab", noise, strict=True)), sample, section(matches=100_000))
        by_chance.append((random["nearest"].errors < 10).mean())
        chances.append(chance_recall(sample, 3))
    assert min(perfect) > 0.97 and min(seen) == 400
    assert np.mean(by_chance) == pytest.approx(np.mean(chances), abs=0.004)


def test_equal_ratios_are_from_the_whole_image():
    """As those of the baseline `position`: each place is found at itself."""
    sample, _ = rendered(0)
    same = torch.randn(16, 96, 128, generator=torch.Generator().manual_seed(0))
    found = match_pair({"a": same, "b": same}, sample, section(matches=100))["nearest"]
    np.testing.assert_array_equal(found.points, found.places)
    assert (np.histogram(found.points[:, 1], [0, 32, 64, 96])[0] > 15).all()


def test_a_pair_without_a_point_is_an_error_that_names_the_key():
    sample, positions = rendered(0, 24, 32)
    sample["target_depth"] = np.full_like(sample["depth"], np.nan)
    with pytest.raises(CliptexError, match=r"^0: a depth map has no depth at every 3 pixels; lower `stride_px`"):
        match_pair(dict(zip("ab", positions, strict=True)), sample, section())


# ---- rendered views


def test_points_of_one_rendered_view_are_in_the_other_where_it_says_so(tmp_path):
    """Read from the written poses, intrinsics and millimetres; each scene has the chosen angle and overlap."""
    count = len(ANGLES)
    miniature = Miniature(seed=3, image_size_px=96, benchmarks={"scannet1500": {"train": 0, "val": count}})
    render_benchmark(miniature, "scannet1500", tmp_path / "scannet1500")
    scannet = Scannet1500(tmp_path / "scannet1500")
    assert scannet.prepare() == {} and len(scannet.samples("eval")) == scannet.expected("eval") == count
    relative = np.load(tmp_path / "scannet1500/scannet_test_1500/test.npz")["rel_pose"].reshape(-1, 3, 4)
    for limits, sample, pose in zip(ANGLES, scannet.samples("eval"), relative, strict=True):
        assert limits[0] - 0.01 <= view_angle(sample["transform"]) <= limits[1] + 0.01
        np.testing.assert_allclose(sample["transform"][:3], pose, atol=1e-4)
        points = grid_points(sample["depth"], 2)
        there = in_second_view(sample, points)
        places = project(there, sample["intrinsics"])
        inside = np.isfinite(places).all(1) & (places > 0).all(1) & (places < [127, 95]).all(1)
        there, places, points = there[inside], places[inside].round().astype(int), points[inside]
        depth = sample["target_depth"][places[:, 1], places[:, 0]]
        back = unproject(places, depth, sample["intrinsics"])
        # nothing is farther than what the first view sees there, but for half a pixel at edges; most is the same point
        assert (depth > there[:, 2] + 0.02 * there[:, 2] + 0.05).mean() < 0.15
        visible = np.abs(depth - there[:, 2]) < 0.02 * there[:, 2]
        assert visible.sum() / len(grid_points(sample["depth"], 2)) > OVERLAP[0] - 0.12
        pixel = there[:, 2] / sample["intrinsics"][0, 0]
        assert np.median(np.linalg.norm(back - there, axis=1)[visible] / pixel[visible]) < 1


def test_views_of_a_room_overlap_as_chosen_and_are_the_same_again():
    from cliptex.data.miniature.room_views import OPTIONS
    from cliptex.data.miniature.scenes import compose

    for index in range(4):
        shots, again = (room_pair(3, "benchmark", 20, index, *COARSE) for _ in range(2))
        for one, other in zip(shots, again, strict=True):
            np.testing.assert_array_equal(one.image, other.image)
        stage = compose(3, "benchmark", 20, index, OPTIONS)[1].stage
        for first, second in (shots, shots[::-1]):
            assert OVERLAP[0] <= overlap(stage, first.camera, second.camera) <= OVERLAP[1]
        assert shots[0].camera.focal == shots[1].camera.focal


@pytest.mark.parametrize(
    ("name", "train", "message"),
    [("scannet1500", 2, "is 2; it has no training split; set 0"), ("voc", 0, "is 0; set a positive number")],
)
def test_only_a_benchmark_without_training_split_is_rendered_without_one(tmp_path, name, train, message):
    miniature = Miniature(benchmarks={name: {"train": train, "val": 1}})
    with pytest.raises(CliptexError, match=rf"miniature\.benchmarks\.{name}\.train: {message}"):
        render_benchmark(miniature, name, tmp_path / name)


# ---- the whole evaluation


def test_all_models_are_evaluated_and_parts_give_the_metric(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    miniature = Miniature(seed=2, image_size_px=48, benchmarks={"scannet1500": {"train": 0, "val": 9}})
    render_benchmark(miniature, "scannet1500", tmp_path / "resources/scannet1500")
    student.export(student.build(TINY, 0), TINY, tmp_path / "results/models/clip/seed0")
    variants = {"similar": {"kind": "nearest", "ranking": "similarity"}}
    entry = {
        "protocol": "miniature",
        "geometric_correspondence": {"stride_px": 2, "matches": 100, "variants": variants},
    }
    config = Config.load({"models": {"clip": {}}, "training_free": {"benchmarks": {"scannet1500": entry}}})
    training_free.run(config, Job(name="scannet1500"))
    path = tmp_path / "results/training_free/scannet1500.json"
    result = json.loads(path.read_text())
    parts = read_per_image(path.with_suffix("").with_suffix(".per_image.npz"))
    rows = {(row["head"], row["model"]): row for row in result["results"]}
    assert rows.keys() == {(head, model) for head in ("nearest", "similar") for model in ("random", "position", "clip")}
    for (head, model), row in rows.items():
        own = parts.of("geometric_correspondence", f"{head}/{model}/seed0")
        assert main_metric("geometric_correspondence", own)[0] == pytest.approx(row["metrics"]["recall@10px"])
        assert (own["matches"] == 100).all() and "every 2 pixels of patch tokens" in row["protocol"]
    assert result["details"]["geometric_correspondence"]["pairs_by_angle"] == dict.fromkeys(
        ("0_15", "15_30", "30_60"), 3
    ) | {"60_180": 0}
    assert 0 < result["chance"]["geometric_correspondence"]["recall@10px"] < 5
    # the thumbnails are some of the matches, and the errors of the first ones can be computed again
    sample, saved = (
        Scannet1500(tmp_path / "resources/scannet1500").samples("eval")[2],
        np.load(path.with_suffix(".npz")),
    )
    row = saved["geometric_correspondence.rows"].tolist().index("nearest/clip/seed0")
    points, places, errors = (saved[f"geometric_correspondence.{key}_2"][row] for key in ("points", "places", "errors"))
    np.testing.assert_allclose(match_errors(sample, points, places), errors, rtol=1e-5)
    small = read_per_image(thumbnails_path(path)).tasks["geometric_correspondence/nearest/clip/seed0"]
    kept = PLUGIN().thumbnail(small, 2)
    order = np.linspace(0, 99, 24).round().astype(int)
    np.testing.assert_array_equal(kept["points"], points[order])
    np.testing.assert_array_equal(kept["places"], places[order])
    drawing = PLUGIN().drawing()([], [])
    truth = drawing.truth(sample)
    assert (match_errors(sample, truth["points"], truth["places"]) < 2).all()
    right, wrong = drawing.pixels(sample, truth)[0], drawing.pixels(sample, kept)[0]
    assert right.shape == wrong.shape == (192, 512, 3) and (right != wrong).any()
    assert len(drawing.legend(sample, [truth])) == 4
