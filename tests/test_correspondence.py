"""Semantic correspondence: SPair-71k's layout, PCK by hand, matching, and exact correspondences of rendered pairs."""

import json

import numpy as np
import pytest
import torch
from official_layouts import write_spair71k
from tiny import TINY

from cliptex.benchmarks.spair71k import CATEGORIES, Spair71k
from cliptex.config import Config, Miniature
from cliptex.core.errors import CliptexError
from cliptex.data.miniature.layouts import render_benchmark
from cliptex.data.miniature.scenes import SceneOptions
from cliptex.data.miniature.sequences import NUM_POINTS, view_pair
from cliptex.evaluation.job import Job
from cliptex.evaluation.metrics.correspondence import (
    chance_pck,
    correct,
    correspondence_metrics,
    correspondence_statistics,
    pck,
    pck_of_categories,
)
from cliptex.evaluation.per_image import main_metric, read_per_image
from cliptex.evaluation.thumbnails import thumbnails_path
from cliptex.evaluation.training_free import run as training_free
from cliptex.evaluation.training_free.semantic_correspondence import PLUGIN, nearest_places
from cliptex.models import clip as student

# ---- the official layout


def test_a_pair_has_the_points_boxes_and_images_of_its_annotation(tmp_path):
    spair = Spair71k(write_spair71k(tmp_path, 3, 4))
    path = tmp_path / "SPair-71k/Layout/large/test.txt"
    names = path.read_text().split("\n")
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*names, "", ""]).encode())  # as editors on Windows write it
    samples = spair.samples("eval")
    assert [sample["id"] for sample in samples] == names and len(spair.samples("train")) == 3
    pair = json.loads((tmp_path / f"SPair-71k/PairAnnotation/test/{names[1]}.json").read_text())
    sample = samples[1]
    np.testing.assert_array_equal(sample["keypoints"], pair["src_kps"])
    np.testing.assert_array_equal(sample["target_keypoints"], pair["trg_kps"])
    np.testing.assert_array_equal(sample["target_box"], pair["trg_bndbox"])
    assert CATEGORIES[sample["label"]] == pair["category"]
    assert sample["image"].shape == sample["target"].shape == (pair["src_imsize"][1], pair["src_imsize"][0], 3)
    assert sample["image_names"] == tuple(f"{pair['category']}/{pair[k][:-4]}" for k in ("src_imname", "trg_imname"))
    assert set(spair.names("train")).isdisjoint(spair.names("eval")) and spair.prepare() == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trg_kps": [[1, 2]]}, "src_kps has 3 points and trg_kps 1"),
        ({"src_kps": [], "trg_kps": []}, "src_kps is not a list of 2 numbers each"),
        ({"src_kps": [[1, 2, 3]]}, "src_kps is not a list of 2 numbers each"),
        ({"src_kps": [[1, None], [2, 3], [4, 5]]}, "src_kps is not a list of 2 numbers each"),
        ({"src_kps": [[1, 1e300], [2, 3], [4, 5]]}, "src_kps is not a list of 2 numbers each"),
        ({"trg_bndbox": [5, 5, 5, 9]}, "trg_bndbox is empty"),
        ({"trg_bndbox": "all"}, "trg_bndbox is wrong"),
        (None, "src_kps is missing"),
    ],
)
def test_a_wrong_annotation_is_an_error_that_names_file_and_key(tmp_path, changes, message):
    spair = Spair71k(write_spair71k(tmp_path, 1, 1))
    path = next((tmp_path / "SPair-71k/PairAnnotation/test").iterdir())
    path.write_text(json.dumps({} if changes is None else json.loads(path.read_text()) | changes))
    with pytest.raises(CliptexError, match=message) as error:
        spair.samples("eval")[0]
    assert str(path) in str(error.value) and "SPair-71k.tar.gz" in str(error.value)


@pytest.mark.parametrize("line", ["1-a-b", "x-a-b:car", "1-a-b:carpet", "1-../a-b:car", "1-a-b:car/../dog"])
def test_a_line_that_is_no_pair_is_an_error(tmp_path, line):
    spair = Spair71k(write_spair71k(tmp_path, 1, 1))
    (tmp_path / "SPair-71k/Layout/large/test.txt").write_text(f"{line}\n")
    with pytest.raises(CliptexError, match=r"test\.txt: .* is not a pair of SPair-71k"):
        spair.samples("eval")


# ---- PCK


