"""`FactorizeConfig`: which layers are written as chains, as plain data that is checked when it is made."""

from dataclasses import dataclass, field

from afina.errors import InputError, did_you_mean
from afina.techniques.factorize.forms import FORMS

# Form and ranks of each layer that becomes a chain, by its name.
Chosen = dict[str, tuple[str, tuple[int, ...]]]
METHODS = ("auto", *FORMS)


@dataclass(frozen=True)
class FactorizeConfig:
    """How to factorize.

    Attributes:
        share: Share of its parameters that each layer keeps, where `layers` is empty.
        method: A form of `forms.FORMS`, or `auto`: for each layer the one with the least error at its cost. Layers that
            have no such form (a linear layer has the svd alone) take the svd.
        rank: A rank of its own for every layer, as a number or as a share of the largest one; None goes by cost.
        layers: For each layer by name, its form and its ranks; layers that are not named stay whole.
        multiple: Ranks are a multiple of it (8 or 16 suit many kernels).
        refit: Whether, with images, the other layers are refitted in order to what they gave before.
        skip: Names of layers that stay whole.

    Raises:
        InputError: a value is out of range; it names the option, what is allowed and what was given.
    """

    share: float = 0.5
    method: str = "auto"
    rank: int | float | None = None
    layers: Chosen = field(default_factory=dict)
    multiple: int = 1
    refit: bool = True
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(
                f"The share to keep is {self.share}, and must be more than 0 and at most 1.",
                fix="Give 0.5 to keep half of the parameters.",
            )
        _check_form("method", self.method, METHODS)
        if self.multiple < 1:
            raise InputError(f"multiple is {self.multiple}, and must be 1 or more.")
        whole = isinstance(self.rank, int)
        if self.rank is not None and not (self.rank >= 1 if whole else 0 < self.rank < 1):
            raise InputError(
                f"rank is {self.rank}.", why="It is a number, 1 or more, or a share below 1 of the largest rank."
            )
        for name, (form, ranks) in self.layers.items():
            _check_form(name, form, tuple(FORMS))
            if len(ranks) != len(FORMS[form].ranks) or min(ranks) < 1:
                wanted = len(FORMS[form].ranks)
                raise InputError(f"{name}: {form} takes {wanted} rank{'s' * (wanted > 1)}, 1 or more, not {ranks}.")


def _check_form(what: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise InputError(f"{what}: there is no method {given!r}.", fix=did_you_mean(given, known))
