"""Both towers of an open_clip model as one module: dense features, other crop sizes, shared patch dropout.

Shapes  B images, S image side, L tokens, C encoder width, h x w the patch grid, D embedding.
"""

import torch
from open_clip.transformer import PatchDropout
from torch import nn
from torch.func import functional_call

from cliptex.models.dense_features import features_and_embedding, resized_positions

TowerOutputs = tuple[torch.Tensor | None, torch.Tensor, torch.Tensor, torch.Tensor]
"""Dense features [B, C, h, w] or None, image and text embeddings [B, D], logit scale."""


class ImageTower(nn.Module):
    """The image encoder. dense: also return the dense features."""

    def __init__(self, visual: nn.Module, dense: bool):
        super().__init__()
        self.visual, self.dense = visual, dense

    def forward(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        return features_and_embedding(self.visual, images_BCHW) if self.dense else (None, self.visual(images_BCHW))


class Towers(nn.Module):
    """Image and text tower in one forward, so that they are compiled, and wrapped in DDP, together.

    Images may have any size that is a multiple of the patch size: position embeddings are resized.
    """

    def __init__(self, model: nn.Module, image: ImageTower):
        super().__init__()
        self.model, self.image = model, image

    def forward(self, images_BCHW: torch.Tensor, tokens_BL: torch.Tensor) -> TowerOutputs:
        resized = resized_positions(self.model.visual, tuple(images_BCHW.shape[-2:]))
        if resized is None:
            dense, image = self.image(images_BCHW)
        else:
            dense, image = functional_call(self.image, {"visual.positional_embedding": resized}, (images_BCHW,))
        return dense, image, self.model.encode_text(tokens_BL), self.model.logit_scale.exp()


class SharedPatchDropout(PatchDropout):
    """open_clip's patch dropout with one mask for the global batch, so that splitting the batch changes nothing.

    Call `draw` once per step, and `set_rows` before each forward pass.
    """

    def __init__(self, prob: float):
        super().__init__(prob)
        self._global_kept = self._kept = torch.empty(0, 0)

    @property
    def global_rows(self) -> int:
        """Rows of the global batch."""
        return len(self._global_kept)

    def draw(self, rows: int, patches: int) -> None:
        """Draw the patches to keep, for `rows` images of `patches` patches."""
        self._global_kept = torch.randn(rows, patches).topk(max(1, int(patches * (1 - self.prob))), dim=-1).indices

    def set_rows(self, rows: slice) -> None:
        """Select the rows of the global batch that the next forward pass gets."""
        # a tensor: torch.compile would specialise on each value of a stored slice
        self._kept = self._global_kept[rows]

    def forward(self, tokens_BLC: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return tokens_BLC
        class_token, patches = tokens_BLC[:, :1], tokens_BLC[:, 1:]
        rows = torch.arange(len(patches), device=patches.device)[:, None]
        return torch.cat((class_token, patches[rows, self._kept.to(patches.device)]), dim=1)
