"""Decoders that predict a map of numbers from dense features: depth by bins, normals trained on the angle.

Shapes: V views, C feature width, h x w feature map, K output channels, R x S truth grid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from cliptex.evaluation.metrics.depth import Pairs
from cliptex.evaluation.probes.depth import DepthBins
from cliptex.evaluation.probes.features import Features, Split, take
from cliptex.evaluation.probes.heads.maps import Fitted, Maps
from cliptex.evaluation.probes.normals import AngularNormals
from cliptex.evaluation.probes.training import Candidate, best_candidate, train_network
from cliptex.evaluation.protocols.base import DecoderTraining
from cliptex.tasks.angular_mf import angular_mf_loss, norm_normalize

BLOCKS = 4
"""Number of blocks whose features the DPT decoder fuses."""


class LinearDecoder(nn.Module):
    """A 1x1 convolution, upsampled to `upsample` times the size of the map.
    DINOv2 resizes the features and then convolves; a 1x1 convolution and bilinear resizing commute."""

    def __init__(self, channels_in: int, channels_out: int, upsample: int):
        super().__init__()
        self.upsample = upsample
        self.conv = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, features_BChw: torch.Tensor) -> torch.Tensor:
        return F.interpolate(self.conv(features_BChw), scale_factor=self.upsample, mode="bilinear")


class ResidualUnit(nn.Module):
    """x + two 3x3 convolutions of x, each followed by a ReLU."""

    def __init__(self, channels: int):
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
        )

    def forward(self, features_BChw: torch.Tensor) -> torch.Tensor:
        return features_BChw + self.convs(features_BChw)


class DPTDecoder(nn.Module):
    """The maps of four blocks, fused from the last to the first as in probe3d's probes (El Banani et al. 2024).

    Each block's map is projected by a 1x1 convolution and upsampled by 2. The fused map goes through a residual unit;
    the next block's map goes through another one before it is added. Two 3x3 convolutions follow at 8 times the size of
    the encoder's map, and the result is upsampled by 2. Resizing is nearest, as in probe3d.
    """

    def __init__(self, channels_in: int, channels_out: int, channels: int):
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(channels_in // BLOCKS, channels, 1) for _ in range(BLOCKS))
        self.added = nn.ModuleList(ResidualUnit(channels) for _ in range(BLOCKS - 1))
        self.fused = nn.ModuleList(ResidualUnit(channels) for _ in range(BLOCKS))
        self.out = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels_out, 3, padding=1)
        )

    def forward(self, features_BChw: torch.Tensor) -> torch.Tensor:
        maps = [
            F.interpolate(conv(block), scale_factor=2)
            for conv, block in zip(self.project, features_BChw.chunk(BLOCKS, 1), strict=True)
        ]
        fused = self.fused[-1](maps[-1])
        for level in reversed(range(BLOCKS - 1)):
            fused = self.fused[level](self.added[level](maps[level]) + fused)
        return F.interpolate(self.out(F.interpolate(fused, scale_factor=4)), scale_factor=2)


class Bins(nn.Module):
    """Scores of bins [B, K, h, w] to depth in metres [B, 1, h, w]: the mean of the bins' depths weighted by scores."""

    def __init__(self, bins: int, low: float, high: float):
        super().__init__()
        self.register_buffer("depths", torch.linspace(low, high, bins))

    def forward(self, scores_BKhw: torch.Tensor) -> torch.Tensor:
        shares = torch.relu(scores_BKhw) + 0.1
        depth = torch.einsum("bkhw,k->bhw", shares, self.depths) / shares.sum(1)
        return depth[:, None]


def build_decoder(options: DecoderTraining, channels_in: int, channels_out: int) -> nn.Module:
    """A network from features [B, C, h, w] to `channels_out` channels at several times the size of the map."""
    if options.decoder == "linear":
        return LinearDecoder(channels_in, channels_out, options.upsample)
    return DPTDecoder(channels_in, channels_out, options.channels)


def depth_head(options: DepthBins, channels_in: int, low: float, high: float) -> nn.Module:
    """A network from features to depth in metres [B, 1, ...], between low and high."""
    return nn.Sequential(build_decoder(options, channels_in, options.bins), Bins(options.bins, low, high))


