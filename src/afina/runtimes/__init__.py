"""Where networks are deployed: one module per runtime, each able to export, load and run.

`base` is the contract, `policy` says where a runtime likes integers, and `table` looks runtimes up; `onnx_file` makes
the ONNX model that two of them start from; `parity` compares a file with its network, and `quality` with the labels.
Importing this package imports neither torch nor any runtime's library.
"""

from afina.runtimes.base import Runtime, Session
from afina.runtimes.cpu import int8_weight_bits
from afina.runtimes.parity import check_parity, relative_difference
from afina.runtimes.policy import IntegerPolicy
from afina.runtimes.quality import measure_drop, measure_quality, outputs_of_file
from afina.runtimes.table import RUNTIMES, formats, get_runtime, read_metadata, runtime_of, runtime_of_format

__all__ = [
    "RUNTIMES",
    "IntegerPolicy",
    "Runtime",
    "Session",
    "check_parity",
    "formats",
    "get_runtime",
    "int8_weight_bits",
    "measure_drop",
    "measure_quality",
    "outputs_of_file",
    "read_metadata",
    "relative_difference",
    "runtime_of",
    "runtime_of_format",
]
