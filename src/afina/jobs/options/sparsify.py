"""Options of `afina sparsify`."""

from dataclasses import KW_ONLY, dataclass
from typing import Annotated

from afina.errors import InputError
from afina.jobs.options.declaration import Option
from afina.jobs.options.shared import (
    DataOptions,
    FineTuneOptions,
    Images,
    Model,
    OptionalData,
    Quantity,
    check_training,
)
from afina.units import parse_share


@dataclass(frozen=True)
class SparsifyOptions(DataOptions, FineTuneOptions):
    """Make weights of MODEL zero, free or in an N:M pattern, with the least change of its outputs."""

    model: Model
    data: OptionalData = None
    _: KW_ONLY
    sparsity: Annotated[
        Quantity,
        Option(
            "Share of all weights of convolutions and linear layers that become zero, as in `80%`; shared out by what "
            "each layer's zeros do to the outputs."
        ),
    ] = None
    pattern: Annotated[
        str | None, Option("`N:M` instead, as in `2:4`: of every M weights along the inputs, at most N stay.")
    ] = None
    criterion: Annotated[str, Option("Which weights go.", choices=("fit", "magnitude"))] = "fit"
    images: Images = 1024

    @property
    def share(self) -> float:
        """The share of zeros; a half where there is a pattern."""
        return 0.5 if self.sparsity is None else parse_share(self.sparsity, "--sparsity")

    def check(self) -> None:
        """Raise `InputError` for options that are wrong together."""
        if (self.sparsity is None) == (self.pattern is None):
            raise InputError("Give either a sparsity or a pattern.", fix="Write --sparsity 80%, or --pattern 2:4.")
        _ = self.share
        check_training(self.finetune, self.learning_rate, self.optimizer, self.data)
