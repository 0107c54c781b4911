"""Batches: how the stored samples of a step are decoded, cropped and flipped, in this process or in workers.

An image and its pseudo-labels are cropped and flipped alike; the view depends only on (seed, epoch, key).
"""

import signal
import traceback
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple, Self

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from cliptex.config import Train
from cliptex.core.errors import SUBJECT, CliptexError, subject, working_on
from cliptex.data.images import decode_image, open_image, require_decoder
from cliptex.tasks.base import View
from cliptex.tasks.grid import WHOLE
from cliptex.training.stored import StoredSamples


@dataclass(frozen=True)
class Batch:
    """The rows of one step. Images are uint8 [B, S, S, 3]; targets are the stacked targets of each store's task.

    tokens: int64 [B, L], if the loader has a tokenizer. ends_epoch: the next step belongs to the next epoch.
    """

    keys: list[str]
    images: torch.Tensor
    captions: list[str]
    targets: dict[str, torch.Tensor]
    tokens: torch.Tensor | None = None
    epoch: int = 0
    ends_epoch: bool = False

    def pin_memory(self) -> Self:
        """Copy the batch to pinned memory; called by torch's DataLoader."""
        return replace(
            self,
            images=self.images.pin_memory(),
            targets={store: target.pin_memory() for store, target in self.targets.items()},
            tokens=None if self.tokens is None else self.tokens.pin_memory(),
        )


@dataclass(frozen=True)
class Step:
    """One step of the schedule: rows `start` to `start + rows` of the epoch's order, at crop size `size`."""

    epoch: int
    start: int
    rows: int
    size: int
    ends_epoch: bool


class Drawn(NamedTuple):
    """What a process decodes of a step: ids of samples, and of those whose labels they get, int64 [B]."""

    sample_ids: np.ndarray
    label_ids: np.ndarray
    step: Step


@dataclass(frozen=True)
class Failure:
    """An error of a worker process, to be raised in the main process."""

    message: str
    is_expected: bool
    """Whether it is a `CliptexError`."""
    subject: str | None
    trace: str

    def raised(self) -> Exception:
        if self.is_expected:
            return CliptexError(self.message)
        error = RuntimeError(self.message)
        error.add_note(f"{SUBJECT}{self.subject}")
        error.add_note(self.trace)
        return error


@dataclass(frozen=True)
class SampleDecoder:
    """Reads and decodes the samples of a step into a batch. A map-style dataset for torch's DataLoader.

    augment: crop and flip the samples; otherwise the whole image is resized to a square.
    """

    train: Train
    seed: int
    stored: StoredSamples
    tokenizer: Callable[[list[str]], torch.Tensor] | None = None
    augment: bool = True

    def __post_init__(self) -> None:
        require_decoder(self.train.decoder)

    def __getitem__(self, drawn: Drawn) -> "Batch | Failure":
        """A batch; in a worker process, an error is returned, since torch would pass on neither file nor key."""
        try:
            return self._batch(drawn)
        except Exception as error:
            if torch.utils.data.get_worker_info() is None:
                raise
            is_expected = isinstance(error, CliptexError)
            message = str(error) if is_expected else f"{type(error).__name__}: {error}"
            return Failure(message, is_expected, subject(error), traceback.format_exc())

    def _batch(self, drawn: Drawn) -> Batch:
        sample_ids, label_ids, step = drawn
        images = torch.empty(len(sample_ids), step.size, step.size, 3, dtype=torch.uint8)
        keys, captions = [], []
        views = cache(lambda key: self._view(step.epoch, key))
        for row, sample_id in enumerate(sample_ids.tolist()):
            location = self.stored.location(sample_id)
            with working_on(f"{location.path}, key {location.key!r}"):
                pair = location.read()
                images[row] = self._crop(pair.image, views(pair.key), step.size)
            keys.append(pair.key)
            captions.append(pair.caption)
        return Batch(
            keys,
            images,
            captions,
            {store: torch.from_numpy(target) for store, target in self._targets(label_ids, views).items()},
            None if self.tokenizer is None else self.tokenizer(captions),
            step.epoch,
            step.ends_epoch,
        )

    def targets(self, drawn: Drawn) -> dict[str, np.ndarray]:
        """The stacked targets of the samples, by store."""
        return self._targets(drawn.label_ids, lambda key: self._view(drawn.step.epoch, key))

    def _targets(self, label_ids: np.ndarray, views: Callable[[str], View]) -> dict[str, np.ndarray]:
        size, tasks = self.train.target_size_px, self.stored.tasks
        targets: dict[str, list[np.ndarray]] = {store: [] for store in tasks}
        for label_id in label_ids.tolist() if tasks else ():
            # shuffled labels use the view of their own image: a shared crop would reveal where this image was cropped
            key = self.stored.key(label_id)
            view = views(key)
            for store, task in tasks.items():
                with working_on(f"label store {store}, key {key!r}"):
                    label = self.stored.label(store, label_id)
                    targets[store].append(task.missing(size) if label is None else task.target(*label, view, size))
        return {store: np.stack(store_targets) for store, store_targets in targets.items()}

    def _crop(self, image: bytes, view: View, size: int) -> torch.Tensor:
        if self.train.decoder == "torchvision":
            return crop_pixels(decode_image(image, "torchvision"), view, size)
        return torch.from_numpy(crop_image(open_image(image), view, size))

    def _view(self, epoch: int, key: str) -> View:
        return draw_view(self.train, self.seed, epoch, key) if self.augment else WHOLE


