"""Which models the zoo has, and each of them with random weights in which a mistake shows."""

import contextlib
import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torchvision
from timm.models._registry import _module_to_models
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from afina.graph import Network, capture
from afina.types import InputSpec, TaskSpec

_MOST = 40_000_000
_CLASSES = 1000
_SHAKES = (0.2, 0.1, 0.05)  # of the standard deviation
_MOST_AMPLIFIED = 5e-5


def choose(path: Path) -> dict[str, int]:
    """The models by name with their parameters: all of torchvision's classifiers, timm's smallest of each module.

    Counting takes a minute, so the choice is kept in `path`.
    """
    if path.is_file():
        return dict(json.loads(path.read_text()))
    names = torchvision.models.list_models(module=torchvision.models)
    chosen = {f"torchvision:{name}": _parameters_of_torchvision(name) for name in names}
    for module in sorted(_module_to_models):
        counts = {name: _parameters_of_timm(name) for name in sorted(_module_to_models[module])}
        smallest = min(counts, key=lambda name: counts[name])
        if counts[smallest] < _MOST:
            chosen[f"timm:{smallest}"] = int(counts[smallest])
    path.write_text(json.dumps(chosen, indent=1) + "\n")
    return chosen


def _parameters_of_torchvision(name: str) -> int:
    return int(next(iter(torchvision.models.get_model_weights(name))).meta["num_params"])


def _parameters_of_timm(name: str) -> float:
    with contextlib.suppress(Exception), warnings.catch_warnings(action="ignore"), torch.device("meta"):
        return sum(p.numel() for p in timm.create_model(name, pretrained=False).parameters())
    return float("inf")


Images = Callable[[tuple[int, int, int]], Tensor]


def _noise(size: tuple[int, int, int]) -> Tensor:
    return torch.randn(4, *size)


def load(name: str, images: Images = _noise) -> Network:
    """The model at its own input size, captured; its norms have the statistics of what `images` gives for a size."""
    family, _, model = name.partition(":")
    torch.manual_seed(0)
    with warnings.catch_warnings(action="ignore"):
        module, size = _torchvision(model) if family == "torchvision" else _timm(model)
    outputs = getattr(module, "num_classes", _CLASSES) if family == "timm" else _CLASSES
    spec = InputSpec(size[1], size[2], order="RGB" if size[0] == 3 else "L")
    task = TaskSpec("classification", tuple(str(label) for label in range(outputs)))
    return capture(_settle(module, size, images), spec, task)


def _torchvision(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    weights = next(iter(torchvision.models.get_model_weights(name)))
    module = torchvision.models.get_model(name, weights=None, **options)
    # A transformer is made for one size, which need not be that of its weights.
    side = getattr(module, "image_size", weights.transforms().crop_size[0])
    return module, (3, side, side)


def _timm(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    module = timm.create_model(name, pretrained=False)
    if not module.num_classes:
        module = timm.create_model(name, pretrained=False, num_classes=_CLASSES)
    channels, height, width = module.pretrained_cfg["input_size"]
    return module, (channels, height, width)


def _settle(module: nn.Module, size: tuple[int, int, int], images: Images) -> nn.Module:
    """The module with running statistics of some images, then shaken, and no weights that are all the same.

    With the statistics that a fresh model has, its answer hardly depends on the image, and mistakes drown. Statistics
    that are shaken as much as most models bear make some (HaloNet) blow up the rounding of float numbers until no two
    programs answer alike: those are shaken less.
    """
    state = torch.get_rng_state()
    for most in _SHAKES:
        torch.set_rng_state(state)
        settled = copy.deepcopy(module)
        _shake(settled, size, most, images)
        if _amplified(settled, size, images) < _MOST_AMPLIFIED:
            break
    return settled


@torch.no_grad()
def _shake(module: nn.Module, size: tuple[int, int, int], most: float, images: Images) -> None:
    for parameter in module.parameters():
        if parameter.numel() > 1 and parameter.min() == parameter.max():
            parameter.add_(torch.empty_like(parameter).uniform_(-0.2, 0.2))
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    module.train()
    module(images(size))
    module.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.running_mean.add_(norm.running_var.sqrt() * torch.empty_like(norm.running_mean).uniform_(-most, most))
        norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(1 - 1.5 * most, 1 + 2 * most))


@torch.no_grad()
def _amplified(module: nn.Module, size: tuple[int, int, int], images: Images) -> float:
    """How much the answer changes, relative to itself, where the image changes in the seventh digit."""
    draw = torch.Generator().manual_seed(0)
    image = torch.randn(1, *size, generator=draw) if images is _noise else images(size)[:1]
    module.eval()
    answer, changed = (module(image * (1 + by * torch.randn(image.shape, generator=draw))) for by in (0, 1e-6))
    return float((changed - answer).norm() / answer.norm())
