"""Evaluators of the verdict: several heads as one, Holm's correction, and the yardstick of two recipes."""

from statistics import fmean

import numpy as np
import pytest

from cliptex.evaluation.measures import measures, metric_of
from cliptex.report.bootstrap import draws, interval, p_value, resampled
from cliptex.report.evaluators import ALPHA, evaluators
from cliptex.report.gains import ProbeGain
from cliptex.report.statistics import GainStatus, difference, gain_over, gap_of, holm, mean_over_heads
from cliptex.report.verdict import verdict

PAIR = {"subject": "cliptex", "reference": "clip_ft"}


def rejected(p_values, alpha):
    """Holm's procedure as he states it: step down from the smallest, and stop at the first that is too large."""
    out, order = set(), np.argsort(p_values, kind="stable")
    for k, index in enumerate(order):
        if p_values[index] > alpha / (len(p_values) - k):
            break
        out.add(int(index))
    return out


def test_adjusted_p_values_reject_what_holm_s_procedure_rejects():
    rng = np.random.default_rng(0)
    for _ in range(300):
        p_values = (rng.random(rng.integers(1, 15)) ** rng.choice([1, 3, 6])).round(3).tolist()
        adjusted = holm(p_values)
        for alpha in (0.01, 0.05, 0.2):
            assert {i for i, p in enumerate(adjusted) if p <= alpha + 1e-12} == rejected(p_values, alpha + 1e-12)
        assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
        assert [adjusted[i] for i in np.argsort(p_values, kind="stable")] == sorted(adjusted)
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02]) and holm([]) == []


def test_a_smaller_p_value_or_fewer_comparisons_never_hurt():
    rng = np.random.default_rng(1)
    for _ in range(200):
        p_values = rng.random(6).tolist()
        before, smaller = holm(p_values), [p_values[0] / 2, *p_values[1:]]
        assert all(new <= old for new, old in zip(holm(smaller), before, strict=True))
        assert all(new <= old for new, old in zip(holm(p_values[:-1]), before[:-1], strict=True))


def test_a_p_value_falls_with_the_gain_and_is_that_of_the_normal_distribution():
    drawn = np.random.default_rng(0).normal(0, 2, 50_000)
    found = [p_value(value, value + drawn) for value in (0.0, 1.0, 3.92, 8.0)]
    assert found == sorted(found, reverse=True) and found[0] == 1
    assert found[2] == pytest.approx(0.05, rel=0.05)
    # as many draws are on the other side of zero, where they can be counted
    assert found[2] == pytest.approx(2 * (3.92 + drawn < 0).mean(), rel=0.1)
    assert p_value(-3.92, drawn - 3.92) == found[2] and 0 < found[3] < 2 / 1001
    assert p_value(1.0, np.ones(9)) == 0 and p_value(1.0, np.r_[np.ones(2), [np.nan] * 3]) is None


def test_without_a_gain_one_in_twenty_p_values_is_below_five_percent():
    rng, below = np.random.default_rng(2), 0
    weights = draws(80, 300, 0)
    for _ in range(400):
        shared = rng.normal(5, 1, 80)
        a, b = ({"rmse": shared + rng.normal(0, 0.5, 80)} for _ in range(2))
        drawn = resampled("depth", [a], weights) - resampled("depth", [b], weights)
        below += p_value(float(a["rmse"].mean() - b["rmse"].mean()), drawn) <= 0.05
    assert 0.02 <= below / 400 <= 0.09


def measured(gains, level=10.0, seeds=(0, 0.1, -0.1), noise=0.01, rng=None):
    """One head: CLIP-FT at `level` and CLIPTeX above it by `gains` percent, with both baselines below."""
    drawn = noise * (rng or np.random.default_rng(0)).normal(size=(2, 200))
    values = {
        "clip_ft": [level * (1 + s / 10) for s in seeds],
        "cliptex": [level * (1 + gains / 100 + s / 10) for s in seeds],
    }
    values |= {"random": [0.1 * level] * len(seeds), "position": [0.2 * level] * len(seeds)}
    around = {model: fmean(own) + np.zeros(200) for model, own in values.items()}
    return values, around | {
        "cliptex": around["cliptex"] + level * drawn[0],
        "clip_ft": around["clip_ft"] + level * drawn[1],
    }


def head(name, *numbers, task="depth", family="trained_head", benchmark="nyuv2", metric="mIoU", **more):
    values, drawn = measured(*numbers, **more)
    gain = gain_over(values, 1, **PAIR, draws=drawn)
    return ProbeGain(benchmark, task, name, metric, values, gain, drawn, "official", family)


def test_the_gain_of_several_heads_is_the_mean_of_their_relative_gains_in_every_draw_and_seed():
    rng = np.random.default_rng(3)
    heads = [head("a", 10, 5.0, rng=rng), head("b", 20, 50.0, rng=rng), head("c", -3, 0.2, rng=rng)]
    (one,) = evaluators(heads, ("random", "position"))
    assert one.gain.percent == pytest.approx(fmean(h.gain.percent for h in heads)) == pytest.approx(9)
    assert one.gain.percent_draws == pytest.approx(np.mean([h.gain.percent_draws for h in heads], axis=0))
    seeds = [fmean(h.values["cliptex"][s] / fmean(h.values["clip_ft"]) for h in heads) for s in range(3)]
    assert one.measured[0]["cliptex"] == pytest.approx(seeds)
    (alone,) = evaluators(heads[:1], ("random", "position"))
    assert alone.gain.status is heads[0].gain.status and alone.gain.percent == pytest.approx(heads[0].gain.percent)


