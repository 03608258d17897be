"""Options of `afina prune`."""

from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Literal

from afina.errors import AfinaError
from afina.jobs.options.declaration import Option
from afina.jobs.options.shared import (
    CRITERIA,
    Axis,
    DataOptions,
    FineTuneOptions,
    Images,
    LatencyLimit,
    Model,
    OptionalData,
    Quantity,
    RuntimeOptions,
    SizeLimit,
    check_training,
)
from afina.jobs.options.targets import Goal, goal_of


@dataclass(frozen=True)
class PruneOptions(DataOptions, RuntimeOptions, FineTuneOptions):
    """Remove channels, neurons, heads from MODEL until it meets a target; no training is needed."""

    model: Model
    data: OptionalData = None
    _: KW_ONLY
    macs: Annotated[
        Quantity,
        Option("Multiply-accumulates that may stay, as a share: `50%` or 0.5; for several networks `70%,50%`."),
    ] = None
    parameters: Annotated[Quantity, Option("Parameters that may stay, as a share.")] = None
    size: SizeLimit = None
    latency: LatencyLimit = None
    criterion: Annotated[str, Option("Which units go.", choices=CRITERIA)] = "fit"
    axis: Axis = ()
    per: Annotated[
        Literal["global", "layer"],
        Option(
            "`global` shares the target out by sensitivity; `layer` takes the same share of every axis.",
            choices=("global", "layer"),
            metavar="WHERE",
        ),
    ] = "global"
    multiple: Annotated[
        int | None,
        Option(
            "Channels that are kept are a multiple of it (8 or 16 suit many kernels). By default 8: everywhere for a "
            "latency, else for axes of 96 channels and more, as long as the target is met within 2%.",
            least=1,
        ),
    ] = None
    steps: Annotated[
        int, Option("Prune in so many steps, with fine-tuning after each (its epochs are divided).", least=1)
    ] = 1
    images: Images = 1024

    @property
    def goal(self) -> Goal:
        """The one target."""
        return goal_of(macs=self.macs, parameters=self.parameters, size=self.size, latency=self.latency)

    def check(self) -> None:
        """Raise `InputError` for options that are wrong together."""
        _ = self.goal
        check_training(self.finetune, self.learning_rate, self.optimizer, self.data)
        if self.steps > 1 and not self.finetune:
            raise AfinaError(
                "Pruning in steps without fine-tuning between them gains nothing.", fix="Give --finetune EPOCHS."
            )
