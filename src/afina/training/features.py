"""Losses on the feature maps of a teacher: on their values, on where they are active, on distances between images.

    features    mean of |P s - t|^2, as a share of what t varies (Romero et al. 2015, equation 3), P a learned 1 x 1
    attention   mean of |a(s) - a(t)|^2 with a(x) = sum_c x_c^2, scaled to length 1 (Zagoruyko & Komodakis 2017, eq. 2)
    relations   smooth L1 between distances of pairs of images, each over their mean (Park et al. 2019, equation 4)

A place is the output of a node of a captured graph: `[N, C, H, W]`, `[N, H, W, C]`, or `[N, T, C]` for tokens.

A worked example. A student and a teacher on 32 x 32 images have, as channels x height x width:

    student   stem 16x32x32   layer1 16x32x32   layer2 32x16x16   layer3 64x8x8
    teacher   stem 64x32x32   layer1 64x32x32   layer2 128x16x16  layer3 256x8x8

`auto` pairs the last place of each resolution: (layer1, layer1), (layer2, layer2), (layer3, layer3). Every place is
flattened to rows `[N, places, C]`: student `[N, 1024, 16]`, teacher `[N, 1024, 64]` for the first pair. Since 16 is not
64, a matrix P `[64, 16]` is trained with the student and maps its rows to the teacher's width; without it the student
could not be compared, and would have to become as wide as what it is to replace. The feature loss divides by the
variance of the teacher's rows, so that layers of large activations do not drown the others. Attention needs no P: a map
is the sum over channels, `[N, 1024]`, and has no width.
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
from afina.graph.network import Network, joined
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
        layer: Name of the layer or module that the node came from.
        shape: Shape for one image: channels, then the resolution (height and width, or tokens).
        channels_last: Whether the channels are the last dimension of the tensor.
    """

    node: str
    layer: str
    shape: tuple[int, ...]
    channels_last: bool = False

    @property
    def channels(self) -> int:
        return self.shape[0]

    @property
    def grid(self) -> tuple[int, ...]:
        """Its resolution."""
        return self.shape[1:]


Pair = tuple[Place, Place]


def find_pairs(student: Network, teacher: Network, layers: str | Sequence[str]) -> list[Pair]:
    """Pairs of places, of the student and of the teacher, whose activations should become alike.

    Args:
        student, teacher: Both with the same input.
        layers: `auto`: for each resolution that both have, the last place of it, and of tokens places at the same share
            of the depth; or pairs `LAYER:LAYER` (student's, teacher's), or `LAYER` where both have that name.

    Raises:
        InputError: a layer that is not there, or two whose resolutions differ; for `auto`, no place in common.
    """
    student_places, teacher_places = places_of(student), places_of(teacher)
    if layers == "auto":
        pairs = _by_resolution(student_places, teacher_places)
        if not pairs:
            raise InputError(
                "Student and teacher have no feature map of the same resolution.",
                fix="Name layers, as in --features layer3:blocks.8, or leave features out.",
            )
        return pairs
    names = [part.strip() for part in layers.split(",")] if isinstance(layers, str) else list(layers)
    return [_named(name, student_places, teacher_places) for name in names]


def places_of(network: Network) -> list[Place]:
    """The activations of a network that are feature maps, in the order of the graph.

    The kind of a layer gives the dimension of its channels (first of a convolution or batch norm, last of a linear
    layer or layer norm), and element-wise operators keep that of their input. Views, and attention's own tensors, are
    no feature maps.
    """
    with network.inference():
        values = fake_values(network.module, (network.traced_batch(_IMAGES), *network.input.shape))
    channels_last: dict[Node, bool] = {}
    places = []
    for node in network.graph.nodes:
        value = values.get(node)
        if node.op != "call_function" or not isinstance(value, Tensor) or value.ndim not in (3, 4):
            continue
        if value.shape[0] != network.traced_batch(_IMAGES):
            continue  # attention's own tensors may have tokens, or heads, in the place of images
        is_last = _channels_last(node, channels_last)
        if is_last is None:
            continue
        channels_last[node] = is_last
        if node.users:
            shape = tuple(int(size) for size in value.shape[1:])
            shape = (shape[-1], *shape[:-1]) if is_last else shape
            places.append(Place(node.name, layer_of(node), shape, is_last))
    return places


