"""What this processor's int8 instructions can hold."""

import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Literal

_DOT_PRODUCT = ("avx_vnni", "avx512_vnni", "avx512vnni", "amx_int8")


def int8_weight_bits() -> Literal[7, 8]:
    """The bits that int8 weights may use on this processor without overflow in its kernels: 7 or 8.

    x86 without VNNI multiplies unsigned activations by signed weights with `vpmaddubsw`, which adds two products in
    16 signed bits and saturates: 2 x 255 x 127 = 64770 is more than 32767, 2 x 255 x 63 = 32130 is not. ONNX Runtime
    and OpenVINO both use it. Measured on an AVX2 machine with a trained ResNet-20: with 8-bit weights the file's
    outputs are 16 dB (ONNX Runtime) and 15 dB (OpenVINO) above their difference to the exact answer, with 7 bits 36
    and 34 dB. VNNI, AMX and ARM accumulate in 32 bits: 8. A processor that cannot be asked counts as one without VNNI.
    """
    machine = platform.machine().lower()
    if machine in ("arm64", "aarch64"):
        return 8
    return 8 if any(flag in _flags() for flag in _DOT_PRODUCT) else 7


@cache
def _flags() -> frozenset[str]:
    """The instruction sets of this processor, in lower case, as the system names them."""
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.features", "machdep.cpu.leaf7_features"]
        try:
            text = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
        except (OSError, subprocess.TimeoutExpired):
            return frozenset()
        return frozenset(text.lower().split())
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), []))
