"""The technique: layers in the order of the graph, each on what it reads in the network that is sparse so far."""

import time
from collections.abc import Mapping
from dataclasses import asdict, replace

import numpy as np
import torch
from torch import Tensor

from afina.errors import InputError, NothingToDo, did_you_mean
from afina.graph.cost import cost_of
from afina.graph.network import Network
from afina.graph.statistics import (
    Moments,
    Reader,
    add_constant,
    constant_of,
    find_readers,
    moments_in_turn,
    solve,
)
from afina.graph.stored import attribute
from afina.techniques.base import DENSE_WEIGHTS, FLOAT_WEIGHTS, Technique, step_of_config
from afina.techniques.context import Context
from afina.techniques.sparsify.config import SparsifyConfig
from afina.techniques.sparsify.elimination import by_magnitude, eliminate, factor_of
from afina.types import Record


def apply(network: Network, config: SparsifyConfig, context: Context) -> tuple[Network, Record]:
    """A network with zeros in its weights, and the record; the input is left as it was.

    With images, each layer is first refitted, on what it reads now, to what it gave before; then its weights go one
    column after the other (`elimination`). Shapes, and the size of an ordinary exported file, stay as they are.

    Args:
        network: The network.
        config: How layers are made sparse; the criterion is `magnitude` where there are no images.
        context: Calibration images, progress.

    Raises:
        InputError: the configuration is not possible for this network.
        NothingToDo: no layer can be made sparse.
    """
    start = time.monotonic()
    if config.criterion == "fit" and context.calibration is None:
        config = replace(config, criterion="magnitude")
    network = network.copy().eval() if network.training else network
    readers, skipped = readers_of(network, config)
    shares = _shares(readers, config)
    sparse = network.copy()
    if config.criterion == "magnitude":
        for name, share in shares.items():
            set_zeros(sparse, readers[name], share, config, None)
    else:
        _fit(network, sparse, readers, shares, config, context)
    zeros_of = {reader.name: _zeros(sparse, reader) for reader in readers.values()}
    untouched = {name: "no weight is to go" for name, zeros in zeros_of.items() if not zeros}
    if len(untouched) == len(zeros_of):
        raise NothingToDo("No weight of this network is to become zero.", why="The sparsity is too small.")
    total = sum(int(np.prod(reader.shape)) for reader in readers.values())
    zeros = sum(zeros_of.values())
    before = asdict(cost_of(network))
    return sparse, Record(
        step=step_of_config("sparsify", config),
        touched=tuple(name for name in zeros_of if name not in untouched),
        skipped={**skipped, **untouched},
        before={**before, "nonzero": float(total - sum(_zeros(network, r) for r in readers.values()))},
        after={**before, "nonzero": float(total - zeros)},
        seconds=time.monotonic() - start,
        notes=(f"{zeros / total:.1%} of {total} weights in {len(zeros_of) - len(untouched)} layers are zero",),
    )


def readers_of(network: Network, config: SparsifyConfig) -> tuple[dict[str, Reader], dict[str, str]]:
    """The layers that can be made sparse, by the weight's name, and why the others cannot, by the layer's name.

    Raises:
        InputError: the config names a layer that is not there, or its pattern fits no layer.
        NothingToDo: no layer can be made sparse.
    """
    readers, skipped = dict[str, Reader](), dict[str, str]()
    names = {reader.name for reader in find_readers(network).values()}
    for name in (*config.skip, *config.layers):
        if name not in names:
            raise InputError(f"There is no layer {name!r} to make sparse.", fix=did_you_mean(name, names))
    for name, reader in find_readers(network).items():
        if reader.name in config.skip:
            skipped[reader.name] = "asked to stay whole"
        elif config.pattern and reader.shape[1] % config.kept_of[1]:
            skipped[reader.name] = f"{config.kept_of[1]} does not divide its {reader.shape[1]} inputs"
        else:
            readers[name] = reader
    if not readers:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(skipped.items())[:4])
        if config.pattern:
            raise InputError(
                f"The pattern {config.pattern} fits no layer of this network.",
                why=reasons,
                fix="Give --sparsity instead.",
            )
        raise NothingToDo("This network has no layer that can be made sparse.", why=reasons)
    return readers, skipped


