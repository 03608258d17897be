"""Which images tell the best method for ranges: those that the ranges were found on, or others.

    python benchmarks/quantization/choosing.py SHARED

Rows in `results/choosing.jsonl`, named NETWORK/SEED. Every method gives ranges to all activations; the noise of the
network's outputs is compared on the first 16 and 64 calibration images (`seen`), on as many that were held out
(`held out`), and on validation images. A row says by what factor the method that looks best on each set is noisier, on
the validation images, than the one that is best there; the mean of that is printed (`--only none`: of what is there).
"""

from collections.abc import Callable
from functools import partial
from statistics import geometric_mean

import torch
from rows import Row, Rows, arguments
from subjects import CIFAR, Subject, open_subject
from torch import Tensor

from afina.graph.statistics import Effect
from afina.runtimes import get_runtime
from afina.techniques.context import Context
from afina.techniques.quantize import QuantizeConfig, Source
from afina.techniques.quantize.prepared import Prepared
from afina.techniques.quantize.ranges import METHODS

NETWORKS = ("resnet20", "resnet56", "resnet18", "mobilenet_v2")
_SEEDS = (0, 1, 2)
_SETS = ("seen 16", "seen 64", "held out 16", "held out 64")
_HELD_OUT, _FIT = 64, 192
_JUDGED = {True: 1024, False: 160}


def main() -> None:
    """Each network with each seed."""
    options = arguments(__doc__).parse_args()
    rows = Rows("choosing", options.only, options.skip, options.again)
    for name in NETWORKS:
        for seed in _SEEDS:
            if rows.wanted(f"{name}/{seed}"):
                rows.measure(f"{name}/{seed}", partial(measure, open_subject(name, options.shared), seed))
    print({kind: round(_mean(rows, kind), 3) for kind in (*_SETS, "mse")})


def _mean(rows: Rows, kind: str) -> float:
    """The geometric mean of the ratios of one set of images, or of one method for all networks."""
    judged = [row["noise"]["judged"] for row in rows.found.values()]
    fixed = [noise[kind] / min(noise.values()) for noise in judged] if kind in METHODS else []
    return geometric_mean(fixed or [row["ratio"][kind] for row in rows.found.values()])


def measure(subject: Subject, seed: int) -> Row:
    """How much worse than the best the choice on each set of images is."""
    images = torch.cat(list(subject.calibration(seed, _FIT + _HELD_OUT)))
    fit, rest = images[:_FIT], images[_FIT:]
    runtime = get_runtime("onnxruntime")
    config = QuantizeConfig(policy=runtime.policy(), calibration="mse", rounding="nearest")
    prepared = Prepared(Source.of(subject.network), config)
    prepared.watch(Context(calibration=lambda: iter(fit.split(32)), images=len(fit)))
    sets = dict(zip(_SETS, (fit[:16], fit[:64], rest[:16], rest), strict=True))
    found = _noises(prepared, {**sets, "judged": _validation(subject)})
    best = min(found["judged"].values())
    return {
        "noise": found,
        "ratio": {name: found["judged"][min(found[name], key=found[name].__getitem__)] / best for name in sets},
    }


def _noises(prepared: Prepared, sets: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Noise of the outputs for each set of images and each method."""
    effects: dict[str, Callable[..., float]] = {
        name: Effect(prepared.network, images).of for name, images in sets.items()
    }
    found: dict[str, dict[str, float]] = {name: {} for name in sets}
    for edge in prepared.activations.values():
        edge.on = True
    for method in METHODS:
        for edge in prepared.activations.values():
            edge.choose(method)
        for name, effect in effects.items():
            found[name][method] = effect(prepared.network)
    return found


def _validation(subject: Subject) -> Tensor:
    limit = _JUDGED[subject.name in CIFAR]
    batches = subject.data.batches("validation", subject.network.input, batch_size=32, limit=limit)
    return torch.cat([images for images, _ in batches])


if __name__ == "__main__":
    main()
