"""What training minimises: the task's loss, the teacher's, or both."""

from collections.abc import Callable

import torch
from torch import Tensor

from afina.errors import InputError
from afina.graph.network import Network
from afina.tasks import Task
from afina.training.config import FitConfig

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]


def make_objective(task: Task, config: FitConfig, *, labelled: bool, teacher: Network | None) -> Objective:
    """A function of outputs `[N, outputs]`, images `[N, C, H, W]` and targets `[N, ...]` that gives a scalar loss.

    With a teacher: `(1 - w) * task.loss + w * task.distillation` (Hinton et al. 2015), with `w` = `distillation`;
    without labels the teacher alone teaches.

    Raises:
        InputError: there are neither labels nor a teacher.
    """
    if not labelled and teacher is None:
        raise InputError(
            "The data has no labels, and there is no teacher to learn from.",
            fix="Give labelled images, or a teacher network.",
        )
    weight = 0.0 if teacher is None else config.distillation if labelled else 1.0

    def objective(outputs: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        outputs = outputs.float()
        parts = []
        if weight < 1:
            parts.append((1 - weight) * task.loss(outputs, targets, label_smoothing=config.label_smoothing))
        if weight > 0:
            assert teacher is not None
            with teacher.inference():
                taught = teacher(images).float()
            parts.append(weight * task.distillation(outputs, taught, temperature=config.temperature))
        return torch.stack(parts).sum()

    return objective


def check_teacher(teacher: Network, network: Network) -> None:
    """Refuse a teacher that looks at other images, or answers another question, than the network.

    Raises:
        InputError: naming what differs.
    """
    for what, theirs, ours in (
        ("input", teacher.input, network.input),
        ("task", teacher.task.name, network.task.name),
        ("labels", teacher.task.labels, network.task.labels),
    ):
        if theirs != ours:
            raise InputError(
                f"The teacher's {what} differs from the network's.",
                why=f"Teacher: {theirs}. Network: {ours}.",
                fix="Give a teacher that was trained on the same data with the same preprocessing.",
            )
