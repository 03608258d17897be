"""Sizes, times and points: read from what a user types, written as a user reads them.

Sizes are decimal (1 MB = 10⁶ bytes; MiB is understood), times are in seconds, drops are absolute in the
metric's own points (`1%` = 0.01).
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from afina.errors import InputError
from afina.types import Measurement

_BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
T = TypeVar("T", int, float)
# From here on a time is written in minutes.
_MINUTES_FROM = 120
# 1e-3 / 1e-3 need not be 1 exactly.
_NEARLY = 1e-12
_NUMBER = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(\S*)\s*")


def parse_size(text: str | float, option: str = "--size") -> int:
    """Bytes of `350KB`, `3 MB`, `2MiB`; a plain number is bytes.

    Args:
        text: The size, as a user writes it.
        option: The option that it is the value of, for the text of an error.

    Raises:
        InputError: it is no size, its unit is not known, or it is not above zero.

    Example:
        >>> parse_size("350KB"), parse_size("2MiB"), parse_size(1000)
        (350000, 2097152, 1000)
    """
    if isinstance(text, (int, float)):
        return _positive(int(text), text, option)
    value, unit = _split(text, option, "350KB")
    return _positive(round(value * _factor(unit.upper(), {**_BYTES, "": 1}, text, option, "KB, MB, GB")), text, option)


def parse_time(text: str | float, option: str = "--latency", example: str = "5ms") -> float:
    """Seconds of `5ms`, `0.2s`, `800us`, `1h`; a plain number is seconds.

    Args:
        text: The time, as a user writes it.
        option: The option that it is the value of, for the text of an error.
        example: A value that the text of an error offers.

    Raises:
        InputError: it is no time, its unit is not known, or it is not above zero.

    Example:
        >>> parse_time("5ms"), parse_time("1h"), parse_time(0.5)
        (0.005, 3600.0, 0.5)
    """
    if isinstance(text, (int, float)):
        return _positive(float(text), text, option)
    value, unit = _split(text, option, example)
    units = {**_SECONDS, "": 1.0}
    return _positive(value * _factor(unit.lower(), units, text, option, "us, ms, s, min, h"), text, option)


def parse_drop(text: str | float, option: str = "--max-drop") -> float:
    """A loss of quality in the metric's points, of `1%` (0.01), `0.5` or `0`; zero is allowed.

    Args:
        text: The drop, as a user writes it.
        option: The option that it is the value of, for the text of an error.

    Raises:
        InputError: it is no number, its unit is not known, or it is negative or not finite.

    Example:
        >>> parse_drop("1%"), parse_drop(0.5)
        (0.01, 0.5)
    """
    if isinstance(text, str):
        value, unit = _split(text, option, "1%")
        value *= _factor(unit, {"": 1.0, "%": 0.01}, text, option, "% or nothing")
    else:
        value = float(text)
    if not math.isfinite(value) or value < 0:
        raise InputError(f"{option} {text} is negative or not finite.", fix=f"Give zero or more: {option} 1%")
    return value


def parse_share(text: str | float, option: str) -> float:
    """A share between 0 and 1, both excluded, of `50%` or `0.5`.

    Args:
        text: The share, as a user writes it.
        option: The option that it is the value of, for the text of an error.

    Raises:
        InputError: it is no number, its unit is not known, or it is out of range.

    Example:
        >>> parse_share("50%", "--macs"), parse_share(0.25, "--macs")
        (0.5, 0.25)
    """
    if isinstance(text, str):
        value, unit = _split(text, option, "50%")
        value *= _factor(unit, {"": 1.0, "%": 0.01}, text, option, "% or nothing")
    else:
        value = float(text)
    if not 0 < value < 1:
        raise InputError(f"{option} {text} is not between 0 and 1.", fix=f"For a half, write {option} 50%")
    return value


def format_size(value: float) -> str:
    """Bytes for people, in three digits.

    Example:
        >>> format_size(368_400), format_size(1_234_000), format_size(999_600)
        ('368 KB', '1.23 MB', '1 MB')
    """
    return _scaled(value, (("B", 1.0), ("KB", 1e3), ("MB", 1e6), ("GB", 1e9)))


def format_time(value: float) -> str:
    """Seconds for people, in three digits; whole minutes from two minutes on.

    Example:
        >>> format_time(0.00123), format_time(0.9997), format_time(45), format_time(720)
        ('1.23 ms', '1 s', '45 s', '12 min')
    """
    # 119.6 s would be written as 120 s.
    if _rounded(value) >= _MINUTES_FROM:
        return f"{value / 60:.0f} min"
    return _scaled(value, (("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)))


def format_count(value: float) -> str:
    """A number of parameters or operations for people, in three digits.

    Example:
        >>> format_count(272_474), format_count(40_800_000), format_count(999_700)
        ('272 k', '40.8 M', '1 M')
    """
    return _scaled(value, (("", 1.0), ("k", 1e3), ("M", 1e6), ("G", 1e9))).rstrip()


def _scaled(value: float, units: Sequence[tuple[str, float]]) -> str:
    """`value` in the largest of `units` (smallest first) of which it has one, once it is rounded to three digits."""
    rounded = abs(_rounded(value))
    name, factor = next((unit for unit in reversed(units) if rounded >= unit[1] * (1 - _NEARLY)), units[0])
    scaled = value / factor
    # Bytes and counts are whole numbers; more than 999 of the largest unit are spelled out.
    digits = ".0f" if (factor == 1 and name in ("B", "")) or abs(scaled) >= 999.5 else ".3g"
    return f"{scaled:{digits}} {name}"


def _rounded(value: float) -> float:
    """`value` in three digits."""
    return float(f"{value:.3g}")


def format_value(value: float, unit: str, *, share: bool = False) -> str:
    """A value for people, by its unit: `B`, `s`, `1`, anything else as it is; a share in percent.

    Example:
        >>> format_value(350e3, "B"), format_value(0.95, "accuracy", share=True), format_value(0.31, "mae")
        ('350 KB', '95.00%', '0.31')
    """
    writers = {"B": format_size, "s": format_time, "1": format_count}
    if unit in writers:
        return writers[unit](value)
    return f"{value:.2%}" if share else f"{value:.4g}"


def format_measurement(measurement: Measurement) -> str:
    """A measurement's value for people.

    Example:
        >>> format_measurement(Measurement(0.991, "agreement", "measured", share=True))
        '99.10%'
    """
    return format_value(measurement.value, measurement.unit, share=measurement.share)


def format_details(measurement: Measurement) -> str:
    """A measurement's value with its further figures.

    Example:
        >>> format_details(Measurement(0.991, "agreement", "measured", details={"cosine": 0.9957}, share=True))
        '99.10% (cosine 0.9957)'
    """
    details = ", ".join(f"{name} {value:.4g}" for name, value in measurement.details.items())
    return f"{format_measurement(measurement)} ({details})" if details else format_measurement(measurement)


def _split(text: str, option: str, example: str) -> tuple[float, str]:
    match = _NUMBER.fullmatch(text)
    if not match:
        raise InputError(f"{option} {text!r} is not a number with a unit.", fix=f"Write it as in: {option} {example}")
    return float(match.group(1)), match.group(2)


def _factor(unit: str, units: Mapping[str, float], text: str, option: str, allowed: str) -> float:
    if unit not in units:
        raise InputError(f"{option} {text!r} has a unit that is not known.", fix=f"Known units: {allowed}.")
    return units[unit]


def _positive(value: T, text: str | float, option: str) -> T:
    if not math.isfinite(value) or value <= 0:
        raise InputError(
            f"{option} {text} must be more than zero.", fix=f"Give a positive limit, or leave {option} out."
        )
    return value
