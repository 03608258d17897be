"""Accuracy of quantized ResNet-20 and ResNet-56 on the test images of CIFAR, beside peers on the same 512 images.

    python benchmarks/quantization/accuracy.py SHARED                        # what has no row yet
    python benchmarks/quantization/accuracy.py SHARED --only 'resnet20/W4A8/*'
    python benchmarks/quantization/accuracy.py SHARED --skip '*/afina*'      # peers alone
    python benchmarks/quantization/accuracy.py SHARED --again '*/afina*'     # after a change of Afina
    python benchmarks/quantization/accuracy.py SHARED --seeds 0 1 2          # other calibration images

Every number is one JSON line in `results/accuracy.jsonl`, named NETWORK/BITS/METHOD/RUNTIME/SEED. BITS are those of
weights and activations (W4A8; W4: weights alone). The exported file is judged, by its runtime; what torchao makes has
no file, and is run by torch. Then `table.py` writes the page. Peers: `pip install nncf==3.4.0`.
"""

from functools import partial

from judging import RUNTIMES, Case, of, of_afina, of_file, of_module
from peers import FILES, MODULES
from rows import Rows, arguments
from subjects import CIFAR

ACTIVATIONS = {"A8": "int8", "A4": "int4", "": "none"}
# Afina's rows: bits, and epochs of training.
OURS: tuple[tuple[str, int], ...] = (
    *((bits, 0) for bits in ("W8A8", "W4A8", "W3A8", "W2A8", "W4", "W3")),
    ("W4A4", 2),
    ("W2A8", 2),
)


def main() -> None:
    """Peers first, then Afina, network by network."""
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the calibration images")
    options = parser.parse_args()
    rows = Rows("accuracy", options.only, options.skip, options.again)
    for network in CIFAR:
        for seed in options.seeds:
            for bits, method, runtime, measure in cases():
                name = f"{network}/{bits}/{method}/{runtime}/{seed}"
                rows.measure(name, partial(of, network, options.shared, measure, seed))


def cases() -> list[Case]:
    """All rows of one network: bits, method, runtime, and a function of a subject and a seed."""
    found: list[Case] = []
    for bits, builders in MODULES.items():
        found += [(bits, method, "torch", partial(of_module, build)) for method, build in builders.items()]
    for bits, makers in FILES.items():
        found += [
            (bits, method, runtime, partial(of_file, make, runtime, f"{bits}-{method}"))
            for method, (runtime, make) in makers.items()
        ]
    for (bits, epochs), runtime in ((case, runtime) for case in OURS for runtime in RUNTIMES):
        method = f"afina qat {epochs}" if epochs else "afina"
        asked = {"weight_type": f"int{bits[1]}", "activation_type": ACTIVATIONS[bits[2:]], "qat": epochs}
        found.append((bits, method, runtime, partial(of_afina, asked, runtime, f"{bits}-{method}")))
    return found


if __name__ == "__main__":
    main()
