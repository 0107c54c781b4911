"""Shared by heads that predict a map per image: depth and surface normals.

Shapes: V views, N images, C feature width, h x w feature map, G grid side, T targets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from cliptex.core.errors import CliptexError
from cliptex.core.seeds import seed_of
from cliptex.evaluation.probes.base import Data, Outcome, Run
from cliptex.evaluation.probes.features import Features, Split, resample_nearest
from cliptex.evaluation.probes.heads.ridge import Solution, regressed
from cliptex.evaluation.probes.training import finite
from cliptex.evaluation.probes.tuning import FROM_RIDGE, Tuned, Tuner
from cliptex.evaluation.protocols.base import MapTask

Maps = Features | torch.Tensor


@dataclass(frozen=True)
class Fitted:
    """A trained head that predicts a map. predict: (features, index, shape) -> prediction [H, W, ...] for one view."""

    predict: Callable[[Maps, int, tuple[int, int]], np.ndarray]
    num_parameters: int
    hyperparameters: dict[str, Any]
    protocol: str

    def predicted(self, features: Maps, index: int, shape: tuple[int, int]) -> np.ndarray:
        """`predict`; raises NotFinite for a prediction with NaN or infinity."""
        prediction = self.predict(features, index, shape)
        finite(prediction, f"the prediction of image number {index + 1} of the evaluation split")
        return prediction

    def outcome(self, task: str, section: MapTask, limits: str, metrics: dict[str, float], *arrays: Any) -> Outcome:
        """The head's outcome. limits: end of its description. arrays: predictions, per-image parts, thumbnails."""
        averaged = {"image": "metrics an image, averaged over images", "pooled": "all valid pixels pooled"}
        protocol = f"{self.protocol}; {averaged[section.averaging]}; {CROPS[section.crop]}{limits}"
        return Outcome(task, metrics, self.num_parameters, self.hyperparameters, protocol, *arrays)


CROPS = {
    "none": "no crop",
    "eigen": "Eigen crop",
    "garg": "Garg crop",
    "kitti": "Eigen crop of KITTI",
}
"""`MapTask.crop` in words."""
CROP_SHARES = {
    "garg": ((0.40810811, 0.99189189), (0.03594771, 0.96405229)),
    "kitti": ((0.3324324, 0.91351351), (0.0359477, 0.96405229)),
}
"""Rows and columns of KITTI's crops as shares of height and width (github.com/mrharicot/monodepth,
utils/evaluate_kitti.py), whose images have several sizes."""


