"""Which layers stay in 32 bits where weights are stored in 16: those that do not fit the type, and those that it harms.

fp16 holds 11 bits of a number between 6e-5 and 65504, fewer of smaller ones, and nothing beyond; bf16 holds 8 bits of
any float32 (IEEE 754-2019; Kalamkar et al. 2019). Nothing here goes by the kind or the place of a layer.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.fx import Node

from afina.errors import AfinaError, NothingToDo
from afina.graph.cost import cost_of
from afina.graph.statistics import watch
from afina.graph.stored import attribute
from afina.techniques.context import Context
from afina.techniques.quantize.config import FLOAT, QuantizeConfig
from afina.techniques.quantize.effects import damages
from afina.techniques.quantize.prepared import Prepared, Source
from afina.techniques.quantize.quantizer import HALVES, WEIGHTED, is_layer, layer_name

# What all layers in 16 bits together may change of the outputs, as a share of what those vary (30 dB): damages of
# single layers add up. int8 is at about that; 16 bits are for those who want less.
_ALL = 1e-3
_IMAGES = 16
# From this share on, weights that became zero are told as the reason of the damage.
_MANY = 0.01


def keep_wide(source: Source, config: QuantizeConfig, context: Context) -> tuple[QuantizeConfig, dict[str, str]]:
    """The configuration with layers in 32 bits where 16 overflow or harm, and the reason for each, by its name.

    A weight that does not fit its type, or in fp16 an activation beyond the largest number (a device that computes in
    the type of the weights would overflow), keeps its layer in 32 bits in any case. Of the other layers those that
    change the outputs most are kept, until the rest changes them by little; layers whose precision is given one by one
    in `config.layers` are taken at their word.

    Args:
        source: The float network.
        config: Precisions.
        context: Images; without, noise stands in for them.

    Raises:
        NothingToDo: no layer can be stored as asked.
        AfinaError: a weight is not a finite number.
    """
    halves = {layer: HALVES[kind] for layer in source.layers if (kind := config.precision(layer).weights) in HALVES}
    if not halves:
        return config, {}
    images = _images(source, context)
    kept = {**_reaching(source, halves, images), **_too_large(source, halves)}
    free = {layer: dtype for layer, dtype in halves.items() if layer not in kept and layer not in dict(config.layers)}
    kept |= _harmed(source, config, free, images, context)
    if kept.keys() >= halves.keys() and all(
        config.precision(layer) == FLOAT for layer in set(source.layers) - set(kept)
    ):
        why = "; ".join(f"{layer}: {reason}" for layer, reason in list(kept.items())[:4])
        raise NothingToDo(f"No layer can be stored in {config.weights}.", why=why, fix="Use bf16, int8 or fp32.")
    return config.with_layers(dict.fromkeys(kept, FLOAT)), kept


def kept_note(kept: Mapping[str, str]) -> tuple[str, ...]:
    """Which layers stay in 32 bits and why, as a note of a record; none where there are none."""
    told = "; ".join(f"{layer} ({reason})" for layer, reason in kept.items())
    return (f"Stays in 32 bits: {told}.",) if kept else ()


def _images(source: Source, context: Context) -> Tensor:
    if context.calibration is None:
        return source.network.example(_IMAGES)
    return context.first(float(cost_of(source.network).macs), _IMAGES)


def _weights(source: Source) -> dict[str, Tensor]:
    """The stored weight of each layer."""
    nodes = [node for node in source.network.graph.nodes if node.target in WEIGHTED]
    stored = [node for node in nodes if isinstance(node.args[1], Node) and node.args[1].op == "get_attr"]
    return {layer_name(n): attribute(source.network.module, str(n.args[1].target)).detach() for n in stored}


def _too_large(source: Source, halves: Mapping[str, torch.dtype]) -> dict[str, str]:
    """Layers with a weight that becomes infinite in 16 bits."""
    found = {}
    for layer, weight in _weights(source).items():
        if layer not in halves:
            continue
        if not bool(weight.isfinite().all()):
            raise AfinaError(
                f"The weights of {layer} hold a value that is not a finite number.",
                fix="Check how the network was trained; a stored weight must be finite.",
            )
        if not bool(weight.to(halves[layer]).isfinite().all()):
            largest = torch.finfo(halves[layer]).max
            found[layer] = f"its largest weight is {float(weight.abs().max()):.3g}, and the type ends at {largest:.5g}"
    return found


def _reaching(source: Source, halves: Mapping[str, torch.dtype], images: Tensor) -> dict[str, str]:
    """Layers in fp16 that read or give values beyond fp16."""
    wanted = {layer for layer, dtype in halves.items() if dtype == torch.float16}
    layers = [n for n in source.network.graph.nodes if is_layer(n) and layer_name(n) in wanted]
    near = {node for layer in layers for node in (layer, layer.args[0])}
    reach: dict[Node, float] = {}

    def note(node: Node, value: Tensor) -> None:
        reach[node] = max(reach.get(node, 0.0), float(value.abs().max()))

    for part in images.split(source.network.batch) if layers else ():
        watch(source.network, part, near.__contains__, note)
    largest = torch.finfo(torch.float16).max
    found = {}
    for layer in layers:
        for verb, value in (("gives", reach[layer]), ("reads", reach[layer.args[0]])):
            if not value <= largest:
                found[layer_name(layer)] = f"it {verb} values up to {value:.3g}, and fp16 ends at {largest:.5g}"
    return found


def _harmed(
    source: Source, config: QuantizeConfig, halves: Mapping[str, torch.dtype], images: Tensor, context: Context
) -> dict[str, str]:
    """The layers that change the outputs most in 16 bits, until the others together change them by little."""
    if not halves:
        return {}
    others = tuple((layer, FLOAT) for layer in source.layers if layer not in halves)
    prepared = Prepared(source, replace(config, layers=others))
    found = damages(
        prepared, lambda layer: [config.precision(layer)] if layer in halves else [], images, context.progress
    )
    found.sort(key=lambda damage: damage.loss)
    left = sum(damage.loss for damage in found)
    weights, kept = _weights(source), dict[str, str]()
    while found and not left <= _ALL:
        worst = found.pop()
        left = sum(damage.loss for damage in found)
        weight = weights[worst.layer]
        lost = float(((weight != 0) & (weight.to(halves[worst.layer]) == 0)).float().mean())
        why = f"{lost:.0%} of its weights become zero" if lost > _MANY else "rounding its weights"
        kept[worst.layer] = f"{why}, which changes the outputs by {worst.loss:.2g} of what they vary"
    return kept
