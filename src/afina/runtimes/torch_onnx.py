"""How torch.onnx is called: silent about its own insides, and with its operators read once."""

import contextlib
import functools
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")
_MODULES = (r"torch\..*", r"onnxscript\..*", r"onnx_ir\..*", r"copyreg", r"ast")


@contextlib.contextmanager
def torch_onnx() -> Iterator[None]:
    """For the length of a `with` block torch.onnx says nothing of deprecations in itself or of ops it does not know.

    And it keeps the table of its operators: to fill that anew for each of the dozens of files that a job exports takes
    a second, which is most of what the export of a small network takes.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), _kept_operators():
            for module in _MODULES:
                warnings.filterwarnings("ignore", module=module)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _kept_operators() -> Iterator[None]:
    """Only here: whoever calls torch.onnx otherwise may add operators to the table that it gets."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:  # no public name; without it, exports are as correct, and slower
        yield
        return
    own = ONNXRegistry.__dict__["from_torchlib"]
    kept = functools.partial(_filled, ONNXRegistry.from_torchlib)
    ONNXRegistry.from_torchlib = staticmethod(kept)  # type: ignore[method-assign]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = own  # type: ignore[method-assign]


@functools.cache
def _filled(fill: Callable[..., Any], **options: Any) -> Any:
    return fill(**options)
