"""What Afina is measured against: Torch-Pruning for structures, torch's own pruning for single weights."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from subjects import Subject
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune as torch_prune
from torch.utils.flop_counter import FlopCounterMode

from afina.data import Batches

_SQUARED = 512  # images whose gradients are squared, one at a time
_BATCH = 64
_NEAR = 0.02
_ROUNDS = 14


@dataclass
class TorchPruning:
    """Torch-Pruning's pruner with each of its importances, on the MACs that are asked for.

    Its ratio of channels is bisected until the MACs are within 2% of the target; where its steps are coarser than
    that, it keeps the more MACs. Only the classifier is protected; with `inner`, also every channel of the residual
    stream, which spares it what hurts it most.

    Args:
        subject: The network.
        images: Training images for the importances that look at gradients; as many as Afina may see.
    """

    subject: Subject
    images: int = 1024
    _gradients: dict[str, list[Tensor]] = field(default_factory=dict)

    def prune(self, importance: str, target: float, *, everywhere: bool, inner: bool, norms: bool = False) -> nn.Module:
        """A pruned copy of the module.

        Args:
            importance: A name in `IMPORTANCES`.
            target: Share of the MACs that stays.
            everywhere: Rank the channels of all layers together (`global_pruning`).
            inner: Leave the residual stream whole.
            norms: Take the running statistics of batch norm anew on the images, which Torch-Pruning leaves to its user.
        """
        make = partial(self._pruned, importance, everywhere, inner)
        whole = macs_of(self.subject.module)
        low, high = 0.0, 1.0
        best, best_gap = self.subject.module, 1 - target
        for _ in range(_ROUNDS):
            ratio = (low + high) / 2
            module = make(ratio)
            gap = macs_of(module) / whole - target
            low, high = (ratio, high) if gap > 0 else (low, ratio)
            # Too few MACs are taken only where they are near; too many, as few of them as there are.
            if (gap >= 0 or -gap <= _NEAR * target) and abs(gap) < abs(best_gap):
                best, best_gap = module, gap
        return self._renormed(best) if norms else best

    def _pruned(self, importance: str, everywhere: bool, inner: bool, ratio: float) -> nn.Module:
        import torch_pruning

        name, kind = IMPORTANCES[importance]
        module = self._copy(kind)
        spared = [_twin(self.subject, module, self.subject.head)]
        if inner:
            spared += [_twin(self.subject, module, layer) for layer in residual(self.subject.module)]
        pruner = torch_pruning.pruner.BasePruner(
            module,
            self._example(),
            importance=getattr(torch_pruning.importance, name)(),
            global_pruning=everywhere,
            pruning_ratio=ratio,
            ignored_layers=spared,
        )
        pruner.step()
        return module

    def _copy(self, kind: str) -> nn.Module:
        """A copy of the module, with the gradients that an importance of this kind reads."""
        module = copy.deepcopy(self.subject.module)
        if kind:
            if kind not in self._gradients:
                self._gradients[kind] = list(self._mean(kind))
            for parameter, gradient in zip(module.parameters(), self._gradients[kind], strict=True):
                parameter.grad = gradient.clone()
        return module

    def _mean(self, kind: str) -> Iterator[Tensor]:
        """The mean gradient of the labels' loss by each parameter, or the mean of its square (`squared`)."""
        module = copy.deepcopy(self.subject.module)
        squared = kind == "squared"
        count = min(_SQUARED, self.images) if squared else self.images
        sums = [torch.zeros_like(parameter) for parameter in module.parameters()]
        for images, labels in self._batches(1 if squared else _BATCH, count):
            module.zero_grad()
            F.cross_entropy(module(images), labels, reduction="sum").backward()
            for total, parameter in zip(sums, module.parameters(), strict=True):
                total += parameter.grad**2 if squared else parameter.grad
        return (total / count for total in sums)

    @torch.no_grad()
    def _renormed(self, module: nn.Module) -> nn.Module:
        """A copy whose batch norms have the statistics of the images as they come out of the smaller layers."""
        module = copy.deepcopy(module).train()
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.reset_running_stats()
                layer.momentum = None  # the plain mean over batches
        for images, _ in self._batches(_BATCH, self.images):
            module(images)
        return module.eval()

    def _batches(self, size: int, count: int) -> Batches:
        input = self.subject.network.input
        return self.subject.data.batches("train", input, batch_size=size, shuffle=True, seed=0, limit=count)

    def _example(self) -> Tensor:
        return torch.zeros(1, *self.subject.network.input.shape)


