"""`built_module`: the module that a model's name, file or object stands for, by the source that it comes from."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from afina.errors import InputError
from afina.models import huggingface
from afina.models.exported import build_exported
from afina.models.inputs import blank_input
from afina.models.names import (
    FILE,
    PRETRAINED,
    RANDOM,
    WEIGHTS,
    is_onnx,
    is_pickled,
    is_saved,
    library_and_name,
    weights_file,
)
from afina.models.pickled import TRUST, build_pickled
from afina.models.preprocessing import ASSUMED, Preprocessing, described_beside
from afina.models.sources import BuiltModule, ModelRequest, build_named
from afina.models.userfile import build_from_file, call_of
from afina.models.weights import looks_trained, reset
from afina.progress import Progress
from afina.tasks import get_task
from afina.tasks.checking import asked
from afina.types import InputSpec, TaskSpec


@dataclass(frozen=True)
class LoadRequest:
    """The arguments of `load_model` besides the model itself."""

    weights: str | Path | None
    task: TaskSpec | None
    input: InputSpec | None
    size: tuple[int, int] | None
    targets: Tensor | None
    progress: Progress
    options: Mapping[str, Any] = field(default_factory=dict)
    trains: bool = True
    preprocessing: Preprocessing = ASSUMED
    known_task: TaskSpec | None = None
    trust: bool = False

    @property
    def outputs(self) -> int | None:
        return None if self.task is None else asked(get_task(self.task), "head_outputs")

    @property
    def file(self) -> Path | None:
        """The weights file, where one is given."""
        return weights_file(self.weights)


def built_module(model: str | Path | nn.Module, request: LoadRequest) -> BuiltModule:
    """The module that `model` names, with the weights that come with it (not yet those of a file)."""
    random = request.weights == RANDOM
    if isinstance(model, nn.Module):
        return _from_module(model, request)
    text = str(model)
    if is_saved(text):
        return BuiltModule(build_exported(Path(text)), trained=True)
    if is_pickled(text):
        module = build_pickled(Path(text), request.trust)
        request.progress.say(f"{text} was unpickled, as {TRUST} says.")
        return _from_module(module, request)
    if is_onnx(text):
        return _from_onnx(Path(text), request)
    if huggingface.is_named(text) or huggingface.is_folder(text):
        return _from_transformers(text, request)
    in_file = FILE.fullmatch(text)
    if in_file:
        builder, arguments = call_of(in_file["builder"] or "")
        options = {**arguments, **request.options}
        module = build_from_file(Path(in_file["path"]), builder, request.outputs, options)
        trained = looks_trained(module, otherwise=False)
        if trained and random:
            return BuiltModule(reset(module))
        return BuiltModule(
            module, trained=trained, missing="" if trained else "its builder loads none, and none are given"
        )
    library, name = library_and_name(text)
    trained = request.weights == PRETRAINED or (request.weights is None and library != "builtin")
    return build_named(
        ModelRequest(name, request.outputs, trained, request.size, request.input, request.progress, request.options),
        library,
    )


def _from_transformers(model: str, request: LoadRequest) -> BuiltModule:
    """The module of a folder of transformers, or of a name on the hub."""
    if request.file is not None:
        raise InputError(
            f"{model} has weights of its own, and cannot take those of {request.file}.",
            why="The library calls them otherwise in files than in its modules.",
            fix="Put them into a copy of the folder, as model.safetensors.",
        )
    source = huggingface.build_transformers(
        model, trained=request.weights != RANDOM, outputs=request.outputs,
        size=request.size, progress=request.progress,
    )  # fmt: skip
    return BuiltModule(
        source.module, source.input, source.trained, "",
        source.new_head, source.task,
    )  # fmt: skip


def _from_onnx(path: Path, request: LoadRequest) -> BuiltModule:
    """The module of an ONNX file, which has the weights that are in it."""
    from afina.models.onnx.source import build_onnx

    if request.weights == RANDOM:
        raise InputError(f"{path} always has weights.", fix=f"Leave `random` out ({WEIGHTS}).")
    beside = described_beside(path)
    hint = None if request.input is None else (request.input.height, request.input.width)
    source = build_onnx(path, request.size or (None if beside is None else beside.size), hint)
    input, task, notes = source.input, source.task, source.notes
    if beside is not None:
        channels, height, width = source.module.input_size
        blank = replace(blank_input(channels), height=height, width=width)
        input = beside.preprocessing.applied(input or blank)
        task, notes = beside.task or task, (*notes, f"Images are made ready as {beside.file} says.")
    return BuiltModule(source.module, input, trained=True, task=task, notes=notes, tail=source.tail)


def _from_module(module: nn.Module, request: LoadRequest) -> BuiltModule:
    """A module that was passed from Python, with the weights that it holds."""
    if request.weights == RANDOM:
        return BuiltModule(reset(module))
    if looks_trained(module, otherwise=True):
        return BuiltModule(module, trained=True)
    return BuiltModule(module, missing="its batch norms have seen no images yet")
