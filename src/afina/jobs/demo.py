"""`afina demo`: the main job on real scanned digits that ship with scikit-learn; no download, no argument."""

from afina.jobs.optimize import optimize
from afina.jobs.options.declaration import command
from afina.jobs.options.demo import DemoOptions
from afina.types import Result

MODEL, DATA = "builtin:convnet", "digits"


def _demo(options: DemoOptions) -> Result:
    """Train a small convolutional network on 8 x 8 digits, then fit it into a sixth of its size."""
    return optimize(
        MODEL,
        DATA,
        size="430KB",
        max_drop="2%",
        runtime=options.runtime,
        out=options.out,
        weights="random",
        seed=options.seed,
        progress=options.progress,
    )


demo = command(DemoOptions, _demo)