def depth_loss(options: DepthBins) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Loss of depth [B, 1, R, S] against ground truth [B, R, S] in metres, NaN = unknown."""

    def loss(predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        known = truth.isfinite()
        # log(x + 0.001), as in DINOv2 and probe3d
        difference = torch.log(predicted[:, 0] + 1e-3) - torch.log(truth.nan_to_num(1.0) + 1e-3)
        difference = difference * known
        total = options.scale_invariant * scale_invariant_loss(difference, known)
        return total + options.gradient * gradient_loss(difference, known)

    return loss


def scale_invariant_loss(difference_BRS: torch.Tensor, known_BRS: torch.Tensor, share: float = 0.85) -> torch.Tensor:
    """sqrt(mean(g^2) - share mean(g)^2) of differences g of log depth, 0 where unknown (Eigen et al. 2014)."""
    count = known_BRS.sum().clamp(min=1)
    variance = difference_BRS.square().sum() / count - share * (difference_BRS.sum() / count).square()
    return variance.clamp(min=1e-12).sqrt()


def gradient_loss(difference_BRS: torch.Tensor, known_BRS: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of g between pixels two apart, in both directions, summed over strides 1, 2, 4 and 6.
    From MegaDepth (Li and Snavely 2018). DINOv2's code takes the differences along the batch axis by mistake."""
    total = difference_BRS.new_zeros(())
    for step in (1, 2, 4, 6):
        g, known = difference_BRS[:, ::step, ::step], known_BRS[:, ::step, ::step]
        count = known.sum().clamp(min=1)
        for axis in (1, 2):
            length = g.shape[axis] - 2
            if length <= 0:
                continue
            near, far = g.narrow(axis, 0, length), g.narrow(axis, 2, length)
            both = known.narrow(axis, 0, length) & known.narrow(axis, 2, length)
            total = total + ((near - far).abs() * both).sum() / count
    return total


def normals_loss(options: AngularNormals) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Loss of normals [B, 3 or 4, R, S] against unit vectors [B, R, S, 3], NaN = unknown."""

    def loss(predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        known = truth.isfinite().all(-1)
        target = truth.nan_to_num(0.0).permute(0, 3, 1, 2)
        if options.uncertainty:
            losses = angular_mf_loss(norm_normalize(predicted), target)
        else:
            cosine = F.cosine_similarity(predicted, target, dim=1)
            losses = torch.arccos(cosine.clamp(-1 + 1e-4, 1 - 1e-4))
        return (losses * known).sum() / known.sum().clamp(min=1)

    return loss


@dataclass(frozen=True)
class DecoderProbe:
    """How a decoder is built, trained, applied and scored for one task.

    loss: (output, truths) -> scalar. predict: (network, features, index, shape) -> prediction of one view. error: pairs
    of (truth, prediction) -> number, lower is better. error_name: its key in the hyper-parameters. resizing: of
    predictions to the grid of the ground truth. protocol: description for the row.
    """

    build: Callable[[], nn.Module]
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    predict: Callable[[nn.Module, Maps, int, tuple[int, int]], np.ndarray]
    error: Callable[[Pairs], float]
    error_name: str
    resizing: str
    protocol: str


def fit_decoder(
    probe: DecoderProbe,
    train_VChw: Maps,
    truths: Sequence[np.ndarray],
    options: DecoderTraining,
    split: Split,
    seed: int,
) -> Fitted:
    """Train a decoder on all views, with the candidate that is best on the holdout.
    truths: [R, S] or [R, S, 3] of each view."""

    def train(index: np.ndarray, candidate: Candidate) -> nn.Module:
        def loss(
            head: nn.Module, features: torch.Tensor, batch: torch.Tensor, generator: torch.Generator
        ) -> torch.Tensor:
            truth = torch.from_numpy(np.stack([truths[view] for view in index[batch.numpy()]])).float()
            truth = truth.to(features.device)
            predicted = head(features)
            predicted = F.interpolate(predicted, size=truth.shape[1:3], mode=probe.resizing, align_corners=False)
            return probe.loss(predicted, truth)

        return train_network(probe.build, loss, take(train_VChw, index), options, candidate, seed)

    def score(candidate: Candidate) -> float:
        fit, held = split
        network = train(fit, candidate)
        shapes = ((view, truths[view].shape[:2]) for view in held)
        return -probe.error((truths[view], probe.predict(network, train_VChw, view, shape)) for view, shape in shapes)

    best, scores = best_candidate(options, score)
    errors = {name: None if value is None else -value for name, value in scores.items()}
    network = train(np.arange(len(truths)), best)
    return Fitted(
        partial(probe.predict, network),
        sum(parameter.numel() for parameter in network.parameters()),
        {**best._asdict(), probe.error_name: errors},
        probe.protocol,
    )


@torch.inference_mode()
def apply_head(head: nn.Module, features_NChw: Features | torch.Tensor, index: int) -> torch.Tensor:
    """The head's output [K, ...] for one image, on the CPU."""
    device = next(head.parameters()).device
    return head(features_NChw[np.array([index])].to(device))[0].float().cpu()
