"""Which precision each layer gets: by time measured on the runtime, by bytes, and by what it does to the outputs.

Time first: a few placements of integers are exported and timed in turns, the float network among them, and kinds of
layers that are no faster in integers are taken out one after the other, and what the runtime may compute faster beside
them is tried likewise. Layers that compute in float still store their weights as was asked for: of int8, which the
runtime undoes when it loads, a quarter of the bytes at the speed of float. Then bytes: where the file is limited, an
integer program shares out the bits by each layer's measured damage.
"""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace

from torch.fx import Node

from afina.budget.allocate import Option, choose
from afina.errors import AfinaError, InputError, NothingToDo, ParityError, StorageError, Unsupported
from afina.graph.axes.builder import arguments, op_name
from afina.graph.cost import cost_of
from afina.graph.network import Network
from afina.graph.statistics import freed
from afina.graph.stored import attribute
from afina.jobs.compression import Subject
from afina.jobs.exporting import Answers, Exporter, Shelf
from afina.tasks import get_task
from afina.techniques.context import Context
from afina.techniques.quantize import FLOAT, Precision, QuantizeConfig
from afina.techniques.quantize.config import bits_of
from afina.techniques.quantize.effects import Damage, damages
from afina.techniques.quantize.prepared import Prepared, Source
from afina.techniques.quantize.quantizer import HALVES, NORMS, WEIGHTED, layer_name
from afina.techniques.quantize.weights import round_layers
from afina.types import Budget, Record
from afina.units import format_size, format_time, format_value

# A placement must be faster by this share to be preferred: timings are not finer.
_NOTICEABLE = 0.02
_TRIES = 3
_CHECKED = 32  # images on which a file must answer as its network


def plan_precisions(
    source: Source, config: QuantizeConfig, limits: Budget, exporter: Exporter, context: Context
) -> tuple[QuantizeConfig, tuple[str, ...]]:
    """The configuration whose file is the fastest that was found, within the limit on its size; and notes on why.

    Raises:
        InputError: a limit cannot be kept; it says what can.
    """
    with exporter.shelf() as shelf:
        placed, notes = _Placement(source, config, exporter, context, shelf).fastest()
    if limits.size is not None:
        placed = fit_size(source, placed, limits.size, exporter, context)
        notes += (f"Bits shared out for a file of at most {format_size(limits.size)}: {_told(placed)}.",)
    if limits.latency is not None:
        taken = exporter.time(_quick(source, placed, context))
        if taken > limits.latency:
            raise InputError(
                f"A latency of {format_time(limits.latency)} cannot be kept by quantization.",
                why=f"The fastest placement that was found takes {format_time(taken)} on {exporter.runtime.name}.",
                fix="Prune first (afina prune --latency), or give a larger limit.",
            )
    return placed, notes


