"""How torch.onnx is called: without its warnings about itself, and with its table of operators filled once."""

import contextlib
import functools
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from afina.graph.recurrent import GRU, LSTM, recurrent_as_one

_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")
_MODULES = (r"torch\..*", r"onnxscript\..*", r"onnx_ir\..*", r"copyreg", r"ast")


@contextlib.contextmanager
def torch_onnx() -> Iterator[None]:
    """A `with` block in which torch.onnx is silent about deprecations in itself and about ops that it does not know.

    Recurrent layers that ONNX has an operator for are one step in it; a plain RNN torch.onnx breaks up.

    In it the table of operators is filled once: to fill it anew for each of the dozens of files that a job exports
    takes a second each, which is most of the time that the export of a small network takes.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), _cached_operators(), recurrent_as_one((LSTM, GRU)):
            for module in _MODULES:
                warnings.filterwarnings("ignore", module=module)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _cached_operators() -> Iterator[None]:
    """A `with` block in which torch.onnx fills its table of operators once, and reads that again afterwards.

    Outside of it a new table is filled for each export, as ever: other code may add operators to the one that it gets.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:  # no public name; without it, exports are as correct, and slower
        yield
        return
    original = ONNXRegistry.__dict__["from_torchlib"]
    cached = functools.partial(_filled_table, ONNXRegistry.from_torchlib)
    ONNXRegistry.from_torchlib = staticmethod(cached)  # type: ignore[method-assign]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = original  # type: ignore[method-assign]


@functools.cache
def _filled_table(fill: Callable[..., Any], **options: Any) -> Any:
    # The table has only operators that torch knows when it is filled, and those of quantized networks are known after
    # this import: without it a float network that is exported first leaves a table that knows none of them.
    import torch.ao.quantization.fx._decomposed  # noqa: F401

    return fill(**options)
