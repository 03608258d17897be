"""The technique: a smaller network, and the record of what was removed."""

from afina.graph.network import Network
from afina.techniques.context import Context
from afina.techniques.prune.config import PruneConfig
from afina.techniques.prune.study import Study
from afina.types import Record


def apply(network: Network, config: PruneConfig, context: Context) -> tuple[Network, Record]:
    """A smaller network without the units that matter least, and the record; the input is left as it was.

    The result is ordinary: it runs, trains, saves, exports and prunes again.

    Raises:
        InputError: the configuration is not possible for this network.
        NothingToDo: no unit of any axis can be removed.
    """
    study = Study(network, config, context)
    return study.prune(config.keep or (study.uniform() if study.axes else {}))
