"""Classes of `transformers` in small configurations, with random weights; imported where they are asked for.

A model is captured as it is, with all that it returns; of RT-DETR and D-FINE the boxes and classes of the last layer
are taken, as those of earlier layers serve training alone (and D-FINE's have the layers as their first dimension).
"""

from typing import Any

import transformers as t
from torch import Tensor, nn

_CLASSES = 5
_NAMES = {"num_labels": _CLASSES}
_FEATURES = ("stage1", "stage2", "stage3", "stage4")
_VIT: dict[str, Any] = {
    "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192,
}  # fmt: skip
_RESNET: dict[str, Any] = {
    "embedding_size": 32, "hidden_sizes": [32, 48, 64, 96], "depths": [1, 1, 1, 1], "layer_type": "basic",
}  # fmt: skip


class Chosen(nn.Module):
    """Some of the outputs of a model, by name: those that are used once it is trained."""

    def __init__(self, model: nn.Module, *names: str) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs = self.model(x)
        return {name: outputs[name] for name in self.names}


def segformer() -> nn.Module:
    """SegFormer: a map of classes."""
    config = t.SegformerConfig(
        **_NAMES, hidden_sizes=[16, 32, 64, 96], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 4, 4],
        decoder_hidden_size=64,
    )  # fmt: skip
    return t.SegformerForSemanticSegmentation(config)


def upernet() -> nn.Module:
    """UPerNet on a ConvNeXt: a map of classes."""
    body = t.ConvNextConfig(
        hidden_sizes=[24, 48, 64, 96], depths=[1, 1, 2, 1], layer_scale_init_value=1.0, out_features=list(_FEATURES)
    )
    config = t.UperNetConfig(**_NAMES, backbone_config=body, hidden_size=48, auxiliary_in_channels=64)
    return t.UperNetForSemanticSegmentation(config)


def dinov2() -> nn.Module:
    """DINOv2: hidden states of all patches."""
    return t.Dinov2Model(_dinov2())


def depth_anything() -> nn.Module:
    """Depth Anything on a DINOv2: a map of depth."""
    body = _dinov2(num_hidden_layers=4, reshape_hidden_states=False, apply_layernorm=True, out_features=list(_FEATURES))
    config = t.DepthAnythingConfig(
        backbone_config=body, patch_size=14, reassemble_hidden_size=96, neck_hidden_sizes=[24, 32, 48, 64],
        fusion_hidden_size=32, head_hidden_size=16,
    )  # fmt: skip
    return t.DepthAnythingForDepthEstimation(config)


def yolos() -> nn.Module:
    """YOLOS: boxes and classes of tokens."""
    config = t.YolosConfig(**_VIT, **_NAMES, image_size=[96, 96], num_detection_tokens=20)
    return t.YolosForObjectDetection(config)


def vitpose() -> nn.Module:
    """ViTPose: heat maps of key points. Its transposed convolutions are as wide as in the real ones, and stay whole."""
    body = t.VitPoseBackboneConfig(
        hidden_size=256, num_hidden_layers=8, num_attention_heads=_VIT["num_attention_heads"], mlp_ratio=2,
        image_size=[96, 96], patch_size=[16, 16], out_features=["stage8"],
    )  # fmt: skip
    return t.VitPoseForPoseEstimation(t.VitPoseConfig(backbone_config=body, use_simple_decoder=False, num_labels=17))


def detr() -> nn.Module:
    """DETR on a ResNet: boxes and classes of queries."""
    config = t.DetrConfig(
        **_NAMES, **_decoder(20), use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        backbone_config=t.ResNetConfig(**_RESNET, out_features=["stage4"]),
    )  # fmt: skip
    return t.DetrForObjectDetection(config)


def rt_detr(everything: bool = False) -> nn.Module:
    """RT-DETR, whose code fixes the number of images; all that its second version returns where `everything` is set."""
    body = t.RTDetrResNetConfig(**_RESNET, out_features=list(_FEATURES[1:]))
    if everything:
        return t.RTDetrV2ForObjectDetection(t.RTDetrV2Config(backbone_config=body, **_queries()))
    model = t.RTDetrForObjectDetection(t.RTDetrConfig(backbone_config=body, **_queries()))
    return Chosen(model, "logits", "pred_boxes")


def d_fine() -> nn.Module:
    """D-FINE on an HGNetV2, whose code fixes the number of images."""
    body = t.HGNetV2Config(
        stem_channels=[3, 16, 16], stage_in_channels=[16, 32, 48, 64], stage_mid_channels=[16, 16, 24, 32],
        stage_out_channels=[32, 48, 64, 96], hidden_sizes=[32, 48, 64, 96], stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[2, 2, 2, 2], out_features=list(_FEATURES[1:]),
    )  # fmt: skip
    return Chosen(t.DFineForObjectDetection(t.DFineConfig(backbone_config=body, **_queries())), "logits", "pred_boxes")


def mask2former() -> nn.Module:
    """Mask2Former on a Swin: masks and classes of queries."""
    config = t.Mask2FormerConfig(
        **_NAMES, backbone_config=_swin(), feature_size=64, mask_feature_size=64, hidden_dim=64,
        encoder_feedforward_dim=128, encoder_layers=2, decoder_layers=3, dim_feedforward=128, num_attention_heads=4,
        num_queries=16,
    )  # fmt: skip
    return t.Mask2FormerForUniversalSegmentation(config)


def maskformer() -> nn.Module:
    """MaskFormer on a Swin: masks and classes of queries."""
    config = t.MaskFormerConfig(
        **_NAMES, fpn_feature_size=64, mask_feature_size=64, backbone_config=_swin(),
        decoder_config=t.DetrConfig(**_decoder(16)),
    )  # fmt: skip
    return t.MaskFormerForInstanceSegmentation(config)


def _dinov2(**changes: Any) -> Any:
    return t.Dinov2Config(**{**_VIT, "image_size": 98, "patch_size": 14, "mlp_ratio": 2, **changes})


def _swin() -> Any:
    return t.SwinConfig(
        image_size=64, embed_dim=24, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4], window_size=4,
        out_features=list(_FEATURES),
    )  # fmt: skip


def _decoder(queries: int) -> dict[str, Any]:
    """The transformer of DETR."""
    return {
        "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": queries,
    }  # fmt: skip


def _queries() -> dict[str, Any]:
    """The encoder and decoder of RT-DETR and D-FINE."""
    return {
        **_NAMES, "d_model": 64, "num_queries": 30, "decoder_layers": 2, "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128, "encoder_hidden_dim": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_in_channels": [48, 64, 96], "decoder_in_channels": [64, 64, 64],
    }  # fmt: skip
