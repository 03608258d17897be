"""Which images a model takes, and how they are made: as its library says, as the data suggests, as the user asked."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor, nn

from afina.graph.capture import answers_of
from afina.models.preprocessing import ASSUMED, Preprocessing
from afina.models.transforms import CROP_MODES, timm_input
from afina.types import InputSpec, Interpolation

_DEFAULT_SIZE = 224
_GREY = ((0.5,), (0.5,))


def choose_input(
    module: nn.Module,
    source_input: InputSpec | None,
    hint: InputSpec | None,
    size: tuple[int, int] | None,
    trained: bool,
    preprocessing: Preprocessing = ASSUMED,
) -> tuple[InputSpec, tuple[str, ...]]:
    """The input of `module`, and notes on what of it had to be assumed.

    Args:
        module: The model, in evaluation mode.
        source_input: The input that the model's library states; None where it states none.
        hint: The input that the data suggests.
        size: Height and width that the user asked for, before all others.
        trained: Whether the weights are trained. If not, images smaller than the model's own size stay as they
            are where the model takes them: enlarging them would cost time and add nothing.
        preprocessing: What the user said of it, and whether `hint` is what the user said.

    Raises:
        InputError: there is not one mean or std for each channel, or a name that is not known.
    """
    described = described_input(module)
    configured = None if preprocessing.known or source_input or described else _configured_input(module)
    input, notes = _choose_size(module, source_input, described, configured, hint, size, trained)
    stated = source_input or configured or (described is not None and hasattr(module, "mean")) or preprocessing.known
    if not preprocessing.states_scaling and not stated:
        numbers = [", ".join(f"{number:g}" for number in of) for of in (input.mean, input.std)]
        notes += (
            f"The model does not say how its pixels are scaled: from 0..1, mean {numbers[0]} and std {numbers[1]} are "
            "assumed; --mean, --std and --scale change it.",
        )
    return preprocessing.applied(input), notes


def _choose_size(
    module: nn.Module,
    source_input: InputSpec | None,
    described: InputSpec | None,
    configured: InputSpec | None,
    hint: InputSpec | None,
    size: tuple[int, int] | None,
    trained: bool,
) -> tuple[InputSpec, tuple[str, ...]]:
    """The input as the library, the module, the data or the user says, in this order for all but the size."""
    base = source_input or described or _assumed(module, configured, hint)
    if hint is not None and source_input is not None and described is None and not trained:
        native = _for_data(source_input, hint)
        if _is_smaller(hint, source_input) and (
            size == (hint.height, hint.width) or (size is None and output_width(module, native) is not None)
        ):
            return native, ()
    if size is not None:
        return replace(base, height=size[0], width=size[1]), ()
    if source_input is None and described is None and configured is None and hint is None:
        shown = f"{base.height}x{base.width}"
        return base, (f"The model does not say what size it takes: {shown} is assumed, --input-size changes it.",)
    return base, ()


def described_input(module: nn.Module) -> InputSpec | None:
    """The input that a module states in attributes: `input_size` ([C,] H, W or one number), `mean`, `std`.

    It may also state `crop_pct`, `crop_mode` and `interpolation`, with the meaning that they have in timm. None where
    it states no size, or one that is not understood.

    Example:
        >>> module = nn.Conv2d(1, 4, 3)
        >>> described_input(module) is None
        True
        >>> module.input_size = (1, 28, 28)
        >>> described_input(module).shape
        (1, 28, 28)
    """
    size, mean, std = (getattr(module, name, None) for name in ("input_size", "mean", "std"))
    if size is None:
        return None
    sides = _numbers(size)
    if sides is None or len(sides) not in (1, 2, 3) or any(n < 1 or n != int(n) for n in sides):
        return None
    channels = int(sides[0]) if len(sides) == 3 else stem_channels(module) or 3
    if channels not in (1, 3):
        return None
    blank = blank_input(channels)
    mean, std = _numbers(mean), _numbers(std)
    return replace(
        blank,
        height=int(sides[-2] if len(sides) > 1 else sides[0]),
        width=int(sides[-1]),
        mean=mean if mean is not None and len(mean) == channels else blank.mean,
        std=std if std is not None and len(std) == channels else blank.std,
        **_described_resize(module),
    )


def _described_resize(module: nn.Module) -> dict[str, Any]:
    share, mode, filter = (getattr(module, name, None) for name in ("crop_pct", "crop_mode", "interpolation"))
    described: dict[str, Any] = {"interpolation": filter} if filter in get_args(Interpolation) else {}
    if isinstance(share, (int, float)) and share > 0:
        described |= {"resize": "crop", "crop_share": float(share)}
    if isinstance(mode, str) and mode in CROP_MODES:
        described["resize"] = CROP_MODES[mode]
    return described


def _configured_input(module: nn.Module) -> InputSpec | None:
    """The input in the configuration that timm leaves on its modules; None where there is none that fits the module."""
    config = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    if not isinstance(config, Mapping) or "input_size" not in config:
        return None
    try:
        configured = timm_input(config)
    except (KeyError, TypeError, ValueError):
        return None
    fits = stem_channels(module) in (None, configured.channels) and configured.interpolation in get_args(Interpolation)
    return configured if fits else None


def stem_channels(module: nn.Module) -> int | None:
    """Channels that the first convolution takes; None where there is none."""
    first = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    return first.in_channels if first is not None else None


def output_width(module: nn.Module, input: InputSpec) -> int | None:
    """Width of the one output `[N, width]` that a module gives for images of this kind; None where it gives none."""
    return width_of(output_shapes_of(module, input))


def width_of(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The width of the one output `[N, width]` among outputs of these shapes; None where there are others.

    Example:
        >>> width_of({"outputs": (2, 10)}), width_of({"map": (2, 3, 8, 8)})
        (10, None)
    """
    vectors = [shape[1] for shape in shapes.values() if len(shape) == 2]
    return vectors[0] if len(vectors) == len(shapes) == 1 else None


