"""What a network's outputs lose when an axis loses units: measured on images, axis by axis."""

import numpy as np
from numpy.typing import NDArray

from afina.graph.axes import Axis
from afina.graph.cost import cost_of
from afina.graph.statistics import Effect, freed, put, tried
from afina.graph.surgery import remove
from afina.techniques.prune.elimination import Path
from afina.techniques.prune.study import Study
from afina.types import Sensitivity

LEVELS = (0.25, 0.5, 0.75)
_TINY = 1e-9


def sensitivities(study: Study, levels: tuple[float, ...] = LEVELS) -> dict[str, Sensitivity]:
    """Of each axis of a study, by name. Without images nothing is measured: losses are shares of the units' scores."""
    trial = None if study.context.calibration is None else _Trial(study, len(study.axes) * len(levels))
    found: dict[str, Sensitivity] = {}
    with study.context.progress.work("Measuring sensitivities", len(study.axes)) as bar:
        for axis in study.axes.values():
            stops = tuple(dict.fromkeys(min(max(round(axis.size * level), 1), axis.size - 1) for level in levels))
            path = study.path(axis, study.states(), axis.size - 1, stops)
            measured = () if trial is None else tuple(trial.without(axis, path, gone) for gone in stops)
            found[axis.name] = Sensitivity(
                name=axis.name,
                kind=axis.kind,
                size=axis.size,
                layers=axis.producers,
                readers=axis.consumers,
                gone=stops if measured else (),
                measured=measured,
                losses=tuple(_scaled(path.losses, stops, measured).tolist()),
            )
            bar.advance(note=axis.name)
    return found


class _Trial:
    """What the outputs of a study's network lose without some units, on one copy of it whose weights are changed.

    Args:
        study: The study; it has images.
        times: How often that will be asked, which limits the images.
    """

    def __init__(self, study: Study, times: int) -> None:
        self._study, self._scratch = study, study.network.copy()
        self._effect = Effect(study.network, study.context.first(times * cost_of(study.network).macs))

    def without(self, axis: Axis, path: Path, gone: int) -> float:
        """Without the first `gone` units of a path, what reads them refitted."""
        study, matrices = self._study, path.matrices.get(gone, {})
        if not axis.normalised and set(matrices) == {m.name for m in axis.members if m.role == "consumer"}:
            with tried(self._scratch, [study.readers[name] for name in matrices]):
                for name, part in matrices.items():
                    put(self._scratch, study.readers[name], part, [None] * len(study.readers[name].shape))
                return self._effect.of(self._scratch)
        # Weights alone do not do it: statistics are taken over the units, or what reads them is not a plain layer.
        dropped = set(path.order[:gone])
        keep = [unit for unit in range(axis.size) if unit not in dropped]
        smaller = remove(study.network, {axis: keep}, analysis=study.analysis)
        lost = self._effect.of(smaller)
        del smaller
        freed(study.network)
        return lost


def _scaled(losses: NDArray[np.float64], stops: tuple[int, ...], measured: tuple[float, ...]) -> NDArray[np.float64]:
    """The layers' own errors, scaled so that they pass through what was measured."""
    if not measured:
        return losses
    own = np.maximum(losses, _TINY)
    factors = np.log(np.maximum(measured, _TINY) / own[list(stops)])
    scaled = own * np.exp(np.interp(np.arange(len(own)), stops, factors))
    scaled[0] = 0.0
    return np.maximum.accumulate(scaled)
