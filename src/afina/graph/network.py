"""`Network`: a captured `torch.export` graph with what is needed to use it, train it, save it and load it.

A network is captured once from any `nn.Module`; from then on the module's class is not needed. The graph is
captured in inference form with a dynamic batch; the nodes that behave differently in training (batch norm,
dropout) are switched by rewriting their training flag, so one graph serves both.
"""

import contextlib
import copy
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from afina.errors import InputError, Unsupported, first_lines
from afina.graph.inline import inline_regions
from afina.graph.writing import remove_writes
from afina.types import InputSpec, TaskSpec

# Position of the argument that says "training" in the ops that behave differently there.
TRAINING_ARGUMENT = {
    torch.ops.aten.batch_norm.default: 5,
    torch.ops.aten.dropout.default: 2,
    torch.ops.aten.feature_dropout.default: 2,
    torch.ops.aten.alpha_dropout.default: 2,
}
_BATCH_NORM_RUNNING_MEAN = 3
_EXAMPLE_BATCH = 2
_GPU_BATCH = 256


class Network:
    """A captured graph (ATen ops, dynamic batch, trainable), its input specification and its task.

    Args:
        module: The unlifted graph: parameters and buffers are attributes under the names of the user's model.
        input: Size, channels and normalisation of the images that it takes.
        task: The meaning of its outputs.
        frozen: Names of running means whose batch norm stays in inference form also in training.

    It takes `[N, C, H, W]` float32 and gives one tensor `[N, outputs]`.
    """

    def __init__(self, module: GraphModule, input: InputSpec, task: TaskSpec, frozen: frozenset[str] = frozenset()):
        self.module, self.input, self.task, self.frozen = module, input, task, frozen
        self.training = False

    def __call__(self, images: Tensor) -> Tensor:
        return outputs_of(self.module(images))

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.module.parameters())
        return f"Network({self.task.name}, input={self.input.shape}, outputs={self.task.outputs}, parameters={count})"

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
        """Images at once in inference that are fast on its device."""
        return self.input.batch if self.device.type == "cpu" else _GPU_BATCH

    def train(self, mode: bool = True) -> "Network":
        """Switch batch norm and dropout to training (or, with `mode=False`, to inference); returns itself."""
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
        twin = Network(module, self.input, self.task, self.frozen)
        twin.training = self.training
        return twin

    def trainable(self) -> nn.Module:
        """An ordinary `nn.Module` over this network's own weights, for training loops written elsewhere.

        Its `train` and `eval` switch batch norm and dropout of the network, its parameters are the network's.
        """
        return _Trainable(self)

    def example(self, batch: int = _EXAMPLE_BATCH) -> Tensor:
        """A batch of noise of the right shape, on the network's device; the same on each call."""
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
            return _export(self.module, self.example())

    def fingerprint(self) -> str:
        """16 characters that tell networks apart: by their graph, tensors, input and task.

        A network that was saved and loaded, or is in training form, has the same one; a network of which one number
        changed has another.

        Example:
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
        """Whether a node is a batch norm that is frozen, or that has no running statistics to use in inference."""
        if node.target is not torch.ops.aten.batch_norm.default:
            return False
        mean = node.args[_BATCH_NORM_RUNNING_MEAN]
        return not isinstance(mean, Node) or mean.target in self.frozen


class _Trainable(nn.Module):
    """A network as a module: the captured graph forbids `train` and `eval`, and switches flags in its nodes instead."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.graph_module = network.module
        self._switch = network.train
        self.training = network.training

    def forward(self, images: Tensor) -> Tensor:
        return outputs_of(self.graph_module(images))

    def train(self, mode: bool = True) -> "_Trainable":
        self._switch(mode)
        self.training = mode
        return self


