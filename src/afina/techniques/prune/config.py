"""`PruneConfig`: how a network is pruned, as plain data that is checked when it is made."""

from dataclasses import dataclass, field

from afina.errors import InputError, did_you_mean

CRITERIA = ("fit", "magnitude", "taylor", "batchnorm", "random")
KINDS = ("channels", "hidden", "heads", "head-dim", "embedding", "groups", "blocks")
# Criteria that look at images; without any they give way to `magnitude`.
DATA_DRIVEN = ("fit", "taylor")


@dataclass(frozen=True)
class PruneConfig:
    """How to prune.

    Attributes:
        ratio: Share of the units of each axis that is removed, between 0 and 1; not used where `keep` is given. About
            `1 - (1 - ratio)^2` of the MACs go with them, as a layer loses inputs and outputs.
        keep: Units that each axis keeps, by the axis's name; axes that are not named stay whole.
        removed: Units that an axis loses, by the axis's name, in the order in which they go. Records have it, so that
            they can be replayed; it must leave as many as `keep` says. The criterion chooses the units of other axes.
        criterion: How the units that go are chosen: `fit` (those that the layers which read them can best do without,
            once their other weights are refitted by least squares), `magnitude` (of the weights), `taylor` (weight
            times gradient), `batchnorm` (scales of norms), `random`.
        axes: Kinds of axes (`channels`, `hidden`, `heads`, `head-dim`, `embedding`, `groups`) or names of axes to
            prune; empty for all; `blocks` alone for none but the `blocks`.
        blocks: Names of residual blocks (`graph.blocks`) that are taken out whole, before anything else.
        multiple: Channels that an axis keeps are a multiple of this, which kernels like, where it has more than that.
        wide: Axes of so many channels or more keep a multiple of `multiple`; narrower ones keep any number.
        minimum: The smallest number of units that any axis keeps.
        floor: The smallest share of its units that any axis keeps.
        refit: Whether, with images, all layers are refitted in order to what they gave before (any criterion).

    Raises:
        InputError: a value is out of range; the text names the option, what is allowed and what it was.

    Example:
        >>> PruneConfig(ratio=0.5, axes=("channels",)).criterion
        'fit'
    """

    ratio: float | None = 0.5
    keep: dict[str, int] = field(default_factory=dict)
    removed: dict[str, tuple[int, ...]] = field(default_factory=dict)
    criterion: str = "fit"
    axes: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    multiple: int = 1
    wide: int = 0
    minimum: int = 1
    floor: float = 0.05
    refit: bool = True

    def __post_init__(self) -> None:
        if self.ratio is None and not self.keep and not self.blocks:
            raise InputError("Neither ratio nor keep nor blocks says what to prune.", fix="Give one of them.")
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise InputError(
                f"The ratio to prune is {self.ratio}, and must be between 0 and 1.",
                why="It is the share of units that is removed from each axis.",
                fix="Give 0.5 to remove half of them.",
            )
        if not 0 <= self.floor < 1:
            raise InputError(f"floor is {self.floor}, and must be 0 or more and less than 1.")
        if self.criterion not in CRITERIA:
            raise InputError(
                f"There is no pruning criterion {self.criterion!r}.", fix=did_you_mean(self.criterion, CRITERIA)
            )
        for name in ("multiple", "minimum"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, and must be 1 or more.")
