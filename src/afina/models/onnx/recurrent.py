"""Recurrent layers of ONNX as torch's: one node each, with the gates in torch's order."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from afina.models.onnx.calls import Call, operator

# The places of ONNX's gates in torch's order: i, f, g, o of i, o, f, c; r, z, n of z, r, h.
_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
_DEFAULTS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"]}


@operator("LSTM", "GRU", "RNN")
def recurrent(call: Call) -> tuple[Tensor, ...]:
    """All steps of a layer in one direction or both; gives all outputs, and the states that it ends in."""
    kind, way = call.step.operator, call.attribute("direction", "forward")
    _check_form(call, kind)
    x = call.tensor(0)
    batch_first = bool(call.attribute("layout", 0))
    x = x.transpose(0, 1) if batch_first else x
    x = x.flip(0) if way == "reverse" else x
    directions = 2 if way == "bidirectional" else 1
    states = _states(call, x, directions, batch_first)
    weights = _weights(call, kind, directions)
    options = (call.has(3), 1, 0.0, False, directions == 2, False)
    if kind == "LSTM":
        output, *ends = torch._VF.lstm(x, states, weights, *options)
    else:
        function = "gru" if kind == "GRU" else f"rnn_{_activations(call)[0]}"
        output, *ends = getattr(torch._VF, function)(x, states[0], weights, *options)
    output = output.unflatten(2, (directions, -1)).transpose(1, 2)  # [steps, directions, N, units]
    output = output.flip(0) if way == "reverse" else output
    if batch_first:
        output, ends = output.permute(2, 0, 1, 3), [end.transpose(0, 1) for end in ends]
    return (output, *ends)


def _activations(call: Call) -> list[str]:
    return [str(name).lower() for name in call.attribute("activations", ["Tanh"])]


def _check_form(call: Call, kind: str) -> None:
    """Raise `Unsupported` for forms that torch's layers do not have."""
    ways = 2 if call.attribute("direction", "forward") == "bidirectional" else 1
    expected = _DEFAULTS.get(kind)
    if expected is not None and "activations" in call.step.attributes and _activations(call) != expected * ways:
        raise call.refuse("Its activations are not the usual ones.")
    if kind == "RNN" and (len(set(_activations(call))) > 1 or _activations(call)[0] not in ("tanh", "relu")):
        raise call.refuse("Its activations are not the usual ones.")
    if kind == "GRU" and not call.attribute("linear_before_reset", 0):
        raise call.refuse(
            "It resets before its product (linear_before_reset is 0), and torch's layer resets behind it."
        )
    if call.attribute("clip") or call.attribute("input_forget", 0) or call.has(7):
        raise call.refuse("It cuts off its cells, joins its gates or lets them see the cells.")
    if call.has(4) and not (call.is_known(4) and (call.known(4) == call.tensor(0).shape[0]).all()):
        raise call.refuse("Its sequences differ in length.")


def _states(call: Call, x: Tensor, directions: int, batch_first: bool) -> list[Tensor]:
    """The states that it begins with, `[directions, N, units]`: those of the file for each image, or zeros."""
    units, count = int(call.attribute("hidden_size")), x.shape[1]
    states = []
    for place in (5, 6):
        if not call.has(place):
            states.append(x.new_zeros(directions, count, units))
            continue
        state = call.tensor(place)
        state = state.transpose(0, 1) if batch_first else state
        states.append(state.expand(directions, count, units) if state.shape[1] == 1 else state)
    return states


def _weights(call: Call, kind: str, directions: int) -> list[Tensor]:
    """Weights and biases in the order of torch's layer: for each direction of inputs, of states, two biases."""
    flat = []
    for direction in range(directions):
        parts = [("input", call.known(1)[direction]), ("state", call.known(2)[direction])]
        if call.has(3):
            biases = np.split(call.known(3)[direction], 2)
            parts += [("input_bias", biases[0]), ("state_bias", biases[1])]
        for word, part in parts:
            source = call.step.inputs[3 if "bias" in word else 1 if word == "input" else 2]
            flat.append(_stored(call, f"{source}_{word}{'_reverse' * direction}", part, kind))
    return flat


def _stored(call: Call, name: str, part: Any, kind: str) -> Tensor:
    gates = np.split(part, len(_GATES[kind]))
    return call.module.stored(name, np.concatenate([gates[i] for i in _GATES[kind]]), weight=True)
