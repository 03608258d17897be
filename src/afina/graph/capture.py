"""`capture`: from any `nn.Module` to a `Network` that gives the same answers, or an error that says why not.

What is captured is the module in inference form. Three things are settled on the way, since what follows relies on
them:

- Weights that a module computes from other parameters at each call (spectral norm, weight norm, parametrizations) are
  computed once, and stored: pruning must be able to take channels out of them.
- A batch norm that uses the statistics of its own batch in inference too (AdaIN) keeps doing so: it loses its running
  statistics, and `Network.train` and `eval` leave it alone.
- A module that writes into its images gets a copy of them to write into: images serve many networks.

Then the network is run beside the module on other images than it was captured with, and another number of them.
"""

import inspect
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from afina.errors import InputError, Unsupported, first_lines
from afina.graph.duplicate import duplicate
from afina.graph.inline import inline_regions
from afina.graph.network import TRAINING_ARGUMENT, Network, export_program, unlifted
from afina.graph.outputs import named_tensors
from afina.graph.writing import clone_written_input, remove_writes
from afina.tasks import get_task
from afina.types import InputSpec, TaskSpec

_BATCH_NORM = torch.ops.aten.batch_norm.default
_RUNNING_STATISTICS = (3, 4)  # the places of its arguments
_IMAGES = 3  # another number than a network is captured with
_TOLERANCE = 1e-3  # of the root mean square of an output; the same operators in the same order give 1e-6
_TINY = 1e-12


def capture(
    module: nn.Module, input: InputSpec, task: TaskSpec | None = None, *, images: Tensor | None = None
) -> Network:
    """Capture `module` as a `Network`; the module itself is left as it was (mode included).

    Regularisers that a module builds only while it trains and that leave no trace in inference (stochastic
    depth) are not captured; batch norm and dropout are.

    Args:
        module: Takes images `[N, C, H, W]`; gives a tensor, or tuples, lists, mappings and dataclasses of tensors, each
            with the images as its first dimension.
        input: What it expects of an image.
        task: What its outputs mean; None where no task is known for them.
        images: Real images `[N, C, H, W]` to compare the network with the module on; noise where there are none.

    Raises:
        InputError: the module takes several inputs, fails on images of this size, gives no tensor, or not what the
            task needs.
        Unsupported: `torch.export` cannot capture it (the reason is given), it draws random numbers in inference, or
            the captured graph does not answer as it does.

    Example:
        >>> from afina.types import InputSpec
        >>> class Detector(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.boxes, self.classes = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 2, 3)
        ...
        ...     def forward(self, x):
        ...         return {"boxes": self.boxes(x), "classes": self.classes(x)}
        >>> network = capture(Detector(), InputSpec(8, 8))
        >>> {name: tuple(value.shape) for name, value in network(torch.zeros(5, 3, 8, 8)).items()}
        {'boxes': (5, 4, 6, 6), 'classes': (5, 2, 6, 6)}
    """
    _check_inputs(module)
    twin, frozen = _inference_copy(module)
    if images is None:
        images = torch.randn(_IMAGES, *input.shape, generator=torch.Generator().manual_seed(0))
    images = images.cpu().float()
    expected, notes = _answers(twin, images, task)
    graph, batch = _graph(twin, input, type(module).__name__)
    if batch is not None:
        norms = any(node.target is _BATCH_NORM for node in graph.graph.nodes)
        kept = ", and its batch norms keep their statistics in training" if norms else ""
        notes += (f"The model's code fixes the number of images: it runs image by image{kept}.",)
    network = Network(graph, input, task, frozen, outputs=tuple(expected), batch_size=batch, notes=notes)
    _check_answers(network, twin, images, expected, type(module).__name__)
    return network


def _check_inputs(module: nn.Module) -> None:
    """Raise `InputError` where a module cannot be called with images alone."""
    needed = [name for name, optional in _inputs(module) if not optional]
    if len(needed) > 1:
        raise InputError(
            f"{type(module).__name__} takes {len(needed)} inputs ({', '.join(needed)}), and a network takes one: a "
            "tensor of images.",
            why="Several inputs are not supported yet.",
            fix=_wrapped(needed),
        )


