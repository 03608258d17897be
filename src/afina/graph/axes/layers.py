"""How axes run through layers with weights: convolutions, linear layers, norms, embeddings."""

from torch.fx import Node

from afina.graph.axes.builder import Builder, NotUnderstood, RemainingPositions
from afina.graph.axes.labels import FIXED, Expr, concatenate, join
from afina.graph.ops import arguments, op_name, set_argument


def convolution(builder: Builder, node: Node) -> None:
    """Plain, grouped, depthwise and transposed convolution of any number of spatial dimensions."""
    args = arguments(node)
    x, weight, bias, groups = args["input"], args["weight"], args["bias"], args["groups"]
    dims, kernel = builder.dims(x), builder.dims(weight)
    if len(dims) != len(kernel):
        raise NotUnderstood("its input has no batch dimension")
    transposed = args.get("transposed", "transpose" in str(node.target))
    builder.fix(node, (*dims[2:], *kernel[2:]), "a convolution runs along it")
    if groups == 1:
        source, target = (0, 1) if transposed else (1, 0)
        builder.unite(node, dims[1], kernel[source])
        builder.mark(weight, "channels", produces=target, consumes=source)
        out = kernel[target]
    else:
        out = _grouped(builder, node, transposed)
    if builder.is_tensor(bias):
        out = builder.unite(node, out, builder.dims(bias)[0])
    builder.set_dims(node, (dims[0], out, *(FIXED,) * (len(dims) - 2)))


