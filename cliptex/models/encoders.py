"""The frozen encoders that probes evaluate: exported models, and two untrained baselines.

Shapes: B images, S image side, C feature width, h x w feature map.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.pos_embed import get_2d_sincos_pos_embed_from_grid
from PIL import Image
from torch.func import functional_call
from torch.nn.functional import normalize

from cliptex.config import Student
from cliptex.core.errors import CliptexError
from cliptex.core.files import sha256_json
from cliptex.core.seeds import seed_of
from cliptex.models.clip import CONFIG_FILE, build, exported_config, exported_preprocessing, load
from cliptex.models.dense_features import (
    dense_features,
    is_timm,
    last_tokens,
    layer_tokens,
    number_of_blocks,
    resized_positions,
    text_problem,
)

BASELINES = ("random", "position")
INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
BATCH_SIZE = 8  # on a CPU, a ViT-B-16 needs an eighth less time per image than in batches of 32
MOST_ROWS = 256
BYTES_PER_PIXEL = 512
"""Memory planned for a pixel of a frozen encoder's input, weights aside. A ViT-B-16 in fp32 allocated 160 on a CPU at
224 px and 235 at 448 px; with the features of four blocks 195 and 270."""


def _no_grad_if_frozen(method: Callable) -> Callable:
    """Decorate a method of `Encoder`: gradients are computed only if the encoder is unfrozen."""

    @wraps(method)
    def decorated(self: "Encoder", *args: Any, **options: Any) -> torch.Tensor:
        with torch.set_grad_enabled(self._trainable and torch.is_grad_enabled()):
            return method(self, *args, **options)

    return decorated


class Encoder:
    """An image encoder, frozen unless `unfrozen` is called.

    Attributes: `image_size`, side S of its square images; `mean` and `std` of each channel, for pixels in 0..1;
    `interpolation` for resizing images; `sha256` of the weight file, or of the weights if there is no file;
    `config_sha256` of the architecture.
    """

    def __init__(self, visual: torch.nn.Module, folder: Path, sha256: str):
        size = visual.image_size
        height, width = (size, size) if isinstance(size, int) else size
        if height != width:
            raise CliptexError(f"{folder / CONFIG_FILE}: probes need a square image_size, this is {height} x {width}")
        preprocess = exported_preprocessing(folder, visual)
        self.config_sha256 = sha256_json(exported_config(folder)["model_cfg"])
        self.image_size: int = height
        self.mean: tuple[float, ...] = tuple(preprocess.mean)
        self.std: tuple[float, ...] = tuple(preprocess.std)
        self.interpolation: str = preprocess.interpolation
        self.sha256 = sha256
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._trainable = False
        self._visual, self._project = _split_projection(visual.eval().requires_grad_(False).to(self.device))

    @property
    def is_frozen(self) -> bool:
        """Whether `unfrozen` has not been called."""
        return not self._trainable

    def input_size(self, size_px: int | tuple[int, int] | None) -> tuple[int, int]:
        """Height and width of the input for the option `size_px`; the encoder's own size for None."""
        size_px = size_px or self.image_size
        return (size_px, size_px) if isinstance(size_px, int) else tuple(size_px)

    def normalised(self, images_BHWC: np.ndarray) -> torch.Tensor:
        """uint8 images [B, S, S, 3] to normalised float32 [B, 3, S, S] on the encoder's device."""
        pixels = torch.from_numpy(images_BHWC).to(self.device).permute(0, 3, 1, 2).float() / 255
        mean = torch.tensor(self.mean, device=self.device).view(3, 1, 1)
        return (pixels - mean) / torch.tensor(self.std, device=self.device).view(3, 1, 1)

    @_no_grad_if_frozen
    def dense(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Dense features [B, C, h, w] of normalised images, as training uses them (`cliptex.models.dense_features`)."""
        return dense_features(self._visual, images_BCHW)

    def unfrozen(self) -> torch.nn.Module:
        """Unfreeze the network and return it; features now have gradients."""
        self._trainable = True
        return self._visual.requires_grad_(True)

    @cached_property
    def grid(self) -> int:
        """Side of the feature map at the encoder's own image size, cells."""
        return self.map_shape((self.image_size, self.image_size))[2]

    @torch.no_grad()
    def map_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """Channels, rows and columns of the dense features of images with this height and width.

        Raises CliptexError for a size that the encoder does not support.
        """
        return tuple(dense_features(self._visual, torch.zeros(1, 3, *size, device=self.device)).shape[1:])

    @_no_grad_if_frozen
    def tokens(self, images_BCHW: torch.Tensor, layers: Sequence[int] | str, norm: bool, cls: bool) -> torch.Tensor:
        """Tokens [B, h * w, L * C] of the L blocks `layers`, row by row; with `cls` the class token comes first.

        layers: see `block_numbers`. norm: whether to apply the encoder's final normalisation to each block.
        """
        out = layer_tokens(self._visual, images_BCHW, block_numbers(self._visual, layers), norm, cls)
        tokens = torch.cat(out["image_intermediates"], 1).flatten(2).transpose(1, 2)
        if not cls:
            return tokens
        if not (prefix := out.get("image_intermediates_prefix")):
            raise CliptexError("features.cls: this encoder has no class token; set it to false")
        return torch.cat([torch.cat([block[:, :1] for block in prefix], -1), tokens], 1)

    @_no_grad_if_frozen
    def projected(self, images_BCHW: torch.Tensor, kinds: Sequence[str]) -> dict[str, torch.Tensor]:
        """Patch tokens in the joint space of images and texts, unit float32 [B, D, h, w], by kind: the projection of
        the pooled feature applied to every token (`cliptex.models.dense_features.last_tokens`).

        Raises CliptexError for a tower whose projection is not for single tokens.
        """
        if problem := text_problem(self._visual):
            raise CliptexError(problem)
        maps = last_tokens(self._visual, images_BCHW, kinds)
        projected = {kind: self._project(tokens.movedim(1, -1)).float() for kind, tokens in maps.items()}
        return {kind: normalize(tokens, dim=-1).movedim(-1, 1) for kind, tokens in projected.items()}

    @_no_grad_if_frozen
    def pooled(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """The pooled feature [B, C] of the encoder, before the projection."""
        positions = resized_positions(self._visual, tuple(images_BCHW.shape[-2:]))
        if positions is None:
            return self._visual(images_BCHW)
        return functional_call(self._visual, {"positional_embedding": positions}, (images_BCHW,))

    @_no_grad_if_frozen
    def summary(self, images_BCHW: torch.Tensor, blocks: int) -> torch.Tensor:
        """Class tokens of the last `blocks` blocks after the final normalisation, and mean patch token of the last
        block: [B, (blocks + 1) * C]."""
        out = layer_tokens(self._visual, images_BCHW, blocks, class_tokens=True)
        if not (prefix := out.get("image_intermediates_prefix")):
            raise CliptexError("features.point: this encoder has no class token; choose pooled or embedding")
        return torch.cat([*(block[:, 0] for block in prefix), out["image_intermediates"][-1].mean((2, 3))], 1)

    @_no_grad_if_frozen
    def embedding(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """The embedding [B, D], not normalised."""
        return self._project(self.pooled(images_BCHW))


class PositionEncoder(Encoder):
    """Baseline that encodes only position: a fixed 2-D sine-cosine code, the same for every image and block.

    Grid and width are those of the encoder `visual`. Pooled feature, class token and embedding are the mean of the
    code, a constant.
    """

    def __init__(self, visual: torch.nn.Module, folder: Path):
        super().__init__(visual, folder, "")
        own = self.map_shape((self.image_size, self.image_size))
        if own[0] % 4:
            raise CliptexError(f"{folder / CONFIG_FILE}: the position baseline needs an encoder width divisible by 4")
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


def batch_size(size: tuple[int, int], device: torch.device) -> int:
    """Images (height, width) per batch of a frozen encoder: a multiple of 8 that fits into a quarter of a GPU's memory,
    at most 256; 8 on a CPU. Depends on the device, not on what else is in its memory."""
    if device.type != "cuda":
        return BATCH_SIZE
    rows = torch.cuda.get_device_properties(device).total_memory // (4 * BYTES_PER_PIXEL * size[0] * size[1])
    return max(BATCH_SIZE, min(rows // 8 * 8, MOST_ROWS))


def _position_code(channels: int, rows: int, columns: int) -> np.ndarray:
    """float32 [channels, rows, columns]; for a square grid, open_clip's `get_2d_sincos_pos_embed`."""
    places = np.stack(np.meshgrid(np.arange(columns, dtype=np.float32), np.arange(rows, dtype=np.float32)))
    code = get_2d_sincos_pos_embed_from_grid(channels, places.reshape(2, 1, rows, columns))
    return code.astype(np.float32).reshape(rows, columns, channels).transpose(2, 0, 1).copy()


def block_numbers(visual: torch.nn.Module, layers: Sequence[int] | str) -> list[int]:
    """Block numbers, from 0. layers: numbers (negative: from the end), "last", or "quarters" (after each quarter of the
    blocks). Raises CliptexError for a number out of range."""
    count = number_of_blocks(visual)
    if layers == "last":
        return [count - 1]
    if layers == "quarters":
        return [count * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]
    if bad := [layer for layer in layers if not -count <= layer < count]:
        raise CliptexError(f"features.layers: block {bad[0]} is out of range; the encoder has {count} blocks")
    return [layer % count for layer in layers]


def load_encoder(kind_or_path: str | Path, *, reference: Path | None = None, seed: int = 0) -> Encoder:
    """Load the encoder of an exported folder, or make a baseline.

    Baselines ("random", "position") use the architecture and preprocessing of the exported folder `reference`; weights
    of "random" are drawn from `seed`. Raises CliptexError if files are missing or do not match.
    """
    if kind_or_path not in BASELINES:
        folder = Path(kind_or_path)
        model = load(folder)
        return Encoder(model.visual, folder, model.weights_sha256)
    visual = untrained(reference, seed).visual
    if kind_or_path == "position":
        return PositionEncoder(visual, reference)
    return Encoder(visual, reference, sha256_weights(visual))


def load_encoders(models: Sequence[str], seed: int, models_dir: Path) -> dict[str, Encoder]:
    """The encoders of models and baselines. Raises CliptexError if their image sizes or interpolations differ."""
    reference = reference_folder(models, seed, models_dir)
    encoders = {}
    for model in models:
        folder = model if model in BASELINES else Path(models_dir) / model / f"seed{seed}"
        encoders[model] = load_encoder(folder, reference=reference, seed=seed_of("random encoder", seed))
    first = encoders[models[0]]
    for model, encoder in encoders.items():
        if (encoder.image_size, encoder.interpolation) != (first.image_size, first.interpolation):
            raise CliptexError(
                f"models.{model}: its image size differs from {models[0]}'s; probe them in separate jobs"
            )
    return encoders


def reference_folder(models: Sequence[str], seed: int, models_dir: Path) -> Path:
    """The exported folder whose architecture the baselines use; all models of a config have the same architecture."""
    for model in models:
        if model not in BASELINES:
            return Path(models_dir) / model / f"seed{seed}"
    config_files = sorted(Path(models_dir).glob(f"*/seed{seed}/{CONFIG_FILE}"))
    if not config_files:
        raise CliptexError(f"{models_dir}: no exported model with seed {seed}; train one first")
    return config_files[0].parent


def untrained(reference: Path, seed: int) -> torch.nn.Module:
    """An open_clip model with the architecture of the exported folder `reference` and weights drawn from `seed`."""
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
    """Remove the final projection from `visual`; return both."""
    if is_timm(visual):
        project, visual.head = visual.head, torch.nn.Identity()
    else:
        project, visual.proj = partial(torch.matmul, other=visual.proj), None
    return visual, project


def squash(image: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    """Resize uint8 [H, W, 3] to [size, size, 3] without keeping the aspect ratio."""
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), INTERPOLATION[interpolation]))


def centre_crop(image: np.ndarray, size: int, interpolation: str, resize: int | None = None) -> np.ndarray:
    """Resize the shorter side of uint8 [H, W, 3] to `resize` (default: `size`) and crop the centre to [size, size, 3],
    as in CLIP's preprocessing."""
    height, width = image.shape[:2]
    resize = resize or size
    if (height, width) == (size, size) == (resize, resize):
        return image
    shorter = min(height, width)
    # rounding of torchvision's Resize and CenterCrop
    height, width = int(resize * height / shorter), int(resize * width / shorter)
    resized = np.asarray(Image.fromarray(image).resize((width, height), INTERPOLATION[interpolation]))
    top, left = round((height - size) / 2), round((width - size) / 2)
    return resized[top : top + size, left : left + size]


def in_order(samples: Sequence, read: Callable) -> Iterator:
    """Yield `read(sample)` of every sample in order, prefetched by as many threads as torch computes with."""
    threads = torch.get_num_threads()
    if threads == 1:
        # by index: when iterating over a Sequence, an IndexError raised by a reader would end the loop silently
        for index in range(len(samples)):
            yield read(samples[index])
        return
    ahead = 256
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(samples), ahead):
            yield from pool.map(lambda index: read(samples[index]), range(start, min(start + ahead, len(samples))))
