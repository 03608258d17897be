"""Weights from a file into a module: read without running code, and matched name by name."""

import argparse
import copy
import importlib
import pathlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from afina.errors import InputError, check_file

# Moving averages of the weights, which are what a trainer means to deploy, and the weights themselves.
_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "params_ema")
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "params", "weights")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pkl")
_FORBIDDEN = re.compile(r"Unsupported global: GLOBAL (\S+)")
_SHOWN = 4
_MOST_TIMES, _SLACK = 20, 10**6  # torch.save does not compress


@dataclass(frozen=True)
class Fit:
    """The outcome of loading the weights of a file into a module.

    Attributes:
        dropped: The layer whose weights were left out because its outputs differ in number; None for none.
        notes: Notes for the user, one sentence each.
    """

    dropped: str | None = None
    notes: tuple[str, ...] = ()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors in a `.safetensors`, `.pth`, `.pt`, `.bin` or `.ckpt` file, by name.

    Common wrappers (`{"state_dict": ...}`, `{"model": ...}`) and prefixes (`module.`, `_orig_mod.`) are looked
    through. Nothing in the file is run.

    Raises:
        InputError: there is no such file, it is broken, or it holds more than plain tensors.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors in a file by name, and notes on which of several sets were taken; errors as `read_weights`."""
    check_weights(path)
    is_safetensors = path.suffix.lower() == ".safetensors" or _format_of(path) == "safetensors"
    raw = _read_safetensors(path) if is_safetensors else _read_torch(path)
    tensors, notes = _unwrapped(raw, path)
    return _without_prefix(tensors), notes


def check_weights(path: Path) -> None:
    """Raise `InputError` where there is no such file of weights, or it is of a kind that cannot be read.

    Checkpoints also end in `.th`, `.pth.tar` or nothing at all: the format of a file with another ending is read off
    its first bytes.
    """
    if path.suffix.lower() not in SUFFIXES and path.is_file():
        if _format_of(path) is None:
            raise InputError(
                f"{path} is not a weights file that can be read.",
                why=f"Its name ends in {path.suffix or 'nothing'!r}, and its content is neither that of "
                "safetensors nor that of torch.save.",
                fix="Give `random`, `pretrained`, or such a file.",
            )
    elif path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{path} is not a weights file that can be read.",
            why=f"Its name ends in {path.suffix or 'nothing'!r}.",
            fix=f"Give `random`, `pretrained`, or a file in one of: {', '.join(SUFFIXES)}.",
        )
    check_file(path)


def _format_of(path: Path) -> Literal["safetensors", "torch"] | None:
    """The format of a file by its first bytes; None for one that is neither.

    safetensors begins with the length of a JSON header; what `torch.save` writes is a zip, or (before torch 1.6, and
    where it is asked for) a pickle of protocol 2.
    """
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith((b"PK\x03\x04", b"\x80\x02")):
        return "torch"
    length = int.from_bytes(start[:8], "little")
    return "safetensors" if start[8:9] == b"{" and length < path.stat().st_size else None


def load_weights(module: nn.Module, path: Path, outputs: int | None, name: str) -> Fit:
    """Put the weights in `path` into `module`, in place.

    Every name and shape must match, except that the last layer may have another number of outputs, or be
    missing from the file: then it stays as it is, and `Fit.dropped` names it.

    Args:
        module: A module on the CPU.
        path: The file, see `read_weights`.
        outputs: Width of the module's output, by which its last layer is recognised; None where it gives no vector:
            then all must match.
        name: The model's name, for messages.

    Raises:
        InputError: the file cannot be read, or its names or shapes differ.
    """
    (file_weights, notes), module_weights = _read(path), module.state_dict()
    file_weights = _matching_prefix(file_weights, module_weights)
    missing = [key for key in module_weights if key not in file_weights and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in file_weights if key not in module_weights]
    differ = [
        key for key in module_weights if key in file_weights and file_weights[key].shape != module_weights[key].shape
    ]
    if not (missing or unexpected or differ):
        module.load_state_dict(file_weights, strict=False)
        return Fit(notes=notes)
    layer = _head(missing + differ, module_weights, outputs)
    widths = {file_weights[key].shape[0] for key in differ if file_weights[key].ndim}
    if unexpected or layer is None or not _only_outputs_differ(differ, file_weights, module_weights):
        raise _mismatch(path, name, missing, unexpected, [(k, file_weights[k], module_weights[k]) for k in differ])
    module.load_state_dict({key: value for key, value in file_weights.items() if key not in differ}, strict=False)
    difference = f"has {widths.pop()} outputs" if widths else "is missing"
    note = f"The last layer ({layer}) {difference} in {path.name} and {outputs} in the model: it starts anew."
    return Fit(layer, (*notes, note))


def looks_trained(module: nn.Module, *, otherwise: bool) -> bool:
    """Whether a batch norm of `module` has a running mean other than zero; `otherwise` where it has no batch norm."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    means = [m.running_mean for m in norms if m.running_mean is not None]
    return any(bool(mean.any()) for mean in means) if means else otherwise


def reset(module: nn.Module) -> nn.Module:
    """A copy with random weights, by each layer's own initialiser."""
    twin = copy.deepcopy(module)
    for layer in twin.modules():
        initialise = getattr(layer, "reset_parameters", None)
        if callable(initialise):
            initialise()
    return twin


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise _broken(path, str(error)) from error


