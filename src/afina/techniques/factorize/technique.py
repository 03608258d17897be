"""The technique: layers as chains of smaller ones, each fitted in the order of the graph to what the layer gave."""

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
    compare,
    constant_of,
    find_readers,
    output_errors,
    passes,
    solve,
)
from afina.graph.stored import attribute
from afina.techniques.base import DENSE_WEIGHTS, FLOAT_WEIGHTS, Technique, step_of_config
from afina.techniques.context import Context
from afina.techniques.factorize.config import Chosen, FactorizeConfig
from afina.techniques.factorize.fitting import WORK
from afina.techniques.factorize.forms import FORMS
from afina.techniques.factorize.options import Layer, fit, whole
from afina.techniques.factorize.problem import lost_constant, problems_of
from afina.techniques.factorize.rewriting import write_chain
from afina.techniques.factorize.study import layers_of, uniform
from afina.types import Record

Factors = dict[str, list[list[Tensor]]]


def apply(network: Network, config: FactorizeConfig, context: Context) -> tuple[Network, Record]:
    """A network whose layers are chains, and the record; the input is left as it was.

    The result is ordinary: the layers of a chain train, are pruned along their ranks, and are quantized like any other.
    With images each layer is first refitted, on what it reads now, to what it gave before, and its chain is the
    nearest to that in the metric of what it reads; without any, all inputs count the same.

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
        notes=tuple(f"{name}: {form} of rank {told(ranks)}" for name, (form, ranks) in chosen.items()),
        layers=_table(network, dense, layers, chosen, context),
    )


def shaped(network: Network, layers: Mapping[str, Layer], chosen: Chosen) -> Network:
    """A network of the shape that chosen chains give; their weights do not matter."""
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


def told(ranks: tuple[int, ...]) -> str:
    """Ranks in words."""
    return " x ".join(map(str, ranks))


def _rewritten(network: Network, layers: Mapping[str, Layer], chosen: Chosen, factors: Factors) -> Network:
    result = network.copy()
    for name, own in factors.items():
        write_chain(result, layers[name].reader, chosen[name][0], own)
    result.module.graph.lint()
    result.module.recompile()
    refresh_meta(result.module)
    return result


def _check(chosen: Chosen, layers: Mapping[str, Layer], skipped: Mapping[str, str]) -> None:
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
                f"{name}: rank {told(ranks)} is above the largest that means anything, {told(layer.most(form))}.",
                fix="Give a smaller rank.",
            )


def _why_not(layer: Layer) -> str:
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
    wanted = [name for name, reader in readers.items() if name in by_weight or (config.refit and reader.blocks == 1)]
    found: Factors = {}
    with context.progress.work("Fitting chains", len(wanted)) as bar:
        parts, enough = passes(wanted, network, context.images)
        for part in parts:
            moments = compare(network, dense, {w: readers[w] for w in part}, {}, context.stream(), enough)
            for weight, own in moments.items():
                reader = readers[weight]
                if reader.blocks == 1:
                    solve(dense, reader, own, constant_of(network, dense, reader, None))
                if weight in by_weight:
                    name = by_weight[weight]
                    found[name] = _chain(dense, layers[name], chosen[name], own)
            bar.advance(len(part))
    return {name: found[name] for name in chosen}


def _chain(
    dense: Network, layer: Layer, chosen: tuple[str, tuple[int, ...]], moments: Moments | None
) -> list[list[Tensor]]:
    form, ranks = chosen
    reader: Reader = layer.reader
    weight = attribute(dense.module, reader.weight)
    factors = fit(layer, problems_of(reader, weight, moments), form, ranks, WORK)
    stands_for = whole(layer, form, factors).to(weight)
    with torch.no_grad():
        if moments is not None and reader.takes_constant:
            add_constant(dense, reader, lost_constant(reader, weight - stands_for, moments))
        weight.copy_(stands_for)
    return factors


def _table(
    network: Network, dense: Network, layers: Mapping[str, Layer], chosen: Chosen, context: Context
) -> dict[str, dict[str, object]]:
    """What became of each layer, and how far its outputs are from before on images that nothing was fitted to."""
    errors: dict[str, float] = {}
    if context.held_out is not None:
        nodes = {layers[name].reader.nodes[-1]: name for name in chosen}
        found = output_errors(network, dense, nodes, context.held_out())
        errors = {nodes[node]: error for node, error in found.items()}
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
