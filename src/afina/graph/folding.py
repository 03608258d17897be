"""Batch norms folded into layers, and weights computed once: the same inference in fewer operators."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from afina.graph.network import Network
from afina.graph.ops import arguments, op_name
from afina.graph.stored import attribute, is_stored, set_parameter, uses_of
from afina.graph.writing import is_view, written

_LAYERS = frozenset(("conv1d", "conv2d", "conv3d", "linear"))
_PARAMETRIZED = re.compile(r"\.parametrizations\.(\w+)\.original\d*$")


def fold_weights(network: Network) -> list[str]:
    """Store what layers multiply by or add where it is computed from parameters alone, in place.

    Weight standardisation and weight norm are such: in inference they give the same weight for every image.

    Returns:
        Names of the weights and biases that are stored now.
    """
    fixed = fixed_nodes(network.graph, lambda node: _is_float(network, node))
    layers = [node for node in network.graph.nodes if node.op == "call_function" and op_name(node) in _LAYERS]
    sources = (arguments(node)[key] for node in layers for key in ("weight", "bias"))
    computed = dict.fromkeys(source for source in sources if source in fixed and source.op != "get_attr")
    stored = [store(network, node) for node in computed]
    network.graph.eliminate_dead_code()
    names = [_take_name(network, node, origin) for node, origin in stored]
    network.module.recompile()
    return names


def fixed_nodes(
    graph: Graph, is_fixed_source: Callable[[Node], bool] = lambda node: True, sized: bool = False
) -> set[Node]:
    """The nodes that give the same for every image.

    Those are the ones that no node feeds (stored tensors, `arange`, `zeros`) and for which `is_fixed_source` holds, and
    what is computed from them alone; not what is drawn at random, and no tensor that another node writes into. With
    `sized`, also what is the same for the same number of images: it may read sizes.
    """
    fixed, written = set[Node](), _written(graph)
    for node in graph.nodes:
        if node in written or node.op not in ("get_attr", "call_function") or node.is_impure():
            continue
        sources = [] if sized and node.target is torch.ops.aten.sym_size.int else node.all_input_nodes
        if fixed.issuperset(sources) if sources else is_fixed_source(node):
            fixed.add(node)
    return fixed


def _written(graph: Graph) -> set[Node]:
    """The nodes whose tensors others write into, through views too."""
    overwritten = set[Node]()
    for target in (target for node in graph.nodes for target in written(node)):
        overwritten.add(target)
        while is_view(target) and isinstance(target.args[0], Node):
            target = target.args[0]
            overwritten.add(target)
    return overwritten


def _is_float(network: Network, node: Node) -> bool:
    """Whether a node reads a tensor in 32 bits; codes and halves are stored as they are on purpose."""
    if node.op != "get_attr":
        return False
    value = attribute(network.module, str(node.target))
    return isinstance(value, Tensor) and value.dtype == torch.float32


def is_code(network: Network, node: Node) -> bool:
    """Whether a node reads a tensor that is stored in few bits on purpose: codes and halves."""
    value = attribute(network.module, str(node.target)) if node.op == "get_attr" else None
    return isinstance(value, Tensor) and value.dtype.itemsize < 4 and value.dtype != torch.bool


def store(network: Network, computed: Node) -> tuple[Node, str]:
    """A stored parameter in the place of a node, and the name of the parameter that it was computed from."""
    values = dict[Node, Any]()

    def value(node: Node) -> Any:
        if node not in values and node.op == "get_attr":
            values[node] = attribute(network.module, str(node.target))
        elif node not in values:
            assert callable(node.target)
            values[node] = node.target(*map_arg(node.args, value), **map_arg(node.kwargs, value))
        return values[node]

    with torch.no_grad():
        folded: Tensor = value(computed).detach().clone()
    name = f"{computed.name}_stored"
    set_parameter(network.module, name, folded)
    with network.graph.inserting_before(computed):
        stored = network.graph.get_attr(name)
    stored.meta = dict(computed.meta)
    computed.replace_all_uses_with(stored)
    origins = [node for node in values if node.op == "get_attr"]
    alike = (node for node in origins if values[node].shape == folded.shape)
    return stored, str(next(alike, (*origins, stored)[0]).target)


def _take_name(network: Network, stored: Node, origin: str) -> str:
    """Let a stored parameter have the name of what it was computed from, unless that is still read."""
    name, before = _PARAMETRIZED.sub(r".\1", origin), str(stored.target)
    if any(node.op == "get_attr" and node.target == name for node in network.graph.nodes):
        return before
    set_parameter(network.module, name, attribute(network.module, before).detach())
    delattr(network.module, before)
    stored.target = name
    return name


def fold_norms(network: Network) -> list[str]:
    """Fold each batch norm that alone reads a convolution or linear layer into it, in place.

    With `k = weight / sqrt(variance + eps)`, one number for each output: `W' = k W`, `b' = bias + k (b - mean)`
    (Jacob et al. 2018, section 3.2). A layer without a bias gets one.

    Returns:
        Names of the weights that changed.

    Example:
        >>> from torch import nn
        >>> from afina.graph import capture
        >>> from afina.types import InputSpec, TaskSpec
        >>> layers = nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 2)
        >>> spec = InputSpec(8, 8, mean=(0.5,), std=(0.25,), order="L")
        >>> network = capture(nn.Sequential(*layers), spec, TaskSpec("classification", ("cat", "dog")))
        >>> fold_norms(network)
        ['0.weight']
        >>> network.module.get_parameter("0.bias").shape
        torch.Size([2])
    """
    folded_weights = []
    for norm in list(network.graph.nodes):
        layer = _layer_before(norm)
        if layer is not None:
            _fold(network, layer, norm)
            folded_weights.append(str(arguments(layer)["weight"].target))
    network.graph.eliminate_dead_code()
    network.module.recompile()
    return folded_weights


def _layer_before(norm: Node) -> Node | None:
    """The layer that a batch norm can be folded into: stored weights that nothing else uses, and no other reader."""
    if norm.op != "call_function" or op_name(norm) != "batch_norm":
        return None
    a = arguments(norm)
    layer: Node = a["input"]
    if not all(a[key] is None or is_stored(a[key]) for key in ("weight", "bias")):
        return None
    if not is_stored(a["running_mean"]) or not is_stored(a["running_var"]):
        return None
    if layer.op != "call_function" or op_name(layer) not in _LAYERS or len(layer.users) > 1:
        return None
    layer_arguments = arguments(layer)
    stored = [layer_arguments[key] for key in ("weight", "bias") if layer_arguments[key] is not None]
    if not all(is_stored(node) and uses_of(node) == 1 for node in stored):
        return None
    if op_name(layer) == "linear" and layer.meta["val"].ndim > 2:
        return None  # the norm's channels are then not the layer's outputs
    return layer


def _fold(network: Network, layer: Node, norm: Node) -> None:
    """Fold one norm into the layer before it, and let its readers read the layer."""
    a = arguments(norm)

    def parameter_of(key: str, default: float) -> Tensor:
        source = a[key]
        if source is None:
            return torch.full_like(attribute(network.module, str(a["running_mean"].target)), default)
        value: Tensor = attribute(network.module, str(source.target))
        return value.detach()

    factor = parameter_of("weight", 1.0) * torch.rsqrt(parameter_of("running_var", 1.0) + float(a["eps"]))
    layer_arguments = arguments(layer)
    name, bias_node = str(layer_arguments["weight"].target), layer_arguments["bias"]
    weight = attribute(network.module, name).detach()
    bias = (
        attribute(network.module, str(bias_node.target)).detach() if bias_node is not None else torch.zeros_like(factor)
    )
    set_parameter(network.module, name, weight * factor.reshape(-1, *[1] * (weight.ndim - 1)))
    bias_name = str(bias_node.target) if bias_node is not None else bias_name_of(name)
    set_parameter(
        network.module, bias_name, parameter_of("bias", 0.0) + factor * (bias - parameter_of("running_mean", 0.0))
    )
    if bias_node is None:
        give_bias(network, layer, bias_name)
    norm.replace_all_uses_with(layer)
    network.graph.erase_node(norm)


def bias_name_of(weight: str) -> str:
    """The name for a bias beside a weight of that name."""
    return f"{weight.removesuffix('weight')}bias" if weight.endswith("weight") else f"{weight}_bias"


def give_bias(network: Network, layer: Node, name: str) -> None:
    """Let a layer without a bias read the parameter of that name."""
    with network.graph.inserting_before(layer):
        node = network.graph.get_attr(name)
    value = attribute(network.module, name)
    node.meta["val"] = torch.empty_like(value, device="meta")
    layer.args = (*layer.args[:2], node, *layer.args[3:])
