"""Where a runtime likes integers, and how: one object, which the runtime states and quantization follows.

A file is as fast and as exact as it can be only where the placement of quantizers matches what the runtime's kernels
do. `Runtime.integers` states that for a runtime; `Runtime.policy` completes it with what this machine's processor can
hold; `QuantizeConfig.policy` is what a network is quantized by; and the search for the fastest placement
(`afina quantize --plan auto`) tries policies that differ from it in one field.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from afina.errors import InputError, did_you_mean


@dataclass(frozen=True)
class IntegerPolicy:
    """What quantization has to know of the runtime that will run the file.

    The defaults suit a runtime of which nothing is known: each operator has its own kernel, and only activation
    functions that clip are computed in the kernel before. They are those of ONNX Runtime.

    Attributes:
        additions: How additions, products and concatenations of quantized activations are computed.
            `own kernel`: in integers, by a kernel for additions, so all operands and the result are quantized.
            `in convolution`: an addition is computed in the last convolution before it, whose own output is never
            written, so that one stays unrounded (OpenVINO). Quantized as `own kernel` such a network is simulated with
            a rounding that the file does not have, and the runtime may fall back to float.
            `float`: in float, between dequantized values. Nothing is quantized on their account.
        convolution_absorbs_every_addition: Whether the runtime computes every addition in a convolution before it and
            never rounds what that one gives, whatever `additions` says: in its first operand that is a convolution,
            where `additions` is not `in convolution`. A quantizer placed there is ignored by the file, and the
            simulation is off by one rounding for each residual block.
        concatenated_channels_share_scale: Whether channels that are concatenated before a quantized layer get one
            scale for all. For a runtime that multiplies the scales of concatenated channels into the weights that read
            them, and rounds those weights again: with equal scales nothing is rounded twice.
        symmetric_inputs_of_linear_layers: Whether activations that linear layers read have their zero point in the
            middle. `never`; `always`; `if faster`: a plan tries it and keeps it where the file is faster (until then as
            `never`). Without an offset a runtime may multiply faster; for activations of one sign nothing changes, and
            for those of uneven range up to one bit is lost.
        fused_activation_functions: Activation functions that integer kernels compute together with the layer before:
            `clipping` (ReLU and the like) or `all` (SiLU, GELU, ... too). What is fused is quantized after the function
            only; one more quantizer between the two would break the fusion, and round once more.
        norm_parameters: What the parameters of layer, group and RMS norms are stored in: `fp32`, or `bf16`, with which
            a runtime that computes in bfloat16 does so in all that is not in integers.
        int8_weight_bits: Bits that int8 weights use: 8, or 7 where the processor's int8 products saturate (with 8 the
            file answers otherwise than its simulation; see `runtimes.cpu`).

    Example:
        >>> policy = IntegerPolicy(symmetric_inputs_of_linear_layers="always")
        >>> policy.plain()
        {'symmetric_inputs_of_linear_layers': 'always'}
        >>> IntegerPolicy(additions="floats")
        Traceback (most recent call last):
        afina.errors.InputError: additions is 'floats'.
        Did you mean float? There are: own kernel, in convolution, float.
    """

    additions: Literal["own kernel", "in convolution", "float"] = "own kernel"
    convolution_absorbs_every_addition: bool = False
    concatenated_channels_share_scale: bool = False
    symmetric_inputs_of_linear_layers: Literal["never", "if faster", "always"] = "never"
    fused_activation_functions: Literal["clipping", "all"] = "clipping"
    norm_parameters: Literal["fp32", "bf16"] = "fp32"
    int8_weight_bits: Literal[7, 8] = 8

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value, allowed = getattr(self, name), get_args(hint) or (True, False)
            # Types are compared too: 1 is no truth value, and True is no number of bits.
            if not any(value == choice and type(value) is type(choice) for choice in allowed):
                listed = ", ".join(str(choice) for choice in allowed)
                near = did_you_mean(str(value), [str(choice) for choice in allowed])
                guess = f"{near} " if near.startswith("Did") else ""
                raise InputError(f"{name} is {value!r}.", fix=f"{guess}There are: {listed}.")

    def plain(self) -> dict[str, Any]:
        """What differs from the defaults, as plain data; `IntegerPolicy(**plain)` is the same policy again."""
        default = IntegerPolicy()
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value != getattr(default, name)}
