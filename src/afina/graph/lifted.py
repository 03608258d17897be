"""A captured network as an `ExportedProgram`, without tracing it anew: that takes longer than all else in an export."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_structure

from afina.graph.propagate import current_values
from afina.graph.stored import attribute

if TYPE_CHECKING:
    from afina.graph.network import Network


def lifted(network: "Network", rewrite: Callable[[Graph], None]) -> ExportedProgram:
    """The network in inference form: the same ops, its weights as inputs, the shapes of all of them followed anew.

    Args:
        network: Left as it is.
        rewrite: Changes the program's graph before torch checks it: no op may write into the program's input.

    Raises:
        Unsupported: the shapes cannot be followed.
        SpecViolationError: torch does not accept the graph as that of a program.
    """
    with network.inference():
        graph, inputs, outputs = _lift(network.module)
        rewrite(graph)
        tensors = {spec.target: attribute(network.module, spec.target) for spec in inputs if spec.target is not None}
        arguments: tuple[Any, ...] = ((network.example(),), {})
    constants = {spec.target for spec in inputs if spec.kind is InputKind.CONSTANT_TENSOR}
    return ExportedProgram(
        torch.nn.Module(),
        graph,
        ExportGraphSignature(inputs, outputs),
        {name: value for name, value in tensors.items() if name not in constants},
        {},
        [ModuleCallEntry("", ModuleCallSignature([], [], tree_structure(arguments), tree_structure(outputs)))],
        arguments,
        {name: value for name, value in tensors.items() if name in constants},
    )


def _lift(module: GraphModule) -> tuple[Graph, list[InputSpec], list[OutputSpec]]:
    """The graph with an input in the place of each stored tensor, and the specifications of its inputs and outputs."""
    values = current_values(module)
    graph, copies, outputs = Graph(), dict[Node, Node](), list[OutputSpec]()
    inputs = _lift_stored(module, graph, copies)
    for node in module.graph.nodes:
        if node.op == "output":
            results = [copies[source] for source in node.all_input_nodes]
            graph.output(tuple(results))
            outputs = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(result.name), None) for result in results]
        elif node.op != "get_attr":
            copies[node] = graph.node_copy(node, copies.__getitem__)
            if node.op == "placeholder":
                inputs.append(InputSpec(InputKind.USER_INPUT, TensorArgument(copies[node].name), None))
    for node, twin in copies.items():
        twin.meta = {**node.meta, "val": values[node]}
    return graph, inputs, outputs


def _lift_stored(module: GraphModule, graph: Graph, copies: dict[Node, Node]) -> list[InputSpec]:
    """An input for each tensor that the graph reads; `copies` gets it for every node that reads the tensor."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    buffers = {name for name, _ in module.named_buffers(remove_duplicate=False)}
    stored, inputs = dict[str, Node](), list[InputSpec]()
    for node in module.graph.nodes:
        if node.op != "get_attr":
            continue
        name = str(node.target)
        if name not in stored:
            # It becomes an argument of a function: a name that begins with a digit would be no Python.
            stored[name] = graph.placeholder(f"stored_{name.replace('.', '_')}")
            kind = InputKind.BUFFER if name in buffers else InputKind.CONSTANT_TENSOR
            kind = InputKind.PARAMETER if name in parameters else kind
            persistent = True if kind is InputKind.BUFFER else None
            inputs.append(InputSpec(kind, TensorArgument(stored[name].name), name, persistent))
        copies[node] = stored[name]
    return inputs
