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
# From this share on, weights that became zero are named as the reason of the damage.
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
        NothingToDo: no layer can be stored in its 16-bit type.
        AfinaError: a weight is not a finite number.
    """
    halves = {layer: HALVES[kind] for layer in source.layers if (kind := config.precision(layer).weights) in HALVES}
    if not halves:
        return config, {}
    images = _images(source, context)
    reasons = {**_overflowing_activations(source, halves, images), **_overflowing_weights(source, halves)}
    undecided = {
        layer: dtype for layer, dtype in halves.items() if layer not in reasons and layer not in dict(config.layers)
    }
    reasons |= _harmed(source, config, undecided, images, context)
    if reasons.keys() >= halves.keys() and all(
        config.precision(layer) == FLOAT for layer in set(source.layers) - set(reasons)
    ):
        why = "; ".join(f"{layer}: {reason}" for layer, reason in list(reasons.items())[:4])
        raise NothingToDo(f"No layer can be stored in {config.weights}.", why=why, fix="Use bf16, int8 or fp32.")
    return config.with_layers(dict.fromkeys(reasons, FLOAT)), reasons


def kept_note(reasons: Mapping[str, str]) -> tuple[str, ...]:
    """Which layers stay in 32 bits and why, as a note of a record; no note where there are none.

    Example:
        >>> kept_note({"head": "its largest weight is 7e+04, and the type ends at 65504"})
        ('Stays in 32 bits: head (its largest weight is 7e+04, and the type ends at 65504).',)
    """
    listed = "; ".join(f"{layer} ({reason})" for layer, reason in reasons.items())
    return (f"Stays in 32 bits: {listed}.",) if reasons else ()


def _images(source: Source, context: Context) -> Tensor:
    if context.calibration is None:
        return source.network.example(_IMAGES)
    return context.first(float(cost_of(source.network).macs), _IMAGES)


def _weights(source: Source) -> dict[str, Tensor]:
    """The stored weight of each layer."""
    nodes = [node for node in source.network.graph.nodes if node.target in WEIGHTED]
    stored = [node for node in nodes if isinstance(node.args[1], Node) and node.args[1].op == "get_attr"]
    return {layer_name(n): attribute(source.network.module, str(n.args[1].target)).detach() for n in stored}


def _overflowing_weights(source: Source, halves: Mapping[str, torch.dtype]) -> dict[str, str]:
    """Layers with a weight that becomes infinite in 16 bits, with that as the reason."""
    reasons = {}
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
            reasons[layer] = (
                f"its largest weight is {float(weight.abs().max()):.3g}, and the type ends at {largest:.5g}"
            )
    return reasons


def _overflowing_activations(source: Source, halves: Mapping[str, torch.dtype], images: Tensor) -> dict[str, str]:
    """Layers in fp16 that read or give values beyond fp16, with that as the reason."""
    in_fp16 = {layer for layer, dtype in halves.items() if dtype == torch.float16}
    layers = [n for n in source.network.graph.nodes if is_layer(n) and layer_name(n) in in_fp16]
    near = {node for layer in layers for node in (layer, layer.args[0])}
    largest_values: dict[Node, float] = {}

    def take(node: Node, value: Tensor) -> None:
        largest_values[node] = max(largest_values.get(node, 0.0), float(value.abs().max()))

    for part in images.split(source.network.batch) if layers else ():
        watch(source.network, part, near.__contains__, take)
    largest = torch.finfo(torch.float16).max
    reasons = {}
    for layer in layers:
        for verb, value in (("gives", largest_values[layer]), ("reads", largest_values[layer.args[0]])):
            if not value <= largest:
                reasons[layer_name(layer)] = f"it {verb} values up to {value:.3g}, and fp16 ends at {largest:.5g}"
    return reasons


def _harmed(
    source: Source, config: QuantizeConfig, halves: Mapping[str, torch.dtype], images: Tensor, context: Context
) -> dict[str, str]:
    """The layers that change the outputs most in 16 bits, until the others together change them by little.

    Damages of `[0.002 0.0007 0.0004]` add up to 0.0031, more than 0.001: the first layer stays in 32 bits. The others
    make 0.0011, still more: the second stays too. The third, with 0.0004, is stored in 16 bits.
    """
    if not halves:
        return {}
    others = tuple((layer, FLOAT) for layer in source.layers if layer not in halves)
    prepared = Prepared(source, replace(config, layers=others))
    by_loss = damages(
        prepared, lambda layer: [config.precision(layer)] if layer in halves else [], images, context.progress
    )
    by_loss.sort(key=lambda damage: damage.loss)
    total = sum(damage.loss for damage in by_loss)
    weights, reasons = _weights(source), dict[str, str]()
    while by_loss and not total <= _ALL:
        worst = by_loss.pop()
        total = sum(damage.loss for damage in by_loss)
        weight = weights[worst.layer]
        lost = float(((weight != 0) & (weight.to(halves[worst.layer]) == 0)).float().mean())
        why = f"{lost:.0%} of its weights become zero" if lost > _MANY else "rounding its weights"
        reasons[worst.layer] = f"{why}, which changes the outputs by {worst.loss:.2g} of what they vary"
    return reasons
