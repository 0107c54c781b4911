"""Features of an image encoder, with one definition for training and the probes.

Dense features are the patch tokens of the last block after the encoder's final normalisation, as a map. open_clip's
vision transformers and timm trunks inside open_clip are supported.
Shapes: B images, C encoder width, h x w the patch grid, D width of the joint embedding.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import nn
from torch.func import functional_call

from cliptex.core.errors import CliptexError


def dense_features(visual: nn.Module, images_BCHW: torch.Tensor) -> torch.Tensor:
    """Dense features [B, C, h, w] of normalised images [B, 3, H, W]; differentiable.

    visual: `model.visual` of an open_clip model. H and W: as in `layer_features`.
    """
    return layer_features(visual, images_BCHW, 1)[0]


def layer_features(
    visual: nn.Module, images_BCHW: torch.Tensor, indices: int | Sequence[int], normalised: bool = True
) -> list[torch.Tensor]:
    """Patch tokens after each of the blocks `indices` as maps [B, C, h, w]; arguments as in `layer_tokens`."""
    return layer_tokens(visual, images_BCHW, indices, normalised)["image_intermediates"]


def layer_tokens(
    visual: nn.Module,
    images_BCHW: torch.Tensor,
    indices: int | Sequence[int],
    normalised: bool = True,
    class_tokens: bool = False,
) -> dict[str, list[torch.Tensor]]:
    """`image_intermediates`: patch tokens after each of the blocks `indices` as maps [B, C, h, w]; differentiable.

    With class_tokens also `image_intermediates_prefix`: the class token (and further tokens before the patches, if any)
    [B, n, C] of each block; absent if the encoder has none. indices: number of last blocks, or list of block numbers
    from 0 (negative: from the end). normalised: whether to apply the encoder's final normalisation to each block. H and
    W must be the encoder's image size; open_clip's own vision transformers also take other multiples of the patch size,
    with resized position embedding. Raises CliptexError for a size that the encoder does not support.
    """
    indices = indices if isinstance(indices, int) else list(indices)
    # timm's towers without such tokens fail, each in its own way, if asked for them
    class_tokens = class_tokens and (not is_timm(visual) or getattr(visual.trunk, "num_prefix_tokens", 0) > 0)
    options = {"indices": indices, "normalize_intermediates": normalised, "intermediates_only": True}
    options |= {"stop_early": True, "output_extra_tokens": class_tokens}
    resized = resized_positions(visual, tuple(images_BCHW.shape[-2:]))
    if resized is None:
        return visual.forward_intermediates(images_BCHW, **options)
    replaced = {"visual.positional_embedding": resized}
    return functional_call(_Intermediates(visual), replaced, (images_BCHW,), options)


def last_tokens(visual: nn.Module, images_BCHW: torch.Tensor, kinds: Sequence[str]) -> dict[str, torch.Tensor]:
    """Patch tokens [B, C, h, w] of the last block after the final normalisation, by kind, in one pass.

    kinds: `last`, as `dense_features`; `value`, in which the last block's attention is replaced by its value path, so
    that every token attends to itself only: with v the value and o the output projection of its attention,
    x + o(v(ln_1(x))), then the block's MLP as usual (MaskCLIP, Zhou et al. 2022, as its released code has it for vision
    transformers). Raises CliptexError for `value` of a tower that is not open_clip's own vision transformer.
    """
    if "value" not in kinds:
        return {"last": dense_features(visual, images_BCHW)}
    if is_timm(visual):
        raise CliptexError(f"{type(visual).__name__}: {NO_VALUES}")
    before: list[torch.Tensor] = []
    block = visual.transformer.resblocks[-1]
    handle = block.register_forward_pre_hook(lambda module, inputs: before.append(inputs[0]))
    try:
        last = dense_features(visual, images_BCHW)
    finally:
        handle.remove()
    tokens_BTC = before[0] if visual.transformer.batch_first else before[0].transpose(0, 1)
    width = tokens_BTC.shape[-1]
    weight, bias = block.attn.in_proj_weight[-width:], block.attn.in_proj_bias[-width:]
    values_BTC = block.attn.out_proj(F.linear(block.ln_1(tokens_BTC), weight, bias))
    tokens_BTC = tokens_BTC + block.ls_1(values_BTC)
    tokens_BTC = visual.ln_post(tokens_BTC + block.ls_2(block.mlp(block.ln_2(tokens_BTC))))
    grid = last.shape[-2:]
    value = tokens_BTC[:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)
    return {kind: {"last": last, "value": value}[kind] for kind in kinds}


NO_VALUES = "its patch tokens cannot be compared with text; use one of open_clip's own vision transformers"


def text_problem(visual: nn.Module) -> str | None:
    """Why the projection to the joint space cannot be applied to single patch tokens; None if it can."""
    if is_timm(visual):
        return f"timm's towers pool in other ways than their projection expects of tokens: {NO_VALUES}"
    if getattr(visual, "attn_pool", None) is not None:
        return f"this tower pools by attention before its projection: {NO_VALUES}"
    return None


class _Intermediates(nn.Module):
    """Wraps `forward_intermediates` as `forward`, since `functional_call` calls the latter."""

    def __init__(self, visual: nn.Module):
        super().__init__()
        self.visual = visual

    def forward(self, images_BCHW: torch.Tensor, **options: Any) -> dict[str, Any]:
        return self.visual.forward_intermediates(images_BCHW, **options)


@torch.compiler.disable  # the backward pass of this resize cannot be compiled
def resized_positions(visual: nn.Module, size: tuple[int, int]) -> torch.Tensor | None:
    """The position embedding [1 + n, C] resized for images of `size` (height, width); None for the encoder's own size.

    Bicubic with antialiasing, as open_clip does when it loads weights for another size; differentiable. Raises
    CliptexError for an encoder without a position embedding, and for a size not divisible by the patch size.
    """
    own = _pair(visual.image_size)
    if size == own:
        return None
    if not isinstance(getattr(visual, "positional_embedding", None), nn.Parameter):
        raise CliptexError(
            f"{type(visual).__name__}: takes only images of {own[0]} x {own[1]}, not {size[0]} x {size[1]};"
            " use one of open_clip's own vision transformers for other sizes"
        )
    patch = _pair(visual.patch_size)
    if size[0] % patch[0] or size[1] % patch[1]:
        raise CliptexError(f"image size {size[0]} x {size[1]} is not a multiple of the encoder's patch size {patch[0]}")
    first, grid = visual.positional_embedding[:1], visual.positional_embedding[1:]
    rows, columns = own[0] // patch[0], own[1] // patch[1]
    grid = grid.reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
    shape = (size[0] // patch[0], size[1] // patch[1])
    grid = F.interpolate(grid, size=shape, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([first, grid.permute(0, 2, 3, 1).flatten(0, 2)])


def number_of_blocks(visual: nn.Module) -> int:
    """Number of blocks that `layer_features` can select from."""
    return len(visual.trunk.feature_info) if is_timm(visual) else len(visual.transformer.resblocks)


def is_timm(visual: nn.Module) -> bool:
    """Whether an image tower is timm's, not open_clip's own vision transformer. Raises CliptexError for others."""
    if not isinstance(visual, TimmModel | VisionTransformer):
        raise CliptexError(
            "student.architecture: training with tasks and probes support open_clip's vision transformers and timm"
            f" towers, not {type(visual).__name__}; choose one of those"
        )
    return isinstance(visual, TimmModel)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def features_and_embedding(visual: nn.Module, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Dense features [B, C, h, w] and the image embedding [B, D] (not normalised) in one pass; differentiable.

    The embedding equals `visual(images_BCHW)`, i.e. `model.encode_image` without `normalize`.
    """
    out = visual.forward_intermediates(images_BCHW, indices=1, normalize_intermediates=True)
    return out["image_intermediates"][0], out["image_features"]


def width(visual: nn.Module) -> int:
    """Channels C of the encoder's dense features."""
    # not `num_features`, which is that after a last convolution where there is one (FastViT)
    return visual.trunk.feature_info[-1]["num_chs"] if is_timm(visual) else visual.ln_post.normalized_shape[0]
