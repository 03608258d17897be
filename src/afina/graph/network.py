"""`Network`: a captured `torch.export` graph with what is needed to use it, train it, save it and load it.

A network is captured once from any `nn.Module`; from then on the module's class is not needed. The graph is
captured in inference form with a dynamic batch; the nodes that behave differently in training (batch norm,
dropout) are switched by rewriting their training flag, so one graph serves both.
"""

import contextlib
import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from afina.graph.outputs import SINGLE
from afina.graph.recurrent import recurrent_as_one
from afina.types import UNKNOWN_TASK, InputSpec, TaskSpec

# Position of the argument that says "training" in the ops that behave differently there.
TRAINING_ARGUMENT = {
    torch.ops.aten.batch_norm.default: 5,
    torch.ops.aten.dropout.default: 2,
    torch.ops.aten.feature_dropout.default: 2,
    torch.ops.aten.alpha_dropout.default: 2,
}
_CHECKS = frozenset(
    (
        torch.ops.aten._assert_tensor_metadata.default,
        torch.ops.aten._assert_scalar.default,
        torch.ops.aten._assert_async.default,
        torch.ops.aten._assert_async.msg,
        torch.ops.aten.sym_constrain_range.default,
        torch.ops.aten.sym_constrain_range_for_size.default,
    )
)
_BATCH_NORM_RUNNING_MEAN = 3
_EXAMPLE_BATCH = 2
_GPU_BATCH = 256


