"""Precision given back to the layers to blame, until the file's quality is within its limit."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from afina.errors import InputError, NothingToDo
from afina.graph.cost import cost_of
from afina.graph.network import Network
from afina.jobs.common.exporter import Answers, Exporter
from afina.jobs.common.subject import Subject
from afina.tasks import get_task
from afina.techniques.quantize import FLOAT, Precision, QuantizeConfig
from afina.techniques.quantize.effects import damages
from afina.techniques.quantize.prepared import Prepared, Source
from afina.types import Record
from afina.units import format_value

_FEW = tuple(f"int{bits}" for bits in range(2, 8))


@dataclass(frozen=True)
class Guard:
    """Keeps the file's loss of quality within a limit, by giving precision back to the layers to blame.

    Attributes:
        source, subject, exporter: The network, its data, its runtime.
        original: The answers of the float network's file.
        max_drop: The limit, in the metric's points; None for no limit.
        build: Makes the network and its record from a configuration.
    """

    source: Source
    subject: Subject
    exporter: Exporter
    original: Answers
    max_drop: float | None
    build: Callable[[QuantizeConfig], tuple[Network, Record]]

    def keep(self, config: QuantizeConfig) -> tuple[Network, Record, Answers, QuantizeConfig]:
        """The network of a configuration; where it breaks the limit, that with the fewest layers given back.

        Layers get precision back in the order of the damage that each does alone. How many of them have to is found by
        bisection: with 50 layers, at most six networks are built, exported and judged.

        Returns:
            The network that keeps the limit, its record with a note on the layers, what its file answered, and the
            configuration that it has.

        Raises:
            InputError: the limit is kept only with all layers in float.
        """
        network, record = self.build(config)
        answers = self._answers(network)
        if self._within_limit(answers):
            return network, record, answers, config
        steps = self._steps(config)
        drop = self._drop(answers)
        tries = len(steps).bit_length()
        self.subject.progress.say(
            f"The file loses {self._format_points(drop)}: looking for the layers to blame, in at most {tries} tries, "
            "each built anew."
        )
        low, high = 1, len(steps)
        smallest: tuple[Network, Record, Answers] | None = None
        while low <= high:
            middle = (low + high) // 2
            tried = self._build_and_judge(config.with_layers(dict(steps[:middle])))
            if tried is None or self._within_limit(tried[2]):
                smallest, high, count = tried, middle - 1, middle
            else:
                low = middle + 1
        if smallest is None:
            raise InputError(
                f"A drop of at most {self._format_points(self.max_drop or 0.0)} cannot be kept by quantization.",
                why="Every layer would have to stay in float.",
                fix="Give a larger --max-drop, or train with --qat.",
            )
        names = list(dict.fromkeys(layer for layer, _ in steps[:count]))
        note = (
            f"The file lost {self._format_points(drop)}; "
            f"precision was given back to {len(names)} layers: {', '.join(names)}."
        )
        network, record, answers = smallest
        record = replace(record, notes=(*record.notes, note))
        return network, record, answers, config.with_layers(dict(steps[:count]))

    def _build_and_judge(self, config: QuantizeConfig) -> tuple[Network, Record, Answers] | None:
        """What is built of a configuration, and what its file answers; None where nothing is left in integers."""
        try:
            network, record = self.build(config)
        except NothingToDo:
            return None
        return network, record, self._answers(network)

    def _format_points(self, points: float) -> str:
        quality = self.original.quality
        return format_value(points, quality.unit, share=quality.share)

    def _within_limit(self, answers: Answers) -> bool:
        return self.max_drop is None or self._drop(answers) <= self.max_drop

    def _drop(self, answers: Answers) -> float:
        # Agreement, where there are no labels, has the direction of the task's metric.
        metric = get_task(self.subject.network.task).metric
        return metric.lost(self.original.quality.value, answers.quality.value)

    def _answers(self, network: Network) -> Answers:
        assert self.subject.data is not None
        return self.exporter.judge(network, self.subject.data, self.subject.progress, self.original.outputs)

    def _steps(self, config: QuantizeConfig) -> list[tuple[str, Precision]]:
        """Layers with the precision that they get back: first all below int8, then all that compute in integers."""
        prepared = Prepared(self.source, replace(config, rounding="nearest"))
        context = self.subject.context(self.source.network)
        prepared.calibrate(context, "mse")
        images = context.first(float(cost_of(self.source.network).macs))
        layer_damages = damages(prepared, lambda layer: [config.precision(layer)], images, self.subject.progress)
        order = [damage for damage in sorted(layer_damages, key=lambda d: -d.loss) if damage.precision != FLOAT]
        few = [
            (d.layer, Precision("int8", _at_least_8(d.precision.activations)))
            for d in order
            if d.precision.weights in _FEW or d.precision.activations in _FEW
        ]
        return [*few, *((d.layer, FLOAT) for d in order)]


def _at_least_8(activations: str) -> str:
    return "int8" if activations in _FEW else activations
