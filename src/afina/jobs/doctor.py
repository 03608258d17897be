"""`afina doctor`: what is installed, what is missing and how to get it, what this machine can measure."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from afina.capacity import available_cores
from afina.devices.machine import describe_machine
from afina.jobs.options.declaration import command
from afina.jobs.options.doctor import DoctorOptions
from afina.runtimes import RUNTIMES, int8_weight_bits

# Share of the cores from which on timings are not to be trusted.
_BUSY = 0.5
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: What was looked for.
        good: Whether it is there.
        found: What is there: a version, a device, a number.
        fix: What to do where it is not there.
    """

    name: str
    good: bool
    found: str
    fix: str = ""


def _doctor(options: DoctorOptions) -> tuple[dict[str, Any], tuple[Check, ...]]:
    """The machine, and what was checked on it; nothing is installed or changed.

    Example:
        >>> import afina
        >>> machine, checks = afina.doctor()
        >>> [check.good for check in checks if check.name == "runtime onnxruntime"]
        [True]
    """
    machine = describe_machine(available_cores())
    extras = (_ray(), _transformers(), _browser())
    checks = [*_runtimes(), _int8(machine["features"]), _training(), *extras, _disk(), *_load()]
    return machine, tuple(checks)


doctor = command(DoctorOptions, _doctor)


def describe(machine: Mapping[str, Any], checks: Sequence[Check]) -> str:
    """The machine and the checks as text."""
    lines = [f"{machine['processor']}, {machine['cores']} cores, {machine['system']}"]
    for check in checks:
        lines.append(f"{'ok     ' if check.good else 'missing'} {check.name}: {check.found}")
        lines += [f"        {check.fix}"] if check.fix else []
    return "\n".join(lines)


def _runtimes() -> list[Check]:
    checks = []
    for name, runtime in RUNTIMES.loaded().items():
        installed = runtime.available()
        fix = "" if installed else f'pip install "afina[{runtime.extra}]"'
        checks.append(Check(f"runtime {name}", installed, runtime.version() if installed else "not installed", fix))
    for name, error in RUNTIMES.problems().items():
        checks.append(Check(f"runtime {name}", False, f"{error.what} {error.why}", error.fix))
    return checks


def _int8(features: list[str]) -> Check:
    if int8_weight_bits() == 8:
        exact = [name for name in features if name in ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")]
        listed = f" ({', '.join(exact)})" if exact else ""
        return Check("int8 kernels", True, f"exact products{listed}")
    return Check(
        "int8 kernels",
        True,
        "no int8 dot-product instructions found: weights are kept to 7 bits, and int8 gains less speed here",
    )


def _training() -> Check:
    import torch

    devices = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    if not devices and torch.backends.mps.is_available():
        devices = ["Apple GPU (MPS)"]
    return Check("training device", True, ", ".join(devices) or f"CPU, {available_cores()} cores")


def _transformers() -> Check:
    installed = find_spec("transformers") is not None
    fix = "" if installed else 'pip install "afina[transformers]"'
    named = version("transformers") if installed else "not installed"
    return Check("transformers (for models of Hugging Face)", installed, named, fix)


def _ray() -> Check:
    installed = find_spec("ray") is not None
    fix = "" if installed else 'pip install "afina[ray]"'
    return Check("Ray (for tune --ray)", installed, version("ray") if installed else "not installed", fix)


def _browser() -> Check:
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    return Check(
        "browser (only the report's own test needs one)",
        browser is not None,
        browser or "none found",
        "" if browser else "apt-get install chromium chromium-driver",
    )


def _disk() -> Check:
    free = shutil.disk_usage(".").free
    return Check("free disk here", free > 1e9, f"{free / 1e9:.0f} GB", "" if free > 1e9 else "A run needs up to 1 GB.")


def _load() -> list[Check]:
    """Whether other programs keep the processor busy; nothing where the system does not say."""
    try:
        busy, cores = os.getloadavg()[0], os.cpu_count() or 1
    except (AttributeError, OSError):
        return []
    free = busy < _BUSY * cores
    fix = "" if free else "Wait with latencies: threads wait on each other, and take many times as long as alone."
    return [Check("quiet processor", free, f"{busy:.1f} of {cores} cores busy in the last minute", fix)]
