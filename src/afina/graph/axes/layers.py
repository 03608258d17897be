"""How axes run through layers with weights: convolutions, linear layers, norms, embeddings."""

from torch.fx import Node

from afina.graph.axes.builder import Builder, NotUnderstood, RemainingPositions
from afina.graph.axes.labels import FIXED, Expr, concatenate, join
from afina.graph.ops import arguments, op_name, set_argument


def convolution(g: Builder, node: Node) -> None:
    """Plain, grouped, depthwise and transposed convolution of any number of spatial dimensions."""
    a = arguments(node)
    x, weight, bias, groups = a["input"], a["weight"], a["bias"], a["groups"]
    dims, kernel = g.dims(x), g.dims(weight)
    if len(dims) != len(kernel):
        raise NotUnderstood("its input has no batch dimension")
    transposed = a.get("transposed", "transpose" in str(node.target))
    g.fix(node, (*dims[2:], *kernel[2:]), "a convolution runs along it")
    if groups == 1:
        source, target = (0, 1) if transposed else (1, 0)
        g.unite(node, dims[1], kernel[source])
        g.mark(weight, "channels", produces=target, consumes=source)
        out = kernel[target]
    else:
        out = _grouped(g, node, transposed)
    if g.is_tensor(bias):
        out = g.unite(node, out, g.dims(bias)[0])
    g.put(node, (dims[0], out, *(FIXED,) * (len(dims) - 2)))


