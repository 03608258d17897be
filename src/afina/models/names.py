"""The names of models, and the checks that a name allows before anything is built: most mistakes are in names."""

import re
from pathlib import Path
from typing import Any

from afina.errors import InputError, check_file, did_you_mean
from afina.models import huggingface
from afina.models.sources import LIBRARIES, library_of
from afina.models.weights import SUFFIXES, check_weights

RANDOM, PRETRAINED = "random", "pretrained"
# The options that name weights, for messages.
WEIGHTS = "--weights (for `afina quantize`: --checkpoint)"
FILE = re.compile(r"(?P<path>.+?\.py)(?::(?P<builder>.*))?", re.DOTALL)
_ARTIFACT_SUFFIXES = (".xml",)


def check_model(model: Any, weights: str | Path | None = None) -> None:
    """Check early, before images are read, that the files are there and that a library has a model of that name.

    A module or a network, as opposed to the name of one, is not looked at.

    Raises:
        InputError: a file is not there or not of its kind, or no library has that name (with the nearest ones).
    """
    file = weights_file(weights)
    if file is not None:
        check_weights(file)
    if not isinstance(model, (str, Path)):
        return
    in_file = FILE.fullmatch(str(model))
    if in_file or is_saved(model) or is_onnx(model) or is_pickled(model):
        check_file(Path(in_file["path"] if in_file else model))
    elif not (huggingface.is_named(model) or huggingface.is_folder(model)):  # of those the configuration says more
        library, name = library_and_name(str(model))
        library_of(name, library)


def is_saved(model: Any) -> bool:
    """Whether a model is the path of a captured network."""
    return isinstance(model, (str, Path)) and str(model).endswith(".pt2")


def is_onnx(model: Any) -> bool:
    """Whether a model is the path of an ONNX file."""
    return isinstance(model, (str, Path)) and str(model).lower().endswith(".onnx")


def is_pickled(model: Any) -> bool:
    """Whether a model is the path of a file as `torch.save` writes it."""
    return isinstance(model, (str, Path)) and Path(model).suffix.lower() in SUFFIXES


def is_file_of_model(model: Any) -> bool:
    """Whether a model is a file or folder of a network that is built already, or a name of such a folder."""
    built = is_onnx(model) or is_pickled(model)
    return built or (isinstance(model, (str, Path)) and (huggingface.is_named(model) or huggingface.is_folder(model)))


def has_weights(model: Any) -> bool:
    """Whether weights are a part of a model: of a file that holds them, or of what Python was given."""
    return not isinstance(model, (str, Path)) or is_saved(model) or is_onnx(model) or is_pickled(model)


def weights_file(weights: str | Path | None) -> Path | None:
    """The file that weights are in, where they are in one."""
    return None if weights in (None, RANDOM, PRETRAINED) else Path(str(weights))


def library_and_name(text: str) -> tuple[str | None, str]:
    """The library that a model's name states (None where it states none), and the name in that library.

    Raises:
        InputError: the text is no name of a model: a file of weights, an exported file, a path.

    Example:
        >>> library_and_name("timm:resnet18"), library_and_name("resnet18")
        (('timm', 'resnet18'), (None, 'resnet18'))
    """
    prefix, colon, name = text.partition(":")
    if prefix in LIBRARIES and colon:
        return prefix, name
    suffix = Path(text).suffix.lower()
    if suffix in _ARTIFACT_SUFFIXES:
        raise InputError(
            f"{text} is an exported file, which cannot be trained or compressed further.",
            fix=f"Give the model that it was made from, or judge the file itself: afina benchmark {text}",
        )
    if text and Path(text).is_dir():
        models = sorted(f.name for f in Path(text).iterdir() if f.suffix.lower() in (".onnx", ".pt2", ".py", *SUFFIXES))
        raise InputError(
            f"{text} is a folder without a config.json of transformers.",
            why=f"It has {', '.join(models[:4])}{', ...' if len(models) > 4 else ''}." if models else "",
            fix=f"Name one of them: {Path(text) / models[0]}" if models else "Give a model.",
        )
    if colon or "/" in text or not text:
        raise InputError(
            f"{text!r} is not a model.",
            why="" if not colon else did_you_mean(prefix, LIBRARIES),
            fix="Write NAME, timm:NAME, torchvision:NAME, path/file.py:builder, path/file.onnx or path/file.pt2.",
        )
    return None, text
