"""Where integers are placed in a network, by time measured on the runtime."""

import math
from collections.abc import Set
from dataclasses import replace
from typing import Any

from torch.fx import Node

from afina.errors import AfinaError, ParityError, StorageError, Unsupported
from afina.graph.cost import cost_of
from afina.graph.ops import arguments, op_name
from afina.graph.statistics import freed
from afina.jobs.common.exporter import Exporter, Shelf
from afina.runtimes.policy import IntegerPolicy
from afina.techniques.context import Context
from afina.techniques.quantize import Precision, QuantizeConfig, draft
from afina.techniques.quantize.prepared import Source
from afina.techniques.quantize.quantizer import NORMS, WEIGHTED, layer_name
from afina.types import Measurement
from afina.units import format_time

# A file must be faster by this share to be preferred: timings are not finer.
NOTICEABLE = 0.02
_TRIES = 3
_CHECKED = 32  # images on which a file must answer as its network


def fastest_placement(
    source: Source, config: QuantizeConfig, exporter: Exporter, context: Context
) -> tuple[QuantizeConfig, tuple[str, ...]]:
    """The configuration whose file is the fastest that was found, and notes on what was timed.

    A few placements are exported and timed in turns, the float network among them; then kinds of layers that are no
    faster in integers are taken out one after the other, and what the runtime may compute faster beside them is tried
    likewise. Layers that compute in float still store their weights in their type: of int8, which the runtime undoes
    when it loads, a quarter of the bytes at the speed of float.
    """
    with exporter.shelf() as shelf:
        return _Placement(source, config, exporter, context, shelf).fastest()


def stored_only(source: Source, config: QuantizeConfig) -> QuantizeConfig:
    """The configuration with all weights stored as it says, and every layer computed in float."""
    return config.with_layers({name: _stored(config.precision(name)) for name in source.layers})


def is_faster(one: Measurement, than: Measurement) -> bool:
    """Whether a file is faster than another one by more than timings are fine, and by more than both of them vary.

    Example:
        >>> def time(value, spread):
        ...     return Measurement(value, "s", "measured", spread)
        >>> is_faster(time(0.0237, 0.0004), than=time(0.0251, 0.0005))
        True
        >>> is_faster(time(0.0237, 0.0012), than=time(0.0251, 0.0015))
        False
    """
    varies = math.hypot(one.spread or 0.0, than.spread or 0.0)
    return than.value - one.value > max(NOTICEABLE * than.value, varies)