def evaluation_window(section: MapTask, truth: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of a map [H, W, ...] that are evaluated."""
    if section.crop == "none":
        return slice(None), slice(None)
    shape = truth.shape[:2]
    if section.crop in CROP_SHARES:
        shares = zip(CROP_SHARES[section.crop], shape, strict=True)
        rows, columns = (slice(int(low * side), int(high * side)) for (low, high), side in shares)
        return rows, columns
    if shape != (480, 640):
        problem = f"crop: 'eigen' is for 480 x 640 maps, this one is {shape[0]} x {shape[1]}"
        raise CliptexError(f"{problem}; set it to none, or for KITTI to garg or kitti")
    return slice(45, 471), slice(41, 601)


def resized(map_Thw: torch.Tensor, shape: tuple[int, int], mode: str = "bilinear") -> np.ndarray:
    """The map [H, W, T] at the image's resolution."""
    return F.interpolate(map_Thw[None], size=shape, mode=mode, align_corners=False)[0].permute(1, 2, 0).numpy()


def on_grid(truths: Sequence[np.ndarray], side: int) -> np.ndarray:
    """Ground truth on a regular grid, float32 [V, side, side, T]."""
    grid = np.stack([resample_nearest(truth, side) for truth in truths]).astype(np.float32)
    return grid if grid.ndim == 4 else grid[..., None]


RIDGE = "ridge regression with bias in closed form; prediction resized (bilinear) to the original resolution"


@dataclass(frozen=True)
class Solved:
    """A ridge regression on features.
    target: "metric", "log" or "normals". targets_VGGT: the training targets, NaN = unknown."""

    solution: Solution
    target: str
    targets_VGGT: np.ndarray
    hyperparameters: dict[str, Any]

    def fitted(self, finish: Callable[[np.ndarray], np.ndarray], protocol: str) -> Fitted:
        """The regression as a head. finish: from its map [H, W, T] at the image's resolution to a prediction."""

        def predict(features: Maps, index: int, shape: tuple[int, int]) -> np.ndarray:
            return finish(resized(regressed(features[np.array([index])], self.solution)[0], shape))

        return Fitted(predict, sum(part.numel() for part in self.solution), self.hyperparameters, protocol)


def map_outcome(probe: Callable[..., Outcome], task: str, run: Run, head: str, data: Data) -> Outcome:
    """Train and evaluate one head with `probe_depth` or `probe_normals`."""
    truths = data.train.truths[task], data.eval.truths[task]
    seed = seed_of(head, run.seed)
    split = data.train.split(run.holdout, seed)
    return probe(*data.features, *truths, run.protocol.section(task), head, split, seed, len(run.kept))


class MapTuner(Tuner):
    """Heads on frozen features (`probe`), and a 1x1 convolution that is trained with the encoder and starts from the
    ridge regression on the features before the first step.

    solve, regression: how ridge regression is solved, and used as a head. decoder: how a decoder is trained. outcome:
    how a head is evaluated. Their parameters are those of the functions in `cliptex.evaluation.probes.heads.depth`.
    """

    solve: ClassVar[Callable[..., Solved]]
    regression: ClassVar[Callable[[Solved, MapTask, str], Fitted]]
    decoder: ClassVar[Callable[..., Fitted]]
    outcome: ClassVar[Callable[..., Outcome]]

    @classmethod
    def probe(
        cls,
        train_VChw: Maps,
        eval_NChw: Maps,
        train_truths: Sequence[np.ndarray],
        eval_truths: Sequence[np.ndarray],
        section: MapTask,
        head: str,
        split: Split,
        seed: int,
        keep: int,
    ) -> Outcome:
        """Train and evaluate the head of that name on frozen features."""
        options = section.heads[head]
        if options.kind == "ridge":
            fitted = cls.regression(cls.solve(train_VChw, train_truths, section, options, split), section, RIDGE)
        else:
            fitted = cls.decoder(train_VChw, train_truths, section, options, split, seed)
        return cls.outcome(fitted, eval_NChw, eval_truths, section, keep)

    def prepare(self, run: Run, tuned: Tuned, split: Split) -> None:
        truths, self.eval_truths = (part.truths[self.task] for part in tuned.parts)
        with torch.no_grad():
            self.solved = self.solve(tuned.train, truths, self.section, self.options, split)
        self.targets_NTGG = torch.from_numpy(self.solved.targets_VGGT).permute(0, 3, 1, 2)

    def start(self) -> torch.nn.Module:
        weights, bias = self.solved.solution
        head = torch.nn.Conv2d(*weights.shape, 1)
        head.weight.data = weights.T[:, :, None, None].clone()
        head.bias.data = bias.clone()
        return head.to(self.device)

    def loss(
        self, head: torch.nn.Module, features: torch.Tensor, batch: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        # that of the ridge regression: mean squared error at the valid points of the grid
        output = head(features)
        target = self.targets_NTGG[batch].to(output.device)
        output = F.interpolate(output, size=target.shape[-2:], mode="bilinear", align_corners=False)
        valid = target.isfinite().all(1, keepdim=True)
        error = torch.where(valid, output - target.nan_to_num(), 0.0)
        return error.square().sum() / (valid.sum() * target.shape[1]).clamp(min=1)

    def outcomes(self, head: torch.nn.Module, tuned: Tuned, chosen: dict[str, Any], keep: int) -> list[Outcome]:
        weights, bias = head.weight.data[:, :, 0, 0].T.cpu(), head.bias.data.cpu()
        hyperparameters = self.solved.hyperparameters | chosen
        solved = replace(self.solved, solution=(weights, bias), hyperparameters=hyperparameters)
        fitted = self.regression(solved, self.section, FROM_RIDGE)
        return [self.outcome(fitted, tuned.eval, self.eval_truths, self.section, keep)]