def _read_torch(path: Path) -> Any:
    """The content of a file of `torch.save`, if it is plain data. Raises `InputError`."""
    check_unpacked_size(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, which mean nothing to the user
            with torch.serialization.safe_globals(_plain_classes()):
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = _FORBIDDEN.search(str(error))
        if named is None:
            raise _broken(path, "It was not written by torch.save, or is damaged.") from error
        raise InputError(
            f"{path} is refused.",
            why=f"It holds pickled objects besides plain tensors ({named[1]}); reading them could run code.",
            fix="Save only the weights, torch.save(model.state_dict(), path), or a .safetensors file.",
        ) from error
    except Exception as error:  # torch.load raises almost anything on broken files
        raise _broken(path, next(iter(str(error).splitlines()), "") or type(error).__name__) from error


def check_unpacked_size(path: Path) -> None:
    """Raise `InputError` where an archive unpacks to very much more than it holds, which no weights do."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            whole = sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile as error:
        raise _broken(path, f"Its archive is damaged: {error}.") from error
    if whole > _MOST_TIMES * path.stat().st_size + _SLACK:
        raise _broken(path, f"It unpacks to {whole / 1e9:.3g} GB, {whole / path.stat().st_size:.0f} times its size.")


def _plain_classes() -> list[Any]:
    """Classes of plain data that trainers keep beside weights: arguments, paths, numbers and arrays of numpy."""
    paths = (pathlib.PurePosixPath, pathlib.PosixPath, pathlib.PureWindowsPath, pathlib.WindowsPath)
    core = importlib.import_module("numpy._core.multiarray")
    rebuild = {name: getattr(core, name) for name in ("scalar", "_reconstruct")}
    # Files of numpy 1 have the old name of the module.
    old = [(function, f"numpy.core.multiarray.{name}") for name, function in rebuild.items()]
    kinds = [type(np.dtype(kind)) for kind in (*"?bBhHiIlLqQefdg",)]
    return [argparse.Namespace, *paths, *rebuild.values(), *old, np.dtype, np.ndarray, *dict.fromkeys(kinds)]


def _broken(path: Path, reason: str) -> InputError:
    return InputError(f"{path} cannot be read as weights.", reason, "Download or save it again.")


def _unwrapped(raw: Any, path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors inside wrappers such as `{"state_dict": ...}`, and notes on which of several were taken.

    Raises:
        InputError: there are none.
    """
    notes: tuple[str, ...] = ()
    while isinstance(raw, Mapping):
        inside = [key for key in (*_AVERAGES, *_WRAPPERS) if isinstance(raw.get(key), Mapping)]
        if not inside:
            break
        if inside[0] in _AVERAGES and len(inside) > 1:
            notes = (
                f"{path.name} holds a moving average of the weights ({inside[0]}) beside {inside[1]}: it is taken.",
            )
        raw = raw[inside[0]]
    tensors = {str(k): v for k, v in raw.items() if isinstance(v, Tensor)} if isinstance(raw, Mapping) else {}
    if not tensors:
        held = ", ".join(map(str, list(raw)[:_SHOWN])) if isinstance(raw, Mapping) else type(raw).__name__
        raise InputError(
            f"{path} holds no weights.",
            why=f"There are no named tensors in it, but: {held or 'nothing'}.",
            fix="Save the weights with torch.save(model.state_dict(), path).",
        )
    return tensors, notes


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in ("module.", "_orig_mod.", "module."):
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _matching_prefix(file_weights: dict[str, Tensor], module_weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off a wrapper's prefix (`model.` of Lightning) where the names fit only without it."""
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in file_weights) and not any(
            key in module_weights for key in file_weights
        ):
            return {key.removeprefix(prefix): value for key, value in file_weights.items()}
        if all(f"{prefix}{key}" in module_weights for key in file_weights):
            return {f"{prefix}{key}": value for key, value in file_weights.items()}
    return file_weights


def _head(keys: list[str], module_weights: Mapping[str, Tensor], outputs: int | None) -> str | None:
    """The one layer that all of `keys` belong to, where it has as many outputs as the model."""
    layers = {key.rpartition(".")[0] for key in keys}
    if len(layers) != 1:
        return None
    layer = layers.pop()
    wide = all(module_weights[key].ndim and module_weights[key].shape[0] == outputs for key in keys)
    return layer if wide and f"{layer}.weight" in keys else None


def _only_outputs_differ(
    keys: list[str], file_weights: Mapping[str, Tensor], module_weights: Mapping[str, Tensor]
) -> bool:
    return all(file_weights[key].ndim and file_weights[key].shape[1:] == module_weights[key].shape[1:] for key in keys)


def _mismatch(
    path: Path, name: str, missing: list[str], unexpected: list[str], differ: list[tuple[str, Tensor, Tensor]]
) -> InputError:
    shapes = [f"{key} ({list(a.shape)} in the file, {list(b.shape)} in the model)" for key, a, b in differ]
    parts = (("Missing in the file", missing), ("Not in the model", unexpected), ("Of another shape", shapes))
    why = ". ".join(f"{title}: {_few(keys)}" for title, keys in parts if keys)
    return InputError(f"The weights in {path} do not fit {name}.", f"{why}.", "Give the weights of this very model.")


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
