"""Where networks are deployed: one module per runtime, each able to export, load and run.

`base` is the contract and `table` finds a runtime; `onnx_file` makes the ONNX model that two of them start from;
`judge` compares a file with its network and with the labels.
Importing this package imports neither torch nor any runtime's library.
"""

from afina.runtimes.base import Runtime, Session
from afina.runtimes.cpu import int8_weight_bits
from afina.runtimes.judge import check_parity, judge_quality, outputs_of_file, parity
from afina.runtimes.table import RUNTIMES, get_runtime, read_metadata, runtime_of

__all__ = [
    "RUNTIMES",
    "Runtime",
    "Session",
    "check_parity",
    "get_runtime",
    "int8_weight_bits",
    "judge_quality",
    "outputs_of_file",
    "parity",
    "read_metadata",
    "runtime_of",
]
