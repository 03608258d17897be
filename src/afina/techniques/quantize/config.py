"""What can be asked of quantization."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from afina.errors import InputError, did_you_mean
from afina.techniques.quantize.grids import BITS, Granularity, Grid, Scheme
from afina.techniques.quantize.ranges import METHODS

INTEGERS = tuple(f"int{bits}" for bits in reversed(BITS))
WEIGHTS = ("fp32", "fp16", "bf16", *INTEGERS)
ACTIVATIONS = ("none", *INTEGERS)
CALIBRATIONS = ("auto", *METHODS)
ROUNDINGS = ("auto", "nearest", "gram")
EQUALIZATIONS = ("auto", "none")


@dataclass(frozen=True)
class Precision:
    """In what one layer is held and computed.

    Attributes:
        weights: `fp32`, `fp16` or `bf16` (stored so, computed in float), or `int16` to `int2`.
        activations: Of its input and its output: `none` (float) or `int16` to `int2`.
    """

    weights: str = "int8"
    activations: str = "int8"

    def __post_init__(self) -> None:
        check_choice("weights", self.weights, WEIGHTS)
        check_choice("activations", self.activations, ACTIVATIONS)
        if self.activations != "none" and not self.weights.startswith("int"):
            raise InputError(
                f"Weights in {self.weights} with activations in {self.activations}: no runtime computes that.",
                fix="Give weights as integers too, or --activations none.",
            )

    def __str__(self) -> str:
        if self.activations == "none":
            return self.weights
        return f"{self.weights} x {self.activations}" if self.weights != self.activations else self.weights


@dataclass(frozen=True)
class QuantizeConfig:
    """How to quantize.

    Attributes:
        weights: Precision of weights, as in `Precision`.
        activations: Precision of activations, as in `Precision`.
        granularity: Which weights share a scale: `tensor`, `channel` or `block:N`.
        scheme: Of weights: `absmax` (symmetric) or `affine`. Activations are affine.
        full_range: Whether absmax weights use the lowest code too, which has no positive counterpart.
        power_of_two: Scales are powers of two, for devices that only shift.
        calibration: How ranges of activations are chosen: a method, or `auto`, the one that the outputs like best.
        rounding: `nearest`; `gram`, the one that the layer's outputs like best; `auto`, `gram` where it pays.
        equalize: `auto` moves scale between layers where that lowers the error of weights or activations; `none`.
        weight_bits: Bits that int8 weights use: 8, or 7 where the processor's int8 products saturate.
        layers: Precisions of single layers, by name, that differ from the above.
        centred: Whether linear layers read symmetric activations, which some runtimes multiply faster.
        norms: What the parameters of layer, group and RMS norms are stored in. With `bf16`, a runtime that computes in
            bfloat16 does so in all that is not in integers.
        fused: Activation functions that the runtime computes inside the layer before: those that clip, or all.
        sums: How additions and concatenations of quantized activations are computed: `apart`, in integers, by a
            kernel of their own; `joined`, additions in the last convolution before, whose own output is never written;
            `float`.
        joins: Whether the runtime computes every addition in a convolution before and never rounds what that one gives,
            whatever `sums` says: in the first operand that is one, where `sums` is not `joined`.
        rescales: Whether the runtime multiplies the scales of channels that are joined into the weights that read them,
            and rounds those again. Such channels get one scale for all.
    """

    weights: str = "int8"
    activations: str = "int8"
    granularity: str = "channel"
    scheme: Scheme = "absmax"
    full_range: bool = False
    power_of_two: bool = False
    calibration: str = "auto"
    rounding: Literal["auto", "nearest", "gram"] = "auto"
    equalize: Literal["auto", "none"] = "auto"
    weight_bits: int = 8
    layers: tuple[tuple[str, Precision], ...] = field(default=())
    sums: Literal["apart", "joined", "float"] = "apart"
    fused: Literal["clips", "all"] = "clips"
    joins: bool = False
    rescales: bool = False
    centred: bool = False
    norms: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        Precision(self.weights, self.activations)
        Granularity.parse(self.granularity)
        check_choice("fused", self.fused, ("clips", "all"))
        check_choice("sums", self.sums, ("apart", "joined", "float"))
        check_choice("norms", self.norms, ("fp32", "bf16"))
        check_choice("scheme", self.scheme, ("absmax", "affine"))
        check_choice("calibration", self.calibration, CALIBRATIONS)
        check_choice("rounding", self.rounding, ROUNDINGS)
        check_choice("equalize", self.equalize, EQUALIZATIONS)
        if self.weight_bits not in (7, 8):
            raise InputError(f"weight_bits is {self.weight_bits}.", fix="Choose 7 or 8.")

    def plain(self) -> dict[str, Any]:
        """What differs from the defaults, as plain data; precisions of weights and activations in any case."""
        default = QuantizeConfig()
        given = {name: value for name, value in vars(self).items() if value != getattr(default, name)}
        if self.layers:
            given["layers"] = {name: str(precision) for name, precision in self.layers}
        return {"weights": self.weights, "activations": self.activations, **given}

    @property
    def default(self) -> Precision:
        return Precision(self.weights, self.activations)

    def precision(self, layer: str) -> Precision:
        """Of the layer of that name."""
        return dict(self.layers).get(layer, self.default)

    def with_layers(self, layers: Mapping[str, Precision]) -> Self:
        """The same with those precisions of single layers, in the place of what was asked for them."""
        return replace(self, layers=tuple({**dict(self.layers), **layers}.items()))

    def weight_grid(self, precision: Precision) -> Grid:
        """The integers of a layer's weights."""
        bits = bits_of(precision.weights)
        bits = self.weight_bits if bits == 8 else bits
        return Grid(bits, signed=True, scheme=self.scheme, full=self.full_range)

    def activation_grid(self, name: str) -> Grid:
        """The integers of activations in that precision."""
        return Grid(bits_of(name), signed=False, scheme="affine")


def bits_of(name: str) -> int:
    """8 of `int8`."""
    return int(name.removeprefix("int"))


def check_choice(what: str, given: str, known: tuple[str, ...]) -> None:
    """Raise `InputError` where `given` is none of those known."""
    if given not in known:
        raise InputError(f"{what} is {given!r}.", fix=f"{did_you_mean(given, known)} There are: {', '.join(known)}.")


FLOAT = Precision("fp32", "none")
