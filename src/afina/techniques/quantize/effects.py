"""What quantization does to single layers: the noise in their outputs, and what each alone does to the network's."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from afina.graph.network import Network
from afina.graph.statistics import Effect, watch
from afina.graph.stored import attribute
from afina.progress import Progress
from afina.techniques.quantize.config import Precision, bits_of
from afina.techniques.quantize.edges import ActivationEdge, WeightEdge
from afina.techniques.quantize.grids import Grid
from afina.techniques.quantize.outliers import outliers_of
from afina.techniques.quantize.prepared import Prepared
from afina.techniques.quantize.quantizer import HALVES, WEIGHTED, is_layer, layer_name, mover_source
from afina.techniques.quantize.weights import take_nearest

_TINY = 1e-30


def layer_table(prepared: Prepared, images: Tensor) -> dict[str, dict[str, Any]]:
    """For each quantized layer its precision, its output's signal-to-noise ratio (dB), and its outliers.

    The noise is all that there is in the layer's output, also what comes from the layers before it. Where a layer has
    outliers, there is what `outliers_of` tells of them.
    """
    with prepared.held() as network:
        noise = _noise(prepared.source.network, network, images)
    modules = dict(prepared.network.module.named_modules())
    reads = {
        n.name: modules.get(str(getattr(mover_source(n.args[0]), "target", "")))
        for n in prepared.network.graph.nodes
        if n.args
    }
    table = {}
    for node in prepared.source.network.graph.nodes:
        name = layer_name(node) if node.target in WEIGHTED else None
        edge = prepared.weights.get(f"{name}.weight") or prepared.weights.get(str(name))
        if name is None or edge is None or node.name not in noise:
            continue
        weight = attribute(prepared.unrounded.module, edge.name).detach()
        row: dict[str, Any] = {"precision": str(prepared.config.precision(name)), "snr_db": round(noise[node.name], 1)}
        row |= outliers_of(weight, edge, reads.get(node.name), name in prepared.source.moved)
        table[name] = row
    return table


def _noise(reference: Network, network: Network, images: Tensor) -> dict[str, float]:
    """Signal-to-noise ratio in dB of each layer's output, by node."""
    signal: dict[str, float] = {}
    noise: dict[str, float] = {}
    exact: dict[str, Tensor] = {}

    def remember(node: Node, value: Tensor) -> None:
        exact[node.name] = value
        signal[node.name] = (
            signal.get(node.name, 0.0) + float(torch.linalg.vector_norm(value, dtype=torch.float64)) ** 2
        )

    def subtract(node: Node, value: Tensor) -> None:
        error = torch.linalg.vector_norm(value - exact.pop(node.name), dtype=torch.float64)
        noise[node.name] = noise.get(node.name, 0.0) + float(error) ** 2

    # The outputs of all layers are kept at once.
    for part in images.split(network.input.few):
        watch(reference, part, is_layer, remember)
        watch(network, part, is_layer, subtract)
    return {name: 10 * math.log10((signal[name] + _TINY) / (noise[name] + _TINY)) for name in noise}


@dataclass(frozen=True)
class Damage:
    """What a precision of one layer alone does to the network's outputs: mean squared change, as a share of what
    they vary over the images.
    """

    layer: str
    precision: Precision
    loss: float


def damages(
    prepared: Prepared, options: Callable[[str], list[Precision]], images: Tensor, progress: Progress
) -> list[Damage]:
    """The damage of each option of each layer, measured on images, the rest of the network in float.

    Args:
        prepared: Calibrated, with ranges; its weights still those of the float network. All its edges end up off.
        options: The precisions to try for a layer of that name.
        images: `[N, C, H, W]`.
        progress: What the user sees.
    """
    prepared.simulate(False)
    effect = Effect(prepared.network, images)
    found = []
    parts = parts_of(prepared)
    with progress.work("Measuring layers", len(parts)) as bar:
        for layer, (weight, activations) in parts.items():
            for precision in options(layer):
                with_precision(prepared, weight, activations, precision)
                found.append(Damage(layer, precision, effect.of(prepared.network)))
            weight.on = False
            for edge in activations:
                edge.on = False
            bar.advance()
    return found


def with_precision(prepared: Prepared, weight: WeightEdge, activations: list[ActivationEdge], to: Precision) -> None:
    """Switch the edges of one layer to a precision: weights to nearest, activations at the ranges that they have."""
    weight.half = HALVES.get(to.weights)
    if to.weights.startswith("int"):
        grid = weight.grid
        weight.grid = replace(grid, bits=prepared.config.weight_grid(to).bits)
        take_nearest(prepared, weight)
    weight.on = to.weights != "fp32"
    for edge in activations:
        if to.activations != "none" and bits_of(to.activations) != edge.grid.bits:
            edge.grid = Grid(bits_of(to.activations), signed=False, scheme="affine")
            edge.choose("mse")
        edge.on = to.activations != "none"


def parts_of(prepared: Prepared) -> dict[str, tuple[WeightEdge, list[ActivationEdge]]]:
    """The edges that belong to each layer: its weight's, and those of what it reads and gives."""
    modules = dict(prepared.network.module.named_modules())
    found = {}
    for node in prepared.network.graph.nodes:
        if node.target not in WEIGHTED or not isinstance(node.args[1], Node):
            continue
        weight = modules.get(str(node.args[1].target))
        if not isinstance(weight, WeightEdge):
            continue
        near = [mover_source(node.args[0]), *node.users, *(user for first in node.users for user in first.users)]
        edges = [modules.get(str(other.target)) for other in near if isinstance(other, Node)]
        found[weight.name.removesuffix(".weight")] = (weight, [e for e in edges if isinstance(e, ActivationEdge)])
    return found
