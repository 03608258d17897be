"""What a network's outputs lose when an axis loses units: measured on images, axis by axis."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from afina.graph.axes import Axis
from afina.graph.cost import cost_of
from afina.graph.network import Network
from afina.graph.statistics import put
from afina.graph.surgery import remove
from afina.techniques.prune.elimination import Path
from afina.techniques.prune.study import Study
from afina.types import Sensitivity

LEVELS = (0.25, 0.5, 0.75)
# Multiply-accumulates that measuring may take: the number of images, then of levels, follows from it.
_WORK = 4e12
_FEWEST_IMAGES, _MOST_IMAGES = 16, 256
_TINY = 1e-9


def sensitivities(study: Study, levels: tuple[float, ...] = LEVELS) -> dict[str, Sensitivity]:
    """Of each axis of a study, by name. Without images nothing is measured: losses are shares of the units' scores."""
    images = _images(study, levels)
    if len(images) < 4 * _FEWEST_IMAGES and levels == LEVELS and study.context.calibration is not None:
        levels = (0.5,)
    whole = _outputs(study.network, images) if len(images) else None
    found: dict[str, Sensitivity] = {}
    with study.context.progress.work("Measuring sensitivities", len(study.axes)) as bar:
        for axis in study.axes.values():
            stops = tuple(dict.fromkeys(min(max(round(axis.size * level), 1), axis.size - 1) for level in levels))
            path = study.path(axis, study.states(), axis.size - 1, stops)
            measured = () if whole is None else tuple(_change(study, axis, path, gone, images, whole) for gone in stops)
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


def _images(study: Study, levels: tuple[float, ...]) -> Tensor:
    if study.context.calibration is None:
        return torch.empty(0)
    passes = max(len(study.axes) * len(levels) * cost_of(study.network).macs, 1)
    wanted = int(min(max(_WORK / passes, _FEWEST_IMAGES), _MOST_IMAGES))
    batches: list[Tensor] = []
    for batch in study.context.stream():
        batches.append(batch)
        if sum(map(len, batches)) >= wanted:
            break
    return torch.cat(batches)[:wanted]


def _outputs(network: Network, images: Tensor) -> Tensor:
    with network.inference():
        return torch.cat([network(part.to(network.device)) for part in images.split(32)]).double()


def _change(study: Study, axis: Axis, path: Path, gone: int, images: Tensor, whole: Tensor) -> float:
    """Mean squared change of the outputs without the first units of a path, as a share of what they vary."""
    if gone in path.matrices and not axis.normalised:
        variant = study.network.copy()
        for name, matrices in path.matrices[gone].items():
            put(variant, study.readers[name], matrices, [None] * len(study.readers[name].shape))
    else:
        dropped = set(path.order[:gone])
        keep = [unit for unit in range(axis.size) if unit not in dropped]
        variant = remove(study.network, {axis: keep}, analysis=study.analysis)
    changed = _outputs(variant, images)
    varies = (whole - whole.mean(0)).square().sum()
    return float((changed - whole).square().sum() / varies.clamp_min(_TINY))


def _scaled(losses: NDArray[np.float64], stops: tuple[int, ...], measured: tuple[float, ...]) -> NDArray[np.float64]:
    """The layers' own errors, scaled so that they pass through what was measured."""
    if not measured:
        return losses
    own = np.maximum(losses, _TINY)
    factors = np.log(np.maximum(measured, _TINY) / own[list(stops)])
    scaled = own * np.exp(np.interp(np.arange(len(own)), stops, factors))
    scaled[0] = 0.0
    return np.maximum.accumulate(scaled)
