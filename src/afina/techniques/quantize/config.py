"""The options of quantization: the precision of each layer, how ranges and codes are chosen, and for which runtime."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator

from afina.errors import InputError, did_you_mean
from afina.runtimes.policy import IntegerPolicy
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
    """The number types that one layer is stored and computed in.

    Attributes:
        weights: `fp32`, `fp16` or `bf16` (stored so, computed in float), or `int16` to `int2`.
        activations: The type of its input and its output: `none` (float) or `int16` to `int2`.

    Raises:
        InputError: a type that does not exist, or float weights with integer activations.

    Example:
        >>> str(Precision("int4", "int8"))
        'int4 x int8'
        >>> Precision.parse("int4 x none") == Precision("int4", "none")
        True
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

    @classmethod
    def parse(cls, text: str) -> Self:
        """The precision that a text `WEIGHTS x ACTIVATIONS` names. Raises `InputError` where it names none."""
        weights, _, activations = text.partition(" x ")
        return cls(weights, activations)

    def __str__(self) -> str:
        if self.activations == "none":
            return self.weights
        return f"{self.weights} x {self.activations}" if self.weights != self.activations else self.weights


def _parse_layers(value: Any) -> Any:
    """Precisions of layers as `QuantizeConfig.plain` writes them, `{"head": "int4 x int8"}`; anything else as it is."""
    if not isinstance(value, Mapping):
        return value
    return tuple((name, Precision.parse(text) if isinstance(text, str) else text) for name, text in value.items())


@dataclass(frozen=True)
class QuantizeConfig:
    """How a network is quantized.

    Attributes:
        weights: The type of weights, as in `Precision`.
        activations: The type of activations, as in `Precision`.
        granularity: Which weights share a scale: `tensor`, `channel` or `block:N`.
        scheme: How weights become codes: `absmax` (symmetric) or `affine`. Activations are affine.
        full_range: Whether absmax weights use the lowest code too, which has no positive counterpart.
        power_of_two: Whether scales are powers of two, for devices that only shift.
        calibration: How ranges of activations are chosen: by a method of `ranges`, or `auto`, the method that changes
            the network's outputs least.
        rounding: How weights become codes: `nearest`; `gram`, the codes that change the layer's outputs least, by the
            Gram matrix of its inputs; or `auto`, `gram` where that gains something (fewer than 8 bits).
        equalize: Whether scale is moved between layers: `auto`, where that changes the outputs less; or `none`.
        layers: Precisions of single layers, by name, that differ from the above.
        policy: Where the runtime likes integers, and how: `Runtime.policy()` of the one that will run the file.

    Raises:
        InputError: an option that does not exist, with those that do.

    Example:
        >>> config = QuantizeConfig(weights="int4", layers=(("head", FLOAT),))
        >>> str(config.precision("stem")), str(config.precision("head"))
        ('int4 x int8', 'fp32')
        >>> symmetric = replace(config.policy, symmetric_inputs_of_linear_layers="always")
        >>> replace(config, policy=symmetric).plain()["policy"]
        {'symmetric_inputs_of_linear_layers': 'always'}
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
    # Records hold `layers` as `plain` writes it, so what reads a configuration has to understand that form too.
    layers: Annotated[tuple[tuple[str, Precision], ...], BeforeValidator(_parse_layers)] = ()
    policy: IntegerPolicy = field(default_factory=IntegerPolicy)

    def __post_init__(self) -> None:
        Precision(self.weights, self.activations)
        Granularity.parse(self.granularity)
        check_choice("scheme", self.scheme, ("absmax", "affine"))
        check_choice("calibration", self.calibration, CALIBRATIONS)
        check_choice("rounding", self.rounding, ROUNDINGS)
        check_choice("equalize", self.equalize, EQUALIZATIONS)

    def plain(self) -> dict[str, Any]:
        """What differs from the defaults, and weights and activations in any case, as a record holds it.

        `Technique.read` makes the same configuration of it again, also after it has been through JSON.
        """
        default = QuantizeConfig()
        changed = {name: value for name, value in vars(self).items() if value != getattr(default, name)}
        if self.layers:
            changed["layers"] = {name: f"{layer.weights} x {layer.activations}" for name, layer in self.layers}
        if self.policy != default.policy:
            changed["policy"] = self.policy.plain()
        return {"weights": self.weights, "activations": self.activations, **changed}

    @property
    def default(self) -> Precision:
        """The precision of layers that are not in `layers`."""
        return Precision(self.weights, self.activations)

    @property
    def activation_types(self) -> frozenset[str]:
        """The types of activations that layers may have, `none` among them where some stay in float."""
        return frozenset((self.activations, *(precision.activations for _, precision in self.layers)))

    def precision(self, layer: str) -> Precision:
        """The precision of the layer of that name."""
        return dict(self.layers).get(layer, self.default)

    def with_layers(self, layers: Mapping[str, Precision]) -> Self:
        """A copy with these precisions of single layers added, or in the place of those that it has for them.

        Example:
            >>> QuantizeConfig(layers=(("head", FLOAT),)).with_layers({"head": Precision("int4", "none")}).plain()
            {'weights': 'int8', 'activations': 'int8', 'layers': {'head': 'int4 x none'}}
        """
        return replace(self, layers=tuple({**dict(self.layers), **layers}.items()))

    def weight_grid(self, precision: Precision) -> Grid:
        """The grid of a layer's weights; 8 bits are 7 where the runtime's products saturate (`policy`)."""
        bits = bits_of(precision.weights)
        bits = self.policy.int8_weight_bits if bits == 8 else bits
        return Grid(bits, signed=True, scheme=self.scheme, full=self.full_range)

    def activation_grid(self, name: str) -> Grid:
        """The grid of activations in an integer type, such as `int8`: codes without sign, affine."""
        return Grid(bits_of(name), signed=False, scheme="affine")


def bits_of(name: str) -> int:
    """The number of bits in the name of an integer type.

    Example:
        >>> bits_of("int8")
        8
    """
    return int(name.removeprefix("int"))


def check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise `InputError`, naming the option and its choices, where `value` is none of them."""
    if value not in choices:
        raise InputError(
            f"{option} is {value!r}.", fix=f"{did_you_mean(value, choices)} There are: {', '.join(choices)}."
        )


FLOAT = Precision("fp32", "none")
