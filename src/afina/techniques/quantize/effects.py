"""What quantization does to single layers: the noise in their outputs, and what each alone does to the network's."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
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
    outliers, its row holds what `outliers_of` gives too.

    Args:
        prepared: Calibrated and rounded, with all edges on.
        images: `[N, C, H, W]`.

    Returns:
        Rows `{"precision": "int4 x int8", "snr_db": 21.3, ...}` by the names of layers.
    """
    with prepared.rounded_once() as network:
        noise = _noise(prepared.source.network, network, images)
    modules = dict(prepared.network.module.named_modules())
    input_edges = {
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
        row |= outliers_of(weight, edge, input_edges.get(node.name), name in prepared.source.equalized)
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

    # The exact outputs of all layers are in memory at once.
    for part in images.split(network.few):
        watch(reference, part, is_layer, remember)
        watch(network, part, is_layer, subtract)
    return {name: 10 * math.log10((signal[name] + _TINY) / (noise[name] + _TINY)) for name in noise}


@dataclass(frozen=True)
class Damage:
    """What a precision of one layer alone does to the network's outputs.

    Attributes:
        layer: Name of the layer.
        precision: Its precision; the rest of the network is in float.
        loss: Mean squared change of the outputs, as a share of what they vary over the images.
    """

    layer: str
    precision: Precision
    loss: float


def damages(
    prepared: Prepared, options: Callable[[str], list[Precision]], images: Tensor, progress: Progress
) -> list[Damage]:
    """The damage of each option of each layer, measured on images, the rest of the network in float.

    Options are in the order of `options`, layers in the order of the graph.

    Args:
        prepared: Calibrated, with ranges; its weights still those of the float network. All its edges end up off.
        options: The precisions to try for a layer of that name.
        images: `[N, C, H, W]`.
        progress: What the user sees.
    """
    prepared.simulate(False)
    effect = Effect(prepared.network, images)
    measured = []
    edges, nodes = edges_by_layer(prepared), _nodes_of_edges(prepared)
    with progress.work("Measuring layers", len(edges)) as bar:
        for layer, (weight, activations) in edges.items():
            since = [name for edge in (weight, *activations) for name in nodes[edge]]
            for precision in options(layer):
                switch_precision(prepared, weight, activations, precision)
                measured.append(Damage(layer, precision, effect.of(prepared.network, since)))
            weight.on = False
            for edge in activations:
                edge.on = False
            bar.advance()
    return measured


def switch_precision(
    prepared: Prepared, weight: WeightEdge, activations: list[ActivationEdge], precision: Precision
) -> None:
    """Switch the edges of one layer to a precision: weights to nearest, activations at the ranges that they have."""
    weight.half = HALVES.get(precision.weights)
    if precision.weights.startswith("int"):
        grid = weight.grid
        weight.grid = replace(grid, bits=prepared.config.weight_grid(precision).bits)
        take_nearest(prepared, weight)
    weight.on = precision.weights != "fp32"
    for edge in activations:
        if precision.activations != "none" and bits_of(precision.activations) != edge.grid.bits:
            edge.grid = Grid(bits_of(precision.activations), signed=False, scheme="affine")
            edge.choose("mse")
        edge.on = precision.activations != "none"


def _nodes_of_edges(prepared: Prepared) -> dict[nn.Module, list[str]]:
    """The names of the nodes at which each edge stands: for a weight's, of those that multiply by it."""
    modules = dict(prepared.network.module.named_modules())
    nodes: dict[nn.Module, list[str]] = {}
    for node in prepared.network.graph.nodes:
        if node.op == "call_module":
            at = [node.name] if isinstance(modules[str(node.target)], ActivationEdge) else [u.name for u in node.users]
            nodes.setdefault(modules[str(node.target)], []).extend(at)
    return nodes


def edges_by_layer(prepared: Prepared) -> dict[str, tuple[WeightEdge, list[ActivationEdge]]]:
    """The edges that belong to each layer, by its name: its weight's, and those of its input and its output."""
    modules = dict(prepared.network.module.named_modules())
    edges_of = {}
    for node in prepared.network.graph.nodes:
        if node.target not in WEIGHTED or not isinstance(node.args[1], Node):
            continue
        weight = modules.get(str(node.args[1].target))
        if not isinstance(weight, WeightEdge):
            continue
        near = [mover_source(node.args[0]), *node.users, *(user for first in node.users for user in first.users)]
        edges = [modules.get(str(other.target)) for other in near if isinstance(other, Node)]
        edges_of[weight.name.removesuffix(".weight")] = (weight, [e for e in edges if isinstance(e, ActivationEdge)])
    return edges_of
