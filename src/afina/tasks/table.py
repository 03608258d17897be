"""The table of tasks, and how the one of a network is looked up.

Other packages add tasks by entry points of the group `afina.tasks`, which name a subclass of `Task`. A user's own is a
class in a file of his, which `TaskSpec.file` names; the file is read again where it changes.
"""

import hashlib
from inspect import getattr_static
from pathlib import Path
from typing import Any

from afina.errors import InputError
from afina.extensions import BrokenContract, Table, concrete_class
from afina.tasks.base import OWN, Task
from afina.tasks.classification import Classification
from afina.tasks.forms import FORMS
from afina.tasks.multilabel import MultiLabel
from afina.tasks.outputs import Outputs
from afina.tasks.regression import Regression
from afina.types import MetricInfo, TaskSpec
from afina.userfile import load_class, reason_of, reference

_READS = ("", OWN, *FORMS)
# Classes of users' files, with the content of the file that each was read from.
_FROM_FILES: dict[tuple[str, str], tuple[bytes, type[Task]]] = {}


def _accept(value: Any) -> type[Task]:
    """The class that another package or a user's file gives. Raises `BrokenContract`."""
    kind: type[Task] = concrete_class(value, Task, {"metric": MetricInfo, "agreement": MetricInfo, "reads": str})  # type: ignore[type-abstract]
    if kind.reads not in _READS:
        names = ", ".join(repr(name) for name in _READS)
        raise BrokenContract(f"its attribute `reads` is {kind.reads!r}, not one of {names}")
    if kind.reads == OWN and getattr_static(kind, "read_targets") is getattr_static(Task, "read_targets"):
        raise BrokenContract("it reads targets of its own form, and does not implement `read_targets`")
    return kind


TASKS: Table[type[Task]] = Table(
    "task",
    "afina.tasks",
    {"classification": Classification, "regression": Regression, "multilabel": MultiLabel, "outputs": Outputs},
    accept=_accept,
)


def named_task(name: str) -> TaskSpec:
    """The task that a user names, a name in the table or `path/file.py:MyTask`; without labels.

    Raises:
        InputError: there is none of that name, it cannot be imported, or it breaks the contract.

    Example:
        >>> named_task("regression")
        TaskSpec(name='regression', labels=(), file='')
    """
    in_file = reference(name)
    spec = TaskSpec(name, ()) if in_file is None else TaskSpec(in_file[1], (), str(in_file[0].resolve()))
    task_class(spec)
    return spec


def task_class(spec: TaskSpec) -> type[Task]:
    """The class of the task that `spec` names; errors as in `get_task`."""
    return _from_file(spec) if spec.file else TASKS.get(spec.name)


def get_task(spec: TaskSpec) -> Task:
    """The task that `spec` names.

    Raises:
        InputError: there is no task of that name, its package is broken, or its file is gone or breaks the contract.

    Example:
        >>> get_task(TaskSpec("classification", ("cat", "dog"))).metric.name
        'accuracy'
    """
    kind = task_class(spec)
    try:
        return kind(spec)
    except Exception as error:  # whatever a class of a user's file raises
        raise InputError(
            f"The task {spec.name} cannot be made.",
            why=reason_of(error),
            fix="Correct its `__init__`, or leave it out.",
        ) from error


def identity_of(spec: TaskSpec) -> dict[str, Any]:
    """What tells two tasks apart, for fingerprints: name and labels, and the content of a user's file, not its place.

    Example:
        >>> identity_of(TaskSpec("classification", ("cat", "dog")))
        {'name': 'classification', 'labels': ('cat', 'dog')}
    """
    about: dict[str, Any] = {"name": spec.name, "labels": spec.labels}
    if spec.file:
        path = Path(spec.file)
        about["file"] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return about


def _from_file(spec: TaskSpec) -> type[Task]:
    path = Path(spec.file)
    if not path.is_file():
        raise InputError(
            f"The task {spec.name} is defined in {path}, and there is no such file.",
            why="A network keeps the name of the file, not the code in it.",
            fix=f"Put the file back; or give its new place with --task path/{path.name}:{spec.name}, or --task outputs "
            "to compare what networks give with the original.",
        )
    content = path.read_bytes()
    known = _FROM_FILES.get((spec.file, spec.name))
    if known is None or known[0] != content:
        try:
            known = content, _accept(load_class(path, spec.name))
        except BrokenContract as error:
            raise InputError(
                f"The task {spec.name} in {path} breaks the contract of a task.",
                why=f"In detail: {error}.",
                fix="Correct it; `afina.testing.tasks.check_task` checks all of the contract.",
            ) from error
        _FROM_FILES[spec.file, spec.name] = known
    return known[1]
