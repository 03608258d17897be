"""Regions that a capture leaves as graphs of their own (`torch.autocast` blocks), put into the graph around them."""

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

_AUTOCAST = torch.ops.higher_order.wrap_with_autocast
# Arguments of the op before those of the region: device, type, whether it is on, whether weights are cached, region.
_SETTINGS = 5


def inline_regions(module: GraphModule) -> GraphModule:
    """Put the ops of each autocast region into the graph, in place; gives `module`.

    `wrap_with_autocast("cpu", bfloat16, True, True, region, x)`, with a convolution in the graph `region`, becomes that
    convolution of `x`. A network is float32 wherever it is captured, so the setting of a region has nothing to act on:
    the casts that its author wrote in it stay.
    """
    changed = False
    for node in [n for n in module.graph.nodes if n.target is _AUTOCAST]:
        region = module.get_submodule(str(node.args[_SETTINGS - 1].target))
        assert isinstance(region, GraphModule)
        inputs = [n for n in region.graph.nodes if n.op == "placeholder"]
        values: dict[Node, Node] = dict(zip(inputs, node.args[_SETTINGS:], strict=True))
        with module.graph.inserting_before(node):
            outputs = module.graph.graph_copy(region.graph, values)
        _replace(node, outputs)
        changed = True
    if changed:
        module.graph.eliminate_dead_code()
        module.delete_all_unused_submodules()
        module.recompile()
    return module


def _replace(node: Node, outputs: Any) -> None:
    parts = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    for user in list(node.users):
        if user.target is operator.getitem:
            user.replace_all_uses_with(parts[int(str(user.args[1]))])
            user.graph.erase_node(user)
    node.graph.erase_node(node)
