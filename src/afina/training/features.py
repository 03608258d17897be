"""What a student can learn from inside a teacher: feature maps, where they are active, how images relate to each other.

    features    mean of |P s - t|^2, as a share of what t varies (Romero et al. 2015, equation 3), P a learned 1 x 1
    attention   mean of |a(s) - a(t)|^2 with a(x) = sum_c x_c^2, scaled to length 1 (Zagoruyko & Komodakis 2017, eq. 2)
    relations   smooth L1 between distances of pairs of images, each over their mean (Park et al. 2019, equation 4)

A place is the output of a node of a captured graph: `[N, C, H, W]`, `[N, H, W, C]`, or `[N, T, C]` for tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Interpreter, Node
from torch.nn import functional as F

from afina.errors import InputError, did_you_mean
from afina.graph.cost import layer_of
from afina.graph.network import Network, outputs_of
from afina.graph.ops import op_name
from afina.graph.propagate import fake_values

# Of tokens, whose resolution does not change, places at these shares of the depth are matched.
_DEPTHS = (1 / 3, 2 / 3, 1.0)
_TINY = 1e-6
_SHOWN = 8
# A number of images by which the dimension that counts them is known.
_IMAGES = 13
_FIRST = ("conv", "batch_norm", "group_norm", "instance_norm", "max_pool", "avg_pool", "adaptive_")
_LAST = frozenset(("linear", "layer_norm", "rms_norm"))
_ELEMENTWISE = frozenset(
    "add add_ mul mul_ relu relu_ gelu silu silu_ hardswish hardswish_ hardsigmoid elu leaky_relu relu6 hardtanh "
    "hardtanh_ sigmoid tanh clamp prelu mish dropout".split()
)


@dataclass(frozen=True)
class Place:
    """One activation of a network.

    Attributes:
        node: Name of the node.
        layer: Of the layer or module that it came from.
        shape: For one image: channels, then the resolution (height and width, or tokens).
        last: Whether the tensor has its channels last.
    """

    node: str
    layer: str
    shape: tuple[int, ...]
    last: bool = False

    @property
    def channels(self) -> int:
        return self.shape[0]

    @property
    def grid(self) -> tuple[int, ...]:
        """Its resolution."""
        return self.shape[1:]


Pair = tuple[Place, Place]


def find_pairs(student: Network, teacher: Network, asked: str | Sequence[str]) -> list[Pair]:
    """Places of the student and of the teacher that should say the same.

    Args:
        student, teacher: Both with the same input.
        asked: `auto`: for each resolution that both have, the last place of it, and of tokens places at the same share
            of the depth; or pairs `LAYER:LAYER` (student's, teacher's), or `LAYER` where both have that name.

    Raises:
        InputError: a layer that is not there, or two whose resolutions differ; for `auto`, no place in common.
    """
    own, theirs = places_of(student), places_of(teacher)
    if asked == "auto":
        found = _by_resolution(own, theirs)
        if not found:
            raise InputError(
                "Student and teacher have no feature map of the same resolution.",
                fix="Name layers, as in --features layer3:blocks.8, or leave features out.",
            )
        return found
    names = [part.strip() for part in asked.split(",")] if isinstance(asked, str) else list(asked)
    return [_named(name, own, theirs) for name in names]


def places_of(network: Network) -> list[Place]:
    """The activations of a network that are feature maps, in the order of the graph.

    Layers say where their channels are (first of a convolution or batch norm, last of a linear layer or layer norm),
    and element-wise operators hand it on. Views, and attention's own tensors, are no feature maps.
    """
    with network.inference():
        values = fake_values(network.module, (_IMAGES, *network.input.shape))
    last: dict[Node, bool] = {}
    found = []
    for node in network.graph.nodes:
        value = values.get(node)
        if node.op != "call_function" or not isinstance(value, Tensor) or value.ndim not in (3, 4):
            continue
        if value.shape[0] != _IMAGES:
            continue  # attention's own tensors may have tokens, or heads, in the place of images
        side = _channels_last(node, last)
        if side is None:
            continue
        last[node] = side
        if node.users:
            shape = tuple(int(size) for size in value.shape[1:])
            found.append(Place(node.name, layer_of(node), (shape[-1], *shape[:-1]) if side else shape, side))
    return found


class FeatureLoss(nn.Module):
    """The losses of the table above, summed; its parameters (projections) are trained with the student.

    Args:
        pairs: What `find_pairs` gave.
        features, attention, relations: Weight of each part; 0 leaves it out.
    """

    def __init__(self, pairs: Sequence[Pair], features: float, attention: float, relations: float) -> None:
        super().__init__()
        self.pairs = tuple(pairs)
        self._weights = (features, attention, relations)
        self.projections = nn.ModuleList(
            nn.Linear(own.channels, theirs.channels, bias=False) if own.channels != theirs.channels else nn.Identity()
            for own, theirs in pairs
        )

    def forward(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
        """A scalar, from the activations of both by the names of their nodes."""
        features, attention, relations = self._weights
        parts = []
        for (own, theirs), projection in zip(self.pairs, self.projections, strict=True):
            mine, wanted = _rows(student, own), _rows(teacher, theirs)
            if features:
                parts.append(features * _matched(projection(mine), wanted) / len(self.pairs))
            if attention:
                parts.append(attention * _attended(mine, wanted) / len(self.pairs))
        if relations:
            own, theirs = self.pairs[-1]
            parts.append(relations * _related(_rows(student, own).mean(1), _rows(teacher, theirs).mean(1)))
        return torch.stack(parts).sum()


def tapped(network: Network, images: Tensor, nodes: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """The outputs of a network, and what some of its nodes give on the way; with gradients where the mode has them."""
    tap = _Tap(network, frozenset(nodes))
    outputs = outputs_of(tap.run(images))
    return outputs, tap.found


class _Tap(Interpreter):
    def __init__(self, network: Network, nodes: frozenset[str]) -> None:
        super().__init__(network.module)
        self._nodes = nodes
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.name in self._nodes:
            self.found[n.name] = value
        return value


def _rows(activations: Mapping[str, Tensor], place: Place) -> Tensor:
    """An activation as `[N, places, C]`, in float32."""
    value = activations[place.node].float()
    return value.flatten(1, -2) if place.last else value.flatten(2).transpose(1, 2)


def _matched(mine: Tensor, wanted: Tensor) -> Tensor:
    varies = (wanted - wanted.mean((0, 1))).square().mean().clamp_min(_TINY)
    return (mine - wanted).square().mean() / varies


def _attended(mine: Tensor, wanted: Tensor) -> Tensor:
    maps = [F.normalize(value.square().sum(2), dim=1) for value in (mine, wanted)]
    return (maps[0] - maps[1]).square().sum(1).mean()


def _related(mine: Tensor, wanted: Tensor) -> Tensor:
    distances = []
    for value in (mine, wanted):
        apart = torch.pdist(value)
        distances.append(apart / apart.detach().mean().clamp_min(_TINY))
    return F.smooth_l1_loss(distances[0], distances[1])


def _by_resolution(own: Sequence[Place], theirs: Sequence[Place]) -> list[Pair]:
    found: list[Pair] = []
    for grid in dict.fromkeys(place.grid for place in theirs):
        mine, taught = ([place for place in places if place.grid == grid] for places in (own, theirs))
        if not mine or (len(grid) == 2 and max(grid) == 1):
            continue
        for depth in (1.0,) if len(grid) == 2 else _DEPTHS:
            pair = mine[round(depth * (len(mine) - 1))], taught[round(depth * (len(taught) - 1))]
            if pair not in found:
                found.append(pair)
    return found


def _named(text: str, own: Sequence[Place], theirs: Sequence[Place]) -> Pair:
    mine, _, taught = text.partition(":")
    pair = _last(mine, own, "student"), _last(taught or mine, theirs, "teacher")
    if pair[0].grid != pair[1].grid:
        raise InputError(
            f"--features {text}: the two feature maps differ in resolution.",
            why=f"The student's has {pair[0].grid}, the teacher's {pair[1].grid}.",
            fix="Choose layers of the same resolution, or --features auto.",
        )
    return pair


def _last(name: str, places: Sequence[Place], whose: str) -> Place:
    """The last place inside the layer or module of that name."""
    found = [place for place in places if f"{place.layer}.".startswith(f"{name}.")]
    if not found:
        names = dict.fromkeys(place.layer for place in places)
        near = did_you_mean(name, names)
        raise InputError(
            f"The {whose} has no layer {name!r} with a feature map.",
            fix=near or f"There are: {', '.join(list(names)[-_SHOWN:])}.",
        )
    return found[-1]


def _channels_last(node: Node, known: Mapping[Node, bool]) -> bool | None:
    """Whether the channels of what a node gives are its last dimension; None where that is not a feature map."""
    name = op_name(node)
    if name.startswith(_FIRST):
        return False
    if name in _LAST:
        return True
    if name not in _ELEMENTWISE:
        return None
    return next((known[source] for source in node.all_input_nodes if source in known), None)
