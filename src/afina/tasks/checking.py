"""Whether a task that is not Afina's own keeps its contract on the user's own network and images.

It is asked once, on a few images, before any work: what it gets wrong is then one error that names the part, and not a
failure after an hour.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor

from afina.errors import AfinaError, InputError
from afina.tasks.base import Task
from afina.userfile import reason_of

_OURS = "afina.tasks."


def is_foreign(task: Task) -> bool:
    """Whether a task is another package's or the user's own."""
    return not type(task).__module__.startswith(_OURS)


def asked(task: Task, part: str, *arguments: Any) -> Any:
    """What a part of a task gives; `InputError` that names the part where its code fails."""
    with _part(task, part):
        return getattr(task, part)(*arguments)


def check_answers(task: Task, outputs: Mapping[str, Tensor], batch: Any, targets: Any) -> None:
    """Call all parts of a task once.

    Args:
        task: The task.
        outputs: Outputs `[N, ...]` of the network, by name.
        batch: The targets of these images as `loss` takes them; None where the images have no labels.
        targets: The same as `evidence` takes them.

    Raises:
        InputError: a part fails, or gives what the contract does not allow; it is named.
    """
    count = len(next(iter(outputs.values())))
    trained = {name: value.detach().clone() for name, value in outputs.items()}
    arrays = {name: value.detach().cpu().numpy() for name, value in outputs.items()}
    for value in trained.values():
        value.requires_grad_(value.is_floating_point())
    if batch is not None:
        with _part(task, "loss") as promise:
            loss = task.loss(trained, batch)
            promise(_is_number(loss), f"gives {_said(loss)}, not one finite number as a tensor")
            promise(loss.requires_grad, "gives a number that the network cannot be trained on")
    with _part(task, "distance") as promise:
        distance = task.distance(trained, outputs)
        promise(_is_number(distance), f"gives {_said(distance)}, not one finite number as a tensor")
    with _part(task, "decode"):
        predictions = task.decode(arrays)
    with _part(task, "plain") as promise:
        plain = task.plain(predictions)
        promise(len(plain) == count, f"gives {len(plain)} predictions for {count} images")
        json.dumps(plain)
    with _part(task, "agreement_evidence") as promise:
        agreement = task.agreement_evidence(arrays, arrays)
        _check_evidence(promise, agreement, count)
    names = list(outputs)
    asked(task, "guide", {name: tuple(value.shape[1:]) for name, value in outputs.items()})
    if batch is not None:
        with _part(task, "evidence") as promise:
            evidence = task.evidence(predictions, targets)
            _check_evidence(promise, evidence, count)
        with _part(task, "value") as promise:
            quality = task.value(evidence)
            promise(math.isfinite(float(quality)), f"gives {quality!r}, not a finite number")
        asked(task, "details", evidence, names)
        asked(task, "by_label", evidence)
        asked(task, "chance", targets)
    asked(task, "agreement_words", agreement, names)  # the last: it calls others


@contextmanager
def _part(task: Task, name: str) -> Iterator[Any]:
    """A block that calls one part of a task; gives a function that refuses what it promises and does not keep."""

    def broken(reason: str) -> InputError:
        return InputError(
            f"The task {task.spec.name} breaks the contract of a task.",
            why=f"Its `{name}` {reason}.",
            fix="Correct it; `afina.testing.tasks.check_task` checks all of the contract.",
        )

    def promise(holds: object, reason: str) -> None:
        if not holds:
            raise broken(reason)

    try:
        yield promise
    except AfinaError:
        raise
    except Exception as error:  # whatever the task's own code raises
        raise broken(f"raises {reason_of(error)}") from error


def _check_evidence(promise: Any, evidence: Any, count: int) -> None:
    promise(isinstance(evidence, np.ndarray), f"gives {_said(evidence)}, not an array")
    promise(len(evidence) == count, f"gives {len(evidence)} rows for {count} images")


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0 and bool(value.isfinite())


def _said(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__}{'' if shape is None else f' of shape {list(shape)}'}"
