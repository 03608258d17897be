"""How far a change of a network moves its outputs, on one scale for all techniques."""

import contextlib
import gc
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from afina.graph.network import Network
from afina.graph.statistics.readers import Reader
from afina.graph.statistics.running import Run, Steps, most_kept
from afina.graph.stored import attribute

_TINY = 1e-9
_WORTH_BYTES = 8_000_000
# Bytes that may be kept of the network's values in front of a layer.
_KEPT_BYTES = 5e8


class Effect:
    """The outputs of a network on some images, with which those of changed networks are compared.

    Where only what stands behind some layers changed, the changed network goes on from what the network kept in front
    of them: over all layers that is half the work. Layers are best changed in the order of the graph.

    Args:
        network: The network before any change.
        images: `[N, C, H, W]`.
    """

    def __init__(self, network: Network, images: Tensor) -> None:
        self._parts, self._steps = images.split(network.batch), Steps(network)
        with network.inference():
            self._whole = _joined([network(part.to(network.device)) for part in self._parts])
            # Bytes for each place; none where the network cannot be run from the middle.
            alone = [] if self._steps.writes_into_weights else most_kept(self._steps, self._parts[0])
            self._kept = [len(self._parts) * kept for kept in alone]
        self._runs = [Run(self._steps, part) for part in self._parts]
        self._varies = {
            name: (value - value.mean(0)).square().sum().clamp_min(_TINY) for name, value in self._whole.items()
        }

    def of(self, changed: Network, since: Iterable[str] = ()) -> float:
        """Squared change of the outputs `f`, as a share of their variation over the images; mean over the outputs.

        `sum |changed(x) - f(x)|^2 / sum |f(x) - mean f|^2`: 0 where nothing changed, 1 where every image
        gets the mean output.

        Args:
            changed: The changed network.
            since: Names of the nodes whose weights changed, where it has the nodes of the network before and gives the
                same in front of them; none where more may have changed.
        """
        first = min((self._steps.places[name] for name in since), default=0)
        with changed.inference():
            if first and self._kept and self._kept[first] <= _KEPT_BYTES:
                steps = Steps(changed)
                now = _joined([run.onward(steps).outputs() for run in self._up_to(first)])
            else:
                now = _joined([changed(part.to(changed.device)) for part in self._parts])
        shares = [(now[name] - value).square().sum() / self._varies[name] for name, value in self._whole.items()]
        return float(torch.stack(shares).mean())

    def _up_to(self, place: int) -> list[Run]:
        """Runs of the network that stand in front of a place."""
        if self._runs[0].reached > place:
            self._runs = [Run(self._steps, part) for part in self._parts]
        for run in self._runs:
            run.go(place)
        return self._runs


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The outputs of all images by name, those that are numbers."""
    return {
        name: torch.cat([part[name] for part in parts]).double()
        for name, value in parts[0].items()
        if value.is_floating_point()
    }


@contextlib.contextmanager
def tried(network: Network, readers: Iterable[Reader]) -> Iterator[Network]:
    """For the length of a `with` block the weights and constants of some layers may be written; then they are put back.

    One network serves for many experiments: a copy for each would cost its memory and the time to copy the graph.
    """
    names = {name for reader in readers for name in (reader.weight, reader.bias, reader.shift) if name is not None}
    before = {name: attribute(network.module, name).detach().clone() for name in names}
    try:
        yield network
    finally:
        with torch.no_grad():
            for name, value in before.items():
                attribute(network.module, name).copy_(value)


def freed(network: Network) -> None:
    """Give back the memory of networks like `network` that are no longer used: graphs hold cycles of references.

    `gc.collect()` takes half a second in a process with torch, so it is called for large networks only.
    """
    if sum(value.numel() * value.element_size() for value in network.module.state_dict().values()) > _WORTH_BYTES:
        gc.collect()
