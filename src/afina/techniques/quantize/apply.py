"""The technique: a float network in, the same in integers out, and a record of what that cost."""

import time
from dataclasses import asdict, replace

from afina.graph.cost import cost_of
from afina.graph.network import Network
from afina.techniques.context import Context
from afina.techniques.quantize.calibration import choose_ranges, hold_out
from afina.techniques.quantize.config import QuantizeConfig
from afina.techniques.quantize.contrast import with_contrast
from afina.techniques.quantize.effects import layer_table
from afina.techniques.quantize.equalize import equalize
from afina.techniques.quantize.halves import keep_wide, kept_note
from afina.techniques.quantize.outliers import outliers_note
from afina.techniques.quantize.prepared import Prepared, Source
from afina.techniques.quantize.weights import round_layers
from afina.types import Record, Step

# Images that the noise of single layers is measured on.
_TABLE_IMAGES = 8


def apply(network: Network, config: QuantizeConfig, context: Context) -> tuple[Network, Record]:
    """Quantize a network: gives its graph with quantize and dequantize operators in it, and the record of the step.

    Batch norms are folded; ranges of activations come from the calibration images; weights are rounded layer by layer
    in the order of the graph, on inputs that are quantized already.

    Args:
        network: In float; it is left as it is.
        config: Precisions, how ranges and codes are chosen, and for which runtime.
        context: Calibration images, and what the user sees of the work. Images are needed where activations become
            integers; without, weights are rounded to nearest.

    Raises:
        InputError: there are no calibration images.
        NothingToDo: the network has no layer that can be quantized.
        AfinaError: an activation is not a finite number.
    """
    start = time.monotonic()
    context, contrast_notes = with_contrast(context, network.input, config)
    source = Source.of(network)
    hold_out(source, config, context)
    source, equalize_notes = equalize(source, config, context)
    config, wide_layers = keep_wide(source, config, context)
    prepared, notes = prepare(source, config, context)
    prepared.placement.skipped.update(wide_layers)
    return finish(
        network, prepared, context, (*contrast_notes, *equalize_notes, *kept_note(wide_layers), *notes), start
    )


def draft(source: Source, config: QuantizeConfig, context: Context) -> Network:
    """A network of the form and speed that `apply` gives, fast to make: ranges to the extremes, weights to nearest."""
    prepared = Prepared(source, replace(config, calibration="minmax", rounding="nearest", equalize="none"))
    prepared.calibrate(context, "minmax")
    round_layers(prepared, Context())
    return prepared.convert()


def finish(
    network: Network, prepared: Prepared, context: Context, notes: tuple[str, ...], start: float
) -> tuple[Network, Record]:
    """The network in integers, and the record of how it was made.

    Args:
        network: The float network, as it was given to `apply`.
        prepared: Calibrated and rounded.
        context: Images that the noise of single layers is measured on; without, the record has no table of layers.
        notes: Of what was chosen on the way.
        start: When the work began, by `time.monotonic()`.
    """
    result = prepared.convert()
    before = cost_of(network)
    images = context.first(float(before.macs), _TABLE_IMAGES) if context.calibration is not None else None
    layers = {} if images is None else layer_table(prepared, images)
    record = Record(
        step=Step("quantize", prepared.config.plain()),
        touched=tuple(prepared.placement.quantized),
        skipped=dict(prepared.placement.skipped),
        before=asdict(before),
        after=asdict(cost_of(result)),
        seconds=time.monotonic() - start,
        notes=(*notes, *outliers_note(layers)),
        layers=layers,
    )
    return result, record


def prepare(source: Source, config: QuantizeConfig, context: Context) -> tuple[Prepared, tuple[str, ...]]:
    """The source with edges in place, calibrated and rounded, switched on; and notes on what was chosen on the way."""
    prepared = Prepared(source, config)
    notes = list[str]()
    if prepared.activations:
        prepared.watch(context)
        notes += choose_ranges(prepared, context)
    notes += round_layers(prepared, context)
    prepared.simulate()
    return prepared, tuple(notes)
