"""Int8, and a plan where asked for, of every model in the zoo of pruning, on both runtimes: exported, run, compared.

    python benchmarks/quantization/zoo.py SHARED                       # all-int8; what has no row yet
    python benchmarks/quantization/zoo.py SHARED --only 'auto/timm:*'  # the plan, which times files: needs quiet

A row says `pass`, or the reason why not, for each runtime. Models have random weights; calibration is on 16 images of
noise, and the file is compared on 32; of models with more than 200 GMACs, on fewer.
"""

import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "pruning"))

import torch
from models import choose, load
from rows import Row, Rows, arguments

from afina.capacity import available_cores
from afina.errors import AfinaError
from afina.graph import Network
from afina.graph.cost import cost_of
from afina.jobs.common.exporter import Exporter
from afina.jobs.planning.precisions import plan_precisions
from afina.runtimes import check_parity, get_runtime
from afina.techniques.context import Context
from afina.techniques.quantize import QuantizeConfig, Source, apply
from afina.types import Budget

_RUNTIMES = ("onnxruntime", "openvino")
_MOST, _FEWEST, _BATCH = 16, 4, 4
_WORK = 3.2e12  # multiply-accumulates of one run through the images


def main() -> None:
    """One process for each row, so that none takes another's memory with it."""
    parser = arguments(__doc__)
    parser.add_argument("--limit", type=float, default=600, help="seconds for a row")
    parser.add_argument("--one", help="measure this row here, and print it")
    options = parser.parse_args()
    if options.one:
        plan, model = options.one.split("/")
        print(json.dumps(measure(model, plan == "auto")))
        return
    rows = Rows("zoo", options.only, options.skip, options.again)
    models = choose(Path(__file__).parents[1] / "pruning" / "results" / "zoo-models.json")
    for plan in ("int8", "auto"):
        for model in sorted(models, key=lambda name: models[name]):
            name = f"{plan}/{model}"
            if plan == "auto" and options.only == "*":
                continue
            rows.measure(name, partial(_apart, name, options.shared, options.limit))


def _apart(name: str, shared: Path, limit: float) -> Row:
    command = [sys.executable, __file__, str(shared), "--one", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"not done after {limit:.0f} s") from None
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def measure(model: str, planned: bool) -> Row:
    """What each runtime makes of one model."""
    network = load(model)
    count = max(_FEWEST, min(_MOST, int(_WORK / cost_of(network).macs)))
    images = torch.randn(count, *network.input.shape, generator=torch.Generator().manual_seed(0))
    context = Context(calibration=lambda: iter(images.split(min(_BATCH, network.input.batch))), images=count)
    return {name: _on(name, network, context, planned) for name in _RUNTIMES}


def _on(name: str, network: Network, context: Context, planned: bool) -> str:
    runtime = get_runtime(name)
    config = QuantizeConfig(policy=runtime.policy(), calibration="mse", rounding="nearest")
    try:
        if planned:
            exporter = Exporter(runtime, available_cores())
            config, _ = plan_precisions(Source.of(network), config, Budget(), exporter, context)
        quantized, _ = apply(network, config, context)
        with tempfile.TemporaryDirectory() as folder:
            path = runtime.export(quantized, Path(folder) / f"model{runtime.suffix}")
            check_parity(quantized, path, network.example(2 * context.images), threads=available_cores())
    except AfinaError as error:
        return " ".join(str(error).splitlines()[:2])[:300]
    return "pass"


if __name__ == "__main__":
    main()
