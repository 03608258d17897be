"""What a network's outputs lose when one layer loses weights: measured on images, layer by layer."""

from afina.graph.cost import cost_of
from afina.graph.network import Network
from afina.graph.statistics import Effect, gather, tried
from afina.graph.stored import attribute
from afina.techniques.context import Context
from afina.techniques.sparsify.config import SparsifyConfig
from afina.techniques.sparsify.technique import readers_of, set_zeros
from afina.types import Sensitivity


def layer_sensitivities(
    network: Network, config: SparsifyConfig, context: Context, levels: tuple[float, ...]
) -> dict[str, Sensitivity]:
    """Of each layer that can be made sparse, by its name, with a share of its weights gone (each of `levels`).

    Raises:
        InputError: there are no images.
    """
    network = network.copy().eval() if network.training else network
    readers, _ = readers_of(network, config)
    effect = Effect(network, context.first(len(readers) * len(levels) * cost_of(network).macs))
    moments = gather(network, readers, context.stream(), context.images) if config.criterion == "fit" else {}
    scratch, found = network.copy(), dict[str, Sensitivity]()
    with context.progress.work("Measuring layers", len(readers)) as bar:
        for name, reader in readers.items():
            measured = []
            for level in levels:
                with tried(scratch, [reader]):
                    set_zeros(scratch, reader, level, config, moments.get(name))
                    measured.append(effect.of(scratch))
            size = attribute(network.module, name).numel()
            gone = tuple(round(size * level) for level in levels)
            found[reader.name] = Sensitivity(reader.name, "weights", size, (reader.name,), (), gone, tuple(measured))
            bar.advance(note=reader.name)
    return found
