"""What a network's outputs lose when one layer loses weights: measured on images, layer by layer."""

from afina.graph.cost import cost_of
from afina.graph.network import Network
from afina.graph.statistics import Effect, tried
from afina.graph.stored import attribute
from afina.techniques.context import Context
from afina.techniques.sparsify.config import SparsifyConfig
from afina.techniques.sparsify.technique import factors_of, readers_of, set_zeros
from afina.types import Sensitivity


def layer_sensitivities(
    network: Network, config: SparsifyConfig, context: Context, levels: tuple[float, ...]
) -> dict[str, Sensitivity]:
    """The sensitivity of each layer that can be made sparse, by the layer's name.

    Args:
        network: The network; it is left as it is.
        config: How layers are made sparse.
        context: Calibration images, progress.
        levels: Shares of the layer's weights that become zero, each of which is measured (`Effect.of`).

    Raises:
        InputError: there are no images, or the config does not fit the network.
        NothingToDo: no layer can be made sparse.
    """
    network = network.copy().eval() if network.training else network
    readers, _ = readers_of(network, config)
    effect = Effect(network, context.first(len(readers) * len(levels) * cost_of(network).macs))
    moments = context.moments(network, readers) if config.criterion == "fit" else {}
    scratch, results = network.copy(), dict[str, Sensitivity]()
    with context.progress.work("Measuring layers", len(readers)) as bar:
        for name, reader in readers.items():
            measured, factors = [], factors_of(reader, moments[name]) if name in moments else None
            for level in levels:
                with tried(scratch, [reader]):
                    set_zeros(scratch, reader, level, config, factors)
                    measured.append(effect.of(scratch, since=reader.nodes))
            size = attribute(network.module, name).numel()
            zeros = tuple(round(size * level) for level in levels)
            results[reader.name] = Sensitivity(reader.name, "weights", size, (reader.name,), (), zeros, tuple(measured))
            bar.advance(note=reader.name)
    return results
