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
        share: Share of its parameters that each layer keeps, where `layers` is empty and `rank` is None.
        method: A form of `forms.FORMS`, or `auto`: for each layer the one with the least error at its cost. Layers that
            have no such form (a linear layer has the svd alone) take the svd.
        rank: The rank of every layer, as a number or as a share of the layer's largest rank; with None, ranks are the
            largest whose chains keep `share`.
        layers: For each layer by name, its form and its ranks; layers that are not named stay whole.
        multiple: Ranks are a multiple of this (8 or 16 suit many kernels), where `rank` and `layers` do not give them.
        refit: Whether, with images, the other layers are refitted in order to what they gave before.
        skip: Names of layers that stay whole.

    Raises:
        InputError: a value is out of range; the text names the option, what is allowed and what it was.

    Example:
        >>> FactorizeConfig(layers={"conv": ("tucker", (16, 8))}).share
        0.5
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
        is_count = isinstance(self.rank, int)
        if self.rank is not None and not (self.rank >= 1 if is_count else 0 < self.rank < 1):
            raise InputError(
                f"rank is {self.rank}.", why="It is a number, 1 or more, or a share below 1 of the largest rank."
            )
        for name, (form, ranks) in self.layers.items():
            _check_form(name, form, tuple(FORMS))
            if len(ranks) != len(FORMS[form].ranks) or min(ranks) < 1:
                count = len(FORMS[form].ranks)
                raise InputError(f"{name}: {form} takes {count} rank{'s' * (count > 1)}, 1 or more, not {ranks}.")


def _check_form(option: str, form: str, forms: tuple[str, ...]) -> None:
    """Raises `InputError`, which names the option (or the layer), where a form is none of `forms`."""
    if form not in forms:
        raise InputError(f"{option}: there is no method {form!r}.", fix=did_you_mean(form, forms))