def _inputs(module: nn.Module) -> list[tuple[str, bool]]:
    """The arguments of a module's `forward`, and whether each may be left out; empty where that is not known."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):  # one that was compiled has none
        return []
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [(p.name, p.default is not p.empty) for p in parameters if p.kind not in several]


def _wrapped(inputs: list[str]) -> str:
    """How a module with several inputs becomes one of images alone."""
    others = ", ".join(f"{name}=self.{name}" for name in inputs[1:])
    return (
        f"Wrap it in a module that takes the images and holds the rest: `def forward(self, images): return "
        f"self.model({inputs[0]}=images, {others})`, with what `self.{inputs[1]}` should be made in its `__init__`. "
        "Where several are pictures, lay them end to end as channels (torch.cat), and cut them apart there."
    )


def answers_of(module: nn.Module, images: Tensor) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """What a module gives for images, by name, and what of it is left out; it may write into a copy of the images."""
    with torch.no_grad():
        return named_tensors(module(images.clone()))


def _inference_copy(module: nn.Module) -> tuple[nn.Module, frozenset[str]]:
    """The module in inference form and float32, and the names of the running means that are frozen in training too."""
    twin = duplicate(module).cpu().float()
    twin.train()
    frozen = frozenset(f"{name}.running_mean" for name, m in twin.named_modules() if _is_frozen_norm(m))
    twin.eval()
    for part in list(twin.modules()):
        _store_computed_weights(part)
    return twin, frozen


def _store_computed_weights(part: nn.Module) -> None:
    if parametrize.is_parametrized(part):
        assert isinstance(part.parametrizations, nn.ModuleDict)
        computed = {name: getattr(part, name).detach() for name in part.parametrizations}
        # `remove_parametrizations` would write to the class, which the copy shares with the user's module.
        part.__class__ = type(part).__mro__[1]
        del part.parametrizations
        for name, value in computed.items():
            part.register_parameter(name, nn.Parameter(value))
    for hook in list(part._forward_pre_hooks.values()):
        if isinstance(hook, SpectralNorm):
            remove_spectral_norm(part, hook.name)
        elif isinstance(hook, WeightNorm):
            remove_weight_norm(part, hook.name)


def _is_frozen_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.training


def _answers(twin: nn.Module, images: Tensor, task: TaskSpec | None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """What the module gives for the images, by name, and what the user should know of it."""
    try:
        expected, left_out = answers_of(twin, images)
    except Exception as error:
        others = [name for name, _ in _inputs(twin)][1:]
        also = f" It was given images alone, without {', '.join(others[:4])}." if others else ""
        raise InputError(
            f"{type(twin).__name__} fails on images of shape {tuple(images.shape[1:])} (channels, height, width).",
            why=f"It says: {first_lines(error)}{also}",
            fix="Give the size that it was made for with --input-size HEIGHTxWIDTH, or another model. One that takes "
            "several inputs, or a list or dictionary of them, is not supported yet: wrap it in a module whose forward "
            "takes one tensor of images.",
        ) from error
    notes = [f"Of what the model returns, {', '.join(left_out)} is left out: no tensor."] if left_out else []
    for name in [name for name, value in expected.items() if value.ndim == 0]:
        del expected[name]
        notes.append(f"Of what the model returns, {name} is left out: one number for all images.")
    if not expected:
        raise InputError(
            "The model returns no tensor.",
            why=f"It returns {', '.join(left_out) or 'nothing'}.",
            fix="Wrap it in a module whose forward returns tensors with one row for each image.",
        )
    for name, value in expected.items():
        if value.shape[0] != len(images):
            raise InputError(
                f"The first dimension of the output {name} is not the images.",
                why=f"For {len(images)} images its shape is {list(value.shape)}.",
                fix="Return tensors whose first dimension is the batch; leave out what is the same for all images.",
            )
    if task is not None:
        get_task(task).check_outputs({name: tuple(value.shape) for name, value in expected.items()})
    return expected, tuple(notes)


def _graph(twin: nn.Module, input: InputSpec, name: str) -> tuple[GraphModule, int | None]:
    """The module's graph, and the number of images that its code fixes; None where it takes any."""
    hook = twin.register_forward_hook(lambda _, __, value: tuple(_kept(named_tensors(value)[0]).values()))
    try:
        return _traced(twin, input, None), None
    except Exception as error:
        try:
            return _traced(twin, input, 1), 1
        except Exception:  # then it is not the number of images that hinders
            raise Unsupported(
                f"{name} could not be captured as a graph.",
                why=f"torch.export says: {first_lines(error)}",
                fix="Rewrite the part that depends on the data (such as `if x.sum() > 0`), then try again.",
            ) from error
    finally:
        hook.remove()