def _grouped(g: Builder, node: Node, transposed: bool) -> Expr:
    """Channels are groups x channels of a group; whole groups can go, or the same channels of every group."""
    a = arguments(node)
    x, weight, groups = a["input"], a["weight"], a["groups"]
    if not isinstance(groups, int):
        raise NotUnderstood("the number of its groups is not constant")
    channels, (first, second) = g.dims(x)[1], g.dims(weight)[:2]
    sizes = g.shape(weight)
    group, inner = g.labels.split(channels, groups, g.shape(x)[1] // groups)
    if transposed:
        g.unite(node, channels, first)
        out = join((group, second), (groups, sizes[1]))
        g.mark(weight, "channels", produces=1, consumes=0)
    else:
        if sizes[1] > 1:
            g.unite(node, inner, second)
        weight_group, _ = g.labels.split(first, groups, sizes[0] // groups)
        group = g.unite(node, group, weight_group)
        out = first
        g.mark(weight, "channels", produces=0, consumes=1)
    if groups < max(g.shape(x)[1], sizes[0]):
        g.tag("groups", group)

    def write(twin: Node, remaining: RemainingPositions) -> None:
        set_argument(twin, "groups", remaining.count(group) if group else groups)

    g.respell(node, write)
    return out


def linear(g: Builder, node: Node) -> None:
    """`x @ weight.T + bias` over the last dimension."""
    a = arguments(node)
    x, weight, bias = a["input"], a["weight"], a["bias"]
    dims, (out, into) = g.dims(x), g.dims(weight)
    g.unite(node, dims[-1], into)
    g.mark(weight, "hidden", produces=0, consumes=1)
    if g.is_tensor(bias):
        out = g.unite(node, out, g.dims(bias)[0])
    g.put(node, (*dims[:-1], out))


def batch_norm(g: Builder, node: Node) -> None:
    """Batch and instance norm: each channel on its own; without running statistics, over all the rest."""
    a = arguments(node)
    dims = g.dims(a["input"])
    if not g.is_tensor(a["running_mean"]):
        g.tag("normalised", dims[0], *dims[2:])
    channel = dims[1]
    for name in ("weight", "bias", "running_mean", "running_var"):
        if g.is_tensor(a[name]):
            channel = g.unite(node, channel, g.dims(a[name])[0])
    g.put(node, (dims[0], channel, *dims[2:]))


def group_norm(g: Builder, node: Node) -> None:
    """Whole groups can go, or the same channels of every group: statistics are then taken over the others."""
    a = arguments(node)
    x, groups = a["input"], a["num_groups"]
    dims = g.dims(x)
    group, inner = g.labels.split(dims[1], groups, g.shape(x)[1] // groups)
    g.tag("groups", group)
    g.tag("normalised", inner, *dims[2:])
    g.tag("embedding", inner)
    channel = dims[1]
    for name in ("weight", "bias"):
        if g.is_tensor(a[name]):
            channel = g.unite(node, channel, g.dims(a[name])[0])

    def write(twin: Node, remaining: RemainingPositions) -> None:
        set_argument(twin, "num_groups", remaining.count(group) if group else groups)

    g.put(node, (dims[0], channel, *dims[2:]))
    g.respell(node, write)


def layer_norm(g: Builder, node: Node) -> None:
    """Layer and RMS norm: statistics are taken over the units that are left, whose number is spelled out."""
    a = arguments(node)
    dims, shape = list(g.dims(a["input"])), a["normalized_shape"]
    first = len(dims) - len(shape)
    for name in ("weight", "bias"):
        if g.is_tensor(a.get(name)):
            for d, expr in enumerate(g.dims(a[name])):
                dims[first + d] = g.unite(node, dims[first + d], expr)
    run = tuple(dims[first:])
    g.tag("normalised", *run)
    g.tag("embedding", *run)

    def write(twin: Node, remaining: RemainingPositions) -> None:
        sizes = [remaining.count(expr) if expr else size for expr, size in zip(run, shape, strict=True)]
        set_argument(twin, "normalized_shape", sizes)

    g.put(node, tuple(dims))
    if any(run):
        g.respell(node, write)


def embedding(g: Builder, node: Node) -> None:
    """Rows of a table by number: the columns are the layer's output."""
    a = arguments(node)
    rows, columns = g.dims(a["weight"])
    g.fix(node, [rows, *g.dims(a["indices"])], "its rows are taken by number")
    g.mark(a["weight"], "hidden", produces=1)
    g.put(node, (*(FIXED for _ in g.dims(a["indices"])), columns))


def recurrent(g: Builder, node: Node) -> None:
    """`lstm`, `gru`, `rnn`: the hidden units of a layer, the same in both directions, can go.

    Weights come as [gates * hidden, inputs], [gates * hidden, hidden] and biases, for each layer and direction;
    states as [layers * directions, batch, hidden], so all layers have the same hidden units.
    """
    a = arguments(node)
    if "input" not in a or not isinstance(a["num_layers"], int):
        raise NotUnderstood("its input is packed")
    gates = {"lstm": 4, "gru": 3}.get(op_name(node), 1)
    dims, weights = g.dims(a["input"]), list(a["params"])
    each, directions = (4 if a["has_biases"] else 2), (2 if a["bidirectional"] else 1)
    states = a["hx"] if isinstance(a["hx"], (tuple, list)) else [a["hx"]]
    hidden = g.dims(states[0])[-1]
    if len(dims) != 3 or len(weights) != each * directions * a["num_layers"]:
        raise NotUnderstood("its states are projected, or its input has no batch dimension")
    for state in states[1:]:
        hidden = g.unite(node, hidden, g.dims(state)[-1])
    source, size = dims[-1], g.shape(states[0])[-1]
    both = concatenate([hidden] * directions, [size] * directions)
    for start in range(0, len(weights), each):
        into, over, *biases = weights[start : start + each]
        layer = start // (each * directions)
        g.unite(
            node, g.dims(into)[1], source if layer == 0 else concatenate([hidden] * directions, [size] * directions)
        )
        g.unite(node, g.dims(over)[1], hidden)
        for weight in (into, over, *biases):
            gate, gate_units = g.labels.split(g.dims(weight)[0], gates, size)
            g.fix(node, [gate], "its gates differ")
            hidden = g.unite(node, hidden, gate_units)
        g.mark(into, "hidden", produces=0, consumes=1)
        g.mark(over, "hidden", produces=0, consumes=1)
    along = dims[0] if not a["batch_first"] else dims[1]
    g.fix(node, [along], "the layer runs along it")
    g.put(node, [(*dims[:2], both), *((FIXED, FIXED, hidden) for _ in states)])


def prelu(g: Builder, node: Node) -> None:
    """One slope for all channels, or one for each."""
    a = arguments(node)
    dims = g.dims(a["self"])
    if g.shape(a["weight"])[0] > 1:
        dims = (dims[0], g.unite(node, dims[1], g.dims(a["weight"])[0]), *dims[2:])
    g.put(node, dims)


RULES = {
    **{f"conv{n}d": convolution for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": convolution for n in (1, 2, 3)},
    "convolution": convolution,
    "linear": linear,
    "batch_norm": batch_norm,
    "instance_norm": batch_norm,
    "group_norm": group_norm,
    "layer_norm": layer_norm,
    "rms_norm": layer_norm,
    "prelu": prelu,
    "embedding": embedding,
    **dict.fromkeys("lstm gru rnn_tanh rnn_relu".split(), recurrent),
}
