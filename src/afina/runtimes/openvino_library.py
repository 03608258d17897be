"""OpenVINO's Python library, imported without the package that reports its use."""

import sys
from importlib import import_module
from typing import Any

_REPORTS = "openvino_telemetry"


def openvino() -> Any:
    """The module `openvino`.

    By itself it tells its maker over the network that it was imported, from a forked process, and again with each
    conversion. Where it was not imported before, it is imported here as if the package that does so were not installed.
    """
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    before = {_REPORTS: sys.modules[_REPORTS]} if _REPORTS in sys.modules else {}
    sys.modules[_REPORTS] = None  # type: ignore[assignment]
    try:
        return import_module("openvino")
    finally:
        del sys.modules[_REPORTS]
        sys.modules.update(before)