class FeatureLoss(nn.Module):
    """The losses of the table above, summed; its parameters (projections) are trained with the student.

    Args:
        pairs: Places of the student and of the teacher, as `find_pairs` gives them.
        features: Weight of the feature loss; 0 leaves it out.
        attention: Weight of the attention loss, likewise.
        relations: Weight of the relation loss, likewise.
    """

    def __init__(self, pairs: Sequence[Pair], features: float, attention: float, relations: float) -> None:
        super().__init__()
        self.pairs = tuple(pairs)
        self._weights = (features, attention, relations)
        self.projections = nn.ModuleList(
            nn.Linear(ours.channels, theirs.channels, bias=False) if ours.channels != theirs.channels else nn.Identity()
            for ours, theirs in pairs
        )

    def forward(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
        """A scalar, from the activations of both by the names of their nodes."""
        features, attention, relations = self._weights
        parts = []
        for (student_place, teacher_place), projection in zip(self.pairs, self.projections, strict=True):
            student_rows, teacher_rows = _rows(student, student_place), _rows(teacher, teacher_place)
            if features:
                parts.append(features * _feature_loss(projection(student_rows), teacher_rows) / len(self.pairs))
            if attention:
                parts.append(attention * _attention_loss(student_rows, teacher_rows) / len(self.pairs))
        if relations:
            student_rows, teacher_rows = (_rows(a, p) for a, p in zip((student, teacher), self.pairs[-1], strict=True))
            parts.append(relations * _relation_loss(student_rows.mean(1), teacher_rows.mean(1)))
        return torch.stack(parts).sum()


def tapped(network: Network, images: Tensor, nodes: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The outputs of a network and those of some of its nodes, by name; with gradients where torch's mode has them.

    Args:
        network: The network, in its present mode.
        images: `[N, C, H, W]`.
        nodes: Names of nodes.
    """
    outputs, activations = [], []
    for part in network.parts(images):
        tap = _Tap(network, frozenset(nodes))
        outputs.append(network.named(tap.run(part)))
        activations.append(tap.activations)
    return joined(outputs), joined(activations)


class _Tap(Interpreter):
    def __init__(self, network: Network, nodes: frozenset[str]) -> None:
        super().__init__(network.module)
        self._nodes = nodes
        self.activations: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.name in self._nodes:
            self.activations[n.name] = value
        return value


def _rows(activations: Mapping[str, Tensor], place: Place) -> Tensor:
    """An activation as `[N, places, C]`, in float32."""
    value = activations[place.node].float()
    return value.flatten(1, -2) if place.channels_last else value.flatten(2).transpose(1, 2)


def _feature_loss(student_rows: Tensor, teacher_rows: Tensor) -> Tensor:
    variance = (teacher_rows - teacher_rows.mean((0, 1))).square().mean().clamp_min(_TINY)
    return (student_rows - teacher_rows).square().mean() / variance


def _attention_loss(student_rows: Tensor, teacher_rows: Tensor) -> Tensor:
    maps = [F.normalize(rows.square().sum(2), dim=1) for rows in (student_rows, teacher_rows)]
    return (maps[0] - maps[1]).square().sum(1).mean()


def _relation_loss(student_means: Tensor, teacher_means: Tensor) -> Tensor:
    """Compares distances between images; activations are `[N, C]`, one row for each image."""
    distances = []
    for means in (student_means, teacher_means):
        pair_distances = torch.pdist(means)
        distances.append(pair_distances / pair_distances.detach().mean().clamp_min(_TINY))
    return F.smooth_l1_loss(distances[0], distances[1])


def _by_resolution(student_places: Sequence[Place], teacher_places: Sequence[Place]) -> list[Pair]:
    """For each resolution that both networks have, pairs of places: the last of each, of tokens some along the depth.

    With 12 places of 196 tokens in the student and 24 in the teacher, `_DEPTHS` gives the places (4, 8), (7, 15) and
    (11, 23), counted from 0.
    """
    pairs: list[Pair] = []
    for grid in dict.fromkeys(place.grid for place in teacher_places):
        ours, theirs = (
            [place for place in places if place.grid == grid] for places in (student_places, teacher_places)
        )
        if not ours or (len(grid) == 2 and max(grid) == 1):
            continue
        for depth in (1.0,) if len(grid) == 2 else _DEPTHS:
            pair = ours[round(depth * (len(ours) - 1))], theirs[round(depth * (len(theirs) - 1))]
            if pair not in pairs:
                pairs.append(pair)
    return pairs


def _named(text: str, student_places: Sequence[Place], teacher_places: Sequence[Place]) -> Pair:
    student_layer, _, teacher_layer = text.partition(":")
    pair = (
        _last(student_layer, student_places, "student"),
        _last(teacher_layer or student_layer, teacher_places, "teacher"),
    )
    if pair[0].grid != pair[1].grid:
        raise InputError(
            f"--features {text}: the two feature maps differ in resolution.",
            why=f"The student's has {pair[0].grid}, the teacher's {pair[1].grid}.",
            fix="Choose layers of the same resolution, or --features auto.",
        )
    return pair


def _last(name: str, places: Sequence[Place], whose: str) -> Place:
    """The last place inside the layer or module of that name."""
    inside = [place for place in places if f"{place.layer}.".startswith(f"{name}.")]
    if not inside:
        names = dict.fromkeys(place.layer for place in places)
        near = did_you_mean(name, names)
        raise InputError(
            f"The {whose} has no layer {name!r} with a feature map.",
            fix=near or f"There are: {', '.join(list(names)[-_SHOWN:])}.",
        )
    return inside[-1]


def _channels_last(node: Node, sources: Mapping[Node, bool]) -> bool | None:
    """Whether the channels of what a node gives are its last dimension; None where that is not a feature map."""
    name = op_name(node)
    if name.startswith(_FIRST):
        return False
    if name in _LAST:
        return True
    if name not in _ELEMENTWISE:
        return None
    return next((sources[source] for source in node.all_input_nodes if source in sources), None)
