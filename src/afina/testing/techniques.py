"""What every technique promises, as checks that raise `AssertionError` with a sentence; no test runner is needed.

In the tests of a package that adds a technique:

    network = capture(module, InputSpec(32, 32), TaskSpec("classification", labels))
    check_technique(TECHNIQUES["mytechnique"], network, torch.randn(32, 3, 32, 32))
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from afina.errors import NothingToDo
from afina.extensions import BrokenContract
from afina.graph import Network, capture
from afina.store.result import from_plain, to_plain
from afina.techniques.base import Technique, accept_technique
from afina.techniques.context import Context
from afina.types import Record, Step

_COSTS = ("parameters", "macs", "bytes")


def check_technique(technique: Technique, network: Network, images: Tensor, config: Any = None) -> None:
    """Check all that a technique promises.

    Args:
        technique: The technique.
        network: A network that it can change; it is left as it was.
        images: Calibration images, float32 `[N, C, H, W]`.
        config: The technique's config; its defaults where it is None.

    Raises:
        AssertionError: a promise is not kept; it says which.
    """
    config = technique.config() if config is None else config
    check_description(technique)
    check_input_is_left_as_it_was(technique, network, images, config)
    check_record(technique, network, images, config)
    check_same_seed_same_result(technique, network, images, config)
    check_nothing_to_do(technique, network, images, config)
    check_saved_result(technique, network, images, config)
    check_replay(technique, network, images, config)


def check_description(technique: Technique) -> None:
    """The description keeps the contract of the table: see `afina.techniques.Technique`."""
    try:
        accept_technique(technique)
    except BrokenContract as error:
        raise AssertionError(f"The technique breaks the contract: {error}.") from error


def check_input_is_left_as_it_was(technique: Technique, network: Network, images: Tensor, config: Any) -> None:
    """The input network has the same graph, numbers and mode (training or inference) after as before."""
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    for training in (False, True):
        mode = network.train() if training else network.eval()
        code = mode.module.code
        technique.apply(network, config, _context(images))
        _promise(technique, network.training == training, "leaves the input network in its mode")
        _promise(technique, network.module.code == code, "leaves the graph of the input network as it was")
    network.eval()
    after = network.module.state_dict()
    same = after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    _promise(technique, same, "leaves the numbers of the input network as they were")


def check_record(technique: Technique, network: Network, images: Tensor, config: Any) -> None:
    """The record names what was touched and, with reasons, what was skipped; it has costs, and goes through JSON."""
    _, record = technique.apply(network, config, _context(images))
    _promise(technique, record.step.technique == technique.name, f"is named {technique.name} in its record")
    _promise(technique, bool(record.touched), "names what it touched")
    reasons = all(isinstance(reason, str) and reason for reason in record.skipped.values())
    _promise(technique, reasons, "gives a reason for everything that it skipped")
    both = set(record.touched) & record.skipped.keys()
    _promise(technique, not both, f"does not name the same layer as touched and as skipped ({', '.join(sorted(both))})")
    for cost in _COSTS:
        _promise(technique, cost in record.before and cost in record.after, f"gives {cost} before and after")
    _promise(technique, record.before.keys() == record.after.keys(), "gives the same costs before and after")
    _promise(technique, record.seconds >= 0, "says how long it took")
    read = from_plain(Record, json.loads(json.dumps(to_plain(record))))
    _promise(technique, to_plain(read) == to_plain(record), "has a record that is the same after JSON")


def check_same_seed_same_result(technique: Technique, network: Network, images: Tensor, config: Any) -> None:
    """Applied twice with the same seed, it gives the same numbers, bit for bit."""
    first, second = (technique.apply(network, config, _context(images))[0] for _ in range(2))
    _promise(technique, _same(first, second, images), "gives the same network for the same seed")


def check_nothing_to_do(technique: Technique, network: Network, images: Tensor, config: Any) -> None:
    """On a network without any layer it raises `NothingToDo`, never a silent success."""
    empty = capture(_Empty(network.task.outputs), network.input, network.task)
    try:
        technique.apply(empty, config, _context(images))
    except NothingToDo:
        return
    raise AssertionError(f"{technique.name} does not keep its promise: it raises NothingToDo where it touches nothing.")


def check_saved_result(technique: Technique, network: Network, images: Tensor, config: Any) -> None:
    """The result saves to one file, which loads and answers the same, with the same input and task."""
    result, _ = technique.apply(network, config, _context(images))
    with tempfile.TemporaryDirectory() as folder:
        loaded = Network.load(result.save(Path(folder) / "network.pt2"))
    same = (loaded.input, loaded.task) == (network.input, network.task)
    _promise(technique, same, "keeps the input and the task of the network")
    _promise(technique, _same(result, loaded, images), "gives a network that answers the same after saving and loading")


def check_replay(technique: Technique, network: Network, images: Tensor, config: Any) -> None:
    """`Record.step`, written as JSON and read back, gives the same network again, and the same step."""
    result, record = technique.apply(network, config, _context(images))
    step = from_plain(Step, json.loads(json.dumps(to_plain(record.step))))
    again, second = technique.apply(network, technique.read(step.config), _context(images))
    _promise(technique, _same(result, again, images), "gives the same network when its record is replayed")
    _promise(technique, to_plain(second.step) == to_plain(record.step), "gives the same record when it is replayed")


class _Empty(nn.Module):
    """A network with nothing to compress: the mean of the image, once for each output."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self._outputs = outputs

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((1, 2, 3)).unsqueeze(1).expand(-1, self._outputs).clone()


def _context(images: Tensor) -> Context:
    return Context(calibration=lambda: iter(images.split(16)), images=len(images), seed=0)


def _same(first: Network, second: Network, images: Tensor) -> bool:
    with first.inference(), second.inference():
        answers, others = first(images[:4]), second(images[:4])
    return all(torch.equal(value, others[name]) for name, value in answers.items())


def _promise(technique: Technique, holds: bool, promise: str) -> None:
    if not holds:
        raise AssertionError(f"{technique.name} does not keep its promise: it {promise}.")
