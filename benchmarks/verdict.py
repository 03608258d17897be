"""How often a verdict is wrong: 1,000 judgements on few images, of real files whose drop on all 10,000 is known.

Files of ResNet-20 on CIFAR-10 as JPEG (quantized, pruned, factorized) answer all test images once; whether each answer
is right is kept in `results/verdict.json`, from which everything else follows. A judgement draws a file and `n` of the
images (with replacement, so that the 10,000 are the world), and a limit. Where the limit is below the real drop, `fits`
is wrong. Beside Afina's verdict: the drop alone, and a bound of independent errors, as from two accuracies.

    python benchmarks/verdict.py SHARED
"""

import argparse
import base64
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, about

import afina
from afina.budget import judge
from afina.data import ImageData, open_data
from afina.graph.network import Network
from afina.models import load_model
from afina.progress import PlainProgress
from afina.runtimes import get_runtime, outputs_of_file
from afina.tasks import drop_with_error, get_task
from afina.types import Budget, Measurement

FILE = RESULTS / "verdict.json"
COUNTS = (250, 500, 1000, 2000, 5000)
JUDGEMENTS = 1000
SIMPLE = {"threads": 1}

Made = Callable[[Network, str], Network]
FILES: dict[str, Made] = {
    "int8": lambda network, data: afina.quantize(network, data, **SIMPLE)[0],
    "int8, min-max and nearest": lambda network, data: afina.quantize(
        network, data, calibration="minmax", rounding="nearest", equalize="none", **SIMPLE
    )[0],
    "int4": lambda network, data: afina.quantize(network, data, weight_type="int4", **SIMPLE)[0],
    "int3": lambda network, data: afina.quantize(network, data, weight_type="int3", **SIMPLE)[0],
    "pruned to 90% of the MACs": lambda network, data: afina.prune(network, data, macs="90%")[0],
    "pruned to 80% of the MACs": lambda network, data: afina.prune(network, data, macs="80%")[0],
    "factorized to 80% of the parameters": lambda network, data: afina.factorize(network, data, parameters="80%")[0],
    "sparse, 70%": lambda network, data: afina.sparsify(network, data, sparsity="70%")[0],
}


def answers(shared: Path) -> dict[str, np.ndarray]:
    """Whether each file answers each of the 10,000 test images rightly; made where they are not kept."""
    kept = json.loads(FILE.read_text())["answers"] if FILE.is_file() else {}
    right = {name: _unpacked(text) for name, text in kept.items()}
    missing = [name for name in ("original", *FILES) if name not in right]
    if not missing:
        return right
    source, progress = f"{shared}/data/cifar10-jpeg.zip", PlainProgress()
    data = open_data(source, seed=0)
    weights = f"{shared}/models/resnet20_cifar10jpeg.safetensors"
    network = load_model(
        f"{shared}/models/cifar_resnet.py:resnet20", weights=weights, task=data.task, input=data.native, trains=False
    ).network
    for name in missing:
        progress.say(name)
        right[name] = _right(FILES[name](network, source) if name in FILES else network, data)
        _keep({}, right)  # so that a stopped run goes on
    return right


def _right(network: Network, data: ImageData) -> np.ndarray:
    runtime, task = get_runtime("onnxruntime"), get_task(network.task)
    with tempfile.TemporaryDirectory() as folder:
        path = runtime.export(network, Path(folder) / "model.onnx")
        outputs = outputs_of_file(path, data, network.input, threads=1)
    return task.evidence(task.decode(outputs), data.targets("validation").numpy())[:, 0].astype(bool)


def judgements(right: dict[str, np.ndarray], limit_of: Callable[[float], float], seed: int) -> dict[str, Counter[str]]:
    """The verdicts of `JUDGEMENTS` judgements, by who gives them; `limit_of` gives a limit for a real drop."""
    random, before = np.random.default_rng(seed), right["original"]
    task = get_task(afina.TaskSpec("classification", tuple("0123456789")))
    verdicts = {"afina": Counter[str](), "the drop alone": Counter[str](), "two separate errors": Counter[str]()}
    names = [name for name in FILES if before.mean() > right[name].mean()]
    for _ in range(JUDGEMENTS):
        after, count = right[str(random.choice(names))], int(random.choice(COUNTS))
        limit = limit_of(before.mean() - after.mean())
        rows = random.integers(len(before), size=count)
        pair = [answer[rows].astype(float)[:, None] for answer in (before, after)]
        drop, error = drop_with_error(task, *pair)
        measured = Measurement(drop, "accuracy", "measured", error, count, share=True)
        missed = {"max_drop": drop - limit} if drop > limit else {}
        verdict, _ = judge(missed, measured, Budget(max_drop=limit), task.metric, "test")
        verdicts["afina"][verdict] += 1
        verdicts["the drop alone"]["fits" if drop <= limit else "misses"] += 1
        apart = 1.645 * float(np.hypot(*(one.std(ddof=1) for one in pair))) / count**0.5
        verdicts["two separate errors"]["fits" if drop + apart <= limit else "misses"] += 1
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="folder with models/ and data/")
    right = answers(parser.parse_args().shared)
    before = right["original"].mean()
    drops = {name: float(before - answer.mean()) for name, answer in right.items()}
    # At the limit itself: no other limit is so easily mistaken.
    cases = {
        "the real drop is just beyond the limit": lambda drop: drop - 1e-9,
        "the real drop is 1.25 times the limit": lambda drop: drop / 1.25,
        "the real drop is half of the limit": lambda drop: 2 * drop,
    }
    shares = {
        case: {
            who: {verdict: count / JUDGEMENTS for verdict, count in counts.items()}
            for who, counts in judgements(right, limit_of, seed).items()
        }
        for seed, (case, limit_of) in enumerate(cases.items())
    }
    for case, by_judge in shares.items():
        print(case)
        for who, verdicts in by_judge.items():
            print(f"  {who:20}", ", ".join(f"{verdict} {share:.1%}" for verdict, share in sorted(verdicts.items())))
    kept = {
        "judgements": JUDGEMENTS, "images": COUNTS, "accuracy": float(before), "drops": drops, "shares": shares,
        **about(("onnxruntime", "torch", "numpy")),
    }  # fmt: skip
    _keep(kept, right)


def _keep(figures: dict[str, Any], right: dict[str, np.ndarray]) -> None:
    answers = {name: _packed(answer) for name, answer in right.items()}
    FILE.write_text(json.dumps({**figures, "answers": answers}, indent=1) + "\n")


def _packed(bits: np.ndarray) -> str:
    return base64.b64encode(np.packbits(bits).tobytes()).decode()


def _unpacked(text: str) -> np.ndarray:
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8))[:10_000].astype(bool)


if __name__ == "__main__":
    main()
