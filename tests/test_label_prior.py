import numpy as np
import pytest
import torch

from cliptex.core.plugins import find
from cliptex.models.heads import DenseHeads
from cliptex.training.position_prior import BATCHES, fit_position_prior

SIZE = 8


def batches(rng):
    """Labels drawn independently at each position: class 3, larger depth and upward normals towards the bottom."""
    rows = np.arange(SIZE)[:, None] / (SIZE - 1) * np.ones(SIZE)
    for _ in range(BATCHES):
        below = rng.random((64, SIZE, SIZE)) < rows
        depth = rows + 0.1 * rng.standard_normal((64, SIZE, SIZE))
        normals = np.zeros((64, SIZE, SIZE, 4), np.float32)
        normals[..., 1], normals[..., 2], normals[..., 3] = below, ~below, 1
        yield {
            "segmentation": np.where(below, 3, 5).astype(np.uint8),
            "depth": depth.astype(np.float32),
            "normals": normals,
        }


@pytest.fixture(scope="module")
def fitted():
    tasks = {name: find("tasks", name)() for name in ("segmentation", "depth", "normals")}
    heads = DenseHeads(16, {name: task.channels for name, task in tasks.items()}, "ppm", 24, prior_cells=SIZE)
    fit_position_prior(heads.priors, tasks, batches(np.random.default_rng(0)))
    return tasks, heads


def test_the_prior_is_what_labels_have_in_common_at_a_place(fitted):
    _, heads = fitted
    share = heads.priors["segmentation"].detach().softmax(0)[[3, 5]].mean(2)
    want = torch.linspace(0, 1, SIZE)
    assert torch.allclose(share[0], want, atol=0.1)
    assert torch.allclose(share[1], 1 - want, atol=0.1)
    depth = heads.priors["depth"].detach()[0].mean(1)
    assert (depth.diff() > 0).all()


def test_heads_start_at_the_prior_and_leave_the_encoder_alone(fitted):
    tasks, heads = fitted
    heads.train()
    features = torch.randn(64, 16, SIZE, SIZE, requires_grad=True)
    out = heads(features)
    for name in tasks:
        assert torch.equal(out[name], heads.priors[name].expand_as(out[name]))
    targets = next(batches(np.random.default_rng(1)))
    sum(tasks[name].loss(out[name], torch.from_numpy(targets[name])) for name in tasks).backward()
    assert not features.grad.any()
    assert all(head.weight.grad.any() for head in heads.heads.values())


def test_labels_without_any_valid_pixel_leave_it_finite():
    tasks = {"depth": find("tasks", "depth")()}
    heads = DenseHeads(16, {"depth": 1}, "none", 24, prior_cells=4)
    empty = {"depth": np.full((4, SIZE, SIZE), np.nan, np.float32)}
    fit_position_prior(heads.priors, tasks, [empty] * 3)
    assert not heads.priors["depth"].detach().any()
