"""The outputs that a network without some units must have, computed on the whole network by masking positions."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from afina.graph.axes import Analysis, Axis
from afina.graph.axes.labels import Expr
from afina.graph.network import Network
from afina.graph.ops import arguments, op_name
from afina.graph.surgery import remaining_positions


def masked_answer(network: Network, keep: Mapping[Axis, Sequence[int]], images: Tensor) -> dict[str, Tensor]:
    """The outputs `[N, ...]` by name, in inference, of the network in which each axis keeps only the given units.

    After each op the positions of the other units are set to zero, and statistics (of norms, means and the like) are
    taken over the positions that are left. `surgery.remove` must give a network that answers the same; it goes
    another way to get there, which makes this a test of it.

    Args:
        network: Any captured network.
        keep: The numbers of the units that stay, for some axes, as `surgery.remove` takes them.
        images: `[N, C, H, W]`; N should be a size that the network's dimensions do not have, such as 5 or 13.

    Example:
        >>> from torch import nn
        >>> from afina.graph import capture
        >>> from afina.graph.axes import analyse
        >>> from afina.graph.surgery import remove
        >>> from afina.types import InputSpec, TaskSpec
        >>> module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
        >>> network = capture(module, InputSpec(8, 8), TaskSpec("classification", ("cat", "dog")))
        >>> keep = {axis: [0, 3] for axis in analyse(network).free}
        >>> images = network.example(batch=5)
        >>> masked, removed = masked_answer(network, keep, images), remove(network, keep)(images)
        >>> torch.allclose(masked["outputs"], removed["outputs"], atol=1e-5)
        True
    """
    with network.inference():
        return network.named(_Masked(network, keep, len(images)).run(images))


class _Masked(Interpreter):
    """Runs a network and sets the positions that do not remain to zero after each node."""

    def __init__(self, network: Network, keep: Mapping[Axis, Sequence[int]], batch: int) -> None:
        super().__init__(network.module)
        self._analysis = Analysis(network, batch)
        self._remaining = remaining_positions(self._analysis, keep)

    def run_node(self, n: Node) -> Any:
        statistic = n.op == "call_function" and op_name(n) in _STATISTICS
        value = self._on_remaining(n) if statistic else super().run_node(n)
        if n.op == "output":
            return value
        if n.op == "get_attr" and isinstance(value, Tensor):
            value = value.detach().clone()
        masks = [[self._mask(expr) for expr in dims] for dims in self._analysis.dims(n)]
        if isinstance(value, Tensor):
            return _zeroed(value, masks[0]) if masks else value
        if isinstance(value, (tuple, list)) and masks:
            return [_zeroed(part, mask) for part, mask in zip(value, masks, strict=True)]
        return value

    def _mask(self, expr: Expr) -> Tensor | None:
        return torch.from_numpy(self._remaining.mask(expr)) if expr else None

    def _on_remaining(self, n: Node) -> Any:
        """The op on the remaining positions of its inputs; its result at their places in a tensor of the whole size."""
        a = arguments(n)
        inputs: dict[str, Any] = {name: self._sliced(source) for name, source in a.items() if isinstance(source, Node)}
        first = next(iter(inputs.values()))
        if "normalized_shape" in a:
            inputs["normalized_shape"] = list(first.shape[first.ndim - len(a["normalized_shape"]) :])
        if "num_groups" in a:
            source = next(source for source in a.values() if isinstance(source, Node))
            channels = self._mask(self._analysis.dims(source)[0][1])
            if channels is not None:
                inputs["num_groups"] = int(channels.reshape(a["num_groups"], -1).any(1).sum())
        assert isinstance(n.target, torch._ops.OpOverload)
        value = n.target(**{**a, **inputs})
        parts = [value] if isinstance(value, Tensor) else list(value)
        spread = [_spread(p, [self._mask(e) for e in d]) for p, d in zip(parts, self._analysis.dims(n), strict=True)]
        return spread[0] if isinstance(value, Tensor) else spread

    def _sliced(self, source: Node) -> Tensor:
        value: Tensor = self.env[source]
        for d, expr in enumerate(self._analysis.dims(source)[0]):
            mask = self._mask(expr)
            if mask is not None:
                value = value.index_select(d, mask.nonzero()[:, 0])
        return value


def _zeroed(value: Any, masks: Sequence[Tensor | None]) -> Any:
    """`value` with masked positions at zero; in place where it can be, since ops may write through a view of it."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    expanded = any(stride == 0 and size > 1 for stride, size in zip(value.stride(), value.shape, strict=True))
    for d, mask in enumerate(masks):
        if mask is not None and not mask.all():
            shape = [1] * value.ndim
            shape[d] = -1
            gone = ~mask.reshape(shape)
            value = value.masked_fill(gone, 0) if expanded else value.masked_fill_(gone, 0)
    return value


def _spread(value: Tensor, masks: Sequence[Tensor | None]) -> Tensor:
    for d, mask in enumerate(masks):
        if mask is not None:
            shape = list(value.shape)
            shape[d] = len(mask)
            value = value.new_zeros(shape).index_copy(d, mask.nonzero()[:, 0], value)
    return value


_STATISTICS = frozenset(
    "layer_norm rms_norm group_norm batch_norm instance_norm mean var std var_mean std_mean amax amin max min norm "
    "linalg_vector_norm logsumexp median any all".split()
)
