"""Patch tokens of images as maps, and the options of tasks that compare them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from cliptex.config import Positive, Section
from cliptex.config.base import EncoderPrecision, without

if TYPE_CHECKING:
    import numpy as np
    import torch

    from cliptex.models.encoders import Encoder


class PatchFeatures(Section):
    """The patch tokens that are compared."""

    layers: Literal["last", "quarters"] | Annotated[tuple[int, ...], Field(min_length=1)] = "last"
    """Blocks whose tokens are concatenated: `last`, `quarters` (after each quarter of the blocks), or their indices,
    from 0, or negative from the end."""
    norm: bool = True
    """Whether the encoder's final normalisation is applied to each."""
    encoder_precision: EncoderPrecision = "fp32"
    """Precision in which the encoder computes them. `auto`: bf16 on GPUs that support it and on processors with AMX."""

    @model_serializer(mode="wrap")
    def _without_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without(handler(self), "encoder_precision", "fp32")


class PatchTask(Section):
    """Options of tasks that compare patch tokens."""

    features: PatchFeatures = PatchFeatures()
    """The patch tokens."""


class SquashedInput(Section):
    """The encoder's input: the whole image, without keeping its aspect ratio."""

    size_px: Positive | tuple[Positive, Positive] | None = None
    """Side, or height and width, a multiple of the patch size; position embeddings are interpolated if needed. null:
    the encoder's own input size."""


def patch_maps(
    encoder: Encoder, images: Sequence[np.ndarray], size: tuple[int, int], options: PatchFeatures, name: str
) -> torch.Tensor:
    """Patch tokens float32 [B, C, h, w] of images, each resized to height and width `size`. name: of the model, for
    messages. Raises CliptexError for a size that the encoder does not support, and for features that are not finite."""
    import numpy as np
    import torch

    from cliptex.core.finite import require_finite
    from cliptex.evaluation.probes.views import ImageView, crop_view
    from cliptex.experts.precision import frozen_precision, mixed_precision
    from cliptex.models.encoders import batch_size

    rows, columns = encoder.map_shape(size)[1:]
    views = [crop_view(image, ImageView(0, 0, *image.shape[:2]), size, encoder.interpolation) for image in images]
    count, maps = batch_size(size, encoder.device), []
    for start in range(0, len(views), count):
        pixels = encoder.normalised(np.stack(views[start : start + count]))
        with mixed_precision(frozen_precision(options.encoder_precision, size)):
            tokens = encoder.tokens(pixels, options.layers, options.norm, cls=False)
        maps.append(tokens.float().transpose(1, 2).reshape(len(tokens), -1, rows, columns))
    out = torch.cat(maps)
    require_finite(out, f"{name}: its patch tokens", "check its weights")
    return out


def pair_maps(
    known: Mapping[str, torch.Tensor],
    pairs: Sequence[Mapping[str, Any]],
    encoder: Encoder,
    size: tuple[int, int],
    options: PatchFeatures,
    name: str,
) -> dict[str, torch.Tensor]:
    """The maps [C, h, w] of all images of pairs, by name; the other arguments as of `patch_maps`.

    known: maps by name, of pairs before, since an image may be in several. pairs: samples with `image_names`, `image`
    and `target`.
    """
    images = {}
    for pair in pairs:
        images |= dict(zip(pair["image_names"], (pair["image"], pair["target"]), strict=True))
    maps = {image: known[image] for image in images if image in known}
    if new := [image for image in images if image not in known]:
        computed = patch_maps(encoder, [images[image] for image in new], size, options, name)
        maps |= dict(zip(new, computed, strict=True))
    return maps


def sampled(features: torch.Tensor, shares: np.ndarray) -> torch.Tensor:
    """The features [C, K] of a map [C, h, w] at places [K, 2], columns and rows as shares of width and height;
    interpolated bilinearly between the centres of cells."""
    import torch
    import torch.nn.functional as F

    grid = torch.from_numpy(2 * shares.astype("float32") - 1).to(features.device)
    return F.grid_sample(features[None], grid[None, None], padding_mode="border", align_corners=False)[0, :, 0]


def described_features(options: PatchFeatures, size: tuple[int, int]) -> str:
    """The features in words, for the key `protocol` of a row."""
    from cliptex.experts.precision import frozen_precision

    layers = options.layers if isinstance(options.layers, str) else f"blocks {', '.join(map(str, options.layers))}"
    precision = frozen_precision(options.encoder_precision, size)
    computed = "" if precision == "fp32" else f", computed in {precision}"
    return (
        f"patch tokens ({layers}{'' if options.norm else ', not normalised'}{computed}) at {size[0]} x {size[1]} pixels"
    )
