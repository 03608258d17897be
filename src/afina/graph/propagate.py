"""The shapes of all tensors in a graph, computed anew: those stored in the graph go stale when it is rewritten."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from afina.errors import Unsupported
from afina.graph.recurrent import recurrent_as_one
from afina.graph.stored import attribute

if TYPE_CHECKING:
    from afina.graph.network import Network


def fake_values(module: GraphModule, shape: tuple[int, ...]) -> dict[Node, Any]:
    """The values of all nodes for an input of `shape` (batch first), as tensors without data; nothing is computed.

    Raises:
        Unsupported: a node cannot be run on shapes alone, or not on this shape.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        example = torch.empty(shape)
    return _run(module, mode, example)


def output_shapes(network: "Network", batch: int = 1) -> dict[str, tuple[int, ...]]:
    """The shape of each output of a network, by its name, for so many images (or those that it is fixed to).

    Raises:
        Unsupported: as `fake_values`.
    """
    with network.inference():
        values = fake_values(network.module, (network.traced_batch(batch), *network.input.shape))
    given = next(values[node] for node in network.graph.nodes if node.op == "output")
    return {name: tuple(map(int, value.shape)) for name, value in network.named(given).items()}


def current_values(module: GraphModule) -> dict[Node, Any]:
    """The values of all nodes as tensors without data, for the batch size that the graph has (a symbol).

    Raises:
        Unsupported: a node cannot be run on shapes alone.
    """
    example = next(node for node in module.graph.nodes if node.op == "placeholder").meta["val"]
    return _run(module, example.fake_mode, example)


def refresh_meta(module: GraphModule) -> None:
    """Write the shapes that each node has now into its `meta["val"]`."""
    for node, value in current_values(module).items():
        if node.op != "output" and "val" in node.meta:
            node.meta["val"] = value


def _run(module: GraphModule, mode: FakeTensorMode, example: Tensor) -> dict[Node, Any]:
    """The values of all nodes for the input `example`, in the given mode. Raises `Unsupported`."""
    values: dict[Node, Any] = {}
    # Some ops follow symbolic sizes only by their Python decompositions, as in a capture.
    with mode, torch.no_grad(), enable_python_dispatcher(), recurrent_as_one(), _unguarded(mode):
        for node in module.graph.nodes:
            try:
                values[node] = _value(module, mode, node, example, values.__getitem__)
            except Exception as error:
                message = str(error).strip() or type(error).__name__
                raise Unsupported(
                    f"The shapes in the network cannot be followed through {node.target} (node {node.name}).",
                    why=f"It says: {message.splitlines()[0]}",
                    fix="Rewrite the part of the model whose shapes depend on the values of the data.",
                ) from error
    return values


def _value(
    module: GraphModule, mode: FakeTensorMode, node: Node, example: Tensor, value_of: Callable[[Node], Any]
) -> Any:
    if node.op == "placeholder":
        return example
    if node.op == "get_attr":
        value = attribute(module, str(node.target))
        return mode.from_tensor(value, static_shapes=True) if isinstance(value, Tensor) else value
    args, kwargs = map_arg(node.args, value_of), map_arg(node.kwargs, value_of)
    if node.op == "output":
        return args[0]
    if node.op == "call_module":
        return attribute(module, str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


@contextlib.contextmanager
def _unguarded(mode: FakeTensorMode) -> Iterator[None]:
    """Following shapes must leave no new guards on the symbol of the batch size."""
    if mode.shape_env is None:
        yield
        return
    with mode.shape_env.suppress_guards():
        yield
