"""The layers of a network that can become chains, and what each chain does to the outputs."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from afina.errors import InputError, NothingToDo, did_you_mean
from afina.graph.cost import cost_of
from afina.graph.network import Network
from afina.graph.ops import arguments
from afina.graph.propagate import fake_values
from afina.graph.statistics import Effect, Moments, add_constant, find_readers, gather, tried
from afina.graph.stored import attribute
from afina.techniques.context import Context
from afina.techniques.factorize.config import Chosen, FactorizeConfig
from afina.techniques.factorize.forms import FORMS
from afina.techniques.factorize.options import Chain, Layer, between, chains_of, frontier
from afina.techniques.factorize.problem import lost_constant, problems_of

# Chains of one layer whose effect on the outputs is measured.
_MEASURED = 4


def layers_of(network: Network, config: FactorizeConfig) -> tuple[dict[str, Layer], dict[str, str]]:
    """The layers that can become chains, by name, and those that cannot with the reason.

    Raises:
        InputError: a layer to skip is not there.
        NothingToDo: no layer can.
    """
    readers = find_readers(network)
    known = {reader.name for reader in readers.values()}
    for name in config.skip:
        if name not in known:
            raise InputError(f"There is no layer {name!r}.", fix=did_you_mean(name, known))
    with network.inference():
        values = fake_values(network.module, (1, *network.input.shape))
    nodes = {node.name: node for node in network.graph.nodes}
    found, skipped = dict[str, Layer](), dict[str, str]()
    for reader in readers.values():
        node = nodes[reader.nodes[0]]
        size = _size if len(reader.shape) > 2 else _rows
        layer = Layer(reader, size(values[arguments(node)["input"]]), size(values[node]))
        why = _why_whole(layer, config)
        if why:
            skipped[reader.name] = why
        else:
            found[reader.name] = layer
    if not found:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(skipped.items())[:4])
        raise NothingToDo("No layer of this network can become a chain that is smaller.", why=reasons)
    return found, skipped


def uniform(network: Network, layers: Mapping[str, Layer], config: FactorizeConfig, context: Context) -> Chosen:
    """The same share of its parameters, or the same rank, for every layer that such a chain makes smaller.

    Raises:
        NothingToDo: the rank makes no layer smaller.
    """
    if config.rank is not None:
        return _same_rank(layers, config)
    moments = _moments(network, layers, context)
    found = {}
    for name, layer in layers.items():
        problems = problems_of(
            layer.reader, attribute(network.module, layer.reader.weight), moments.get(layer.reader.weight)
        )
        chains = frontier(chains_of(layer, problems, layer.forms(config.method), config.multiple), "parameters")
        fitting = [chain for chain in chains if chain.parameters <= config.share * layer.parameters]
        if fitting:
            found[name] = (fitting[-1].form, fitting[-1].ranks)
    return found


def chains_with_losses(
    network: Network, layers: Mapping[str, Layer], config: FactorizeConfig, context: Context
) -> dict[str, list[Chain]]:
    """For each layer the chains that it could become, with what each does to the network's outputs.

    A few of a layer's chains are put into the network, one at a time, to measure it; that of the others follows from
    their own error. Without images a chain's loss is its own error.
    """
    moments = _moments(network, layers, context)
    effect, scratch = None, network.copy()
    if context.calibration is not None:
        effect = Effect(network, context.first(len(layers) * _MEASURED * cost_of(network).macs))
    found: dict[str, list[Chain]] = {}
    with context.progress.work("Measuring layers", len(layers)) as bar:
        for name, layer in layers.items():
            own = moments.get(layer.reader.weight)
            weight = attribute(network.module, layer.reader.weight)
            problems = problems_of(layer.reader, weight, own)
            chains = chains_of(layer, problems, layer.forms(config.method), config.multiple)
            if effect is not None and own is not None:
                _measure(layer, chains, scratch, effect, own)
            found[name] = [replace(chain, weight=None) for chain in chains]
            if effect is None:
                for chain in found[name]:
                    chain.loss = chain.error
            bar.advance(note=name)
    return found


def _measure(layer: Layer, chains: list[Chain], scratch: Network, effect: Effect, moments: Moments) -> None:
    """Losses of all chains of a layer, through those of a few that are measured."""
    fitted = sorted((chain for chain in chains if chain.weight is not None), key=lambda chain: chain.error)
    near = [chain for chain in fitted if chain.error < 1.0] or fitted[:1]
    step = max(1, len(near) // _MEASURED)
    points = []
    for chain in near[::step][:_MEASURED]:
        with tried(scratch, [layer.reader]), torch.no_grad():
            assert chain.weight is not None
            weight = attribute(scratch.module, layer.reader.weight)
            lost = lost_constant(layer.reader, weight - chain.weight.to(weight), moments)
            if layer.reader.takes_constant:
                add_constant(scratch, layer.reader, lost)
            weight.copy_(chain.weight)
            points.append((chain.error, max(effect.of(scratch), 1e-12)))
    # A chain that is farther from its layer does no less harm, whatever chance there is in the measurement.
    points = _rising(points)
    for chain in chains:
        chain.loss = between(chain.error, points)


def _rising(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    found: list[tuple[float, float]] = []
    for error, loss in sorted(points):
        if not found:
            found.append((error, loss))
        elif error > found[-1][0] * 1.01:
            found.append((error, max(loss, found[-1][1] * (error / found[-1][0]) ** 0.25)))
    return found


def _moments(network: Network, layers: Mapping[str, Layer], context: Context) -> dict[str, Moments]:
    if context.calibration is None:
        return {}
    readers = {layer.reader.weight: layer.reader for layer in layers.values()}
    return gather(network, readers, context.stream(), context.images, context.progress)


def _same_rank(layers: Mapping[str, Layer], config: FactorizeConfig) -> Chosen:
    assert config.rank is not None
    found, largest = {}, 0
    for name, layer in layers.items():
        # One rank for all its letters says the same of every form but `auto`, which has no errors to choose by here.
        form = layer.forms("svd" if config.method == "auto" else config.method)[0]
        most = layer.most(form)
        largest = max(largest, *most)
        share = config.rank if isinstance(config.rank, float) else None
        wanted = [max(1, round(share * size)) if share else int(config.rank) for size in most]
        ranks = tuple(min(rank, size) for rank, size in zip(wanted, most, strict=True))
        if layer.chain(form, ranks, 0.0).parameters < layer.parameters:
            found[name] = (form, ranks)
    if not found:
        raise NothingToDo(
            f"A rank of {config.rank} makes no layer smaller.",
            why=f"The largest rank of any layer is {largest}, and a chain is smaller only well below that.",
            fix="Give a smaller rank.",
        )
    return found


def _why_whole(layer: Layer, config: FactorizeConfig) -> str:
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
    """Height and width of an activation; all of what is not two-dimensional counts as height."""
    sizes = [int(size) for size in value.shape[2:]]
    if len(sizes) == 2:
        return sizes[0], sizes[1]
    total = 1
    for size in sizes:
        total *= size
    return total, 1


def _rows(value: torch.Tensor) -> tuple[int, int]:
    """How many rows a linear layer reads for one image."""
    return int(value[0].numel() // value.shape[-1]), 1
