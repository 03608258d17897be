"""What a network's outputs lose when an axis loses units: measured on images, axis by axis."""

import numpy as np
from numpy.typing import NDArray

from afina.graph.axes import Axis
from afina.graph.cost import cost_of
from afina.graph.network import Network
from afina.graph.statistics import Effect, put
from afina.graph.surgery import remove
from afina.techniques.prune.elimination import Path
from afina.techniques.prune.study import Study
from afina.types import Sensitivity

LEVELS = (0.25, 0.5, 0.75)
_TINY = 1e-9


def sensitivities(study: Study, levels: tuple[float, ...] = LEVELS) -> dict[str, Sensitivity]:
    """Of each axis of a study, by name. Without images nothing is measured: losses are shares of the units' scores."""
    work = len(study.axes) * len(levels) * cost_of(study.network).macs
    effect = None if study.context.calibration is None else Effect(study.network, study.context.first(work))
    found: dict[str, Sensitivity] = {}
    with study.context.progress.work("Measuring sensitivities", len(study.axes)) as bar:
        for axis in study.axes.values():
            stops = tuple(dict.fromkeys(min(max(round(axis.size * level), 1), axis.size - 1) for level in levels))
            path = study.path(axis, study.states(), axis.size - 1, stops)
            measured: tuple[float, ...] = ()
            if effect is not None:
                measured = tuple(effect.of(_without(study, axis, path, gone)) for gone in stops)
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


def _without(study: Study, axis: Axis, path: Path, gone: int) -> Network:
    """The network without the first units of a path, what reads them refitted."""
    if gone in path.matrices and not axis.normalised:
        variant = study.network.copy()
        for name, matrices in path.matrices[gone].items():
            put(variant, study.readers[name], matrices, [None] * len(study.readers[name].shape))
        return variant
    dropped = set(path.order[:gone])
    keep = [unit for unit in range(axis.size) if unit not in dropped]
    return remove(study.network, {axis: keep}, analysis=study.analysis)


def _scaled(losses: NDArray[np.float64], stops: tuple[int, ...], measured: tuple[float, ...]) -> NDArray[np.float64]:
    """The layers' own errors, scaled so that they pass through what was measured."""
    if not measured:
        return losses
    own = np.maximum(losses, _TINY)
    factors = np.log(np.maximum(measured, _TINY) / own[list(stops)])
    scaled = own * np.exp(np.interp(np.arange(len(own)), stops, factors))
    scaled[0] = 0.0
    return np.maximum.accumulate(scaled)