def test_pck_is_that_of_a_computation_by_hand():
    # the longer side of the box is 20, so that 2 pixels are correct by 0.1, and 1 pixel by 0.05
    truth = {"target_keypoints": np.array([[10, 10], [20, 10], [30, 10]]), "target_box": [0, 0, 20, 5], "label": 2}
    other = {"target_keypoints": np.array([[0, 0]]), "target_box": [10, 10, 15, 30], "label": 0}
    places = [np.array([[10, 12], [20.6, 10.6], [30, 12.1]]), np.array([[5, 5]])]
    parts = correspondence_statistics(places, [truth, other])
    assert parts["correct_0.1"].tolist() == [2, 0] and parts["correct_0.05"].tolist() == [1, 0]
    metrics = correspondence_metrics(parts)
    assert metrics["PCK@0.1"] == pytest.approx(100 * (2 / 3 + 0) / 2)
    assert metrics["PCK@0.1_per_point"] == pytest.approx(100 * 2 / 4)
    assert metrics["PCK@0.05"] == pytest.approx(100 / 6) and metrics["PCK@0.05_per_point"] == pytest.approx(25)
    by_category = pck_of_categories(parts)
    assert by_category[2] == pytest.approx(200 / 3) and by_category[0] == 0 and np.isnan(by_category[1])
    np.testing.assert_allclose(pck(parts, np.array([[1, 1], [1, 0], [3, 1]])), [100 / 3, 200 / 3, 50])


def test_pck_is_that_of_loops():
    rng = np.random.default_rng(0)
    for _ in range(20):
        points, places = rng.uniform(0, 40, (2, 7, 2))
        box = np.sort(rng.uniform(0, 40, (2, 2)), axis=0).ravel()
        longer = max(box[2] - box[0], box[3] - box[1])
        pairs = zip(places.tolist(), points.tolist(), strict=True)
        loops = [(px - x) ** 2 + (py - y) ** 2 <= (0.1 * longer) ** 2 for (px, py), (x, y) in pairs]
        assert correct(places, points, box, 0.1).tolist() == loops


def test_chance_is_the_share_of_the_image_within_the_radius():
    # a disk of radius 10 in the middle of 100 x 100 pixels
    truth = {"target_keypoints": np.array([[49.5, 49.5]]), "target_box": [0, 0, 100, 10], "label": 0}
    assert chance_pck([truth], [(100, 100)]) == pytest.approx(np.pi, abs=0.15)


# ---- matching


def test_a_place_is_found_where_the_same_features_are():
    rng = np.random.default_rng(0)
    source = torch.from_numpy(rng.normal(size=(16, 6, 8)).astype(np.float32))
    moved = torch.roll(source, (1, 2), (1, 2))
    cells = np.array([[x, y] for x in range(5) for y in range(4)])
    shares = (cells + 0.5) / [8, 6]
    for upsample in (1, 5):  # an odd factor has cells at the centres of the coarse ones
        found = nearest_places(source, moved, shares, upsample)
        np.testing.assert_allclose(found, (cells + [2, 1] + 0.5) / [8, 6], atol=1e-6)


def test_a_point_between_cells_has_the_interpolated_features():
    source = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])  # one row of two cells
    target = torch.tensor([[[1.0, 0.0, 1.0]], [[0.0, 1.0, 1.0]]])
    np.testing.assert_allclose(nearest_places(source, target, np.array([[0.5, 0.5]]), 1), [[2.5 / 3, 0.5]])


# ---- rendered pairs


def test_both_views_of_a_rendered_pair_see_the_same_surface_at_its_points():
    for index in range(6):
        options = SceneOptions(subject=("chair", "car", "bird")[index % 3], things=(0, 2), share=(0.6, 1.0))
        pair = view_pair(5, "benchmark", 12, index, 96, options)
        assert NUM_POINTS[0] <= len(pair.positions) <= NUM_POINTS[1]
        for shot, places in zip(pair.shots, pair.points, strict=True):
            again, depth = shot.camera.project(pair.positions, 96, 96)
            np.testing.assert_allclose(again, places, atol=2e-3)  # pixels: the hits are in single precision
            columns, rows = np.round(places).astype(int).T
            exact = shot.hits.depth.reshape(96, 96)[rows, columns]
            # the pixel's own ray meets the surface less than a pixel away
            near = np.abs(exact - depth) < 0.1 * depth
            same = shot.instances[rows, columns] == pair.instance
            assert near.mean() > 0.7 and same.mean() > 0.7
        columns, rows = pair.points[0].astype(int).T
        hits = pair.shots[0].hits
        np.testing.assert_array_equal(hits.position.reshape(96, 96, 3)[rows, columns], pair.positions)
        np.testing.assert_array_equal(pair.shots[0].instances[rows, columns], pair.instance)