def _kept(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if value.ndim > 0}


def _traced(twin: nn.Module, input: InputSpec, batch: int | None) -> GraphModule:
    example = torch.randn(batch or 2, *input.shape, generator=torch.Generator().manual_seed(0))
    graph = _without_vector_layers(inline_regions(unlifted(export_program(twin, example, batch))))
    return remove_writes(clone_written_input(_keep_batch_statistics(graph)))


def _without_vector_layers(graph: GraphModule) -> GraphModule:
    """Write linear layers whose weight is one vector (`F.linear(x, w)` gives one number for each row) as products.

    All that follows takes the weight of a layer for a matrix.
    """
    aten = torch.ops.aten
    for node in list(graph.graph.nodes):
        if node.target is not aten.linear.default or node.args[1].meta["val"].ndim != 1:
            continue
        with graph.graph.inserting_before(node):
            new = graph.graph.call_function(aten.matmul.default, node.args[:2])
            new.meta = dict(node.meta)
            if len(node.args) > 2 and node.args[2] is not None:
                new = graph.graph.call_function(aten.add.Tensor, (new, node.args[2]))
                new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.graph.erase_node(node)
    graph.recompile()
    return graph


def _keep_batch_statistics(graph: GraphModule) -> GraphModule:
    """Take the running statistics from batch norms that do not use them in inference."""
    changed = False
    for node in graph.graph.nodes:
        if node.target is _BATCH_NORM and node.args[TRAINING_ARGUMENT[_BATCH_NORM]]:
            for place in _RUNNING_STATISTICS:
                node.update_arg(place, None)
            changed = True
    if changed:
        graph.graph.eliminate_dead_code()
        graph.recompile()
    return graph


def _check_answers(
    network: Network, twin: nn.Module, images: Tensor, expected: Mapping[str, Tensor], name: str
) -> None:
    """Refuse a network that does not answer as its module."""
    again, _ = answers_of(twin, images)
    drawn = [output for output in expected if _distance(again[output], expected[output]) > _TOLERANCE]
    if drawn:
        ops = dict.fromkeys(_draws(network.module))
        raise Unsupported(
            f"{name} draws random numbers in inference: it gives another {drawn[0]} for the same images each time.",
            why=f"It uses {', '.join(ops)}." if ops else "",
            fix="Draw in training only (`if self.training:`, or F.dropout(..., training=self.training)).",
        )
    with network.inference():
        answers = network(images)
    for output, wanted in expected.items():
        distance = _distance(answers[output], wanted)
        if distance > _TOLERANCE:
            raise Unsupported(
                f"The captured graph does not answer as {name} does.",
                why=f"On {len(images)} images the output {output} is {distance:.2g} off (relative).",
                fix="Look for values that its code fixes at the first call (caches, numbers of images), and for "
                "branches that depend on the data.",
            )


def _draws(module: GraphModule) -> list[str]:
    """The operators of a graph that may draw random numbers, without dropout that is off."""
    tag = torch.Tag.nondeterministic_seeded
    return [
        str(node.target)
        for node in module.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
        and tag in node.target.tags
        and (node.target not in TRAINING_ARGUMENT or node.args[TRAINING_ARGUMENT[node.target]])
    ]


def _distance(value: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of what is expected; infinite where shapes differ."""
    if value.shape != expected.shape:
        return float("inf")
    both = [tensor.double().nan_to_num() for tensor in (value, expected)]
    return float((both[0] - both[1]).norm() / both[1].norm().clamp_min(_TINY))
