"""Whether an exported file answers as the network that it was made from.

How large a difference is allowed between a file and its network:

- float: 1e-3 of the largest output. Kernels add in another order and batch norm is folded, which gives 1e-6 to 1e-5;
  a wrong weight or padding gives 1e-1 and more.
- int8: a noise of at most 0.1 of the outputs' energy (root mean square, 20 dB), compared with the quantized network,
  not the float one. For outputs `[3 -4]` of the network and `[3.1 -4.2]` of the file that is the root of `0.05 / 25`,
  0.045. A value that lies between two steps may round either way in another kernel, and a flipped step moves all that
  comes after it, so that the largest difference says little. Flips alone gave 0.016 (ONNX Runtime) and 0.02 (OpenVINO)
  on a ResNet-20; 8-bit weights on a processor that saturates gave 0.15 and 0.17. With activations of fewer bits a
  flipped step is larger: the noise may grow by the root of two for each bit less. Some networks (mostly untrained ones)
  let such flips grow until they are all that can be seen: where the limit is broken, the network is also compared with
  itself where each value differs in the seventh digit before it is rounded, and the file may differ by twice as much,
  but by no more than 0.7 (an untrained D-FINE: 0.52 in OpenVINO, 0.33 of itself; its int8 has nothing in common with
  the float network then, which is the quality's to tell).
- bfloat16, where the runtime computes in it: the same noise, since every activation is rounded to 8 bits.

A network that chooses by order (the places with the highest scores become rows of an output) is compared with its rows
as a set, and without the images where rounding decides what is chosen: see `choosing`.

A float network can amplify rounding just as much (attention with logits of hundreds does). Its file is refused, since
nothing tells it from a wrong one, and the message says what the network itself makes of such a change.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from afina.errors import ParityError
from afina.runtimes.base import Session
from afina.runtimes.choosing import chosen_counts, in_order_of, surely_chosen
from afina.runtimes.quality import joined, run_session
from afina.runtimes.table import runtime_of

if TYPE_CHECKING:
    import torch

    from afina.data import ImageData
    from afina.graph import Network

FLOAT_TOLERANCE = 1e-3
INT8_NOISE = 0.1
# A file may differ by so many times what the network itself changes by where its numbers differ in the seventh digit,
# but by no more than `_MOST_NOISE`: a file of zeros has a noise of 1.
_TIMES_AMPLIFIED, _MOST_NOISE, _SEVENTH_DIGIT = 2.0, 0.7, 1e-6
_PARITY_IMAGES = 64
_PARITY_BATCH = 32
_TINY = float(np.finfo(np.float32).tiny)  # outputs that are all zero are compared as they are


def check_parity(network: "Network", path: Path, data: "ImageData | torch.Tensor | None", *, threads: int) -> float:
    """Run the file beside the network it was made from, and return the largest relative difference of their outputs.

    Args:
        network: Float or quantized: what was exported.
        path: The file.
        data: Where images come from (64 of the validation split), or the images (`[N, C, H, W]`); noise where it is
            None.
        threads: Threads that the runtime may use.

    Returns:
        The largest difference, relative to the largest output of the network, whatever measure the limit is in.

    Raises:
        ParityError: they disagree by more than this module's description allows, or the file gives no finite numbers.
        InputError: the file cannot be read.
    """
    from afina.graph.quantized import holds_bf16, is_quantized

    session, counts = runtime_of(path).load(Path(path), threads=threads), chosen_counts(network)
    expected, answers = _both(network, session, path, _parity_images(network, data))
    _check_numbers(expected, answers, path)
    answers = in_order_of(expected, answers, counts)
    if is_quantized(network) or (holds_bf16(network) and runtime_of(path).computes_bf16()):
        distance, allowed, unit = _noise, _noise_allowed(network), "of the outputs' energy"
    else:
        distance, allowed, unit = relative_difference, FLOAT_TOLERANCE, "of the largest output"
    measured = {name: distance(value, answers[name]) for name, value in expected.items()}
    sure: slice | np.ndarray = slice(None)
    if counts and max(measured.values()) > allowed:
        sure = surely_chosen(network, _parity_images(network, data))
        expected, answers = ({name: value[sure] for name, value in part.items()} for part in (expected, answers))
        measured = {name: distance(value, answers[name]) for name, value in expected.items()}
    worst = max(measured, key=measured.__getitem__)
    amplified = 0.0
    if measured[worst] > allowed:
        nudged = {name: value[sure] for name, value in _nudged(network, _parity_images(network, data)).items()}
        amplified = distance(expected[worst], in_order_of(expected, nudged, counts)[worst])
        if is_quantized(network):
            allowed = max(allowed, min(_TIMES_AMPLIFIED * amplified, _MOST_NOISE))
    if measured[worst] > allowed:
        where = f" in {worst}" if len(measured) > 1 else ""
        why = f"Over {len(answers[worst])} images they differ{where} by {measured[worst]:.2g} {unit}; up to "
        why += f"{allowed:.2g} is allowed."
        if amplified > allowed:
            why += f" So does the network, by {amplified:.2g}, where its numbers change in the seventh digit."
        raise ParityError(
            f"{Path(path).name} does not answer as the network it was made from.",
            why=why,
            fix=_remedy(network, amplifies=amplified > allowed),
        )
    return max(relative_difference(value, answers[name]) for name, value in expected.items())


def _check_numbers(expected: dict[str, np.ndarray], answers: dict[str, np.ndarray], path: Path) -> None:
    """Refuse outputs of other names or shapes, or with numbers that are not finite."""
    for name, value in expected.items():
        if not np.isfinite(value).all():
            raise ParityError(
                f"The network behind {Path(path).name} gives numbers that are not finite in the output {name}.",
                fix="Check its weights and its training.",
            )
        answer = answers.get(name)
        if answer is None or answer.shape != value.shape or not np.isfinite(answer).all():
            came = (
                f"the outputs {', '.join(answers)}"
                if answer is None
                else f"shape {list(answer.shape)}, {np.count_nonzero(~np.isfinite(answer))} of its numbers not finite"
            )
            raise ParityError(
                f"{Path(path).name} does not answer as the network it was made from.",
                why=f"It gives {came}; the network gives {name} of shape {list(value.shape)}, all finite.",
            )


def relative_difference(expected: np.ndarray, answers: np.ndarray) -> float:
    """The largest difference between two sets of outputs, relative to the largest of the expected ones.

    Of whole numbers (classes, masks) it is the share of those that differ.

    Args:
        expected: Outputs of the network, of any shape.
        answers: Outputs of the file, of the same shape.

    Example:
        >>> round(relative_difference(np.array([1.0, -4.0]), np.array([1.0, -3.0])), 3)
        0.25
    """
    if not np.issubdtype(expected.dtype, np.floating):
        return float(np.mean(expected != answers))
    scale = float(np.abs(expected).max(initial=0.0))
    return float(np.abs(answers - expected).max(initial=0.0)) / max(scale, _TINY)


def _noise_allowed(network: "Network") -> float:
    """The noise that a file may have, by the activations of fewest bits: 0.1 for 8 bits, 0.4 for 4."""
    from afina.graph.quantized import activation_bits

    bits = min(activation_bits(network), default=8)
    return INT8_NOISE * max(1.0, 2 ** ((8 - bits) / 2))


def _noise(expected: np.ndarray, answers: np.ndarray) -> float:
    """Root mean square of the difference, relative to that of the expected outputs.

    Of whole numbers it is the share of those that differ.

    Example:
        >>> round(_noise(np.array([3.0, -4.0]), np.array([3.1, -4.2])), 3)
        0.045
    """
    if not np.issubdtype(expected.dtype, np.floating):
        return float(np.mean(expected != answers))
    wide = expected.astype(np.float64)
    energy = float(np.sqrt(np.mean(wide**2)))
    return float(np.sqrt(np.mean((answers - wide) ** 2))) / max(energy, _TINY)


def _parity_images(network: "Network", data: "ImageData | torch.Tensor | None") -> Iterator[np.ndarray]:
    """The images that answers are compared on, in batches `[n, C, H, W]`."""
    import torch

    if data is None or isinstance(data, torch.Tensor):
        images = network.example(_PARITY_BATCH) if data is None else data
        for part in images.cpu().split(network.batch_size or network.input.batch):
            yield part.numpy()
        return
    count = min(_PARITY_IMAGES, data.count("validation"))
    for images, _ in data.batches(
        "validation", network.input, batch_size=network.batch_size or network.input.batch, limit=count
    ):
        yield np.ascontiguousarray(images.numpy())


def _both(
    network: "Network", session: Session, path: Path, batches: Iterator[np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The outputs `[N, ...]` of the network and of the file for the same images, by name."""
    import torch

    expected, answers = [], []
    with network.inference():
        for images in batches:
            outputs = network(torch.from_numpy(images).to(network.device))
            expected.append({name: value.cpu().numpy() for name, value in outputs.items()})
            answers.append(run_session(session, path, images))
    return joined(expected), joined(answers)


