"""Registers the image encoder of a CLIP as the mmsegmentation backbone `CliptexBackbone`.

In an mmsegmentation config (a complete one is in examples/mmseg):

    custom_imports = dict(imports=["cliptex.models.mmseg_backbone"])
    model = dict(backbone=dict(type="CliptexBackbone", model="results/models/cliptex/seed0"), ...)

Importing this module also makes mmsegmentation importable without compiled mmcv (`cliptex.models.mmcv_ops`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch

from cliptex.config import Student
from cliptex.core.errors import CliptexError
from cliptex.models import clip as student
from cliptex.models import mmcv_ops
from cliptex.models.dense_features import layer_features, number_of_blocks, width

mmcv_ops.import_heads()

from mmengine.model import BaseModule  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402


@MODELS.register_module()
class CliptexBackbone(BaseModule):
    """The image encoder of an exported folder, or of any open_clip architecture.

    model: an exported folder (results/models/cliptex/seed0), or the name of an open_clip architecture. pretrained: for
    a name, the tag or file of its weights, none by default. out_indices: blocks whose maps are returned, from 0, or
    from the end if negative. normalised: whether to apply the encoder's final normalisation to each map, as in this
    package's training and probes. frozen: the encoder is not trained and stays in evaluation mode.
    checkpoint_activations: recompute activations in the backward pass, to save memory.

    Attributes: `channels` of each map; `mean` and `std` of the weights' preprocessing, times 255, as
    `SegDataPreProcessor` expects.
    """

    def __init__(
        self,
        model: str,
        pretrained: str | None = None,
        out_indices: Sequence[int] = (-1,),
        normalised: bool = True,
        frozen: bool = False,
        checkpoint_activations: bool = False,
        init_cfg: dict[str, Any] | None = None,
    ):
        super().__init__(init_cfg)
        network = _load(model, pretrained)
        preprocessing = student.preprocessing(network)
        self.visual = network.visual
        # unused here, and parameters without gradients stop mmengine's distributed training
        for name in ("proj", "head"):
            if getattr(self.visual, name, None) is not None:
                setattr(self.visual, name, None)
        blocks = number_of_blocks(self.visual)
        if bad := [index for index in out_indices if not -blocks <= index < blocks]:
            raise CliptexError(f"out_indices: block {bad[0]} is out of range; {model} has {blocks} blocks")
        self.out_indices = sorted(index % blocks for index in out_indices)
        self.normalised, self.frozen = normalised, frozen
        self.channels = width(self.visual)
        self.mean = [255 * value for value in preprocessing["mean"]]
        self.std = [255 * value for value in preprocessing["std"]]
        if checkpoint_activations:
            self.visual.set_grad_checkpointing(True)
        if frozen:
            self.visual.requires_grad_(False)
        self.train(self.training)

    def init_weights(self) -> None:
        """Do nothing unless `init_cfg` is given, since the weights are loaded already."""
        if self.init_cfg:
            super().init_weights()

    def forward(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Maps [B, C, H / patch, W / patch] of the blocks `out_indices`, in their order.

        H and W may be any multiples of the patch size: the position embedding is resized, see `resized_positions`.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return tuple(layer_features(self.visual, images_BCHW, self.out_indices, self.normalised))

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen:
            self.visual.eval()
        return self


def _load(model: str, pretrained: str | None) -> torch.nn.Module:
    if (Path(model) / student.CONFIG_FILE).exists():
        return student.load(Path(model))
    if "/" in model:
        raise CliptexError(f"model: {Path(model) / student.CONFIG_FILE}: no such file; train that model first")
    return student.build(Student(architecture=model, pretrained=pretrained), seed=0)
