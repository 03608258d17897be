"""What a network's outputs lose when an axis loses units: measured on images, axis by axis.

The loss of a change is `Effect.of`: the mean squared change of the outputs, as a share of what they vary over images.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from afina.graph.axes import Axis
from afina.graph.cost import cost_of
from afina.graph.statistics import Effect, freed, tried, write_matrices
from afina.graph.surgery import remove
from afina.techniques.prune.elimination import Path
from afina.techniques.prune.study import Study
from afina.types import Sensitivity

# Shares of its units that an axis loses where it is measured. One does: on ResNet-20 a quarter and three quarters in
# addition leave the same accuracy, for three times the time. With few images the errors of wide layers are too good to
# be true, the more so the more units are gone: then three. (A ResNet-18 on 64 photographs ended at an agreement of
# -0.5 and -0.7 with one level, and 0.0 with three.)
_LEVELS, _LEVELS_OF_FEW_IMAGES, _FEW_IMAGES = (0.5,), (0.25, 0.5, 0.75), 256
_TINY = 1e-9


def levels_for(images: int) -> tuple[float, ...]:
    """The levels at which sensitivities are measured for a plan, with so many calibration images.

    Example:
        >>> levels_for(1024), levels_for(64)
        ((0.5,), (0.25, 0.5, 0.75))
    """
    return _LEVELS if images >= _FEW_IMAGES else _LEVELS_OF_FEW_IMAGES


def sensitivities(study: Study, levels: tuple[float, ...] | None = None) -> dict[str, Sensitivity]:
    """The sensitivity of each axis of a study, by the axis's name.

    Args:
        study: The study.
        levels: Shares of its units that an axis loses, each of which is measured; between 0 and 1. By default half, and
            with few images a quarter and three quarters in addition.

    Returns:
        For each axis, `losses` at any number of units gone, which pass through what was measured at the `levels`.
        Without images nothing is measured, and losses are shares of the units' scores (`Study.path`).
    """
    config = study.config
    levels = levels or levels_for(study.context.images)
    what = f"sensitivities of {config.criterion} {levels} {list(study.axes)}"
    rows: list[dict[str, Any]] = (
        _measured(study, levels)
        if study.context.calibration is None
        else study.context.measured(study.network, what, lambda: _measured(study, levels))
    )
    study.orders = {row["name"]: tuple(row["order"]) for row in rows if row["order"]}
    return {
        row["name"]: Sensitivity(
            name=row["name"],
            kind=study.axes[row["name"]].kind,
            size=study.axes[row["name"]].size,
            layers=study.axes[row["name"]].producers,
            readers=study.axes[row["name"]].consumers,
            gone=tuple(row["gone"]),
            measured=tuple(row["measured"]),
            losses=tuple(row["losses"]),
        )
        for row in rows
    }


def _measured(study: Study, levels: tuple[float, ...]) -> list[dict[str, Any]]:
    """For each axis its losses, the order in which it loses units, and what was measured, as JSON holds it."""
    trial = None if study.context.calibration is None else _Trial(study, len(study.axes) * len(levels))
    rows: dict[str, dict[str, Any]] = {}
    with study.context.progress.work("Measuring sensitivities", len(study.axes)) as bar:
        for axis in _in_order(study):
            stops = tuple(dict.fromkeys(min(max(round(axis.size * level), 1), axis.size - 1) for level in levels))
            path = study.path(axis, study.states(), axis.size - 1, stops)
            measured = () if trial is None else tuple(trial.without(axis, path, count) for count in stops)
            rows[axis.name] = {
                "name": axis.name,
                "gone": stops if measured else (),
                "measured": measured,
                "losses": _scaled(path.losses, stops, measured).tolist(),
                "order": path.order if path.fitted else (),
            }
            bar.advance(note=axis.name)
    return [rows[name] for name in study.axes]


def _in_order(study: Study) -> list[Axis]:
    """The axes in the order of the first layer that reads each, in which `Effect` has the least to run."""
    places = {node.name: place for place, node in enumerate(study.network.graph.nodes)}
    return sorted(study.axes.values(), key=lambda axis: min((places[name] for name in study.nodes(axis)), default=0))


class _Trial:
    """Measures what the outputs of a study's network lose without some units.

    Where it can, it leaves the shapes as they are and writes zeros and refitted weights into one copy of the network,
    which it puts back afterwards: to rewrite the graph for each measurement would take longer than the measurement.

    Args:
        study: The study; it has images.
        times: How many measurements there will be, which limits the images of each.
    """

    def __init__(self, study: Study, times: int) -> None:
        self._study, self._scratch = study, study.network.copy()
        self._effect = Effect(study.network, study.context.first(times * cost_of(study.network).macs))

    def without(self, axis: Axis, path: Path, count: int) -> float:
        """The loss without the first `count` units of a path, with the layers that read the axis refitted."""
        study, matrices = self._study, path.matrices.get(count, {})
        if not axis.normalised and set(matrices) == {m.name for m in axis.members if m.role == "consumer"}:
            with tried(self._scratch, [study.readers[name] for name in matrices]):
                for name, refitted in matrices.items():
                    write_matrices(
                        self._scratch, study.readers[name], refitted, [None] * len(study.readers[name].shape)
                    )
                return self._effect.of(self._scratch, since=study.nodes(axis))
        # Zeros are not the same as no units where a norm takes statistics over them, or not all that reads them has
        # refitted matrices: then the units are really removed.
        dropped = set(path.order[:count])
        keep = [unit for unit in range(axis.size) if unit not in dropped]
        smaller = remove(study.network, {axis: keep}, analysis=study.analysis)
        loss = self._effect.of(smaller)
        del smaller
        freed(study.network)
        return loss


# The errors of the layers say how the loss grows from unit to unit, but not on the scale of the network's outputs; what
# was measured says that, for a few counts. Errors of 0.1, 0.2 and 0.4 for 1, 2 and 3 units gone, with losses of 0.05
# and 0.8 measured at 1 and 3, are multiplied by
#
#     count            0     1      2     3
#     factor           0.5   0.5    1     2        measured / error at 1 and 3; between them log-linear
#     losses           0     0.05   0.2   0.8
#
# At the end each loss is at least the one before: a measurement that is smaller by chance must not make it look good to
# remove more units.
def _scaled(losses: NDArray[np.float64], stops: tuple[int, ...], measured: tuple[float, ...]) -> NDArray[np.float64]:
    """The summed errors of the layers that read an axis, scaled so that they pass through the measured losses.

    Args:
        losses: `Path.losses`, for each number of units gone.
        stops: Numbers of units gone at which was measured, in rising order.
        measured: The losses there; empty where nothing was measured.

    Example:
        >>> _scaled(np.array([0, 0.1, 0.2, 0.4]), (1, 3), (0.05, 0.8)).round(3)
        array([0.  , 0.05, 0.2 , 0.8 ])
    """
    if not measured:
        return losses
    errors = np.maximum(losses, _TINY)
    factors = np.log(np.maximum(measured, _TINY) / errors[list(stops)])
    scaled = errors * np.exp(np.interp(np.arange(len(errors)), stops, factors))
    scaled[0] = 0.0
    return np.maximum.accumulate(scaled)
