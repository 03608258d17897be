"""Options of `afina profile`."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Annotated

from afina.jobs.options.declaration import Option
from afina.jobs.options.shared import Model, ModelOptions


@dataclass(frozen=True)
class ProfileOptions(ModelOptions):
    """Parameters, MACs, bytes and peak activations of MODEL, per layer; its latency on each runtime."""

    model: Model
    _: KW_ONLY
    weights: Annotated[
        str | None,
        Option("Cost does not depend on weights: by default `random`, so that nothing is downloaded, or a file's own."),
    ] = None
    runtimes: Annotated[
        tuple[str, ...] | Sequence[str],
        Option(
            "A runtime to time it on; all that are installed by default, may be repeated; `none` only counts.",
            flags=("--runtime",),
        ),
    ] = ()
    threads: Annotated[int | None, Option("Threads of the runtimes; all cores by default.", least=1)] = None
    batch: Annotated[int, Option("Images per call when latency is measured.", least=1)] = 1