class _Placement:
    """Looks for the placement of integers that the runtime runs fastest: a greedy search over timed files."""

    def __init__(
        self, source: Source, config: QuantizeConfig, exporter: Exporter, context: Context, shelf: Shelf
    ) -> None:
        self._source, self._config, self._exporter, self._context = source, config, exporter, context
        self._kinds, self._shelf = _kinds(source), shelf
        self._seen: set[str] = set()

    def fastest(self) -> tuple[QuantizeConfig, tuple[str, ...]]:
        """The configuration, and notes on what was timed."""
        progress = self._context.progress
        progress.say(f"Timing placements of integers on {self._exporter.runtime.name}.")
        tried = {name: config for name, config in self._first().items() if self._made(name, config)}
        times = self._times()
        notes = [", ".join(f"{name} {format_time(time.value)}" for name, time in times.items())]
        best = self._faster(tried, times, "float", notes)
        if best != "float":
            best = self._improved(tried, best, notes)
        return tried[best], (f"Timed in turns on {self._exporter.runtime.name}: {'; '.join(notes)}. Taken: {best}.",)

    def _first(self) -> dict[str, QuantizeConfig]:
        """What is tried in any case: float, and integers everywhere in the ways that the runtimes differ in."""
        quick = self._config
        return {
            "float": self._everywhere(_stored(quick.default)),
            "integers": quick,
            "integers, sums in float": _with_policy(quick, additions="float"),
            **self._less_fused(quick.policy),
            **self._in_bf16(),
        }

    def _less_fused(self, policy: IntegerPolicy) -> dict[str, QuantizeConfig]:
        """Without what the runtime says that it fuses: for some shapes of layers its other kernels are faster."""
        tried = {}
        if policy.additions == "in convolution":
            tried["integers, sums apart"] = _with_policy(self._config, additions="own kernel")
        if policy.fused_activation_functions == "all":
            tried["integers, curves apart"] = _with_policy(self._config, fused_activation_functions="clipping")
        return tried

    def _everywhere(self, precision: Precision) -> QuantizeConfig:
        """The configuration with `precision` in all layers that it does not name."""
        layers = {**dict.fromkeys(self._source.layers, precision), **dict(self._config.layers)}
        return replace(self._config, layers=tuple(layers.items()))

    def _in_bf16(self) -> dict[str, QuantizeConfig]:
        """Float types that the runtime computes in beside 32 bits."""
        if not self._exporter.runtime.computes_bf16():
            return {}
        beside = (
            {"integers, norms in bf16": _with_policy(self._config, norm_parameters="bf16")} if self._has(NORMS) else {}
        )
        return {"bf16": self._everywhere(Precision("bf16", "none")), **beside}

    def _has(self, targets: Set[object]) -> bool:
        return any(node.target in targets for node in self._source.network.graph.nodes)

    def _moves(self, config: QuantizeConfig) -> dict[str, QuantizeConfig]:
        """The configurations one change away: a kind of layer in float, or something that the runtime can do."""
        kinds = self._kinds if len(self._kinds) > 1 else {}
        moves = {f"{kind} in float": _in_float(config, layers) for kind, layers in kinds.items()}
        if config.policy.symmetric_inputs_of_linear_layers == "if faster" and "linear layers" in self._kinds:
            symmetric = _with_policy(config, symmetric_inputs_of_linear_layers="always")
            moves["symmetric before linear layers"] = symmetric
        if self._exporter.runtime.computes_bf16() and self._has(NORMS):
            moves["norms in bf16"] = _with_policy(config, norm_parameters="bf16")
        return {name: moved for name, moved in moves.items() if moved != config}

    def _improved(self, tried: dict[str, QuantizeConfig], best: str, notes: list[str]) -> str:
        """The name of the configuration after one change after the other, as long as that makes the file faster."""
        for _ in range(_TRIES):
            self._shelf.keep([best])
            moved = {f"{best}, {name}": config for name, config in self._moves(tried[best]).items()}
            tried |= {name: config for name, config in moved.items() if self._made(name, config)}
            if self._shelf.names == [best]:
                break
            times = self._times()
            first = self._faster(tried, times, best, notes)
            if first == best:
                break
            notes.append(f"{first} {format_time(times[first].value)} (was {format_time(times[best].value)})")
            best = first
        return best

    def _faster(
        self, tried: dict[str, QuantizeConfig], times: dict[str, Measurement], than: str, notes: list[str]
    ) -> str:
        """The fastest whose file answers as its network, if it beats `than` by more than the noise; else `than`."""
        for name in sorted(times, key=lambda name: times[name].value):
            if not is_faster(times[name], times[than]):
                continue
            if self._answers(name, tried[name]):
                return name
            notes.append(f"{name} left out, since its file does not answer as its network")
        return than

    def _answers(self, name: str, config: QuantizeConfig) -> bool:
        freed(self._source.network)
        images = self._context.first(float(cost_of(self._source.network).macs), _CHECKED)
        try:
            self._shelf.check(name, draft(self._source, config, self._context), images)
        except ParityError:
            return False
        return True

    def _made(self, name: str, config: QuantizeConfig) -> bool:
        """Make the file that is to be timed; False where it cannot be made, or is the same as one before."""
        freed(self._source.network)
        try:
            network = draft(self._source, config, self._context)
            code = network.module.code
            if code in self._seen:
                return False
            self._shelf.add(name, network)
        except (Unsupported, ParityError):
            if name == "float":
                raise
            return False
        self._seen.add(code)
        return True

    def _times(self) -> dict[str, Measurement]:
        try:
            return self._measured(self._shelf.names)
        except StorageError:
            raise
        except AfinaError:
            self._shelf.keep([name for name in self._shelf.names if self._runs(name)])
            return self._measured(self._shelf.names)

    def _runs(self, name: str) -> bool:
        """Whether the runtime can load and run a placement's file."""
        try:
            self._measured([name])
        except AfinaError as error:
            if name == "float" or isinstance(error, StorageError):
                raise
            return False
        return True

    def _measured(self, names: list[str]) -> dict[str, Measurement]:
        return self._shelf.latencies(names)


def _with_policy(config: QuantizeConfig, **changes: Any) -> QuantizeConfig:
    return replace(config, policy=replace(config.policy, **changes))


def _kinds(source: Source) -> dict[str, list[str]]:
    """The names of the layers, by the kind that decides how kernels treat them."""
    layers_by_kind: dict[str, list[str]] = {}
    for number, node in enumerate(n for n in source.network.graph.nodes if n.target in WEIGHTED):
        layers_by_kind.setdefault(_kind(node, number == 0), []).append(layer_name(node))
    return layers_by_kind


def _kind(node: Node, first: bool) -> str:
    if op_name(node) == "linear":
        return "linear layers"
    if first:
        return "the first layer"
    a = arguments(node)
    weight, out = a["weight"].meta["val"], node.meta["val"]
    if int(a["groups"]) > 1:
        return "depthwise convolutions" if weight.shape[1] == 1 else "grouped convolutions"
    if all(size == 1 for size in out.shape[2:]):
        return "gates"
    return "1x1 convolutions" if all(size == 1 for size in weight.shape[2:]) else "convolutions"


def _in_float(config: QuantizeConfig, layers: list[str]) -> QuantizeConfig:
    """The configuration with these layers computed in float; layers that are in float already stay so."""
    moved = {name: _stored(config.precision(name)) for name in layers}
    return config.with_layers(moved)


def _stored(precision: Precision) -> Precision:
    """The type of the weights as it is, with activations in float."""
    return replace(precision, activations="none")
