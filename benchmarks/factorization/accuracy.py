"""Accuracy of decomposed networks without any training, beside plain decompositions at the same number of parameters.

    python benchmarks/factorization/accuracy.py SHARED                         # what has no row yet
    python benchmarks/factorization/accuracy.py SHARED --only 'resnet20/*'
    python benchmarks/factorization/accuracy.py SHARED --again '*/afina*'      # after a change of Afina

Every number is one JSON line in `results/accuracy.jsonl`, named NETWORK/SHARE/METHOD, where SHARE is that of the
network's parameters. Afina measures what chains do to the outputs once for each network and method, which is most of
its work and serves all shares; those seconds are in `measuring` of each row. Then `table.py` writes the page. SHARED is
a folder with `models/cifar_resnet.py`, its weights, and `data/cifar10-jpeg.zip`; VGG-11 is trained by the benchmark of
pruning, ResNet-18 by that of recipes.
"""

import time
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import product
from pathlib import Path

from peers import IMAGES, WAYS, Plain
from rows import NAMES, SHARES, Row, Rows, Subject, arguments, open_images, open_subject

from afina.graph.cost import cost_of
from afina.jobs.common.exporter import Exporter
from afina.jobs.common.subject import context_of
from afina.jobs.planning.ranks import RankPlanner
from afina.jobs.planning.targets import target_of
from afina.progress import PlainProgress
from afina.runtimes import get_runtime
from afina.techniques.context import Context
from afina.techniques.factorize import FactorizeConfig, apply, chains_with_losses, layers_of
from afina.training import evaluate

METHODS = ("auto", "spatial", "svd", "tucker", "cp")


def main() -> None:
    """Afina, and then the peers, network by network."""
    options = arguments(__doc__).parse_args()
    rows = Rows(options.only, options.skip, options.again)
    bench = Bench(options.shared)
    for network in NAMES:
        for method, share in product(METHODS, SHARES):
            rows.measure(f"{network}/{share}/afina {method}", partial(bench.ours, network, method, share))
        for way, share, norms in product(WAYS, SHARES, (False, True)):
            name = f"{network}/{share}/tensorly {way}{' norms' if norms else ''}"
            ours = rows.found.get(f"{network}/{share}/afina auto", {}).get("accuracy", 0.0)
            rows.measure(name, partial(bench.theirs, network, way, float(share), norms, ours))


@dataclass(frozen=True)
class Measured:
    """A network whose chains were measured.

    Attributes:
        subject: The network.
        context: What the technique may use.
        config: With the method.
        planner: Shares targets out.
        exporter: As the planner takes it; parameters are counted, not exported.
        seconds: What measuring took.
    """

    subject: Subject
    context: Context
    config: FactorizeConfig
    planner: RankPlanner
    exporter: Exporter
    seconds: float


class Bench:
    """What is measured.

    Args:
        shared: Folder with models and data.
    """

    def __init__(self, shared: Path) -> None:
        self._shared = shared
        self._images = lru_cache(lambda: open_images(shared))
        self._subject = lru_cache(maxsize=1)(lambda name: open_subject(name, shared, self._images()))
        self._plain = lru_cache(maxsize=1)(lambda name: Plain(self._subject(name)))
        self._measured = lru_cache(maxsize=1)(self._measure)

    def theirs(self, network: str, way: str, share: float, norms: bool, ours: float) -> Row:
        """A plain decomposition."""
        return self._plain(network).row(way, share, norms, ours)

    def ours(self, network: str, method: str, share: str) -> Row:
        """What `afina.factorize(network, data, parameters=share, method=method)` gives."""
        known = self._measured(network, method)
        subject, start = known.subject, time.monotonic()
        target = target_of(("parameters", float(share)), subject.network, known.exporter)
        config = replace(known.config, layers=known.planner.reach(target))
        result, record = apply(subject.network, config, known.context)
        seconds = time.monotonic() - start
        cost, whole = cost_of(result), cost_of(subject.network)
        return {
            "accuracy": round(evaluate(result, subject.data).value, 5),
            "original": round(subject.quality, 5),
            "parameters": round(cost.parameters / whole.parameters, 4),
            "macs": round(cost.macs / whole.macs, 4),
            "measuring": round(known.seconds, 1),
            "applying": round(seconds, 1),
            "layers": {name: " ".join(map(str, (own["form"], *own["ranks"]))) for name, own in record.layers.items()},
        }

    def _measure(self, network: str, method: str) -> Measured:
        subject = self._subject(network)
        progress = PlainProgress(every=60)
        context = context_of(subject.data, subject.network, IMAGES, 0, progress)
        config, start = FactorizeConfig(method=method), time.monotonic()
        layers, _ = layers_of(subject.network, config)
        chains = chains_with_losses(subject.network, layers, config, context)
        seconds = time.monotonic() - start
        exporter = Exporter(get_runtime("onnxruntime"), 1, 1)
        planner = RankPlanner(subject.network, layers, chains, "parameters", exporter, progress)
        return Measured(subject, context, config, planner, exporter, seconds)


if __name__ == "__main__":
    main()
