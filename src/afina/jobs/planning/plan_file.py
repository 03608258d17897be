"""A plan of precisions as a file: which layer gets what, of which network, for which runtime."""

import hashlib
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from afina.errors import InputError, did_you_mean
from afina.runtimes.policy import IntegerPolicy
from afina.store.files import write
from afina.techniques.quantize import Precision, QuantizeConfig, Source

_FORMAT, _FIRST_FORMAT = "afina/plan/2", "afina/plan/1"
# Options that the codes of weights depend on, kept beside the precision of each layer and the policy.
_CODES = ("granularity", "scheme", "full_range", "power_of_two")
# What `afina/plan/1` calls the fields of the policy, and their values where these have other names now.
_FIRST_NAMES: dict[str, tuple[str, dict[Any, Any]]] = {
    "sums": ("additions", {"apart": "own kernel", "joined": "in convolution", "float": "float"}),
    "joins": ("convolution_absorbs_every_addition", {False: False, True: True}),
    "rescales": ("concatenated_channels_share_scale", {False: False, True: True}),
    "centred": ("symmetric_inputs_of_linear_layers", {False: "never", True: "always"}),
    "fused": ("fused_activation_functions", {"clips": "clipping", "all": "all"}),
    "norms": ("norm_parameters", {"fp32": "fp32", "bf16": "bf16"}),
}
# The bits of int8 weights are a fact of the machine that quantizes, which need not be the one that planned.
_OF_MACHINE = "int8_weight_bits"


@dataclass(frozen=True)
class Plan:
    """The content of a plan file.

    Attributes:
        path: The file.
        network: Fingerprint of the network that it was made for.
        layers: Precision of each layer.
        settings: Options that the codes of weights depend on, by their name in `QuantizeConfig`; early plans have none.
        policy: Fields of the runtime's policy, by their name in `IntegerPolicy`; early plans have not all of them.
        runtime: The runtime that it was made for; empty in early plans.
    """

    path: Path
    network: str
    layers: dict[str, Precision]
    settings: dict[str, Any]
    policy: dict[str, Any]
    runtime: str = ""

    def configure(self, config: QuantizeConfig) -> QuantizeConfig:
        """The plan applied to `config`, whose own layers and changed options win over those of the plan."""
        layers = tuple({**self.layers, **dict(config.layers)}.items())
        explicit = {name for name in _CODES if getattr(config, name) != getattr(QuantizeConfig, name)}
        settings = {name: value for name, value in self.settings.items() if name not in explicit}
        return replace(config, layers=layers, policy=replace(config.policy, **self.policy), **settings)

    def notes(self, config: QuantizeConfig, runtime: str) -> tuple[str, ...]:
        """Notes on a plan that was applied to give `config`, for a file that `runtime` will run."""
        notes = []
        for name in (name for name in _CODES if name in self.settings):
            planned, used = self.settings[name], getattr(config, name)
            if used != planned:
                notes.append(f"{name} is {used}, as was asked for; the plan says {planned}.")
            elif used != getattr(QuantizeConfig, name):
                notes.append(f"{name} is {used}, as the plan says.")
        if self.runtime not in ("", runtime):
            notes.append(f"The plan was made for {self.runtime}: what is fast there need not be so on {runtime}.")
        return tuple(notes)

    def check_network(self, source: Source) -> None:
        """Raise `InputError` where the plan is of another network."""
        if self.network != fingerprint(source):
            raise InputError(
                f"The plan {self.path} is of another network.",
                why="Its layers or the shapes of its weights differ from this one's.",
                fix="Make a plan for this network with --plan auto --save-plan FILE.",
            )


def fingerprint(source: Source) -> str:
    """A hash of the names of a network's layers and the shapes of its weights, whatever their values."""
    shapes = {name: list(tensor.shape) for name, tensor in source.network.module.state_dict().items()}
    return hashlib.sha256(json.dumps([source.layers, shapes], sort_keys=True).encode()).hexdigest()[:16]


def write_plan(path: Path, source: Source, config: QuantizeConfig, runtime: str) -> None:
    """Write the precision of every layer and what it was made for. Raises `StorageError` where that cannot be done."""
    layers = {name: vars(config.precision(name)) for name in source.layers}
    codes = {name: getattr(config, name) for name in _CODES}
    policy = {name: value for name, value in vars(config.policy).items() if name != _OF_MACHINE}
    plan = {"format": _FORMAT, "network": fingerprint(source), "runtime": runtime, "policy": policy, **codes}
    write(path, (json.dumps({**plan, "layers": layers}, indent=2) + "\n").encode())


def read_plan(path: Path) -> Plan:
    """The plan in a file, written by this version (`afina/plan/2`) or the first (`afina/plan/1`).

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


def _parsed(path: Path, content: Any) -> Plan:
    """The plan that the JSON of a file is. Raises `ValueError`, `TypeError` or `InputError` where it is none."""
    if not isinstance(content, dict) or content.get("format") not in (_FORMAT, _FIRST_FORMAT):
        raise ValueError(f"its format is {content.get('format') if isinstance(content, dict) else content!r}")
    network, runtime = content.get("network"), content.get("runtime", "")
    if not isinstance(network, str):
        raise ValueError("it does not name its network")
    if not isinstance(runtime, str):
        raise ValueError(f"runtime is {runtime!r}")
    settings = {name: content[name] for name in _CODES if name in content}
    for name, value in settings.items():
        if type(value) is not type(getattr(QuantizeConfig, name)):
            raise ValueError(f"{name} is {value!r}")
    QuantizeConfig(**settings)
    policy = _first_policy(content) if content["format"] == _FIRST_FORMAT else _policy(content.get("policy", {}))
    return Plan(path, network, _precisions(content.get("layers")), settings, policy, runtime)


def _precisions(layers: Any) -> dict[str, Precision]:
    if not isinstance(layers, dict):
        raise ValueError("its layers are not names with a precision each")
    for name, precision in layers.items():
        if not isinstance(precision, dict) or set(precision) != {"weights", "activations"}:
            raise ValueError(f"the precision of layer {name!r} is {precision!r}, not weights and activations")
    return {name: Precision(**precision) for name, precision in layers.items()}


def _policy(values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"policy is {values!r}")
    names = sorted(field.name for field in fields(IntegerPolicy) if field.name != _OF_MACHINE)
    for name in values:
        if name not in names:
            raise ValueError(f"its policy has {name!r}. {did_you_mean(name, names)}")
    IntegerPolicy(**values)
    return values


def _first_policy(content: dict[str, Any]) -> dict[str, Any]:
    """The policy of a plan in the first format, by the present names of its fields."""
    policy = {}
    for old, (name, values) in _FIRST_NAMES.items():
        if old in content:
            value = content[old]
            # Types are compared too: 1 equals True.
            matching = [key for key in values if key == value and type(key) is type(value)]
            if not matching:
                raise ValueError(f"{old} is {value!r}")
            policy[name] = values[matching[0]]
    return policy
