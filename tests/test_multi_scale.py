import pytest
import torch
import torch.nn.functional as F

from cliptex.models.heads import DenseHeads, DilatedPooling, FactoredPyramidPooling, PyramidPooling

RATES = (2, 4)
MODULES = {
    "ppm": PyramidPooling,
    "ppm_factored": FactoredPyramidPooling,
    "aspp": lambda c, d: DilatedPooling(c, d, RATES),
}


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


def as_published(kind, state, features):
    """The module written with torch's functions, in evaluation mode: Zhao et al. 2017, figure 3; Chen et al. 2017,
    figure 5. Every convolution is followed by batch normalisation and ReLU."""

    def block(maps, convolution, norm, dilation=1):
        weight = state[f"{convolution}.weight"]
        maps = F.conv2d(maps, weight, padding=dilation * (weight.shape[-1] // 2), dilation=dilation)
        statistics = [state[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(maps, *statistics).clamp(min=0)

    def enlarged(maps):
        return F.interpolate(maps, size=features.shape[-2:], mode="bilinear", align_corners=False)

    if kind != "aspp":
        pooled = [F.adaptive_avg_pool2d(features, bins) for bins in (1, 2, 3, 6)]
        maps = [block(each, f"branches.{n}.1.0", f"branches.{n}.1.1") for n, each in enumerate(pooled)]
        return block(torch.cat([features, *map(enlarged, maps)], 1), "fuse.0", "fuse.1")
    maps = [block(features, f"convs.{n}.0", f"convs.{n}.1", dilation) for n, dilation in enumerate((1, *RATES))]
    mean = features.mean((2, 3), keepdim=True)
    return block(torch.cat([*maps, enlarged(block(mean, "convs.3.1", "convs.3.2"))], 1), "project.0", "project.1")


@pytest.mark.parametrize("kind", MODULES)
def test_a_module_computes_what_its_paper_describes(kind):
    torch.manual_seed(0)
    module = MODULES[kind](80, 24)
    for _ in range(3):
        module(torch.randn(4, 80, 9, 7) + 1)  # moves the running statistics
    state = module.eval().state_dict()
    if kind != "aspp":
        assert {tuple(state[f"branches.{n}.1.0.weight"].shape) for n in range(4)} == {(16, 80, 1, 1)}
        assert state["fuse.0.weight"].shape == (24, 80 + 4 * 16, 3, 3)
    else:
        shapes = [tuple(state[f"convs.{n}.0.weight"].shape) for n in range(3)]
        assert shapes == [(24, 80, 1, 1), (24, 80, 3, 3), (24, 80, 3, 3)]
    assert not any(name.endswith(".0.bias") for name in state)
    features = torch.randn(2, 80, 9, 7)
    torch.testing.assert_close(module(features), as_published(kind, state, features))


@pytest.mark.parametrize("kind", ["heavy", "heavier"])
def test_heavy_heads_are_convolutions_with_norm_and_activation_on_the_own_grid(kind):
    heads = DenseHeads(8, {"depth": 3}, "none", 16, kind).eval()
    layers = [(type(layer).__name__, getattr(layer, "kernel_size", None)) for layer in heads.heads["depth"].modules()]
    inner = [("Sequential", None), ("Conv2d", (3, 3)), ("BatchNorm2d", None), ("ReLU", None)]
    assert layers == [("Sequential", None), *inner * {"heavy": 2, "heavier": 4}[kind], ("Conv2d", (1, 1))]
    widths = [layer.weight.shape[:2] for layer in heads.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert widths == [(16, 8), *[(16, 16)] * (len(widths) - 2), (3, 16)]


@pytest.mark.parametrize("kind", ["light", "heavy"])
def test_with_a_prior_the_prediction_starts_as_the_prior_and_adds_to_it(kind):
    heads = DenseHeads(8, {"depth": 2}, "none", 16, kind, prior_cells=3).eval()
    heads.priors["depth"].data.normal_()
    features = torch.randn(2, 8, 6, 4)
    prior = F.interpolate(heads.priors["depth"][None], size=(6, 4), mode="bilinear")
    assert torch.equal(heads(features)["depth"], prior.expand(2, -1, -1, -1))
    last = heads.heads["depth"] if kind == "light" else heads.heads["depth"][-1]
    last.bias.data += 1
    assert torch.equal(heads(features)["depth"], (prior + 1).expand(2, -1, -1, -1))


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
