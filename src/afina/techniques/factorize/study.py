"""The layers of a network that can become chains, and what each chain does to the network's outputs."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from afina.errors import InputError, NothingToDo, did_you_mean
from afina.graph.cost import cost_of
from afina.graph.network import Network
from afina.graph.ops import arguments
from afina.graph.propagate import fake_values
from afina.graph.statistics import Effect, Moments, add_constant, find_readers, tried
from afina.graph.stored import attribute
from afina.techniques.context import Context
from afina.techniques.factorize.config import Chosen, FactorizeConfig
from afina.techniques.factorize.forms import FORMS
from afina.techniques.factorize.options import Chain, Layer, chains_of, frontier, interpolate
from afina.techniques.factorize.problem import lost_constant, problems_of

# How many chains of a layer are put into the network to measure their effect on the outputs.
MEASURED = 2


def layers_of(network: Network, config: FactorizeConfig) -> tuple[dict[str, Layer], dict[str, str]]:
    """The layers that can become chains, by name, and the reason for each of the others.

    Raises:
        InputError: a layer to skip is not there.
        NothingToDo: no layer can become a chain that is smaller.

    Example:
        >>> from torch import nn
        >>> from afina.graph import capture
        >>> from afina.types import InputSpec, TaskSpec
        >>> module = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
        >>> grey = InputSpec(4, 4, mean=(0.5,), std=(0.5,), order="L")
        >>> network = capture(module, grey, TaskSpec("classification", ("cat", "dog")))
        >>> layers, reasons = layers_of(network, FactorizeConfig(skip=("3",)))
        >>> list(layers), layers["0"].before, layers["0"].after, reasons
        (['0'], (4, 4), (2, 2), {'3': 'asked to stay whole'})
    """
    readers = find_readers(network)
    names = {reader.name for reader in readers.values()}
    for name in config.skip:
        if name not in names:
            raise InputError(f"There is no layer {name!r}.", fix=did_you_mean(name, names))
    with network.inference():
        values = fake_values(network.module, (network.traced_batch(1), *network.input.shape))
    nodes = {node.name: node for node in network.graph.nodes}
    layers, skipped = dict[str, Layer](), dict[str, str]()
    for reader in readers.values():
        node = nodes[reader.nodes[0]]
        size = _size if len(reader.shape) > 2 else _rows
        layer = Layer(reader, size(values[arguments(node)["input"]]), size(values[node]))
        why = _why_whole(layer, config)
        if why:
            skipped[reader.name] = why
        else:
            layers[reader.name] = layer
    if not layers:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(skipped.items())[:4])
        raise NothingToDo("No layer of this network can become a chain that is smaller.", why=reasons)
    return layers, skipped


def uniform(network: Network, layers: Mapping[str, Layer], config: FactorizeConfig, context: Context) -> Chosen:
    """Form and ranks of every layer when all keep the same share of their parameters, or have the same rank.

    Layers that no chain makes so small are not in it.

    Args:
        network: The network.
        layers: Its layers that can become chains.
        config: The share or the rank, and the forms.
        context: Calibration images; without any all inputs of a layer count the same.

    Raises:
        NothingToDo: the rank makes no layer smaller.
    """
    if config.rank is not None:
        return _same_rank(layers, config)
    moments = _moments(network, layers, context)
    chosen = {}
    for name, layer in layers.items():
        problems = problems_of(
            layer.reader, attribute(network.module, layer.reader.weight), moments.get(layer.reader.weight)
        )
        chains = frontier(chains_of(layer, problems, layer.forms(config.method), config.multiple), "parameters")
        fitting = [chain for chain in chains if chain.parameters <= config.share * layer.parameters]
        if fitting:
            chosen[name] = (fitting[-1].form, fitting[-1].ranks)
    return chosen


def chains_with_losses(
    network: Network, layers: Mapping[str, Layer], config: FactorizeConfig, context: Context
) -> dict[str, list[Chain]]:
    """For each layer the chains that it could become, with `Chain.loss`: what each does to the network's outputs.

    A few of a layer's chains are put into the network, one at a time, to measure their losses; those of the others
    follow from their errors. Without images a chain's loss is its error.

    Args:
        network: The network; it is left as it is.
        layers: Its layers that can become chains.
        config: The forms, and the multiple of the ranks.
        context: Calibration images, progress.
    """
    what = f"chains of {config.method} in multiples of {config.multiple}: {list(layers)}"
    rows = (
        _measured(network, layers, config, context)
        if context.calibration is None
        else context.measured(network, what, lambda: _measured(network, layers, config, context))
    )
    return {name: [Chain(**{**row, "ranks": tuple(row["ranks"])}) for row in rows[name]] for name in layers}


def _measured(
    network: Network, layers: Mapping[str, Layer], config: FactorizeConfig, context: Context
) -> dict[str, list[dict[str, Any]]]:
    """The chains of each layer with their losses, without their weights, as JSON holds them."""
    moments = _moments(network, layers, context)
    effect, scratch = None, network.copy()
    if context.calibration is not None:
        effect = Effect(network, context.first(len(layers) * MEASURED * cost_of(network).macs))
    by_layer: dict[str, list[dict[str, Any]]] = {}
    with context.progress.work("Measuring layers", len(layers)) as bar:
        for name, layer in layers.items():
            layer_moments = moments.get(layer.reader.weight)
            weight = attribute(network.module, layer.reader.weight)
            problems = problems_of(layer.reader, weight, layer_moments)
            chains = chains_of(layer, problems, layer.forms(config.method), config.multiple)
            if effect is not None and layer_moments is not None:
                _measure(layer, chains, scratch, effect, layer_moments)
            for chain in chains:
                chain.loss, chain.weight = (chain.error if effect is None else chain.loss), None
            by_layer[name] = [asdict(chain) for chain in chains]
            bar.advance(note=name)
    return by_layer


# Of the chains that were fitted, a few are measured. Three of them with the errors 0.02, 0.1 and 0.4, whose losses are
# measured as 0.001, 0.0008 and 0.02, would give the curve
#
#     error    0.02     0.1      0.4
#     loss     0.001    0.0015   0.02       `_rising`: 0.0008 was smaller by chance
#
# and a chain with the error 0.2 has the loss 0.0055, straight between the last two on logarithmic scales.
def _measure(layer: Layer, chains: list[Chain], scratch: Network, effect: Effect, moments: Moments) -> None:
    """Sets the losses of all chains of a layer, through those of a few that are measured.

    Args:
        layer: The layer.
        chains: Its chains, some of which were fitted; `loss` is set.
        scratch: A copy of the network, whose weights are changed and put back.
        effect: The effect of a changed network.
        moments: What the layer reads.
    """
    fitted = sorted((chain for chain in chains if chain.weight is not None), key=lambda chain: chain.error)
    near = [chain for chain in fitted if chain.error < 1.0] or fitted[:1]
    if not near:
        return
    # About evenly among them: of nine, the third and the seventh.
    places = [int((2 * number + 1) * len(near) / (2 * MEASURED)) for number in range(MEASURED)]
    points = []
    for chain in [near[place] for place in dict.fromkeys(places)]:
        with tried(scratch, [layer.reader]), torch.no_grad():
            assert chain.weight is not None
            weight = attribute(scratch.module, layer.reader.weight)
            lost = lost_constant(layer.reader, weight - chain.weight.to(weight), moments)
            if layer.reader.takes_constant:
                add_constant(scratch, layer.reader, lost)
            weight.copy_(chain.weight)
            points.append((chain.error, max(effect.of(scratch, since=layer.reader.nodes), 1e-12)))
    points = _rising(points)
    for chain in chains:
        chain.loss = interpolate(chain.error, points)


def _rising(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Measured points (error, loss) in rising order of both: a chain that is farther from its layer does more harm.

    What a measurement shows against that is chance: each loss is at least the one before times the fourth root of the
    ratio of the errors. Points whose error is within 1% of the one before are left out: the curve would be too steep.

    Example:
        >>> [(error, round(loss, 4)) for error, loss in _rising([(0.4, 0.02), (0.02, 0.001), (0.1, 0.0008)])]
        [(0.02, 0.001), (0.1, 0.0015), (0.4, 0.02)]
    """
    rising: list[tuple[float, float]] = []
    for error, loss in sorted(points):
        if not rising:
            rising.append((error, loss))
        elif error > rising[-1][0] * 1.01:
            rising.append((error, max(loss, rising[-1][1] * (error / rising[-1][0]) ** 0.25)))
    return rising


