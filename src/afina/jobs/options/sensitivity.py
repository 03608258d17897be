"""Options of `afina sensitivity`."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Annotated

from afina.errors import InputError
from afina.jobs.options.declaration import Option
from afina.jobs.options.shared import CRITERIA, Axis, Data, DataOptions, Images, Model
from afina.units import parse_share


@dataclass(frozen=True)
class SensitivityOptions(DataOptions):
    """What the outputs of MODEL lose when an axis loses units, or a layer weights: table, plot, CSV."""

    model: Model
    data: Data
    _: KW_ONLY
    criterion: Annotated[
        str,
        Option("Which units go; weights go by `fit`, or by `magnitude` where that is asked for.", choices=CRITERIA),
    ] = "fit"
    axis: Axis = ()
    levels: Annotated[
        str | Sequence[str | float], Option("Shares that go, between 0 and 1, with commas between.", separator=",")
    ] = ("25%", "50%", "75%")
    images: Images = 512

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares that go, in order."""
        levels = self.levels.split(",") if isinstance(self.levels, str) else self.levels
        return tuple(sorted({parse_share(level, "--levels") for level in levels}))

    def check(self) -> None:
        """Raise `InputError` where there is nothing to measure."""
        if self.data is None or not self.shares:
            raise InputError("Sensitivities are measured on images, at one level at least.", fix="Give --data.")
