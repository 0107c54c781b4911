"""The normals network as published: against an independent implementation, and files as they are published."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL
from numpy.testing import assert_allclose
from torch.nn import functional

from cliptex.core.errors import CliptexError
from cliptex.experts import nll_angmf
from cliptex.experts.network import load_weights
from cliptex.experts.nll_angmf import NLLAngMF, load_published

pytestmark = pytest.mark.xdist_group("nll_angmf")

# the reference: weights by their published names, plain functions, nothing of the package or of timm

# repeats, channels, kernel, stride of EfficientNet-B5's stages (Tan and Le 2019: B0 with depth 2.2 and width 1.6)
STAGES = ((3, 24, 3, 1), (5, 40, 3, 2), (5, 64, 5, 2), (7, 128, 3, 2), (7, 176, 5, 1), (9, 304, 5, 2), (3, 512, 3, 1))


def convolve(w, name, x, stride=1, same=False, groups=1):
    kernel = w[f"{name}.weight"]
    if same:  # TensorFlow's padding: as much as is needed, the odd pixel right and below
        pads = []
        for side in (x.shape[-1], x.shape[-2]):
            needed = max((-(-side // stride) - 1) * stride + kernel.shape[-1] - side, 0)
            pads += [needed // 2, needed - needed // 2]
        x = functional.pad(x, pads)
    return functional.conv2d(x, kernel, w.get(f"{name}.bias"), stride=stride, groups=groups)


def batch_norm(w, name, x, eps):
    statistics = w[f"{name}.running_mean"], w[f"{name}.running_var"]
    return functional.batch_norm(x, *statistics, w[f"{name}.weight"], w[f"{name}.bias"], eps=eps)


def squeeze_and_excite(w, name, x):
    mean = x.mean((2, 3), keepdim=True)
    return x * torch.sigmoid(
        convolve(w, f"{name}.conv_expand", functional.silu(convolve(w, f"{name}.conv_reduce", mean)))
    )


def reference_encoder(w, images):
    root = "encoder.original_model."
    x = functional.silu(batch_norm(w, f"{root}bn1", convolve(w, f"{root}conv_stem", images, 2, same=True), 1e-3))
    taps = []
    for stage, (repeats, channels, _, stride) in enumerate(STAGES):
        for index in range(repeats):
            name, before = f"{root}blocks.{stage}.{index}.", x
            step = stride if index == 0 else 1
            norms = iter(("bn1", "bn2", "bn3"))
            if stage > 0:
                x = functional.silu(batch_norm(w, name + next(norms), convolve(w, f"{name}conv_pw", x), 1e-3))
            x = convolve(w, f"{name}conv_dw", x, step, same=True, groups=x.shape[1])
            x = functional.silu(batch_norm(w, name + next(norms), x, 1e-3))
            x = squeeze_and_excite(w, f"{name}se", x)
            x = convolve(w, f"{name}conv_pwl" if stage > 0 else f"{name}conv_pw", x)
            x = batch_norm(w, name + next(norms), x, 1e-3)
            assert x.shape[1] == channels
            if step == 1 and before.shape[1] == channels:
                x = x + before
        if stage in (0, 1, 2, 4):
            taps.append(x)
    return [*taps, convolve(w, f"{root}conv_head", x)]


def up(w, name, x, skip, architecture):
    x = torch.cat([functional.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=True), skip], 1)
    for conv, norm in ((0, 1), (3, 4)):
        kernel, bias = w[f"{name}._net.{conv}.weight"], w[f"{name}._net.{conv}.bias"]
        if architecture == "GN":
            flat = kernel.reshape(len(kernel), -1)
            flat = flat - flat.mean(1, keepdim=True)
            kernel = (flat / (flat.std(1, unbiased=True, keepdim=True) + 1e-5)).reshape(kernel.shape)
        x = functional.conv2d(x, kernel, bias, padding=1)
        norm = f"{name}._net.{norm}"
        if architecture == "GN":
            x = functional.group_norm(x, 8, w[f"{norm}.weight"], w[f"{norm}.bias"])
        else:
            x = batch_norm(w, norm, x, 1e-5)
        x = functional.leaky_relu(x, 0.01)
    return x


def normalised(raw):
    length = torch.sqrt((raw[:, :3] ** 2).sum(1, keepdim=True)) + 1e-10
    return torch.cat([raw[:, :3] / length, functional.elu(raw[:, 3:]) + 1.0 + 0.01], 1)


def reference(w, images, architecture):
    """Levels 1/8, 1/4, 1/2, 1/1."""
    e1, e2, e3, e4, e5 = reference_encoder(w, images)
    x = up(w, "decoder.up1", convolve(w, "decoder.conv2", e5), e4, architecture)
    x8 = up(w, "decoder.up2", x, e3, architecture)
    x4 = up(w, "decoder.up3", x8, e2, architecture)
    x2 = up(w, "decoder.up4", x4, e1, architecture)
    head = "decoder.out_conv_res8"
    out = [normalised(functional.conv2d(x8, w[f"{head}.weight"], w[f"{head}.bias"], padding=1))]
    for feature, level in ((x8, 4), (x4, 2), (x2, 1)):
        large = [
            functional.interpolate(t, scale_factor=2, mode="bilinear", align_corners=True) for t in (feature, out[-1])
        ]
        x = torch.cat(large, 1)
        batch, _, height, width = x.shape
        x = x.reshape(batch, -1, height * width)
        for layer in (0, 2, 4, 6):
            name = f"decoder.out_conv_res{level}.{layer}"
            x = functional.conv1d(x, w[f"{name}.weight"], w[f"{name}.bias"])
            x = functional.relu(x) if layer < 6 else x
        out.append(normalised(x.reshape(batch, 4, height, width)))
    return out


def with_lively_weights(architecture: str) -> NLLAngMF:
    """Random weights under which every layer matters: signals neither vanish nor explode, norms are not neutral."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        network = NLLAngMF(architecture).eval()
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d):
                    torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                    if module.bias is not None:
                        module.bias.normal_(0, 0.1)
                elif isinstance(module, torch.nn.BatchNorm2d):
                    module.running_mean.normal_(0, 0.1)
                    module.running_var.uniform_(0.7, 1.5)
                if isinstance(module, torch.nn.BatchNorm2d | torch.nn.GroupNorm):
                    module.weight.uniform_(0.8, 1.2)
                    module.bias.normal_(0, 0.1)
    return network


