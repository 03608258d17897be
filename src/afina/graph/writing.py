"""Ops that write into a tensor: which nodes read what they wrote, and which of them a captured graph can do without.

Models fill masks piece by piece, and give a product new values in place. An export has to trace the whole network for
each such op, and an analysis of the graph has to follow which node reads which value.
"""

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg

from afina.graph.stored import attribute, is_stored

_aten = torch.ops.aten
_LITERALS = frozenset((_aten.lift_fresh_copy.default, _aten.lift_fresh.default))
# Ops that give a tensor of one value, and the place of its sizes; what comes before them only gives the type.
_FILLED: dict[Any, int] = {
    _aten.new_zeros.default: 1,
    _aten.new_ones.default: 1,
    _aten.new_full.default: 1,
    _aten.zeros.default: 0,
    _aten.ones.default: 0,
    _aten.full.default: 0,
}
# Composite ops that always give new memory.
_NEW = frozenset(
    getattr(_aten, name).default
    for name in ("conv1d", "conv2d", "conv3d", "linear", "matmul", "layer_norm", "group_norm", "adaptive_avg_pool2d")
)


def written(node: Node) -> list[Node]:
    """The arguments that an op writes into."""
    schema = getattr(node.target, "_schema", None)
    targets = []
    for place, argument in enumerate(schema.arguments if schema is not None else ()):
        if argument.alias_info is not None and argument.alias_info.is_write:
            target = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
            targets += [target] if isinstance(target, Node) else []
    return targets


def is_view(node: Node) -> bool:
    """Whether a node gives the memory of its first argument, by its schema."""
    if node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and node.args and schema.returns and schema.returns[0].alias_info is not None)


def owns(node: Node) -> bool:
    """Whether a node gives new memory, and not an input, a weight or a part of another tensor.

    Composite ops may give what they read without saying so in their schema.
    """
    op = node.args[0].target if node.target is operator.getitem else node.target  # type: ignore[union-attr]
    if not isinstance(op, OpOverload) or any(result.alias_info is not None for result in op._schema.returns):
        return False
    return op in _NEW or not op.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)


def is_read_by_result(writer: Node) -> bool:
    """Whether all later readers of what an op wrote into its first argument read the op's result, not that argument."""
    after = _after(writer)
    old = _relatives(writer.args[0]).difference(after, (writer,))  # type: ignore[arg-type]
    return all(old.isdisjoint(node.all_input_nodes) for node in after)


def _after(node: Node) -> list[Node]:
    nodes = list(node.graph.nodes)
    return nodes[nodes.index(node) + 1 :]


def clone_written_input(module: GraphModule) -> GraphModule:
    """Let a network that writes into its images write into a copy of them: images serve many runs; gives `module`."""
    for images in [node for node in module.graph.nodes if node.op == "placeholder"]:
        memory = _relatives(images)
        if all(memory.isdisjoint(written(node)) for node in module.graph.nodes):
            continue
        with module.graph.inserting_after(images):
            cloned = module.graph.call_function(_aten.clone.default, (images,))
        cloned.meta = {key: value for key, value in images.meta.items() if key in ("val", "tensor_meta")}
        images.replace_all_uses_with(cloned, delete_user_cb=lambda user, cloned=cloned: user is not cloned)
        module.recompile()
    return module


def remove_writes(module: GraphModule, *, frozen: bool = False) -> GraphModule:
    """Store tensors that are filled with constants, and pass on what is copied over a whole tensor; gives `module`.

    Args:
        module: The graph, changed in place.
        frozen: The weights stay as they are, so that a copy of one is such a tensor too.
    """
    changed = False
    for node in list(module.graph.nodes):
        if _begins_constant(node, frozen):
            changed |= _store_filled(module, node)
        elif node.target is _aten.copy_.default:
            changed |= _pass_on_copied(node)
    if changed:
        module.graph.eliminate_dead_code()
        module.recompile()
    return module


