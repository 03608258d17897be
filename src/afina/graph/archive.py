"""A network as one `.pt2` file: written whole or not at all, read without running anything from it.

The file is what `torch.export.save` writes, and one entry `afina.json` beside it: the format's number, the input
specification, the task, the frozen norms, the names of the outputs and the number of images where it is fixed.
`screening` looks at a file before torch does.

Formats: 1, of versions 0.1 and 0.2; 2, whose input specification says how images are resized. A change that older
versions cannot read takes the next number.
"""

import base64
import io
import json
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from afina.errors import InputError, Unsupported, check_file, first_lines
from afina.graph.outputs import SINGLE
from afina.graph.screening import reason_to_refuse
from afina.store.files import write as write_whole
from afina.types import InputSpec, TaskSpec, plain_task

if TYPE_CHECKING:
    from afina.graph.network import Network

_ENTRY = "afina.json"
_FORMAT_NAME = "afina/network/"
_FIRST_FORMAT, _FORMAT = 1, 2
_BROKEN = (zipfile.BadZipFile, json.JSONDecodeError, KeyError, UnicodeDecodeError, AttributeError, TypeError)


def write(network: "Network", path: Path) -> Path:
    """Write `network` to `path`.

    Raises:
        StorageError: the file cannot be written.
        Unsupported: the network holds an operator that `read` would refuse.
    """
    write_whole(path, packed(network))
    return path


def packed(network: "Network") -> bytes:
    """The bytes of a file of `network`.

    Raises:
        Unsupported: the network holds an operator that `unpacked` would refuse.
    """
    about = {
        "format": f"{_FORMAT_NAME}{_FORMAT}",
        "input": asdict(network.input),
        "task": plain_task(network.task),
        "frozen": sorted(network.frozen),
        "outputs": list(network.outputs),
        "batch_size": network.batch_size,
        "tail": base64.b64encode(network.tail).decode(),
    }
    buffer = io.BytesIO()
    torch.export.save(network.exported(), buffer, extra_files={_ENTRY: json.dumps(about)})
    with zipfile.ZipFile(buffer) as archive:
        reason = reason_to_refuse(archive)
    if reason:  # said now, not when the file is needed
        raise Unsupported(
            "This network cannot be saved: the file would be refused when it is loaded.",
            why=reason,
            fix="Write that part of the model with PyTorch's own functions, or export it to ONNX or OpenVINO instead.",
        )
    return buffer.getvalue()


def read(path: Path) -> "Network":
    """Read the network in `path`. Raises `InputError`."""
    check_file(path)
    return unpacked(path.read_bytes(), path)


def unpacked(data: bytes, path: str | Path = "The network") -> "Network":
    """The network that `packed` made bytes of; `path` is for messages. Raises `InputError`."""
    from afina.graph.network import Network, unlifted

    about = _checked(data, path)
    import torch.ao.quantization.fx._decomposed  # torch finds the operators of quantized networks only after this

    try:
        module = unlifted(torch.export.load(io.BytesIO(data)))
        network = Network(
            module,
            InputSpec.from_plain(about["input"]),
            _task_spec(about["task"]),
            frozenset(about["frozen"]),
            # Files of before 0.3 have neither: their networks give one tensor, for any number of images.
            outputs=tuple(about.get("outputs", (SINGLE,))),
            batch_size=about.get("batch_size"),
            tail=base64.b64decode(about.get("tail", "")),
        )
    except Exception as error:
        raise InputError(
            f"{path} cannot be read.",
            why=f"PyTorch {torch.__version__} says: {first_lines(error)}",
            fix="Install the version of PyTorch that wrote it, or save the network again with this one.",
        ) from error
    return network.eval()


def _checked(data: bytes, path: str | Path) -> dict[str, Any]:
    """The content of the entry `afina.json`, once the file is known to be plain data of a format that is read here."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entry = next((name for name in archive.namelist() if name.endswith(f"/{_ENTRY}")), None)
            about: dict[str, Any] = json.loads(archive.read(entry)) if entry else {}
            reason, fix = _reason_in_format(about.get("format"))
            if not reason:
                reason = reason_to_refuse(archive)
                fix = "Load only files written by Network.save (or `afina export --to pt2`)."
    except _BROKEN as error:
        raise InputError(
            f"{path} is not a saved network.",
            why=f"It cannot be read as one: {error}",
            fix="Save it again with Network.save.",
        ) from error
    if reason:
        raise InputError(f"{path} is refused.", why=reason, fix=fix)
    return about


def _reason_in_format(noted: Any) -> tuple[str, str]:
    """Why a file that notes this format is not read, and the way on; empty texts where it is read."""
    name, number = (noted[: len(_FORMAT_NAME)], noted[len(_FORMAT_NAME) :]) if isinstance(noted, str) else ("", "")
    if name != _FORMAT_NAME or not number.isdecimal():
        return (
            f"It was not written by this library (no {_FORMAT_NAME}{_FORMAT} in it).",
            "Load only files written by Network.save (or `afina export --to pt2`).",
        )
    if int(number) > _FORMAT:
        return (
            f"Its format is {number}, of a newer version of Afina; this one reads up to {_FORMAT}.",
            "Install the newest version of Afina, or save the network again with this one.",
        )
    if int(number) < _FIRST_FORMAT:
        return (
            f"Its format is {number}, which no release has written; this version reads {_FIRST_FORMAT} to {_FORMAT}.",
            "Save the network again, from the model that it was made of.",
        )
    return "", ""


def _task_spec(raw: dict[str, Any]) -> TaskSpec:
    return TaskSpec(raw["name"], tuple(raw["labels"]), raw.get("file", ""))
