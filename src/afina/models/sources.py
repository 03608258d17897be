"""The libraries that build a module by name: timm, torchvision and our own small networks (the table `LIBRARIES`).

Each gives a `BuiltModule`: a module on the CPU with what is known about its input and its weights.
"""

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from torch import nn

from afina.errors import InputError, did_you_mean
from afina.models.builtin import BUILTIN
from afina.models.hub import hub_access, hub_url, is_cached, is_reachable
from afina.models.transforms import timm_input, torchvision_input
from afina.progress import Progress
from afina.tasks.forms import CLASSES
from afina.types import InputSpec, TaskSpec
from afina.userfile import check_options

_CLASSES = 1000
_BUILTIN_SIZE, _BUILTIN_CLASSES = (32, 32), 10


@dataclass(frozen=True)
class ModelRequest:
    """The module that a library is to build.

    Attributes:
        name: Name of the model, without the library's prefix.
        outputs: Width that the last layer should have; None leaves it as it is.
        trained: Whether the module is to have the library's own trained weights.
        size: Height and width that the user asked for; None for the model's own.
        input: The input that the data suggests or that the user asked for.
        progress: Shows a line before a download.
        options: Further arguments of the function that builds the model.
    """

    name: str
    outputs: int | None
    trained: bool
    size: tuple[int, int] | None
    input: InputSpec | None
    progress: Progress
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BuiltModule:
    """A module as its library, file or user built it, before weights of a file are put into it.

    Attributes:
        module: The module, on the CPU.
        input: The input specification of the model, in its own size; None where its source states none.
        trained: Whether it holds trained weights.
        missing: Why it holds none although they were asked for; else empty.
        new_head: Outputs of the trained model, where its last layer was replaced by a new one; else None.
        task: The task that the source makes its models for, with labels where it has them; None where it does not say.
        notes: What the user should know, one sentence each.
        tail: What an ONNX file does behind the network, as an ONNX file; empty where there is nothing.
    """

    module: nn.Module
    input: InputSpec | None = None
    trained: bool = False
    missing: str = ""
    new_head: int | None = None
    task: TaskSpec | None = None
    notes: tuple[str, ...] = ()
    tail: bytes = b""


def build_named(request: ModelRequest, library: str | None) -> BuiltModule:
    """The module of a name: of `library`, or of timm, or of torchvision where timm has none of that name.

    Raises:
        InputError: nobody knows the name (with the nearest ones), or the library refuses to build it.
    """
    library = library_of(request.name, library)
    if request.options and not LIBRARIES[library].has_options:
        raise InputError(
            f"{library}:{request.name} takes no arguments here, and got {', '.join(request.options)}.",
            fix="Give builtin:convnet, builtin:mlp, or a function of your own as path/file.py:builder.",
        )
    # All that these libraries name here are classifiers; without classes (`num_classes=0`) it gives features.
    built = LIBRARIES[library].build(request)
    return built if request.outputs == 0 else replace(built, task=TaskSpec(CLASSES.task, ()))


def library_of(name: str, library: str | None) -> str:
    """The library that has a model: the one that is named, else timm or torchvision. Raises `InputError`."""
    if library is None:
        searched = {prefix: row for prefix, row in LIBRARIES.items() if row.searched}
        first_match = next((prefix for prefix, row in searched.items() if row.has(name)), None)
        if first_match is None:
            raise _unknown(name, {known for row in searched.values() for known in row.names()})
        return first_match
    if not LIBRARIES[library].has(name):
        raise _unknown(name, LIBRARIES[library].names(), library)
    return library


def timm_names() -> list[str]:
    """Names of timm's models, without the tags of their weights."""
    import timm

    return list(timm.list_models())


def torchvision_names() -> list[str]:
    """Names of torchvision's image classifiers."""
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def _in_timm(name: str) -> bool:
    import timm

    return bool(timm.is_model(name))


def _unknown(name: str, names: Any, library: str = "") -> InputError:
    who = f"{library} has no model" if library else "There is no model"
    prefix = f"{library}:" if library else ""
    candidates = [f"{prefix}{candidate}" for candidate in names]
    return InputError(f"{who} {name!r}.", fix=did_you_mean(f"{prefix}{name}", candidates))