def test_a_ray_from_the_second_camera_to_a_point_meets_nothing_before_it():
    """Cast again, as an image of one pixel."""
    from cliptex.data.miniature.scenes import compose
    from cliptex.data.miniature.stage import Camera

    options = SceneOptions(subject="chair", things=(0, 2), share=(0.6, 1.0))
    pair = view_pair(5, "benchmark", 12, 3, 96, options)
    _, world, _ = compose(5, "benchmark", 12, 3, options)
    eye = pair.shots[1].camera.position
    for position in pair.positions:
        x, y, z = position - eye
        looking = Camera.looking(tuple(eye), np.arctan2(x, y), np.arctan2(z, np.hypot(x, y)), 0.0, 0.2)
        part, depth = world.stage.first_hits(looking, 1, 1)
        assert world.stage.instances[part[0]] == pair.instance
        assert depth[0] == pytest.approx(np.linalg.norm(position - eye), rel=5e-3)


def test_another_benchmark_changes_only_the_values_of_the_job_that_renders_it():
    known = {"voc": {"train": 5, "val": 4}}
    before = Config.load({"miniature": {"benchmarks": known}})
    after = Config.load({"miniature": {"benchmarks": known | {"spair71k": {"train": 1, "val": 2}}}})
    for name in (None, "voc"):
        assert after.subset("miniature", naming=name) == before.subset("miniature", naming=name)
    rendered = json.loads(after.subset("miniature", naming="spair71k"))["miniature"]["benchmarks"]
    assert rendered.keys() == {"voc", "spair71k"}
    used = after.model_copy(update={"zeroshot": after.zeroshot.model_copy(update={"benchmarks": ["spair71k"]})})
    assert "spair71k" in json.loads(used.subset("miniature", "zeroshot"))["miniature"]["benchmarks"]


# ---- the whole evaluation


def test_all_models_are_evaluated_and_parts_give_the_metric(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    miniature = Miniature(seed=2, image_size_px=48, benchmarks={"spair71k": {"train": 1, "val": 9}})
    render_benchmark(miniature, "spair71k", tmp_path / "resources/spair71k")
    for seed in (0, 1):
        student.export(student.build(TINY, 0), TINY, tmp_path / f"results/models/clip/seed{seed}")
    entry = {
        "protocol": "miniature",
        "semantic_correspondence": {"variants": {"coarse": {"kind": "nearest", "upsample": 1}}},
    }
    config = Config.load(
        {"models": {"clip": {}}, "seeds": [0, 1], "training_free": {"benchmarks": {"spair71k": entry}}}
    )
    training_free.run(config, Job(name="spair71k"))
    path = tmp_path / "results/training_free/spair71k.json"
    result = json.loads(path.read_text())
    parts = read_per_image(path.with_suffix("").with_suffix(".per_image.npz"))
    rows = {(row["head"], row["model"], row["seed"]): row for row in result["results"]}
    assert rows.keys() == {
        (head, model, seed)
        for head in ("nearest", "coarse") for model in ("random", "position", "clip") for seed in (0, 1)
    }  # fmt: skip
    for (head, model, seed), row in rows.items():
        own = parts.of("semantic_correspondence", f"{head}/{model}/seed{seed}")
        assert main_metric("semantic_correspondence", own)[0] == pytest.approx(row["metrics"]["PCK@0.1"])
        assert row["num_parameters"] == 0 and "at 48 x 48 pixels" in row["protocol"]
    assert rows["nearest", "clip", 0]["metrics"] == rows["nearest", "clip", 1]["metrics"]
    assert 0 < result["chance"]["semantic_correspondence"]["PCK@0.1"] < 20
    small = read_per_image(thumbnails_path(path)).tasks["semantic_correspondence/nearest/clip/seed0"]
    sample = Spair71k(tmp_path / "resources/spair71k").samples("eval")[3]
    found = PLUGIN().thumbnail(small, 3)
    own = parts.of("semantic_correspondence", "nearest/clip/seed0")
    hits = correct(found["target_keypoints"], sample["target_keypoints"], sample["target_box"], 0.1)
    assert hits.sum() == own["correct_0.1"][3] and len(hits) == own["points"][3]
    drawing = PLUGIN().drawing()([], [])
    right, _ = drawing.pixels(sample, drawing.truth(sample))
    wrong, _ = drawing.pixels(sample, {"target_keypoints": sample["target_keypoints"] * 0})
    assert right.shape == wrong.shape == (192, 384, 3) and (right != wrong).any()
