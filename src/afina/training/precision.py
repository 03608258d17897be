"""Precision and device of a training: `lightning-fabric` set up for them, and the care that fp16 needs.

Fabric's own wrapper of a module is not used: it calls `train()` and `eval()`, which an exported graph forbids (its
mode is in its nodes). The optimizer, the backward pass, clipping and autocast go through Fabric.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from afina.errors import InputError, TrainingError
from afina.graph.network import Network
from afina.training.config import TrainingPrecision
from afina.training.team import Seat, strategy_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_MIXED = ("cpu", "cuda")
# Below one, gradients that fit fp16 without any scaling still overflow: the training itself has gone wrong.
_SMALLEST_SCALE = 1.0


def make_fabric(precision: TrainingPrecision, seat: Seat | None = None) -> "Fabric":
    """A `Fabric` on the best device here, with the precision that was asked for; at `seat`, one of several.

    The precision is given as a plug-in: from a string, Fabric puts bf16 in the place of fp16 on CPU, although torch
    can train in fp16 there.

    Raises:
        InputError: the device does not train in that precision.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.precision import MixedPrecision
    from lightning_fabric.plugins.precision import Precision as FullPrecision

    device = Fabric(accelerator="auto", devices=1).device.type
    if precision != "32" and device not in _MIXED:
        raise InputError(
            f"Training option precision is '{precision}', and the device here ({device}) trains in '32' only.",
            fix="Use precision 32.",
        )
    plugin = FullPrecision() if precision == "32" else MixedPrecision(precision, device)
    if seat is None or seat.size == 1:
        return Fabric(accelerator="auto", devices=1, plugins=[plugin])
    fabric = Fabric(accelerator=device, devices=seat.size, strategy=strategy_of(seat), plugins=[plugin])
    # Fabric logs the processes that it joins, which are no more than a detail here.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    fabric.launch()
    return fabric


def is_emulated(precision: TrainingPrecision, device: torch.device) -> bool:
    """Whether the processor has no instructions for that precision, so that it is slower than 32."""
    if precision == "32" or device.type != "cpu":
        return False
    kind = "bf16" if precision == "bf16-mixed" else "fp16"
    supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{kind}_supported", None)
    return supported is not None and not supported()


@dataclass
class ScaleLog:
    """The work of dynamic loss scaling over some steps.

    Attributes:
        skipped: Steps that overflowed: each was skipped, and the scale halved (backoff).
        grown: How often the scale was doubled, after enough steps without one.
        scale: The scale now; None where losses are not scaled.
    """

    skipped: int = 0
    grown: int = 0
    scale: float | None = None

    def __str__(self) -> str:
        parts = [
            f"{self.skipped} steps overflowed and were skipped" if self.skipped else "",
            f"it grew {self.grown} times" if self.grown else "",
        ]
        changes = ", ".join(part for part in parts if part)
        return f"Loss scale: {changes}; now {self.scale:g}." if changes else ""


class LossScale:
    """Follows the loss scale of `16-mixed`, where a step that overflowed is skipped; nothing to do elsewhere.

    A forward pass that overflows also leaves infinity in the running statistics of batch norm, which no skipped
    step takes back: they are put back here.
    """

    def __init__(self, fabric: "Fabric") -> None:
        self.scaler: torch.amp.GradScaler | None = getattr(fabric.strategy.precision, "scaler", None)
        self.skipped = False
        self._log = ScaleLog()

    def take_log(self) -> ScaleLog:
        """The log since the last call."""
        log, self._log = self._log, ScaleLog()
        log.scale = None if self.scaler is None else self.scaler.get_scale()
        return log

    @contextlib.contextmanager
    def step(self, network: Network, where: str, find_overflow: Callable[[], str] = str) -> Iterator[None]:
        """Wraps a whole step (forward, backward, optimizer); afterwards `skipped` says whether the step was skipped.

        Args:
            network: What is trained.
            where: Step and epoch in words, for the error.
            find_overflow: Gives a sentence that names the layer that overflowed first; called only where the scale has
                collapsed.

        Raises:
            TrainingError: the scale has collapsed.
        """
        self.skipped = False
        if self.scaler is None:
            yield
            return
        before = self.scaler.get_scale()
        statistics = [(b, b.detach().clone()) for b in network.module.buffers() if b.is_floating_point()]
        yield
        now = self.scaler.get_scale()
        self.skipped = now < before
        self._log.grown += now > before
        if not self.skipped:
            return
        self._log.skipped += 1
        _put_back(statistics)
        if now < _SMALLEST_SCALE:
            culprit = find_overflow()
            _put_back(statistics)
            raise TrainingError(
                f"Training stopped at {where}: the loss scale of 16-mixed has collapsed.",
                why=f"Every step overflows in fp16, whatever the scale. {culprit}".strip(),
                fix="Use precision bf16-mixed or 32, a lower learning rate, or keep that layer in 32 bits (keep_fp32).",
            )


def _put_back(statistics: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for buffer, value in statistics:
            buffer.copy_(value)
