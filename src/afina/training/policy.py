"""Which parts of a network compute in 32 bits while the rest is in mixed precision, and the types that layers ran in.

Autocast takes matrix products and convolutions down to 16 bits. Sums over many values lose most there, so that
norms and softmax are computed in 32 bits, on every device alike, and losses are (`training.losses`); what a user names
too. Batch norm is the exception: its kernels read and write 16 bits, and hold statistics, weights and sums in 32
(Micikevicius et al. 2018, section 3.3); to write 32 bits would cost more memory than mixed precision saves.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import TorchDispatchMode

from afina.errors import InputError, did_you_mean
from afina.graph.cost import float_name, layer_of, layer_rows
from afina.graph.network import TRAINING_ARGUMENT, Network
from afina.graph.ops import op_name
from afina.training.config import TrainingPrecision
from afina.training.precision import make_fabric

_SUMMING = frozenset("layer_norm group_norm instance_norm rms_norm softmax log_softmax _safe_softmax".split())
_NAMED = 6
# Kernels that only change a type or a name: the type that they read is not one that anything is computed in.
_CASTS = frozenset(("_to_copy", "detach", "alias"))


@dataclass(frozen=True)
class LayerDtype:
    """The floating types in which one layer ran.

    Attributes:
        layer: Name of the layer in the user's model.
        kind: Operator of the layer, such as `conv2d`.
        computed: Floating types of the tensors that its kernels read, as in `("bf16",)`; two where they read both.
        gives: Floating type of its output.
    """

    layer: str
    kind: str
    computed: tuple[str, ...]
    gives: str


def keep_in_32(network: Network, patterns: Sequence[str] = ()) -> None:
    """Rewrite a network in place so that under autocast norms, softmax and the layers named compute in float32.

    Without autocast it answers as before. Names of nodes, weights and buffers stay as they are.

    Args:
        network: A copy that is trained; its graph is not for export any more.
        patterns: Names of layers or of modules that hold them, with `*`, `?` and `[...]` as in file names.

    Raises:
        InputError: a pattern fits no layer.
    """
    check_patterns(network, patterns)
    for node in list(network.graph.nodes):
        if not isinstance(node.target, torch._ops.OpOverload) or not _stays_in_32(node, patterns):
            continue
        if node.target in TRAINING_ARGUMENT:
            # Must stay what it is to be switched; autocast leaves it in the type that it reads.
            with network.graph.inserting_before(node):
                wide = network.graph.call_function(torch.ops.aten.to.dtype, (node.args[0], torch.float32))
            node.update_arg(0, wide)
        else:
            node.args = (node.target, *node.args)
            node.target = in_fp32
    network.module.recompile()


def in_fp32(operator: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call `operator` with autocast off, and with 16-bit tensors among the arguments widened to float32."""
    devices: set[str] = set()

    def widened(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        devices.add(value.device.type)
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value

    args, kwargs = map_aggregate(args, widened), map_aggregate(kwargs, widened)
    device = next(iter(devices - {"cpu"}), "cpu")
    if not torch.is_autocast_enabled(device):
        return operator(*args, **kwargs)
    with torch.autocast(device, enabled=False):
        return operator(*args, **kwargs)


def check_patterns(network: Network, patterns: Sequence[str]) -> None:
    """Raise `InputError`, with the names that come near, where a pattern fits no layer."""
    if not patterns:
        return
    names = {part for node in network.graph.nodes if node.op == "call_function" for part in _within(layer_of(node))}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(f"keep_fp32: there is no layer {pattern!r}.", fix=did_you_mean(pattern, names))


def layer_dtypes(
    network: Network, precision: TrainingPrecision, keep_fp32: Sequence[str] = ()
) -> tuple[LayerDtype, ...]:
    """The types in which each layer runs in training, observed in one run on noise; in the order of the graph.

    Listed are layers that hold weights or multiply, and softmax.

    Args:
        network: A float network; it is left as it is.
        precision: The precision of the training.
        keep_fp32: As in `FitConfig`.

    Raises:
        InputError: a pattern that fits no layer, or a precision that the device does not have.
    """
    fabric, twin = make_fabric(precision), network.copy()
    twin.module.to(device=fabric.device)
    called = [node for node in twin.graph.nodes if node.op == "call_function"]
    kinds = {layer_of(node): op_name(node) for node in called if op_name(node) in _SUMMING}
    kinds |= {row.name: row.kind for row in layer_rows(twin)}
    layers = {node.name: layer_of(node) for node in called if layer_of(node) in kinds}
    keep_in_32(twin, keep_fp32)
    seen = _Seen(twin, layers)
    with twin.inference(), fabric.autocast():
        seen.run(twin.example())
    return tuple(
        LayerDtype(layer, kinds[layer], tuple(sorted(map(float_name, seen.computed[layer]))), float_name(output))
        for layer, output in seen.outputs.items()
    )


def summary(rows: Sequence[LayerDtype]) -> str:
    """One sentence that counts the layers by the types they compute in; the few that differ from most are named."""
    layers: dict[str, list[str]] = {}
    for row in rows:
        layers.setdefault(" with ".join(row.computed), []).append(row.layer)
    most = max(layers, key=lambda kind: len(layers[kind]))
    named = {
        kind: f" ({', '.join(names)})" if kind != most and len(names) <= _NAMED else ""
        for kind, names in layers.items()
    }
    return f"Layers compute in: {', '.join(f'{kind}: {len(layers[kind])}{named[kind]}' for kind in layers)}."


class _Seen(Interpreter):
    """Runs a graph and notes, for each layer, the types that its nodes compute in and the last that one gives."""

    def __init__(self, network: Network, layers: dict[str, str]) -> None:
        super().__init__(network.module)
        self._layers = layers
        self.computed: dict[str, set[torch.dtype]] = {}
        self.outputs: dict[str, torch.dtype] = {}

    def run_node(self, n: Node) -> Any:
        if n.name not in self._layers:
            return super().run_node(n)
        with _Kernels() as kernels:
            value = super().run_node(n)
        if kernels.read and isinstance(value, Tensor):
            layer = self._layers[n.name]
            self.computed.setdefault(layer, set()).update(kernels.read)
            self.outputs[layer] = value.dtype
        return value


class _Kernels(TorchDispatchMode):
    """Notes the floating types that kernels read: this is below autocast, where its casts are done."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.split("::")[-1] not in _CASTS:
            map_aggregate(args, self._note)
        return func(*args, **(kwargs or {}))

    def _note(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            self.read.add(value.dtype)
        return value


def _stays_in_32(node: Node, patterns: Sequence[str]) -> bool:
    name = op_name(node)
    return name in _SUMMING or any(fnmatchcase(part, p) for p in patterns for part in _within(layer_of(node)))


def _within(name: str) -> Iterator[str]:
    """The name of a layer and of each module that it is in."""
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(len(parts), 0, -1))