@pytest.fixture(scope="module", params=["BN", "GN"])
def network(request):
    return request.param, with_lively_weights(request.param)


def test_equal_weights_give_the_reference_networks_output(network):
    architecture, module = network
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = reference(module.state_dict(), images, architecture)
        found = module.levels(images)
        answer = module(images)
    assert [level.shape for level in found] == [(2, 4, 64 // k, 96 // k) for k in (8, 4, 2, 1)]
    for a, b in zip(found, expected, strict=True):
        assert_allclose(a, b, atol=1e-4, rtol=1e-4)
    assert answer.shape == (2, 4, 64, 96)
    assert_allclose(answer, expected[-1], atol=1e-4, rtol=1e-4)
    # the comparison says something: the output varies over the image and from image to image
    assert answer[:, :3].std(dim=(2, 3)).mean() > 0.05
    assert (answer[0] - answer[1]).abs().mean() > 0.02


def test_names_and_sizes_are_the_published_ones(network):
    architecture, module = network
    state = module.state_dict()
    assert sum(parameter.numel() for parameter in module.parameters()) == 72_422_336
    assert len(state) == {"BN": 936, "GN": 912}[architecture]
    assert sum(name.startswith("encoder.original_model.") for name in state) == 852
    assert not any("classifier" in name for name in state)
    assert {name.split(".")[1] for name in state if name.startswith("decoder.")} == {
        *("conv2", "up1", "up2", "up3", "up4"),
        *(f"out_conv_res{level}" for level in (8, 4, 2, 1)),
    }
    assert state["decoder.up1._net.0.weight"].shape == (1024, 2048 + 176, 3, 3)
    assert state["decoder.up4._net.4.weight"].shape == (128,)
    assert state["decoder.out_conv_res1.6.weight"].shape == (4, 128, 1)
    assert ("decoder.up4._net.4.running_mean" in state) == (architecture == "BN")


def test_a_published_file_is_loaded_as_it_is(network, tmp_path):
    architecture, module = network
    prefix, path = {"BN": "module.", "GN": ""}[architecture], tmp_path / "scannet.pt"
    torch.save({"model": {prefix + name: tensor for name, tensor in module.state_dict().items()}, "iter": 7}, path)
    loaded = load_published(path)
    for name, tensor in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert not loaded.training
    with torch.device("meta"):
        other = NLLAngMF({"BN": "GN", "GN": "BN"}[architecture])
    with pytest.raises(CliptexError, match=r"do not match.*running"):
        load_weights(other, path)


def test_a_file_with_one_name_less_or_more_is_refused(tmp_path):
    state = small_network().state_dict()
    torch.save({"model": state, "iter": 7}, tmp_path / "whole.pt")
    loaded = small_network()
    load_weights(loaded, tmp_path / "whole.pt")
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    torch.save({"model": state | {"decoder.extra": torch.zeros(1)}}, tmp_path / "more.pt")
    with pytest.raises(CliptexError, match=r"unexpected decoder\.extra"):
        load_weights(small_network(), tmp_path / "more.pt")
    del state["decoder.out_conv_res1.6.bias"]
    torch.save({"model": state}, tmp_path / "less.pt")
    with pytest.raises(CliptexError, match=r"missing decoder\.out_conv_res1\.6\.bias"):
        load_weights(small_network(), tmp_path / "less.pt")


class Planted:
    """What a hostile weight file would hold: unpickling it makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_a_planted_pickle_does_not_run(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "scannet.pt"
    torch.save({"model": {"decoder.conv2.weight": Planted(marker)}}, path)
    with path.open("rb") as file, pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)
    with pytest.raises(CliptexError, match="not executed here"):
        load_published(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # it is a bomb indeed
    assert marker.exists()


def test_sides_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"multiples of 32, got \[48, 64\]"):
        small_network()(torch.zeros(1, 3, 48, 64))


def test_an_unknown_architecture_is_refused():
    with pytest.raises(ValueError, match="'LN'"):
        NLLAngMF("LN")


def small_network(architecture: str = "BN") -> NLLAngMF:
    return NLLAngMF(architecture, **SMALL["nll_angmf"])


@pytest.mark.parametrize("architecture", ["BN", "GN"])
def test_a_small_network_learns_a_constant_normal(architecture):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network, generator = small_network(architecture), torch.Generator().manual_seed(0)
        optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
        images, normals = torch.randn(4, 3, 64, 64, generator=generator), torch.zeros(4, 3, 64, 64)
        normals[:, 1] = 1.0
        losses = []
        for _ in range(25):
            loss = network.loss(images, normals, generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        with torch.inference_mode():
            out = network.eval()(images)
    assert losses[-1] < losses[0] - 1
    assert out[:, 1].mean() > 0.8


# axes


FACING = {"left": (1.0, 0.0, 0.0), "up": (0.0, 1.0, 0.0), "viewer": (0.0, 0.0, 1.0)}


class Published(torch.nn.Module):
    """Answers as the published network does: its colours are red to the left, green up, blue towards the viewer."""

    def __init__(self, side: str, signs=(1, 1, 1)):
        super().__init__()
        self.answer = torch.tensor([*(a * b for a, b in zip(FACING[side], signs, strict=True)), 9.0])

    def forward(self, images_BCHW):
        return self.answer[:, None, None].expand(len(images_BCHW), 4, *images_BCHW.shape[-2:])


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1)])
@pytest.mark.parametrize(
    ("side", "label"), [("left", (1, 0, 0)), ("up", (0, 1, 0)), ("viewer", (0, 0, 1))], ids=["left", "up", "viewer"]
)
def test_labels_of_the_published_network_have_our_axes(side, label, signs):
    """A surface that looks to the left has, away from the viewer, a normal to the right; a floor one down; and the
    picture shows the way it looks: red to the right, green up, blue towards the viewer."""
    from cliptex.core.plugins import find

    expert = nll_angmf.PLUGIN({"network": SMALL["nll_angmf"] | {"signs": list(signs)}})
    expert.module = Published(side, signs)
    (found,) = expert.predict([np.zeros((40, 50, 3), np.uint8)], ["k"])
    assert_allclose(found[..., :3], np.broadcast_to(np.float32(label), (40, 50, 3)), atol=1e-6)
    assert_allclose(found[..., 3], 9.0, rtol=1e-6)
    assert (found[..., :3] @ [0.3, 0.2, 1.0] >= 0).all()  # a ray to the right and down meets each of them from inside
    colour = find("tasks", "normals")().picture(found)[0, 0]
    assert colour.tolist() == {"left": [0, 128, 128], "up": [128, 255, 128], "viewer": [128, 128, 255]}[side]


def test_training_with_turned_axes_gives_labels_with_ours():
    """The signs are applied to the truth in training and to the answer in labelling, so that they cancel."""
    kept = {}
    for signs in ((1, 1, 1), (-1, 1, 1)):
        expert = nll_angmf.PLUGIN({"network": SMALL["nll_angmf"] | {"signs": list(signs)}})
        seen = []
        expert.module = type(
            "Loss", (), {"loss": lambda self, images, normals, *rest, seen=seen: seen.append(normals)}
        )()
        normals = torch.tensor([0.6, 0.0, 0.8])[None, :, None, None].expand(1, 3, 32, 32)
        expert.loss({"image": torch.zeros(1, 3, 32, 32), "normals": normals}, torch.Generator())
        kept[signs] = seen[0][0, :, 0, 0]
    assert_allclose(kept[1, 1, 1], [0.6, 0, 0.8])
    assert_allclose(kept[-1, 1, 1], [-0.6, 0, 0.8])
