"""How long chains take on a runtime: layers by themselves, timed beside what they could become."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from afina.graph import Network, capture
from afina.jobs.common.exporter import Exporter
from afina.progress import Progress
from afina.techniques.factorize import Chain, FactorizeConfig, Layer, frontier, layers_of, shaped
from afina.types import InputSpec

# A chain that takes more than this share of the layer's time is not worth it: times are not known any better.
_WORTH = 0.97


class ChainTimes:
    """Times of layers and chains, each alone in a file; layers of one shape are timed once.

    Timing every chain would take hours, so two ranks of each form are timed, and the time of any other chain is read
    off the line through the two points (MACs, seconds):

        timed     (1.0 M, 0.20 ms), (4.0 M, 0.50 ms)
        chain     2.0 M MACs: 0.20 + (2.0 - 1.0) * 0.30 / 3.0 = 0.30 ms

    Args:
        exporter: Exports and times.
        layers: The layers, by name.
        chains: The chains that each layer could become, by the name of the layer.
        progress: What the user sees.
    """

    def __init__(
        self, exporter: Exporter, layers: Mapping[str, Layer], chains: Mapping[str, Sequence[Chain]], progress: Progress
    ) -> None:
        self._exporter = exporter
        self._times_by_shape: dict[Any, dict[str, list[tuple[int, float]]]] = {}
        with progress.work("Timing chains", len(layers)) as bar:
            for name, layer in layers.items():
                if _shape(layer) not in self._times_by_shape:
                    self._times_by_shape[_shape(layer)] = self._timed(layer, chains[name])
                bar.advance(note=name)

    def whole(self, layer: Layer) -> float:
        """Seconds of the layer as it is; 0 where it cannot be timed alone."""
        return self._times_by_shape[_shape(layer)].get("", [(0, 0.0)])[0][1]

    def worth(self, layer: Layer, chains: Sequence[Chain]) -> list[tuple[Chain | None, float]]:
        """The chains that are faster than the layer, with their seconds; each has less loss than all faster ones."""
        timed = [(chain, seconds) for chain in chains if (seconds := self._seconds(layer, chain)) < math.inf]
        best, faster = math.inf, list[tuple[Chain | None, float]]()
        for chain, seconds in sorted(timed, key=lambda pair: pair[1]):
            if chain.loss < best and seconds < _WORTH * self.whole(layer):
                best = chain.loss
                faster.append((chain, seconds))
        return faster

    def _seconds(self, layer: Layer, chain: Chain) -> float:
        points = self._times_by_shape[_shape(layer)].get(chain.form)
        if not points:
            return math.inf
        (x0, y0), (x1, y1) = points[0], points[-1]
        slope = (y1 - y0) / (x1 - x0) if x1 > x0 else 0.0
        # Noise must not say that more work takes less time.
        return max(y0 + max(slope, 0.0) * (chain.macs - x0), 0.1 * y0)

    def _timed(self, layer: Layer, chains: Sequence[Chain]) -> dict[str, list[tuple[int, float]]]:
        alone = _alone(layer)
        if alone is None:
            return {}
        alone_layers, _ = layers_of(alone, FactorizeConfig())
        networks, macs = {"": alone}, {"": ("", layer.macs)}
        for form in {chain.form for chain in chains}:
            efficient = frontier([chain for chain in chains if chain.form == form], "macs")
            for chain in {id(chain): chain for chain in (efficient[len(efficient) // 3], efficient[-1])}.values():
                key = f"{form} {chain.ranks}"
                networks[key] = shaped(alone, alone_layers, {"layer": (form, chain.ranks)})
                macs[key] = (form, chain.macs)
        points_by_form: dict[str, list[tuple[int, float]]] = {}
        for key, measured in self._exporter.latencies(networks).items():
            form, work = macs[key]
            points_by_form.setdefault(form, []).append((work, measured.value))
        return {form: sorted(points) for form, points in points_by_form.items()}


def _shape(layer: Layer) -> Any:
    return layer.reader.shape, layer.before, layer.after, layer.reader.groups


class _Alone(nn.Module):
    """A layer on an input of its own size, from a grey image of as many numbers; its outputs are averaged."""

    def __init__(self, layer: nn.Module, shape: tuple[int, int, int], linear: bool) -> None:
        super().__init__()
        self.layer, self._shape, self._linear = layer, shape, linear

    def forward(self, image: Tensor) -> Tensor:
        x = image.reshape(-1, *self._shape)
        if self._linear:
            x = x.flatten(2).transpose(1, 2)
        outputs: Tensor = self.layer(x)
        return outputs.mean(1 if self._linear else (2, 3))


def _alone(layer: Layer) -> Network | None:
    """A network of that layer alone; None for convolutions whose kernels are not two-dimensional."""
    outputs, inputs, *kernel = layer.reader.shape
    groups, (height, width) = layer.reader.groups, layer.before
    channels = inputs * groups
    if not kernel:
        module: nn.Module = nn.Linear(inputs, outputs)
    elif len(kernel) == 2:
        stride = max(1, round(height / layer.after[0])), max(1, round(width / layer.after[1]))
        padding = kernel[0] // 2, kernel[1] // 2
        module = nn.Conv2d(channels, outputs, (kernel[0], kernel[1]), stride, padding, groups=groups)
    else:
        return None
    spec = InputSpec(channels * height, width, mean=(0.5,), std=(0.5,), order="L")
    return capture(_Alone(module, (channels, height, width), not kernel), spec)
