"""The few ways in which the graph of an ONNX file is edited here."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir


def constant(value: "ir.Value | None") -> Any:
    """The value as a numpy array where it is a constant, else None."""
    import onnx_ir as ir

    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else tensor.numpy()


def new_constant(graph: "ir.Graph", name: str, array: Any) -> "ir.Value":
    """A constant of the graph (an initializer), added under a name that no other value has."""
    import onnx_ir as ir

    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def replace(graph: "ir.Graph", node: "ir.Node", result: "ir.Value") -> None:
    """Put `result` in the place of the node's only output, as an output of the graph too."""
    import onnx_ir as ir

    old = node.outputs[0]
    result.type, result.shape = old.type, old.shape
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
