"""Moving scale between neighbouring layers, which leaves a float network as it is and makes it easier to quantize.

Where channel `j` of a layer's output passes only through functions with `f(s x) = s f(x)`, dividing it by `s_j` and
multiplying what the next layers' weights take of it by `s_j` changes nothing:

    s_j = max|x_j|^a / max|w_j|^(1 - a)

with the channel's largest value on the calibration images and the largest weight that reads it. Channels that reach far
no longer decide the range of all: two channels that reach to `[8.0 0.5]` and are read by weights up to `[0.1 0.4]` have
the scales `[8.94 1.12]` with `a = 0.5`, and `[2.83 0.354]` once they are taken around one. Then the channels reach to
`[2.83 1.41]`, and the weights to `[0.283 0.141]`: both sides vary by a factor of two, where it was 16 and 4.

(Nagel et al. 2019, arXiv 1906.04721, equations 5 to 11, for layers in a row; Xiao et al. 2023, arXiv 2211.10438,
equation 4, for norms before linear layers.)
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import Node

from afina.graph.cost import cost_of
from afina.graph.network import Network
from afina.graph.ops import arguments, op_name
from afina.graph.statistics import Effect, freed, watch
from afina.graph.stored import attribute, is_stored, own, uses_of
from afina.techniques.context import Context
from afina.techniques.quantize.config import QuantizeConfig
from afina.techniques.quantize.prepared import Prepared, Source
from afina.techniques.quantize.quantizer import layer_name
from afina.techniques.quantize.weights import round_layers

# Ops that hand a channel's scale on: what they do is homogeneous, and channels stay where they are.
_HOMOGENEOUS = frozenset(
    "relu relu_ leaky_relu leaky_relu_ dropout contiguous clone max_pool2d avg_pool2d adaptive_avg_pool2d "
    "max_pool1d avg_pool1d adaptive_avg_pool1d adaptive_max_pool2d".split()
)
_PRODUCERS = frozenset(("conv1d", "conv2d", "conv3d", "linear", "layer_norm"))
_READERS = frozenset(("conv1d", "conv2d", "conv3d", "linear"))
# The strengths `a` that are tried.
_STRENGTHS = (0.5, 0.75)
# Images that these are compared on: as many as this number of MACs allows, between the fewest and the most.
_WORK, _FEWEST_IMAGES, _MOST_IMAGES = 4e10, 8, 64
# The change of the outputs must fall by this share for scale to be moved.
_WORTH = 0.03
# A channel is scaled by no more than this, up or down.
_MOST_SCALE, _TINY = 100.0, 1e-8


@dataclass(frozen=True)
class Link:
    """A layer or norm whose output channels reach nothing but the weights of some layers.

    Attributes:
        producer: The node of the layer or norm; its weight (and bias) is divided by the scales.
        last: The node that the readers read: the producer, or what follows it alone.
        readers: The nodes of the layers whose weights are multiplied by the scales.
    """

    producer: Node
    last: Node
    readers: tuple[Node, ...]


def equalize(source: Source, config: QuantizeConfig, context: Context) -> tuple[Source, tuple[str, ...]]:
    """Move scale between layers where quantization then changes the network's outputs less; gives a source and a note.

    Strengths `a` are compared by the outputs of the network with ranges to the extremes and weights to nearest.
    `source` is left as it is, and returned, without a note, where the outputs gain less than 3%.
    """
    links = find_links(source.network)
    if config.equalize == "none" or config.default.activations == "none" or not links or context.calibration is None:
        return source, ()
    macs = float(cost_of(source.network).macs)
    images = context.first(macs, int(min(max(_WORK / macs, _FEWEST_IMAGES), _MOST_IMAGES)))
    largest_values = _largest_values(source.network, links, images)
    exact = Effect(source.network, images)
    best, least, strength = source, _loss(source, config, images, exact), 0.0
    plain, readers = least, frozenset(layer_name(reader) for link in links for reader in link.readers)
    for a in _STRENGTHS:
        network = _with_moved_scale(source.network, links, largest_values, a)
        candidate = replace(source, network=network, histograms={}, scales={}, equalized=readers)
        loss = _loss(candidate, config, images, exact)
        if loss < least * (1 - _WORTH):
            best, least, strength = candidate, loss, a
        del candidate, network
        freed(source.network)
    if best is source:
        return source, ()
    note = f"Scale was moved between {len(links)} pairs of layers (strength {strength:g}): the noise of the outputs "
    return best, (f"{note}fell to {least / max(plain, _TINY):.0%} of what it was before.",)


def find_links(network: Network) -> list[Link]:
    """All producers whose output channels can be scaled."""
    links = []
    for node in network.graph.nodes:
        if node.op != "call_function" or op_name(node) not in _PRODUCERS or not _has_private_weights(node):
            continue
        last = node
        while len(last.users) == 1 and op_name(next(iter(last.users))) in _HOMOGENEOUS:
            last = next(iter(last.users))
        readers = tuple(last.users)
        if readers and all(_reads(network, node, reader, last) for reader in readers):
            links.append(Link(node, last, readers))
    return links


def _has_private_weights(node: Node) -> bool:
    """Whether a node has a weight, and it and the bias are stored and used nowhere else."""
    a = arguments(node)
    if a["weight"] is None:
        return False
    parameters = [a[key] for key in ("weight", "bias") if a[key] is not None]
    return all(is_stored(parameter) and uses_of(parameter) == 1 for parameter in parameters)


def _reads(network: Network, producer: Node, reader: Node, last: Node) -> bool:
    """Whether a reader takes the producer's channels, all of them, as the inputs of its weight."""
    if reader.op != "call_function" or op_name(reader) not in _READERS or not _has_private_weights(reader):
        return False
    a = arguments(reader)
    if a["input"] is not last:
        return False
    over_last = op_name(producer) in ("linear", "layer_norm")
    if over_last != (op_name(reader) == "linear"):
        return False
    if op_name(producer) == "layer_norm" and len(arguments(producer)["normalized_shape"]) != 1:
        return False
    channels = _channels(network, producer)
    weight: Tensor = attribute(network.module, str(a["weight"].target))
    if over_last:
        return weight.shape[1] == channels
    return int(a["groups"]) == 1 or int(a["groups"]) == channels == weight.shape[0]


