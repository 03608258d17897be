"""One model of the zoo through every stage: what passed, what did not and why, and what it cost."""

import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import load
from torch import Tensor
from torch.nn import functional as F

from afina.errors import AfinaError, InputError, ParityError
from afina.graph import Network
from afina.graph.axes import Analysis, Axis
from afina.graph.cost import cost_of
from afina.graph.masking import masked_answer
from afina.graph.stored import attribute
from afina.graph.surgery import masks, remove
from afina.runtimes import check_parity, get_runtime
from afina.tasks.base import only_output as only

Keep = dict[Axis, list[int]]

STAGES = ("capture", "analyse", "prune", "forward", "correct", "train", "save", "onnx")
TARGET = 0.5
# Images for the check against masking: a size that no dimension has.
_IMAGES = 5
_HEAVY, _FEW = 200_000_000_000, 2  # MACs of an image, above which the check takes so few


def study(name: str) -> Iterator[dict[str, Any]]:
    """The row of a model, after each stage: `pass`, `refuse: why` (a clear error) or `fail: why`."""
    torch.set_num_threads(1)
    row: dict[str, Any] = {"model": name, "stages": {}, "took": {}}
    things: dict[str, Any] = {}
    for stage in STAGES:
        start = time.process_time()
        try:
            _RUN[stage](name, things, row)
            row["stages"][stage] = "pass"
        except AfinaError as error:
            row["stages"][stage] = f"refuse: {str(error)[:400]}"
        except Exception as error:
            row["stages"][stage] = f"fail: {type(error).__name__}: {str(error)[:400]}"
        row["took"][stage] = round(time.process_time() - start, 2)
        yield row
        if row["stages"][stage] != "pass" and stage in ("capture", "analyse", "prune", "forward"):
            return


def _capture(name: str, things: dict[str, Any], row: dict[str, Any]) -> None:
    things["network"] = network = load(name)
    row["input"] = list(network.input.shape)
    before = cost_of(network)
    row["before"] = {"macs": before.macs, "parameters": before.parameters}


def _analyse(_: str, things: dict[str, Any], row: dict[str, Any]) -> None:
    things["analysis"] = analysis = Analysis(things["network"])
    axes = analysis.axes
    row["unknown"] = dict(axes.unknown)
    row["axes"] = {kind: sum(axis.kind == kind for axis in axes.free) for kind in sorted({a.kind for a in axes.free})}
    if not axes.free:
        raise InputError("It has no free axis.")


def _prune(_: str, things: dict[str, Any], row: dict[str, Any]) -> None:
    network, analysis, before = things["network"], things["analysis"], row["before"]
    start = time.process_time()
    things["keep"] = half(network, analysis)
    row["choosing"] = round(time.process_time() - start, 2)
    things["pruned"] = pruned = remove(network, things["keep"], analysis=analysis)
    row["surgery"] = round(time.process_time() - start - row["choosing"], 2)
    after = cost_of(pruned)
    row["after"] = {"macs": after.macs, "parameters": after.parameters}
    shares = (after.macs / before["macs"], after.parameters / before["parameters"])
    if not any(0.4 < share < 0.6 for share in shares):
        raise InputError(f"Of the MACs {shares[0]:.0%} are left, and of the parameters {shares[1]:.0%}.")


def half(network: Network, analysis: Analysis) -> dict[Axis, list[int]]:
    """The units to keep, the same share of every axis and the largest weights first, for half of the parameters."""
    scores = {axis: _magnitude(network, axis) for axis in analysis.axes.free if axis.size > 1}
    order = {axis: np.argsort(-score, kind="stable") for axis, score in scores.items()}
    low, high, best = 0.0, 1.0, {}
    held = set(analysis.held)
    whole = _parameters(network, held, {})
    for _ in range(12):
        ratio = (low + high) / 2
        keep = {axis: sorted(ranks[: max(round(ratio * axis.size), 1)].tolist()) for axis, ranks in order.items()}
        try:
            share = _parameters(network, held, masks(network, keep, analysis=analysis)) / whole
        except InputError:  # crossing axes would leave nothing of a weight
            share = 0.0
        low, high = (low, ratio) if share > TARGET else (ratio, high)
        if share >= TARGET or not best:
            best = keep
        if abs(share - TARGET) < 0.005:
            return keep
    return best


