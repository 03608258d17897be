"""Options of `afina doctor`: none."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DoctorOptions:
    """What is installed, what is missing and how to get it, what this machine can measure."""
