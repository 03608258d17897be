"""The technique: layers become chains of smaller ones, each fitted in the order of the graph to what the layer gave.

For one layer after the other (in a large network for a few at a time), with the original network beside it:

1. `compare` runs images through both networks: the rows x' that the layer reads behind the chains before it, and the
   outputs y that the layer gave in the original.
2. `solve` finds the weight that comes nearest to y on x' (least squares), which corrects errors of earlier chains.
3. `fit` finds the chain nearest to that weight, in the metric of x'.
4. The weight that the chain stands for takes the layer's place in a dense copy of the network, so that step 1 of the
   layers behind sees it. Layers that become no chain stop after step 2.

In the end the chains are written into the graph (`rewriting`).
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, replace

import torch
from torch import Tensor

from afina.errors import InputError, NothingToDo, did_you_mean
from afina.graph.cost import cost_of
from afina.graph.network import Network
from afina.graph.propagate import refresh_meta
from afina.graph.statistics import (
    Moments,
    Reader,
    add_constant,
    constant_of,
    find_readers,
    moments_in_turn,
    output_errors,
    solve,
)
from afina.graph.stored import attribute
from afina.techniques.base import DENSE_WEIGHTS, FLOAT_WEIGHTS, Technique, step_of_config
from afina.techniques.context import Context
from afina.techniques.factorize.config import Chosen, FactorizeConfig
from afina.techniques.factorize.fitting import WORK
from afina.techniques.factorize.forms import FORMS
from afina.techniques.factorize.options import Layer, dense_weight, fit
from afina.techniques.factorize.problem import lost_constant, problems_of
from afina.techniques.factorize.rewriting import write_chain
from afina.techniques.factorize.study import layers_of, uniform
from afina.types import Record

# By the layer's name, the factors of each group in the order of the form.
Factors = dict[str, list[list[Tensor]]]


def apply(network: Network, config: FactorizeConfig, context: Context) -> tuple[Network, Record]:
    """A network whose layers are chains, and the record; the input is left as it was.

    The result is ordinary: the layers of a chain train, are pruned along their ranks, and are quantized like any other.
    With images each layer is first refitted, on what it reads now, to what it gave before, and its chain is the
    nearest to that in the metric of what it reads; without any, all inputs count the same.

    Args:
        network: The network.
        config: Which layers become chains, and of what size.
        context: Calibration images and, for `Record.layers`, held-out ones; progress.

    Raises:
        InputError: the configuration is not possible for this network.
        NothingToDo: no layer can become a chain that is smaller.
    """
    start = time.monotonic()
    network = network.copy().eval() if network.training else network
    layers, skipped = layers_of(network, config)
    chosen = config.layers or uniform(network, layers, config, context)
    _check(chosen, layers, skipped)
    if not chosen:
        raise NothingToDo("No layer has a chain of so few parameters.", fix="Keep a larger share.")
    dense = network.copy()
    factors = _fit(network, dense, layers, chosen, config, context)
    result = _rewritten(dense, layers, chosen, factors)
    kept_whole = {name: "no chain pays at this target" for name in layers if name not in chosen}
    return result, Record(
        step=step_of_config("factorize", replace(config, layers=chosen)),
        touched=tuple(chosen),
        skipped={**skipped, **kept_whole},
        before=asdict(cost_of(network)),
        after=asdict(cost_of(result)),
        seconds=time.monotonic() - start,
        notes=tuple(f"{name}: {form} of rank {format_ranks(ranks)}" for name, (form, ranks) in chosen.items()),
        layers=_table(network, dense, layers, chosen, context),
    )


def shaped(network: Network, layers: Mapping[str, Layer], chosen: Chosen) -> Network:
    """A network of the shape that chosen chains give, with random weights: to cost it or to time it.

    Args:
        network: The network; it is left as it is.
        layers: Its layers that can become chains.
        chosen: Form and ranks of those that do.
    """
    generator = torch.Generator().manual_seed(0)
    factors = {
        name: [
            [
                torch.randn(shape, generator=generator) / shape[-1]
                for shape in FORMS[form].shapes(layers[name].shape, ranks)
            ]
            for _ in range(layers[name].reader.groups)
        ]
        for name, (form, ranks) in chosen.items()
    }
    return _rewritten(network, layers, chosen, factors)


def format_ranks(ranks: tuple[int, ...]) -> str:
    """Ranks as users read them.

    Example:
        >>> format_ranks((5, 4))
        '5 x 4'
    """
    return " x ".join(map(str, ranks))


def _rewritten(network: Network, layers: Mapping[str, Layer], chosen: Chosen, factors: Factors) -> Network:
    """A copy of the network with chains of these factors in the place of the layers."""
    result = network.copy()
    for name, layer_factors in factors.items():
        write_chain(result, layers[name].reader, chosen[name][0], layer_factors)
    result.module.graph.lint()
    result.module.recompile()
    refresh_meta(result.module)
    return result


def _check(chosen: Chosen, layers: Mapping[str, Layer], skipped: Mapping[str, str]) -> None:
    """Raises `InputError` where a layer is not there, cannot take its form, or has ranks that are too large."""
    for name, (form, ranks) in chosen.items():
        if name not in layers:
            raise InputError(
                f"There is no layer {name!r} to factorize.",
                why=skipped.get(name, ""),
                fix=did_you_mean(name, layers),
            )
        layer = layers[name]
        if form not in (*layer.forms(form), *layer.forms("auto")):
            raise InputError(
                f"{name} cannot be written as {form}.",
                why=_why_not(layer),
                fix=f"It takes: {', '.join(layer.forms('auto'))}.",
            )
        if any(rank > most for rank, most in zip(ranks, layer.most(form), strict=True)):
            raise InputError(
                f"{name}: rank {format_ranks(ranks)} is above the largest that means anything, "
                f"{format_ranks(layer.most(form))}.",
                fix="Give a smaller rank.",
            )


def _why_not(layer: Layer) -> str:
    """Why a layer takes the svd alone."""
    if layer.reader.groups > 1:
        return f"It is a convolution in {layer.reader.groups} groups, each of which is a matrix of its own."
    return "It is a matrix: its kernel has nothing to separate."


def _fit(
    network: Network,
    dense: Network,
    layers: Mapping[str, Layer],
    chosen: Chosen,
    config: FactorizeConfig,
    context: Context,
) -> Factors:
    """Factors of the chosen layers; `dense` gets the weights that they stand for, and refitted ones elsewhere."""
    by_weight = {layers[name].reader.weight: name for name in chosen}
    if context.calibration is None:
        return {name: _chain(dense, layers[name], chosen[name], None) for name in chosen}
    readers = find_readers(network)
    weights = [name for name, reader in readers.items() if name in by_weight or (config.refit and reader.blocks == 1)]
    factors: Factors = {}
    with context.progress.work("Fitting chains", len(weights)) as bar:
        chosen_readers = {weight: readers[weight] for weight in weights}
        for measured, _ in moments_in_turn(network, dense, chosen_readers, {}, context.stream, context.images):
            for weight, moments in measured.items():
                reader = readers[weight]
                if reader.blocks == 1:
                    solve(dense, reader, moments, constant_of(network, dense, reader, None))
                if weight in by_weight:
                    name = by_weight[weight]
                    factors[name] = _chain(dense, layers[name], chosen[name], moments)
            bar.advance(len(measured))
    return {name: factors[name] for name in chosen}


def _chain(
    dense: Network, layer: Layer, chosen: tuple[str, tuple[int, ...]], moments: Moments | None
) -> list[list[Tensor]]:
    """The factors of a layer's chain, for each group; `dense` gets the weight that the chain stands for.

    What the outputs lose on average is added to the bias, or taken from the mean of the norm behind the layer.
    """
    form, ranks = chosen
    reader: Reader = layer.reader
    weight = attribute(dense.module, reader.weight)
    factors = fit(layer, problems_of(reader, weight, moments), form, ranks, WORK)
    approximation = dense_weight(layer, form, factors).to(weight)
    with torch.no_grad():
        if moments is not None and reader.takes_constant:
            add_constant(dense, reader, lost_constant(reader, weight - approximation, moments))
        weight.copy_(approximation)
    return factors


def _table(
    network: Network, dense: Network, layers: Mapping[str, Layer], chosen: Chosen, context: Context
) -> dict[str, dict[str, object]]:
    """What became of each layer, for `Record.layers`.

    `error` is how far its outputs are from the original's on held-out images (`output_errors`); left out without any.
    """
    errors: dict[str, float] = {}
    if context.held_out is not None:
        nodes = {layers[name].reader.nodes[-1]: name for name in chosen}
        by_node = output_errors(network, dense, nodes, context.held_out())
        errors = {nodes[node]: error for node, error in by_node.items()}
    return {
        name: {
            "form": form,
            "ranks": list(ranks),
            "parameters": layers[name].chain(form, ranks, 0.0).parameters,
            "of": layers[name].parameters,
            **({"error": errors[name]} if name in errors else {}),
        }
        for name, (form, ranks) in chosen.items()
    }


TECHNIQUE = Technique(
    "factorize",
    FactorizeConfig,
    apply,
    "Convolutions and linear layers become chains of smaller ones.",
    requires=(FLOAT_WEIGHTS, DENSE_WEIGHTS),
)
