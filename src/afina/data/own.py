"""Targets of any form, which a task reads from the data's files itself: boxes, points, masks."""

import posixpath
from collections.abc import Callable

import numpy as np
from PIL import Image

from afina.data.decode import seen_part, upright_size
from afina.data.files import Files, FileSource, is_image
from afina.data.folders import fingerprint_of
from afina.data.listing import ImageSource, Listing
from afina.data.splits import split_by_folders
from afina.errors import AfinaError, InputError, did_you_mean
from afina.tasks import Task, View, get_task, task_class
from afina.types import InputSpec, TaskSpec
from afina.userfile import reason_of


def list_own(files: Files, name: str, seed: int, task: TaskSpec) -> Listing:
    """The images that the task has targets for, each with its target, any object.

    Raises:
        InputError: the task finds no targets in the files, fails, or names an image that is not there.
    """
    try:
        read = task_class(task).read_targets(files)
        targets = dict(read.targets)
    except AfinaError:
        raise
    except Exception as error:  # whatever the task's own code raises on files of another kind
        raise InputError(
            f"The task {task.name} cannot read the targets of {name}.",
            why=f"Its `read_targets` raises {reason_of(error)}",
            fix="Give data of the form that it reads, or correct it.",
        ) from error
    images = [key for key in files.names if is_image(key)]
    unknown = next((key for key in targets if not files.has(key)), None)
    if unknown is not None:
        raise InputError(
            f"{name} has no image {unknown!r}, for which {task.name} gives a target.", fix=did_you_mean(unknown, images)
        )
    if not targets:
        raise InputError(
            f"The task {task.name} finds no targets in {name}.", fix="Give data of the form that it reads."
        )
    parts = split_by_folders(targets, as_objects(list(targets.values())), seed, name)
    folders = {posixpath.dirname(key) for key in targets}  # others hold masks, say
    left_out = len({key for key in images if posixpath.dirname(key) in folders} - set(targets))
    notes = (f"{name}: {left_out} images without a target are left out.",) if left_out else ()
    fingerprint = fingerprint_of(files, targets, read.content)
    return Listing(
        name, TaskSpec(task.name, tuple(read.labels), task.file), FileSource(files), parts, fingerprint, notes=notes
    )


def as_objects(targets: list[object]) -> np.ndarray:
    """Any objects as an array `[N]` of them, also where they look like rows of numbers."""
    array = np.empty(len(targets), dtype=object)
    for i, target in enumerate(targets):
        array[i] = target
    return array


class Fitter:
    """Fits targets of a task's own to the part of each image that a network sees.

    Args:
        task: The task.
        source: Reads the images, of which only the sizes count; they are kept.
    """

    def __init__(self, task: TaskSpec, source: ImageSource) -> None:
        self._task, self._source = task, source
        self._sizes = dict[str, tuple[int, int]]()

    @property
    def task(self) -> Task:
        """The task; made anew, since a class of a user's file cannot be sent to other processes."""
        return get_task(self._task)

    def fit(self, key: str, target: object, input: InputSpec, varied: Callable[[View], View] | None = None) -> object:
        """The target of one image, for a network's input; `varied` gives what is seen of it where it is varied."""
        view = self._view(key, input) if varied is None else varied(self._view(key, input))
        try:
            return self.task.fit_target(target, view)
        except AfinaError:
            raise
        except Exception as error:  # whatever the task's own code raises
            raise InputError(
                f"The task {self._task.name} fails on the target of {key}.",
                why=f"Its `fit_target` raises {reason_of(error)}",
                fix="Correct the target, or the task.",
            ) from error

    def _view(self, key: str, input: InputSpec) -> View:
        if key not in self._sizes:
            image = self._source.image(key)
            self._sizes[key] = upright_size(image) if isinstance(image, Image.Image) else image.shape[:0:-1]
        return View(seen_part(*self._sizes[key], input), input)
