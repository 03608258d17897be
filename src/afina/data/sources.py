"""`open_data`: a path, a table, a torch dataset or the digits as `ImageData`."""

from os import PathLike
from pathlib import Path
from typing import Any

from afina.data.base import ImageData, default_memory
from afina.data.digits import list_digits
from afina.data.files import find_files
from afina.data.folders import list_folder
from afina.data.listing import Listing
from afina.data.own import list_own
from afina.data.tables import find_table, list_table, top_tables
from afina.data.tags import has_tags, list_repeated, list_tags
from afina.data.torch_data import is_torch_data, list_torch
from afina.errors import InputError, did_you_mean
from afina.progress import Progress
from afina.tasks.forms import CLASSES, FLAGS, FORMS
from afina.types import InputSpec, TaskSpec


def open_data(
    source: Any,
    *,
    seed: int = 0,
    task: str | None = None,
    augment: str | None = None,
    unlabelled: bool = False,
    input: InputSpec | None = None,
    memory: int | None = None,
    progress: Progress | None = None,
    read: bool = True,
    own: TaskSpec | None = None,
) -> ImageData:
    """Open images and read all of them once.

    Args:
        source: `digits`; an image folder or a `.zip` of one (`train/CLASS/IMAGE`, `val/CLASS/IMAGE` and, to judge by,
            `test/CLASS/IMAGE`; or `CLASS/IMAGE`), or of images with a text file of tags beside each; a CSV table
            `image,target` or `image,tags` with images beside it, also inside a zip (`cells.zip/train.csv`); a torch
            `Dataset` or `DataLoader`, or two or three of them; an `ImageData`, as it is.
        seed: Draws the validation split where there is none, and the order of the images.
        task: One of `FORMS`, where the data leaves it open; None to decide by the targets.
        augment: A name in `AUGMENTATIONS`; None to choose by the kind and size of the images.
        unlabelled: Whether a folder of images without class folders will do, as images without labels.
        input: What the network expects, where it is known already: images are then decoded at that size in
            the one pass, instead of in a second one.
        memory: Bytes of decoded images that may be kept; by default `default_memory()`.
        progress: Shows the pass over the images.
        own: A task that reads its own form of targets, in the place of `task`.
        read: Whether images are read now. If not, they are where they are needed first, or by `ImageData.read` for the
            network that is known by then; only then is told which cannot be.

    Raises:
        InputError: the data is missing, broken or not enough to train on and to judge by.
    """
    if isinstance(source, ImageData):
        return source
    if task is not None and task not in FORMS:
        raise InputError(f"There is no task {task!r}.", fix=did_you_mean(task, FORMS))
    memory = default_memory() if memory is None else memory
    listing = _list_own(source, seed, own) if own else _list(source, seed, task, memory, unlabelled)
    if task is not None and listing.task.name != task:
        raise InputError(
            f"{listing.name} is data for {listing.task.name}, not for {task}.",
            fix="Leave the task out." if task == CLASSES.task else f"Give a CSV table image,target for {task}.",
        )
    for note in listing.notes:
        (progress or Progress()).say(note)
    return ImageData(listing, seed=seed, input=input, augment=augment, memory=memory, progress=progress, read=read)


def _list_own(source: Any, seed: int, task: TaskSpec) -> Listing:
    """The images with the targets that a task reads itself."""
    if not isinstance(source, (str, PathLike)):
        raise InputError(
            f"The task {task.name} reads its targets from files, and the data is a {type(source).__name__}.",
            fix="Give a folder or a zip.",
        )
    files, table = find_files(Path(source).expanduser())
    if table:
        raise InputError(f"The task {task.name} reads folders, and {source} is a table.", fix="Give its folder.")
    return list_own(files, Path(source).name or files.label, seed, task)


def _list(source: Any, seed: int, task: str | None, memory: int, unlabelled: bool) -> Listing:
    if is_torch_data(source):
        return list_torch(source, seed, task, memory)
    if not isinstance(source, (str, PathLike)):
        raise InputError(
            f"Data cannot be a {type(source).__name__}.",
            fix="Give a path, 'digits', a torch Dataset or DataLoader, or two or three of them.",
        )
    # A folder that happens to be called digits is reached as ./digits.
    if str(source) == "digits":
        return list_digits()
    path = Path(source).expanduser()
    files, table = find_files(path)
    table = table or find_table(files, str(source))
    name = path.name or files.label
    if table:
        return list_table(files, table, name, seed, task)
    if task in (None, FLAGS.task) and has_tags(files):
        return list_tags(files, name, seed)
    if task == FLAGS.task:
        return list_repeated(files, name, seed)
    try:
        return list_folder(files, name, seed, unlabelled=unlabelled)
    except InputError:
        for other in top_tables(files):  # probably the table was meant: this raises what is wrong with it
            list_table(files, other, name, seed, task)
        raise
