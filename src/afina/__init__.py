"""Afina fits a computer-vision model to its user's data and device, and proves it.

Each command of the command line is the function of the same name here.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from afina.graph import Network, capture
    from afina.jobs.benchmark import benchmark
    from afina.jobs.demo import demo
    from afina.jobs.distill import distill
    from afina.jobs.doctor import doctor
    from afina.jobs.export import export
    from afina.jobs.factorize import factorize
    from afina.jobs.optimize import optimize
    from afina.jobs.profile import profile
    from afina.jobs.prune import prune
    from afina.jobs.quantize import quantize
    from afina.jobs.report import report
    from afina.jobs.run import run
    from afina.jobs.sensitivity import sensitivity
    from afina.jobs.sparsify import sparsify
    from afina.jobs.tune import tune
    from afina.types import InputSpec, TaskSpec

    __version__: str

__all__ = [
    "InputSpec",
    "Network",
    "TaskSpec",
    "benchmark",
    "capture",
    "demo",
    "distill",
    "doctor",
    "export",
    "factorize",
    "optimize",
    "profile",
    "prune",
    "quantize",
    "report",
    "run",
    "sensitivity",
    "sparsify",
    "tune",
]

_COMMANDS = (
    "benchmark", "demo", "distill", "doctor", "export", "factorize", "optimize", "profile", "prune", "quantize",
    "report", "run", "sensitivity", "sparsify", "tune",
)  # fmt: skip
_HOME = {
    "InputSpec": "afina.types",
    "Network": "afina.graph",
    "TaskSpec": "afina.types",
    "capture": "afina.graph",
    **{name: f"afina.jobs.{name}" for name in _COMMANDS},
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import afina` and `afina --help` stay fast."""
    if name == "__version__":
        value = import_module("importlib.metadata").version("afina")
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'afina' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
