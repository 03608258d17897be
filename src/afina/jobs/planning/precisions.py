"""Which precision each layer gets: by time on the runtime, then by bytes and by what it does to the outputs."""

from afina.errors import InputError
from afina.jobs.common.exporter import Exporter
from afina.jobs.planning.bits import fit_size
from afina.jobs.planning.placement import fastest_placement
from afina.techniques.context import Context
from afina.techniques.quantize import QuantizeConfig, Source, draft
from afina.types import Budget
from afina.units import format_size, format_time


def plan_precisions(
    source: Source, config: QuantizeConfig, limits: Budget, exporter: Exporter, context: Context
) -> tuple[QuantizeConfig, tuple[str, ...]]:
    """The configuration whose file is the fastest that was found, within the limit on its size; and notes on why.

    Raises:
        InputError: a limit cannot be kept; it says what can.
    """
    placed, notes = fastest_placement(source, config, exporter, context)
    if limits.size is not None:
        placed = fit_size(source, placed, limits.size, exporter, context)
        notes += (f"Bits shared out for a file of at most {format_size(limits.size)}: {_layers_by_type(placed)}.",)
    if limits.latency is not None:
        seconds = exporter.time(draft(source, placed, context))
        if seconds > limits.latency:
            raise InputError(
                f"A latency of {format_time(limits.latency)} cannot be kept by quantization.",
                why=f"The fastest placement that was found takes {format_time(seconds)} on {exporter.runtime.name}.",
                fix="Prune first (afina prune --latency), or give a larger limit.",
            )
    return placed, notes


def _layers_by_type(config: QuantizeConfig) -> str:
    counts: dict[str, int] = {}
    for _, precision in config.layers:
        counts[precision.weights] = counts.get(precision.weights, 0) + 1
    return ", ".join(f"{count} layers in {name}" for name, count in sorted(counts.items()))
