"""The trained networks that accuracy is measured on, as modules and captured, with their images."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models.vgg import make_layers

from afina.data import ImageData, open_data
from afina.graph import Network, capture
from afina.models.userfile import build_from_file
from afina.progress import PlainProgress
from afina.training import FitConfig, evaluate, fit

# VGG-11 with batch norm (Simonyan & Zisserman 2015, configuration A) at a quarter to a half of its width.
_VGG = [24, "M", 48, "M", 96, 96, "M", 128, 128, "M", 128, 128, "M"]
_BROUGHT = {"resnet20": "resnet20_cifar10jpeg.safetensors", "resnet56": "resnet56_cifar10jpeg.safetensors"}
_RECIPE = FitConfig(epochs=7, learning_rate=0.1, seed=0)


@dataclass(frozen=True)
class Subject:
    """A trained network.

    Attributes:
        name: Its name in the rows.
        module: The module, for the peers; each takes a copy.
        network: The same, captured, for Afina.
        head: The classifier in the module, which peers are told to leave whole.
        data: CIFAR-10 as JPEG; quality is measured on all of its test images.
    """

    name: str
    module: nn.Module
    network: Network
    head: nn.Module
    data: ImageData

    @cached_property
    def quality(self) -> float:
        """Accuracy of the network as it is."""
        return evaluate(self.network, self.data).value


def open_images(shared: Path) -> ImageData:
    """CIFAR-10 as JPEG, decoded."""
    return open_data(str(shared / "data" / "cifar10-jpeg.zip"), progress=PlainProgress())


def open_subject(name: str, shared: Path, runs: Path, data: ImageData) -> Subject:
    """The network of that name; those that nobody brings are trained once, and kept in `runs`."""
    if name in _BROUGHT:
        module = build_from_file(shared / "models" / "cifar_resnet.py", name, data.task.outputs)
        module.load_state_dict(load_file(shared / "models" / _BROUGHT[name]))
    else:
        module = _trained(name, runs / f"{name}.safetensors", data)
    module.eval()
    head = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
    return Subject(name, module, capture(module, data.native, data.task), head, data)


def vgg11() -> nn.Module:
    """torchvision's VGG-11 with batch norm, narrower, with one linear layer as the classifier."""
    return nn.Sequential(make_layers(_VGG, batch_norm=True), nn.Flatten(), nn.Linear(_VGG[-2], 10))


OWN: dict[str, Callable[[], nn.Module]] = {"vgg11": vgg11}
NAMES = (*_BROUGHT, *OWN)
STREAMS = ("resnet20", "resnet56")  # those with a residual stream


def _trained(name: str, path: Path, data: ImageData) -> nn.Module:
    """The module with its weights; trained first where there are none yet, from a checkpoint where that was cut off."""
    torch.manual_seed(0)
    module = OWN[name]()
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        network = capture(module, data.native, data.task)
        checkpoint = path.with_suffix(".checkpoint")
        network, _ = fit(network, data, _RECIPE, progress=PlainProgress(), checkpoint=checkpoint)
        # A captured network keeps the names of the module's weights.
        save_file({key: value.contiguous() for key, value in network.module.state_dict().items()}, path)
        checkpoint.unlink()
    module.load_state_dict(load_file(path), strict=False)
    return module
