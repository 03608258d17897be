"""What follows the choice of boxes (`NonMaxSuppression`) is cut off a file, and kept: a tail in ONNX of its own.

    images -> network -> boxes, scores -> | NonMaxSuppression -> Gather -> ... -> detections
                                          cut

How many boxes are left depends on the images, so that nothing behind the cut can be trained or pruned. The part before
it is the network, whose outputs are what the tail reads; `runtimes.tail` puts the tail behind an exported file again.
"""

import json
from pathlib import Path
from typing import Any

from afina.errors import Unsupported
from afina.models.onnx.file import OnnxGraph, Step
from afina.types.metadata import TAIL_OUTPUTS_KEY

_CHOOSES = "NonMaxSuppression"
# Sizes: they are computed again in the tail, from what it reads.
_SIZES = frozenset("Shape Size Gather Unsqueeze Squeeze Concat Cast Slice Mul Div Add Sub".split())


def without_tail(graph: OnnxGraph) -> tuple[OnnxGraph, bytes]:
    """The part of a file before boxes are chosen, and the rest as an ONNX file; empty bytes where there is no rest.

    Raises:
        Unsupported: what the rest reads cannot be told apart.
    """
    chosen = {name for step in graph.steps if step.operator == _CHOOSES for name in step.outputs}
    if not chosen:
        return graph, b""
    tail = _depending(graph.steps, chosen)
    known = {*graph.weights, *graph.constants}
    makers = {name: step for step in graph.steps for name in step.outputs}
    needed, read = list[str](), [name for step in tail for name in step.inputs]
    made = {name for step in tail for name in step.outputs}
    sizes: list[Step] = []
    while read:
        name = read.pop(0)
        if not name or name in known or name in made or name in needed:
            continue
        maker = makers.get(name)
        if maker is not None and maker.operator in _SIZES and _is_size(maker, makers):
            sizes.append(maker)
            made.update(maker.outputs)
            read.extend(maker.inputs)
        else:
            needed.append(name)
    if not needed or graph.input in needed:
        raise Unsupported(
            f"{graph.path} chooses boxes from what is no output of layers.",
            fix="Export the network without the choice of boxes (without NMS).",
        )
    read = list(needed)
    needed += [name for name in graph.outputs if name not in made and name not in needed]
    gone = {id(step) for step in tail}
    head = tuple(step for step in graph.steps if id(step) not in gone)
    names = {name for step in (*tail, *sizes) for name in step.outputs if name}
    return graph.with_steps(head, tuple(needed)), _tail_model(graph.path, names, read, graph.outputs)


def _depending(steps: tuple[Step, ...], start: set[str]) -> list[Step]:
    """The steps that give the values `start`, or that depend on them."""
    reached, found = set(start), []
    for step in steps:
        if reached & {*step.inputs, *step.outputs}:
            reached.update(step.outputs)
            found.append(step)
    return found


def _is_size(step: Step, makers: dict[str, Step]) -> bool:
    """Whether a step computes sizes: all that it rests on begins with `Shape`."""
    if step.operator in ("Shape", "Size"):
        return True
    before = [makers[name] for name in step.inputs if name in makers]
    return bool(before) and all(each.operator in _SIZES and _is_size(each, makers) for each in before)


def _tail_model(path: Path, names: set[str], inputs: list[str], outputs: tuple[str, ...]) -> bytes:
    """The nodes that give these values as a file of its own."""
    import onnx

    model = onnx.load(path)
    nodes = [node for node in model.graph.node if set(node.output) & names]
    read = {name for node in nodes for name in node.input}
    constants = [n for n in model.graph.node if n.op_type == "Constant" and n.output[0] in read]
    known: dict[str, Any] = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    floats = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [*constants, *nodes],
        "tail",
        [known.get(name) or onnx.helper.make_tensor_value_info(name, floats, None) for name in inputs],
        [value for value in model.graph.output if value.name in names],
        [tensor for tensor in model.graph.initializer if tensor.name in read],
    )
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.SetInParent()  # which the checker of onnx insists on, known or not
    whole = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    onnx.helper.set_model_props(whole, {TAIL_OUTPUTS_KEY: json.dumps(outputs)})
    return bytes(whole.SerializeToString())
