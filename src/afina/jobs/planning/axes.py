"""How many units each axis keeps: a target shared out over the axes that pruning may shorten."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np

from afina.budget import Choice, allocate, fewest_of
from afina.errors import InputError, NothingToDo
from afina.graph.network import Network
from afina.graph.sizing import Sizing
from afina.graph.statistics import freed
from afina.graph.surgery import remove
from afina.jobs.planning.targets import Target, approach, format_cost
from afina.techniques.prune import PruneConfig, Study, fewest, sensitivities, step_of
from afina.types import Sensitivity

Counts = Mapping[str, int]


class AxisPlanner:
    """Shares a target out over the axes of a study.

    Args:
        study: The network.
        per: `global` (from sensitivities and costs) or `layer` (the same share of every axis).
        costs: `macs` or `parameters`: what the axes are charged for.

    Attributes:
        sensitivities: The damage of removing units of each axis; empty for `layer`.
        choices: The damage of each axis, and the numbers of units that it may keep.
    """

    def __init__(self, study: Study, per: str, costs: str) -> None:
        self.study = study
        self.sizing: Sizing = study.sizing("parameters" if costs == "parameters" else "macs")
        self.sensitivities: dict[str, Sensitivity] = sensitivities(study) if per == "global" else {}
        self.choices = self._choices(study.config)

    def counts(self, cost: float) -> dict[str, int]:
        """Units that each axis keeps so that what axes are charged is at most `cost`, or the smallest possible."""
        return self._counts(cost, self.choices)

    def shape(self, counts: Counts) -> Network:
        """A network with so many units of each axis, for its cost alone: which units it has does not matter."""
        axes = self.study.axes
        keep = {axes[name]: range(count) for name, count in counts.items() if count < axes[name].size}
        return remove(self.study.network, keep, analysis=self.study.analysis) if keep else self.study.network

    def reach(self, target: Target, last: bool = True) -> dict[str, int]:
        """Units that each axis keeps so that the target is met, from below, by `target.measure` of the real network.

        Where the multiple is only for wide axes (`PruneConfig.wide`) and leaves the target far, it is given up. Where
        charges do not tell what is measured (weights that are computed on the way cost nothing in them), units are
        given back by measuring.

        Args:
            target: What is to be met.
            last: Whether it is the user's target, not one on the way to it, which may be missed from below.

        Raises:
            NothingToDo: it is met already.
            InputError: it cannot be met, or only from far below; it says what can, and which axes bind.
        """
        whole = target.measure(self.study.network)
        if whole <= target.limit:
            raise NothingToDo(
                f"The network is at {format_cost(target, whole)} already.",
                why=f"The target is {format_cost(target, target.limit)}.",
                fix="Give a smaller target.",
            )
        choices = self.choices
        counts, value = self._search(target, whole, choices)
        coarse = self.study.config.wide and any(choice.multiple > 1 for choice in self.choices.values())
        if coarse and not target.near(value):
            choices = self._any_number
            counts, value = self._search(target, whole, choices)
            self.study.notes.append(f"Multiples of {self.study.config.multiple} channels would miss the target.")
        if value > target.limit:
            raise self._out_of_reach(target, value, counts)
        if target.counted and not target.near(value):
            counts, value = self._filled(target, counts, value, choices)
        if last and not target.near(value):
            self.study.notes += target.shortfall(value, self._next_step(target, counts, choices))
        return counts

    def _filled(
        self, target: Target, counts: dict[str, int], value: float, choices: Mapping[str, Choice]
    ) -> tuple[dict[str, int], float]:
        """The counts with as many units given back, axis by axis, as the measured target allows; what it measures."""
        for name in sorted(
            counts, key=lambda name: choices[name].losses[choices[name].size - counts[name]], reverse=True
        ):
            more = [units for units in choices[name].fewer(choices[name].size + 1) if units > counts[name]]
            while more:  # from the largest to the smallest: the first that fits, by halves
                units = more[len(more) // 2]
                measured = self._measured(target, {**counts, name: units})
                if measured <= target.limit:
                    counts, value = {**counts, name: units}, measured
                    more = more[: len(more) // 2]
                else:
                    more = more[len(more) // 2 + 1 :]
            if target.near(value):
                break
        return counts, value

    def _next_step(self, target: Target, counts: Counts, choices: Mapping[str, Choice]) -> str:
        """The smallest step up from these counts, in words."""
        steps = {
            name: min((units for units in choice.fewer(choice.size + 1) if units > counts[name]), default=None)
            for name, choice in choices.items()
        }
        if not target.counted or not any(steps.values()):
            return "its axes have no finer steps."
        costs = {n: self._measured(target, {**counts, n: units}) for n, units in steps.items() if units is not None}
        name = min(costs, key=lambda name: costs[name])
        return f"with the next step up ({name} to {steps[name]}) it has {format_cost(target, costs[name])}."

    @cached_property
    def _any_number(self) -> dict[str, Choice]:
        return self._choices(replace(self.study.config, multiple=1, wide=0))

    def _choices(self, config: PruneConfig) -> dict[str, Choice]:
        return {
            name: Choice(
                losses=self._losses(name, axis.size), multiple=step_of(axis, config), minimum=fewest(axis, config)
            )
            for name, axis in self.study.axes.items()
        }

    def _counts(self, cost: float, choices: Mapping[str, Choice]) -> dict[str, int]:
        least = fewest_of(choices)
        return least if cost <= self.sizing.total(least) else allocate(choices, self.sizing, cost)

    def _search(self, target: Target, whole: float, choices: Mapping[str, Choice]) -> tuple[dict[str, int], float]:
        return approach(
            target,
            lambda cost: self._counts(cost, choices),
            self.sizing.total,
            lambda counts: self._measured(target, counts),
            (self.sizing.total({}), whole),
            fewest_of(choices),
        )

    def _measured(self, target: Target, counts: Counts) -> float:
        value = target.measure(self.shape(counts))
        freed(self.study.network)
        return value

    def _losses(self, name: str, size: int) -> np.ndarray:
        if self.sensitivities:
            return np.asarray(self.sensitivities[name].losses)
        # The same share everywhere: damage for each unit of cost that only depends on the share that is gone.
        steps = [self.sizing.saving({}, name, size - gone) if gone else 0.0 for gone in range(size)]
        share = np.arange(size) / size
        return np.concatenate(([0.0], np.cumsum(np.maximum(np.diff(steps), 1e-12) * share[1:])))

    def _out_of_reach(self, target: Target, smallest: float, least: Counts) -> InputError:
        binding = sorted(least, key=lambda name: self.sizing.saving(least, name, 0), reverse=True)[:4]
        listed = ", ".join(f"{name} ({least[name]} of {self.study.axes[name].size})" for name in binding)
        return InputError(
            f"The target of {format_cost(target, target.limit)} cannot be met by pruning: "
            f"the smallest possible is {format_cost(target, smallest)}.",
            why=f"What binds, at the fewest units that may stay: {listed}.",
            fix="Give a larger target, or combine pruning with quantization: afina optimize.",
        )
