"""Files of `torch.save`, TorchScript and `torch.export` that are named as a model: what each holds, and the way on.

A pickled module (Ultralytics writes its `.pt` files so) runs code when it is read. It is read only where the user says
so (`--trust`), and then said so.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from afina.errors import InputError, check_file, first_lines
from afina.models.weights import check_unpacked_size

TRUST = "--trust"
_MODULES = ("ema", "model", "net", "module")  # where trainers keep a module; the average first
_CLASS = re.compile(r"GLOBAL (\S+)")


def build_pickled(path: Path, trusted: bool) -> nn.Module:
    """The module in a file of `torch.save`.

    Args:
        path: The file.
        trusted: Whether the user trusts it: reading it may run code.

    Raises:
        InputError: it holds no module, or one that is not trusted or whose class is missing.
    """
    check_file(path)
    check_unpacked_size(path)
    held = _held(path)
    if held == "TorchScript":
        raise InputError(
            f"{path} is TorchScript, which cannot be trained or compressed further.",
            why="Its code is compiled, and is not read.",
            fix="Export it to ONNX (torch.onnx.export takes a TorchScript module), or give the model's own code.",
        )
    if held == "weights":
        raise InputError(
            f"{path} holds weights, not a model.",
            fix=f"Give the model that they belong to, and {path} with --weights (for `afina quantize`: --checkpoint).",
        )
    if not trusted:
        raise InputError(
            f"{path} holds a pickled {held or 'object'}, which is read only if you trust it.",
            why="Reading it runs whatever code its maker put into it.",
            fix=f"If you trust who made it, say {TRUST}. Safer are its weights alone with the model's own code, or an "
            "ONNX file.",
        )
    return _module(path)


def _held(path: Path) -> str:
    """What a file holds, found without running anything in it: `weights`, `TorchScript`, or the name of a class."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in name or name.endswith("constants.pkl") for name in archive.namelist()):
                return "TorchScript"
    try:
        with warnings.catch_warnings(action="ignore"):
            torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = _CLASS.search(str(error))
        return named[1] if named else ""
    except Exception as error:  # torch.load raises almost anything on broken files
        raise InputError(f"{path} cannot be read.", why=first_lines(error, 1), fix="Download it again.") from error
    return "weights"


def _module(path: Path) -> nn.Module:
    """The module that a file holds, in 32 bits; an average of its weights where the trainer kept one."""
    try:
        with warnings.catch_warnings(action="ignore"):
            held = torch.load(path, map_location="cpu", weights_only=False)
    except (ModuleNotFoundError, AttributeError) as error:
        missing = getattr(error, "name", None) or str(error)
        raise InputError(
            f"{path} needs a class that is not installed ({missing}).",
            fix=f"Install the package that it comes from, for example: pip install {missing.partition('.')[0]}",
        ) from error
    except Exception as error:
        raise InputError(f"{path} cannot be read.", why=first_lines(error, 2), fix="Download it again.") from error
    module = _inside(held)
    if module is None:
        raise InputError(f"{path} holds no model, but a {type(held).__name__}.", fix="Give a file of a model.")
    return module.float().eval()


def _inside(held: Any) -> nn.Module | None:
    """The module in what was read; None where there is none."""
    if isinstance(held, nn.Module):
        return held
    if isinstance(held, Mapping):
        return next((held[key] for key in _MODULES if isinstance(held.get(key), nn.Module)), None)
    return None
