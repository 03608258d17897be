"""A network on its way to integers: batch norms folded, edges in place, calibrated, rounded, and written out."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.ao.quantization.fx.utils
import torchao.utils
from torch import Tensor
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

from afina.errors import AfinaError, InputError, NothingToDo
from afina.graph.folding import fold_norms, fold_weights
from afina.graph.network import Network
from afina.graph.propagate import refresh_meta
from afina.graph.quantized import is_quantized
from afina.graph.stored import attribute, is_stored
from afina.techniques.context import Context
from afina.techniques.quantize.config import QuantizeConfig
from afina.techniques.quantize.edges import ActivationEdge, WeightEdge, store_half
from afina.techniques.quantize.grids import SMALLEST_SCALE, Granularity, Grid
from afina.techniques.quantize.quantizer import NORMS, WEIGHTED, Placement, hide_norms, layer_name, mover_source
from afina.techniques.quantize.ranges import Histogram, Method
from afina.training.layout import fitting_layout, place

_UNDO_TENSOR = "quantized_decomposed.dequantize_per_tensor.default"
_UNDO_CHANNEL = "quantized_decomposed.dequantize_per_channel.default"
# Functions that cache their argument, a module with all its weights, for good: where each is, and its name.
_CACHED_FUNCTIONS = (
    (torch.ao.quantization.fx.utils, "assert_and_get_unique_device"),
    (torchao.utils, "_assert_and_get_unique_device"),
)


@dataclass
class Source:
    """What all precisions of one network start from.

    Attributes:
        network: The network in float, captured anew, batch norms folded, no weight shared by two layers; in the layout
            in which it is fast.
        histograms: The values of its activations on the calibration images, by node; filled by the first calibration,
            and read by all later ones.
        scales: Scales and zero points of its weights, by name, grid and granularity, and whether they are powers of
            two; filled as they are first needed.
        equalized: Names of the layers into whose weights scale was moved from what they read (`equalize`).
        held_out_count: How many of the calibration images, the first ones, are left out of the histograms, so that
            methods for ranges can be compared on them.
    """

    network: Network
    histograms: dict[str, Histogram] = field(default_factory=dict)
    scales: dict[tuple[str, Grid, Granularity, bool], tuple[Tensor, Tensor]] = field(default_factory=dict)
    equalized: frozenset[str] = frozenset()
    held_out_count: int = 0

    @classmethod
    def of(cls, network: Network) -> "Source":
        """What all precisions of `network` start from; the network is left as it is.

        Raises:
            NothingToDo: it is quantized already.
        """
        if is_quantized(network):
            raise NothingToDo("The network is quantized already.", fix="Start from the float network.")
        twin = network.copy().eval()
        _separate_weights(twin)
        # Every node must carry the shape and type that are looked at below.
        refresh_meta(twin.module)
        fold_weights(twin)
        fold_norms(twin)
        place(twin, twin.device, fitting_layout(twin, twin.device, channels_last=True))
        return cls(twin)

    @property
    def layers(self) -> list[str]:
        """Names of the convolutions and linear layers, in the order of the graph."""
        return list(dict.fromkeys(layer_name(n) for n in self.network.graph.nodes if n.target in WEIGHTED))


class Prepared:
    """A `Source` with edges where a configuration wants them.

    From a float network to integers it goes in this order: `Prepared(source, config)`, `watch` (histograms of
    activations), `choose_ranges`, `round_layers`, `simulate`, `convert`.

    Args:
        source: The float network.
        config: Precisions.

    Attributes:
        network: The graph with the edges in it; computes in float until they are on. Its weights are the source's
            until they are copied to be written.
        placement: Which layers are quantized, and why others are not.
        activations: The edges of activations, by node; an edge that several nodes share is there once.
        weights: The edges of weights, by the name of the weight.
        unrounded: A network with the weights as they were before any rounding: the source, or the trained one.

    Raises:
        NothingToDo: there is nothing that the configuration would change.
    """

    def __init__(self, source: Source, config: QuantizeConfig) -> None:
        self.source, self.config = source, config
        self.placement = Placement(config)
        module = source.network.copy(source.network.tensors).module
        hide_norms(module)
        with _quiet(), torch.no_grad():
            prepared = prepare_pt2e(module, self.placement)
        _clear_caches()
        if not self.placement.quantized:
            raise NothingToDo(
                "Quantization found no convolution or linear layer that it could change.",
                why="; ".join(f"{name}: {why}" for name, why in list(self.placement.skipped.items())[:4]),
            )
        self.adopt(source.network.around(prepared))
        self.unrounded = source.network

    def adopt(self, network: Network) -> None:
        """Go on with a network that has the same edges: `self.network` itself, or a trained copy of it."""
        for module in network.module.modules():
            if isinstance(module, (ActivationEdge, WeightEdge)):
                # Training may take a small scale through zero; what it stands for is its size.
                module.scale.data = module.scale.data.abs().clamp_min(SMALLEST_SCALE)
        self.network = self.unrounded = network
        edges = [m for m in network.module.modules() if isinstance(m, (ActivationEdge, WeightEdge))]
        self.activations = {m.name: m for m in edges if isinstance(m, ActivationEdge)}
        self.weights = {m.name: m for m in edges if isinstance(m, WeightEdge)}
        self.learn(False)

    def learn(self, scales: bool) -> None:
        """Let training change the scales, or not."""
        for edge in (*self.activations.values(), *self.weights.values()):
            edge.scale.requires_grad_(scales)

    def watch(self, context: Context) -> None:
        """Fill the histograms of activations from the calibration images, unless all are filled already.

        Raises:
            InputError: there are no images.
            AfinaError: an activation is not a finite number; it is named.
        """
        for name, edge in self.activations.items():
            edge.histogram = self.source.histograms.setdefault(name, edge.histogram)
            edge.watching = not edge.histogram.average
        if any(edge.watching for edge in self.activations.values()):
            self._run(context)
        for edge in self.activations.values():
            edge.watching = False

    def calibrate(self, context: Context, method: Method) -> None:
        """Watch the images, and give every activation the range that one method finds."""
        if self.activations:
            self.watch(context)
        for edge in self.activations.values():
            edge.choose(method)

    def simulate(self, on: bool = True) -> None:
        """Switch all edges on or off."""
        for edge in (*self.activations.values(), *self.weights.values()):
            edge.on = on

    @contextmanager
    def rounded_once(self) -> Iterator[Network]:
        """The network for the length of a `with` block in which no weight changes, so that each is rounded once."""
        for edge in self.weights.values():
            edge.cache(True)
        try:
            yield self.network
        finally:
            for edge in self.weights.values():
                edge.cache(False)

    def convert(self) -> Network:
        """The network in integers: quantize and dequantize nodes around float operators, weights as codes."""
        self.simulate()
        rounded = [attribute(self.network.module, name) for name in self.weights]
        module = self.network.copy(rounded).module
        edges = {name: m for name, m in module.named_modules() if isinstance(m, (ActivationEdge, WeightEdge))}
        for node in list(module.graph.nodes):
            if node.op == "call_module" and str(node.target) in edges:
                edges[str(node.target)].convert(module, node)
        if self.config.policy.norm_parameters == "bf16":
            _halve_norms(module)
        module.graph.eliminate_dead_code()
        for name in edges:
            delattr(module, name)
        module.recompile()
        _snap_biases(module)
        module.to(memory_format=torch.contiguous_format)
        return self.network.around(module)

    def _run(self, context: Context) -> None:
        """Run the calibration images through the network, without the first ones, which are held out."""
        images, to_skip = 0, self.source.held_out_count
        with torch.no_grad(), context.progress.work("Calibrating", context.images) as bar:
            for batch in context.stream():
                bar.advance(len(batch))
                to_skip, batch = max(0, to_skip - len(batch)), batch[to_skip:]
                if not len(batch):
                    continue
                for edge in self.activations.values():
                    edge.images = len(batch)
                try:
                    self.network(batch.to(self.network.device))
                except FloatingPointError as error:
                    raise AfinaError(
                        "Calibration met activations that are not finite numbers.",
                        why=f"{error}.",
                        fix="Check the weights and the data.",
                    ) from error
                images += len(batch)
        if not images and self.source.held_out_count:
            # Fewer images came than the context promised: none can be held out.
            self.source.held_out_count = 0
            self._run(context)
        elif not images:
            raise InputError("There are no calibration images.", fix="Give data with training images.")


def _halve_norms(module: GraphModule) -> None:
    """Store the parameters of layer, group and RMS norms in bfloat16."""
    for node in [n for n in module.graph.nodes if n.target in NORMS]:
        for source in node.all_input_nodes:
            if source.op == "get_attr" and all(user.target in NORMS for user in source.users):
                value = attribute(module, str(source.target)).detach()
                with module.graph.inserting_before(node):
                    node.replace_input_with(source, store_half(module, node, str(source.target), value, torch.bfloat16))


def _snap_biases(module: GraphModule) -> None:
    """Round each bias to the scale of its products, as integer kernels do, so that the simulation has theirs.

    With an input of scale 0.02 and weights of scale 0.005 (one for each output), products are whole multiples of
    0.0001, and a bias of 0.01234 becomes 123 of these, 0.0123. The step is small, but products are many for one step of
    the output: biases that differ by half a product's step round every few hundredth output the other way.
    """
    for node in module.graph.nodes:
        bias = node.args[2] if node.target in WEIGHTED and len(node.args) > 2 else None
        if not is_stored(bias):
            continue
        read, weight = mover_source(node.args[0]), node.args[1]
        if str(read.target) != _UNDO_TENSOR or str(getattr(weight, "target", "")) != _UNDO_CHANNEL:
            continue
        steps = attribute(module, str(weight.args[1].target)).double() * float(read.args[1])
        value = attribute(module, str(bias.target))
        with torch.no_grad():
            value.copy_(torch.round(value.double() / steps) * steps)


def _separate_weights(network: Network) -> None:
    """Give each layer that shares its weight or bias with another a copy, so that each can have other scales."""
    module, names = network.module, set[str]()
    for node in module.graph.nodes:
        for index in (1, 2) if node.target in WEIGHTED else ():
            stored = node.args[index] if len(node.args) > index else None
            if not is_stored(stored):
                continue
            name = str(stored.target)
            if name in names:
                _give_copy(module, node, index, f"{name}_of_{node.name}".replace(".", "_"))
            names.add(name)
    module.recompile()


def _give_copy(module: GraphModule, node: Node, index: int, name: str) -> None:
    """Let an argument of a layer be a copy of the tensor that it is, stored under that name."""
    shared = node.args[index]
    assert isinstance(shared, Node)
    value = copy.deepcopy(attribute(module, str(shared.target)))
    if isinstance(value, torch.nn.Parameter):
        module.register_parameter(name, value)
    else:
        module.register_buffer(name, value)
    with module.graph.inserting_before(node):
        copied = module.graph.get_attr(name)
    copied.meta = copy.copy(shared.meta)
    node.update_arg(index, copied)


def _clear_caches() -> None:
    """Let torch and torchao forget modules: of each they cache the device, and with it the module, for good."""
    for owner, name in _CACHED_FUNCTIONS:
        cache_clear = getattr(getattr(owner, name, None), "cache_clear", None)
        if cache_clear is not None:
            cache_clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """PT2E warns about its own internals (deprecated quantized tensors, erased nodes), which no user can act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
