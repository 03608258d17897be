"""The stored tensors of a network (parameters, buffers, constants), by the dotted names under which nodes read them."""

from collections.abc import Mapping
from typing import Any, TypeGuard

from torch import Tensor, nn
from torch.fx import Node


def attribute(module: nn.Module, target: str) -> Any:
    """The parameter, buffer or constant that a `get_attr` node names."""
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    return value


def is_stored(value: Any) -> TypeGuard[Node]:
    """Whether an argument of a node is a parameter, buffer or constant, and not computed while the network runs."""
    return isinstance(value, Node) and value.op == "get_attr"


def uses_of(node: Node) -> int:
    """How many nodes use the stored tensor that a `get_attr` node reads, also through other `get_attr` nodes."""
    same = (other for other in node.graph.nodes if other.op == "get_attr" and other.target == node.target)
    return sum(len(other.users) for other in same)


def set_tensor(module: nn.Module, name: str, value: Tensor) -> None:
    """Store a tensor under a name, in the place of any other: a parameter as a parameter, the rest as buffers."""
    owner, _, leaf = name.rpartition(".")
    parent = _part(module, owner)
    registry: Mapping[str, Tensor | None] = parent._parameters if isinstance(value, nn.Parameter) else parent._buffers
    if hasattr(parent, leaf) and leaf not in registry:
        delattr(parent, leaf)
    if isinstance(value, nn.Parameter):
        parent.register_parameter(leaf, value)
    else:
        parent.register_buffer(leaf, value)


def set_parameter(module: nn.Module, name: str, value: Tensor) -> None:
    """Store a tensor as a parameter, which is trained where it can be."""
    set_tensor(module, name, nn.Parameter(value, requires_grad=value.is_floating_point()))


def own(module: nn.Module, name: str) -> Tensor:
    """Replace a stored tensor, which other networks may share, by a copy of it; gives the copy, which may be written.

    A parameter stays a parameter, trainable or not as before.
    """
    value: Tensor = attribute(module, name)
    copied = value.detach().clone()
    is_parameter = isinstance(value, nn.Parameter)
    set_tensor(module, name, nn.Parameter(copied, requires_grad=value.requires_grad) if is_parameter else copied)
    return copied


def _part(module: nn.Module, path: str) -> nn.Module:
    """The module of that path, which is made where there is none."""
    for name in path.split(".") if path else ():
        if not hasattr(module, name):
            module.add_module(name, nn.Module())
        module = getattr(module, name)
    return module
