"""Networks that choose by order: the 300 places of an image with the highest scores, say, become the rows of an output.

Two programs add in another order, so that two scores that are equal in six digits may change places. Then two rows of
every output that is made from the choice change places too, and none of them is wrong:

    scores    0.71 0.52 0.3100001 0.31      0.71 0.52 0.31 0.3100002
    rows      a    b    c         d         a    b    d    c

So rows are compared as a set (`in_order_of`). Where such a pair lies at the end of the choice, one program has a row
that the other has not, and its rows may look at each other: such images are told by the scores (`surely_chosen`).
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from afina.graph import Network

_TIE = 1e-5  # of the largest score: what two programs may make of the same one
_FEWEST_SURE = 0.5  # share of the images
_TINY = 1e-30


def chosen_counts(network: "Network") -> frozenset[int]:
    """How many positions the network chooses by their order, for each place in its graph where it does.

    Where only the values that were chosen are read, and not where they stood, rounding moves them by no more than it
    moves other values.

    Example:
        >>> import torch
        >>> from afina.graph import capture
        >>> from afina.types import InputSpec
        >>> class Best(torch.nn.Module):
        ...     def forward(self, x):
        ...         x = x.flatten(1)
        ...         return x.gather(1, x.topk(5).indices)
        >>> sorted(chosen_counts(capture(Best(), InputSpec(8, 8))))
        [5]
    """
    from afina.graph.ops import arguments, op_name

    counts = set()
    for node in network.graph.nodes:
        if node.op != "call_function" or op_name(node) not in ("topk", "sort"):
            continue
        if any(user.args[1] == 1 and user.users for user in node.users):
            counts.add(node.meta["val"][0].shape[arguments(node)["dim"]])
    return frozenset(count for count in counts if isinstance(count, int) and count > 1)


def in_order_of(
    expected: Mapping[str, np.ndarray], answers: Mapping[str, np.ndarray], counts: frozenset[int]
) -> dict[str, np.ndarray]:
    """`answers` with the rows of each image in the order of those of `expected` that they are nearest to.

    Args:
        expected: Outputs `[N, ...]` of the network, by name.
        answers: Outputs of the file, of the same names and shapes.
        counts: `chosen_counts`. The first dimension behind the images of one of these sizes holds the rows; outputs
            that have as many rows are put in the same order.

    Example:
        >>> expected = {"boxes": np.array([[[1.0, 2.0], [3.0, 4.0]]]), "scores": np.array([[0.5, 0.25]])}
        >>> answers = {"boxes": np.array([[[3.0, 4.0], [1.0, 2.0]]]), "scores": np.array([[0.25, 0.5]])}
        >>> in_order_of(expected, answers, frozenset([2]))["scores"].tolist()
        [[0.5, 0.25]]
    """
    ordered = dict(answers)
    for count in counts:
        places = {name: value.shape.index(count, 1) for name, value in expected.items() if count in value.shape[1:]}
        if not places:
            continue
        wanted, given = (_rows(outputs, expected, places) for outputs in (expected, answers))
        for image, (first, second) in enumerate(zip(wanted, given, strict=True)):
            order = _nearest(first, second)
            for name, place in places.items():
                if ordered[name] is answers[name]:
                    ordered[name] = answers[name].copy()
                ordered[name][image] = answers[name][image].take(order, axis=place - 1)
    return ordered


def _rows(
    outputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], places: Mapping[str, int]
) -> np.ndarray:
    """The rows of all outputs side by side, `[N, rows, numbers]`, on one scale."""
    parts = []
    for name, place in places.items():
        value = np.moveaxis(outputs[name], place, 1).astype(np.float64)
        scale = np.sqrt(np.square(expected[name].astype(np.float64)).mean())
        parts.append(value.reshape(*value.shape[:2], -1) / max(scale, _TINY))
    return np.concatenate(parts, axis=2)


def _nearest(wanted: np.ndarray, given: np.ndarray) -> np.ndarray:
    """For each row of `wanted` the row of `given` that goes with it, each used once and at the least squared distance.

    Both are `[rows, numbers]`.
    """
    from scipy.optimize import linear_sum_assignment

    squares = (wanted**2).sum(1)[:, None] + (given**2).sum(1)[None] - 2 * wanted @ given.T
    order: np.ndarray = linear_sum_assignment(squares)[1]
    return order


def surely_chosen(network: "Network", batches: Iterable[np.ndarray]) -> np.ndarray:
    """For each image whether its choice does not depend on rounding: the last one chosen and the next differ enough.

    Args:
        network: The network.
        batches: Images `[n, C, H, W]`.

    Returns:
        `[N]`, False where less than 1e-5 of the largest score decides who is chosen; all True where that holds of more
        than half of the images, since then there would be too few to compare.
    """
    import torch
    from torch.fx import Interpreter, Node

    from afina.graph.ops import arguments, op_name

    class Watch(Interpreter):
        tied: torch.Tensor

        def run_node(self, n: Node) -> Any:
            value = super().run_node(n)
            if n.op == "call_function" and op_name(n) == "topk":
                a = arguments(n)
                self.tied |= _ends_in_tie(self.env[a["self"]], value[0].shape[a["dim"]], a["dim"], a["largest"])
            return value

    found = []
    with network.inference():
        for images in batches:
            runner = Watch(network.module)
            runner.tied = torch.zeros(len(images), dtype=torch.bool, device=network.device)
            runner.run(torch.from_numpy(images).to(network.device))
            found.append(runner.tied.cpu().numpy())
    sure = ~np.concatenate(found)
    return sure if sure.mean() >= _FEWEST_SURE else np.ones_like(sure)


def _ends_in_tie(scores: "torch.Tensor", count: int, dim: int, largest: bool) -> "torch.Tensor | bool":
    """For each image of `scores` `[n, ...]` whether the last of `count` chosen ones is as good as the next."""
    if scores.ndim < 2 or dim % scores.ndim == 0 or scores.shape[dim] <= count:
        return False
    ordered = scores.movedim(dim, -1).sort(dim=-1, descending=largest).values
    gap = (ordered[..., count - 1] - ordered[..., count]).abs()
    tied = gap <= _TIE * ordered[..., : count + 1].abs().amax(-1)
    return tied.reshape(len(scores), -1).any(1)
