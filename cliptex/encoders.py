"""The frozen encoders that probes judge: exported models, and two baselines that have learned nothing.

Shapes: B images, S image side, C feature width, h x w feature map.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.pos_embed import get_2d_sincos_pos_embed
from PIL import Image

from cliptex.config import Student
from cliptex.errors import CliptexError
from cliptex.features import dense_features
from cliptex.files import sha256_file
from cliptex.student import CONFIG_FILE, WEIGHTS_FILE, build, exported_config, load

BASELINES = ("random", "position")
POOLED = "pooled feature before the projection"
INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
BATCH_SIZE = 32


class Encoder:
    """A frozen image encoder.

    image_size: side S of the square images it takes. mean, std: of the normalisation, per channel, for pixels in
    0..1. interpolation: how images are resized. sha256: of the weight file, or of the weights where there is none.
    """

    def __init__(self, visual: torch.nn.Module, folder: Path, sha256: str):
        size = visual.image_size
        height, width = (size, size) if isinstance(size, int) else size
        if height != width:
            raise CliptexError(f"{folder / CONFIG_FILE}: probes need a square image_size, this is {height} x {width}")
        preprocess = exported_config(folder).get("preprocess_cfg", {})
        self.image_size: int = height
        self.mean: tuple[float, ...] = tuple(preprocess.get("mean", open_clip.OPENAI_DATASET_MEAN))
        self.std: tuple[float, ...] = tuple(preprocess.get("std", open_clip.OPENAI_DATASET_STD))
        self.interpolation: str = preprocess.get("interpolation", "bicubic")
        self.sha256 = sha256
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._visual = _without_projection(visual).eval().requires_grad_(False).to(self.device)

    def normalised(self, images_BHWC: np.ndarray) -> torch.Tensor:
        """uint8 images [B, S, S, 3] as the float32 [B, 3, S, S] that the network takes."""
        pixels = torch.from_numpy(images_BHWC).to(self.device).permute(0, 3, 1, 2).float() / 255
        mean = torch.tensor(self.mean, device=self.device).view(3, 1, 1)
        return (pixels - mean) / torch.tensor(self.std, device=self.device).view(3, 1, 1)

    @torch.no_grad()
    def dense(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Dense features [B, C, h, w] of normalised images, as training uses them (`cliptex.features`)."""
        return dense_features(self._visual, images_BCHW)

    @cached_property
    def grid(self) -> int:
        """Side of the feature map, cells."""
        blank = torch.zeros(1, 3, self.image_size, self.image_size, device=self.device)
        return self.dense(blank).shape[-1]

    @torch.no_grad()
    def pooled(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """The feature [B, C] from which the encoder makes its embedding, before the projection."""
        return self._visual(images_BCHW)


class PositionEncoder(Encoder):
    """Knows where a pixel is and nothing else: a fixed 2-D sine-cosine code, the same for every image.

    Its grid and width are those of the encoder it is shown beside. Pooled, it is the mean of the code: a constant.
    """

    def __init__(self, visual: torch.nn.Module, folder: Path):
        super().__init__(visual, folder, "")
        blank = torch.zeros(1, 3, self.image_size, self.image_size, device=self.device)
        _, channels, height, width = super().dense(blank).shape
        if height != width or channels % 4:
            raise CliptexError(f"{folder / CONFIG_FILE}: the position baseline needs a square grid and a width of 4 n")
        code = get_2d_sincos_pos_embed(channels, height).astype(np.float32)
        self.sha256 = hashlib.sha256(code.tobytes()).hexdigest()
        self._code = torch.from_numpy(code).reshape(height, width, channels).permute(2, 0, 1).to(self.device)
        self._visual = None

    def dense(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self._code.expand(len(images_BCHW), *self._code.shape)

    def pooled(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.dense(images_BCHW).mean(dim=(2, 3))


def load_encoder(kind_or_path: str | Path, *, reference: Path | None = None, seed: int = 0) -> Encoder:
    """An encoder by the folder of an exported model, or by the name of a baseline.

    Baselines ("random", "position") take their architecture and preprocessing from the exported folder `reference`;
    "random" is drawn from `seed`. Raises CliptexError when files are missing or do not fit.
    """
    if kind_or_path not in BASELINES:
        folder = Path(kind_or_path)
        return Encoder(load(folder).visual, folder, sha256_file(folder / WEIGHTS_FILE))
    visual = untrained(reference, seed).visual
    if kind_or_path == "position":
        return PositionEncoder(visual, reference)
    return Encoder(visual, reference, sha256_weights(visual))


def untrained(reference: Path, seed: int) -> torch.nn.Module:
    """An open_clip model of the architecture of the exported folder `reference`, with weights drawn from `seed`."""
    if not (Path(reference) / CONFIG_FILE).exists():
        raise CliptexError(f"{Path(reference) / CONFIG_FILE}: no such file; train that model first")
    with torch.random.fork_rng():
        return build(Student(architecture=exported_config(reference)["model_cfg"]), seed).eval()


def sha256_weights(module: torch.nn.Module) -> str:
    """Hex SHA-256 over the names and bytes of a module's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def _without_projection(visual: torch.nn.Module) -> torch.nn.Module:
    """`visual`, now returning what its projection was applied to."""
    if isinstance(visual, open_clip.timm_model.TimmModel):
        visual.head = torch.nn.Identity()
    elif isinstance(getattr(visual, "proj", None), torch.nn.Parameter):
        visual.proj = None
    else:
        raise CliptexError(
            f"student.architecture: probes know open_clip's vision transformers and timm towers, "
            f"not {type(visual).__name__}; choose one of those"
        )
    return visual


def squash(image: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    """uint8 [H, W, 3] to [size, size, 3], ratio not kept, so that masks need no cropping."""
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), INTERPOLATION[interpolation]))


def centre_crop(image: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    """uint8 [H, W, 3] to [size, size, 3]: shorter side to `size`, then the centre, as CLIP's own preprocessing."""
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    shorter = min(height, width)
    # as torchvision's Resize and CenterCrop round
    height, width = int(size * height / shorter), int(size * width / shorter)
    resized = np.asarray(Image.fromarray(image).resize((width, height), INTERPOLATION[interpolation]))
    top, left = round((height - size) / 2), round((width - size) / 2)
    return resized[top : top + size, left : left + size]


def in_order(samples: Sequence, read: Callable) -> Iterator:
    """`read(sample)` of every sample, in order; read ahead by as many threads as torch computes with."""
    threads = torch.get_num_threads()
    if threads == 1:
        # by index: iterating a Sequence would take an IndexError inside a reader for its end
        for index in range(len(samples)):
            yield read(samples[index])
        return
    ahead = 256
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(samples), ahead):
            yield from pool.map(lambda index: read(samples[index]), range(start, min(start + ahead, len(samples))))


def dense_of(encoder: Encoder, images_NHWC: np.ndarray) -> torch.Tensor:
    """Dense features [N, C, h, w] of uint8 images [N, S, S, 3], float32, on the CPU."""
    batches = range(0, len(images_NHWC), BATCH_SIZE)
    return torch.cat(
        [encoder.dense(encoder.normalised(images_NHWC[start : start + BATCH_SIZE])).cpu() for start in batches]
    )
