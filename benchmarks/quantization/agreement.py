"""How far quantized networks at 224 pixels agree with themselves in float, beside peers on the same 512 images.

    python benchmarks/quantization/agreement.py SHARED
    python benchmarks/quantization/agreement.py SHARED --only 'vit_tiny/*'

Rows in `results/agreement.jsonl`, named NETWORK/BITS/METHOD/RUNTIME. Top-1 agreement, and the signal-to-noise ratio of
the outputs in dB, on 256 images that nobody calibrated on. There are neither labels nor trained weights: `subjects.py`
says what the random weights are, and what they do not show. Then `table.py` writes the page.
"""

from functools import partial

from judging import RUNTIMES, Case, of, of_afina, of_file, of_module
from peers import FILES, MODULES, WEIGHT_FILES, WEIGHT_MODULES
from rows import Rows, arguments
from subjects import LARGE, TRANSFORMERS

BITS = ("W8A8", "W4A8")
OURS = {bits: {"weight_type": f"int{bits[1]}", "activation_type": "int8"} for bits in BITS}
BLOCK = {"weight_type": "int4", "activation_type": "none", "granularity": "block:32"}


def main() -> None:
    """Peers first, then Afina, network by network."""
    options = arguments(__doc__).parse_args()
    rows = Rows("agreement", options.only, options.skip, options.again)
    for network in LARGE:
        for bits, method, runtime, measure in cases(network):
            rows.measure(f"{network}/{bits}/{method}/{runtime}", partial(of, network, options.shared, measure, 0))


def cases(network: str) -> list[Case]:
    """All rows of one network: bits, method, runtime, and a function of a subject and a seed."""
    found: list[Case] = []
    alone = network in TRANSFORMERS
    modules = {**{bits: MODULES[bits] for bits in BITS}, "W4": WEIGHT_MODULES if alone else {}}
    files = {**{bits: FILES[bits] for bits in BITS}, "W4": WEIGHT_FILES if alone else {}}
    for bits, builders in modules.items():
        found += [(bits, method, "torch", partial(of_module, build)) for method, build in builders.items()]
    for bits, makers in files.items():
        found += [
            (bits, method, runtime, partial(of_file, make, runtime, f"{bits}-{method}"))
            for method, (runtime, make) in makers.items()
        ]
    for runtime in RUNTIMES:
        found += [(bits, "afina", runtime, partial(of_afina, OURS[bits], runtime, f"{bits}-afina")) for bits in BITS]
        found.append(("auto", "afina", runtime, partial(of_afina, {"plan": "auto"}, runtime, "auto-afina")))
        if alone:
            found.append(("W4", "afina block:32", runtime, partial(of_afina, BLOCK, runtime, "W4-afina-block-32")))
    return found


if __name__ == "__main__":
    main()
