"""The last layer of a captured network: found by following the graph back from the output, and replaced."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Node

from afina.errors import InputError
from afina.graph.folding import bias_name_of, give_bias
from afina.graph.network import Network
from afina.graph.propagate import output_shapes
from afina.graph.stored import set_parameter
from afina.tasks.base import only_output
from afina.types import TaskSpec

_LINEAR, _CONV = torch.ops.aten.linear.default, torch.ops.aten.conv2d.default


@dataclass(frozen=True)
class Head:
    """The layer that makes a network's outputs.

    Attributes:
        layer: Its name as in the user's model.
        node: Its node in the graph.
        weight: Name of its weight, `[outputs, inputs]` or `[outputs, inputs, 1, 1]`.
        bias: Name of its bias, `[outputs]`; None where it has none.
    """

    layer: str
    node: Node
    weight: str
    bias: str | None


def find_head(network: Network) -> Head | None:
    """The last linear layer (or 1x1 convolution), if it alone makes the outputs; else None.

    Example:
        >>> from afina.graph import capture
        >>> from afina.types import InputSpec
        >>> module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> spec = InputSpec(8, 8, mean=(0.5,), std=(0.25,), order="L")
        >>> head = find_head(capture(module, spec, TaskSpec("classification", ("cat", "dog"))))
        >>> head.layer, head.weight, head.bias
        ('3', '3.weight', '3.bias')
    """
    parameters = dict(network.module.named_parameters())
    if len(network.outputs) > 1:
        return None
    node: Node | None = next(node for node in network.graph.nodes if node.op == "output")
    while node is not None and node.target not in (_LINEAR, _CONV):
        node = _only_tensor_input(node)
    if node is None:
        return None
    weight, bias = (_unshared_parameter(arg) for arg in (*node.args, None)[1:3])
    has_bias = len(node.args) > 2 and node.args[2] is not None
    if weight not in parameters or (has_bias and bias not in parameters):
        return None
    shape = parameters[weight].shape
    if math.prod(shape[2:]) != 1 or output_shapes(network)[network.outputs[0]][1:] != (shape[0],):
        return None
    return Head(weight.rpartition(".")[0] or weight, node, weight, bias)


def with_new_head(network: Network, task: TaskSpec, bias: Tensor) -> Network:
    """The network with a last layer for another task.

    Args:
        network: The network; it is left as it is.
        task: The task.
        bias: Bias `[outputs]` of the new layer, as many as the task needs; its weights are random (Kaiming uniform, as
            in torch's layers).

    Raises:
        InputError: the last layer cannot be found, or the outputs do not follow its width.
    """
    twin = network.copy()
    head = find_head(twin)
    if head is None:
        raise _no_head(network, task)
    old = twin.module.get_parameter(head.weight)
    weight = torch.empty(len(bias), *old.shape[1:])
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    set_parameter(twin.module, head.weight, weight.to(network.device))
    bias = bias.to(network.device, torch.float32)
    if head.bias is None:
        name = bias_name_of(head.weight)
        set_parameter(twin.module, name, bias)
        give_bias(twin, head.node, name)
        twin.module.recompile()
    else:
        set_parameter(twin.module, head.bias, bias)
    # Exported again, because the shapes noted in the graph are those of the old head.
    twin.task = task
    try:
        new = twin.retraced()
        shape = output_shapes(new)[new.outputs[0]][1:]
    except Exception as error:  # torch.export raises whatever the graph's operators raise
        raise _no_head(network, task) from error
    if len(new.outputs) > 1 or shape != (len(bias),):
        raise _no_head(network, task)
    return new.train(network.training)


def with_order(network: Network, task: TaskSpec) -> Network:
    """The network with its outputs in the order of `task.labels`, the same labels in another order.

    Raises:
        InputError: the outputs do not follow the order of the last layer's units.
    """
    order = torch.tensor([network.task.labels.index(label) for label in task.labels])
    twin = network.copy()
    head = find_head(twin)
    if head is None:
        raise _no_head(network, task)
    for name in (head.weight, head.bias):
        if name is not None:
            set_parameter(twin.module, name, twin.module.get_parameter(name).detach()[order])
    twin.task = task
    images = network.example()
    with network.inference(), twin.inference():
        was, now = only_output(network(images)), only_output(twin(images))
        if not torch.allclose(now, was[:, order], rtol=1e-4, atol=1e-5):
            raise _no_head(network, task)
    return twin


def set_bias(network: Network, bias: Tensor) -> None:
    """Start a new last layer from `bias` [outputs], in place; nothing where it has no bias."""
    head = find_head(network)
    if head is not None and head.bias is not None:
        parameter = network.module.get_parameter(head.bias)
        with torch.no_grad():
            parameter.copy_(bias.to(parameter))


def _only_tensor_input(node: Node) -> Node | None:
    """The one computed tensor that goes into `node`; None where there are more or none."""
    inputs = [n for n in node.all_input_nodes if n.op == "call_function" and isinstance(n.meta.get("val"), Tensor)]
    return inputs[0] if len(inputs) == 1 else None


def _unshared_parameter(argument: object) -> str | None:
    """Name of the weight that `argument` is, where nothing else in the graph uses it."""
    if isinstance(argument, Node) and argument.op == "get_attr" and len(argument.users) == 1:
        return str(argument.target)
    return None


def _no_head(network: Network, task: TaskSpec) -> InputError:
    return InputError(
        f"The model has {network.task.outputs} outputs, the data needs {task.outputs}, and its last layer cannot be "
        "replaced.",
        why="Its outputs do not come from one linear layer or 1x1 convolution.",
        fix=f"Give a model with {task.outputs} outputs: a builder that takes classes= is told the number.",
    )