def _magnitude(network: Network, axis: Axis) -> np.ndarray:
    score = np.zeros(axis.size)
    for member in axis.members:
        weight = attribute(network.module, member.name).detach()
        if member.role == "other" or not weight.is_floating_point():
            continue
        size = weight.double().square().movedim(member.dim, 0).flatten(1).sum(1).numpy()
        inside = member.units >= 0
        score += np.bincount(member.units[inside], weights=size[inside], minlength=axis.size)
    return score


def _parameters(network: Network, held: set[str], kept: Mapping[str, list[Any]]) -> float:
    total = 0.0
    for name, parameter in network.module.named_parameters():
        if name not in held:  # of a head that only training uses
            continue
        share = 1.0
        for mask in kept.get(name, ()):
            share *= 1.0 if mask is None else mask.mean()
        total += share * parameter.numel()
    return total


def _forward(_: str, things: dict[str, Any], __: dict[str, Any]) -> None:
    pruned: Network = things["pruned"]
    with pruned.inference():
        for batch in (1, 3):
            answer = only(pruned(pruned.example(batch)))
            if answer.shape != (batch, pruned.task.outputs) or not answer.isfinite().all():
                raise ValueError(f"the answer for {batch} images has shape {tuple(answer.shape)}, or is not finite")


def _correct(_: str, things: dict[str, Any], row: dict[str, Any]) -> None:
    """The pruned network answers as the whole one with the same units masked.

    Where a random network blows rounding up so far that this cannot be seen, in double precision.
    """
    network, pruned, keep = things["network"], things["pruned"], things["keep"]
    images = network.example(_IMAGES if row["before"]["macs"] < _HEAVY else _FEW)
    if not _agree(network, pruned, keep, images, row):
        row["precision"] = "float64"
        twins = network.copy(), pruned.copy()
        for twin in twins:
            twin.module.double()
        if not _agree(*twins, keep, images.double(), row):
            raise ValueError(f"differs from the masked network by {row['difference']:.1e} of what the images change")


def _agree(network: Network, pruned: Network, keep: Keep, images: Tensor, row: dict[str, Any]) -> bool:
    with pruned.inference():
        got = only(pruned(images))
    expected = only(masked_answer(network, keep, images))
    # Where the answer hardly depends on the image, it is the part that does which must be right.
    scale = float((expected - expected.mean(0)).abs().max()) if len(images) > 1 else float(expected.abs().max())
    error, rounding = float((got - expected).abs().max()), 1e-6 * float(expected.abs().max())
    row["difference"], row["varies"] = error / max(scale, 1e-12), scale
    return error <= max(2e-3 * scale, rounding)


def _train(_: str, things: dict[str, Any], __: dict[str, Any]) -> None:
    things.pop("network", None), things.pop("analysis", None)
    pruned: Network = things["pruned"].copy().train()
    optimizer = torch.optim.SGD(pruned.module.parameters(), lr=1e-4)
    loss = F.cross_entropy(only(pruned(pruned.example(2))), torch.tensor([0, 1]))
    loss.backward()
    gradients = [p.grad for p in pruned.module.parameters() if p.grad is not None]
    if not gradients or not all(gradient.isfinite().all() for gradient in gradients):
        raise ValueError("there are no gradients, or some are not finite")
    optimizer.step()


def _save(_: str, things: dict[str, Any], __: dict[str, Any]) -> None:
    pruned: Network = things["pruned"]
    with tempfile.TemporaryDirectory() as folder:
        again = Network.load(pruned.save(Path(folder) / "network.pt2"))
    with pruned.inference(), again.inference():
        difference = float((only(pruned(pruned.example())) - only(again(pruned.example()))).abs().max())
    if difference > 0:
        raise ValueError(f"the loaded network differs by {difference:.1e}")


def _onnx(_: str, things: dict[str, Any], row: dict[str, Any]) -> None:
    pruned: Network = things["pruned"]
    runtime = get_runtime("onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        path = runtime.export(pruned, Path(folder) / f"network{runtime.suffix}")
        try:
            row["parity"] = check_parity(pruned, path, None, threads=1)
        except ParityError as error:
            raise InputError(str(error)) from error


_RUN = {
    "capture": _capture,
    "analyse": _analyse,
    "prune": _prune,
    "forward": _forward,
    "correct": _correct,
    "train": _train,
    "save": _save,
    "onnx": _onnx,
}