def factors_of(reader: Reader, moments: Moments) -> list[Tensor]:
    """For each matrix of a layer what `set_zeros` needs of its moments, whatever the share."""
    order = _inputs_first(reader, reader.width)
    return [factor_of(h / moments.rows, order, reader.takes_constant) for h in moments.xx]


def set_zeros(
    network: Network, reader: Reader, share: float, config: SparsifyConfig, factors: list[Tensor] | None
) -> None:
    """Make one layer sparse, in place.

    Args:
        network: Changed in place.
        reader: The layer.
        share: Share of its weights that become zero, where the config has no pattern.
        config: The pattern, if there is one.
        factors: As `factors_of` gives them; None for the smallest weights to go.
    """
    weight = attribute(network.module, reader.weight)
    pattern = config.kept_of if config.pattern else None
    matrices = reader.matrices(weight.detach()).double()
    order = _inputs_first(reader, matrices.shape[2])
    if factors is None:
        sparse = torch.stack([by_magnitude(matrix, share, pattern, order) for matrix in matrices])
    else:
        parts = [
            eliminate(matrix, factor, share, pattern, order) for matrix, factor in zip(matrices, factors, strict=True)
        ]
        sparse = torch.stack([part[:, :-1] for part in parts])
        constants = torch.stack([part[:, -1] for part in parts])
        with torch.no_grad():
            add_constant(network, reader, constants.sum(0) if reader.blocks > 1 else constants.flatten())
    with torch.no_grad():
        weight.copy_(reader.from_matrices(sparse, weight))


def _fit(
    network: Network,
    sparse: Network,
    readers: Mapping[str, Reader],
    shares: Mapping[str, float],
    config: SparsifyConfig,
    context: Context,
) -> None:
    """Make the layers of `sparse` sparse, in the order of the graph, each refitted to what it gave in `network`."""
    names = [name for name in readers if shares.get(name, 0.0) > 0 or config.pattern]
    with context.progress.work("Making layers sparse", len(names)) as bar:
        chosen = {name: readers[name] for name in names}
        for measured, _ in moments_in_turn(network, sparse, chosen, {}, context.stream, context.images):
            for name, moments in measured.items():
                reader = readers[name]
                if reader.blocks == 1:
                    solve(sparse, reader, moments, constant_of(network, sparse, reader, None))
                set_zeros(sparse, reader, shares.get(name, 0.0), config, factors_of(reader, moments))
            bar.advance(len(measured))


def _shares(readers: Mapping[str, Reader], config: SparsifyConfig) -> dict[str, float]:
    """The share of weights that become zero, by the weight's name."""
    if config.layers:
        return {name: config.layers[reader.name] for name, reader in readers.items() if reader.name in config.layers}
    return dict.fromkeys(readers, config.sparsity)


def _inputs_first(reader: Reader, columns: int) -> Tensor:
    """Columns with the inputs running fastest, so that a group of M is M inputs at one place of the kernel.

    The weight of a convolution of 2 inputs and 3 pixels of kernel has the columns (input, pixel) 00 01 02 10 11 12, and
    the order is 0 3 1 4 2 5: 00 10, 01 11, 02 12.
    """
    if reader.blocks > 1 or len(reader.shape) == 2:
        return torch.arange(columns)
    return torch.arange(columns).reshape(reader.shape[1], -1).T.flatten()


def _zeros(network: Network, reader: Reader) -> int:
    """How many weights of a layer are zero."""
    return int((attribute(network.module, reader.weight) == 0).sum())


TECHNIQUE = Technique(
    "sparsify",
    SparsifyConfig,
    apply,
    "Single weights become zero, freely or in an N:M pattern; shapes stay.",
    requires=(FLOAT_WEIGHTS,),
    removes=(DENSE_WEIGHTS,),
)
