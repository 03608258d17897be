"""Options of `afina quantize`."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from afina.errors import InputError
from afina.jobs.options.declaration import Option
from afina.jobs.options.shared import (
    Data,
    DataOptions,
    Images,
    LearningRate,
    Model,
    OptimizerName,
    Quantity,
    RuntimeOptions,
    Skip,
    check_training,
)

if TYPE_CHECKING:
    from afina.graph.network import Network
else:
    Network = Any


_INTEGERS = ("int8", "int7", "int6", "int5", "int4", "int3", "int2", "int16")
WEIGHT_TYPES = (*_INTEGERS, "fp16", "bf16", "fp32")
ACTIVATION_TYPES = (*_INTEGERS, "none")
# Plans that are made; a plan's file is another.
MADE_PLANS = ("auto", "bits")


@dataclass(frozen=True)
class QuantizeOptions(DataOptions, RuntimeOptions):
    """Write weights and activations of MODEL in fewer bits, judged as the file that its runtime will run."""

    RENAMED: ClassVar[dict[str, str]] = {"activations": "activation_type", "checkpoint": "weights"}

    model: Model
    data: Data
    _: KW_ONLY
    weight_type: Annotated[
        str,
        Option(
            "Number type of weights; `fp16` and `bf16` are stored so and computed in float.",
            choices=WEIGHT_TYPES,
            metavar="TYPE",
        ),
    ] = "int8"
    activation_type: Annotated[
        str, Option("Number type of activations; `none` for float.", choices=ACTIVATION_TYPES, metavar="TYPE")
    ] = "int8"
    granularity: Annotated[str, Option("Which weights share a scale: `tensor`, `channel` or `block:N`.")] = "channel"
    scheme: Annotated[
        Literal["absmax", "affine"],
        Option("Scheme of weights: `absmax` is symmetric.", choices=("absmax", "affine"), metavar="SCHEME"),
    ] = "absmax"
    calibration: Annotated[
        str,
        Option(
            "How ranges of activations are chosen; `auto` is the way that the outputs like best.",
            choices=("auto", "mse", "minmax", "average", "percentile", "entropy"),
        ),
    ] = "auto"
    rounding: Annotated[
        Literal["auto", "nearest", "gram"],
        Option(
            "How weights are rounded: `gram` as the layer's outputs like best, `auto` where that pays.",
            choices=("auto", "nearest", "gram"),
            metavar="HOW",
        ),
    ] = "auto"
    equalize: Annotated[
        Literal["auto", "none"],
        Option(
            "`auto` moves scale between layers where that lowers the error.", choices=("auto", "none"), metavar="HOW"
        ),
    ] = "auto"
    power_of_two: Annotated[bool, Option("Scales are powers of two.")] = False
    full_range: Annotated[bool, Option("Absmax weights use the lowest code too.")] = False
    skip: Skip = ()
    plan: Annotated[
        str | Path | None,
        Option(
            "`auto` chooses each layer's precision by measured time, bytes and damage; `bits` shares out the bits of "
            "weights alone, for a size; or a plan's `.json` file."
        ),
    ] = None
    save_plan: Annotated[
        str | Path | None,
        Option("Write the precisions of all layers here (`.json`), to be used again.", in_recipe=False),
    ] = None
    size: Annotated[Quantity, Option("With a plan: limit on the file, as in `500KB`.")] = None
    latency: Annotated[Quantity, Option("With `--plan auto`: limit on the time for one batch, as in `5ms`.")] = None
    max_drop: Annotated[
        Quantity,
        Option(
            "Quality that the file may lose, absolute in the metric's points: `1%` of accuracy; where it loses more, "
            "the layers to blame get precision back."
        ),
    ] = None
    qat: Annotated[int, Option("Epochs of training with simulated integers, taught by the float network.", least=0)] = 0
    learn_scales: Annotated[bool, Option("That training learns the scales too (learned step size).")] = False
    images: Images = 512
    learning_rate: LearningRate = None
    optimizer: OptimizerName = None
    teacher: Annotated[
        "Network | None",
        Option("The network that teaches that training; the model as it was by default.", python_only=True),
    ] = None

    def check(self) -> None:
        """Raise `InputError` for options that are wrong together."""
        if self.weights in WEIGHT_TYPES:
            raise InputError(
                f"--weights {self.weights} names a number type; --weights is the checkpoint, here as in all commands.",
                fix=f"Write --weight-type {self.weights}.",
            )
        self._check_plan()
        self._check_scales()
        if self.data is None:
            raise InputError("Quantization needs images to calibrate on and to be judged by.", fix="Give --data.")
        check_training(self.qat, self.learning_rate, self.optimizer, self.data, "--qat")

    def _check_plan(self) -> None:
        # Here, since it imports scipy, which `afina --help` does without.
        from afina.budget import read_limits

        read_limits(self.size, self.latency, None, self.max_drop)
        if self.plan not in (None, *MADE_PLANS) and Path(str(self.plan)).suffix != ".json":
            raise InputError(
                f"--plan {str(self.plan)!r} is not known.",
                fix="Write --plan auto or --plan bits, or give a plan's .json file.",
            )
        if self.plan == "bits" and (self.size is None or self.latency is not None):
            raise InputError(
                "--plan bits is for a limit on size, and no other.", fix="Give --size, or write --plan auto."
            )
        if self.plan not in MADE_PLANS and (self.size is not None or self.latency is not None):
            raise InputError(
                "A limit on size or latency needs a plan that is made for it.",
                why="Without, every layer has the precision that was asked for.",
                fix="Add --plan auto.",
            )

    def _check_scales(self) -> None:
        if self.learn_scales and not self.qat:
            raise InputError("Scales are learned by training only.", fix="Give --qat EPOCHS too.")
        if self.learn_scales and (self.power_of_two or self.granularity == "tensor"):
            raise InputError(
                "Scales that are learned are free, one for each channel or block.",
                why="Powers of two, and one scale for all channels, would not stay so.",
                fix="Leave out --learn-scales, or --power-of-two and --granularity tensor.",
            )
        if self.full_range and self.scheme == "affine":
            raise InputError(
                "--full-range is for --scheme absmax.", why="Affine weights use all codes anyway.", fix="Leave it out."
            )