def capture(module: nn.Module, input: InputSpec, task: TaskSpec) -> Network:
    """Capture `module` as a `Network`; the module itself is left as it was (mode included).

    Regularisers that a module builds only while it trains and that leave no trace in inference (stochastic
    depth) are not captured; batch norm and dropout are.

    Args:
        module: Any module that takes images `[N, C, H, W]`; a copy of it on the CPU, in float32, is captured.
        input: Size, channels and normalisation of its images.
        task: The meaning of its outputs.

    Raises:
        InputError: the module fails on images of this size, or does not return one tensor `[N, outputs]`.
        Unsupported: `torch.export` cannot capture it (the reason is in the message).

    Example:
        >>> spec = InputSpec(8, 8, mean=(0.5,), std=(0.25,), order="L")
        >>> module = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        >>> network = capture(module, spec, TaskSpec("classification", ("cat", "dog")))
        >>> network(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 2])
    """
    twin = copy.deepcopy(module).cpu().float()
    twin.train()
    frozen = frozenset(f"{name}.running_mean" for name, m in twin.named_modules() if _is_frozen_norm(m))
    twin.eval()
    example = torch.randn(_EXAMPLE_BATCH, *input.shape, generator=torch.Generator().manual_seed(0))
    _check_output(twin, example, task)
    try:
        graph = remove_writes(inline_regions(unlifted(_export(twin, example))))
    except Exception as error:
        fixes_batch = "batch as dynamic but your code specialized it" in str(error)
        raise Unsupported(
            f"{type(module).__name__} could not be captured as a graph.",
            why=f"torch.export says: {first_lines(error)}",
            fix="Write `x.shape[0]` where the number of images is asked for in another way, such as `len(x)`."
            if fixes_batch
            else "Rewrite the part that depends on the data (such as `if x.sum() > 0`), then try again.",
        ) from error
    return Network(graph, input, task, frozen)


def unlifted(program: torch.export.ExportedProgram) -> GraphModule:
    """The program as a module whose weights are attributes again, without shape guards.

    The mode of the GraphModule itself means nothing here (the flags in its nodes do), so its own `train` and
    `eval`, which `torch.export` forbids, are never called. Checks of types, which an export writes down beside every
    conversion, are left out: they compute nothing, and would count as readers of what they check.
    """
    module = program.module(check_guards=False)
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
    module.recompile()
    return module


def outputs_of(value: Any) -> Tensor:
    """The one tensor that a network gives, also where it comes in a tuple or list of one."""
    if isinstance(value, (tuple, list)) and len(value) == 1:
        value = value[0]
    if not isinstance(value, Tensor):
        raise InputError(
            f"The network returns {_describe(value)} instead of one tensor.",
            fix="Wrap it in a module whose forward returns the one tensor that the task needs.",
        )
    return value


def _export(module: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=2**16)
    with torch.no_grad(), _trainable_attention(), warnings.catch_warnings():
        # Recurrent layers list their weights anew when they run; the graph has the weights themselves.
        warnings.filterwarnings("ignore", message="The tensor attributes? self")
        return torch.export.export(module, (example,), dynamic_shapes=({0: batch},), strict=False)


@contextlib.contextmanager
def _trainable_attention() -> Iterator[None]:
    """Without the fused encoder layers that torch runs in inference, which have no gradient and hide their axes."""
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)


def _check_output(module: nn.Module, example: Tensor, task: TaskSpec) -> None:
    try:
        with torch.no_grad():
            output = outputs_of(module(example))
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{type(module).__name__} fails on images of shape {tuple(example.shape[1:])} (channels, height, width).",
            why=f"It says: {first_lines(error)}",
            fix="Give the size that it was made for with --input-size HEIGHTxWIDTH, or another model.",
        ) from error
    if output.ndim != 2 or output.shape[1] != task.outputs:
        raise InputError(
            f"The network's output has shape {list(output.shape)}, and {task.name} needs [N, {task.outputs}].",
            why=f"The data has {task.outputs} {'classes' if task.name == 'classification' else 'outputs'}.",
            fix="Give a model with a head of that width, or data that matches the model.",
        )


def _is_frozen_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.training


def _describe(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
