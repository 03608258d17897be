"""Options of `afina factorize`."""

from dataclasses import KW_ONLY, dataclass
from typing import Annotated

from afina.errors import InputError
from afina.jobs.options.declaration import Option
from afina.jobs.options.shared import (
    DataOptions,
    FineTuneOptions,
    Images,
    LatencyLimit,
    Model,
    OptionalData,
    Quantity,
    RuntimeOptions,
    SizeLimit,
    Skip,
    check_training,
)
from afina.jobs.options.targets import Goal, goal_of
from afina.units import parse_share


@dataclass(frozen=True)
class FactorizeOptions(DataOptions, RuntimeOptions, FineTuneOptions):
    """Write layers of MODEL as chains of smaller ones until it meets a target; no training is needed."""

    model: Model
    data: OptionalData = None
    _: KW_ONLY
    parameters: Annotated[
        Quantity, Option("Parameters that may stay, as a share: `50%` or 0.5; for several networks `70%,50%`.")
    ] = None
    macs: Annotated[Quantity, Option("Multiply-accumulates that may stay, as a share.")] = None
    size: SizeLimit = None
    latency: LatencyLimit = None
    method: Annotated[
        str,
        Option(
            "Form of the chains; `auto` takes for each layer the nearest at its cost.",
            choices=("auto", "svd", "spatial", "tucker", "cp", "tt"),
        ),
    ] = "auto"
    rank: Annotated[
        Quantity,
        Option("Instead of a target: a rank for every layer, as a number or as a share of the largest (`25%`)."),
    ] = None
    multiple: Annotated[
        int | None, Option("Ranks are a multiple of it; by default 8 for a latency, else 1.", least=1)
    ] = None
    skip: Skip = ()
    images: Images = 1024

    @property
    def goal(self) -> Goal | None:
        """The one target; None with a rank."""
        if self.rank is not None:
            return None
        return goal_of(macs=self.macs, parameters=self.parameters, size=self.size, latency=self.latency)

    @property
    def same_rank(self) -> int | float | None:
        """The rank of every layer, as a number or a share; None with a target."""
        if self.rank is None:
            return None
        text = str(self.rank).strip()
        return int(text) if text.isdigit() else parse_share(self.rank, "--rank")

    def check(self) -> None:
        """Raise `InputError` for options that are wrong together."""
        targets = (self.parameters, self.macs, self.size, self.latency)
        if self.rank is not None and any(target is not None for target in targets):
            raise InputError("A rank leaves nothing to choose for a target.", fix="Give either --rank or a target.")
        _ = self.goal, self.same_rank
        check_training(self.finetune, self.learning_rate, self.optimizer, self.data)
