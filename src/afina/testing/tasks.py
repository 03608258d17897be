"""What every task promises, as checks that raise `AssertionError` with a sentence; no test runner is needed.

In the tests of a package that adds a task:

    task = get_task(TaskSpec("mytask", ("cat", "dog", "cow")))
    check_task(task, {"outputs": torch.randn(8, 3)}, torch.randint(3, (8,)))
"""

import contextlib
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afina.errors import InputError
from afina.tasks import Task

Outputs = Mapping[str, Tensor]

# Of training, enough to come from random outputs nearer to any target.
_STEPS = 30


def check_task(task: Task, outputs: Outputs, targets: Any) -> None:
    """Check all that a task promises.

    Args:
        task: The task.
        outputs: Outputs of a network that is often wrong, float32 `[N, ...]` by name, finite; at least four images.
        targets: The targets of these images: a tensor as `ImageData.targets` gives it, or, of a task that reads its
            own, a list of what `fit_target` gives for each.

    Raises:
        AssertionError: a promise is not kept; it says which.

    Example:
        >>> from afina.tasks import get_task
        >>> from afina.types import TaskSpec
        >>> task = get_task(TaskSpec("classification", ("cat", "dog")))
        >>> outputs = {"outputs": torch.tensor([[1.0, 0.0], [2.0, 0.5], [0.0, 1.0], [1.0, 2.0]])}
        >>> check_task(task, outputs, torch.tensor([0, 1, 1, 0]))
    """
    check_shapes(task, outputs)
    check_loss(task, outputs, targets)
    check_distance(task, outputs)
    check_evidence(task, outputs, targets)
    check_agreement(task, outputs)
    check_predictions(task, outputs)
    check_initial_bias(task, targets)
    check_reports(task, outputs, targets)


def check_shapes(task: Task, outputs: Outputs) -> None:
    """Its own outputs are taken; those of a network of another kind are refused with one clear error."""
    task.check_outputs({name: tuple(value.shape) for name, value in outputs.items()})
    try:
        task.check_outputs({"other": (2, 1, 3, 5, 7), "second": (2, 11)})
    except InputError:
        return
    raise AssertionError(f"{_name(task)} does not keep its promise: it refuses outputs that it cannot read.")


def check_loss(task: Task, outputs: Outputs, targets: Any) -> None:
    """The loss is one finite number, and outputs that are trained on it score no worse than before."""
    trained = {name: value.detach().clone().requires_grad_() for name, value in outputs.items()}
    batch = targets if isinstance(targets, Tensor) else task.collate(targets)
    loss = task.loss(trained, batch)
    _promise(task, loss.ndim == 0 and bool(loss.isfinite()), "gives one finite number as loss")
    _promise(task, loss.requires_grad, "gives a loss that outputs can be trained on")
    optimizer = torch.optim.Adam(trained.values(), lr=0.1)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        task.loss(trained, batch).backward()
        optimizer.step()
    finite = all(bool(value.isfinite().all()) for value in trained.values())
    _promise(task, finite, "gives a finite gradient of the loss")
    before, after = (_value(task, values, targets) for values in (outputs, trained))
    _promise(task, task.metric.lost(before, after) <= 0, "gives a loss that makes the metric better where it falls")


def check_distance(task: Task, outputs: Outputs) -> None:
    """The distance from a teacher is one finite number that can be trained on, least for the teacher's outputs."""
    student = {name: value.flip(0).detach().clone().requires_grad_() for name, value in outputs.items()}
    distance = task.distance(student, outputs)
    _promise(task, distance.ndim == 0 and bool(distance.isfinite()), "gives one finite number as distance")
    _promise(task, distance.requires_grad, "gives a distance that a student can be trained on")
    least = task.distance(outputs, outputs)
    _promise(task, bool(least <= distance + 1e-6), "gives the least distance for the teacher's own outputs")


