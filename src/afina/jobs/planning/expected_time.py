"""How long pruning or factorizing will take: told before the long part of it begins.

The work is counted in images that run through the network and in multiply-accumulates of matrix products (statistics,
elimination, fits), and this machine's speed at both is measured in a second or two.
"""

import time
from collections.abc import Iterable, Sequence

import torch

from afina.graph.cost import cost_of
from afina.graph.network import Network
from afina.graph.statistics import Reader, images_in_sweep, rows_of_image, rows_wanted
from afina.progress import Progress
from afina.techniques.context import Context, few
from afina.units import format_time

# What takes less is not told.
_WORTH_TELLING = 10.0
_SIDE, _TRIES = 1024, 2  # of matrices that are multiplied to see how fast that is: tens of milliseconds
# How much longer than a network at once it takes to run node by node and look at what is read, and than a product to
# gather what it is of; so that the time told is that of ResNet-18 and ResNet-50 with 400 photographs.
_RUN, _GATHERED = 1.7, 2.7
# Wider layers are worked on in single precision.
_SINGLE_FROM = 1024
# Products of a layer's outputs with its metric, over all forms in which it is fitted.
_PRODUCTS_WITH_KERNEL, _PRODUCTS = 40.0, 4.0


def tell_pruning_time(
    progress: Progress, network: Network, readers: Iterable[Reader], measured: int, judged: int, context: Context
) -> None:
    """Say how long pruning takes.

    Args:
        progress: Where it is said.
        network: The network.
        readers: The layers that read its axes.
        measured: How many sensitivities are measured.
        judged: Images that the quality is measured on.
        context: The calibration images.
    """
    readers = list(readers)
    # Taking all units out of a layer of n columns, and its inverse, in multiply-accumulates of a matrix product.
    elimination = sum((2.0 if r.width > _SINGLE_FROM else 4.0) * _stack(r) * r.width**3 for r in readers)
    # The refit sums what is left of the columns, about half of them, and the outputs beside them.
    _tell(progress, network, context, measured, judged, elimination + 1.4 * _sums(readers, network, context.images))


def tell_factorizing_time(
    progress: Progress, network: Network, readers: Iterable[Reader], measured: int, judged: int, context: Context
) -> None:
    """Say how long factorizing takes; the arguments are those of `tell_pruning_time`."""
    readers = list(readers)
    fits = sum(_metric(reader) * (_PRODUCTS_WITH_KERNEL if _has_kernel(reader) else _PRODUCTS) for reader in readers)
    _tell(progress, network, context, measured, judged, fits + 2 * _sums(readers, network, context.images))


def _tell(progress: Progress, network: Network, context: Context, measured: int, judged: int, products: float) -> None:
    if context.calibration is None or (context.kept is not None and context.kept.knows(network)):
        return
    per_image, per_product = _seconds_per_image(network, context), _seconds_per_product(network.device)
    trial = few(measured * cost_of(network).macs)
    # A change is measured from the layer on that is changed: on average that is half of the network.
    images = context.images + trial * measured / 2 + 2 * min(images_in_sweep(network), context.images) + 2 * judged
    seconds = _RUN * images * per_image + _GATHERED * products * per_product
    if seconds > _WORTH_TELLING:
        progress.say(f"This takes about {format_time(seconds)} on this machine.")


def _sums(readers: Sequence[Reader], network: Network, images: int) -> float:
    """Multiply-accumulates of the layers' second moments."""
    rows = rows_of_image(network, readers)
    return sum(
        0.65 * min(rows_wanted(reader), images * rows[reader.weight]) * _stack(reader) * reader.width**2
        for reader in readers
    )


def _stack(reader: Reader) -> int:
    """How many matrices a layer is: one for each group, or each block of inputs."""
    return max(reader.groups, reader.blocks)


def _has_kernel(reader: Reader) -> bool:
    return len(reader.shape) > 2 and max(reader.shape[2:]) > 1


def _metric(reader: Reader) -> float:
    """Multiply-accumulates of a layer's outputs with its metric."""
    return float(reader.shape[0]) * max(reader.blocks, 1) * reader.width**2


def _seconds_per_image(network: Network, context: Context) -> float:
    batch = context.first(1.0, network.batch)
    with network.inference():
        network(batch[:1].to(network.device))
        start = time.monotonic()
        outputs = network(batch.to(network.device))
        float(next(iter(outputs.values())).flatten()[0])  # a GPU is done when what it gave can be read
        return (time.monotonic() - start) / len(batch)


def _seconds_per_product(device: torch.device) -> float:
    matrix = torch.ones(_SIDE, _SIDE, device=device)
    times = []
    for _ in range(_TRIES):
        start = time.monotonic()
        float((matrix @ matrix)[0, 0])
        times.append(time.monotonic() - start)
    return min(times) / _SIDE**3
