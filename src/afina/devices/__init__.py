"""Where files are timed, and what is known of it: today this machine; profiles and remote devices have their room here.

`machine` says what this machine is; `timing` measures a file's latency and memory in a fresh process (`worker`).
Importing this package imports neither torch nor any runtime's library.
"""

from afina.devices.machine import available_cores, describe_machine
from afina.devices.timing import measure_latency, measure_memory

__all__ = ["available_cores", "describe_machine", "measure_latency", "measure_memory"]