class _Placement:
    """Looks for the placement of integers that the runtime runs fastest."""

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
        told = [", ".join(f"{name} {format_time(value)}" for name, value in times.items())]
        best = self._faster(tried, times, "float", told)
        if best != "float":
            best = self._improved(tried, best, told)
        return tried[best], (f"Timed in turns on {self._exporter.runtime.name}: {'; '.join(told)}. Taken: {best}.",)

    def _first(self) -> dict[str, QuantizeConfig]:
        """What is tried in any case: float, and integers everywhere in the ways that the runtimes differ in."""
        quick = self._config
        return {
            "float": self._everywhere(_stored(quick.default)),
            "integers": quick,
            "integers, sums in float": replace(quick, sums="float"),
            **({"integers, sums apart": replace(quick, sums="apart")} if quick.sums == "joined" else {}),
            **({"integers, curves apart": replace(quick, fused="clips")} if quick.fused == "all" else {}),
            **self._runtimes_own(),
        }

    def _everywhere(self, precision: Precision) -> QuantizeConfig:
        """That precision in all layers for which none was asked by name."""
        layers = {**dict.fromkeys(self._source.layers, precision), **dict(self._config.layers)}
        return replace(self._config, layers=tuple(layers.items()))

    def _runtimes_own(self) -> dict[str, QuantizeConfig]:
        """Float types that the runtime computes in beside 32 bits."""
        if not self._exporter.runtime.computes_bf16():
            return {}
        beside = {"integers, norms in bf16": replace(self._config, norms="bf16")} if self._has(NORMS) else {}
        return {"bf16": self._everywhere(Precision("bf16", "none")), **beside}

    def _has(self, targets: Set[object]) -> bool:
        return any(node.target in targets for node in self._source.network.graph.nodes)

    def _moves(self, config: QuantizeConfig) -> dict[str, QuantizeConfig]:
        """What one change makes of a configuration: a kind of layer in float, or something that the runtime has."""
        kinds = self._kinds if len(self._kinds) > 1 else {}
        moves = {f"{kind} in float": _in_float(config, layers) for kind, layers in kinds.items()}
        if self._exporter.runtime.centred and "linear layers" in self._kinds:
            moves["symmetric before linear layers"] = replace(config, centred=True)
        if self._exporter.runtime.computes_bf16() and self._has(NORMS):
            moves["norms in bf16"] = replace(config, norms="bf16")
        return {name: moved for name, moved in moves.items() if moved != config}

    def _improved(self, tried: dict[str, QuantizeConfig], best: str, told: list[str]) -> str:
        """The name of the configuration after one change after the other, as long as that makes the file faster."""
        for _ in range(_TRIES):
            self._shelf.keep([best])
            moved = {f"{best}, {name}": config for name, config in self._moves(tried[best]).items()}
            tried |= {name: config for name, config in moved.items() if self._made(name, config)}
            if self._shelf.names == [best]:
                break
            times = self._times()
            first = self._faster(tried, times, best, told)
            if first == best:
                break
            told.append(f"{first} {format_time(times[first])} (was {format_time(times[best])})")
            best = first
        return best

    def _faster(self, tried: dict[str, QuantizeConfig], times: dict[str, float], than: str, told: list[str]) -> str:
        """The fastest of those whose files answer as their networks, if that can be told from `than`; else that."""
        for name in sorted(times, key=lambda name: times[name]):
            if times[name] > times[than] * (1 - _NOTICEABLE):
                break
            if self._answers(name, tried[name]):
                return name
            told.append(f"{name} left out, since its file does not answer as its network")
        return than

    def _answers(self, name: str, config: QuantizeConfig) -> bool:
        freed(self._source.network)
        images = self._context.first(float(cost_of(self._source.network).macs), _CHECKED)
        try:
            self._shelf.check(name, _quick(self._source, config, self._context), images)
        except ParityError:
            return False
        return True

    def _made(self, name: str, config: QuantizeConfig) -> bool:
        """Make the file that is to be timed; False where it cannot be made, or is the same as one before."""
        freed(self._source.network)
        try:
            network = _quick(self._source, config, self._context)
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

    def _times(self) -> dict[str, float]:
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

    def _measured(self, names: list[str]) -> dict[str, float]:
        return {name: measured.value for name, measured in self._shelf.latencies(names).items()}


def _kinds(source: Source) -> dict[str, list[str]]:
    """Layers by what decides how kernels treat them."""
    found: dict[str, list[str]] = {}
    for number, node in enumerate(n for n in source.network.graph.nodes if n.target in WEIGHTED):
        found.setdefault(_kind(node, number == 0), []).append(layer_name(node))
    return found


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
    """The same with some layers computed in float; those that were asked to stay in float stay so."""
    moved = {name: _stored(config.precision(name)) for name in layers}
    return replace(config, layers=tuple({**dict(config.layers), **moved}.items()))


def _stored(precision: Precision) -> Precision:
    """Weights as they were asked for, computed in float."""
    return replace(precision, activations="none")