def start_worker(number: int) -> None:
    """DataLoader worker init: one thread; ignore SIGTERM, SIGUSR1 and SIGINT, which the parent handles."""
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)  # NumPy's BLAS would start one thread per CPU core in every worker
    for stop_signal in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(stop_signal, signal.SIG_IGN)


def draw_view(train: Train, seed: int, epoch: int, key: str) -> View:
    """Draw a crop within the image, of area in `crop_scale` and aspect ratio in 3/4..4/3, and a flip."""
    rng = np.random.default_rng([seed, epoch, zlib.crc32(key.encode())])
    area = rng.uniform(*train.crop_scale)
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    height, width = min(1.0, np.sqrt(area / ratio)), min(1.0, np.sqrt(area * ratio))
    top, left = rng.uniform(0, 1 - height), rng.uniform(0, 1 - width)
    return View(float(top), float(left), float(height), float(width), bool(rng.random() < train.flip))


def crop_image(image: Image.Image, view: View, size: int) -> np.ndarray:
    """Crop an RGB image to `view` and resize to uint8 [size, size, 3], writable: bicubic with antialiasing."""
    box = _box(view, image.height, image.width)
    cropped = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.array(cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.flip else cropped)


def crop_pixels(pixels_HWC: np.ndarray, view: View, size: int) -> torch.Tensor:
    """`crop_image` by torch, in a fourth of the time. The crop is rounded to whole pixels."""
    height, width = pixels_HWC.shape[:2]
    left, top, right, bottom = (round(side) for side in _box(view, height, width))
    left, top = min(left, width - 1), min(top, height - 1)
    part_HWC = pixels_HWC[top : max(bottom, top + 1), left : max(right, left + 1)]
    # contiguous with channels last, so that the result is, too, and is copied faster
    part_BCHW = torch.from_numpy(np.array(part_HWC, order="C", ndmin=4)).permute(0, 3, 1, 2)
    crop_BCHW = functional.interpolate(part_BCHW, (size, size), mode="bicubic", antialias=True)
    (crop_HWC,) = crop_BCHW.permute(0, 2, 3, 1)
    return crop_HWC.flip(1) if view.flip else crop_HWC


def _box(view: View, height: int, width: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the view, pixels."""
    left, top = view.left * width, view.top * height
    return left, top, min(width, left + view.width * width), min(height, top + view.height * height)
