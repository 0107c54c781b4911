"""Heads that are not trained: k-NN against scikit-learn, in-context segmentation against plain loops."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier
from test_probes import metrics_of, planted_masks, rows, run
from tiny import TINY

from cliptex.config import FineTuning
from cliptex.core.errors import CliptexError
from cliptex.evaluation.probes.features import unstandardised
from cliptex.evaluation.probes.heads import neighbours
from cliptex.evaluation.probes.heads.in_context import (
    NearestPatches,
    chosen_patches,
    class_shares,
    memory_of,
    probe_in_context,
)
from cliptex.evaluation.probes.heads.neighbours import class_votes, nearest, probe_knn
from cliptex.evaluation.probes.heads.segmentation import SegmentationData, predict
from cliptex.evaluation.probes.views import windows
from cliptex.evaluation.protocols.base import Neighbours
from cliptex.evaluation.protocols.resolve import protocol_of
from cliptex.evaluation.targets import tuned_heads
from cliptex.models import clip as student

pytestmark = pytest.mark.xdist_group("probes")
DINO = Neighbours(neighbours=20, temperature=0.07)


def test_votes_of_neighbours_are_those_of_scikit_learn(monkeypatch):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 400)
    keys = (rng.normal(size=(7, 12))[labels] + rng.normal(size=(400, 12)) * 2 + 3).astype(np.float32)
    queries = rng.normal(3, 3, (90, 12)).astype(np.float32)
    official = KNeighborsClassifier(
        20, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(keys, labels)
    expected = official.predict_proba(queries)
    for at_once in (16384, 37, 7):  # more keys than that are compared in turn
        monkeypatch.setattr(neighbours, "KEYS", at_once)
        votes = class_votes(torch.from_numpy(queries), torch.from_numpy(keys), torch.from_numpy(labels), 7, DINO)
        np.testing.assert_allclose(votes / votes.sum(1, keepdim=True), expected, atol=2e-5)


def test_knn_ranks_classes_by_votes_and_reads_the_last_class_token():
    rng = np.random.default_rng(1)
    labels, truth = rng.integers(0, 9, 300), rng.integers(0, 9, 50)
    centres = rng.normal(size=(9, 8))
    train, evaluated = ((centres[y] + rng.normal(size=(len(y), 8))).astype(np.float32) for y in (labels, truth))
    official = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)).fit(train, labels)

    def outcome(section, parts):
        features = unstandardised([rows(torch.from_numpy(part)[..., None, None]) for part in parts], None)
        return probe_knn(*features, labels.tolist(), truth.tolist(), 9, section, "knn", keep=50)

    section = protocol_of("imagenet", {}).classification
    plain = outcome(section, (train, evaluated))
    ranking = plain.predictions["prediction"]
    assert (ranking[:, 0] == official.predict(evaluated)).all()
    assert plain.metrics["top1"] == pytest.approx(100 * official.score(evaluated, truth)) and ranking.shape == (50, 5)
    assert (plain.per_image["top1"] == (ranking[:, 0] == truth)).all()
    assert (plain.num_parameters, plain.hyperparameters) == (0, {})
    # class tokens of two blocks and the mean patch token: those that are not used are noise
    noisy = [
        np.hstack([rng.normal(size=x.shape), x, rng.normal(size=x.shape)]).astype(np.float32)
        for x in (train, evaluated)
    ]
    tokens = protocol_of("imagenet", {"classification": {"features": {"point": "tokens", "blocks": 2}}}).classification
    np.testing.assert_array_equal(outcome(tokens, noisy).predictions["prediction"], ranking)


@pytest.mark.parametrize("temperature", [1e-3, 1e3])
def test_no_temperature_overflows_and_a_lone_neighbour_decides(temperature):
    keys = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(30) % 4
    for count in (1, 50):  # there are only thirty
        options = Neighbours(neighbours=count, temperature=temperature)
        votes = class_votes(keys * 7, keys, labels, 4, options)
        assert votes.isfinite().all()
        if count == 1 or temperature < 1:
            assert (votes.argmax(1) == labels).all()


def by_loops(features, keys, shares, count, temperature):
    """Class shares [K, h, w] of a map [C, h, w], patch by patch and key by key."""
    _, height, width = features.shape
    out = np.zeros((shares.shape[1], height, width))
    for row in range(height):
        for column in range(width):
            query = features[:, row, column].astype(np.float64)
            similarity = [
                sum(a * b for a, b in zip(query, key, strict=True)) / np.sqrt((query**2).sum() * (key**2).sum())
                for key in keys.astype(np.float64)
            ]
            best = sorted(range(len(keys)), key=lambda index: -similarity[index])[:count]
            weights = [np.exp(similarity[index] / temperature) for index in best]
            for index, weight in zip(best, weights, strict=True):
                out[:, row, column] += weight / sum(weights) * shares[index]
    return out


def memory(seed=0, size=60, channels=5, classes=4):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(size, channels)).astype(np.float32), rng.dirichlet(np.ones(classes), size).astype(
        np.float32
    )


def head_of(keys, shares, count=6, temperature=0.1):
    return NearestPatches(F.normalize(torch.from_numpy(keys), dim=1), torch.from_numpy(shares), count, temperature)


def test_labels_of_the_nearest_patches_are_those_of_plain_loops():
    keys, shares = memory()
    features = np.random.default_rng(1).normal(size=(2, 5, 3, 4)).astype(np.float32)
    found = head_of(keys, shares)(torch.from_numpy(features)).numpy()
    for one, map_Chw in zip(found, features, strict=True):
        np.testing.assert_allclose(one, by_loops(map_Chw, keys, shares, 6, 0.1), atol=1e-5)


def test_the_order_of_the_memory_changes_nothing(monkeypatch):
    keys, shares = memory(2)
    features = torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(2))
    expected = head_of(keys, shares)(features)
    torch.testing.assert_close(expected.sum(1), torch.ones(3, 4, 4))
    order = np.random.default_rng(3).permutation(len(keys))
    torch.testing.assert_close(head_of(keys[order], shares[order])(features), expected)
    monkeypatch.setattr(neighbours, "SIMILARITIES", {"cpu": 100})
    torch.testing.assert_close(head_of(keys, shares)(features), expected)
    parts = F.normalize(torch.from_numpy(keys), dim=1).split(7)
    queries = F.normalize(features.flatten(2).transpose(1, 2).flatten(0, 1), dim=1)
    similarity, index = nearest(queries, parts, 6)
    plain = queries @ torch.cat(parts).T
    assert torch.equal(index, plain.argsort(1, descending=True)[:, :6])
    torch.testing.assert_close(similarity, plain.gather(1, index))


def test_a_patch_of_the_memory_with_one_neighbour_gets_its_own_label():
    keys, shares = memory(4)
    found = head_of(keys, shares, count=1)(torch.from_numpy(keys * 3).T.reshape(1, 5, 6, 10))
    torch.testing.assert_close(found[0].flatten(1).T, torch.from_numpy(shares))


def test_shares_are_those_of_labelled_pixels_also_where_the_grid_does_not_divide_the_mask():
    mask = np.random.default_rng(0).integers(0, 3, (10, 10)).astype(np.uint8)
    mask[:4, :3] = 255
    shares = class_shares(mask, (4, 3), 3).reshape(4, 3, 3)
    for row in range(4):
        for column in range(3):
            pixels = [
                mask[y, x]
                for y in range(10)
                for x in range(10)
                if ((y + 0.5) * 4 // 10, (x + 0.5) * 3 // 10) == (row, column)
            ]
            known = [pixel for pixel in pixels if pixel != 255]
            expected = [known.count(number) / max(1, len(known)) for number in range(3)]
            np.testing.assert_allclose(shares[row, column], expected)
    assert not shares[0, 0].any()


def test_patches_of_rare_classes_come_first_and_those_without_a_label_never():
    shares = np.zeros((40, 3))
    shares[:36, 0], shares[36:38, 1] = 1, 1  # the last two have no label
    drawn = [chosen_patches(shares, 2, np.random.default_rng(seed)).tolist() for seed in range(200)]
    assert np.mean([len({36, 37} & set(one)) / 2 for one in drawn]) > 0.4  # 0.05 if all patches were equal
    assert sorted(chosen_patches(shares, 100, np.random.default_rng(0))) == list(range(38))


@pytest.mark.parametrize("most", [5, 50, 10_000])
def test_the_memory_is_bounded_and_holds_features_with_their_own_labels(most):
    features, masks = planted_masks(0, 12, 4)
    (train,) = unstandardised([rows(features * 5)], (4, 4))
    keys, shares = memory_of(train, masks, 4, most, seed=0)
    assert len(keys) == len(shares) == min(most, 12 * 16)
    torch.testing.assert_close(keys, shares)  # features are the blocks' classes
    again = memory_of(train, masks, 4, most, seed=0)
    assert torch.equal(again[0], keys) and torch.equal(again[1], shares)
    with pytest.raises(CliptexError, match="no training pixel has a label"):
        memory_of(train, np.full_like(masks, 255), 4, most, seed=0)


def test_in_context_segmentation_finds_classes_that_the_features_tell_also_in_windows():
    (train, train_masks), (evaluated, eval_masks) = planted_masks(0, 30, 4), planted_masks(1, 8, 4)
    parts = unstandardised([rows(train), rows(evaluated)], (4, 4))
    options = protocol_of("voc", {}).semantic_segmentation.heads["in_context"]
    found = probe_in_context(*parts, SegmentationData(train_masks, list(eval_masks), 4), options, 0, keep=2)
    centres = np.s_[:, 6::12, 6::12]  # between blocks the resized shares are mixed
    predicted = np.stack([found.predictions[f"prediction_{number}"] for number in range(2)])
    np.testing.assert_array_equal(predicted[centres], eval_masks[:2][centres])
    assert (found.num_parameters, found.hyperparameters) == (0, {})
    assert found.per_image["hit"].shape == (8, 4) and len(found.thumbnails["shapes"]) == 8
    # two windows of 4 x 4 patches that overlap by half
    layout = windows((48, 72), 48, 24)
    wide = torch.cat([evaluated[:1], evaluated[1:2, :, :, 2:]], 3)
    views = torch.cat([wide[..., :4], wide[..., 2:]])
    head = NearestPatches(*memory_of(parts[0], train_masks, 4, 500, 0), 30, 0.02)
    (mask,) = predict(head, views, [(48, 72)], [layout])
    np.testing.assert_array_equal(mask[6::12, 6::12], wide[0].argmax(0))


NOT_STANDARDISED = [
    ("imagenet", "knn", "classification", {"point": "tokens", "blocks": 1, "precision": "fp16"}),
    ("voc", "in_context", "semantic_segmentation", {"precision": "int8", "cls": True}),
]


@pytest.mark.parametrize(("name", "head", "task", "features"), NOT_STANDARDISED, ids=["knn", "in_context"])
def test_they_read_the_encoders_own_features_wherever_they_are_kept_and_say_so(
    name,
    head,
    task,
    features,
    tmp_path,
):
    student.export(student.build(TINY, 0), TINY, tmp_path / "clip" / "seed0")
    found = {}
    for standardise in (True, False):
        changes = {task: {"features": {**features, "standardise": standardise}, "augment": {"views": 2}}}
        for limits in ({}, {"cache_gb": 0}, {"cache_gb": 0, "memory_gb": 1e-9}):
            out = run(name, tmp_path, tmp_path / f"{standardise}{len(found)}", ["clip"], limits=limits, **changes)
            scores = {key: value for key, value in metrics_of(out).items() if key.startswith(head)}
            assert scores and scores == found.setdefault("scores", scores)
        (row,) = json.loads((out / f"clip/seed0/{head}.json").read_text())["results"]
        assert row["family"] == "no_head" and row["num_parameters"] == 0 and row["hyperparameters"] == {}
        assert "not trained" in row["protocol"] and "standardised" not in row["protocol"] and row["seconds"] > 0
        (other,) = json.loads((out / "clip/seed0/linear.json").read_text())["results"]
        assert "family" not in other and ("standardised" in other["protocol"]) is standardise


@pytest.mark.parametrize(("name", "head"), [("imagenet", "knn"), ("voc", "in_context")])
def test_they_are_not_fine_tuned(name, head):
    protocol = protocol_of(name, {})
    assert head in protocol.heads and head not in tuned_heads(name, protocol, FineTuning())
    with pytest.raises(CliptexError, match=rf"heads: '{head}' is not a head of .* trained with an encoder"):
        tuned_heads(name, protocol, FineTuning(heads=[head]))
