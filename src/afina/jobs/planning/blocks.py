"""Which residual blocks are taken out whole on the way to a target."""

from afina.errors import InputError, NothingToDo
from afina.graph.blocks import find_blocks, remove_blocks
from afina.graph.cost import cost_of
from afina.graph.network import Network
from afina.graph.statistics import Effect, freed
from afina.jobs.planning.targets import Target, format_cost
from afina.techniques.context import Context
from afina.techniques.prune import PruneConfig


def blocks_to_go(network: Network, target: Target, config: PruneConfig, context: Context) -> tuple[str, ...]:
    """The residual blocks to take out on the way to a target: those first that damage least for what they save.

    With other kinds of axes beside the blocks, the last block is left in if the target would be missed from above.

    Raises:
        NothingToDo: no block can go.
        InputError: there are no images, or blocks alone cannot meet the target.
    """
    blocks = find_blocks(network)
    if not blocks:
        raise NothingToDo("This network has no residual block that can be taken out.")
    effect, whole = Effect(network, context.first(len(blocks) * cost_of(network).macs)), target.measure(network)
    prices: dict[str, float] = {}
    with context.progress.work("Measuring blocks", len(blocks)) as bar:
        for name in blocks:
            without = remove_blocks(network, [name])
            prices[name] = effect.of(without) / max(whole - target.measure(without), 1e-12)
            del without
            freed(network)
            bar.advance(note=name)
    gone: list[str] = []
    value = whole
    for name in sorted(prices, key=lambda name: prices[name]):
        if value <= target.limit:
            return tuple(gone)
        value = target.measure(remove_blocks(network, [*gone, name]))
        if value <= target.limit and len(config.axes) > 1:
            return tuple(gone)
        gone.append(name)
    if value > target.limit and len(config.axes) == 1:
        raise InputError(
            f"The target of {format_cost(target, target.limit)} cannot be met by taking blocks out: "
            f"the smallest possible is {format_cost(target, value)}.",
            fix="Prune other axes as well: --axis blocks --axis channels.",
        )
    return tuple(gone)