def _moments(network: Network, layers: Mapping[str, Layer], context: Context) -> dict[str, Moments]:
    """What the layers read, by the weight's name; empty without images."""
    if context.calibration is None:
        return {}
    readers = {layer.reader.weight: layer.reader for layer in layers.values()}
    return context.moments(network, readers)


def _same_rank(layers: Mapping[str, Layer], config: FactorizeConfig) -> Chosen:
    """Chains of `config.rank` (at most each layer's largest), for the layers that they make smaller."""
    assert config.rank is not None
    chosen, largest = {}, 0
    for name, layer in layers.items():
        # One rank for all its letters says the same of every form but `auto`, which has no errors to choose by here.
        form = layer.forms("svd" if config.method == "auto" else config.method)[0]
        most = layer.most(form)
        largest = max(largest, *most)
        share = config.rank if isinstance(config.rank, float) else None
        requested = [max(1, round(share * size)) if share else int(config.rank) for size in most]
        ranks = tuple(min(rank, size) for rank, size in zip(requested, most, strict=True))
        if layer.chain(form, ranks, 0.0).parameters < layer.parameters:
            chosen[name] = (form, ranks)
    if not chosen:
        raise NothingToDo(
            f"A rank of {config.rank} makes no layer smaller.",
            why=f"The largest rank of any layer is {largest}, and a chain is smaller only well below that.",
            fix="Give a smaller rank.",
        )
    return chosen


def _why_whole(layer: Layer, config: FactorizeConfig) -> str:
    """Why a layer cannot become a chain; empty where it can."""
    reader = layer.reader
    if reader.name in config.skip:
        return "asked to stay whole"
    if reader.groups > 1 and reader.shape[1] == 1:
        return "depthwise: each output reads one input only"
    smallest = min(
        (layer.chain(form, (1,) * len(FORMS[form].ranks), 0.0).parameters for form in layer.forms(config.method)),
    )
    return "" if smallest < layer.parameters else "too small: no rank makes it smaller"


def _size(value: torch.Tensor) -> tuple[int, int]:
    """Height and width of an activation `[N, C, ...]`; pixels that are not in two dimensions all count as height."""
    sizes = [int(size) for size in value.shape[2:]]
    if len(sizes) == 2:
        return sizes[0], sizes[1]
    total = 1
    for size in sizes:
        total *= size
    return total, 1


def _rows(value: torch.Tensor) -> tuple[int, int]:
    """How many rows a linear layer reads for one image, as a height, and a width of 1."""
    return int(value[0].numel() // value.shape[-1]), 1
