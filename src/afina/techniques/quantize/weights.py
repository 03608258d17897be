"""Rounding the weights of a prepared network, layer by layer, and making up for it in the biases.

A layer `y = W x + b` that is rounded to `V` is off by `(V - W) x`. That error has a mean over the images, which its
bias can take back: `b' = b - (V - W) E[x]`. With `W = [1.4 1.4]`, `V = [1 2]` and inputs of mean `E[x] = [0.5 1.5]` (a
ReLU is before them), the outputs are too large by `-0.4 * 0.5 + 0.6 * 1.5 = 0.7` on average, so 0.7 is taken from the
bias. What is left of the error is its variance, which depends on the covariance of `x` alone: that is what weights are
rounded by (`rounding`) where a layer has a bias; where it has none, on the second moment.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from afina.errors import AfinaError
from afina.graph.cost import cost_of
from afina.graph.network import Network
from afina.graph.ops import op_name
from afina.graph.statistics import Moments, Reader, add_constant, find_readers, moments_in_turn
from afina.graph.stored import attribute, is_stored, own
from afina.techniques.context import Context
from afina.techniques.quantize.edges import WeightEdge
from afina.techniques.quantize.prepared import Prepared
from afina.techniques.quantize.quantizer import is_layer
from afina.techniques.quantize.rounding import round_weights
from afina.techniques.quantize.scales import best_scales

# From so many bits on, rounding to nearest with corrected biases loses no more (33.5 dB each on a ResNet-20).
_ENOUGH_BITS = 8
# Images that the errors of biases are averaged over, at most.
_IMAGES_FOR_BIASES = 32
# The ridge of least squares, as a share of the mean square of the inputs.
_RIDGE = 1e-3
_TINY = 1e-12


def round_layers(prepared: Prepared, context: Context) -> list[str]:
    """Give each weight its scales and codes that suit its layer's outputs, and switch all edges on.

    Returns:
        How weights were rounded, as notes of a record; none where no weight becomes integers.

    Raises:
        AfinaError: a weight, or what a layer reads, is not a finite number.
        InputError: the stream of calibration images is empty.
    """
    method = _method(prepared, context)
    edges = {name: edge for name, edge in prepared.weights.items() if edge.half is None}
    for edge in edges.values():
        take_nearest(prepared, edge)
    for edge in (*prepared.activations.values(), *prepared.weights.values()):
        edge.on = True
    if not edges:
        return []
    if method == "nearest":
        corrected = _correct_biases(prepared, context) if context.calibration is not None else 0
        return [f"Weights of {len(edges)} layers rounded to nearest, {corrected} biases corrected."]
    readers = {name: reader for name, reader in find_readers(prepared.source.network).items() if name in edges}
    readers = {name: reader for name, reader in readers.items() if _can_be_solved(reader, edges[name])}
    done = _round_by_outputs(prepared, readers, context)
    return [f"Weights of {done} of {len(edges)} layers rounded by their layers' outputs (Gram matrices)."]


def _method(prepared: Prepared, context: Context) -> str:
    """`nearest` or `gram`: as the configuration says, by bits where it says `auto`, `nearest` without images."""
    rounding = prepared.config.rounding
    if context.calibration is None:
        return "nearest"
    if rounding != "auto":
        return rounding
    few = any(edge.half is None and edge.grid.bits < _ENOUGH_BITS for edge in prepared.weights.values())
    return "gram" if few else "nearest"


def _correct_biases(prepared: Prepared, context: Context) -> int:
    """Take from each bias what rounding its layer's weights adds to its outputs on average; gives how many biases.

    `E[x]` is the mean over the inputs as they are quantized (Nagel et al. 2019, arXiv 1906.04721, equation 17).
    """
    reference = prepared.source.network
    layers = [n for n in reference.graph.nodes if is_layer(n) and len(n.args) > 2 and is_stored(n.args[2])]
    biases = {n.name: str(n.args[2].target) for n in layers}
    exact = {n.name: attribute(reference.module, str(n.args[1].target)).detach() for n in layers}
    images = context.first(float(cost_of(reference).macs), _IMAGES_FOR_BIASES)
    with prepared.rounded_once() as network, network.inference():
        errors = _WeightErrors(network, exact)
        parts = images.split(network.batch)
        for part in parts:
            errors.run(part.to(network.device))
        for name, error in errors.sums.items():
            bias = own(network.module, biases[name])
            bias -= (error / len(parts)).to(bias)
    return len(errors.sums)


class _WeightErrors(Interpreter):
    """Runs a graph and sums up, for each layer, the mean of what its changed weights alone add to its outputs.

    Args:
        network: With rounded weights.
        exact: The weights before they were rounded, by the layer's node.

    Attributes:
        sums: The mean error of each output channel `[outputs]`, summed over the runs, by the layer's node.
    """

    def __init__(self, network: Network, exact: Mapping[str, Tensor]) -> None:
        super().__init__(network.module)
        self._exact = exact
        self.sums: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        if n.name in self._exact:
            (x, weight, _, *rest), kwargs = self.fetch_args_kwargs_from_env(n)
            # A layer is linear: what it makes of the mean image is the mean of what it makes of each.
            x = x.mean(0, keepdim=True)
            added = self.call_function(n.target, (x, weight - self._exact[n.name], None, *rest), kwargs)
            channel = added.ndim - 1 if op_name(n) == "linear" else 1
            mean = added.double().transpose(0, channel).flatten(1).mean(1)
            self.sums[n.name] = self.sums.get(n.name, torch.zeros_like(mean)) + mean
        return super().run_node(n)


def take_nearest(prepared: Prepared, edge: WeightEdge) -> None:
    """Give an edge the scales of least squared error of its weights, with which it then rounds to nearest.

    Scales of the source's weights are looked for once, whatever else is tried with them.

    Raises:
        AfinaError: a weight is not a finite number.
    """
    weight: Tensor = attribute(prepared.network.module, edge.name).detach()
    is_of_source = torch.equal(weight, attribute(prepared.source.network.module, edge.name))
    known = prepared.source.scales if is_of_source else {}
    key = (edge.name, edge.grid, edge.granularity, prepared.config.power_of_two)
    if key not in known:
        known[key] = _nearest_scales(weight, edge, prepared.config.power_of_two)
    edge.set(*known[key])


def _nearest_scales(weight: Tensor, edge: WeightEdge, power_of_two: bool) -> tuple[Tensor, Tensor]:
    """Scales and zero points `[outputs, blocks]` of least squared error of a weight `[outputs, ...]`."""
    flat = weight.flatten(1)[None]
    try:
        return _flat(*best_scales(flat, flat.new_ones(1, flat.shape[2]), edge.grid, edge.granularity, power_of_two))
    except FloatingPointError as error:
        raise AfinaError(
            f"The weights of {edge.name.removesuffix('.weight')} hold a value that is not a finite number.",
            fix="Check how the network was trained; a quantized weight must be finite.",
        ) from error


def _flat(scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """Scales `[stack, outputs, blocks]` as `[all outputs, blocks]`."""
    return scale.flatten(0, 1), zero.flatten(0, 1)


def _can_be_solved(reader: Reader, edge: WeightEdge) -> bool:
    """Whether a layer can be rounded by its outputs.

    A wide layer is solved in blocks of its inputs: blocks of weights that share a scale must not cross those.
    """
    return reader.blocks == 1 or edge.granularity.kind != "block" or reader.width % edge.granularity.block == 0


def _scales_by_block(reader: Reader, edge: WeightEdge) -> tuple[Tensor, Tensor]:
    """Scales and zero points of a wide layer, for each block that it is solved in: `[stack, outputs, blocks]`.

    For 2 outputs and 9 inputs, of which 3 at a time share a scale, solved in blocks of 6 inputs, the scales
    `[[a b c] [d e f]]` become `[[[a b] [d e]]  [[c 1] [f 1]]]`; the last 1 is for inputs that only fill the block.
    """
    parts = []
    for value in (edge.scale.detach(), edge.zero):
        if edge.granularity.kind != "block":
            parts.append(value.expand(reader.shape[0], 1).expand(reader.blocks, -1, -1).double())
            continue
        each = reader.width // edge.granularity.block
        padded = torch.nn.functional.pad(value, (0, reader.blocks * each - value.shape[1]), value=1)
        parts.append(padded.unflatten(1, (reader.blocks, each)).transpose(0, 1).double())
    return parts[0], parts[1]


def _round_by_outputs(prepared: Prepared, readers: dict[str, Reader], context: Context) -> int:
    """Round layers in the order of the graph, each for the inputs that the layers before it give by then.

    Where a network is so large that one pass over the images for each layer is too much, several are rounded in one.

    Args:
        prepared: With all edges on, and all weights rounded to nearest.
        readers: The layers to round, by the name of the weight, in the order of the graph.
        context: Calibration images.

    Returns:
        How many layers were rounded.
    """
    reference, network = prepared.source.network, prepared.network
    with context.progress.work("Rounding layers", len(readers)) as bar:
        for measured, alone in moments_in_turn(reference, network, readers, {}, context.stream, context.images):
            for name, moments in measured.items():
                _solve(prepared, readers[name], moments, alone=alone)
            bar.advance(len(measured))
    return len(readers)


def _solve(prepared: Prepared, reader: Reader, moments: Moments, alone: bool) -> None:
    """Round one layer, and let its bias make up for the mean of what that changes.

    Args:
        prepared: The layers before this one are rounded already.
        reader: The layer.
        moments: Of what the layer reads by now, in the network as it is rounded so far.
        alone: Whether no other layer is solved in the same pass. Then the layer's weights first become those that come
            nearest to the float layer's outputs on the inputs as they are now; of several layers in one pass each
            would make up for what the others are about to make up for.
    """
    edge, module = prepared.weights[reader.weight], prepared.network.module
    weight = attribute(module, reader.weight)
    float_weights = reader.matrices(weight.detach()).double()
    xx = moments.xx.double() / moments.rows
    mean, xx = xx[:, :-1, -1], xx[:, :-1, :-1]
    has_constant = reader.bias is not None and reader.blocks == 1
    moment = xx - mean[:, :, None] * mean[:, None] if has_constant else xx
    # Mean outputs without the bias: those that there should be, less those of the rounded weights, go into the bias.
    target, mean_output = float_weights, (float_weights * mean[:, None]).sum(2)
    if alone and moments.xy is not None:
        target, float_output = _least_squares(float_weights, moment, moments, mean, has_constant)
        if has_constant:
            bias = attribute(module, str(reader.bias)).detach()
            mean_output = float_output - bias.reshape(float_output.shape)
    mask = _zero_mask(prepared, reader)
    if reader.blocks > 1:
        scales = _scales_by_block(reader, edge)
        rounded = round_weights(target, moment, edge.grid, edge.granularity, scales=scales, stays_zero=mask)
    else:
        power = prepared.config.power_of_two
        rounded = round_weights(target, moment, edge.grid, edge.granularity, power, stays_zero=mask)
        edge.set(*_flat(rounded.scale, rounded.zero))
    own(module, reader.weight).copy_(reader.from_matrices(rounded.values, weight))
    if has_constant:
        own(module, str(reader.bias))
        with torch.no_grad():
            change = mean_output - (rounded.values * mean[:, None]).sum(2)
            add_constant(prepared.network, reader, change.flatten())


def _zero_mask(prepared: Prepared, reader: Reader) -> Tensor | None:
    """Where the weights of a layer are zero in float, which a sparse network's stay; None where none is."""
    weight: Tensor = attribute(prepared.source.network.module, reader.weight).detach()
    zeros = reader.matrices(weight) == 0
    return zeros if bool(zeros.any()) else None


