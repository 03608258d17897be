"""What a user of `tensorly` does: each weight decomposed by itself, without images.

A layer's weight is put back as the dense one that its chain stands for, which answers as the chain does; what the chain
would hold is counted. The first layer and the classifier stay whole, as is usual: they are small and do harm. Ranks are
either the same share of each layer, or, for the two forms that are an SVD of a matrix, what leaves every layer the
same share of its spectrum's energy. With `norms` the statistics of batch norm are taken anew on 1,024 training
images, which needs images but is what a careful user does.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import lru_cache

import tensorly
import torch
from rows import Row, Subject
from tensorly.decomposition import parafac, partial_tucker
from torch import Tensor, nn

from afina.graph import capture
from afina.graph.cost import cost_of
from afina.techniques.factorize import FactorizeConfig, Layer, layers_of
from afina.techniques.factorize.forms import FORMS
from afina.training import evaluate

IMAGES, _BATCH, _STEPS = 1024, 64, 40
# A peer that is so far below Afina on the first images is not run on the others.
SAMPLE, FAR = 2000, 0.05
Ranks = tuple[int, ...]
tensorly.set_backend("pytorch")


def svd(weight: Tensor, ranks: Ranks) -> Tensor:
    """Channel-wise: outputs against all else."""
    return _truncated(weight.flatten(1), ranks[0]).reshape(weight.shape)


def spatial(weight: Tensor, ranks: Ranks) -> Tensor:
    """Rows of the kernel against columns."""
    outputs, inputs, height, width = weight.shape
    found = _truncated(_separated(weight), ranks[0])
    return found.reshape(outputs, width, inputs, height).permute(0, 2, 3, 1)


def tucker(weight: Tensor, ranks: Ranks) -> Tensor:
    """Over outputs and inputs."""
    (core, factors), _ = partial_tucker(weight, rank=list(ranks), modes=[0, 1], init="svd")
    return tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1])


def cp(weight: Tensor, ranks: Ranks) -> Tensor:
    """Rank-one terms, by alternating least squares."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Trying to compute SVD with n_eigenvecs")
        found = parafac(weight, rank=ranks[0], n_iter_max=100, init="svd", random_state=0)
    return tensorly.cp_to_tensor(found)


# Of each way: its form, what gives the weight, and whether ranks go by the energy of the spectrum.
WAYS: dict[str, tuple[str, Callable[[Tensor, Ranks], Tensor], bool]] = {
    "svd": ("svd", svd, False),
    "spatial": ("spatial", spatial, False),
    "tucker": ("tucker", tucker, False),
    "cp": ("cp", cp, False),
    "svd energy": ("svd", svd, True),
    "spatial energy": ("spatial", spatial, True),
}


class Plain:
    """Plain decompositions of one network.

    Args:
        subject: The network.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        layers, _ = layers_of(subject.network, FactorizeConfig())
        first = next(iter(layers))
        self.layers = {
            name: layer for name, layer in layers.items() if name != first and math.prod(layer.shape[2:]) > 1
        }
        self._whole = cost_of(subject.network).parameters
        self._made = lru_cache(maxsize=1)(self._module)

    def row(self, way: str, share: float, norms: bool, ours: float) -> Row:
        """Accuracy and exact share of the parameters; on a sample of the images where that is far below `ours`."""
        module, parameters = self._made(way, share)
        if norms:
            module = self._renormed(deepcopy(module))
        network = capture(module, self.subject.network.input, self.subject.network.task)
        quality = evaluate(network, self.subject.data, limit=SAMPLE)
        if quality.value > ours - FAR:
            quality = evaluate(network, self.subject.data)
        return {
            "accuracy": round(quality.value, 5),
            "images": quality.n,
            "original": round(self.subject.quality, 5),
            "parameters": round(parameters / self._whole, 4),
        }

    def _module(self, way: str, share: float) -> tuple[nn.Module, int]:
        form, decompose, by_energy = WAYS[way]
        chosen = self._fitting(form, share * self._whole, self._spectra(form) if by_energy else {})
        module = deepcopy(self.subject.module).eval()
        with torch.no_grad():
            for name, ranks in chosen.items():
                weight = module.get_parameter(self.layers[name].reader.weight)
                weight.copy_(decompose(weight.double(), ranks))
        return module, self._parameters(form, chosen)

    def _fitting(self, form: str, limit: float, spectra: Mapping[str, Tensor]) -> dict[str, Ranks]:
        """The largest ranks of one rule whose chains hold `limit` parameters with the rest, by bisection."""
        low, high = 0.0, 1.0
        for _ in range(_STEPS):
            middle = (low + high) / 2
            fits = self._parameters(form, self._ranks(form, middle, spectra)) <= limit
            low, high = (middle, high) if fits else (low, middle)
        return self._ranks(form, low, spectra)

    def _ranks(self, form: str, share: float, spectra: Mapping[str, Tensor]) -> dict[str, Ranks]:
        """Of each layer; one that its chain would not make smaller stays whole.

        By a share of the layer's parameters, or of the energy of its spectrum, where spectra are given.
        """
        found = {}
        for name, layer in self.layers.items():
            if spectra:
                ranks: Ranks = (int((spectra[name] < share).sum()) + 1,)
            elif form == "tucker":
                ranks = _even(layer, share)
            else:
                ranks = (max(1, int(share * layer.parameters / FORMS[form].parameters(layer.shape, (1,)))),)
            if FORMS[form].parameters(layer.shape, ranks) < layer.parameters:
                found[name] = ranks
        return found

    def _parameters(self, form: str, chosen: Mapping[str, Ranks]) -> int:
        saved = sum(
            self.layers[name].parameters - FORMS[form].parameters(self.layers[name].shape, ranks)
            for name, ranks in chosen.items()
        )
        return self._whole - saved

    def _spectra(self, form: str) -> dict[str, Tensor]:
        """Of each layer, the share of the energy that so many components hold."""
        found = {}
        for name, layer in self.layers.items():
            weight = self.subject.module.get_parameter(layer.reader.weight).detach().double()
            energies = torch.linalg.svdvals(weight.flatten(1) if form == "svd" else _separated(weight)).square()
            found[name] = energies.cumsum(0) / energies.sum()
        return found

    def _renormed(self, module: nn.Module) -> nn.Module:
        """The module with the statistics of its norms taken anew."""
        module.train()
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.reset_running_stats()
                layer.momentum = None  # the plain mean over batches
        spec, data = self.subject.network.input, self.subject.data
        with torch.no_grad():
            for images, _ in data.batches("train", spec, batch_size=_BATCH, shuffle=True, seed=0, limit=IMAGES):
                module(images)
        return module.eval()


def _even(layer: Layer, share: float) -> Ranks:
    """Ranks of a Tucker chain that are the same share of outputs and inputs, for a share of the parameters."""
    sizes: Sequence[int] = layer.shape[:2]
    for step in range(1000, 0, -1):
        ranks = tuple(max(1, int(step / 1000 * size)) for size in sizes)
        if FORMS["tucker"].parameters(layer.shape, ranks) <= share * layer.parameters:
            return ranks
    return (1, 1)


def _truncated(matrix: Tensor, rank: int) -> Tensor:
    left, sizes, right = tensorly.tenalg.svd_interface(matrix, n_eigenvecs=rank)
    return (left * sizes) @ right


def _separated(weight: Tensor) -> Tensor:
    """`[outputs * width, inputs * height]`."""
    outputs, inputs, height, width = weight.shape
    return weight.permute(0, 3, 1, 2).reshape(outputs * width, inputs * height)
