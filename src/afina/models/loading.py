"""`load_model`: a model, by name, file or module, as a captured network with the right head, weights and input."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from afina.errors import InputError
from afina.graph.capture import capture
from afina.graph.duplicate import duplicate
from afina.graph.network import Network
from afina.graph.propagate import output_shapes
from afina.models.building import LoadRequest, built_module
from afina.models.exported import is_foreign
from afina.models.head import find_head, set_bias, with_new_head, with_order
from afina.models.inputs import choose_input, output_shapes_of, width_of
from afina.models.names import (
    PRETRAINED,
    RANDOM,
    WEIGHTS,
    is_file_of_model,
    is_onnx,
    is_saved,
)
from afina.models.preprocessing import ASSUMED, Preprocessing
from afina.models.sources import BuiltModule
from afina.models.weights import Fit, load_weights
from afina.progress import Progress
from afina.tasks import get_task
from afina.tasks.checking import asked
from afina.types import UNKNOWN_TASK, InputSpec, TaskSpec


@dataclass(frozen=True)
class Loaded:
    """A model, ready for the jobs.

    Attributes:
        network: The captured network, with the task's number of outputs, in inference form.
        source: The model as the user named it.
        pretrained: Whether it holds trained weights and its head is the trained one, so that it needs no training.
        notes: Notes for the user, one sentence each.
        layers_of_head: Names of the layers that make the outputs; empty where they could not be found.
    """

    network: Network
    source: str
    pretrained: bool
    notes: tuple[str, ...] = ()
    layers_of_head: tuple[str, ...] = ()


def load_model(
    model: str | Path | nn.Module | Network,
    *,
    weights: str | Path | None = None,
    task: TaskSpec | None = None,
    input: InputSpec | None = None,
    input_size: tuple[int, int] | None = None,
    targets: Tensor | None = None,
    progress: Progress | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    trains: bool = True,
    preprocessing: Preprocessing = ASSUMED,
    known_task: TaskSpec | None = None,
    trust: bool = False,
) -> Loaded:
    """Load a model and fit its head to the task.

    Args:
        model: `resnet18` (timm, else torchvision), `timm:NAME`, `torchvision:NAME`, `file.py:builder`,
            `builtin:convnet`, an ONNX file, a folder of `transformers` or `hf:ORG/NAME`, a `.pt2` file
            written by `Network.save`; or an `nn.Module` or a `Network`.
        weights: None for the trained weights that come with the model, else random ones (with a note); `random`;
            `pretrained`, which fails where there are none; or a weights file.
        task: The task that the outputs should have; None keeps the model's own.
        input: The input that the data suggests: size, channels, mean and std.
        input_size: Height and width that the user asked for, before all others.
        targets: Targets of the training data, `[N]` or `[N, outputs]`, from which a new head starts.
        progress: Shows a line before a download.
        seed: Seed of all random weights; the same seed gives the same network.
        options: Arguments (`depth`, `width`) of the function that builds the model: the user's, or that of `builtin:`.
        trains: Whether the network is trained for the task afterwards; where it is not, a last layer that would start
            from random weights is refused.
        preprocessing: How the user says that images are made ready for the network.
        known_task: The task that the user says the model is for, where `task` is None; without labels.
        trust: Whether a pickled module may be read, which may run code.

    Raises:
        InputError: the model or the weights are not there, broken, or do not fit.
        Unsupported: the model cannot be captured.
    """
    with _seeded(seed):
        task = None if task == UNKNOWN_TASK else task
        progress = progress or Progress()
        request = LoadRequest(
            weights, task, input, input_size, targets, progress, options or {}, trains, preprocessing, known_task,
            trust,
        )  # fmt: skip
        name = model if isinstance(model, (str, Path)) else type(model).__name__
        built = isinstance(model, (str, Path)) and not is_saved(model)
        if options and (not built or is_file_of_model(model)):
            raise InputError(
                f"{name} is built already: {', '.join(options)} cannot be chosen.",
                fix="Give builtin:convnet, builtin:mlp, or a function of your own as path/file.py:builder.",
            )
        if isinstance(model, (str, Path)) and not built and not is_foreign(Path(model)):
            model = Network.load(model)
        if isinstance(model, Network):
            return _from_network(model, request, str(name))
        return _from_source(built_module(model, request), request, str(name))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds the generators of torch, numpy and `random` for the block, and puts their states back after it.

    Without it a builder that draws its weights would give another network at each call, and no run could be resumed.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def _from_source(source: BuiltModule, request: LoadRequest, name: str) -> Loaded:
    """Capture a built module, with the weights of a file where one is given, and fit its head."""
    if request.weights == PRETRAINED and not source.trained:
        raise InputError(
            f"The trained weights of {name} are not available.",
            why=f"The reason: {source.missing}." if source.missing else "",
            fix=f"Give a file of weights with {WEIGHTS}, or start from `random` ones.",
        )
    module, task = source.module, request.task
    trained = source.trained or request.file is not None
    input, assumed = choose_input(module, source.input, request.input, request.size, trained, request.preprocessing)
    notes = [*source.notes, *assumed]
    if source.missing and request.weights is None:
        notes.append(f"{name} starts from random weights: {source.missing}.")
    shapes, fit = output_shapes_of(module, input), Fit()
    if request.file is not None and shapes:
        module = duplicate(module).cpu()
        fit = load_weights(module, request.file, width_of(shapes), name)
    network = capture(module, input)
    network.tail = source.tail
    width = width_of(output_shapes(network))
    known = (request.known_task or source.task) if task is None else task
    if width is not None and known is not None:
        stated = source.task.labels if source.task is not None and source.task.name == known.name else ()
        if stated and len(stated) != width and is_onnx(name):
            raise InputError(
                f"{name} gives {width} numbers, and {len(stated)} labels are said to be theirs.",
                fix="Name one label for each output in the YAML file beside it.",
            )
        network.task = replace(known, labels=stated if len(stated) == width else _numbered(width))
    return _with_head(network, request, name, [*notes, *network.notes], fit, trained, source.new_head)


def _from_network(original: Network, request: LoadRequest, name: str) -> Loaded:
    """A captured network with its head fitted, and with the weights of a file and the image size of the request."""
    if request.weights == RANDOM:
        raise InputError(
            f"{name} is a captured network, which always has weights.",
            fix=f"Leave `random` out ({WEIGHTS}), or give the model that it was made from.",
        )
    network, fit = original.copy().eval(), Fit()
    if request.known_task == UNKNOWN_TASK:  # what the network is for does not matter to who asks for that
        network.task = UNKNOWN_TASK
    if request.file is not None:
        fit = load_weights(network.module, request.file, width_of(output_shapes(network)), name)
    if request.size is not None and request.size != (network.input.height, network.input.width):
        network = _resized(network, request.size)
    network.input = request.preprocessing.applied(network.input)
    return _with_head(network, request, name, [], fit, True, None)


def _resized(network: Network, size: tuple[int, int]) -> Network:
    """The network traced anew for images of another height and width. Raises `InputError` where it depends on them."""
    twin = network.copy()
    twin.input = replace(network.input, height=size[0], width=size[1])
    try:
        again = twin.retraced()
        # A wider vector than before would need other weights; maps may grow with the image.
        if width_of(output_shapes(again)) == width_of(output_shapes(network)):
            return again
    except Exception as error:  # torch.export raises whatever the graph's operators raise
        raise _not_resizable(network, size) from error
    raise _not_resizable(network, size)


def _not_resizable(network: Network, size: tuple[int, int]) -> InputError:
    return InputError(
        f"The network cannot take images of {size[0]}x{size[1]}.",
        why=f"It was captured for {network.input.height}x{network.input.width}, and its layers depend on that.",
        fix="Leave --input-size out, or give the model that it was made from.",
    )


def _with_head(
    network: Network,
    request: LoadRequest,
    name: str,
    notes: list[str],
    fit: Fit,
    trained: bool,
    replaced: int | None,
) -> Loaded:
    """The network with the outputs that the task needs.

    Args:
        network: The captured network, with the task that it had before.
        request: The arguments of `load_model`.
        name: The model's name.
        notes: Notes for the user so far.
        fit: How the weights of a file went in.
        trained: Whether it holds trained weights.
        replaced: How many outputs it had before its library gave it a new last layer; None if it did not.
    """
    task, fresh, head = request.task, replaced is not None or fit.dropped is not None, find_head(network)
    if fit.dropped is not None and head is not None and head.layer != fit.dropped:
        raise InputError(
            f"The weights in {request.file} do not fit {name}.",
            why=f"Layer {fit.dropped} has another number of outputs there, and it is not the last layer.",
            fix="Give the weights of this very model.",
        )
    notes = [*notes, *fit.notes]
    # Of a task with classes "cat" and "dog":
    #   the model's outputs                        its last layer
    #   1000 ImageNet classes; "left", "right"     another one, of random weights; the bias from the targets
    #   2, made anew by its library or by a file   is kept, since it is random already; the bias from the targets
    #   2, all weights random                      is kept; the bias from the targets
    #   "dog", "cat", trained                      is kept, its rows in the order of the task
    #   "0", "1", trained                          is kept as it is, with a note that the order is assumed
    if task is not None:
        shapes = output_shapes(network)
        width, wanted = width_of(shapes), asked(get_task(task), "head_outputs")
        if width is None or wanted is None:
            asked(get_task(task), "check_outputs", shapes)
        elif width != wanted or not (fresh or _fits(network.task, task)):
            replaced, fresh = width, True
            network = with_new_head(network, task, _bias(request, task))
        elif fresh or not trained:
            set_bias(network, _bias(request, task))
        else:
            network, note = _matched(network, task)
            notes += [note] if note else []
        network.task = task
    if fresh and not request.trains:
        raise _untrained_head(name, network.task, request, fit, replaced)
    head = find_head(network)
    layers = () if head is None else (head.layer,)
    if replaced is not None:
        notes.append(_new_head_note(replaced, network.task, layers))
    return Loaded(network, name, trained and not fresh, tuple(notes), layers)


def _untrained_head(name: str, task: TaskSpec, request: LoadRequest, fit: Fit, had: int | None) -> InputError:
    """What to say where the last layer would be random and stay so."""
    if fit.dropped is not None and request.file is not None:
        return InputError(
            f"The weights in {request.file.name} do not fit {name}: its last layer ({fit.dropped}) has another width.",
            why="It would start from random weights, and nothing trains it here.",
            fix="Build the model with the outputs of the weights, or train it for your data first: afina optimize, "
            "or afina tune.",
        )
    word = get_task(task).label_word
    return InputError(
        f"{name} has {had} outputs for other {word} than the {task.outputs} of the data ({_few(task.labels)}).",
        why="A new last layer would start from random weights, and nothing trains it here.",
        fix="Train it for your data first (afina optimize, or afina tune), or give data of its own classes.",
    )


def _fits(model_task: TaskSpec, task: TaskSpec) -> bool:
    """Whether outputs that mean `had` can serve for `task`: as many, and the same names where they have names."""
    if model_task == UNKNOWN_TASK:
        return True
    if model_task.name != task.name:
        return False
    numbered = model_task.labels == _numbered(model_task.outputs)
    return numbered or _same_names(model_task, task) or not get_task(task).has_classes


def _matched(network: Network, task: TaskSpec) -> tuple[Network, str]:
    """The trained network with its outputs in the task's order, and a note about the order, or an empty text."""
    model_task, shown = network.task, _few(task.labels)
    if model_task.labels == task.labels or task.outputs == 1:
        return network, ""
    if _same_names(model_task, task):
        return with_order(network, task), f"Its outputs were put into the order of the data's classes: {shown}."
    kind = "classes in sorted order" if get_task(task).has_classes else "targets in their order"
    return network, f"The model does not name its outputs; they are taken as the data's {kind}: {shown}."


def _same_names(model_task: TaskSpec, task: TaskSpec) -> bool:
    return sorted(model_task.labels) == sorted(task.labels)


def _bias(request: LoadRequest, task: TaskSpec) -> Tensor:
    bias = None if request.targets is None else asked(get_task(task), "initial_bias", request.targets)
    return torch.zeros(asked(get_task(task), "head_outputs") or task.outputs) if bias is None else bias


def _new_head_note(before: int, task: TaskSpec, layers: tuple[str, ...]) -> str:
    what = get_task(task).label_word
    named = f" ({layers[0]})" if layers else ""
    return f"The model had {before} outputs for other {what}; the data has {task.outputs}: new last layer{named}."


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(str(index) for index in range(count))


def _few(labels: tuple[str, ...]) -> str:
    return ", ".join(labels[:5]) + (", ..." if len(labels) > 5 else "")