def _timm(request: ModelRequest) -> BuiltModule:
    """A model of timm; with random weights, and the reason in `missing`, where trained ones cannot be had."""
    import timm

    name, outputs = request.name, request.outputs
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise InputError(f"timm has no weights {name!r}.", fix=did_you_mean(name, tags)) from error
    options: dict[str, Any] = {} if outputs is None else {"num_classes": outputs}
    if request.size is not None and config.fixed_input_size:
        options["img_size"] = request.size
    input = timm_input(config.to_dict())

    def build(trained: bool) -> nn.Module:
        with _quiet():
            module: nn.Module = timm.create_model(name, pretrained=trained, **options)
        return module

    if not request.trained:
        return BuiltModule(build(False), input)
    missing = "timm has no trained weights for it"
    if config.has_weights:
        url = hub_url() if config.hf_hub_id else str(config.url)
        online = is_reachable(url)
        request.progress.say(f"Loading the trained weights of {name}.")
        try:
            with hub_access(online):
                module = build(True)
            changed = outputs is not None and outputs != config.num_classes
            return BuiltModule(module, input, True, new_head=config.num_classes if changed else None)
        except (OSError, RuntimeError) as error:
            missing = _why(error, url, online)
    return BuiltModule(build(False), input, missing=missing)


def _torchvision(request: ModelRequest) -> BuiltModule:
    """A classifier of torchvision, as `_timm`; a trained one keeps its 1000 outputs, for `load_model` to replace."""
    from torchvision.models import get_model, get_model_weights

    name = request.name
    best = get_model_weights(name).DEFAULT
    input = torchvision_input(best.transforms())
    missing = ""
    if request.trained:
        online = is_cached(best.url) or is_reachable(best.url)
        request.progress.say(f"Loading the trained weights of {name}.")
        try:
            if not online:
                raise OSError(f"no connection to {best.url}")
            with hub_access(online), _quiet():
                return BuiltModule(get_model(name, weights=best), input, True)
        except (OSError, RuntimeError) as error:
            missing = _why(error, best.url, online)
    with _quiet():
        module = get_model(name, weights=None, num_classes=request.outputs or _CLASSES)
    return BuiltModule(module, input, missing=missing)


def _builtin(request: ModelRequest) -> BuiltModule:
    """A network of our own with random weights, for the input that the data has."""
    input = request.input or InputSpec(*(request.size or _BUILTIN_SIZE))
    if request.size is not None:
        input = replace(input, height=request.size[0], width=request.size[1])
    missing = "it is a network of our own, which has no trained weights" if request.trained else ""
    build, decide = BUILTIN[request.name]
    decided = decide(request.outputs or _BUILTIN_CLASSES, input)
    check_options(f"builtin:{request.name}", build, request.options, known=tuple(decided))
    try:
        module = build(**decided, **request.options)
    except (TypeError, ValueError, RuntimeError) as error:
        options = ", ".join(f"{key}={value}" for key, value in request.options.items())
        raise InputError(f"builtin:{request.name} cannot be built with {options}.", why=str(error)) from error
    return BuiltModule(module, input, missing=missing)


def _why(error: Exception, url: str, online: bool) -> str:
    if not online:
        return f"there is no connection to {urlsplit(url).hostname}, and they are not in the cache"
    return f"the download failed: {next(iter(str(error).splitlines()), type(error).__name__)}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' warnings about their own initialisers and renamed models."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass(frozen=True)
class ModelLibrary:
    """One row of the table of libraries.

    Attributes:
        names: All names of its models, for messages.
        has: Whether it has a model of that name.
        build: Builds a module by name.
        searched: Whether a name without a prefix is looked for here; in the order of the table.
        has_options: Whether its builders take arguments from the user.
    """

    names: Callable[[], Collection[str]]
    has: Callable[[str], bool]
    build: Callable[[ModelRequest], BuiltModule]
    searched: bool = True
    has_options: bool = False


LIBRARIES: dict[str, ModelLibrary] = {
    "timm": ModelLibrary(timm_names, _in_timm, _timm),
    "torchvision": ModelLibrary(torchvision_names, lambda name: name in torchvision_names(), _torchvision),
    "builtin": ModelLibrary(lambda: tuple(BUILTIN), BUILTIN.__contains__, _builtin, searched=False, has_options=True),
}
