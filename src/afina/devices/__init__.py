"""The machine that this process runs on: what it is, and what exported files take on it.

`machine` describes its processor, memory and libraries.
`timing` measures latency and memory of a file in a fresh process, whose program is `worker`. Importing this package
imports neither torch nor any runtime's library.
"""

from afina.devices.machine import describe_machine
from afina.devices.timing import measure_latency, measure_memory

__all__ = ["describe_machine", "measure_latency", "measure_memory"]
