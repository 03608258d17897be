"""Options of `afina optimize`."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any

from afina.errors import InputError
from afina.jobs.options.declaration import Option
from afina.jobs.options.shared import (
    TRAINING_PRECISIONS,
    Data,
    DataOptions,
    KeepFP32,
    LearningRate,
    Model,
    OptimizerName,
    Quantity,
    RunFolder,
    RuntimeOptions,
    TrainingPrecision,
)


@dataclass(frozen=True)
class OptimizeOptions(DataOptions, RuntimeOptions):
    """Fit MODEL to DATA and to a budget; the best deployable file comes out, with the evidence."""

    model: Model
    data: Data
    _: KW_ONLY
    size: Annotated[Quantity, Option("Limit on the file, as in `350KB` or `3MB`; a number is bytes.")] = None
    latency: Annotated[Quantity, Option("Limit on the time for one batch, as in `5ms`; a number is seconds.")] = None
    memory: Annotated[Quantity, Option("Limit on the peak memory that loading and running the file adds.")] = None
    max_drop: Annotated[
        Quantity, Option("Limit on the loss of quality, absolute in the metric's points: `1%` = 0.01 of accuracy.")
    ] = None
    out: RunFolder = None
    epochs: Annotated[
        int | None,
        Option(
            "Epochs of training before compression; 0 for none. By default a model that already fits the data (weights "
            "given, head matches) is not trained.",
            least=0,
        ),
    ] = None
    finetune: Annotated[int | None, Option("Epochs of fine-tuning after pruning.", least=1)] = None
    tune: Annotated[
        int, Option("Search over so many trainings before compression (see `tune`), and compress the best network.")
    ] = 0
    training: Annotated[
        str | Path | Mapping[str, Any] | None,
        Option(
            "Hyperparameters of the training: a YAML file, such as `best.yaml` of `afina tune`. Other options come "
            "before it."
        ),
    ] = None
    learning_rate: LearningRate = None
    optimizer: OptimizerName = None
    precision: Annotated[
        TrainingPrecision | None,
        Option("Number type of the training; `32` by default.", choices=TRAINING_PRECISIONS, metavar="NAME"),
    ] = None
    keep_fp32: KeepFP32 = ()
    thorough: Annotated[bool, Option("Try every candidate, also when a cheap one already fits.")] = False

    def check(self) -> None:
        """Raise `InputError` for options that are wrong together."""
        if self.tune < 0 or (self.tune and self.epochs == 0):
            raise InputError(
                f"--tune {self.tune} with --epochs {self.epochs} is not possible."
                if self.tune > 0
                else f"--tune is {self.tune}.",
                fix="Give the number of trainings, each of one epoch or more.",
            )
        if self.tune and self.training is not None:
            raise InputError("--tune and --training both say how to train.", fix="Give one of them.")
        if self.tune and self.learning_rate is not None:
            raise InputError("--tune searches for the learning rate itself.", fix="Leave out --learning-rate.")
        # Here, since it imports scipy, which `afina --help` does without.
        from afina.budget import read_limits

        read_limits(self.size, self.latency, self.memory, self.max_drop)
