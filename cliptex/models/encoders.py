"""The frozen encoders that probes judge: exported models, and two baselines that have learned nothing.

Shapes: B images, S image side, C feature width, h x w feature map.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.pos_embed import get_2d_sincos_pos_embed_from_grid
from PIL import Image
from torch.func import functional_call

from cliptex.config import Student
from cliptex.core.errors import CliptexError
from cliptex.core.files import sha256_file, sha256_json
from cliptex.models.clip import CONFIG_FILE, WEIGHTS_FILE, build, exported_config, load
from cliptex.models.dense_features import dense_features, layer_tokens, number_of_blocks, resized_positions

BASELINES = ("random", "position")
INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
BATCH_SIZE = 8  # a ViT-B-16 on a processor takes an eighth less time for an image than in batches of 32


def _without_gradients(method: Callable) -> Callable:
    """Features without gradients, unless the encoder is unfrozen and somebody wants them."""

    @wraps(method)
    def computed(self: "Encoder", *args: Any, **options: Any) -> torch.Tensor:
        with torch.set_grad_enabled(self._learns and torch.is_grad_enabled()):
            return method(self, *args, **options)

    return computed


class Encoder:
    """A frozen image encoder.

    image_size: side S of the square images it takes. mean, std: of the normalisation, per channel, for pixels in
    0..1. interpolation: how images are resized. sha256: of the weight file, or of the weights where there is none.
    config_sha256: of the architecture.
    """

    def __init__(self, visual: torch.nn.Module, folder: Path, sha256: str):
        size = visual.image_size
        height, width = (size, size) if isinstance(size, int) else size
        if height != width:
            raise CliptexError(f"{folder / CONFIG_FILE}: probes need a square image_size, this is {height} x {width}")
        config = exported_config(folder)
        preprocess = config.get("preprocess_cfg", {})
        self.config_sha256 = sha256_json(config["model_cfg"])
        self.image_size: int = height
        self.mean: tuple[float, ...] = tuple(preprocess.get("mean", open_clip.OPENAI_DATASET_MEAN))
        self.std: tuple[float, ...] = tuple(preprocess.get("std", open_clip.OPENAI_DATASET_STD))
        self.interpolation: str = preprocess.get("interpolation", "bicubic")
        self.sha256 = sha256
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._learns = False
        self._visual, self._project = _split_projection(visual.eval().requires_grad_(False).to(self.device))

    def input_size(self, size_px: int | tuple[int, int] | None) -> tuple[int, int]:
        """Height and width of what the encoder is shown; its own for None."""
        size_px = size_px or self.image_size
        return (size_px, size_px) if isinstance(size_px, int) else tuple(size_px)

    def normalised(self, images_BHWC: np.ndarray) -> torch.Tensor:
        """uint8 images [B, S, S, 3] as the float32 [B, 3, S, S] that the network takes."""
        pixels = torch.from_numpy(images_BHWC).to(self.device).permute(0, 3, 1, 2).float() / 255
        mean = torch.tensor(self.mean, device=self.device).view(3, 1, 1)
        return (pixels - mean) / torch.tensor(self.std, device=self.device).view(3, 1, 1)

    @_without_gradients
    def dense(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Dense features [B, C, h, w] of normalised images, as training uses them (`cliptex.models.dense_features`)."""
        return dense_features(self._visual, images_BCHW)

    def unfrozen(self) -> torch.nn.Module:
        """The network that gives the features. From now on it can learn, and features have gradients."""
        self._learns = True
        return self._visual.requires_grad_(True)

    @cached_property
    def grid(self) -> int:
        """Side of the feature map, cells, at the encoder's own size."""
        return self.map_shape((self.image_size, self.image_size))[2]

    @torch.no_grad()
    def map_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """Channels, rows and columns of the dense features of images of this height and width.

        Raises CliptexError for a size that the encoder cannot take.
        """
        return tuple(dense_features(self._visual, torch.zeros(1, 3, *size, device=self.device)).shape[1:])

    @_without_gradients
    def tokens(self, images_BCHW: torch.Tensor, layers: Sequence[int] | str, norm: bool, cls: bool) -> torch.Tensor:
        """Tokens [B, h * w, L * C] of the L blocks `layers`, row by row; with `cls` the class token comes first.

        layers: block numbers, or "last", or "quarters" (after each quarter of the blocks). norm: whether the encoder's
        final normalisation is applied to each.
        """
        out = layer_tokens(self._visual, images_BCHW, block_numbers(self._visual, layers), norm, cls)
        tokens = torch.cat(out["image_intermediates"], 1).flatten(2).transpose(1, 2)
        if not cls:
            return tokens
        if not (prefix := out.get("image_intermediates_prefix")):
            raise CliptexError("features.cls: this encoder has no class token; set it to false")
        return torch.cat([torch.cat([one[:, :1] for one in prefix], -1), tokens], 1)

    @_without_gradients
    def pooled(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """The feature [B, C] from which the encoder makes its embedding, before the projection."""
        positions = resized_positions(self._visual, tuple(images_BCHW.shape[-2:]))
        if positions is None:
            return self._visual(images_BCHW)
        return functional_call(self._visual, {"positional_embedding": positions}, (images_BCHW,))

    @_without_gradients
    def summary(self, images_BCHW: torch.Tensor, blocks: int) -> torch.Tensor:
        """Class tokens of the last `blocks` blocks after the final normalisation, and the mean of the last one's patch
        tokens: [B, (blocks + 1) C]."""
        out = layer_tokens(self._visual, images_BCHW, blocks, class_tokens=True)
        if not (prefix := out.get("image_intermediates_prefix")):
            raise CliptexError("features.point: this encoder has no class token; choose pooled or embedding")
        return torch.cat([*(one[:, 0] for one in prefix), out["image_intermediates"][-1].mean((2, 3))], 1)

    @_without_gradients
    def embedding(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """The embedding [B, D], which is compared with that of texts, not normalised."""
        return self._project(self.pooled(images_BCHW))


class PositionEncoder(Encoder):
    """Knows where a pixel is and nothing else: a fixed 2-D sine-cosine code, the same for every image and block.

    Its grid and width are those of the encoder it is shown beside. Pooled, as a class token and as an embedding it is
    the mean of the code: a constant.
    """

    def __init__(self, visual: torch.nn.Module, folder: Path):
        super().__init__(visual, folder, "")
        own = self.map_shape((self.image_size, self.image_size))
        if own[0] % 4:
            raise CliptexError(f"{folder / CONFIG_FILE}: the position baseline needs a width of 4 n")
        self.sha256 = hashlib.sha256(_position_code(*own).tobytes()).hexdigest()
        self._codes: dict[tuple[int, int], torch.Tensor] = {}

    def dense(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        size = tuple(images_BCHW.shape[-2:])
        if size not in self._codes:
            self._codes[size] = torch.from_numpy(_position_code(*self.map_shape(size))).to(self.device)
        return self._codes[size].expand(len(images_BCHW), *self._codes[size].shape)

    def tokens(self, images_BCHW: torch.Tensor, layers: Sequence[int] | str, norm: bool, cls: bool) -> torch.Tensor:
        count = len(block_numbers(self._visual, layers))
        tokens = self.dense(images_BCHW).flatten(2).transpose(1, 2).repeat(1, 1, count)
        return torch.cat([tokens.mean(1, keepdim=True), tokens], 1) if cls else tokens

    def pooled(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.dense(images_BCHW).mean(dim=(2, 3))

    def summary(self, images_BCHW: torch.Tensor, blocks: int) -> torch.Tensor:
        return self.pooled(images_BCHW).repeat(1, blocks + 1)

    def embedding(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.pooled(images_BCHW)


def _position_code(channels: int, rows: int, columns: int) -> np.ndarray:
    """float32 [channels, rows, columns]; of a square grid open_clip's `get_2d_sincos_pos_embed`."""
    places = np.stack(np.meshgrid(np.arange(columns, dtype=np.float32), np.arange(rows, dtype=np.float32)))
    code = get_2d_sincos_pos_embed_from_grid(channels, places.reshape(2, 1, rows, columns))
    return code.astype(np.float32).reshape(rows, columns, channels).transpose(2, 0, 1).copy()


def block_numbers(visual: torch.nn.Module, layers: Sequence[int] | str) -> list[int]:
    """Numbers from 0 of the blocks that `layers` means. Raises CliptexError for one that the encoder does not have."""
    count = number_of_blocks(visual)
    if layers == "last":
        return [count - 1]
    if layers == "quarters":
        return [count * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]
    if bad := [layer for layer in layers if not -count <= layer < count]:
        raise CliptexError(f"features.layers: {bad[0]} is no block of the encoder, which has {count}")
    return [layer % count for layer in layers]


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


def _split_projection(visual: torch.nn.Module) -> tuple[torch.nn.Module, Callable[[torch.Tensor], torch.Tensor]]:
    """`visual`, now returning what its projection was applied to, and the projection."""
    if isinstance(visual, open_clip.timm_model.TimmModel):
        project, visual.head = visual.head, torch.nn.Identity()
    elif isinstance(getattr(visual, "proj", None), torch.nn.Parameter):
        project, visual.proj = partial(torch.matmul, other=visual.proj), None
    else:
        raise CliptexError(
            f"student.architecture: probes know open_clip's vision transformers and timm towers, "
            f"not {type(visual).__name__}; choose one of those"
        )
    return visual, project


def squash(image: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    """uint8 [H, W, 3] to [size, size, 3], ratio not kept, so that masks need no cropping."""
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), INTERPOLATION[interpolation]))


def centre_crop(image: np.ndarray, size: int, interpolation: str, resize: int | None = None) -> np.ndarray:
    """uint8 [H, W, 3] to [size, size, 3]: shorter side to `resize`, by default `size`, then the centre, as CLIP's own
    preprocessing."""
    height, width = image.shape[:2]
    resize = resize or size
    if (height, width) == (size, size) == (resize, resize):
        return image
    shorter = min(height, width)
    # as torchvision's Resize and CenterCrop round
    height, width = int(resize * height / shorter), int(resize * width / shorter)
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