# Importances of Torch-Pruning: the class, and the gradients that it reads from the parameters. The squares that
# Hessian reads are summed here: its own `accumulate_grad` keeps those of the last image only (version 1.6.1).
IMPORTANCES = {
    "magnitude": ("GroupMagnitudeImportance", ""),
    "taylor": ("GroupTaylorImportance", "plain"),
    "hessian": ("GroupHessianImportance", "squared"),
    "lamp": ("LAMPImportance", ""),
    "fpgm": ("FPGMImportance", ""),
    "bnscale": ("BNScaleImportance", ""),
}


def residual(module: nn.Module) -> list[nn.Module]:
    """Convolutions that write to a residual stream: the stem, and the last of each block that adds one."""
    blocks = [block for block in module.modules() if type(block).__name__ == "Block"]
    last = [[layer for layer in block.modules() if isinstance(layer, nn.Conv2d)][-1] for block in blocks]
    first = next(layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
    return [first, *last] if blocks else []


def macs_of(module: nn.Module) -> float:
    """Multiply-accumulates for one image: of convolutions, linear layers and matrix products."""
    example = torch.zeros(1, 3, 32, 32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(example)
    return counter.get_total_flops() / 2


def _twin(subject: Subject, module: nn.Module, layer: nn.Module) -> nn.Module:
    """The layer of a copy that stands where `layer` does in the subject's own module."""
    name = next(name for name, own in subject.module.named_modules() if own is layer)
    return module.get_submodule(name)


Sparsifier = Callable[[nn.Module], nn.Module]


def sparsifiers(target: str) -> dict[str, Sparsifier]:
    """Functions that give a sparse copy of a module, by name, for the target (`2:4`, or a share of zeros)."""
    if ":" in target:
        keep, block = map(int, target.split(":"))
        return {"largest of each block": partial(_by_pattern, keep=keep, block=block)}
    share = float(target)
    return {
        "torch.nn.utils.prune global": partial(_globally, share=share),
        "torch.nn.utils.prune by layer": partial(_by_layer, share=share),
    }


def _globally(module: nn.Module, share: float) -> nn.Module:
    """The smallest weights of all layers together are zeroed."""
    module, layers = _weighted(module)
    torch_prune.global_unstructured(layers, pruning_method=torch_prune.L1Unstructured, amount=share)
    return _folded(module, layers)


def _by_layer(module: nn.Module, share: float) -> nn.Module:
    """The smallest weights of each layer are zeroed."""
    module, layers = _weighted(module)
    for layer, name in layers:
        torch_prune.l1_unstructured(layer, name, amount=share)
    return _folded(module, layers)


def _by_pattern(module: nn.Module, keep: int, block: int) -> nn.Module:
    """The largest `keep` of every `block` inputs stay, where blocks divide them: torch has no such pattern."""
    module, layers = _weighted(module)
    for layer, _ in layers:
        weight = layer.weight.data
        if weight.shape[1] % block == 0:
            rows = weight.movedim(1, -1).unflatten(-1, (-1, block))
            small = rows.abs().argsort(-1).argsort(-1) < block - keep
            weight[small.flatten(-2).movedim(-1, 1)] = 0
    return module


def _weighted(module: nn.Module) -> tuple[nn.Module, list[tuple[nn.Module, str]]]:
    """A copy of the module, and the weights of its convolutions and linear layers."""
    module = copy.deepcopy(module)
    return module, [(layer, "weight") for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]


def _folded(module: nn.Module, layers: list[tuple[nn.Module, str]]) -> nn.Module:
    """The module without its masks: the zeros are in its weights."""
    for layer, name in layers:
        torch_prune.remove(layer, name)
    return module
