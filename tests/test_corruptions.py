"""Evaluation images made worse: by how much, always in the same way, and with clean training images."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from cliptex.benchmarks.base import Benchmark
from cliptex.config import Corruptions, Miniature
from cliptex.core.errors import CliptexError
from cliptex.core.plugins import find
from cliptex.data.miniature.layouts import render_benchmark
from cliptex.evaluation.corruptions import KINDS, CorruptedBenchmark, corrupt, variant_of, variants


def picture(height=64, width=48):
    """Smooth, with an edge."""
    y, x = np.mgrid[:height, :width]
    out = np.stack([255 * x / width, 255 * y / height, 128 + 0 * x], axis=-1)
    out[:, width // 2 :] *= 0.5
    return out.astype(np.uint8)


def harm(kind, severity, image):
    """How far it is from the image; of fog, whose lumps hide that, how little is left of what two images differ by."""
    worse = corrupt(image, kind, severity, "a").astype(float)
    if kind == "fog":
        return 1 - np.std(worse - corrupt(image[::-1], kind, severity, "a")) / np.std(image * 1.0 - image[::-1])
    return np.sqrt(np.mean((worse - image) ** 2))


@pytest.mark.parametrize("kind", KINDS)
def test_a_corruption_grows_with_its_severity_and_is_always_the_same(kind):
    image = picture()
    before = image.copy()
    errors = [harm(kind, severity, image) for severity in range(1, 6)]
    # fog of severities 3 and 4 is equally thick, of other lumps
    assert np.diff(errors).min() > -1e-3 * errors[0] and errors[-1] > 1.2 * errors[0] > 0
    worse = corrupt(image, kind, 3, "a")
    assert worse.shape == image.shape and worse.dtype == np.uint8
    assert_array_equal(worse, corrupt(image, kind, 3, "a"))
    assert_array_equal(image, before)
    if kind in ("noise", "fog"):
        assert (worse != corrupt(image, kind, 3, "b")).any()


def test_corruptions_do_what_their_names_say():
    grey = np.full((96, 96, 3), 128, np.uint8)
    assert np.std(corrupt(grey, "noise", 1, "a") / 255) == pytest.approx(0.08, rel=0.05)
    image = picture()
    contrast = corrupt(image, "contrast", 5, "a").astype(float)
    assert contrast.std(axis=(0, 1)) == pytest.approx(0.05 * image.std(axis=(0, 1)), abs=0.4)
    assert contrast.mean(axis=(0, 1)) == pytest.approx(image.mean(axis=(0, 1)), abs=1)
    edges = [np.abs(np.diff(one.astype(float), axis=1)).max() for one in (image, corrupt(image, "blur", 5, "a"))]
    assert edges[1] < 0.7 * edges[0]
    dark = np.zeros((32, 32, 3), np.uint8)
    dark[:4] = 255
    assert corrupt(dark, "fog", 1, "a")[8:].mean() > 60  # fog brightens what is dark


class Two(Benchmark):
    """Two training and three evaluation images."""

    name = "two"
    tasks = ("classification",)
    class_names = ("a", "b")

    def read(self, part):
        count = {"train": 2, "eval": 3}[part]
        return [{"id": f"{part}{number}", "image": picture(), "label": number % 2} for number in range(count)]


def test_a_corrupted_benchmark_shows_every_image_in_every_way(tmp_path):
    options = Corruptions(kinds=["noise", "fog"], severities=[1, 5])
    shown = CorruptedBenchmark(Two(tmp_path), options, {})
    assert variants(options) == ["clean", "noise-1", "noise-5", "fog-1", "fog-5"]
    samples = list(shown.samples("eval"))
    assert [variant_of(sample["id"]) for sample in samples] == [name for name in variants(options) for _ in range(3)]
    assert [sample["label"] for sample in samples] == [0, 1, 0] * 5
    assert_array_equal(samples[0]["image"], picture())
    assert_array_equal(samples[3]["image"], corrupt(picture(), "noise", 1, "eval0"))
    assert [sample["id"] for sample in shown.samples("train")] == ["train0", "train1"]
    assert_array_equal(shown.samples("train")[0]["image"], picture())
    few = CorruptedBenchmark(Two(tmp_path), Corruptions(kinds=["jpeg"], severities=[3], images=2), {})
    clean = Two(tmp_path)
    assert len({str(one.identity) for one in (clean, shown, few)}) == 3  # features kept of one are not the others'
    assert [sample["id"] for sample in few.samples("eval")] == [
        "clean/eval0",
        "clean/eval1",
        "jpeg-3/eval0",
        "jpeg-3/eval1",
    ]


def test_detection_is_refused(tmp_path):
    class Detection(Two):
        tasks = ("detection",)

    with pytest.raises(CliptexError, match="detection cannot be evaluated under corruptions"):
        CorruptedBenchmark(Detection(tmp_path), Corruptions(), {})


def test_dusk_shows_the_same_scenes_in_another_light(tmp_path):
    miniature = Miniature(image_size_px=48, benchmarks={"voc": {"train": 3, "val": 4}})
    for look, folder in (("benchmark", "voc"), ("dusk", "voc_dusk")):
        render_benchmark(miniature, "voc", tmp_path / folder, look)
    shown = CorruptedBenchmark.of("voc", Corruptions(kinds=[], looks=["dusk"]), tmp_path)
    samples = list(shown.samples("eval"))
    assert [variant_of(sample["id"]) for sample in samples] == ["clean"] * 4 + ["dusk"] * 4
    for day, dusk in zip(samples[:4], samples[4:], strict=True):
        assert_array_equal(day["mask"], dusk["mask"])
        assert np.mean(np.abs(day["image"].astype(float) - dusk["image"])) > 8
    reds = [
        np.mean([one["image"][..., 0] / one["image"].mean() for one in part]) for part in (samples[:4], samples[4:])
    ]
    assert reds[1] > reds[0]  # warmer
    with pytest.raises(CliptexError, match="--look: 'dawn' is not one of dusk"):
        render_benchmark(miniature, "voc", tmp_path / "x", "dawn")
    assert find("benchmarks", "voc")(tmp_path / "voc_dusk").source == "miniature"
