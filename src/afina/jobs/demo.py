"""`afina demo`: the main job on real scanned digits that ship with scikit-learn; no download, no argument."""

from pathlib import Path

from afina.jobs.optimize import optimize
from afina.progress import Progress
from afina.types import Result

MODEL, DATA = "builtin:convnet", "digits"


def demo(
    *,
    out: str | Path = "runs/demo",
    runtime: str = "onnxruntime",
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Train a small convolutional network on 8 x 8 digits, then fit it into a sixth of its size.

    Args:
        out: The run folder.
        runtime: What will run the file.
        seed: Seed of every random choice.
        progress: What the user sees.
    """
    return optimize(
        MODEL,
        DATA,
        size="430KB",
        max_drop="0.5%",
        runtime=runtime,
        out=out,
        weights="random",
        seed=seed,
        progress=progress,
    )
