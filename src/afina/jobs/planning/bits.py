"""Bits for each layer's weights, for a file of limited size: an integer program over the damage measured per layer."""

from collections.abc import Mapping
from dataclasses import replace

from afina.budget.allocate import Option, choose
from afina.errors import InputError
from afina.graph.cost import cost_of
from afina.graph.stored import attribute
from afina.jobs.common.exporter import Exporter
from afina.techniques.context import Context
from afina.techniques.quantize import Precision, QuantizeConfig, draft
from afina.techniques.quantize.config import bits_of
from afina.techniques.quantize.effects import Damage, damages
from afina.techniques.quantize.prepared import Prepared, Source
from afina.techniques.quantize.quantizer import HALVES
from afina.units import format_size

_TRIES = 3


def fit_size(
    source: Source, config: QuantizeConfig, limit: float, exporter: Exporter, context: Context
) -> QuantizeConfig:
    """Bits for each layer's weights, so that the file has at most `limit` bytes with the least damage.

    Raises:
        InputError: no choice of bits makes the file so small; it says what can.
    """
    stored = exporter.runtime.stored_bits
    network = source.network
    prepared = Prepared(source, replace(config, rounding="nearest"))
    prepared.calibrate(context, "mse")
    sizes = {name.removesuffix(".weight"): attribute(network.module, name).numel() for name in prepared.weights}
    eight = {name: Precision("int8", config.precision(name).activations) for name in sizes}

    def options(layer: str) -> list[Precision]:
        current = config.precision(layer)
        fewer = [Precision(f"int{bits}", current.activations) for bits in sorted(stored, reverse=True) if bits <= 8]
        return [current, *fewer] if current.weights in HALVES else fewer

    layer_damages = damages(prepared, options, context.first(float(cost_of(network).macs)), context.progress)
    by_layer: dict[str, list[Damage]] = {}
    for damage in layer_damages:
        by_layer.setdefault(damage.layer, []).append(damage)
    in_eight = config.with_layers(eight)
    rest = exporter.size(draft(source, in_eight, context)) - sum(sizes.values())
    room = limit - rest
    for _ in range(_TRIES):
        planned = _share_out(config, by_layer, sizes, stored, room, rest)
        size = exporter.size(draft(source, planned, context))
        if size <= limit:
            return planned
        room -= size - limit
    raise InputError(
        f"A file of {format_size(limit)} cannot be made by quantization.",
        why=f"The nearest that was found has {format_size(size)}.",
        fix="Prune first (afina prune --size), or give a larger limit.",
    )


def _share_out(
    config: QuantizeConfig,
    damage: Mapping[str, list[Damage]],
    sizes: Mapping[str, int],
    stored: Mapping[int, int],
    room: float,
    rest: float,
) -> QuantizeConfig:
    options = {
        layer: [Option(d.loss, sizes[layer] * _stored_bits(d.precision, stored) / 8) for d in per_precision]
        for layer, per_precision in damage.items()
    }
    try:
        index_by_layer = choose(options, room)
    except InputError as error:
        smallest = rest + sum(min(option.cost for option in per_precision) for per_precision in options.values())
        raise InputError(
            f"A file of {format_size(rest + room)} cannot be made by quantization.",
            why=f"The smallest possible has about {format_size(smallest)}: every weight in the fewest bits that the "
            "runtime stores.",
            fix="Prune first (afina prune --size), or give a larger limit.",
        ) from error
    chosen = {layer: damage[layer][index].precision for layer, index in index_by_layer.items()}
    return config.with_layers(chosen)


def _stored_bits(precision: Precision, stored: Mapping[int, int]) -> int:
    return 16 if precision.weights in HALVES else stored[bits_of(precision.weights)]
