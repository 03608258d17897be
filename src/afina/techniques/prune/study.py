"""`Study`: what is known of one network for pruning: its axes, the order in which they lose units, the pruning itself.

With the criterion `fit`, `Study.prune` goes through five steps:

1. `moments`: one pass over the images sums `[x; 1] [x; 1]^T` of what each layer reads.
2. `path`, for one axis after the other: `elimination` takes the units that cost least out of the layers that read it,
   and refits these layers. Their states are shared: a layer that reads two axes (after a `cat`) loses units of the
   first axis, and what the units of the second cost is then worked out without those.
3. `remove` cuts the units out of all weights and rewrites the shapes in the graph. The weights are still the old ones.
4. `write_matrices` writes the refitted weights of step 2 into the layers that read the axes.
5. `refit` solves for the weights of all layers in the order of the graph. Step 2 knew only what layers read in the
   whole network; behind a pruned layer they read something else, and layers that read no pruned axis can correct
   errors too.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from afina.errors import InputError, NothingToDo, did_you_mean
from afina.graph.axes import Analysis, Axis
from afina.graph.blocks import remove_blocks
from afina.graph.cost import cost_of
from afina.graph.network import Network
from afina.graph.sizing import Sizing
from afina.graph.statistics import Moments, Reader, find_readers, refit, write_matrices
from afina.graph.surgery import masks, remove
from afina.techniques.base import step_of_config
from afina.techniques.context import Context
from afina.techniques.prune import importance
from afina.techniques.prune.config import DATA_DRIVEN, KINDS, PruneConfig
from afina.techniques.prune.elimination import Path, States, eliminate
from afina.techniques.prune.limits import at_odds, fewest, step_of
from afina.types import Record


class Study:
    """A network and what is known of its axes; analysis and statistics are made once and used for any counts.

    Args:
        network: The network; it is left as it is.
        config: How to prune.
        context: Calibration images (none for criteria that need none), seed, progress.

    Attributes:
        reference: The network, in inference form.
        network: The same without the residual blocks that the config takes out.
        context: The context of the study.
        analysis: The analysis of `network`.
        axes: The free axes that may be pruned, by name.
        skipped: Layers, axes and ops that are left alone, with the reason.
        notes: Sentences for the user, which become `Record.notes`.
        config: The config; a criterion that needs images is `magnitude` where there are none.
        orders: In which axes lose units, by name, where elimination worked it out before.

    Raises:
        InputError: the config names a kind of axis, an axis or a block that is not there.
        NothingToDo: no unit of any axis can be removed, and the config takes out no block.

    Example:
        >>> from torch import nn
        >>> from afina.graph import capture
        >>> from afina.types import InputSpec, TaskSpec
        >>> module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> grey = InputSpec(4, 4, mean=(0.5,), std=(0.5,), order="L")
        >>> network = capture(module, grey, TaskSpec("classification", ("cat", "dog")))
        >>> study = Study(network, PruneConfig(ratio=0.25, criterion="magnitude"), Context())
        >>> {name: axis.size for name, axis in study.axes.items()}
        {'1': 8}
        >>> study.uniform()
        {'1': 6}
        >>> pruned, record = study.prune({"1": 5})
        >>> len(record.step.config["removed"]["1"])
        3
    """

    def __init__(self, network: Network, config: PruneConfig, context: Context) -> None:
        # In inference form: statistics and comparisons must not move the running means of norms.
        network = network.copy().eval() if network.training else network
        self.reference, self.context, self.notes = network, context, list[str]()
        self.orders: dict[str, tuple[int, ...]] = {}
        network = remove_blocks(network, config.blocks) if config.blocks else network
        self.network = network
        if context.calibration is None and config.criterion in DATA_DRIVEN:
            config = replace(config, criterion="magnitude")
            self.notes.append("There are no calibration images, so units are chosen by magnitude.")
        self.config, self.analysis = config, Analysis(network)
        axes = self.analysis.axes
        self.skipped = {layer: axis.reason for axis in axes.fixed for layer in axis.producers}
        self.skipped.update({op: f"not understood: {why}" for op, why in axes.unknown.items()})
        _check_names(config.axes, axes.free)
        named = [a for a in axes.free if not config.axes or a.kind in config.axes or a.name in config.axes]
        self.skipped.update({a.name: "not among the axes asked for" for a in axes.free if a not in named})
        prunable = [axis for axis in named if fewest(axis, config) < axis.size]
        self.skipped.update({a.name: f"of {a.size} units none may go" for a in named if a not in prunable})
        conflicts = at_odds(self.analysis, prunable)
        self.axes = {axis.name: axis for axis in prunable if axis.name not in conflicts}
        self.skipped.update(conflicts)
        if not self.axes and not config.blocks:
            raise NothingToDo("No unit of this network can be pruned.", why=self._reasons())

    def sizing(self, kind: Literal["macs", "parameters"]) -> Sizing:
        """Cost as a function of how many units each axis keeps."""
        return Sizing(self.network, self.axes.values(), kind)

    @cached_property
    def readers(self) -> dict[str, Reader]:
        """The layers that read the axes, by the weight's name."""
        readers = find_readers(self.network)
        names = {m.name for axis in self.axes.values() for m in axis.members if m.role == "consumer"}
        return {name: reader for name, reader in readers.items() if name in names}

    def nodes(self, axis: Axis) -> list[str]:
        """The names of the nodes of those layers that read one axis."""
        read = [self.readers[m.name] for m in axis.members if m.role == "consumer" and m.name in self.readers]
        return [name for reader in read for name in reader.nodes]

    @cached_property
    def moments(self) -> dict[str, Moments]:
        """Second moments of what those layers read, by the weight's name; empty for criteria that do not need them.

        Raises:
            AfinaError: an activation is not a finite number; the text names the layer.
        """
        if self.config.criterion != "fit" or self.context.calibration is None or not self.readers:
            return {}
        blocks = [reader.name for reader in self.readers.values() if reader.blocks > 1]
        if blocks:
            self.notes.append(
                f"Statistics of {', '.join(blocks)} are kept in blocks of inputs: too wide to hold whole."
            )
        return self.context.moments(self.network, self.readers)

    @cached_property
    def scores(self) -> dict[Axis, importance.Scores]:
        """How much each unit matters (`[size]`), for the axes that are not ranked by elimination."""
        axes = [axis for axis in self.axes.values() if not self._is_fitted(axis)]
        match self.config.criterion:
            case "taylor":
                return importance.by_gradient(self.network, axes, self.context.stream(), self.context.seed)
            case "batchnorm":
                return importance.by_norm(self.network, axes)
            case "random":
                return importance.by_chance(axes, self.context.seed)
        return importance.by_magnitude(self.network, axes)

    def path(self, axis: Axis, states: States, count: int, stops: Sequence[int] = ()) -> Path:
        """The order in which an axis loses `count` units; the layers in `states` lose them, and are refitted.

        Axes that no layer with moments reads go by their scores, the smallest first, and a loss is the share of the
        scores that is gone: scores of 1, 5 and 4 give the order 0, 2, 1 and the losses 0, 0.1, 0.5 and 1.

        Args:
            axis: One of `axes`.
            states: The layers as the axes before this one left them.
            count: How many units go.
            stops: Numbers of units gone at which the refitted matrices are copied into the path.

        Raises:
            InputError: the config's `removed` does not name `count` units of this axis.
        """
        removed = self._removed(axis, count)
        if self._is_fitted(axis):
            whole = states.are_whole(axis)
            fitted = eliminate(axis, states, count, stops, removed)
            if fitted is not None:
                return replace(fitted, fitted=whole and removed is None)
        if removed is not None:
            return Path(tuple(removed), np.zeros(count + 1))
        scores = self.scores[axis]
        order = np.argsort(scores, kind="stable")
        losses = np.concatenate(([0.0], np.cumsum(scores[order]))) / max(scores.sum(), 1e-12)
        return Path(tuple(order[:count].tolist()), losses[: count + 1])

    def states(self) -> States:
        """The states of the layers that read the axes, before any unit is gone."""
        return States(self.network, self.readers, self.moments)

    def uniform(self) -> dict[str, int]:
        """How many units each axis keeps when all lose the same share, `config.ratio`; by name.

        Counts are rounded to the axis's step: of 30 units in steps of 4, a ratio of 0.5 keeps 16. Where two axes cross
        (stand in the same positions of a weight), only the larger one loses units: else those positions would lose the
        ratio twice.
        """
        counts: dict[str, int] = {}
        assert self.config.ratio is not None
        for axis in sorted(self.axes.values(), key=lambda axis: -axis.size):
            rival = next((other for other in counts if axis.crosses(self.axes[other])), None)
            if rival is not None:
                self.skipped.setdefault(axis.name, f"its channels are pruned through {rival} already")
                continue
            target, step = axis.size * (1 - self.config.ratio), step_of(axis, self.config)
            count = max(round(target / step), 1) * step if axis.size > step else int(np.floor(target + 0.5))
            counts[axis.name] = min(max(count, fewest(axis, self.config)), axis.size)
        return {name: counts[name] for name in self.axes if name in counts}

    def prune(self, counts: Mapping[str, int]) -> tuple[Network, Record]:
        """A network in which each axis keeps so many units, and the record of what was removed.

        Args:
            counts: How many units an axis keeps, by its name; other axes stay whole.

        Raises:
            InputError: there is no such axis, or the config's `removed` does not fit the counts.
            NothingToDo: no axis loses a unit, and the config takes out no block.
        """
        start = time.monotonic()
        fewer = {self._axis(name): count for name, count in counts.items() if count < self._axis(name).size}
        if not fewer and not self.config.blocks:
            raise NothingToDo("No unit of this network is to be pruned.", why=self._reasons())
        removed, matrices = self._choose_units(fewer)
        keep = {axis: sorted(set(range(axis.size)) - set(units)) for axis, units in removed.items()}
        pruned = remove(self.network, keep, analysis=self.analysis)
        notes = [
            *self.notes,
            *(f"{axis.name}: {count} of {axis.size} {axis.kind} kept" for axis, count in fewer.items()),
        ]
        notes += self._restore(pruned, keep, matrices)
        config = replace(
            self.config,
            ratio=None,
            keep={axis.name: count for axis, count in fewer.items()},
            removed={axis.name: units for axis, units in removed.items()},
        )
        touched = dict.fromkeys(
            [*self.config.blocks, *(name for axis in fewer for name in axis.producers or (axis.name,))]
        )
        notes = [*(f"{name}: taken out whole" for name in self.config.blocks), *notes]
        untouched = {name: "the budget is met without it" for name in self.axes if self.axes[name] not in fewer}
        return pruned, Record(
            step=step_of_config("prune", config),
            touched=tuple(touched),
            skipped={name: why for name, why in {**self.skipped, **untouched}.items() if name not in touched},
            before=asdict(cost_of(self.reference)),
            after=asdict(cost_of(pruned)),
            seconds=time.monotonic() - start,
            notes=tuple(notes),
        )

    def _choose_units(self, fewer: Mapping[Axis, int]) -> tuple[dict[Axis, tuple[int, ...]], dict[str, Tensor]]:
        """The units that go, where each axis keeps so many, and the refitted matrices of what reads the axes."""
        states, removed = self.states(), dict[Axis, tuple[int, ...]]()
        # The last axis that each layer reads: after it the layer loses no more inputs, and its inverse is not needed.
        last = {member.name: axis for axis in fewer for member in axis.members}
        for axis, count in fewer.items():
            removed[axis] = self._chosen(axis, states, axis.size - count)
            states.release(name for name, latest in last.items() if latest is axis)
        return removed, {name: state.matrices for name, state in states.by_weight.items()}

    def _chosen(self, axis: Axis, states: States, count: int) -> tuple[int, ...]:
        """The units that an axis loses; the layers in `states` lose them.

        Where sensitivities were measured the order is known, for layers that no other axis took inputs from.
        """
        known = self.orders.get(axis.name, ())[:count]
        if axis.name in self.config.removed or len(known) < count or not states.are_whole(axis):
            return self.path(axis, states, count).order
        eliminate(axis, states, count, removed=known)
        return known

    def _restore(
        self, pruned: Network, keep: Mapping[Axis, Sequence[int]], matrices: Mapping[str, Tensor]
    ) -> list[str]:
        """Put the refitted weights into the pruned network, then refit all its layers in order."""
        if self.context.calibration is None:
            return []
        # For each weight and each of its dimensions, the positions that stay; None for all.
        positions = {
            name: [None if mask is None else torch.from_numpy(np.flatnonzero(mask)) for mask in dims]
            for name, dims in masks(self.network, keep, analysis=self.analysis).items()
        }
        for name, refitted in matrices.items():
            write_matrices(pruned, self.readers[name], refitted, positions[name])
        if not self.config.refit:
            return []
        outputs = {name: dims[0] for name, dims in positions.items() if dims}  # a constant may be one number
        context = self.context
        names = refit(self.reference, pruned, outputs, context.stream, context.images, context.progress)
        return [f"{len(names)} layers refitted by least squares to what they gave before"] if names else []

    def _removed(self, axis: Axis, count: int) -> tuple[int, ...] | None:
        """The `count` units that the config takes out of an axis; None where the criterion chooses."""
        removed = self.config.removed.get(axis.name)
        if removed is None:
            return None
        if len(set(removed)) != len(removed) or not set(removed) <= set(range(axis.size)) or len(removed) != count:
            raise InputError(
                f"removed: {axis.name} is to lose {count} of {axis.size} units, and {len(removed)} are named.",
                why="Units are counted from 0; each is named once, and as many as `keep` does not leave.",
                fix="Give the axis in `keep` alone to have the units chosen.",
            )
        return removed

    def _is_fitted(self, axis: Axis) -> bool:
        """Whether elimination ranks the axis: some layer that reads it as its inputs has moments."""
        return any(m.role == "consumer" and m.dim == 1 and m.name in self.moments for m in axis.members)

    def _axis(self, name: str) -> Axis:
        if name not in self.axes:
            raise InputError(
                f"There is no axis {name!r} to prune in this network.", why=self.skipped.get(name, ""),
                fix=did_you_mean(name, self.axes),
            )  # fmt: skip
        return self.axes[name]

    def _reasons(self) -> str:
        if not self.skipped:
            return "It has no layer whose outputs only other layers read."
        shown = [f"{name}: {reason}" for name, reason in list(self.skipped.items())[:4]]
        return "; ".join(shown) + (f" and {len(self.skipped) - 4} more." if len(self.skipped) > 4 else ".")


def _check_names(names: Sequence[str], free: Sequence[Axis]) -> None:
    """Raises `InputError` where a name is neither a kind of axis nor a free axis."""
    valid = {*KINDS, *(axis.name for axis in free)}
    for name in names:
        if name not in valid:
            raise InputError(f"There is no kind of axis, and no axis, {name!r}.", fix=did_you_mean(name, valid))