def _store_filled(module: GraphModule, filled: Node) -> bool:
    """Store a tensor that only constants are written into, all before it is read, with the values that it then has.

    `mask = x.new_zeros(4)`, `mask[:2] = 1`, `y = x + mask` are captured as

        new_zeros = new_zeros(x, [4])
        slice_1   = slice(new_zeros, 0, 0, 2)
        fill_     = fill_(slice_1, 1)
        add       = add(x, new_zeros)

    The writer `fill_` reads nothing but a view of `new_zeros`, and `add` comes after it. So these ops are run once,
    here; `[1, 1, 0, 0]` is stored as a buffer, `add` reads that, and the writer is erased.

    Returns:
        Whether the tensor was stored.
    """
    nodes = list(filled.graph.nodes)
    views, relatives = _views(filled), _relatives(filled)
    writers = [node for node in nodes if not relatives.isdisjoint(written(node))]
    if not writers or not all(_is_constant(writer, views) for writer in writers):
        return False
    before = nodes[: nodes.index(writers[-1]) + 1]
    whole = {filled}
    whole.update(node for node in writers if node.args[0] in whole)
    for node in before:
        # A view of before may be a copy, as that of `reshape`: then it keeps the values of before.
        outside = node.users.keys() - set(before) if node in views - whole else ()
        if outside or (node not in views and not views.isdisjoint(node.all_input_nodes)):
            return False
    name = f"{filled.name}_filled"
    module.register_buffer(name, _run(module, filled, [node for node in before if node in views]))
    with filled.graph.inserting_before(filled):
        stored = filled.graph.get_attr(name)
    stored.meta = dict(filled.meta)
    filled.replace_all_uses_with(stored)
    for writer in reversed(writers):
        writer.replace_all_uses_with(writer.args[0])
        writer.graph.erase_node(writer)
    return True


def _views(node: Node) -> set[Node]:
    """The nodes that give the memory of a node, or part of it, by their schemas."""
    return _reached(node, lambda source, user: is_view(user) and user.args[0] is source)


def _relatives(node: Node) -> set[Node]:
    """The nodes that may give memory of a node."""
    return _reached(node, lambda _, user: not owns(user))


def _reached(node: Node, leads: Callable[[Node, Node], bool]) -> set[Node]:
    reached, left = {node}, [node]
    while left:
        source = left.pop()
        new = [user for user in source.users if user not in reached and leads(source, user)]
        reached.update(new)
        left += new
    return reached


def _begins_constant(node: Node, frozen: bool) -> bool:
    """Whether an op gives a new tensor that holds the same each time."""
    if node.target in _FILLED:
        return _are_literals(_inputs((node.args[_FILLED[node.target] :], node.kwargs)))
    return frozen and node.target is _aten.clone.default and is_stored(node.args[0])


def _is_constant(writer: Node, views: set[Node]) -> bool:
    """Whether an op writes the same each time: what it reads beside these views are literals, and nothing is drawn."""
    drawn = torch.Tag.nondeterministic_seeded in getattr(writer.target, "tags", ())
    return writer in views and not drawn and _are_literals(set(writer.all_input_nodes) - views)


def _are_literals(nodes: Iterable[Node]) -> bool:
    return all(node.target in _LITERALS for node in nodes)


def _inputs(arguments: Any) -> list[Node]:
    nodes: list[Node] = []
    map_arg(arguments, nodes.append)
    return nodes


def _run(module: GraphModule, filled: Node, nodes: list[Node]) -> Tensor:
    """The values of the tensor `filled` after these nodes have run."""
    runner = Interpreter(module)
    for source in filled.all_input_nodes:  # gives the type alone, or is copied
        if is_stored(source):
            runner.env[source] = attribute(module, str(source.target))
        else:
            runner.env[source] = torch.empty(0, dtype=filled.meta["val"].dtype)
    with torch.no_grad():
        for node in nodes:
            for literal in set(node.all_input_nodes) - runner.env.keys():
                runner.env[literal] = attribute(module, str(literal.args[0].target))  # type: ignore[union-attr]
            runner.env[node] = runner.run_node(node)
    return runner.env[filled]  # type: ignore[no-any-return]


def _pass_on_copied(copied: Node) -> bool:
    """Let the readers of a tensor that was overwritten as a whole (`x[:] = y`) read the source `y` instead.

    Not where a reader would see another value: where it reads `x` by an older view, or where `x` or `y` is written into
    later.

    Returns:
        Whether the readers were changed.
    """
    target, source = copied.args[:2]
    if not isinstance(target, Node) or not isinstance(source, Node) or not owns(target):
        return False
    if not ("val" in target.meta and "val" in source.meta):  # what quantizes has none
        return False
    root = source
    while not owns(root) and root.args and isinstance(root.args[0], Node):
        root = root.args[0]
    lent = _relatives(copied) | _relatives(root)
    later = any(not lent.isdisjoint(written(node)) for node in _after(copied))
    if _kind(target) != _kind(source) or not is_read_by_result(copied) or later:
        return False
    copied.replace_all_uses_with(source)
    copied.graph.erase_node(copied)
    return True


def _kind(node: Node) -> tuple[str, torch.dtype]:
    value = node.meta["val"]
    return str(tuple(value.shape)), value.dtype
