"""Recurrent layers whose shapes are followed: as one step, where torch unrolls them.

`torch.ops.aten.lstm` and its kin are one node in a graph, but torch has no rule for the shapes that they give. On
tensors without data it breaks them up into their steps, several operators for each column of a picture and each
direction, and follows every one of those: most of the time that the export of a text reader takes. What comes out
depends on sizes alone, so it is said here in one line.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._subclasses.fake_tensor import is_fake

_aten = torch.ops.aten
LSTM, GRU = _aten.lstm.input, _aten.gru.input
_ALL = (LSTM, GRU, _aten.rnn_tanh.input, _aten.rnn_relu.input)
_KEYS = (DispatchKey.CompositeImplicitAutograd, DispatchKey.Autograd)  # where torch keeps the way to break them up


@contextlib.contextmanager
def recurrent_as_one(ops: Sequence[Any] = _ALL) -> Iterator[None]:
    """A `with` block in which the shapes of recurrent layers are followed in one step.

    Only tensors without data are answered so; a layer of real tensors computes as ever. The block is not for code that
    wants these `ops` broken up: it would get nothing.

    Example:
        >>> from torch._subclasses.fake_tensor import FakeTensorMode
        >>> from torch._dispatch.python import enable_python_dispatcher
        >>> layer = torch.nn.LSTM(3, 5, bidirectional=True, batch_first=True)
        >>> mode = FakeTensorMode(allow_non_fake_inputs=True)
        >>> with recurrent_as_one(), mode, enable_python_dispatcher(), torch.no_grad():
        ...     output, (hidden, cell) = layer(torch.empty(2, 7, 3))
        >>> tuple(output.shape), tuple(hidden.shape)
        ((2, 7, 10), (2, 2, 5))
    """
    before = [(op, key, op.py_kernels[key]) for op in ops for key in _KEYS if key in op.py_kernels]
    for op, key, unrolled in before:
        _set(op, key, functools.partial(_by_sizes, unrolled))
    try:
        yield
    finally:
        for op, key, unrolled in before:
            _set(op, key, unrolled)


def _set(op: Any, key: DispatchKey, kernel: Callable[..., Any]) -> None:
    op.py_kernels[key] = kernel
    op._dispatch_cache.clear()


def _by_sizes(unrolled: Callable[..., Any], input: Tensor, hx: Any, params: Any, *options: Any) -> tuple[Tensor, ...]:
    """What a layer gives: `[..., directions * units]` for an input `[..., values]`, and the states it ends in.

    `hx` is the state that it begins with, `[layers * directions, N, units]`; of an LSTM two of them.
    """
    if not is_fake(input):
        return unrolled(input, hx, params, *options)  # type: ignore[no-any-return]
    states = hx if isinstance(hx, (list, tuple)) else [hx]
    *_, bidirectional, _ = options
    directions = 2 if bidirectional else 1
    output = input.new_empty((*input.shape[:-1], directions * states[0].shape[-1]))
    return (output, *(state.new_empty(state.shape) for state in states))
