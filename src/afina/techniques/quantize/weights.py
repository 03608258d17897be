"""Rounding the weights of a prepared network, layer by layer, and making up for it in the biases."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from afina.errors import AfinaError
from afina.graph.cost import cost_of
from afina.graph.network import Network
from afina.graph.ops import op_name
from afina.graph.statistics import Moments, Reader, add_constant, compare, find_readers, gather, passes
from afina.graph.stored import attribute, is_stored, own
from afina.techniques.context import Context
from afina.techniques.quantize.edges import WeightEdge
from afina.techniques.quantize.prepared import Prepared
from afina.techniques.quantize.quantizer import is_layer
from afina.techniques.quantize.rounding import round_weights
from afina.techniques.quantize.scales import best_scales

# From this precision on, rounding to nearest with corrected biases loses no more (33.5 dB each on a ResNet-20).
_ENOUGH_BITS = 8
_IMAGES_FOR_BIASES = 32
_RIDGE = 1e-3
_TINY = 1e-12


def round_layers(prepared: Prepared, context: Context) -> list[str]:
    """Give each weight its scales, and codes that suit its layer's outputs; the notes say how."""
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
    readers = {name: reader for name, reader in readers.items() if _takes(reader, edges[name])}
    done = _by_outputs(prepared, readers, context)
    return [f"Weights of {done} of {len(edges)} layers rounded by their layers' outputs (Gram matrices)."]


def _method(prepared: Prepared, context: Context) -> str:
    asked = prepared.config.rounding
    if context.calibration is None:
        return "nearest"
    if asked != "auto":
        return asked
    few = any(edge.half is None and edge.grid.bits < _ENOUGH_BITS for edge in prepared.weights.values())
    return "gram" if few else "nearest"


def _correct_biases(prepared: Prepared, context: Context) -> int:
    """Take from each bias what rounding its layer's weights adds to its outputs on average.

    (Nagel et al. 2019, arXiv 1906.04721, equation 17, with `E[x]` the mean over the inputs as they are quantized.)
    """
    reference = prepared.source.network
    layers = [n for n in reference.graph.nodes if is_layer(n) and len(n.args) > 2 and is_stored(n.args[2])]
    biases = {n.name: str(n.args[2].target) for n in layers}
    exact = {n.name: attribute(reference.module, str(n.args[1].target)).detach() for n in layers}
    images = context.first(float(cost_of(reference).macs), _IMAGES_FOR_BIASES)
    with prepared.held() as network, network.inference():
        errors = _OwnErrors(network, exact)
        parts = images.split(network.batch)
        for part in parts:
            errors.run(part.to(network.device))
        for name, error in errors.found.items():
            bias = own(network.module, biases[name])
            bias -= (error / len(parts)).to(bias)
    return len(errors.found)


class _OwnErrors(Interpreter):
    """Runs a graph and sums up, for each layer, the mean of what its changed weights alone add to its outputs."""

    def __init__(self, network: Network, exact: Mapping[str, Tensor]) -> None:
        super().__init__(network.module)
        self._exact = exact
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        if n.name in self._exact:
            (x, weight, _, *rest), kwargs = self.fetch_args_kwargs_from_env(n)
            # A layer is linear: what it makes of the mean image is the mean of what it makes of each.
            x = x.mean(0, keepdim=True)
            added = self.call_function(n.target, (x, weight - self._exact[n.name], None, *rest), kwargs)
            channel = added.ndim - 1 if op_name(n) == "linear" else 1
            mean = added.double().transpose(0, channel).flatten(1).mean(1)
            self.found[n.name] = self.found.get(n.name, torch.zeros_like(mean)) + mean
        return super().run_node(n)


def take_nearest(prepared: Prepared, edge: WeightEdge) -> None:
    """Give an edge the scales of least squared error of its weights, with which it then rounds to nearest.

    Those of the source's weights are looked for once, whatever else is tried with them.
    """
    weight: Tensor = attribute(prepared.network.module, edge.name).detach()
    own = torch.equal(weight, attribute(prepared.source.network.module, edge.name))
    known = prepared.source.scales if own else {}
    key = (edge.name, edge.grid, edge.granularity, prepared.config.power_of_two)
    if key not in known:
        known[key] = _nearest(weight, edge, prepared.config.power_of_two)
    edge.set(*known[key])


def _nearest(weight: Tensor, edge: WeightEdge, power_of_two: bool) -> tuple[Tensor, Tensor]:
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


def _takes(reader: Reader, edge: WeightEdge) -> bool:
    """Whether a wide layer that is taken in blocks of inputs can be: blocks of scales must not cross them."""
    return reader.blocks == 1 or edge.granularity.kind != "block" or reader.width % edge.granularity.block == 0