def test_copies_of_a_head_change_neither_the_count_nor_the_gain():
    one = evaluators([head("a", 10), head("b", 1, family="text")], ("random", "position"))
    more = evaluators([head("a", 10), *(head(f"a{i}", 10) for i in range(9)), head("b", 1, family="text")], ("random",))
    assert [e.label for e in one] == [e.label for e in more] == ["NYUv2 depth, trained heads", "NYUv2 depth, by text"]
    assert [e.gain.percent for e in more] == pytest.approx([e.gain.percent for e in one])
    assert [e.adjusted for e in more] == pytest.approx([e.adjusted for e in one])


def test_heads_without_a_value_or_at_zero_are_left_out_of_the_mean():
    whole, zero, lost = measured(10), ({"cliptex": [1.0] * 3, "clip_ft": [0.0] * 3}, {}), ({"clip_ft": [1.0] * 3}, {})
    values, _ = mean_over_heads([whole, zero, lost], "cliptex", "clip_ft")
    assert fmean(values["cliptex"]) == pytest.approx(1.1) and set(values) == set(whole[0])
    short = {**whole[0], "random": [1.0]}
    assert "random" not in mean_over_heads([whole, (short, whole[1])], "cliptex", "clip_ft")[0]
    assert mean_over_heads([lost], "cliptex", "clip_ft") == ({}, {})
    assert mean_over_heads([zero], "cliptex", "clip_ft")[0]["cliptex"] == [1.0] * 3


def test_a_gain_that_passes_alone_may_not_pass_among_many():
    rng = np.random.default_rng(5)
    tasks = ["depth", "normals", "detection", "instance_segmentation", "semantic_segmentation"]
    weak = {"seeds": (0, 0.01, -0.01), "noise": 0.03, "rng": rng}  # standard error 4.2 %
    heads = [head("a", 10, task="depth", **weak)]
    (alone,) = evaluators(heads, ())
    assert alone.p == alone.adjusted and alone.p < ALPHA
    heads += [head("a", 0.1, task=task, family=family, **weak) for task in tasks[1:] for family in ("no_head", "text")]
    found = evaluators(heads, ("random", "position"))
    assert found[0].p == alone.p and found[0].adjusted == pytest.approx(9 * alone.p) and found[0].adjusted > ALPHA
    assert found[0].gain.status is GainStatus.NOT_CORRECTED
    says = verdict(found, [], seeds=3)
    assert says.headline == "A real gain in 0 of 9 evaluators" and says.counts["better"] >= 1
    text = " ".join(says.sentences)
    assert "Holm’s correction at 5 % over all 9: of the 1 that pass alone, 0 remain." in text
    assert "△ alone, not after Holm: 1 (NYUv2 depth, trained heads)" in text
    families = [sentence.partition(":")[0] for sentence in says.sentences[1:4]]
    assert families == ["Trained heads", "No trained head", "By text"]


def test_text_needs_no_position_and_a_trained_head_does():
    heads = [head("a", 10, family=family) for family in ("trained_head", "text")]
    for one in heads:
        del one.values["position"], one.draws["position"]
    trained, text = evaluators(heads, ("random", "position"))
    assert (trained.gain.status, text.gain.status) == (GainStatus.UNCHECKED, GainStatus.REAL)


@pytest.mark.parametrize(
    ("gain", "better", "exceeded", "beyond"),
    [(3.0, 1, True, True), (-3.0, 1, True, True), (1.2, 1, True, False), (0.5, 1, False, False), (3.0, -1, True, True)],
)
def test_a_gain_is_compared_with_the_gap_of_two_recipes(gain, better, exceeded, beyond):
    noise = 0.2 * np.random.default_rng(0).normal(size=(2, 500))
    values = {"clip_ft": [10.0], "other": [9.0], "cliptex": [10.0 + better * gain]}
    drawn = {"clip_ft": 10 + 0 * noise[0], "other": 9 + noise[1], "cliptex": 10 + better * gain + noise[0]}
    change = difference(values["cliptex"], values["clip_ft"], better, (drawn["cliptex"], drawn["clip_ft"]))
    gap = gap_of((values, drawn), better, change, ("clip_ft", "other"), "cliptex", "clip_ft")
    assert (gap.value, gap.gain) == (pytest.approx(1.0), pytest.approx(gain))
    assert (gap.exceeded, gap.beyond_noise) == (exceeded, beyond)
    assert gap.interval.low < 1 < gap.interval.high and gap.excess.low < abs(gain) - 1 < gap.excess.high
    expected = interval(abs(gain) + better * np.sign(gain) * noise[0] - abs(1 - noise[1]))
    assert (gap.excess.low, gap.excess.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert gap_of((values, drawn), better, change, (), "cliptex", "clip_ft") is None
    assert gap_of((values, {}), better, change, ("clip_ft", "other"), "cliptex", "clip_ft").beyond_noise is False


def test_every_main_metric_has_a_direction():
    """One without would be shown as missing."""
    for name, measure in measures().items():
        assert metric_of(name, measure.main).better in (-1, 1), name
