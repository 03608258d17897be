"""Networks that give something else than one vector: maps, boxes, masks, key points, embeddings, hidden states.

Weights are random, as nothing is downloaded, and drawn from a fixed seed; the statistics of batch norms are taken on
photographs, so that maps are neither dead nor flat. Those of torchvision have their own sizes, those of `transformers`
are small configurations of the real classes, YOLO11n is made from the description that comes with `ultralytics`. A
detector of torchvision is captured as a user would do it: backbone and head, without what follows them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from output_modules import (
    DepthNet,
    Embedding,
    FaceDetector,
    Hourglass,
    SimpleBaseline,
    StyleTransfer,
    SuperResolution,
    UNet,
)
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import detection, segmentation

_CLASSES = 5


@dataclass(frozen=True)
class Subject:
    """One network.

    Attributes:
        name: Its name in the rows.
        build: Gives the module.
        side: Height and width of its images, in pixels.
        kind: What it gives, in words.
        images: How many images its statistics rest on; fewer where they go through it one by one.
    """

    name: str
    build: Callable[[], nn.Module]
    side: int
    kind: str
    images: int = 8


def settle(module: nn.Module, images: Tensor) -> nn.Module:
    """The module with the statistics of its batch norms taken on `images` `[N, C, H, W]`, in inference form."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    if norms:
        module.train()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        with torch.no_grad():
            for _ in range(2):
                for part in images.split(8):
                    module(part.clone())
    return module.eval()


class Detector(nn.Module):
    """Backbone and head of a detector of torchvision, without anchors, decoding and suppression."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.head

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = self.head(list(self.backbone(x).values()))
        return outputs


class Proposals(nn.Module):
    """Backbone and the head that proposes regions of a Faster R-CNN."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.rpn.head

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        objectness, boxes = self.head(list(self.backbone(x).values()))
        return {"objectness": objectness, "boxes": boxes}


class Chosen(nn.Module):
    """Some of the outputs of a model, by name: those that are used once it is trained."""

    def __init__(self, model: nn.Module, *names: str) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs = self.model(x)
        return {name: outputs[name] for name in self.names}


def _torchvision() -> list[Subject]:
    bare: dict[str, Any] = {"weights": None, "weights_backbone": None}
    shrunk = {**bare, "num_classes": _CLASSES}
    return [
        Subject("fcn_resnet50", lambda: segmentation.fcn_resnet50(**shrunk, aux_loss=True), 64, "two maps"),
        Subject("deeplabv3_mobilenet_v3", lambda: segmentation.deeplabv3_mobilenet_v3_large(**shrunk), 96, "map"),
        Subject("lraspp_mobilenet_v3", lambda: segmentation.lraspp_mobilenet_v3_large(**shrunk), 96, "map"),
        Subject("ssdlite320", lambda: Detector(detection.ssdlite320_mobilenet_v3_large(**bare)), 192, "boxes, classes"),
        Subject("retinanet", lambda: Detector(detection.retinanet_resnet50_fpn(**shrunk)), 64, "boxes, classes"),
        Subject("fcos", lambda: Detector(detection.fcos_resnet50_fpn(**shrunk)), 64, "boxes, classes, centres"),
        Subject(
            "faster_rcnn_proposals",
            lambda: Proposals(detection.fasterrcnn_mobilenet_v3_large_320_fpn(**bare)),
            128,
            "maps of objects and boxes, at several scales",
        ),
        Subject("simple_baseline", SimpleBaseline, 96, "heat maps of key points"),
    ]


def _written_here() -> list[Subject]:
    return [
        Subject("unet", UNet, 64, "map"),
        Subject("style_transfer", StyleTransfer, 64, "picture"),
        Subject("face_detector", FaceDetector, 96, "two maps"),
        Subject("embedding", Embedding, 112, "vector of length one"),
        Subject("depth", DepthNet, 96, "map of depth"),
        Subject("super_resolution", SuperResolution, 64, "picture of twice the size"),
        Subject("hourglass", Hourglass, 64, "list of heat maps"),
    ]