class Network:
    """A captured graph (ATen ops, dynamic batch, trainable), its input specification and its task.

    Args:
        module: The unlifted graph: parameters and buffers are attributes under the names of the user's model.
        input: Size, channels and normalisation of the images that it takes.
        task: The meaning of its outputs; None where no task is known for them.
        frozen: Names of running means whose batch norm stays in inference form also in training.
        outputs: The names of the tensors that the graph gives, in its order.
        batch_size: The number of images that the graph is fixed to; None where it takes any.
        notes: What the user should know of the capture, one sentence each.
        tail: What an ONNX file did behind the network (the choice of boxes), as an ONNX file that takes its outputs;
            empty where there is nothing.

    It takes images `[N, C, H, W]` (float32) and gives a tensor `[N, ...]` for each of `outputs`.
    """

    def __init__(
        self,
        module: GraphModule,
        input: InputSpec,
        task: TaskSpec | None = None,
        frozen: frozenset[str] = frozenset(),
        *,
        outputs: tuple[str, ...] = (SINGLE,),
        batch_size: int | None = None,
        notes: tuple[str, ...] = (),
        tail: bytes = b"",
    ) -> None:
        self.module, self.input, self.task, self.frozen = module, input, task or UNKNOWN_TASK, frozen
        self.outputs, self.batch_size, self.notes, self.tail = outputs, batch_size, notes, tail
        self.training = False

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        parts = [self.named(self.module(part)) for part in self.parts(images)]
        return parts[0] if len(parts) == 1 else joined(parts)

    def parts(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images `[N, C, H, W]` as the graph takes them: all at once, or in parts of the number that it is fixed to."""
        return (images,) if self.batch_size is None else images.split(self.batch_size)

    def named(self, values: Any) -> dict[str, Tensor]:
        """What the graph gave (one tensor, or several in a tuple or list), by the names of the outputs."""
        tensors = values if isinstance(values, (tuple, list)) else (values,)
        return dict(zip(self.outputs, tensors, strict=True))

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.module.parameters())
        names = ", ".join(self.outputs)
        return f"Network({self.task.name}, input={self.input.shape}, outputs=({names}), parameters={count})"

    @property
    def graph(self) -> torch.fx.Graph:
        return self.module.graph

    @property
    def tensors(self) -> list[Tensor]:
        """Its parameters and buffers."""
        return [*self.module.parameters(), *self.module.buffers()]

    @property
    def device(self) -> torch.device:
        return next((t.device for t in self.module.parameters()), torch.device("cpu"))

    @property
    def batch(self) -> int:
        """Images at once in inference: what its graph is fixed to, else what is fast on its device."""
        if self.batch_size is not None:
            return self.batch_size
        return self.input.batch if self.device.type == "cpu" else _GPU_BATCH

    def train(self, mode: bool = True) -> "Network":
        """Switch batch norm and dropout to training (or, with `mode=False`, to inference); returns itself.

        Batch norms of a network that takes one image at a time keep their statistics: one image has none of a batch.
        """
        changed = False
        for node in self.module.graph.nodes:
            index = TRAINING_ARGUMENT.get(node.target)
            if index is not None and not self._is_fixed(node) and node.args[index] != mode:
                node.update_arg(index, mode)
                changed = True
        if changed:
            self.module.recompile()
        self.training = mode
        return self

    def eval(self) -> "Network":
        """Switch to inference; returns itself."""
        return self.train(False)

    def copy(self, shared: Iterable[Tensor] = ()) -> "Network":
        """An independent copy: weights, graph and mode.

        Args:
            shared: Tensors of this network that the copy has too, which saves their memory. Before one of them is
                written in the copy, `stored.own` must replace it with a tensor of its own.
        """
        module = copy.deepcopy(self.module, {id(tensor): tensor for tensor in shared})
        twin = self.around(module)
        twin.training = self.training
        return twin

    def around(self, module: GraphModule) -> "Network":
        """A network around another graph of the same input, task and outputs."""
        return Network(
            module,
            self.input,
            self.task,
            self.frozen,
            outputs=self.outputs,
            batch_size=self.batch_size,
            notes=self.notes,
            tail=self.tail,
        )

    def retraced(self) -> "Network":
        """The same network captured anew from its own graph, whose noted shapes may be old ones."""
        return self.around(unlifted(self.exported()))

    def trainable(self) -> nn.Module:
        """An ordinary `nn.Module` over this network's own weights, for training loops written elsewhere.

        Its `train` and `eval` switch batch norm and dropout of the network, its parameters are the network's.
        """
        return _Trainable(self)

    @property
    def few(self) -> int:
        """Images at once where the outputs of all layers are kept."""
        return self.batch_size or self.input.few

    def traced_batch(self, wanted: int) -> int:
        """The number of images to follow shapes with: `wanted`, where the graph is not fixed to another."""
        return self.batch_size or wanted

    def example(self, batch: int | None = None) -> Tensor:
        """A batch of noise of the right shape, on the network's device; the same on each call."""
        batch = batch or self.traced_batch(_EXAMPLE_BATCH)
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch, *self.input.shape, generator=generator).to(self.device)

    @contextlib.contextmanager
    def inference(self) -> Iterator["Network"]:
        """Inference form, without gradients, for the length of a `with` block; the mode is put back after it."""
        was = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield self
        finally:
            self.train(was)

    def exported(self) -> torch.export.ExportedProgram:
        """The network in inference form as an `ExportedProgram` with a dynamic batch, for runtimes and files."""
        with self.inference():
            return export_program(self.module, self.example(), self.batch_size)

    def fingerprint(self) -> str:
        """16 characters that tell networks apart: by their graph, tensors, input and task.

        A network that was saved and loaded, or is in training form, has the same one; a network of which one number
        changed has another.

        Example:
            >>> from afina.graph import capture
            >>> module = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
            >>> spec = InputSpec(8, 8, mean=(0.5,), std=(0.25,), order="L")
            >>> network = capture(module, spec, TaskSpec("classification", ("cat", "dog")))
            >>> network.fingerprint() == network.copy().train().fingerprint()
            True
            >>> len(network.fingerprint())
            16
        """
        from afina.graph.fingerprint import fingerprint

        return fingerprint(self)

    def __reduce__(self) -> Any:
        """For other processes: as the bytes of a file."""
        from afina.graph.archive import packed, unpacked

        return unpacked, (packed(self),)

    def save(self, path: str | Path) -> Path:
        """Write one `.pt2` file, which `Network.load` reads without the model's class; whole or not at all.

        Raises:
            StorageError: the file cannot be written.
            Unsupported: the network holds an operator that `load` refuses.
        """
        from afina.graph.archive import write

        return write(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> "Network":
        """Read a `.pt2` file written by `save`.

        No code from the file is run: anything in it that is not a plain tensor, or an operator that only computes
        (`afina.graph.operators` says which those are), is refused.

        Raises:
            InputError: the file is missing, not such a file, of a format that this version does not read, or holds
                something that is not plain data.
        """
        from afina.graph.archive import read

        return read(Path(path))

    def _is_fixed(self, node: Node) -> bool:
        """Whether a node is a batch norm that is frozen, sees one image, or has no running statistics for inference."""
        if node.target is not torch.ops.aten.batch_norm.default:
            return False
        if self.batch_size == 1:
            return True
        mean = node.args[_BATCH_NORM_RUNNING_MEAN]
        return not isinstance(mean, Node) or mean.target in self.frozen


def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors by name for all images, from those for parts of the images.

    Example:
        >>> joined([{"boxes": torch.zeros(1, 4)}, {"boxes": torch.zeros(2, 4)}])["boxes"].shape
        torch.Size([3, 4])
    """
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


class _Trainable(nn.Module):
    """A network as a module: the captured graph forbids `train` and `eval`, and switches flags in its nodes instead."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.graph_module = network.module
        self._network = network
        self.training = network.training

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self._network(images)

    def train(self, mode: bool = True) -> "_Trainable":
        self._network.train(mode)
        self.training = mode
        return self


def unlifted(program: torch.export.ExportedProgram) -> GraphModule:
    """The program as a module whose weights are attributes again, without shape guards.

    The mode of the GraphModule itself means nothing here (the flags in its nodes do), so its own `train` and
    `eval`, which `torch.export` forbids, are never called. Checks (of types, which an export writes down beside every
    conversion, and those that the model's author wrote) are left out with what only they read: they compute nothing,
    would count as readers of what they check, and read numbers from tensors, so that no shape could be followed.
    """
    module = program.module(check_guards=False)
    read = set[Node]()  # by checks, or by what only they read
    for node in reversed(list(module.graph.nodes)):
        if node.target in _CHECKS or (node in read and not node.users and node.op != "placeholder"):
            read.update(node.all_input_nodes)
            module.graph.erase_node(node)
    module.recompile()
    return module


def export_program(module: nn.Module, example: Tensor, batch_size: int | None) -> torch.export.ExportedProgram:
    """What `torch.export` makes of a module in inference form, for `batch_size` images or (None) any number of them."""
    sizes = None if batch_size is not None else ({0: torch.export.Dim("batch", min=1, max=2**16)},)
    with torch.no_grad(), _trainable_attention(), recurrent_as_one(), warnings.catch_warnings():
        # Recurrent layers list their weights anew when they run; the graph has the weights themselves.
        warnings.filterwarnings("ignore", message="The tensor attributes? self")
        return torch.export.export(module, (example,), dynamic_shapes=sizes, strict=False)


@contextlib.contextmanager
def _trainable_attention() -> Iterator[None]:
    """Without the fused encoder layers that torch runs in inference, which have no gradient and hide their axes."""
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)