def _least_squares(
    float_weights: Tensor, moment: Tensor, moments: Moments, mean: Tensor, has_constant: bool
) -> tuple[Tensor, Tensor]:
    """The weights that come nearest to the float layer's outputs on the inputs as they are now.

    With `x` the inputs by now and `y` the outputs of the float layer on the float inputs, `T` of least
    `E|T x - y|^2 + |(T - W) R^(1/2)|^2` solves `(E[x x^T] + R) T^T = E[x y^T] + R W^T`. The ridge `R`, a multiple of
    the identity that grows where there are few rows for the inputs, draws `T` to the float weights `W`, and keeps the
    system solvable. Where a bias takes the means, covariances stand in the place of `E[x x^T]` and `E[x y^T]`.

    Args:
        float_weights: The float weights `W`, `[stack, outputs, inputs]`.
        moment: `E[x x^T]`, or the covariance, `[stack, inputs, inputs]`.
        moments: The sums, with `xy` to the float layer's outputs.
        mean: `E[x]`, `[stack, inputs]`.
        has_constant: Whether a bias takes the means.

    Returns:
        The weights `T`, `[stack, outputs, inputs]`, and the mean output of the float layer, `[stack, outputs]`.
    """
    assert moments.xy is not None
    xy = moments.xy.double() / moments.rows
    float_output, product = xy[:, -1], xy[:, :-1]
    if has_constant:
        product = product - mean[:, :, None] * float_output[:, None]
    diagonal = moment.diagonal(dim1=1, dim2=2)
    ridge = _RIDGE * max(1.0, 4 * moment.shape[1] / moments.rows) * diagonal.mean(1, keepdim=True).clamp_min(_TINY)
    system = moment.clone()
    system.diagonal(dim1=1, dim2=2).add_(ridge)
    wanted = product + ridge[:, :, None] * float_weights.transpose(1, 2)
    factor, failed = torch.linalg.cholesky_ex(system)  # half the work of the general way
    solved = torch.linalg.solve(system, wanted) if bool(failed.any()) else torch.cholesky_solve(wanted, factor)
    return solved.transpose(1, 2), float_output
