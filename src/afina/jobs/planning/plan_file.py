"""A plan of precisions as a file: which layer gets what, of which network, for which runtime."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from afina.errors import InputError
from afina.store.files import write
from afina.techniques.quantize import Precision, QuantizeConfig, Source

_FORMAT = "afina/plan/1"
# What a plan says beside the precision of each layer: how it is placed, and what its weights' codes depend on.
_PLACEMENT = ("sums", "joins", "fused", "rescales", "centred", "norms")
_CODES = ("granularity", "scheme", "full_range", "power_of_two")


@dataclass(frozen=True)
class Plan:
    """What a file of a plan says.

    Attributes:
        path: The file.
        network: Fingerprint of the network that it was made for.
        layers: Precision of each layer.
        settings: What else it says of the configuration, by its name there; plans of before say less.
        runtime: What it was made for; empty in plans of before.
    """

    path: Path
    network: str
    layers: dict[str, Precision]
    settings: dict[str, Any]
    runtime: str = ""

    def configure(self, config: QuantizeConfig) -> QuantizeConfig:
        """The configuration with what the plan says, but for layers that it names itself, and codes that it changes."""
        layers = tuple({**self.layers, **dict(config.layers)}.items())
        asked = {name for name in _CODES if getattr(config, name) != getattr(QuantizeConfig, name)}
        settings = {name: value for name, value in self.settings.items() if name not in asked}
        return replace(config, layers=layers, **settings)

    def notes(self, config: QuantizeConfig, runtime: str) -> tuple[str, ...]:
        """What a user should know of the plan where `config` came out of it, and `runtime` will run the file."""
        told = []
        for name in (name for name in _CODES if name in self.settings):
            planned, used = self.settings[name], getattr(config, name)
            if used != planned:
                told.append(f"{name} is {used}, as was asked for; the plan says {planned}.")
            elif used != getattr(QuantizeConfig, name):
                told.append(f"{name} is {used}, as the plan says.")
        if self.runtime not in ("", runtime):
            told.append(f"The plan was made for {self.runtime}: what is fast there need not be so on {runtime}.")
        return tuple(told)

    def check_network(self, source: Source) -> None:
        """Raise `InputError` where the plan is of another network."""
        if self.network != fingerprint(source):
            raise InputError(
                f"The plan {self.path} is of another network.",
                why="Its layers or the shapes of its weights differ from this one's.",
                fix="Make a plan for this network with --plan auto --save-plan FILE.",
            )


def fingerprint(source: Source) -> str:
    """Of a network's layers: their names and the shapes of their weights, whatever their values."""
    shapes = {name: list(tensor.shape) for name, tensor in source.network.module.state_dict().items()}
    return hashlib.sha256(json.dumps([source.layers, shapes], sort_keys=True).encode()).hexdigest()[:16]


def write_plan(path: Path, source: Source, config: QuantizeConfig, runtime: str) -> None:
    """Write the precision of every layer and what it was made for. Raises `StorageError` where that cannot be done."""
    layers = {name: vars(config.precision(name)) for name in source.layers}
    settings = {name: getattr(config, name) for name in (*_PLACEMENT, *_CODES)}
    plan = {"format": _FORMAT, "network": fingerprint(source), "runtime": runtime, **settings, "layers": layers}
    write(path, (json.dumps(plan, indent=2) + "\n").encode())


def read_plan(path: Path) -> Plan:
    """The plan in a file.

    Raises:
        InputError: there is no such file, or it is not a plan.
    """
    try:
        return _parsed(path, json.loads(path.read_text()))
    except OSError as error:
        raise InputError(f"The plan {path} cannot be read.", why=str(error), fix="Check the path.") from error
    except (ValueError, TypeError, InputError) as error:
        raise InputError(
            f"{path} is not a plan.", why=f"It says: {error}", fix="Write one with --plan auto --save-plan FILE."
        ) from error


def _parsed(path: Path, given: Any) -> Plan:
    """Raises `ValueError`, `TypeError` or `InputError` where what is given is not a plan."""
    if not isinstance(given, dict) or given.get("format") != _FORMAT:
        raise ValueError(f"its format is {given.get('format') if isinstance(given, dict) else given!r}")
    network, layers, runtime = given.get("network"), given.get("layers"), given.get("runtime", "")
    if not isinstance(network, str):
        raise ValueError("it does not name its network")
    if not isinstance(runtime, str):
        raise ValueError(f"runtime is {runtime!r}")
    if not isinstance(layers, dict):
        raise ValueError("its layers are not names with a precision each")
    for name, precision in layers.items():
        if not isinstance(precision, dict) or set(precision) != {"weights", "activations"}:
            raise ValueError(f"the precision of layer {name!r} is {precision!r}, not weights and activations")
    settings = {name: given[name] for name in (*_PLACEMENT, *_CODES) if name in given}
    for name, value in settings.items():
        if type(value) is not type(getattr(QuantizeConfig, name)):
            raise ValueError(f"{name} is {value!r}")
    precisions = {name: Precision(**precision) for name, precision in layers.items()}
    QuantizeConfig(**settings)
    return Plan(path, network, precisions, settings, runtime)
