"""Accuracy of pruned networks at the same cost, beside peers: without training, after one epoch, sparse; and latency.

    python benchmarks/pruning/accuracy.py SHARED                     # what has no row yet; a stopped run goes on
    python benchmarks/pruning/accuracy.py SHARED --only 'prune/resnet20/*'
    python benchmarks/pruning/accuracy.py SHARED --again 'prune/*/afina*' # after a change of Afina
    python benchmarks/pruning/accuracy.py SHARED --table             # only results/accuracy.md, from the rows

Every number is one JSON line in `results/accuracy.jsonl`, named PART/NETWORK/TARGET/METHOD; the last of a name counts.
Peers: `pip install torch-pruning==1.6.1`. SHARED is a folder with `models/cifar_resnet.py`, its weights, and
`data/cifar10-jpeg.zip`; the other networks are trained once, and kept with what Afina prunes in `runs/pruning`.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import lru_cache
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

from accuracy_table import write_table
from peers import IMPORTANCES, TorchPruning, sparsifiers
from subjects import NAMES, STREAMS, Subject, open_images, open_subject

from afina.capacity import available_cores
from afina.devices import measure_latency
from afina.devices.machine import processor
from afina.graph import Network, capture
from afina.graph.cost import cost_of
from afina.jobs.prune import prune
from afina.progress import PlainProgress
from afina.runtimes import get_runtime
from afina.training import FitConfig, evaluate, fit

HERE = Path(__file__).parent
ROWS, PAGE = HERE / "results" / "accuracy.jsonl", HERE / "results" / "accuracy.md"
RUNS = HERE.parents[1] / "runs" / "pruning"
PARTS = ("prune", "finetune", "sparsify", "latency")
TARGETS, SPARSITIES = ("0.7", "0.5", "0.35"), ("0.5", "0.7", "0.9", "2:4")
RUNTIMES = ("onnxruntime", "openvino")
OURS = "afina fit"
# Ways of Afina: as it is, and with the whole blocks of channels that kernels like.
WAYS: dict[str, dict[str, int]] = {OURS: {}, f"{OURS} multiple 8": {"multiple": 8}}
LIBRARIES = ("afina", "torch", "torchvision", "torch-pruning", "onnxruntime", "openvino")
# A peer that is so far below Afina on the first images is not run on the others.
SAMPLE, FAR = 2000, 0.05
# One epoch, taught by the original: as `afina prune --finetune 1` trains, and more gently; the same for the peers.
RATES = {"finetune": 0.05, "finetune-gently": 0.01}
TUNED = ("resnet20", "vgg11")

Row = dict[str, Any]


def main() -> None:
    """Measure what is asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="folder with models/ and data/")
    parser.add_argument("--only", default="*", help="names of rows, as in 'prune/resnet20/*'")
    parser.add_argument("--again", default="", help="names of rows that are measured again")
    parser.add_argument("--table", action="store_true", help="only write results/accuracy.md")
    options = parser.parse_args()
    if not options.table:
        bench = Bench(options.shared, options.only, options.again)
        for part in PARTS:
            for network in NAMES:
                getattr(bench, part)(network)
    write_table(PAGE, read_rows())


def read_rows() -> dict[str, Row]:
    """The last row of each name."""
    lines = ROWS.read_text().splitlines() if ROWS.is_file() else []
    return {row["name"]: row for row in map(json.loads, lines)}