def check_evidence(task: Task, outputs: Outputs, targets: Any) -> None:
    """A row for each image, whatever the others are; a value over any rows; the worst for what is not finite."""
    arrays, wanted = _arrays(outputs), _truth(targets)
    evidence = task.evidence(task.decode(arrays), wanted)
    _promise(task, len(evidence) == len(wanted), "gives one row of evidence for each image")
    for i in range(2):
        part = {name: value[i : i + 1] for name, value in arrays.items()}
        single = task.evidence(task.decode(part), wanted[i : i + 1])
        _promise(task, _same(single, evidence[i : i + 1]), "judges an image by itself, whatever the others are")
    rows = np.arange(len(wanted))
    values = [task.value(evidence[order]) for order in (rows, rows[::-1])]
    _promise(task, bool(np.isfinite(values).all()), "gives a finite metric for finite outputs")
    _promise(
        task, bool(np.isclose(values[0], values[1])), "gives a metric that does not depend on the order of the images"
    )
    for number in (np.nan, np.inf):
        broken = {name: np.full_like(value, number) for name, value in arrays.items()}
        worse = task.metric.lost(values[0], task.value(task.evidence(task.decode(broken), wanted)))
        _promise(task, bool(worse >= 0), f"gives no better metric to outputs that are {number}")


def check_agreement(task: Task, outputs: Outputs) -> None:
    """The agreement is best with the same outputs, and no better with outputs that are not finite."""
    reference = _arrays(outputs)

    def agreement(arrays: dict[str, np.ndarray]) -> float:
        return task.agreement_value(task.agreement_evidence(arrays, reference))

    same = agreement(reference)
    other = agreement({name: value[::-1].copy() for name, value in reference.items()})
    _promise(task, task.agreement.lost(same, other) >= 0, "gives the best agreement to the same outputs")
    broken = agreement({name: np.full_like(value, np.nan) for name, value in reference.items()})
    _promise(task, task.agreement.lost(same, broken) >= 0, "gives no better agreement to outputs that are nan")


def check_predictions(task: Task, outputs: Outputs) -> None:
    """A prediction for each image, as plain data."""
    arrays = _arrays(outputs)
    predictions = task.plain(task.decode(arrays))
    count = len(next(iter(arrays.values())))
    _promise(task, len(predictions) == count, "gives one prediction for each image")
    try:
        json.dumps(predictions)
    except TypeError as error:
        raise AssertionError(f"{_name(task)} does not keep its promise: it predicts plain data ({error}).") from error


def check_reports(task: Task, outputs: Outputs, targets: Any) -> None:
    """What reports say of the outputs: code that reads them with numpy alone, chance, and figures by label."""
    guide = task.guide({name: tuple(value.shape[1:]) for name, value in outputs.items()})
    single = {name: value[:1] for name, value in _arrays(outputs).items()}
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(guide.code, {"np": np, "json": json, "outputs": single, "labels": list(task.spec.labels)})
    except Exception as error:
        raise AssertionError(f"{_name(task)} does not keep its promise: its `code` reads outputs ({error}).") from error
    chance = task.chance(_truth(targets))
    _promise(task, chance is None or np.isfinite(chance), "gives a finite chance, or none")
    table = task.by_label(task.evidence(task.decode(_arrays(outputs)), _truth(targets)))
    if table is not None:
        widths = {len(row) for row in table.rows.values()}
        _promise(task, widths == {len(table.columns)}, "gives a figure of each label for each column")


def check_initial_bias(task: Task, targets: Any) -> None:
    """None, or a finite bias for each output."""
    bias = task.initial_bias(targets)
    if bias is not None:
        fits = (
            tuple(bias.shape) == (task.head_outputs(),) and bias.dtype == torch.float32 and bool(bias.isfinite().all())
        )
        _promise(task, fits, "gives a finite float32 bias for each output")


def _value(task: Task, outputs: Outputs, targets: Any) -> float:
    return task.value(task.evidence(task.decode(_arrays(outputs)), _truth(targets)))


def _truth(targets: Any) -> Any:
    return targets.numpy() if isinstance(targets, Tensor) else targets


def _arrays(outputs: Outputs) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in outputs.items()}


def _same(first: np.ndarray, second: np.ndarray) -> bool:
    if first.dtype == object:
        return repr(first.tolist()) == repr(second.tolist())
    return bool(np.allclose(first, second, equal_nan=True))


def _name(task: Task) -> str:
    return str(task.spec.name)


def _promise(task: Task, holds: bool, promise: str) -> None:
    if not holds:
        raise AssertionError(f"{_name(task)} does not keep its promise: it {promise}.")
