"""Networks that give something else than one vector: maps, boxes, masks, key points, embeddings, hidden states.

Weights are random, as nothing is downloaded, and drawn from a fixed seed; the statistics of batch norms are taken on
photographs, so that maps are neither dead nor flat. Those of torchvision have their own sizes
(the residual ones on a ResNet-18), those of `transformers` are small configurations of the real classes, YOLO11n is
made from the description that comes with `ultralytics`. A detector of torchvision is captured as a user would do it:
backbone and head, without what follows them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
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
from torchvision.models import detection, resnet18, segmentation
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.segmentation.fcn import FCN, FCNHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

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


def _fcn() -> nn.Module:
    """An FCN with a second head on the third stage, on a ResNet-18."""
    layers = IntermediateLayerGetter(resnet18(weights=None), {"layer4": "out", "layer3": "aux"})
    return FCN(layers, FCNHead(512, _CLASSES), FCNHead(256, _CLASSES))


def _pyramid() -> nn.Module:
    """The feature pyramid of torchvision's detectors of one stage, on a ResNet-18."""
    return resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, trainable_layers=5, norm_layer=nn.BatchNorm2d,
        returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256),
    )  # fmt: skip


def _torchvision() -> list[Subject]:
    bare: dict[str, Any] = {"weights": None, "weights_backbone": None}
    shrunk = {**bare, "num_classes": _CLASSES}
    return [
        Subject("fcn", _fcn, 64, "two maps"),
        Subject("deeplabv3_mobilenet_v3", lambda: segmentation.deeplabv3_mobilenet_v3_large(**shrunk), 96, "map"),
        Subject("lraspp_mobilenet_v3", lambda: segmentation.lraspp_mobilenet_v3_large(**shrunk), 96, "map"),
        Subject("ssdlite320", lambda: Detector(detection.ssdlite320_mobilenet_v3_large(**bare)), 192, "boxes, classes"),
        Subject("retinanet", lambda: Detector(detection.RetinaNet(_pyramid(), _CLASSES)), 64, "boxes, classes"),
        Subject("fcos", lambda: Detector(detection.FCOS(_pyramid(), _CLASSES)), 64, "boxes, classes, centres"),
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
    import output_transformers as t

    queries = "boxes, classes of queries"
    return [
        Subject("segformer", t.segformer, 64, "map"),
        Subject("upernet", t.upernet, 64, "map"),
        Subject("depth_anything", t.depth_anything, 98, "map of depth"),
        Subject("dinov2", t.dinov2, 98, "hidden states"),
        Subject("vitpose", t.vitpose, 96, "heat maps of key points"),
        Subject("yolos", t.yolos, 96, "boxes, classes of tokens, hidden states"),
        Subject("detr", t.detr, 96, f"{queries}, hidden states"),
        Subject("rt_detr", t.rt_detr, 96, queries, 4),
        Subject("rt_detr_v2", partial(t.rt_detr, everything=True), 96, "all that its class returns", 4),
        Subject("d_fine", t.d_fine, 96, queries, 4),
        Subject("mask2former", t.mask2former, 64, "masks, classes of queries, hidden states"),
        Subject("maskformer", t.maskformer, 64, "masks, classes of queries, hidden states"),
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
