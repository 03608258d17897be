"""The networks that are quantized, with their images.

ResNet-20 and ResNet-56 are trained (on CIFAR-10 as JPEG, at its own size), so that accuracy says something. The
networks at 224 pixels have random weights: they are compared with themselves in float. So that their activations are
like a trained network's all the same, weights are drawn at the scale that keeps the variance, biases are not zero (no
file is spared their addition), the channels of norms differ in scale and offset, residual branches are not scaled
away (ConvNeXt's start at 1e-6), the statistics of batch norm are taken anew on real images, and the bias of the head
centres the outputs, without which one class would win on every image. Their images are CIFAR's, enlarged. A deep
random network amplifies small differences more than a trained one, so that numbers are low; and what outliers of
trained transformers cost does not show in them.
"""

import io
import random
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from PIL import Image
from rows import RUNS
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from afina.data import ImageData, open_data
from afina.graph import Network, capture
from afina.jobs.common.subject import context_of
from afina.models.userfile import build_from_file
from afina.progress import PlainProgress
from afina.runtimes import get_runtime
from afina.tasks.base import only_output
from afina.training import predict
from afina.types import InputSpec, TaskSpec

IMAGES = 512  # that everyone calibrates on
HELD_OUT = 256  # that outputs at 224 pixels are compared on
CIFAR = {"resnet20": "resnet20_cifar10jpeg.safetensors", "resnet56": "resnet56_cifar10jpeg.safetensors"}
LARGE = (
    "resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "vit_tiny", "swin_tiny",
)  # fmt: skip
TRANSFORMERS = ("vit_tiny", "vit_b_16", "swin_tiny")
_TIMM = {"vit_tiny": "vit_tiny_patch16_224"}
_TORCHVISION = {"swin_tiny": "swin_t"}
_CLASSES = 1000
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
_BATCH = 32


@dataclass(frozen=True)
class Subject:
    """A network in float, and its images.

    Attributes:
        name: Its name in the rows.
        module: The module, for torchao, which finds its patterns by the modules that a graph came from.
        network: The same, captured, for everyone else.
        data: Its images.
        held_out: How many of the validation images it is judged on.
    """

    name: str
    module: nn.Module
    network: Network
    data: ImageData
    held_out: int

    @cached_property
    def expected(self) -> np.ndarray:
        """Outputs of the float network on the images that it is judged on."""
        return np.asarray(only_output(predict(self.network, self.data, limit=self.held_out)))

    @cached_property
    def targets(self) -> np.ndarray:
        """Labels of the same images."""
        return self.data.targets("validation").numpy()[: self.held_out]

    def calibration(self, seed: int = 0, images: int = IMAGES) -> Iterator[Tensor]:
        """Batches of the training images that Afina calibrates on, for everyone."""
        stream = context_of(self.data, self.network, images, seed, PlainProgress()).calibration
        assert stream is not None
        yield from stream()

    def file(self, runtime: str = "onnxruntime") -> Path:
        """The float network, exported."""
        exporter = get_runtime(runtime)
        path = RUNS / self.name / f"float{exporter.suffix}"
        return path if path.is_file() else exporter.export(self.network, path)


@lru_cache(maxsize=1)
def open_subject(name: str, shared: Path) -> Subject:
    """The network of that name."""
    if name in CIFAR:
        data = _cifar(shared)
        module = build_from_file(shared / "models" / "cifar_resnet.py", name, data.task.outputs)
        module.load_state_dict(load_file(shared / "models" / CIFAR[name]))
        network = capture(module.eval(), data.native, data.task)
        return Subject(name, module, network, data, data.count("validation"))
    data = large_images(shared)
    task = TaskSpec("classification", tuple(map(str, range(_CLASSES))))
    spec = InputSpec(224, 224)
    module = _built(name)
    kept = RUNS / name / "weights.safetensors"
    if not kept.is_file():
        batches = [batch for batch, _ in data.batches("train", spec, batch_size=_BATCH, limit=HELD_OUT)]
        _enliven(module, batches)
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous().clone() for key, value in module.state_dict().items()}, kept)
    module.load_state_dict(load_file(kept))
    return Subject(name, module, capture(module.eval(), spec, task), data, HELD_OUT)


@lru_cache(maxsize=1)
def large_images(shared: Path, calibration: int = 1024) -> ImageData:
    """Training and test images of CIFAR as images without labels, so that networks keep their 1,000 outputs."""
    archive = shared / "data" / "cifar10-jpeg.zip"
    pair = _Images(archive, "train", calibration), _Images(archive, "test", HELD_OUT)
    return open_data(pair, seed=0, input=InputSpec(224, 224), progress=PlainProgress())


class _Images(Dataset[Any]):
    """So many images of a split, drawn once; without targets."""

    def __init__(self, archive: Path, split: str, count: int) -> None:
        with zipfile.ZipFile(archive) as file:
            names = sorted(name for name in file.namelist() if f"{split}/" in name and name.endswith(".jpg"))
            chosen = random.Random(0).sample(names, count)
            self._images = [Image.open(io.BytesIO(file.read(name))).convert("RGB") for name in chosen]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Image.Image:
        return self._images[index]


@lru_cache(maxsize=1)
def _cifar(shared: Path) -> ImageData:
    return open_data(str(shared / "data" / "cifar10-jpeg.zip"), seed=0, progress=PlainProgress())


def _built(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name in _TIMM:
        module: nn.Module = timm.create_model(_TIMM[name], pretrained=False)
    else:
        module = torchvision.models.get_model(_TORCHVISION.get(name, name), weights=None)
    return module


def _enliven(module: nn.Module, batches: list[Tensor]) -> None:
    """Random weights that behave like trained ones; see the top of this module."""
    generator = torch.Generator().manual_seed(0)
    layers = list(module.modules())
    for layer in layers:
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5, generator=generator)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=0.1, generator=generator)
        if isinstance(layer, _NORMS) and layer.weight is not None:
            nn.init.normal_(layer.bias, std=0.1, generator=generator)
            nn.init.normal_(layer.weight, std=0.2, generator=generator)
            layer.weight.data.exp_()
        if isinstance(scale := getattr(layer, "layer_scale", None), nn.Parameter):
            nn.init.ones_(scale)
    module.eval()
    for layer in layers:
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches
            layer.train()
    with torch.no_grad():
        for batch in batches:
            module(batch)
        module.eval()
        head = [layer for layer in layers if isinstance(layer, nn.Linear)][-1]
        head.bias.data -= torch.cat([module(batch) for batch in batches]).mean(0)
