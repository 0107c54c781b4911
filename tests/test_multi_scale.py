import pytest
import torch

from cliptex.multi_scale import DenseHeads, PyramidPooling


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 1)])
def test_pyramid_pooling_keeps_the_grid(size):
    assert PyramidPooling(32, 24)(torch.randn(2, 32, *size)).shape == (2, 24, *size)


def test_pyramid_pooling_sees_the_whole_picture():
    module = PyramidPooling(16, 16).eval()
    features = torch.randn(1, 16, 8, 8, requires_grad=True)
    module(features)[0, :, 0, 0].sum().backward()
    assert features.grad[0, :, 7, 7].abs().sum() > 0


@pytest.mark.parametrize("multi_scale", ["ppm", "none"])
def test_every_task_has_a_light_head_on_the_shared_module(multi_scale):
    heads = DenseHeads(32, {"segmentation": 81, "depth": 1}, multi_scale, 24)
    out = heads(torch.randn(2, 32, 8, 8))
    assert {name: tuple(value.shape) for name, value in out.items()} == {
        "segmentation": (2, 81, 8, 8),
        "depth": (2, 1, 8, 8),
    }
    assert all(isinstance(head, torch.nn.Conv2d) for head in heads.heads.values())
