"""`FitConfig`: how a network is trained, as plain data that is checked when it is made."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from afina.data import Strong
from afina.errors import InputError, did_you_mean

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["onecycle", "cosine"]
TrainingPrecision = Literal["32", "bf16-mixed", "16-mixed"]

_LEARNING_RATE = {"sgd": 0.1, "adamw": 1e-3}
_WEIGHT_DECAY = {"sgd": 5e-4, "adamw": 0.05}
_WARMUP = {"onecycle": 0.3, "cosine": 0.1}


@dataclass(frozen=True)
class FitConfig:
    """How a network is trained. Options whose default depends on another one are None until `resolved`.

    Attributes:
        epochs: Passes over the training images.
        optimizer: `sgd` (Nesterov momentum) or `adamw` (Loshchilov & Hutter 2019).
        learning_rate: The highest that the schedule reaches; default 0.1 for `sgd`, 0.001 for `adamw`.
        weight_decay: Default 5e-4 for `sgd`, 0.05 for `adamw`; never on norms and biases.
        momentum: Momentum of `sgd`; `adamw` does not use it.
        batch_size: Images in one step; at least 2, which batch norm needs.
        schedule: `onecycle` (Smith & Topin 2018) or `cosine` (Loshchilov & Hutter 2017) with linear warm-up.
        warmup: Share of the steps on which the learning rate rises; default 0.3 for `onecycle`, 0.1 for `cosine`.
        label_smoothing: Share of each target spread over all classes (classification).
        augment: How much training images are varied: true or 1 as is usual for them, 2 twice as much, false or 0 not at
            all.
        randaugment: Magnitude, 0 to 10, of two random changes of each training image in shape or colour (Cubuk et al.
            2020); 9 is usual for long trainings.
        erasing: Chance of a training image to lose a rectangle (Zhong et al. 2020).
        mixup: Parameter of the shares in which two training images are laid over each other (Zhang et al. 2018; for
            tasks with classes); 0 for none, 0.2 is usual.
        cutmix: The same for a rectangle that comes from another image (Yun et al. 2019); 1 is usual.
        ema: Decay of the moving average of the weights that is judged and returned; None for the weights themselves.
        early_stopping: Epochs without improvement after which training stops; None for never.
        precision: `32`, `bf16-mixed` or `16-mixed` (autocast, with loss scaling where fp16 needs it).
        keep_fp32: Names of layers, or of modules that hold them, that stay in 32 bits in mixed precision, with `*`, `?`
            and `[...]` as in file names (`head`, `layer4.*`); norms and softmax do in any case.
        channels_last: Memory layout NHWC, which convolutions like; networks that cannot take it stay in NCHW.
        clip: Largest norm of the gradient; None for no limit.
        distillation: Weight of the teacher's part of the loss, where there is a teacher; the labels have the rest.
        temperature: Divisor of both networks' logits in the teacher's part of the loss (Hinton et al. 2015).
        features: What the student learns from inside the teacher: `none`, `auto` (places of the same resolution), or
            pairs `STUDENT:TEACHER` of layers with commas between (see `training.features`).
        feature_weight: Weight of the feature maps, projected where widths differ.
        attention_weight: Weight of where the feature maps are active.
        relation_weight: Weight of how images relate to each other.
        keep_zeros: Whether weights that are zero at the start stay zero (sparse networks).
        seed: Seed of the order of images, augmentation and dropout.

    Raises:
        InputError: a value is out of range; it names the option, what is allowed and what was given.

    Example:
        >>> FitConfig(epochs=3, optimizer="adamw").resolved().learning_rate
        0.001
    """

    epochs: int = 10
    optimizer: Optimizer = "sgd"
    learning_rate: float | None = None
    weight_decay: float | None = None
    momentum: float = 0.9
    batch_size: int = 128
    schedule: Schedule = "onecycle"
    warmup: float | None = None
    label_smoothing: float = 0.0
    augment: bool | float = True
    randaugment: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float | None = 0.999
    early_stopping: int | None = None
    precision: TrainingPrecision = "32"
    keep_fp32: tuple[str, ...] = ()
    channels_last: bool = True
    clip: float | None = 5.0
    distillation: float = 0.9
    temperature: float = 4.0
    features: str = "none"
    feature_weight: float = 1.0
    attention_weight: float = 0.0
    relation_weight: float = 0.0
    keep_zeros: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in (("optimizer", Optimizer), ("schedule", Schedule), ("precision", TrainingPrecision)):
            _check_choice(name, getattr(self, name), get_args(kind))
        _check_whole("epochs", self.epochs, 1)
        _check_whole("batch_size", self.batch_size, 2)
        _check_whole("early_stopping", self.early_stopping, 1, optional=True)
        _check_whole("seed", self.seed, 0)
        if not isinstance(self.channels_last, bool):
            raise _wrong("channels_last", self.channels_last, "true or false")
        if not isinstance(self.augment, bool):
            _check_number("augment", self.augment, least=0.0, most=2.0)
        for name, most in (("randaugment", 10.0), ("erasing", 1.0), ("mixup", 10.0), ("cutmix", 10.0)):
            _check_number(name, getattr(self, name), least=0.0, most=most)
        if not isinstance(self.keep_fp32, tuple) or not all(isinstance(name, str) for name in self.keep_fp32):
            raise _wrong("keep_fp32", self.keep_fp32, "a tuple of names of layers")
        _check_number("learning_rate", self.learning_rate, above=0.0, optional=True)
        _check_number("weight_decay", self.weight_decay, least=0.0, optional=True)
        _check_number("momentum", self.momentum, least=0.0, below=1.0)
        _check_number("warmup", self.warmup, least=0.0, below=1.0, optional=True)
        _check_number("label_smoothing", self.label_smoothing, least=0.0, below=1.0)
        _check_number("ema", self.ema, above=0.0, below=1.0, optional=True)
        _check_number("clip", self.clip, above=0.0, optional=True)
        _check_number("distillation", self.distillation, least=0.0, most=1.0)
        _check_number("temperature", self.temperature, above=0.0)
        for name in ("feature_weight", "attention_weight", "relation_weight"):
            _check_number(name, getattr(self, name), least=0.0)
        if self.features != "none" and not (self.feature_weight or self.attention_weight or self.relation_weight):
            raise InputError("The student is to learn features, and all their weights are 0.", fix="Give one a weight.")

    @property
    def strong(self) -> Strong:
        """How training images are varied beside `augment`."""
        return Strong(self.randaugment, self.erasing, self.mixup, self.cutmix)

    def resolved(self) -> "FitConfig":
        """The same, with the defaults that depend on the optimizer and the schedule filled in."""
        return dataclasses.replace(
            self,
            learning_rate=_or(self.learning_rate, _LEARNING_RATE[self.optimizer]),
            weight_decay=_or(self.weight_decay, _WEIGHT_DECAY[self.optimizer]),
            warmup=_or(self.warmup, _WARMUP[self.schedule]),
        )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        error = _wrong(name, value, " or ".join(allowed))
        raise InputError(error.what, error.why, did_you_mean(str(value), allowed))


def _check_whole(name: str, value: Any, least: int, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise _wrong(name, value, f"a whole number, {least} or more{', or None' if optional else ''}")


def _check_number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    most: float | None = None,
    optional: bool = False,
) -> None:
    if value is None and optional:
        return
    good = (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and (least is None or value >= least)
        and (above is None or value > above)
        and (below is None or value < below)
        and (most is None or value <= most)
    )
    if not good:
        limits = (("at least", least), ("more than", above), ("less than", below), ("at most", most))
        allowed = " and ".join(f"{word} {limit:g}" for word, limit in limits if limit is not None)
        raise _wrong(name, value, f"a number, {allowed}{', or None' if optional else ''}")


def _wrong(name: str, value: Any, allowed: str) -> InputError:
    return InputError(
        f"Training option {name} is {value!r}.",
        why=f"Allowed: {allowed}.",
        fix=f"Give {name} such a value, or leave it out for the default.",
    )