def _nudged(network: "Network", batches: Iterator[np.ndarray]) -> dict[str, np.ndarray]:
    """The network's outputs where its images, and each value before it is rounded, differ in the seventh digit."""
    import torch
    from torch.fx import Interpreter, Node

    from afina.graph.quantized import ROUNDING_OP

    draw = torch.Generator().manual_seed(0)

    def nudge(values: torch.Tensor) -> torch.Tensor:
        return values * (1 + _SEVENTH_DIGIT * torch.randn(values.shape, generator=draw).to(values.device))

    class Nudge(Interpreter):
        def run_node(self, n: Node) -> Any:
            if str(n.target) == ROUNDING_OP:
                (source, *_) = n.args
                assert isinstance(source, Node)
                self.env[source] = nudge(self.env[source])
            value = super().run_node(n)
            return nudge(value) if n.op == "placeholder" else value

    with network.inference():
        runner = Nudge(network.module)
        parts = [network.named(runner.run(torch.from_numpy(images).to(network.device))) for images in batches]
    return joined([{name: value.cpu().numpy() for name, value in part.items()} for part in parts])


def _remedy(network: "Network", *, amplifies: bool) -> str:
    """What a user can do about a file that differs too much."""
    from afina.graph.quantized import is_quantized

    if amplifies:
        return "Check the network's weights: it makes rounding so large that no two programs answer alike."
    if is_quantized(network):
        return "On a processor whose int8 products saturate, quantize weights to 7 bits."
    return "Try the other runtime, or full precision."
