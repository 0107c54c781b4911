import pytest
import torch

from cliptex.models.heads import DenseHeads, DilatedPooling, PyramidPooling

MODULES = {"ppm": lambda c, d: PyramidPooling(c, d), "aspp": lambda c, d: DilatedPooling(c, d, (2, 4))}


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 1)])
@pytest.mark.parametrize("kind", MODULES)
def test_a_module_keeps_the_grid(kind, size):
    assert MODULES[kind](32, 24)(torch.randn(2, 32, *size)).shape == (2, 24, *size)


@pytest.mark.parametrize("kind", MODULES)
def test_a_module_sees_the_whole_picture(kind):
    module = MODULES[kind](16, 16).eval()
    features = torch.randn(1, 16, 8, 8, requires_grad=True)
    module(features)[0, :, 0, 0].sum().backward()
    assert features.grad[0, :, 7, 7].abs().sum() > 0


def test_dilated_convolutions_reach_as_far_as_their_rates():
    """Without the branch of the image's mean, a pixel sees itself and what lies 0 or `rate` patches away."""
    torch.manual_seed(0)
    module = DilatedPooling(8, 8, (2, 3)).eval()
    module.project[0].weight.data[:, -8:] = 0  # the mean's channels
    features = torch.rand(1, 8, 9, 9, requires_grad=True)
    # the projection's ReLU might hide a path
    module.project[2] = torch.nn.Identity()
    module(features)[0, :, 4, 4].sum().backward()
    seen = features.grad[0].abs().sum(dim=0) > 0
    rows, columns = torch.nonzero(seen, as_tuple=True)
    assert set((rows - 4).abs().tolist()) == set((columns - 4).abs().tolist()) == {0, 2, 3}


def test_the_same_input_gives_the_same_output_in_training():
    module = DilatedPooling(16, 16, (1, 2)).train()
    features = torch.randn(2, 16, 4, 4)
    assert torch.equal(module(features), module(features))


@pytest.mark.parametrize("multi_scale", ["ppm", "aspp", "none"])
@pytest.mark.parametrize(("kind", "convolutions"), [("light", 1), ("heavy", 3), ("heavier", 5)])
def test_every_task_has_a_head_on_the_shared_module(multi_scale, kind, convolutions):
    heads = DenseHeads(32, {"segmentation": 81, "depth": 1}, multi_scale, 24, kind)
    out = heads(torch.randn(2, 32, 8, 8))
    assert {name: tuple(value.shape) for name, value in out.items()} == {
        "segmentation": (2, 81, 8, 8),
        "depth": (2, 1, 8, 8),
    }
    for head in heads.heads.values():
        assert sum(isinstance(module, torch.nn.Conv2d) for module in head.modules()) == convolutions


def test_the_default_is_pyramid_pooling_and_one_convolution_a_task_drawn_in_this_order():
    """Checkpoints and results of a seed rest on the names and on the order of the random draws."""
    torch.manual_seed(0)
    heads = DenseHeads(32, {"segmentation": 81, "depth": 1}, "ppm", 24)
    torch.manual_seed(0)
    wanted = {f"multi_scale.{name}": tensor for name, tensor in PyramidPooling(32, 24).state_dict().items()}
    for store, channels in (("segmentation", 81), ("depth", 1)):
        layer = torch.nn.Conv2d(24, channels, 1)
        wanted |= {f"heads.{store}.{name}": tensor for name, tensor in layer.state_dict().items()}
    found = heads.state_dict()
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
