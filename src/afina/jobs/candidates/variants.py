"""What can be tried: a network made smaller or not, trained again or not, in some precision."""

from dataclasses import dataclass
from typing import Literal

from afina.jobs.candidates.reducers import Reducer

ORIGINAL = "original"
# The precision of a file:
#   float     32 bits
#   half      weights stored in fp16
#   bf16      weights and what is computed in bf16, where the runtime does
#   int8      weights and activations in 8 bits
#   few-bits  weights in 2 to 8 bits, shared out over the layers for the limit on size
#   placed    8 bits only where the runtime is faster for them, by time measured
Form = Literal["float", "half", "bf16", "int8", "few-bits", "placed"]


@dataclass(frozen=True)
class Reduction:
    """One way to a smaller network.

    Attributes:
        reducer: What makes it smaller.
        ratio: The share of its cost that goes.
        forms: The precisions of its files that are worth a try.
    """

    reducer: Reducer
    ratio: float
    forms: tuple[Form, ...]

    @property
    def name(self) -> str:
        return f"{self.reducer.name}-{self.ratio:.2f}"


@dataclass(frozen=True)
class Variant:
    """One file that can be tried.

    Attributes:
        form: The precision of the file.
        reduction: The reduction that made the network smaller; None for the network as it is.
        tuned: Whether the network is fine-tuned after the reduction.

    Example:
        >>> Variant().name, Variant("int8").name
        ('original', 'int8')
    """

    form: Form = "float"
    reduction: Reduction | None = None
    tuned: bool = False

    @property
    def name(self) -> str:
        """Its name among the candidates, as in `prune-0.50-tuned-int8`."""
        if self.reduction is None:
            return ORIGINAL if self.form == "float" else self.form
        return "-".join(part for part in (self.network_name, self.form if self.form != "float" else "") if part)

    @property
    def network_name(self) -> str:
        """The name of the float network that it is made from, which is kept in the run folder."""
        if self.reduction is None:
            return ORIGINAL
        return f"{self.reduction.name}-tuned" if self.tuned else self.reduction.name
