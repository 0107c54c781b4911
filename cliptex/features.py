"""What an image encoder's features are: one definition for training and for the probes.

Dense features are the patch tokens of the last block after the encoder's final normalisation, as a map. Both an
open_clip vision transformer and a timm trunk inside open_clip are accepted.
Shapes: B images, C encoder width, h x w the patch grid, D the embedding both towers share.
"""

import torch

DENSE = "last block's patch tokens after the final normalisation"


def dense_features(visual: torch.nn.Module, images_BCHW: torch.Tensor) -> torch.Tensor:
    """Dense features [B, C, h, w] of normalised images [B, 3, H, W]; gradients flow.

    visual: `model.visual` of an open_clip model. H and W are the encoder's own image size.
    """
    out = visual.forward_intermediates(images_BCHW, indices=1, normalize_intermediates=True, intermediates_only=True)
    return out["image_intermediates"][0]


def features_and_embedding(visual: torch.nn.Module, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Dense features [B, C, h, w] and the image embedding [B, D] (not normalised) from one pass; gradients flow.

    The embedding equals `visual(images_BCHW)`, i.e. `model.encode_image` without `normalize`.
    """
    out = visual.forward_intermediates(images_BCHW, indices=1, normalize_intermediates=True)
    return out["image_intermediates"][0], out["image_features"]


def width(visual: torch.nn.Module) -> int:
    """Channels C of the encoder's dense features."""
    return visual.ln_post.normalized_shape[0] if hasattr(visual, "ln_post") else visual.trunk.num_features