def _transformers() -> list[Subject]:
    import transformers as t

    names = {"num_labels": _CLASSES}
    vit: dict[str, Any] = {
        "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192,
    }  # fmt: skip
    resnet: dict[str, Any] = {
        "embedding_size": 32, "hidden_sizes": [32, 48, 64, 96], "depths": [1, 1, 1, 1], "layer_type": "basic",
    }  # fmt: skip

    def dino(**changes: Any) -> Any:
        return t.Dinov2Config(**{**vit, "image_size": 98, "patch_size": 14, "mlp_ratio": 2, **changes})

    def backbone() -> Any:
        return t.ResNetConfig(**resnet, out_features=["stage4"])

    def detr() -> nn.Module:
        config = t.DetrConfig(
            **names, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone(),
            d_model=64, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=128, decoder_ffn_dim=128,
            encoder_attention_heads=4, decoder_attention_heads=4, num_queries=20,
        )  # fmt: skip
        return t.DetrForObjectDetection(config)

    def queries(family: str) -> nn.Module:
        levels = t.RTDetrResNetConfig(**resnet, out_features=["stage2", "stage3", "stage4"])
        shared: dict[str, Any] = {
            **names, "d_model": 64, "num_queries": 30, "decoder_layers": 1, "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128, "encoder_hidden_dim": 64, "encoder_attention_heads": 4,
            "decoder_attention_heads": 4, "encoder_in_channels": [48, 64, 96], "decoder_in_channels": [64, 64, 64],
        }  # fmt: skip
        if family == "DFine":
            levels = t.HGNetV2Config(
                stem_channels=[3, 16, 16], stage_in_channels=[16, 32, 48, 64], stage_mid_channels=[16, 16, 24, 32],
                stage_out_channels=[32, 48, 64, 96], hidden_sizes=[32, 48, 64, 96], stage_num_blocks=[1, 1, 1, 1], stage_numb_of_layers=[2, 2, 2, 2],
                out_features=["stage2", "stage3", "stage4"],
            )  # fmt: skip
        config = getattr(t, f"{family}Config")(backbone_config=levels, **shared)
        return getattr(t, f"{family}ForObjectDetection")(config)

    def swin(*features: str) -> Any:
        return t.SwinConfig(
            image_size=64, embed_dim=24, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4], window_size=4,
            out_features=list(features),
        )  # fmt: skip

    def masks(family: str) -> nn.Module:
        if family == "Mask2Former":
            config = t.Mask2FormerConfig(
                **names, backbone_config=swin("stage1", "stage2", "stage3", "stage4"), feature_size=64, mask_feature_size=64,
                hidden_dim=64, encoder_feedforward_dim=128, encoder_layers=2, decoder_layers=3, dim_feedforward=128,
                num_attention_heads=4, num_queries=16,
            )  # fmt: skip
            return t.Mask2FormerForUniversalSegmentation(config)
        decoder = t.DetrConfig(
            d_model=64, decoder_layers=2, encoder_layers=2, decoder_ffn_dim=128, encoder_ffn_dim=128,
            encoder_attention_heads=4, decoder_attention_heads=4, num_queries=16,
        )  # fmt: skip
        return t.MaskFormerForInstanceSegmentation(
            t.MaskFormerConfig(
                fpn_feature_size=64, mask_feature_size=64, backbone_config=swin("stage1", "stage2", "stage3", "stage4"),
                decoder_config=decoder, **names,
            )
        )  # fmt: skip

    def segformer() -> nn.Module:
        return t.SegformerForSemanticSegmentation(
            t.SegformerConfig(
                **names, hidden_sizes=[16, 32, 64, 96], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 4, 4],
                decoder_hidden_size=64,
            )
        )  # fmt: skip

    def depth_anything() -> nn.Module:
        features = ["stage1", "stage2", "stage3", "stage4"]
        config = dino(
            num_hidden_layers=4, reshape_hidden_states=False, apply_layernorm=True, out_features=features)
        return t.DepthAnythingForDepthEstimation(
            t.DepthAnythingConfig(
                backbone_config=config, patch_size=14, reassemble_hidden_size=96, neck_hidden_sizes=[24, 32, 48, 64],
                fusion_hidden_size=32, head_hidden_size=16,
            )
        )  # fmt: skip

    def upernet() -> nn.Module:
        body = t.ConvNextConfig(
            hidden_sizes=[24, 48, 64, 96], depths=[1, 1, 2, 1], layer_scale_init_value=1.0,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )  # fmt: skip
        config = t.UperNetConfig(**names, backbone_config=body, hidden_size=48, auxiliary_in_channels=64)
        return t.UperNetForSemanticSegmentation(config)

    def yolos() -> nn.Module:
        config = t.YolosConfig(**vit, **names, image_size=[96, 96], num_detection_tokens=20)
        return t.YolosForObjectDetection(config)

    def vitpose() -> nn.Module:
        body = t.VitPoseBackboneConfig(
            **{key: vit[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")},
            mlp_ratio=2, image_size=[96, 96], patch_size=[16, 16], out_features=["stage2"],
        )  # fmt: skip
        return t.VitPoseForPoseEstimation(
            t.VitPoseConfig(backbone_config=body, use_simple_decoder=False, num_labels=17)
        )

    return [
        Subject("segformer", segformer, 64, "map"),
        Subject("depth_anything", depth_anything, 98, "map of depth"),
        Subject("rt_detr", lambda: Chosen(queries("RTDetr"), "logits", "pred_boxes"), 96, "boxes, classes of queries", 4),
        Subject("rt_detr_v2", lambda: queries("RTDetrV2"), 96, "all that its class returns", 4),
        Subject("d_fine", lambda: Chosen(queries("DFine"), "logits", "pred_boxes"), 96, "boxes, classes of queries", 4),
        Subject("yolos", yolos, 96, "boxes, classes of tokens"),
        Subject("detr", detr, 96, "boxes, classes of queries"),
        Subject("mask2former", lambda: masks("Mask2Former"), 64, "masks, classes of queries"),
        Subject("maskformer", lambda: masks("MaskFormer"), 64, "masks, classes of queries"),
        Subject("dinov2", lambda: t.Dinov2Model(dino()), 98, "hidden states"),
        Subject("upernet", upernet, 64, "map"),
        Subject("vitpose", vitpose, 96, "heat maps of key points"),
    ]


def _yolo(name: str) -> nn.Module:
    from ultralytics.nn import tasks

    kinds = {"pose": tasks.PoseModel, "seg": tasks.SegmentationModel}
    model = kinds.get(name.partition("-")[2], tasks.DetectionModel)(f"{name}.yaml", verbose=False)
    return RawMaps(model)


class RawMaps(nn.Module):
    """A YOLO of `ultralytics` up to the maps of its head, which it gives in training only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layers = model.model
        self.saved = set(model.save)

    def forward(self, x: Tensor) -> Any:
        kept: list[Any] = []
        for layer in self.layers[:-1]:
            x = layer(self._read(layer.f, x, kept))
            kept.append(x if layer.i in self.saved else None)
        head = self.layers[-1]
        maps = self._read(head.f, x, kept)
        return {
            "boxes": [head.cv2[i](level) for i, level in enumerate(maps)],
            "classes": [head.cv3[i](level) for i, level in enumerate(maps)],
        }

    def _read(self, places: Any, x: Tensor, kept: list[Any]) -> Any:
        if isinstance(places, int):
            return x if places == -1 else kept[places]
        return [x if place == -1 else kept[place] for place in places]


def subjects() -> dict[str, Subject]:
    """All networks by name."""
    yolo = [Subject("yolo11n", lambda: _yolo("yolo11n"), 96, "maps of boxes and classes")]
    return {subject.name: subject for subject in [*_torchvision(), *_written_here(), *_transformers(), *yolo]}
