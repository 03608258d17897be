"""What was done to a network: steps with their configuration, layer by layer, epoch by epoch."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Step:
    """One technique and its configuration, as plain data."""

    technique: str
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerRow:
    """One layer of a network, as the report and `afina profile` show it.

    Attributes:
        name: Name as in the user's model.
        kind: `conv2d`, `linear`, ...
        macs: Multiply-accumulates for one image.
        parameters: Numbers held by the layer.
        bytes: What those numbers take at the layer's precision.
        output: Shape of the output for one image.
        kept: Output channels kept, of how many; None where it was not pruned.
        precision: `fp32`, `fp16`, `int8`.
    """

    name: str
    kind: str
    macs: int
    parameters: int
    bytes: int
    output: tuple[int, ...]
    kept: tuple[int, int] | None = None
    precision: str = "fp32"


@dataclass(frozen=True)
class Record:
    """What a technique did to a network.

    Attributes:
        step: The technique and its configuration, enough to replay it.
        touched: Layers that were changed, by name.
        skipped: Layers left alone, with the reason for each.
        before: Cost before: `parameters`, `macs`, `bytes`.
        after: Cost after, same keys.
        seconds: Wall time that it took.
        notes: Anything else worth knowing, one sentence each.
        layers: What is known of single layers, by name; which keys depends on the technique.
    """

    step: Step
    touched: tuple[str, ...]
    skipped: dict[str, str]
    before: dict[str, float]
    after: dict[str, float]
    seconds: float
    notes: tuple[str, ...] = ()
    layers: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sensitivity:
    """What a network loses when a part of it becomes smaller.

    Attributes:
        name: The name of the axis, or of the layer.
        kind: Kind of the axis (`channels`, `heads`, ...), or `weights` for a layer that loses single weights.
        size: Number of its units (or weights).
        layers: The layers that produce an axis.
        readers: The layers that read it.
        gone: Numbers of units (or weights) gone at which it was measured.
        measured: The mean squared change of the network's outputs at each of them, as a share of the outputs' variance.
        losses: For an axis, the same for every number of units gone, from 0 to all but one: through what was measured,
            with the shape of the errors of its layers between; empty for a layer.
    """

    name: str
    kind: str
    size: int
    layers: tuple[str, ...]
    readers: tuple[str, ...]
    gone: tuple[int, ...]
    measured: tuple[float, ...]
    losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class Epoch:
    """One row of a training curve. `quality` is the task's metric on the validation data.

    Where losses are scaled (`16-mixed`): steps that overflowed and were `skipped`, how often the scale was `grown`, and
    the `loss_scale` at the end.
    """

    epoch: int
    loss: float
    quality: float
    learning_rate: float
    seconds: float
    skipped: int = 0
    grown: int = 0
    loss_scale: float | None = None
