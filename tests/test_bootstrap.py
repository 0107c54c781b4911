"""The paired bootstrap on cases with known answers."""

import numpy as np
import pytest

from cliptex.report.bootstrap import Interval, draws, interval, resampled


def hits(values):
    return {"top1": np.asarray(values, bool), "top5": np.ones(len(values), bool)}


def errors(values):
    return {"rmse": np.asarray(values, float)}


def difference(task, subject, reference, weights):
    return interval(resampled(task, [subject], weights) - resampled(task, [reference], weights))


def test_draws_have_as_many_images_as_there_are_and_follow_their_seed():
    weights = draws(50, 200, seed=3)
    assert weights.shape == (200, 50) and (weights.sum(1) == 50).all()
    assert np.array_equal(weights, draws(50, 200, seed=3))
    assert not np.array_equal(weights, draws(50, 200, seed=4))
    # an image is left out of a draw with probability (1 - 1/50)^50
    assert (weights == 0).mean() == pytest.approx((1 - 1 / 50) ** 50, abs=0.02)


def test_interval_has_the_width_that_theory_gives():
    rng = np.random.default_rng(0)
    subject, reference = rng.random(400) < 0.6, rng.random(400) < 0.5
    found = difference("classification", hits(subject), hits(reference), draws(400, 4000, 0))
    each = 100 * (subject.astype(float) - reference)
    half = 1.96 * each.std() / np.sqrt(400)
    assert found.low == pytest.approx(each.mean() - half, abs=0.08 * half)
    assert found.high == pytest.approx(each.mean() + half, abs=0.08 * half)


def test_equal_models_differ_by_nothing():
    same = hits(np.arange(30) % 3 == 0)
    found = difference("classification", same, same, draws(30, 500, 0))
    assert (found.low, found.high) == (0, 0) and not found.excludes_zero


def test_pairing_tells_small_differences_from_the_images_own_variation():
    """One model is better by 0.1 on every image, while images differ by far more."""
    values = np.random.default_rng(0).uniform(0, 10, 200)
    weights = draws(200, 1000, 0)
    found = difference("depth", errors(values), errors(values + 0.1), weights)
    assert (found.low, found.high) == (pytest.approx(-0.1), pytest.approx(-0.1))
    alone = interval(resampled("depth", [errors(values)], weights))
    assert alone.high - alone.low > 5 * 0.1


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(1)
    weights, covered = draws(100, 400, 0), 0
    for _ in range(400):
        shared = rng.normal(5, 1, 100)
        found = difference("depth", errors(shared + rng.normal(0.2, 0.5, 100)), errors(shared), weights)
        covered += found.low <= 0.2 <= found.high
    assert 0.91 <= covered / 400 <= 0.98


def test_each_draw_has_seeds_of_its_own_and_the_images_of_its_weights():
    rng = np.random.default_rng(0)
    seeds = [errors(rng.random(40)) for _ in range(3)]
    weights = draws(40, 2000, 0)
    together = resampled("depth", seeds, weights)
    alone = np.stack([resampled("depth", [one], weights) for one in seeds], axis=1)
    chosen = np.array([(a, b, c) for a in range(4) for b in range(4 - a) for c in [3 - a - b]]) / 3
    fits = np.isclose(together[:, None], alone @ chosen.T, rtol=1e-12, atol=0)
    assert (fits.sum(1) == 1).all()
    # each of the three is left out of a draw with probability (2/3)^3
    assert (chosen[fits.argmax(1)] == 0).mean(0) == pytest.approx(np.full(3, 8 / 27), abs=0.04)


def test_interval_covers_seeds_that_disagree_about_the_same_images():
    """Two of three seeds gain one on every image and the third loses one: images alone would leave no doubt."""
    reference = np.random.default_rng(0).uniform(5, 6, 60)
    weights = draws(60, 2000, 0)
    base = resampled("depth", [errors(reference)] * 3, weights)
    found = interval(resampled("depth", [errors(reference + change) for change in (1, 1, -1)], weights) - base)
    assert (found.low, found.high) == (pytest.approx(-1), pytest.approx(1))
    agreed = interval(resampled("depth", [errors(reference + 1)] * 3, weights) - base)
    assert (agreed.low, agreed.high) == (pytest.approx(1), pytest.approx(1))


def test_models_are_paired_over_seeds():
    """Seeds move both models by far more than they move the difference."""
    images = np.random.default_rng(0).uniform(5, 6, 60)
    weights = draws(60, 1000, 0)
    subject, reference = (
        resampled("depth", [errors(images + move + own) for move in (-3, 0, 3)], weights) for own in (0.2, 0.0)
    )
    found = interval(subject - reference)
    assert (found.low, found.high) == (pytest.approx(0.2), pytest.approx(0.2))
    assert interval(reference).high - interval(reference).low > 2


def test_blocks_of_draws_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(1, 9, (25, 4)) for name in ("hit", "truth", "predicted")}
    weights = draws(25, 64, 0)
    whole = resampled("semantic_segmentation", [arrays], weights)
    monkeypatch.setattr("cliptex.report.bootstrap.BLOCK", 60)
    assert np.allclose(resampled("semantic_segmentation", [arrays], weights), whole)


def test_draws_without_a_value_are_left_out_and_too_many_give_none():
    assert interval(np.array([1.0] * 6 + [np.nan] * 4)) == Interval(1.0, 1.0)
    assert interval(np.array([1.0] * 4 + [np.nan] * 6)) is None


def test_statistics_of_other_images_are_refused():
    with pytest.raises(ValueError, match="30 images, 20 weights"):
        resampled("depth", [errors(np.ones(30))], draws(20, 100, 0))


def test_bounds_keep_their_order_when_the_sign_turns():
    assert Interval(1.0, 3.0).scaled(-2.0) == Interval(-6.0, -2.0)
    assert Interval(-3.0, -1.0).excludes_zero and not Interval(-1.0, 2.0).excludes_zero