def _channels(network: Network, producer: Node) -> int:
    """How many output channels a producer has."""
    return int(attribute(network.module, str(arguments(producer)["weight"].target)).shape[0])


def _largest_values(network: Network, links: Iterable[Link], images: Tensor) -> dict[str, Tensor]:
    """The largest absolute value of each channel, `[channels]`, by the name of each link's last node."""
    is_channel_last = {link.last.name: op_name(link.producer) in ("linear", "layer_norm") for link in links}
    largest: dict[str, Tensor] = {}

    def take(node: Node, value: Tensor) -> None:
        channel = value.ndim - 1 if is_channel_last[node.name] else 1
        of_batch = value.abs().transpose(0, channel).flatten(1).amax(1)
        largest[node.name] = torch.maximum(largest[node.name], of_batch) if node.name in largest else of_batch

    for part in images.split(network.batch):
        watch(network, part, lambda node: node.name in is_channel_last, take)
    return largest


def _with_moved_scale(
    network: Network, links: Iterable[Link], largest_values: dict[str, Tensor], strength: float
) -> Network:
    """A copy of the network with the scales of all links moved; it shares the weights that stay as they are."""
    twin = network.copy(network.tensors)
    with torch.no_grad():
        for link in links:
            weights = [own(twin.module, str(arguments(reader)["weight"].target)) for reader in link.readers]
            columns = [_by_input(w, reader) for w, reader in zip(weights, link.readers, strict=True)]
            largest_weights = torch.stack([c.abs().flatten(1).amax(1) for c in columns]).amax(0).clamp_min(_TINY)
            largest = largest_values[link.last.name]
            scale = largest.clamp_min(_TINY) ** strength / largest_weights ** (1 - strength)
            # Only ratios between channels matter: around one, so that nothing leaves the range of float.
            scale = (scale / scale.log().mean().exp()).clamp(1 / _MOST_SCALE, _MOST_SCALE)
            scale = torch.where(largest > 0, scale, torch.ones_like(scale))
            for column in columns:
                column *= scale.reshape(-1, *[1] * (column.ndim - 1))
            for key in ("weight", "bias"):
                parameter = arguments(link.producer)[key]
                if parameter is not None:
                    value = own(twin.module, str(parameter.target))
                    value /= scale.reshape(-1, *[1] * (value.ndim - 1))
    return twin


def _by_input(weight: Tensor, reader: Node) -> Tensor:
    """A view of a weight with the channels that it reads as its first dimension."""
    groups = int(arguments(reader).get("groups") or 1)
    return weight if groups > 1 else weight.transpose(0, 1)


def _loss(source: Source, config: QuantizeConfig, images: Tensor, exact: Effect) -> float:
    """The change of the outputs by quantization, with ranges to the extremes and weights to nearest."""
    prepared = Prepared(source, replace(config, calibration="minmax", rounding="nearest"))
    quick = Context(calibration=lambda: iter(images.split(source.network.batch)), images=len(images))
    # The histograms of these few images must not stand for those of all images.
    prepared.source = Source(source.network)
    prepared.calibrate(quick, "minmax")
    round_layers(prepared, Context())
    with prepared.rounded_once() as network:
        return exact.of(network)
