"""Inference with a trained model: embeddings, dense features and, if it still has its heads, dense predictions.

Reads   a folder written by training or `cliptex export`, in open_clip's layout, with or without heads.safetensors.
Shapes: N images or texts, D width of the joint embedding, C encoder width, h x w patch grid, S side of the encoder's
        images.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image

from cliptex.core.errors import CliptexError
from cliptex.data.images import BadImage, decode_image, upright_rgb
from cliptex.models.clip import HEADS_FILE, exported_preprocessing, exported_tokenizer, load, require_recorded
from cliptex.models.dense_features import dense_features
from cliptex.models.encoders import squash
from cliptex.models.heads import DenseHeads, load_heads
from cliptex.tasks.base import Task

ImageInput = str | Path | Image.Image | np.ndarray
"""A file, a Pillow image, or uint8 RGB [H, W, 3]."""


class TrainedModel:
    """A model in evaluation mode, on the GPU if there is one.

    Attributes: `tasks`, label store -> its task, empty for a model without heads; `image_size`, side S of the encoder's
    images. Raises CliptexError if files are missing or do not match.
    """

    def __init__(self, folder: Path, device: str | None = None):
        self.folder = Path(folder)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = load(self.folder).to(self.device).requires_grad_(False)
        self.preprocess_cfg = exported_preprocessing(self.folder, self.model.visual)
        self.preprocess = open_clip.transform.image_transform_v2(self.preprocess_cfg, is_train=False)
        self.tokenizer = exported_tokenizer(self.folder)
        size = self.preprocess_cfg.size
        self.image_size: int = size if isinstance(size, int) else size[0]
        self.tasks: dict[str, Task] = {}
        self._heads: DenseHeads | None = None
        if (self.folder / HEADS_FILE).exists():
            require_recorded(self.folder / HEADS_FILE)
            heads, self.tasks = load_heads(self.folder / HEADS_FILE)
            self._heads = heads.to(self.device).requires_grad_(False)

    @torch.inference_mode()
    def encode_image(self, images: Sequence[ImageInput], normalize: bool = True) -> torch.Tensor:
        """Embeddings float32 [N, D], of unit length if `normalize`; images are preprocessed as the model requires."""
        batch = torch.stack([self.preprocess(Image.fromarray(pixels)) for pixels in _read(images)])
        return self.model.encode_image(batch.to(self.device), normalize=normalize)

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str], normalize: bool = True) -> torch.Tensor:
        """Embeddings float32 [N, D], of unit length if `normalize`."""
        if isinstance(texts, str):  # its characters would be embedded
            raise CliptexError(f"encode_text expects a list of texts; write [{texts!r}]")
        return self.model.encode_text(self.tokenizer(list(texts)).to(self.device), normalize=normalize)

    @torch.inference_mode()
    def dense_features(self, images: Sequence[ImageInput]) -> torch.Tensor:
        """Dense features float32 [N, C, h, w] of whole images, squashed to S x S."""
        return dense_features(self.model.visual, self._whole(images))

    @torch.inference_mode()
    def predict(self, image: ImageInput) -> dict[str, np.ndarray]:
        """Label store -> label predicted by its head, at the image's own height and width.

        Segmentation is uint8 [H, W], uint16 above 255 classes; depth float32 [H, W], relative inverse depth; normals
        float32 [H, W, 4]. The head's output is resized (bilinear) as in training. Raises CliptexError for a model
        without heads.
        """
        if not self.tasks:
            raise CliptexError(
                f"{self.folder}: the model has no heads for dense predictions; use one that was trained with tasks and"
                f" still has its {HEADS_FILE}"
            )
        pixels = read_image(image)
        outputs = self._heads(dense_features(self.model.visual, self._whole([pixels])))
        return {
            store: self.tasks[store].predicted(
                F.interpolate(output.float(), size=pixels.shape[:2], mode="bilinear")[0].cpu().numpy()
            )
            for store, output in outputs.items()
        }

    def _whole(self, images: Sequence[ImageInput]) -> torch.Tensor:
        """Normalised [N, 3, S, S] of images squashed to a square."""
        config = self.preprocess_cfg
        squashed = [squash(pixels, self.image_size, config.interpolation) for pixels in _read(images)]
        pixels = torch.from_numpy(np.stack(squashed)).to(self.device).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(value, device=self.device).view(3, 1, 1) for value in (config.mean, config.std))
        return (pixels - mean) / std


def _read(images: Sequence[ImageInput]) -> list[np.ndarray]:
    if isinstance(images, str | Path | Image.Image):
        raise CliptexError(f"expected a list of images; write [{images!r}]")
    return [read_image(image) for image in images]


def read_image(image: ImageInput) -> np.ndarray:
    """uint8 RGB [H, W, 3]. Raises CliptexError, naming the file, if it is missing or not a usable image."""
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise CliptexError(f"an image is uint8 RGB [H, W, 3], got {image.dtype} {list(image.shape)}; convert it")
        return image
    if isinstance(image, Image.Image):
        return np.asarray(upright_rgb(image))
    try:
        return decode_image(Path(image).read_bytes())
    except BadImage as error:
        raise CliptexError(f"{image}: not a usable image ({error}); give a JPEG, PNG, WebP, BMP or GIF") from error
    except OSError as error:
        raise CliptexError(f"{image}: cannot be read ({error.strerror}); give the path of an image") from error
