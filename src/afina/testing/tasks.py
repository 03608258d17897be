"""What every task promises, as checks that raise `AssertionError` with a sentence; no test runner is needed.

In the tests of a package that adds a task:

    task = get_task(TaskSpec("mytask", ("cat", "dog", "cow")))
    check_task(task, torch.randn(8, 3), torch.randint(3, (8,)))
"""

import json

import numpy as np
import torch
from torch import Tensor

from afina.tasks import Task

# Of training, enough to come from random outputs nearer to any target.
_STEPS = 30


def check_task(task: Task, outputs: Tensor, targets: Tensor) -> None:
    """Check all that a task promises.

    Args:
        task: The task.
        outputs: Outputs of a network that is often wrong, float32 `[N, outputs]`, finite; at least two images.
        targets: The targets of these images, as `ImageData.targets` gives them.

    Raises:
        AssertionError: a promise is not kept; it says which.

    Example:
        >>> from afina.tasks import get_task
        >>> from afina.types import TaskSpec
        >>> task = get_task(TaskSpec("classification", ("cat", "dog")))
        >>> check_task(task, torch.tensor([[1.0, 0.0], [2.0, 0.5]]), torch.tensor([0, 1]))
    """
    check_loss(task, outputs, targets)
    check_distillation(task, outputs)
    check_scores(task, outputs, targets)
    check_agreements(task, outputs)
    check_predictions(task, outputs)
    check_initial_bias(task, targets)


def check_loss(task: Task, outputs: Tensor, targets: Tensor) -> None:
    """The loss is one finite number, and outputs that are trained on it score no worse than before."""
    trained = outputs.detach().clone().requires_grad_()
    loss = task.loss(trained, targets)
    _promise(task, loss.ndim == 0 and bool(loss.isfinite()), "gives one finite number as loss")
    _promise(task, loss.requires_grad, "gives a loss that outputs can be trained on")
    optimizer = torch.optim.Adam([trained], lr=0.1)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        task.loss(trained, targets).backward()
        optimizer.step()
    _promise(task, bool(trained.isfinite().all()), "gives a finite gradient of the loss")
    before, after = (task.scores(values.detach().numpy(), targets.numpy()).mean() for values in (outputs, trained))
    better = after >= before if task.metric.higher_is_better else after <= before
    _promise(task, bool(better), "gives a loss that makes scores better where it falls")


def check_distillation(task: Task, outputs: Tensor) -> None:
    """The distance from the teacher is one finite number that can be trained on, least for the teacher's outputs."""
    student = outputs.flip(0).detach().clone().requires_grad_()
    distance = task.distillation(student, outputs)
    _promise(task, distance.ndim == 0 and bool(distance.isfinite()), "gives one finite number as distillation")
    _promise(task, distance.requires_grad, "gives a distillation that a student can be trained on")
    least = task.distillation(outputs, outputs)
    _promise(task, bool(least <= distance + 1e-6), "gives the least distillation for the teacher's own outputs")


def check_scores(task: Task, outputs: Tensor, targets: Tensor) -> None:
    """A score for each image, whatever the others are; outputs that are not finite get the worst."""
    scores = task.scores(outputs.numpy(), targets.numpy())
    _check_values(task, scores, len(outputs), "scores")
    single = np.concatenate([task.scores(outputs[i : i + 1].numpy(), targets[i : i + 1].numpy()) for i in range(2)])
    _promise(task, bool(np.allclose(single, scores[:2])), "scores an image by itself, whatever the others are")
    for value in (np.nan, np.inf):
        broken = task.scores(np.full(outputs.shape, value, np.float32), targets.numpy())
        worse = broken <= scores.min() if task.metric.higher_is_better else broken >= scores.max()
        _promise(task, bool(worse.all()), f"gives the worst score to outputs that are {value}")


def check_agreements(task: Task, outputs: Tensor) -> None:
    """An agreement for each image: best with the same outputs, worst with outputs that are not finite."""
    reference, sign = outputs.numpy(), 1 if task.agreement.higher_is_better else -1
    same = task.agreements(reference, reference)
    _check_values(task, same, len(outputs), "agreements")
    other = task.agreements(reference[::-1], reference)
    _promise(task, bool((sign * same >= sign * other).all()), "gives the best agreement to the same outputs")
    broken = task.agreements(np.full_like(reference, np.nan), reference)
    _promise(task, bool((sign * broken <= sign * other).all()), "gives the worst agreement to outputs that are nan")


def check_predictions(task: Task, outputs: Tensor) -> None:
    """A prediction for each image, as plain data."""
    predictions = task.predictions(outputs.numpy())
    _promise(task, len(predictions) == len(outputs), "gives one prediction for each image")
    try:
        json.dumps(predictions)
    except TypeError as error:
        raise AssertionError(f"{_name(task)} does not keep its promise: it predicts plain data ({error}).") from error


def check_initial_bias(task: Task, targets: Tensor) -> None:
    """A finite bias for each output."""
    bias = task.initial_bias(targets)
    fits = tuple(bias.shape) == (task.spec.outputs,) and bias.dtype == torch.float32 and bool(bias.isfinite().all())
    _promise(task, fits, "gives a finite float32 bias for each output")


def _check_values(task: Task, values: np.ndarray, count: int, name: str) -> None:
    fits = values.shape == (count,) and values.dtype == np.float64
    _promise(task, fits, f"gives {name} as float64 with one for each image")
    _promise(task, bool(np.isfinite(values).all()), f"gives finite {name} for finite outputs")


def _name(task: Task) -> str:
    return str(task.spec.name)


def _promise(task: Task, holds: bool, promise: str) -> None:
    if not holds:
        raise AssertionError(f"{_name(task)} does not keep its promise: it {promise}.")
