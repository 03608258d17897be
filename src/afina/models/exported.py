"""Programs that others saved with `torch.export.save`, as modules: taken where they hold plain data alone."""

import io
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from afina.errors import InputError, check_file, first_lines
from afina.graph.network import unlifted
from afina.graph.outputs import named_tensors
from afina.graph.screening import reason_to_refuse

_OWN = "/afina.json"
_DIMENSIONS, _CHANNELS = 4, (1, 3)


class ExportedModule(nn.Module):
    """A program of `torch.export` as a module that can be captured; it has one form, that of inference.

    Attributes:
        input_size: Channels, height and width of the images that it was exported with.
        batch_size: The number of images that it is fixed to; None where it takes any.
    """

    def __init__(self, program: torch.export.ExportedProgram, size: tuple[int, int, int], batch: int | None) -> None:
        super().__init__()
        self.program = unlifted(program)
        self.input_size, self.batch_size = size, batch

    def forward(self, images: Tensor) -> object:
        if self.batch_size is None or images.shape[0] == self.batch_size:
            return self.program(images)
        if self.batch_size != 1:
            raise ValueError(
                f"the program takes {self.batch_size} images at a time: export it for one, or for any number"
            )
        parts = [named_tensors(self.program(part))[0] for part in images.split(1)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def train(self, mode: bool = True) -> "ExportedModule":
        self.training = mode
        return self


def is_foreign(path: Path) -> bool:
    """Whether a `.pt2` file is a program that was not written by this library."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return not any(name.endswith(_OWN) for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def build_exported(path: Path) -> ExportedModule:
    """The program in a `.pt2` file as a module.

    Raises:
        InputError: it is broken, holds more than plain data and operators that compute, or takes no images.
    """
    check_file(path)
    data = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        reason = reason_to_refuse(archive)
    if reason:
        raise InputError(f"{path} is refused.", why=reason, fix="Give the model's own code (path/file.py:builder).")
    try:
        program = torch.export.load(io.BytesIO(data))
    except Exception as error:  # torch.export raises whatever it stumbles over
        raise InputError(
            f"{path} cannot be read as a program of torch.export.",
            why=f"PyTorch {torch.__version__} says: {first_lines(error, 2)}",
            fix="Save it with this version of PyTorch.",
        ) from error
    inputs = [node.meta["val"] for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    shape = tuple(inputs[0].shape) if len(inputs) == 1 and isinstance(inputs[0], Tensor) else ()
    if len(shape) != _DIMENSIONS or shape[1] not in _CHANNELS or not all(isinstance(n, int) for n in shape[1:]):
        raise InputError(
            f"{path} does not take images alone: its inputs are {[list(getattr(i, 'shape', ())) for i in inputs]}.",
            fix="Export a program of one tensor of images [N, C, H, W].",
        )
    batch = shape[0] if isinstance(shape[0], int) else None
    return ExportedModule(program, (shape[1], shape[2], shape[3]), batch)
