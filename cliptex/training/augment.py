"""Random crops and flips, the same for an image and its pseudo-labels.

A view depends only on (seed, epoch, key).
"""

import zlib

import numpy as np
from PIL import Image

from cliptex.config import Train
from cliptex.tasks.base import View


def draw_view(train: Train, seed: int, epoch: int, key: str) -> View:
    """Draw a crop within the image, of area in `crop_scale` and aspect ratio in 3/4..4/3, and a flip."""
    rng = np.random.default_rng([seed, epoch, zlib.crc32(key.encode())])
    area = rng.uniform(*train.crop_scale)
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    height, width = min(1.0, np.sqrt(area / ratio)), min(1.0, np.sqrt(area * ratio))
    top, left = rng.uniform(0, 1 - height), rng.uniform(0, 1 - width)
    return View(float(top), float(left), float(height), float(width), bool(rng.random() < train.flip))


def crop_image(image_HWC: np.ndarray, view: View, size: int) -> np.ndarray:
    """Crop uint8 RGB [H, W, 3] to `view` and resize to [size, size, 3]: bicubic with antialiasing."""
    height, width = image_HWC.shape[:2]
    left, top = view.left * width, view.top * height
    box = (left, top, min(width, left + view.width * width), min(height, top + view.height * height))
    cropped = np.asarray(Image.fromarray(image_HWC).resize((size, size), Image.Resampling.BICUBIC, box=box))
    return cropped[:, ::-1] if view.flip else cropped