def _of_blocks(reader: Reader, edge: WeightEdge) -> tuple[Tensor, Tensor]:
    """The scales that a wide layer has, for each of the blocks that it is taken in: `[stack, outputs, blocks]`."""
    parts = []
    for value in (edge.scale.detach(), edge.zero):
        if edge.granularity.kind != "block":
            parts.append(value.expand(reader.shape[0], 1).expand(reader.blocks, -1, -1).double())
            continue
        each = reader.width // edge.granularity.block
        padded = torch.nn.functional.pad(value, (0, reader.blocks * each - value.shape[1]), value=1)
        parts.append(padded.unflatten(1, (reader.blocks, each)).transpose(0, 1).double())
    return parts[0], parts[1]


def _by_outputs(prepared: Prepared, readers: dict[str, Reader], context: Context) -> int:
    """Groups of layers in the order of the graph; each is solved for the inputs that those before it give by then."""
    reference, network = prepared.source.network, prepared.network
    parts, enough = passes(list(readers), reference, context.images)
    with context.progress.work("Rounding layers", len(readers)) as bar:
        for part in parts:
            chosen = {name: readers[name] for name in part}
            single = {name: reader for name, reader in chosen.items() if reader.blocks == 1}
            found: dict[str, Moments] = {}
            if single:
                found = compare(reference, network, single, {}, context.stream(), enough)
            if len(single) < len(chosen):
                wide = {name: reader for name, reader in chosen.items() if reader.blocks > 1}
                found |= gather(network, wide, context.stream(), enough)
            for name, moments in found.items():
                _solve(prepared, readers[name], moments, alone=len(part) == 1)
            bar.advance(len(part))
    return len(readers)


def _solve(prepared: Prepared, reader: Reader, moments: Moments, alone: bool) -> None:
    """Round one layer, and let its bias make up for the mean of what that changes.

    `alone`: no other layer is solved in the same pass. Then the layer's weights first become those that come nearest
    to the float layer's outputs on the inputs as they are now; of several layers in one pass each would make up for
    what the others are about to.
    """
    edge, module = prepared.weights[reader.weight], prepared.network.module
    weight = attribute(module, reader.weight)
    now = reader.matrices(weight.detach()).double()
    xx = moments.xx.double() / moments.rows
    mean, xx = xx[:, :-1, -1], xx[:, :-1, :-1]
    constant = reader.bias is not None and reader.blocks == 1
    moment = xx - mean[:, :, None] * mean[:, None] if constant else xx
    target, shift = now, (now * mean[:, None]).sum(2)
    if alone and moments.xy is not None:
        target, wanted = _least_squares(now, moment, moments, mean, constant)
        if constant:
            shift = wanted - attribute(module, str(reader.bias)).detach().reshape(wanted.shape)
    zeros = _zeros(prepared, reader)
    if reader.blocks > 1:
        scales = _of_blocks(reader, edge)
        found = round_weights(target, moment, edge.grid, edge.granularity, scales=scales, zeros=zeros)
    else:
        power = prepared.config.power_of_two
        found = round_weights(target, moment, edge.grid, edge.granularity, power, zeros=zeros)
        edge.set(*_flat(found.scale, found.zero))
    own(module, reader.weight).copy_(reader.from_matrices(found.values, weight))
    if constant:
        own(module, str(reader.bias))
        with torch.no_grad():
            add_constant(prepared.network, reader, (shift - (found.values * mean[:, None]).sum(2)).flatten())


def _zeros(prepared: Prepared, reader: Reader) -> Tensor | None:
    """Where the weights of a layer are zero in float, which a sparse network's stay; None where none is."""
    weight: Tensor = attribute(prepared.source.network.module, reader.weight).detach()
    zeros = reader.matrices(weight) == 0
    return zeros if bool(zeros.any()) else None


def _least_squares(
    now: Tensor, moment: Tensor, moments: Moments, mean: Tensor, constant: bool
) -> tuple[Tensor, Tensor]:
    """The weights nearest to the float layer's outputs on the inputs as they are now, drawn to the float weights.

    Gives `[stack, outputs, inputs]`, and the mean output of the float layer `[stack, outputs]`.
    """
    assert moments.xy is not None
    xy = moments.xy.double() / moments.rows
    wanted, product = xy[:, -1], xy[:, :-1]
    if constant:
        product = product - mean[:, :, None] * wanted[:, None]
    diagonal = moment.diagonal(dim1=1, dim2=2)
    ridge = _RIDGE * max(1.0, 4 * moment.shape[1] / moments.rows) * diagonal.mean(1, keepdim=True).clamp_min(_TINY)
    ridge = ridge + torch.zeros_like(diagonal)
    system = moment + torch.diag_embed(ridge)
    solved = torch.linalg.solve(system, product + ridge[:, :, None] * now.transpose(1, 2))
    return solved.transpose(1, 2), wanted
