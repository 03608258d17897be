"""A short name for a network that changes with anything that it computes with, and with nothing else.

The graph of a network that was saved and loaded is spelled differently: nodes have other names, arguments that equal
the default are left out, a tensor that was read at two places is read once. So the graph's text is not hashed. Nodes
that compute are numbered in their order, and each is spelled with all of its arguments, by name, where a node stands
as its number and a stored tensor as its name.
"""

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from afina.graph.ops import arguments
from afina.graph.stored import attribute
from afina.tasks.table import identity_of

if TYPE_CHECKING:
    from afina.graph.network import Network

_LENGTH = 16


def fingerprint(network: "Network") -> str:
    """The first 16 hexadecimal characters of a SHA-256 over the graph, its tensors, the input and the task.

    Of each tensor that the graph reads the name, type, shape and numbers count; whether the network is in training
    form does not.
    """
    digest = hashlib.sha256()
    about = {
        "input": asdict(network.input),
        "task": identity_of(network.task),
        "frozen": sorted(network.frozen),
        "outputs": network.outputs,
    }
    digest.update(json.dumps(about, sort_keys=True).encode())
    with network.inference():
        lines, names = _spelled(network.module)
    digest.update("\n".join(lines).encode())
    for name in sorted(names):
        value = attribute(network.module, name)
        if isinstance(value, Tensor):
            digest.update(f"\n{name} {value.dtype} {list(value.shape)}\n".encode())
            digest.update(_bytes_of(value))
    return digest.hexdigest()[:_LENGTH]


def _spelled(module: GraphModule) -> tuple[list[str], set[str]]:
    """The graph, one line for each node that computes, and the names of the tensors that it reads.

    A linear layer and a ReLU are, in two lines and the names `fc.weight` and `fc.bias`:

        call_function aten.linear.default input=input 0, weight=fc.weight, bias=fc.bias
        call_function aten.relu.default self=%0
    """
    lines: list[str] = []
    names: set[str] = set()
    # Weights that are dequantized may come before the input or after it.
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    spelling: dict[Node, str] = {node: f"input {index}" for index, node in enumerate(inputs)}
    for node in module.graph.nodes:
        if node in spelling:
            continue
        if node.op != "get_attr":
            spelling[node] = f"%{len(lines)}"
            lines.append(f"{node.op} {_operator(node)} {_text(_arguments(node), spelling)}")
            continue
        value = attribute(module, str(node.target)) if node.users else None
        if isinstance(value, GraphModule):  # a branch of `torch.cond`
            inner, _ = _spelled(value)
            spelling[node] = f"({'; '.join(inner)})"
        else:
            spelling[node] = str(node.target)
            names.update([str(node.target)] if node.users else [])
    return lines, names


def _operator(node: Node) -> str:
    if node.op != "call_function" or isinstance(node.target, torch._ops.OpOverload):
        return str(node.target) if node.op == "call_function" else ""
    return str(getattr(node.target, "__name__", node.target))


def _arguments(node: Node) -> Any:
    if isinstance(node.target, torch._ops.OpOverload):
        return arguments(node)
    return [*node.args, *node.kwargs.items()]


def _text(value: Any, spelling: dict[Node, str]) -> str:
    """An argument, with nodes as `spelling` has them."""
    if isinstance(value, Node):
        return spelling[value]
    if isinstance(value, dict):
        return ", ".join(f"{key}={_text(inner, spelling)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_text(inner, spelling) for inner in value)}]"
    return repr(value)


def _bytes_of(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
