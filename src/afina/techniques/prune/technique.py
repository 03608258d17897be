"""The technique: a smaller network, and the record of what was removed."""

from afina.graph.network import Network
from afina.techniques.base import DENSE_WEIGHTS, FLOAT_WEIGHTS, Technique
from afina.techniques.context import Context
from afina.techniques.prune.config import PruneConfig
from afina.techniques.prune.study import Study
from afina.types import Record


def apply(network: Network, config: PruneConfig, context: Context) -> tuple[Network, Record]:
    """A smaller network without the units that matter least, and the record; the input is left as it was.

    The result is ordinary: it runs, trains, saves, exports and prunes again.

    Args:
        network: The network.
        config: How to prune.
        context: Calibration images (criteria that need images give way to `magnitude` without them), seed, progress.

    Raises:
        InputError: the configuration is not possible for this network.
        NothingToDo: no unit of any axis can be removed.
    """
    study = Study(network, config, context)
    # A config that names blocks alone says of no axis how many units go.
    uniform = config.ratio is not None and bool(study.axes) and not config.keep
    return study.prune(study.uniform() if uniform else config.keep)


TECHNIQUE = Technique(
    "prune",
    PruneConfig,
    apply,
    "Channels, neurons, heads and whole blocks that matter least are taken out.",
    requires=(FLOAT_WEIGHTS, DENSE_WEIGHTS),
)
