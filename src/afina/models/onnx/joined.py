"""Nodes that are one layer in a network: a product with a weight and the bias that is added behind it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from afina.models.onnx.file import Step


def join_layers(steps: Sequence[Step], arrays: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[Step]:
    """The steps, with `MatMul` by a matrix and `Add` of a vector behind it as `Linear`.

    Example:
        >>> weight, bias = np.ones((3, 2)), np.ones(2)
        >>> product, total = Step("p", "MatMul", ("x", "w"), ("y",)), Step("t", "Add", ("b", "y"), ("z",))
        >>> [step.operator for step in join_layers([product, total], {"w": weight, "b": bias}, ["z"])]
        ['Linear']
    """
    uses = Counter(name for step in steps for name in step.inputs) + Counter(outputs)
    products = {
        step.outputs[0]: step
        for step in steps
        if step.operator == "MatMul" and len(step.inputs) == 2 and step.inputs[1] in arrays
        and arrays[step.inputs[1]].ndim == 2 and step.inputs[0] not in arrays and uses[step.outputs[0]] == 1
    }  # fmt: skip
    joined, gone = [], set[str]()
    for step in steps:
        if step.operator == "Add" and len(step.inputs) == 2:
            bias, product = sorted(step.inputs, key=lambda name: name not in arrays)
            known = products.get(product)
            if known is not None and bias in arrays and arrays[bias].shape == arrays[known.inputs[1]].shape[1:]:
                gone.add(product)
                step = replace(known, operator="Linear", inputs=(*known.inputs, bias), outputs=step.outputs)
        joined.append(step)
    return [step for step in joined if step.operator != "MatMul" or step.outputs[0] not in gone]
