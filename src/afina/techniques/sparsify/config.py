"""`SparsifyConfig`: which weights become zero, as plain data that is checked when it is made."""

import re
from dataclasses import dataclass, field

from afina.errors import InputError, did_you_mean

CRITERIA = ("fit", "magnitude")


@dataclass(frozen=True)
class SparsifyConfig:
    """How to make weights sparse.

    Attributes:
        sparsity: Share of the weights of all layers together that become zero, where there is no `pattern` and
            `layers` is empty.
        pattern: `N:M`, as in `2:4`: of every M weights along the inputs, at most N stay. Layers whose inputs M does
            not divide are left whole.
        layers: Share of zeros by the name of each layer; layers that are not named stay whole.
        criterion: `fit` (second-order, the rest refitted to the outputs on images) or `magnitude`.
        skip: Names of layers that stay whole.

    Raises:
        InputError: a value is out of range; the text names the option, what is allowed and what it was.

    Example:
        >>> SparsifyConfig(pattern="2:4").kept_of
        (2, 4)
    """

    sparsity: float = 0.5
    pattern: str = ""
    layers: dict[str, float] = field(default_factory=dict)
    criterion: str = "fit"
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, share in {"sparsity": self.sparsity, **self.layers}.items():
            if not 0 <= share < 1:
                raise InputError(
                    f"The sparsity {share} ({name}) must be 0 or more and less than 1.",
                    why="It is the share of weights that become zero.",
                    fix="Give 0.8 to keep a fifth of them.",
                )
        if self.criterion not in CRITERIA:
            raise InputError(f"There is no criterion {self.criterion!r}.", fix=did_you_mean(self.criterion, CRITERIA))
        if self.pattern:
            n, m = self.kept_of
            if not 0 < n < m:
                raise InputError(
                    f"The pattern {self.pattern} keeps {n} weights of every {m}.",
                    why="N must be 1 or more, and less than M.",
                    fix="The pattern that runtimes know is 2:4.",
                )

    @property
    def kept_of(self) -> tuple[int, int]:
        """N and M of the pattern.

        Raises:
            InputError: the pattern is not of the form N:M.
        """
        match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", self.pattern)
        if not match:
            raise InputError(f"{self.pattern!r} is not a pattern.", fix="Write N:M, as in 2:4.")
        return int(match.group(1)), int(match.group(2))
