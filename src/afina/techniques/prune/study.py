"""`Study`: one network looked at for pruning: its axes, the order in which they lose units, the pruning itself."""

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
from afina.graph.statistics import Moments, Reader, find_readers, gather, put, refit
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
        axes: The free axes that may be pruned, by name.
        skipped: Layers, axes and ops left alone, with the reason.
        notes: What there is to tell.
        config: As given; a criterion that needs images is `magnitude` where there are none.
    """

    def __init__(self, network: Network, config: PruneConfig, context: Context) -> None:
        # In inference form: statistics and comparisons must not move the running means of norms.
        network = network.copy().eval() if network.training else network
        self.reference, self.context, self.notes = network, context, list[str]()
        network = remove_blocks(network, config.blocks) if config.blocks else network
        self.network = network
        if context.calibration is None and config.criterion in DATA_DRIVEN:
            config = replace(config, criterion="magnitude")
            self.notes.append("There are no calibration images, so units are chosen by magnitude.")
        self.config, self.analysis = config, Analysis(network)
        found = self.analysis.axes
        self.skipped = {layer: axis.reason for axis in found.fixed for layer in axis.producers}
        self.skipped.update({op: f"not understood: {why}" for op, why in found.unknown.items()})
        _check_names(config.axes, found.free)
        wanted = [a for a in found.free if not config.axes or a.kind in config.axes or a.name in config.axes]
        self.skipped.update({a.name: "not among the axes asked for" for a in found.free if a not in wanted})
        able = [axis for axis in wanted if fewest(axis, config) < axis.size]
        self.skipped.update({a.name: f"of {a.size} units none may go" for a in wanted if a not in able})
        apart = at_odds(self.analysis, able)
        self.axes = {axis.name: axis for axis in able if axis.name not in apart}
        self.skipped.update(apart)
        if not self.axes and not config.blocks:
            raise NothingToDo("No unit of this network can be pruned.", why=self._reasons())

    def sizing(self, kind: Literal["macs", "parameters"]) -> Sizing:
        """Cost as a function of how many units each axis keeps."""
        return Sizing(self.network, self.axes.values(), kind)

    @cached_property
    def readers(self) -> dict[str, Reader]:
        """The layers that read the axes."""
        known = find_readers(self.network)
        names = {m.name for axis in self.axes.values() for m in axis.members if m.role == "consumer"}
        return {name: reader for name, reader in known.items() if name in names}

    @cached_property
    def moments(self) -> dict[str, Moments]:
        """Second moments of what those layers read; empty for criteria that do not ask for them."""
        if self.config.criterion != "fit" or self.context.calibration is None or not self.readers:
            return {}
        blocks = [reader.name for reader in self.readers.values() if reader.blocks > 1]
        if blocks:
            self.notes.append(
                f"Statistics of {', '.join(blocks)} are kept in blocks of inputs: too wide to hold whole."
            )
        context = self.context
        return gather(self.network, self.readers, context.stream(), context.images, context.progress)

    @cached_property
    def scores(self) -> dict[Axis, importance.Scores]:
        """How much each unit matters, of axes that are not ranked by elimination."""
        rest = [axis for axis in self.axes.values() if not self._is_fitted(axis)]
        match self.config.criterion:
            case "taylor":
                return importance.by_gradient(self.network, rest, self.context.stream(), self.context.seed)
            case "batchnorm":
                return importance.by_norm(self.network, rest)
            case "random":
                return importance.by_chance(rest, self.context.seed)
        return importance.by_magnitude(self.network, rest)

    def path(self, axis: Axis, states: States, gone: int, stops: Sequence[int] = ()) -> Path:
        """The order in which an axis loses units, the first `gone` of them; `states` is changed."""
        removed = self._removed(axis, gone)
        fitted = eliminate(axis, states, gone, stops, removed) if self._is_fitted(axis) else None
        if fitted is not None:
            return fitted
        if removed is not None:
            return Path(tuple(removed), np.zeros(gone + 1))
        scores = self.scores[axis]
        order = np.argsort(scores, kind="stable")
        losses = np.concatenate(([0.0], np.cumsum(scores[order]))) / max(scores.sum(), 1e-12)
        return Path(tuple(order[:gone].tolist()), losses[: gone + 1])

    def states(self) -> States:
        """The layers that read the axes, as they are in the network."""
        return States(self.network, self.readers, self.moments)

    def uniform(self) -> dict[str, int]:
        """Units that each axis keeps when the same ratio goes everywhere; of axes that cross, the larger one gives."""
        counts: dict[str, int] = {}
        assert self.config.ratio is not None
        for axis in sorted(self.axes.values(), key=lambda axis: -axis.size):
            rival = next((other for other in counts if axis.crosses(self.axes[other])), None)
            if rival is not None:
                self.skipped.setdefault(axis.name, f"its channels are pruned through {rival} already")
                continue
            wanted, step = axis.size * (1 - self.config.ratio), step_of(axis, self.config)
            count = max(round(wanted / step), 1) * step if axis.size > step else int(np.floor(wanted + 0.5))
            counts[axis.name] = min(max(count, fewest(axis, self.config)), axis.size)
        return {name: counts[name] for name in self.axes if name in counts}

    def prune(self, counts: Mapping[str, int]) -> tuple[Network, Record]:
        """The network in which each axis keeps so many units, and the record."""
        start = time.monotonic()
        fewer = {self._axis(name): count for name, count in counts.items() if count < self._axis(name).size}
        if not fewer and not self.config.blocks:
            raise NothingToDo("No unit of this network is to be pruned.", why=self._reasons())
        removed, matrices = self._chosen(fewer)
        keep = {axis: sorted(set(range(axis.size)) - set(gone)) for axis, gone in removed.items()}
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
            removed={axis.name: gone for axis, gone in removed.items()},
        )
        touched = dict.fromkeys(
            [*self.config.blocks, *(name for axis in fewer for name in axis.producers or (axis.name,))]
        )
        notes = [*(f"{name}: taken out whole" for name in self.config.blocks), *notes]
        whole = {name: "the budget is met without it" for name in self.axes if self.axes[name] not in fewer}
        return pruned, Record(
            step=step_of_config("prune", config),
            touched=tuple(touched),
            skipped={name: why for name, why in {**self.skipped, **whole}.items() if name not in touched},
            before=asdict(cost_of(self.reference)),
            after=asdict(cost_of(pruned)),
            seconds=time.monotonic() - start,
            notes=tuple(notes),
        )

    def _chosen(self, fewer: Mapping[Axis, int]) -> tuple[dict[Axis, tuple[int, ...]], dict[str, Tensor]]:
        """The units that go, where each axis keeps so many, and the refitted matrices of what reads the axes."""
        states, removed = self.states(), dict[Axis, tuple[int, ...]]()
        last = {member.name: axis for axis in fewer for member in axis.members}
        for axis, count in fewer.items():
            removed[axis] = self.path(axis, states, axis.size - count).order
            states.release(name for name, latest in last.items() if latest is axis)
        return removed, {name: state.matrices for name, state in states.changed.items()}

    def _restore(
        self, pruned: Network, keep: Mapping[Axis, Sequence[int]], matrices: Mapping[str, Tensor]
    ) -> list[str]:
        """Put the refitted weights into the pruned network, then refit all its layers in order."""
        if self.context.calibration is None:
            return []
        left = masks(self.network, keep, analysis=self.analysis)
        kept = {
            name: [None if m is None else torch.from_numpy(np.flatnonzero(m)) for m in parts]
            for name, parts in left.items()
        }
        for name, part in matrices.items():
            put(pruned, self.readers[name], part, kept[name])
        if not self.config.refit:
            return []
        outputs = {name: parts[0] for name, parts in kept.items()}
        context = self.context
        done = refit(self.reference, pruned, outputs, context.stream, context.images, context.progress)
        return [f"{len(done)} layers refitted by least squares to what they gave before"] if done else []

    def _removed(self, axis: Axis, gone: int) -> tuple[int, ...] | None:
        """The units that the config takes out of an axis, `gone` of them; None where the criterion chooses."""
        removed = self.config.removed.get(axis.name)
        if removed is None:
            return None
        if len(set(removed)) != len(removed) or not set(removed) <= set(range(axis.size)) or len(removed) != gone:
            raise InputError(
                f"removed: {axis.name} is to lose {gone} of {axis.size} units, and {len(removed)} are named.",
                why="Units are counted from 0; each is named once, and as many as `keep` does not leave.",
                fix="Give the axis in `keep` alone to have the units chosen.",
            )
        return removed

    def _is_fitted(self, axis: Axis) -> bool:
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


def _check_names(wanted: Sequence[str], free: Sequence[Axis]) -> None:
    known = {*KINDS, *(axis.name for axis in free)}
    for name in wanted:
        if name not in known:
            raise InputError(f"There is no kind of axis, and no axis, {name!r}.", fix=did_you_mean(name, known))
