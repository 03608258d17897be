"""A budget from what a user types."""

from afina.errors import InputError
from afina.types import Budget, MetricInfo
from afina.units import parse_drop, parse_size, parse_time

DEFAULT_DROP = 0.01


def read_limits(
    size: str | float | None = None,
    latency: str | float | None = None,
    memory: str | float | None = None,
    max_drop: str | float | None = None,
) -> Budget:
    """The limits as numbers, whatever the metric. Raises `InputError` where one does not parse or is not positive."""
    return Budget(
        size=None if size is None else parse_size(size),
        latency=None if latency is None else parse_time(latency),
        memory=None if memory is None else parse_size(memory, "--memory"),
        max_drop=None if max_drop is None else parse_drop(max_drop),
    )


def make_budget(
    metric: MetricInfo,
    size: str | float | None = None,
    latency: str | float | None = None,
    memory: str | float | None = None,
    max_drop: str | float | None = None,
) -> Budget:
    """The limits as numbers (bytes, seconds, points); with none of them, the drop may be 1% (of a metric in 0..1).

    Raises:
        InputError: a limit does not parse, is not positive, or makes no sense for `metric`.

    Example:
        >>> make_budget(MetricInfo("accuracy", True, share=True), size="350KB", max_drop="1%")
        Budget(size=350000, latency=None, memory=None, max_drop=0.01)
    """
    if isinstance(max_drop, str) and max_drop.strip().endswith("%") and not metric.share:
        raise InputError(
            f"--max-drop {max_drop} is a percentage, and {metric.name} is not one.",
            why="A drop is absolute, in the metric's own points.",
            fix=f"Give the {metric.name} that may be lost, in the unit of the targets, as in --max-drop 0.5",
        )
    limits = read_limits(size, latency, memory, max_drop)
    if metric.share and limits.max_drop is not None and limits.max_drop >= 1:
        raise InputError(
            f"--max-drop {max_drop} allows any answer at all.",
            why=f"{metric.name} lies in 0..1, so a drop of 1 (100%) is a limit that cannot be missed.",
            fix="For one percent write --max-drop 1% or --max-drop 0.01",
        )
    if limits == Budget():
        if not metric.share:
            raise InputError(
                "No budget was given.",
                why=f"There is no sensible default for a drop in {metric.name}.",
                fix="Give at least one of --size, --latency, --memory, --max-drop.",
            )
        return Budget(max_drop=DEFAULT_DROP)
    return limits
