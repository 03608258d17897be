"""One step of training after another: forward, backward, clipping, optimizer, schedule, average."""

import contextlib
import math
import warnings
from typing import Any

import torch
from torch import Tensor

from afina.data import to_device
from afina.errors import TrainingError
from afina.graph.network import Network
from afina.training.config import FitConfig
from afina.training.ema import Average
from afina.training.losses import Objective, Outputs
from afina.training.overflow import find_overflow
from afina.training.precision import LossScale, ScaleLog
from afina.training.schedules import make_optimizer, make_schedule
from afina.training.team import Team


class Stepper:
    """Takes the steps of one training, and holds everything that they change.

    Args:
        network: Trained in place; already on Fabric's device, in `layout`.
        config: How the network is trained.
        team: Device and precision, and the other processes that train the same network.
        objective: What is minimised.
        steps: How many steps there will be; the schedule ends with them.
        layout: Memory layout of the images.
        sparse: The network whose zeros stay zero in the weights of the same name, where the config has `keep_zeros`;
            by default `network` itself.

    Attributes:
        done: Steps so far.
    """

    def __init__(
        self,
        network: Network,
        config: FitConfig,
        team: Team,
        objective: Objective,
        steps: int,
        layout: torch.memory_format,
        sparse: Network | None = None,
    ) -> None:
        self._network, self._team, self._objective, self._layout = network, team, objective, layout
        self._fabric = fabric = team.fabric
        self._clip, self._total, self.done = config.clip or math.inf, steps, 0
        self._parameters = [*network.module.parameters(), *objective.parameters()]
        optimizer = make_optimizer(self._parameters, config)
        self._schedule = make_schedule(optimizer, config, steps)
        self._optimizer = fabric.setup_optimizers(optimizer)
        self._scale = LossScale(fabric)
        self._zeros = zeros_of(network, sparse or network) if config.keep_zeros else {}
        self._average = Average(network, config.ema) if config.ema is not None else None

    @property
    def judged(self) -> Network:
        """The network to judge and to keep: the average where there is one."""
        return self._network if self._average is None else self._average.network

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return float(self._schedule.get_last_lr()[0])

    def take_log(self) -> ScaleLog:
        """What loss scaling did since the last call."""
        return self._scale.take_log()

    def take(
        self, images: Tensor, targets: Any, epoch: int, teacher_outputs: Outputs | None = None, weight: float = 1.0
    ) -> float:
        """One step on `[N, C, H, W]` images; gives its loss, which is not finite where fp16 skipped the step.

        Args:
            images, targets: What this device sees of the batch.
            epoch: Number of the epoch, for messages.
            teacher_outputs: Outputs `[N, outputs]` of the teacher for these images, where they were computed before.
            weight: Factor of these images' mean loss in the mean over the devices.

        Raises:
            TrainingError: the loss or the gradient is not finite, or the loss scale of fp16 has collapsed.
        """
        images = images.to(self._fabric.device, memory_format=self._layout)
        targets = to_device(targets, self._fabric.device)
        if teacher_outputs is not None:
            teacher_outputs = {name: value.to(self._fabric.device) for name, value in teacher_outputs.items()}
        where = f"step {self.done + 1} (epoch {epoch})"

        def loss_of() -> Tensor:
            with self._fabric.autocast():
                loss: Tensor = self._objective(self._network, images, targets, teacher_outputs)
                return weight * loss

        def backward() -> None:
            self._optimizer.zero_grad()
            self._fabric.backward(loss_of())

        def blame() -> str:
            return find_overflow(self._network, images, self._fabric.autocast(), backward)

        with self._scale.step(self._network, where, blame):
            loss = loss_of()
            value = self._team.mean(float(loss.item()))
            self._check_finite("loss", value, where)
            self._fabric.backward(loss)
            self._team.average_gradients(self._parameters)
            norm = self._fabric.clip_gradients(
                self._network.module, self._optimizer, max_norm=self._clip, error_if_nonfinite=False
            )
            self._check_finite("gradient", norm.item(), where)
            self._optimizer.step()
        with torch.no_grad():
            for parameter, zeros in self._zeros.items():
                parameter.masked_fill_(zeros, 0.0)
        self._optimizer.zero_grad()
        self.done += 1
        if self._average is not None and not self._scale.skipped:
            self._average.update(self._network)
        self._advance_schedule()
        return value

    def state(self) -> dict[str, Any]:
        """Plain data from which `restore` makes it again."""
        return {
            "network": self._network.module.state_dict(),
            "average": self._average.state() if self._average else None,
            "objective": self._objective.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scale.scaler.state_dict() if self._scale.scaler else None,
            "done": self.done,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state that `state` gave, bit for bit."""
        self._network.module.load_state_dict(state["network"])
        if self._average is not None:
            self._average.restore(state["average"])
        self._objective.load_state_dict(state["objective"])
        self._optimizer.optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        if self._scale.scaler is not None:
            self._scale.scaler.load_state_dict(state["scaler"])
        self.done = state["done"]

    def _check_finite(self, what: str, value: float, where: str) -> None:
        # With loss scaling the scaler skips steps that overflow; `LossScale` raises where there are too many of them.
        if self._scale.scaler is None and not math.isfinite(value):
            raise TrainingError(
                f"Training stopped at {where}: the {what} is {value}.",
                why=f"The learning rate was {self.rate:.3g}.",
                fix="Use a lower learning rate; if the images or targets hold huge numbers, correct them.",
            )

    def _advance_schedule(self) -> None:
        if self.done >= self._total:
            return
        with contextlib.ExitStack() as stack:
            if self._scale.skipped:
                # Torch takes a first step that was skipped for a schedule that is advanced in the wrong place.
                stack.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self._schedule.step()


def zeros_of(network: Network, sparse: Network) -> dict[Tensor, Tensor]:
    """For each weight of `network`, a mask of the zeros in the weight of `sparse` of that name; vectors have none."""
    weights = dict(network.module.named_parameters())
    masks: dict[Tensor, Tensor] = {}
    for name, sparse_weight in sparse.module.named_parameters():
        zeros = sparse_weight.detach() == 0
        if sparse_weight.ndim > 1 and name in weights and bool(zeros.any()):
            masks[weights[name]] = zeros.to(weights[name].device)
    return masks
