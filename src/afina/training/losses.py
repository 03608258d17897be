"""What training minimises: the task's loss, distances to the teacher's outputs and feature maps, or their sum."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from afina.data import Mixed
from afina.errors import InputError
from afina.graph.network import Network
from afina.graph.propagate import output_shapes
from afina.tasks import Task
from afina.training.config import FitConfig
from afina.training.features import FeatureLoss, find_pairs, tapped

Outputs = Mapping[str, Tensor]


def in_float32(outputs: Outputs) -> dict[str, Tensor]:
    """The outputs, those in half precision widened."""
    return {name: value.float() if value.is_floating_point() else value for name, value in outputs.items()}


class Objective(nn.Module):
    """A scalar loss of a network on a batch; its own parameters, if any, are trained with the network.

    With a teacher: `(1 - w) * task.loss + w * (task.distance + features)` (Hinton et al. 2015), with `w` =
    `distillation`; without labels the teacher alone teaches.

    Args:
        task: What the outputs mean.
        config: How to train.
        labelled: Whether the targets are labels; without labels they hold nothing.
        network: The network that is trained.
        teacher: The network that it learns from, or None.

    Raises:
        InputError: there are neither labels nor a teacher, or features are asked for that are not there.
    """

    def __init__(
        self, task: Task, config: FitConfig, *, labelled: bool, network: Network, teacher: Network | None
    ) -> None:
        super().__init__()
        if not labelled and teacher is None:
            raise InputError(
                "The data has no labels, and there is no teacher to learn from.",
                fix="Give labelled images, or a teacher network.",
            )
        self._task, self._config, self._teacher = task, config, teacher
        self._weight = 0.0 if teacher is None else config.distillation if labelled else 1.0
        self.inside: FeatureLoss | None = None
        if teacher is not None and config.features != "none":
            pairs = find_pairs(network, teacher, config.features)
            self.inside = FeatureLoss(pairs, config.feature_weight, config.attention_weight, config.relation_weight).to(
                network.device
            )

    @property
    def needs_outputs_only(self) -> bool:
        """Whether the loss needs nothing but the outputs of the teacher, so that they may be computed beforehand."""
        return self._teacher is not None and self.inside is None

    def forward(self, network: Network, images: Tensor, targets: Any, teacher_outputs: Outputs | None = None) -> Tensor:
        """The loss on images `[N, C, H, W]` and targets (`[N, ...]`, or `Mixed`).

        The outputs of the teacher are used where they are known.
        """
        activations: dict[str, Tensor] = {}
        if self.inside is None:
            outputs = network(images)
        else:
            nodes = [student_place.node for student_place, _ in self.inside.pairs]
            outputs, activations = tapped(network, images, nodes)
        outputs = in_float32(outputs)
        loss = next(iter(outputs.values())).new_zeros((), dtype=torch.float32)
        if self._weight < 1:
            loss = loss + (1 - self._weight) * self._task_loss(outputs, targets)
        if self._weight > 0:
            loss = loss + self._weight * self._teacher_loss(outputs, activations, images, teacher_outputs)
        return loss

    def _task_loss(self, outputs: Outputs, targets: Any) -> Tensor:
        if isinstance(targets, Mixed):
            first, second = (self._task_loss(outputs, one) for one in (targets.first, targets.second))
            return targets.share * first + (1 - targets.share) * second
        return self._task.loss(outputs, targets, label_smoothing=self._config.label_smoothing)

    def _teacher_loss(
        self, outputs: Outputs, activations: dict[str, Tensor], images: Tensor, teacher_outputs: Outputs | None
    ) -> Tensor:
        assert self._teacher is not None
        teacher_activations: dict[str, Tensor] = {}
        with self._teacher.inference():
            if self.inside is None:
                batch_outputs = self._teacher(images) if teacher_outputs is None else teacher_outputs
            else:
                nodes = [teacher_place.node for _, teacher_place in self.inside.pairs]
                batch_outputs, teacher_activations = tapped(self._teacher, images, nodes)
        loss = self._task.distance(outputs, in_float32(batch_outputs), temperature=self._config.temperature)
        return loss if self.inside is None else loss + self.inside(activations, teacher_activations)


def check_teacher(teacher: Network, network: Network) -> None:
    """Refuse a teacher with another input specification, task or labels than the network.

    Raises:
        InputError: naming what differs.
    """
    for what, theirs, ours in (
        ("input", teacher.input, network.input),
        ("task", teacher.task.name, network.task.name),
        ("labels", teacher.task.labels, network.task.labels),
        ("outputs", output_shapes(teacher), output_shapes(network)),
    ):
        if theirs != ours:
            raise InputError(
                f"The teacher's {what} differs from the network's.",
                why=f"Teacher: {theirs}. Network: {ours}.",
                fix="Give a teacher that was trained on the same data with the same preprocessing.",
            )
