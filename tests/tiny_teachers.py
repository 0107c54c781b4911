"""Tiny networks of transformers' dense families with random weights, saved as their publishers save them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    BeitConfig,
    DepthAnythingConfig,
    DepthProConfig,
    DetrConfig,
    Dinov2Config,
    DPTConfig,
    EomtConfig,
    GLPNConfig,
    Mask2FormerConfig,
    MaskFormerConfig,
    OneFormerConfig,
    PreTrainedConfig,
    ResNetConfig,
    RfDetrConfig,
    SegformerConfig,
    SwinConfig,
    Tipsv2DptConfig,
    UperNetConfig,
    ZoeDepthConfig,
)

NAMES = {0: "sky", 1: "road", 2: "tree", 3: "car"}
SQUARE = {"height": 56, "width": 56}
SHORT = {"shortest_edge": 48, "longest_edge": 96}
PYRAMID = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 8, 8, 8],
    "num_attention_heads": [1, 1, 1, 1],
    "mlp_ratios": [1, 1, 1, 1],
    "decoder_hidden_size": 8,
}


def _dinov2(**more: Any) -> Dinov2Config:
    return Dinov2Config(
        hidden_size=12,
        num_hidden_layers=4,
        num_attention_heads=2,
        mlp_ratio=1,
        image_size=56,
        patch_size=14,
        **({"out_indices": [1, 2, 3, 4], "reshape_hidden_states": False} | more),
    )


def _swin() -> SwinConfig:
    stages = [f"stage{number}" for number in (1, 2, 3, 4)]
    return SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=4, out_features=stages
    )


def _resnet() -> ResNetConfig:
    stages = [f"stage{number}" for number in (1, 2, 3, 4)]
    return ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_features=stages)


def _depth_anything(kind: str) -> PreTrainedConfig:
    return DepthAnythingConfig(
        backbone_config=_dinov2(),
        reassemble_hidden_size=12,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=4,
        depth_estimation_type=kind,
        max_depth=20 if kind == "metric" else 1,
    )


def _dpt(**more: Any) -> PreTrainedConfig:
    return DPTConfig(
        hidden_size=12,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=12,
        image_size=64,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        **more,
    )


def _zoedepth() -> PreTrainedConfig:
    backbone = BeitConfig(
        image_size=64,
        hidden_size=12,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=12,
        use_relative_position_bias=True,
        reshape_hidden_states=False,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return ZoeDepthConfig(
        backbone_config=backbone,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        bottleneck_features=8,
        num_relative_features=8,
        bin_embedding_dim=8,
        num_attractors=[4, 2, 2, 1],
        bin_configurations=[{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"}],
    )


def _depth_pro() -> PreTrainedConfig:
    vit = {"hidden_size": 12, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_ratio": 1}
    vit |= {"model_type": "dinov2", "image_size": 16, "patch_size": 4, "use_swiglu_ffn": False}
    return DepthProConfig(
        fusion_hidden_size=8,
        patch_size=16,
        intermediate_hook_ids=[3, 1],
        intermediate_feature_dims=[8, 8],
        scaled_images_ratios=[0.25, 0.5, 1],
        scaled_images_overlap_ratios=[0.0, 0.5, 0.25],
        scaled_images_feature_dims=[8, 8, 8],
        use_fov_model=True,
        image_model_config=vit,
        patch_model_config=vit,
        fov_model_config=vit,
    )


def _universal(kind: type[PreTrainedConfig], **more: Any) -> PreTrainedConfig:
    return kind(backbone_config=_swin(), num_queries=6, id2label=NAMES, **more)


def _mask2former() -> PreTrainedConfig:
    sizes = dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim"), 32)
    sizes |= {"encoder_feedforward_dim": 16, "dim_feedforward": 16, "num_attention_heads": 2}
    return _universal(Mask2FormerConfig, encoder_layers=1, decoder_layers=2, **sizes)


def _maskformer() -> PreTrainedConfig:
    decoder = DetrConfig(
        d_model=16,
        num_queries=6,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
    )
    return MaskFormerConfig(
        backbone_config=_swin(), decoder_config=decoder, fpn_feature_size=32, mask_feature_size=16, id2label=NAMES
    )


def _oneformer() -> PreTrainedConfig:
    sizes = dict.fromkeys(("conv_dim", "mask_dim", "hidden_dim", "encoder_feedforward_dim", "dim_feedforward"), 32)
    sizes |= {"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "query_dec_layers": 1}
    return _universal(OneFormerConfig, norm="GN", text_encoder_width=16, text_encoder_num_layers=1, **sizes)


def _eomt() -> PreTrainedConfig:
    return EomtConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=1,
        image_size=64,
        patch_size=16,
        num_blocks=1,
        num_queries=6,
        id2label=NAMES,
    )


def _detr() -> PreTrainedConfig:
    return DetrConfig(
        use_timm_backbone=False,
        backbone_config=_resnet(),
        d_model=16,
        num_queries=6,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        id2label=NAMES,
    )


def _rf_detr() -> PreTrainedConfig:
    backbone = {"model_type": "rf_detr_dinov2", "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    backbone |= {"mlp_ratio": 1, "image_size": 64, "patch_size": 16, "num_windows": 2, "out_indices": [2, 4]}
    return RfDetrConfig(
        backbone_config=backbone,
        d_model=16,
        num_queries=6,
        group_detr=1,
        decoder_layers=1,
        decoder_ffn_dim=16,
        decoder_self_attention_heads=2,
        decoder_cross_attention_heads=2,
        intermediate_size=16,
        id2label=NAMES,
    )


def _tipsv2() -> PreTrainedConfig:
    vit = {"model_type": "tipsv2_vision_model", "hidden_size": 12, "num_hidden_layers": 4, "num_attention_heads": 2}
    vit |= {"image_size": 56, "patch_size": 14, "out_indices": [1, 2, 3, 4], "apply_layernorm": True, "mlp_ratio": 1}
    return Tipsv2DptConfig(
        backbone_config=vit | {"reshape_hidden_states": False},
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        num_depth_bins=8,
        id2label=NAMES,
    )


Recipe = tuple[str, Callable[[], PreTrainedConfig], str, dict[str, Any], dict[str, Any]]
DA = {"size": SQUARE, "keep_aspect_ratio": True, "ensure_multiple_of": 14}
TEACHERS: dict[str, Recipe] = {
    "depth_anything": (
        "DepthAnythingForDepthEstimation",
        lambda: _depth_anything("relative"),
        "DPTImageProcessor",
        DA,
        {},
    ),
    "depth_anything_metric": (
        "DepthAnythingForDepthEstimation",
        lambda: _depth_anything("metric"),
        "DPTImageProcessor",
        DA,
        {},
    ),
    "dpt": ("DPTForDepthEstimation", _dpt, "DPTImageProcessor", {"size": {"height": 64, "width": 64}}, {}),
    "glpn": ("GLPNForDepthEstimation", lambda: GLPNConfig(**PYRAMID), "GLPNImageProcessor", {"size_divisor": 32}, {}),
    "zoedepth": (
        "ZoeDepthForDepthEstimation",
        _zoedepth,
        "ZoeDepthImageProcessor",
        {"size": {"height": 64, "width": 64}, "keep_aspect_ratio": False, "ensure_multiple_of": 32},
        {},
    ),
    "depth_pro": (
        "DepthProForDepthEstimation",
        _depth_pro,
        "DepthProImageProcessor",
        {"size": {"height": 64, "width": 64}},
        {},
    ),
    "tipsv2_depth": ("Tipsv2DptForDepthEstimation", _tipsv2, "Tipsv2DptImageProcessor", {"size": SQUARE}, {}),
    "tipsv2_normals": ("Tipsv2DptForNormalEstimation", _tipsv2, "Tipsv2DptImageProcessor", {"size": SQUARE}, {}),
    "tipsv2_dense": (
        "Tipsv2DptForDensePrediction",
        _tipsv2,
        "Tipsv2DptImageProcessor",
        {"size": SQUARE},
        {"task": "normals"},
    ),
    "segformer": (
        "SegformerForSemanticSegmentation",
        lambda: SegformerConfig(**PYRAMID, id2label=NAMES),
        "SegformerImageProcessor",
        {"size": {"height": 64, "width": 64}},
        {},
    ),
    "upernet": (
        "UperNetForSemanticSegmentation",
        lambda: UperNetConfig(
            backbone_config=_resnet(), hidden_size=8, use_auxiliary_head=False, id2label=NAMES, pool_scales=[1, 2]
        ),
        "SegformerImageProcessor",
        {"size": {"height": 64, "width": 64}},
        {},
    ),
    "mask2former": ("Mask2FormerForUniversalSegmentation", _mask2former, "Mask2FormerImageProcessor", SHORT, {}),
    "mask2former_instance": (
        "Mask2FormerForUniversalSegmentation",
        _mask2former,
        "Mask2FormerImageProcessor",
        SHORT,
        {"segments": "instance", "score_threshold": 0.05},
    ),
    "maskformer": (
        "MaskFormerForInstanceSegmentation",
        _maskformer,
        "MaskFormerImageProcessor",
        SHORT,
        {"segments": "panoptic", "score_threshold": 0.05},
    ),
    "oneformer": ("OneFormerForUniversalSegmentation", _oneformer, "OneFormerImageProcessor", SHORT, {}),
    "eomt": (
        "EomtForUniversalSegmentation",
        _eomt,
        "EomtImageProcessor",
        {"size": {"shortest_edge": 64, "longest_edge": None}, "do_split_image": True},
        {},
    ),
    "eomt_panoptic": (
        "EomtForUniversalSegmentation",
        _eomt,
        "EomtImageProcessor",
        {"size": {"shortest_edge": 64, "longest_edge": 64}, "do_pad": True},
        {"segments": "panoptic", "score_threshold": 0.05},
    ),
    "detr": ("DetrForSegmentation", _detr, "DetrImageProcessor", SHORT, {}),
    "rf_detr": (
        "RfDetrForInstanceSegmentation",
        _rf_detr,
        "RfDetrImageProcessor",
        {"size": {"height": 64, "width": 64}},
        {"score_threshold": 0.05},
    ),
}
"""Name -> class, its configuration, image processor and its arguments, the expert's `network`."""


def save_teacher(name: str, folder: Path) -> dict[str, Any]:
    """Save a teacher with weights from a fixed seed to `folder`; return the expert's `network`."""
    class_name, config, processor_name, arguments, network = TEACHERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = getattr(transformers, class_name)(config()).eval()
        for parameter in module.parameters():  # as initialised, the outputs hardly depend on the image
            parameter.data += 0.1 * torch.randn_like(parameter)
        if class_name.startswith("DepthAnything"):
            module.head.conv3.bias.data += 1  # above the zero of its ReLU
        if class_name.startswith("DepthPro"):
            module.head.layers[4].weight.data *= 1e-3
            module.head.layers[4].bias.data += 1
            module.fov_model.head.layers[4].bias.data += 60  # degrees
    module.save_pretrained(folder)
    if arguments is SHORT:
        arguments = {"size": SHORT}
    getattr(transformers, processor_name)(**arguments).save_pretrained(folder)
    return network
