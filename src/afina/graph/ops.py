"""Reads and changes a node of a captured graph: its operator, its arguments by name, the module it comes from."""

from typing import Any

import torch
from torch.fx import Node


def describe(node: Node) -> str:
    """The operator of a node and the module that it is in, as words for a message."""
    path = module_path(node)
    return f"{op_name(node)} in {path}" if path else f"{op_name(node)}, node {node.name}"


def op_name(node: Node) -> str:
    """`conv2d` for `aten.conv2d.default`."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.split("::")[-1]
    return str(getattr(node.target, "__name__", node.target))


def module_path(node: Node) -> str:
    """The module of the user's model that the node comes from; empty where it is not known."""
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]) if stack else ""


def arguments(node: Node) -> dict[str, Any]:
    """The arguments of an ATen op by the names in its schema, defaults filled in."""
    assert isinstance(node.target, torch._ops.OpOverload)
    named: dict[str, Any] = {}
    for index, argument in enumerate(node.target._schema.arguments):
        if not argument.kwarg_only and index < len(node.args):
            named[argument.name] = node.args[index]
        else:
            named[argument.name] = node.kwargs.get(argument.name, argument.default_value)
    return named


def set_argument(node: Node, name: str, value: Any) -> None:
    """Change one argument of an ATen op, where it is spelled out already or not."""
    assert isinstance(node.target, torch._ops.OpOverload)
    schema = node.target._schema.arguments
    index = next(i for i, argument in enumerate(schema) if argument.name == name)
    if index < len(node.args):
        node.update_arg(index, value)
    else:
        node.update_kwarg(name, value)