def _quick(source: Source, config: QuantizeConfig, context: Context) -> Network:
    """A network of the same form and speed, its ranges and weights chosen without care."""
    quick = replace(config, calibration="minmax", rounding="nearest", equalize="none")
    prepared = Prepared(source, quick)
    prepared.calibrate(context, "minmax")
    round_layers(prepared, Context())
    return prepared.convert()


def fit_size(
    source: Source, config: QuantizeConfig, limit: float, exporter: Exporter, context: Context
) -> QuantizeConfig:
    """Bits for each layer's weights, so that the file has at most `limit` bytes with the least damage.

    Raises:
        InputError: no choice of bits makes the file so small; it says what can.
    """
    stored = exporter.runtime.stored_bits
    network = source.network
    prepared = Prepared(source, replace(config, rounding="nearest"))
    prepared.calibrate(context, "mse")
    sizes = {name.removesuffix(".weight"): attribute(network.module, name).numel() for name in prepared.weights}
    eight = {name: Precision("int8", config.precision(name).activations) for name in sizes}

    def options(layer: str) -> list[Precision]:
        own = config.precision(layer)
        fewer = [Precision(f"int{bits}", own.activations) for bits in sorted(stored, reverse=True) if bits <= 8]
        return [own, *fewer] if own.weights in HALVES else fewer

    found = damages(prepared, options, context.first(float(cost_of(network).macs)), context.progress)
    by_layer: dict[str, list[Damage]] = {}
    for damage in found:
        by_layer.setdefault(damage.layer, []).append(damage)
    in_eight = replace(config, layers=tuple({**dict(config.layers), **eight}.items()))
    rest = exporter.size(_quick(source, in_eight, context)) - sum(sizes.values())
    room = limit - rest
    for _ in range(_TRIES):
        planned = _share_out(config, by_layer, sizes, stored, room, rest)
        made = exporter.size(_quick(source, planned, context))
        if made <= limit:
            return planned
        room -= made - limit
    raise InputError(
        f"A file of {format_size(limit)} cannot be made by quantization.",
        why=f"The nearest that was found has {format_size(made)}.",
        fix="Prune first (afina prune --size), or give a larger limit.",
    )


def _share_out(
    config: QuantizeConfig,
    damage: Mapping[str, list[Damage]],
    sizes: Mapping[str, int],
    stored: Mapping[int, int],
    room: float,
    rest: float,
) -> QuantizeConfig:
    options = {
        layer: [Option(d.loss, sizes[layer] * _stored_bits(d.precision, stored) / 8) for d in own]
        for layer, own in damage.items()
    }
    try:
        taken = choose(options, room)
    except InputError as error:
        smallest = rest + sum(min(option.cost for option in own) for own in options.values())
        raise InputError(
            f"A file of {format_size(rest + room)} cannot be made by quantization.",
            why=f"The smallest possible has about {format_size(smallest)}: every weight in the fewest bits that the "
            "runtime stores.",
            fix="Prune first (afina prune --size), or give a larger limit.",
        ) from error
    chosen = {layer: damage[layer][index].precision for layer, index in taken.items()}
    return replace(config, layers=tuple({**dict(config.layers), **chosen}.items()))


def _stored_bits(precision: Precision, stored: Mapping[int, int]) -> int:
    return 16 if precision.weights in HALVES else stored[bits_of(precision.weights)]


def _told(config: QuantizeConfig) -> str:
    counts: dict[str, int] = {}
    for _, precision in config.layers:
        counts[precision.weights] = counts.get(precision.weights, 0) + 1
    return ", ".join(f"{count} layers in {name}" for name, count in sorted(counts.items()))


