"""A target as people write it: a share of what the network has, bytes, or seconds."""

from typing import Literal, NamedTuple

from afina.errors import InputError
from afina.units import parse_share, parse_size, parse_time


class Goal(NamedTuple):
    """One target of a compression.

    Attributes:
        name: What is limited.
        limit: A share of what the network has (`macs`, `parameters`), bytes (`size`) or seconds (`latency`).
    """

    name: Literal["macs", "parameters", "size", "latency"]
    limit: float


def goal_of(
    *,
    macs: str | float | None = None,
    parameters: str | float | None = None,
    size: str | float | None = None,
    latency: str | float | None = None,
) -> Goal:
    """The one target that is not None, parsed.

    Raises:
        InputError: none is given, or more than one, or it cannot be read.

    Example:
        >>> goal_of(macs="50%")
        Goal(name='macs', limit=0.5)
        >>> goal_of(size="5MB")
        Goal(name='size', limit=5000000.0)
    """
    targets = {"macs": macs, "parameters": parameters, "size": size, "latency": latency}
    names = [name for name, value in targets.items() if value is not None]
    if len(names) != 1:
        raise InputError(
            f"{'No' if not names else 'More than one'} target was given{': ' if names else ''}{', '.join(names)}.",
            fix="Give one of --macs 50%, --parameters 30%, --size 5MB, --latency 8ms.",
        )
    if size is not None:
        return Goal("size", float(parse_size(size)))
    if latency is not None:
        return Goal("latency", parse_time(latency))
    if macs is not None:
        return Goal("macs", parse_share(macs, "--macs"))
    assert parameters is not None
    return Goal("parameters", parse_share(parameters, "--parameters"))
