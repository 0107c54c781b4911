"""Train an expert's network on labelled renders: batches, augmentation, optimizer and schedule.

The renders are an HDF5 file with the datasets `image` (N,H,W,3 uint8), `instance` (N,H,W uint8; 0 = none),
`instance_class` (N,M uint8; class 1..80 of instance i in column i-1), `depth` (N,H,W float32, metres, NaN = sky) and
`normals` (N,H,W,3 float16, NaN = sky). Shape suffixes: B batch, C channels, H height, W width.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from cliptex.core.errors import CliptexError, working_on
from cliptex.core.files import read_error, require_file
from cliptex.core.progress import track
from cliptex.experts.options import TrainingOptions

GREY = (0.299, 0.587, 0.114)


def fit(
    module: nn.Module,
    loss: Callable[[dict[str, torch.Tensor], torch.Generator], torch.Tensor],
    renders: Path,
    targets: tuple[str, ...],
    size: tuple[int, int] | None,
    training: TrainingOptions,
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    """Minimise `loss` on augmented batches with AdamW and a one-cycle rate (warm-up, then a cosine to zero).

    loss: function of a batch from `augment` and a generator. size: height and width of the batches, by default the
    renders' own. Returns `images_seen` and `losses`, a list of [step, mean loss since the last entry]. Raises
    CliptexError if the loss is not finite, or if the file lacks a dataset.
    """
    generator = torch.Generator().manual_seed(int(np.random.default_rng([seed, 0xE7]).integers(2**62)))
    data = read_renders(renders, ("image", *targets))
    groups = [
        {"params": [p for p in module.parameters() if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in module.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate)
    steps, rate = max(training.steps, 2), training.learning_rate
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, steps, pct_start=training.warmup, cycle_momentum=False
    )
    module.train()
    losses, recent = [], []
    batches = _batches(data, size or data["image"].shape[1:3], training, generator)
    for step in track(range(1, training.steps + 1), f"train on {renders}"):
        with working_on(f"{renders}, step {step}"):
            batch = {name: tensor.to(device) for name, tensor in next(batches).items()}
            value = loss(batch, generator)
        if not torch.isfinite(value):
            raise CliptexError(f"training on {renders}: the loss is {value.item()} at step {step}; lower learning_rate")
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), training.grad_clip)
        optimizer.step()
        if step < training.steps:
            schedule.step()
        recent.append(value.item())
        if step == training.steps or step % max(training.steps // 20, 1) == 0:
            losses.append([step, float(np.mean(recent))])
            recent = []
    return {"images_seen": training.steps * training.batch_size, "losses": losses}


def read_renders(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Read datasets of a file of labelled renders. Raises CliptexError if it is missing or broken, or lacks one."""
    require_file(path)
    try:
        with h5py.File(path) as file:
            missing = [name for name in names if name not in file]
            if missing:
                raise CliptexError(f"{path}: has no dataset {', '.join(missing)}; move it away, and render again")
            return {name: file[name][:] for name in names}
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise read_error(error, path, "an HDF5 file of renders") from error


def _batches(
    data: dict[str, np.ndarray], size: tuple[int, int], training: TrainingOptions, generator: torch.Generator
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield augmented batches endlessly; each epoch has every render once."""
    count = len(data["image"])
    order = torch.empty(0, dtype=torch.int64)
    while True:
        while len(order) < training.batch_size:
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        indices, order = order[: training.batch_size].numpy(), order[training.batch_size :]
        yield augment({name: array[indices] for name, array in data.items()}, size, training, generator)


def augment(
    batch: dict[str, np.ndarray], size: tuple[int, int], training: TrainingOptions, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Apply the same random crop and flip to image and labels, then colour jitter, blur and noise to the image.

    size: height and width of the output. Returns `image` float32 BCHW in 0..1, `instance` int64 BHW, `depth` float32
    BHW, `normals` float32 BCHW (the flip negates x); other datasets are passed through. The image is sampled
    bilinearly, labels by nearest neighbour, so that no values are mixed and NaN stays NaN. The enlarged crop equals a
    longer focal length, which changes neither normals nor, up to scale, depth.
    """
    image_BCHW = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).float() / 255
    grid_BHW2, flip_B = _random_view(len(image_BCHW), size, training, generator)

    def nearest(tensor_BCHW: torch.Tensor) -> torch.Tensor:
        return functional.grid_sample(tensor_BCHW, grid_BHW2, "nearest", "border", align_corners=False)

    image_BCHW = functional.grid_sample(image_BCHW, grid_BHW2, "bilinear", "border", align_corners=False)
    out = {"image": _jitter(image_BCHW, training.colour, generator)}
    for name, array in batch.items():
        if name == "image":
            continue
        tensor = torch.from_numpy(array)
        if name == "instance":
            tensor = nearest(tensor[:, None].float())[:, 0].long()
        elif name == "depth":
            tensor = nearest(tensor[:, None])[:, 0]
        elif name == "normals":
            tensor = nearest(tensor.float().permute(0, 3, 1, 2).contiguous())
            tensor[:, 0] *= torch.where(flip_B, -1.0, 1.0)[:, None, None]
        out[name] = tensor
    return out


def _random_view(
    count: int, size: tuple[int, int], training: TrainingOptions, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sampling grids BHW2 of crops with the render's aspect ratio, and whether each is flipped."""
    low, high = training.crop_scale
    side_B = (low + (high - low) * torch.rand(count, generator=generator)).sqrt()
    flip_B = torch.rand(count, generator=generator) < training.flip
    theta_B23 = torch.zeros(count, 2, 3)
    theta_B23[:, 0, 0] = torch.where(flip_B, -side_B, side_B)
    theta_B23[:, 1, 1] = side_B
    theta_B23[:, :, 2] = (1 - side_B)[:, None] * (2 * torch.rand(count, 2, generator=generator) - 1)
    return functional.affine_grid(theta_B23, [count, 1, *size], align_corners=False), flip_B


def _jitter(image_BCHW: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Jitter colour balance, brightness, contrast and saturation (a tenth becomes grey); blur a third; add noise."""
    if strength == 0:
        return image_BCHW
    count = len(image_BCHW)

    def draw(low: float, high: float, channels: int = 1) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, channels, 1, 1, generator=generator)

    gain = 1 + strength * (draw(-0.3, 0.3) + draw(-0.15, 0.15, 3))
    contrast = 1 + strength * draw(-0.3, 0.3)
    saturation = (1 + strength * draw(-0.5, 0.4)).clamp(min=0) * (draw(0, 1) >= 0.1 * min(strength, 1))
    blur = (strength * draw(-0.5, 0.25)).clamp(0, 0.25)  # weight of each neighbour in a separable 3-tap kernel
    deviation = strength * draw(0, 0.05)
    grey = (image_BCHW * torch.tensor(GREY)[:, None, None]).sum(1, keepdim=True)
    image_BCHW = grey + (image_BCHW - grey) * saturation
    mean = image_BCHW.mean((1, 2, 3), keepdim=True)
    image_BCHW = (mean + (image_BCHW - mean) * contrast) * gain
    for axis in (2, 3):
        size = image_BCHW.shape[axis]
        before = image_BCHW.index_select(axis, torch.arange(-1, size - 1).clamp(min=0))
        after = image_BCHW.index_select(axis, torch.arange(1, size + 1).clamp(max=size - 1))
        image_BCHW = image_BCHW * (1 - 2 * blur) + (before + after) * blur
    noise = torch.randn(image_BCHW.shape, generator=generator)
    return (image_BCHW + noise * deviation).clamp(0, 1)