def _grouped(builder: Builder, node: Node, transposed: bool) -> Expr:
    """Channels are groups x channels of a group; whole groups can go, or the same channels of every group."""
    args = arguments(node)
    x, weight, groups = args["input"], args["weight"], args["groups"]
    if not isinstance(groups, int):
        raise NotUnderstood("the number of its groups is not constant")
    channels, (first, second) = builder.dims(x)[1], builder.dims(weight)[:2]
    sizes = builder.shape(weight)
    group, inner = builder.labels.split(channels, groups, builder.shape(x)[1] // groups)
    if transposed:
        builder.unite(node, channels, first)
        out = join((group, second), (groups, sizes[1]))
        builder.mark(weight, "channels", produces=1, consumes=0)
    else:
        if sizes[1] > 1:
            builder.unite(node, inner, second)
        weight_group, _ = builder.labels.split(first, groups, sizes[0] // groups)
        group = builder.unite(node, group, weight_group)
        out = first
        builder.mark(weight, "channels", produces=0, consumes=1)
    if groups < max(builder.shape(x)[1], sizes[0]):
        builder.tag("groups", group)

    def write(twin: Node, remaining: RemainingPositions) -> None:
        set_argument(twin, "groups", remaining.count(group) if group else groups)

    builder.rewrite_on_removal(node, write)
    return out


def linear(builder: Builder, node: Node) -> None:
    """`x @ weight.T + bias` over the last dimension."""
    args = arguments(node)
    x, weight, bias = args["input"], args["weight"], args["bias"]
    dims, (out, into) = builder.dims(x), builder.dims(weight)
    builder.unite(node, dims[-1], into)
    builder.mark(weight, "hidden", produces=0, consumes=1)
    if builder.is_tensor(bias):
        out = builder.unite(node, out, builder.dims(bias)[0])
    builder.set_dims(node, (*dims[:-1], out))


def batch_norm(builder: Builder, node: Node) -> None:
    """Batch and instance norm: each channel on its own; without running statistics, over all the rest."""
    args = arguments(node)
    dims = builder.dims(args["input"])
    if not builder.is_tensor(args["running_mean"]):
        builder.tag("normalised", dims[0], *dims[2:])
    channel = dims[1]
    for name in ("weight", "bias", "running_mean", "running_var"):
        if builder.is_tensor(args[name]):
            channel = builder.unite(node, channel, builder.dims(args[name])[0])
    builder.set_dims(node, (dims[0], channel, *dims[2:]))


def group_norm(builder: Builder, node: Node) -> None:
    """Whole groups can go, or the same channels of every group: statistics are then taken over the others."""
    args = arguments(node)
    x, groups = args["input"], args["num_groups"]
    dims = builder.dims(x)
    group, inner = builder.labels.split(dims[1], groups, builder.shape(x)[1] // groups)
    builder.tag("groups", group)
    builder.tag("normalised", inner, *dims[2:])
    builder.tag("embedding", inner)
    channel = dims[1]
    for name in ("weight", "bias"):
        if builder.is_tensor(args[name]):
            channel = builder.unite(node, channel, builder.dims(args[name])[0])

    def write(twin: Node, remaining: RemainingPositions) -> None:
        set_argument(twin, "num_groups", remaining.count(group) if group else groups)

    builder.set_dims(node, (dims[0], channel, *dims[2:]))
    builder.rewrite_on_removal(node, write)


def layer_norm(builder: Builder, node: Node) -> None:
    """Layer and RMS norm: statistics are taken over the units that are left, whose number is spelled out."""
    args = arguments(node)
    dims, shape = list(builder.dims(args["input"])), args["normalized_shape"]
    first = len(dims) - len(shape)
    for name in ("weight", "bias"):
        if builder.is_tensor(args.get(name)):
            for d, expr in enumerate(builder.dims(args[name])):
                dims[first + d] = builder.unite(node, dims[first + d], expr)
    run = tuple(dims[first:])
    builder.tag("normalised", *run)
    builder.tag("embedding", *run)

    def write(twin: Node, remaining: RemainingPositions) -> None:
        sizes = [remaining.count(expr) if expr else size for expr, size in zip(run, shape, strict=True)]
        set_argument(twin, "normalized_shape", sizes)

    builder.set_dims(node, tuple(dims))
    if any(run):
        builder.rewrite_on_removal(node, write)


def embedding(builder: Builder, node: Node) -> None:
    """Rows of a table by number: the columns are the layer's output."""
    args = arguments(node)
    rows, columns = builder.dims(args["weight"])
    builder.fix(node, [rows, *builder.dims(args["indices"])], "its rows are taken by number")
    builder.mark(args["weight"], "hidden", produces=1)
    builder.set_dims(node, (*(FIXED for _ in builder.dims(args["indices"])), columns))


def recurrent(builder: Builder, node: Node) -> None:
    """`lstm`, `gru`, `rnn`: the hidden units of a layer, the same in both directions, can go.

    Weights come as [gates * hidden, inputs], [gates * hidden, hidden] and biases, for each layer and direction;
    states as [layers * directions, batch, hidden], so all layers have the same hidden units.
    """
    args = arguments(node)
    if "input" not in args or not isinstance(args["num_layers"], int):
        raise NotUnderstood("its input is packed")
    gates = {"lstm": 4, "gru": 3}.get(op_name(node), 1)
    dims, weights = builder.dims(args["input"]), list(args["params"])
    each, directions = (4 if args["has_biases"] else 2), (2 if args["bidirectional"] else 1)
    states = args["hx"] if isinstance(args["hx"], (tuple, list)) else [args["hx"]]
    hidden = builder.dims(states[0])[-1]
    if len(dims) != 3 or len(weights) != each * directions * args["num_layers"]:
        raise NotUnderstood("its states are projected, or its input has no batch dimension")
    for state in states[1:]:
        hidden = builder.unite(node, hidden, builder.dims(state)[-1])
    source, size = dims[-1], builder.shape(states[0])[-1]
    both = concatenate([hidden] * directions, [size] * directions)
    for start in range(0, len(weights), each):
        into, over, *biases = weights[start : start + each]
        layer = start // (each * directions)
        builder.unite(
            node,
            builder.dims(into)[1],
            source if layer == 0 else concatenate([hidden] * directions, [size] * directions),
        )
        builder.unite(node, builder.dims(over)[1], hidden)
        for weight in (into, over, *biases):
            gate, gate_units = builder.labels.split(builder.dims(weight)[0], gates, size)
            builder.fix(node, [gate], "its gates differ")
            hidden = builder.unite(node, hidden, gate_units)
        builder.mark(into, "hidden", produces=0, consumes=1)
        builder.mark(over, "hidden", produces=0, consumes=1)
    along = dims[0] if not args["batch_first"] else dims[1]
    builder.fix(node, [along], "the layer runs along it")
    builder.set_dims(node, [(*dims[:2], both), *((FIXED, FIXED, hidden) for _ in states)])


def prelu(builder: Builder, node: Node) -> None:
    """One slope for all channels, or one for each."""
    args = arguments(node)
    dims = builder.dims(args["self"])
    if builder.shape(args["weight"])[0] > 1:
        dims = (dims[0], builder.unite(node, dims[1], builder.dims(args["weight"])[0]), *dims[2:])
    builder.set_dims(node, dims)


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
