"""A plan of precisions as a file: which layer gets what, and of which network."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from afina.errors import InputError
from afina.store.files import write
from afina.techniques.quantize import Precision, QuantizeConfig, Source

_FORMAT = "afina/plan/1"
# What a plan says beside the precision of each layer.
_PLACEMENT = ("sums", "fused", "centred", "norms")


def fingerprint(source: Source) -> str:
    """Of a network's layers: their names and the shapes of their weights, whatever their values."""
    shapes = {name: list(tensor.shape) for name, tensor in source.network.module.state_dict().items()}
    return hashlib.sha256(json.dumps([source.layers, shapes], sort_keys=True).encode()).hexdigest()[:16]


def check_target(path: Path) -> None:
    """Raise `InputError` where no plan can go: before the work that it is the result of."""
    if path.suffix != ".json":
        raise InputError(f"--save-plan {path} does not end in .json.", fix=f"Write {path.with_suffix('.json')}.")
    if not path.parent.is_dir():
        raise InputError(f"--save-plan {path}: there is no folder {path.parent}.", fix="Make it first.")


def write_plan(path: Path, source: Source, config: QuantizeConfig) -> None:
    """Write the precision of every layer. Raises `StorageError` where it cannot be written."""
    layers = {name: vars(config.precision(name)) for name in source.layers}
    placement = {name: getattr(config, name) for name in _PLACEMENT}
    plan = {"format": _FORMAT, "network": fingerprint(source), **placement, "layers": layers}
    write(path, (json.dumps(plan, indent=2) + "\n").encode())


def read_plan(path: Path, source: Source, config: QuantizeConfig) -> QuantizeConfig:
    """The configuration with the precisions of the file, but for layers that it names itself.

    Raises:
        InputError: there is no such file, it is not a plan, or it is of another network.
    """
    try:
        plan: dict[str, Any] = json.loads(path.read_text())
        if plan["format"] != _FORMAT:
            raise ValueError(f"its format is {plan['format']!r}")
        layers = tuple((name, Precision(**precision)) for name, precision in plan["layers"].items())
        placement = {name: plan[name] for name in _PLACEMENT if name in plan}
    except OSError as error:
        raise InputError(f"The plan {path} cannot be read.", why=str(error), fix="Check the path.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a plan.", why=f"It says: {error}", fix="Write one with --plan auto --save-plan FILE."
        ) from error
    if plan["network"] != fingerprint(source):
        raise InputError(
            f"The plan {path} is of another network.",
            why="Its layers or the shapes of its weights differ from this one's.",
            fix="Make a plan for this network with --plan auto --save-plan FILE.",
        )
    return replace(config, layers=tuple({**dict(layers), **dict(config.layers)}.items()), **placement)