@dataclass
class Guard:
    """Keeps the file's loss of quality within a limit, by giving precision back to the layers to blame.

    Attributes:
        source, subject, exporter: The network, its data, its runtime.
        original: The answers of the float network's file.
        max_drop: The limit, in the metric's points.
        build: Makes the network and its record from a configuration.
        config: What was built first; afterwards, what was kept.
    """

    source: Source
    subject: Subject
    exporter: Exporter
    original: Answers
    max_drop: float
    build: Callable[[QuantizeConfig], tuple[Network, Record]]
    config: QuantizeConfig

    def keep(self, network: Network, record: Record, found: Answers) -> tuple[Network, Record, Answers]:
        """The same where the limit is kept; else the network with the fewest layers given back that keeps it.

        The number of layers, in the order of the damage that each does alone, is found by bisection on exported files.

        Raises:
            InputError: the limit is kept only with all layers in float.
        """
        if self._good(found):
            return network, record, found
        steps = self._steps(self.config)
        drop = self._drop(found)
        tries = len(steps).bit_length()
        self.subject.progress.say(
            f"The file loses {self._told(drop)}: looking for the layers to blame, in at most {tries} tries, each built "
            "anew."
        )
        low, high = 1, len(steps)
        kept: tuple[Network, Record, Answers] | None = None
        while low <= high:
            middle = (low + high) // 2
            tried = self._tried(self._given_back(self.config, steps[:middle]))
            if tried is None or self._good(tried[2]):
                kept, high, count = tried, middle - 1, middle
            else:
                low = middle + 1
        if kept is None:
            raise InputError(
                f"A drop of at most {self._told(self.max_drop)} cannot be kept by quantization.",
                why="Every layer would have to stay in float.",
                fix="Give a larger --max-drop, or train with --qat.",
            )
        self.config = self._given_back(self.config, steps[:count])
        names = list(dict.fromkeys(layer for layer, _ in steps[:count]))
        note = f"The file lost {self._told(drop)}; precision was given back to {len(names)} layers: {', '.join(names)}."
        return kept[0], replace(kept[1], notes=(*kept[1].notes, note)), kept[2]

    def _tried(self, config: QuantizeConfig) -> tuple[Network, Record, Answers] | None:
        """What is built of a configuration, and what its file answers; None where nothing is left in integers."""
        try:
            made, record = self.build(config)
        except NothingToDo:
            return None
        return made, record, self._answers(made)

    def _told(self, points: float) -> str:
        return format_value(points, self.original.quality.unit)

    def _good(self, found: Answers) -> bool:
        return self._drop(found) <= self.max_drop

    def _drop(self, found: Answers) -> float:
        better = 1 if self._higher() else -1
        return better * (self.original.quality.value - found.quality.value)

    def _higher(self) -> bool:
        task = get_task(self.subject.network.task)
        assert self.subject.data is not None
        return (task.metric if self.subject.data.labelled else task.agreement).higher_is_better

    def _answers(self, network: Network) -> Answers:
        assert self.subject.data is not None
        return self.exporter.judge(network, self.subject.data, self.subject.progress, self.original.outputs)

    def _steps(self, config: QuantizeConfig) -> list[tuple[str, Precision]]:
        """Layers with the precision that they get back: first all below int8, then all that compute in integers."""
        prepared = Prepared(self.source, replace(config, rounding="nearest"))
        context = self.subject.context(self.source.network)
        prepared.calibrate(context, "mse")
        images = context.first(float(cost_of(self.source.network).macs))
        found = damages(prepared, lambda layer: [config.precision(layer)], images, self.subject.progress)
        order = [damage for damage in sorted(found, key=lambda d: -d.loss) if damage.precision != FLOAT]
        few = [
            (d.layer, Precision("int8", _at_least_8(d.precision.activations)))
            for d in order
            if d.precision.weights in _FEW or d.precision.activations in _FEW
        ]
        return [*few, *((d.layer, FLOAT) for d in order)]

    @staticmethod
    def _given_back(config: QuantizeConfig, steps: list[tuple[str, Precision]]) -> QuantizeConfig:
        return replace(config, layers=tuple({**dict(config.layers), **dict(steps)}.items()))


_FEW = tuple(f"int{bits}" for bits in range(2, 8))


def _at_least_8(activations: str) -> str:
    return "int8" if activations in _FEW else activations
