"""Errors that a user can act on: what went wrong, why, and what to do about it."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class AfinaError(Exception):
    """What was wrong, why, and the fix; the command line prints these three and no traceback.

    Args:
        what: What was wrong, in one sentence.
        why: The reason, when it is not plain from `what`.
        fix: What the user can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        super().__init__("\n".join(part for part in (what, why, fix) if part))
        self.what, self.why, self.fix = what, why, fix


class InputError(AfinaError):
    """The command, the model, the data or the budget of the user cannot be used."""

    exit_code = 2


class NothingToDo(AfinaError):
    """A technique found nothing that it could change: never a silent success."""


class Unsupported(AfinaError):
    """A network holds something that a step does not understand; it is refused by name, never guessed."""


class ParityError(AfinaError):
    """An exported file does not answer as the network it was made from."""


class TrainingError(AfinaError):
    """Training cannot go on: the loss is not a finite number, or no step could be taken."""


class StorageError(AfinaError):
    """Something could not be written or read: the disk is full, or the folder is not writable."""


def first_lines(error: BaseException, lines: int = 3) -> str:
    """The first lines of an error's text, without empty ones, as one line of at most 500 characters."""
    text = [line.strip() for line in str(error).splitlines()]
    # OpenVINO begins with the places in its source that the error went through.
    said = [line for line in text if line and not line.startswith("Exception from ")]
    return " ".join(said[:lines])[:500] or type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that offers the known names nearest to `name`, or lists a few of them where none is near.

    Example:
        >>> did_you_mean("resnet81", ["resnet18", "resnet34", "vgg16"])
        'Did you mean resnet18 or resnet34?'
        >>> did_you_mean("bert", ["resnet18", "vgg16"])
        'Choose one of: resnet18, vgg16.'
    """
    names = sorted(set(known))
    near = get_close_matches(name, names, n=3, cutoff=0.6)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    shown = ", ".join(names[:8])
    return f"Choose one of: {shown}{', ...' if len(names) > 8 else ''}." if names else ""


def check_file(path: Path) -> None:
    """Raise `InputError` where there is no such file; it offers files beside it with a similar name."""
    if path.is_file():
        return
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a file.", fix="Give a file.")
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    alike = [entry.name for entry in beside if entry.suffix == path.suffix and entry.is_file()]
    shown = [name for name in alike if not name.startswith(".")]
    raise InputError(f"There is no file {path}.", fix=did_you_mean(path.name, shown) or "Check the path.")