def output_shapes_of(module: nn.Module, input: InputSpec) -> dict[str, tuple[int, ...]]:
    """The shapes of what a module gives for two images of this kind, by name; nothing where it does not take them."""
    parameter = next((p for p in module.parameters() if p.is_floating_point()), None)
    images = torch.zeros(2, *input.shape, dtype=torch.float32 if parameter is None else parameter.dtype)
    modes = {m: m.training for m in module.modules()}
    try:
        tensors, _ = answers_of(module.eval(), images if parameter is None else images.to(parameter.device))
    except Exception:  # whatever a user's forward may raise; `capture` reports it
        return {}
    finally:
        for m, mode in modes.items():
            m.training = mode
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _for_data(input: InputSpec, hint: InputSpec) -> InputSpec:
    """The input with the data's size. Of images that are smaller than its own nothing is cut off."""
    if _is_smaller(hint, input):
        return InputSpec(hint.height, hint.width, input.mean, input.std, input.order)
    return replace(input, height=hint.height, width=hint.width)


def _is_smaller(hint: InputSpec, input: InputSpec) -> bool:
    return hint.height < input.height and hint.width < input.width


def _assumed(module: nn.Module, configured: InputSpec | None, hint: InputSpec | None) -> InputSpec:
    """The data's size and scale, in the channels that the first layer takes."""
    if configured is not None:
        return configured if hint is None else _for_data(configured, hint)
    channels = stem_channels(module)
    if channels is None and hint is not None:
        first = next((m for m in module.modules() if isinstance(m, nn.Linear)), None)
        area = hint.height * hint.width
        channels = {area: 1, 3 * area: 3}.get(first.in_features) if first is not None else None
    if hint is not None and channels not in (1, 3):
        return hint
    if hint is not None and hint.channels == channels:
        return hint
    blank = blank_input(channels or 3)
    return blank if hint is None else replace(blank, height=hint.height, width=hint.width)


def blank_input(channels: int) -> InputSpec:
    """The input of a model that states nothing but its channels, 1 or 3."""
    if channels == 1:
        return InputSpec(_DEFAULT_SIZE, _DEFAULT_SIZE, *_GREY, order="L")
    return InputSpec(_DEFAULT_SIZE, _DEFAULT_SIZE)


def _numbers(value: Any) -> tuple[float, ...] | None:
    """One number or several (list, tuple, tensor, array) as floats; None where it is anything else."""
    try:
        if isinstance(value, Tensor):
            value = value.detach().flatten().tolist()
        elif isinstance(value, (str, Mapping)) or value is None:
            return None
        numbers = tuple(float(n) for n in (value if hasattr(value, "__iter__") else (value,)))
    except (TypeError, ValueError):
        return None
    return numbers if all(math.isfinite(n) for n in numbers) else None