class Bench:
    """What is measured, row by row.

    Args:
        shared: Folder with models and data.
        only: Pattern of the rows that are wanted.
        again: Pattern of the rows that are wanted although they are there.
    """

    def __init__(self, shared: Path, only: str, again: str) -> None:
        self._shared, self._only, self._again = shared, only, again
        self._subject = lru_cache(maxsize=2)(self._open)
        self._peers = lru_cache(maxsize=1)(lambda network: TorchPruning(self._subject(network)))
        self._rows = read_rows()
        self._images = lru_cache(lambda: open_images(shared))
        ROWS.parent.mkdir(exist_ok=True)

    def prune(self, network: str) -> None:
        """Without training, at each share of the MACs."""
        for target in TARGETS:
            ours = f"prune/{network}/{target}/{OURS}"
            for way in WAYS:
                self._row(f"prune/{network}/{target}/{way}", lambda t=target, w=way: self._ours(network, t, w))
            for method, importance, options in self._structured(network):
                self._row(
                    f"prune/{network}/{target}/{method}",
                    lambda t=target, i=importance, o=options, n=ours: self._theirs(
                        network, self._peers(network).prune(i, float(t), **o), self._rows.get(n)
                    ),
                )

    def finetune(self, network: str) -> None:
        """After one epoch: Afina, and the two peers that were best without training."""
        for (part, rate), target in product(RATES.items(), TARGETS if network in TUNED else ()):
            for method in (OURS, *self._best(network, target)):
                self._row(
                    f"{part}/{network}/{target}/{method}",
                    lambda t=target, m=method, r=rate: self._tuned(network, t, m, r),
                )

    def sparsify(self, network: str) -> None:
        """Single weights, without training."""
        for target in SPARSITIES:
            ours = f"sparsify/{network}/{target}/{OURS}"
            self._row(ours, lambda t=target: self._sparse(network, t))
            for method, make in sparsifiers(target).items():
                self._row(
                    f"sparsify/{network}/{target}/{method}",
                    lambda m=make, n=ours: self._theirs(network, m(self._subject(network).module), self._rows.get(n)),
                )

    def latency(self, network: str) -> None:
        """One image on one thread, with what Afina pruned taking turns with the original."""
        for runtime, way in product(RUNTIMES, WAYS):
            name = f"latency/{network}/all/{runtime}{way.removeprefix(OURS)}"
            self._row(name, lambda r=runtime, w=way: self._timed(network, r, w))

    def _row(self, name: str, measure: Callable[[], Row]) -> None:
        """Measure and keep one row, where it is wanted and not there."""
        there = name in self._rows and not (self._again and fnmatch(name, self._again))
        if there or not fnmatch(name, self._only):
            return
        start = time.monotonic()
        row = {"name": name, **measure(), "seconds": round(time.monotonic() - start, 1), **about()}
        self._rows[name] = row
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(name, {key: row[key] for key in ("accuracy", "macs", "ratio", "failed") if key in row}, flush=True)

    def _ours(self, network: str, target: str, way: str) -> Row:
        subject, options = self._subject(network), WAYS[way]
        pruned, record = prune(subject.network, subject.data, macs=float(target), progress=PlainProgress(), **options)
        pruned.save(self._file(network, target, way))
        return self._judged(pruned, subject, record.after["quality"])

    def _theirs(self, network: str, module: Any, ours: Row | None) -> Row:
        """Cost and accuracy of a peer's module, on a sample of the images where that says enough."""
        subject = self._subject(network)
        try:
            captured = capture(module, subject.network.input, subject.network.task)
        except Exception as error:
            return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
        quality = evaluate(captured, subject.data, limit=SAMPLE)
        if ours is None or quality.value > ours["accuracy"] - FAR:
            quality = evaluate(captured, subject.data)
        return {**self._judged(captured, subject, quality.value), "images": quality.n}

    def _tuned(self, network: str, target: str, method: str, rate: float) -> Row:
        subject = self._subject(network)
        if method == OURS:
            start = self._kept(network, target, method)
        else:
            importance, options = next((i, o) for m, i, o in self._structured(network) if m == method)
            module = self._peers(network).prune(importance, float(target), **options)
            start = capture(module, subject.network.input, subject.network.task)
        config = FitConfig(epochs=1, learning_rate=rate, seed=0)
        _, curve = fit(start, subject.data, config, teacher=subject.network, progress=PlainProgress())
        before = self._rows[f"prune/{network}/{target}/{method}"]["accuracy"]
        return {**self._judged(start, subject, curve[-1].quality), "before": before}

    def _sparse(self, network: str, target: str) -> Row:
        from afina.jobs.sparsify import sparsify

        subject = self._subject(network)
        wanted = {"pattern": target} if ":" in target else {"sparsity": float(target)}
        sparse, record = sparsify(subject.network, subject.data, progress=PlainProgress(), **wanted)
        return self._judged(sparse, subject, record.after["quality"])

    def _timed(self, network: str, runtime: str, way: str) -> Row:
        subject, exporter = self._subject(network), get_runtime(runtime)
        files = {
            name: exporter.export(each, self._file(network, name, way, exporter.suffix))
            for name, each in self._sizes(network, way)
        }
        found = measure_latency(files, subject.network.input.shape, threads=1, seconds=30)
        whole = found["whole"].value
        return {
            "latency": {name: each.value for name, each in found.items()},
            "spread": {name: each.spread for name, each in found.items()},
            "ratio": {name: round(each.value / whole, 3) for name, each in found.items()},
            "where": found["whole"].where,
        }

    def _sizes(self, network: str, way: str) -> Iterator[tuple[str, Network]]:
        yield "whole", self._subject(network).network
        for target in TARGETS:
            yield target, self._kept(network, target, way)

    def _structured(self, network: str) -> Iterator[tuple[str, str, Row]]:
        """Ways of Torch-Pruning: the name of each, its importance, and how it is used."""
        streams = (False, True) if network in STREAMS else (False,)
        for inner, norms, importance, everywhere in product(streams, (False, True), IMPORTANCES, (False, True)):
            # The statistics of norms are taken anew where a peer does best otherwise: the stream whole, by importances
            # of three kinds.
            if not norms or (inner == streams[-1] and importance in ("magnitude", "taylor", "hessian")):
                options = {"everywhere": everywhere, "inner": inner, "norms": norms}
                told = [word for word, on in zip(("global", "inner", "norms"), options.values(), strict=True) if on]
                yield " ".join(("torch-pruning", importance, *told)), importance, options

    def _best(self, network: str, target: str) -> list[str]:
        """The two peers that are best without training, of different importances; with their norms anew if that is so.

        Training takes the statistics of norms anew by itself, so that only the ranking rests on it.
        """
        start = f"prune/{network}/{target}/torch-pruning "
        found = [row for name, row in self._rows.items() if name.startswith(start) and "accuracy" in row]
        by_importance: dict[str, str] = {}
        for row in sorted(found, key=lambda row: -row["accuracy"]):
            method = row["name"].rpartition("/")[2].removesuffix(" norms")
            by_importance.setdefault(method.split()[1], method)
        return list(by_importance.values())[:2]

    def _kept(self, network: str, target: str, way: str) -> Network:
        """What Afina pruned to this target."""
        file = self._file(network, target, way)
        if not file.is_file():
            self._ours(network, target, way)
        return Network.load(file)

    def _file(self, network: str, name: str, way: str, suffix: str = ".pt2") -> Path:
        return RUNS / f"{network}-{name}{way.removeprefix(OURS).replace(' ', '-')}{suffix}"

    def _open(self, network: str) -> Subject:
        return open_subject(network, self._shared, RUNS, self._images())

    def _judged(self, network: Network, subject: Subject, quality: float) -> Row:
        """Its accuracy and the original's, and its share of the original's MACs, parameters and weights not zero."""
        cost, whole = cost_of(network), cost_of(subject.network)
        weights = [value for value in network.module.parameters() if value.ndim > 1]
        return {
            "accuracy": round(quality, 5),
            "original": round(subject.quality, 5),
            "images": subject.data.count("validation"),
            "macs": round(cost.macs / whole.macs, 4),
            "parameters": round(cost.parameters / whole.parameters, 4),
            "zeros": round(1 - sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights), 4),
        }


def about() -> Row:
    """When, where and with which versions."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{processor()}, {available_cores()} cores",
        "versions": {name: version for name in LIBRARIES if (version := _version(name))},
    }


def _version(name: str) -> str:
    """The version of a library; empty where it is not installed, as a peer's need not be for our own rows."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    main()
