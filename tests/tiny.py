"""Small models that tests share: a CLIP, two DPTs, and the base of experts without weights."""

from cliptex.config import Student
from cliptex.experts.base import Expert

TINY = Student(
    architecture={
        "embed_dim": 16,
        "vision_cfg": {"image_size": 48, "patch_size": 12, "width": 32, "layers": 1, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
)
"""A CLIP model of one block per tower."""

DPT = {"image_size": 64, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
DPT |= {"backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 16, 16, 16], "fusion_hidden_size": 16}
"""Arguments of DPTConfig: a ViT backbone, as in Intel/dpt-large."""

BIT = {"model_type": "bit", "embedding_size": 8, "depths": [1, 1, 1], "num_groups": 4, "global_padding": "SAME"}
BIT |= {"embedding_dynamic_padding": True, "out_features": ["stage1", "stage2", "stage3"]}


def hybrid_dpt(widths: list[int], layer_type: str = "preactivation", **options) -> dict:
    """Arguments of DPTConfig: a BiT of these widths before the ViT, as in Intel/dpt-hybrid-midas."""
    bit = BIT | {"hidden_sizes": widths, "layer_type": layer_type}
    options = DPT | {"is_hybrid": True, "backbone_config": bit} | options
    side = options["image_size"] // 16
    return options | {"backbone_featmap_shape": [1, widths[-1], side, side]}


class WeightlessExpert(Expert):
    """Base of experts that compute labels from the pixels."""

    trainable = False

    def load(self, weights):
        pass
