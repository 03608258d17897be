"""Parts that break their contracts, each in one way."""

from afina.tasks import Classification
from afina_example.packed import PackedRuntime


class NoMetric(Classification):
    """A task whose metric is not described."""

    metric = "top2"


class NoDot(PackedRuntime):
    """A runtime whose files have an ending without a dot."""

    name = "broken"
    format = "broken"
    suffix = "ptz"
