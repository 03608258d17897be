"""A description of this machine, which is stored with every number that was measured on it."""

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from afina.capacity import available_cores

_LIBRARIES = (
    "afina",
    "torch",
    "torchao",
    "torchvision",
    "timm",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "numpy",
)
_CPU_FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "amx_bf16",
    "avx512_bf16",
    "asimddp",
    "i8mm",
)


def describe_machine(threads: int) -> dict[str, Any]:
    """Processor, its vector units, cores, threads used, memory (bytes), system and library versions.

    Example:
        >>> sorted(describe_machine(threads=2))
        ['cores', 'features', 'memory', 'processor', 'python', 'system', 'threads', 'versions']
    """
    import psutil

    return {
        "processor": processor(),
        "features": list(cpu_features()),
        "cores": available_cores(),
        "threads": threads,
        "memory": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": library_versions(),
    }


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide a result, of those that are installed."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def processor() -> str:
    """The processor's name as the system gives it."""
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_features() -> tuple[str, ...]:
    """The vector units that matter for int8 and bf16, of those that the processor has (Linux; empty elsewhere)."""
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            flags = set(line.partition(":")[2].split())
            return tuple(name for name in _CPU_FEATURES if name in flags)
    return ()


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
