"""What training promises: it learns, it is reproducible, it can be cut off, and it says what went wrong."""

import contextlib
import dataclasses
import math
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from conftest import only
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from afina.data import ImageData, open_data
from afina.errors import InputError, StorageError, TrainingError
from afina.graph import Network, capture
from afina.jobs.tuning.trial_networks import keep_best, network_file
from afina.progress import Bar, Progress
from afina.tasks import get_task
from afina.training import FitConfig, evaluate, fit, predict
from afina.training.best import Best
from afina.training.ema import Average
from afina.training.layout import fitting_layout
from afina.training.losses import Objective
from afina.training.precision import LossScale, is_emulated, make_fabric
from afina.training.schedules import make_optimizer, make_schedule
from afina.training.suited import (
    fine_tuning,
    initial_training,
    quantization_aware_training,
    suited_batch,
    suited_epochs,
    suited_optimizer,
)
from afina.types import Epoch, MetricInfo, TaskSpec

QUICK = FitConfig(epochs=2, batch_size=64, seed=3)


class Convnet(nn.Module):
    def __init__(self, outputs: int = 10, dropout: float = 0.0):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32)
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(32 * 16, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.head(self.dropout(x.flatten(1)))


class Images(Dataset):
    """Float images ready for a network, with targets or without."""

    def __init__(self, images: Tensor, targets: Tensor | None):
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> object:
        return self.images[i] if self.targets is None else (self.images[i], self.targets[i])


class Said(Progress):
    """Keeps what was said; `stop_at` a step raises, as a user does who presses Ctrl-C."""

    def __init__(self, stop_at: int | None = None):
        self.lines: list[str] = []
        self.steps, self.total, self.note, self._stop_at = 0, 0, "", stop_at

    def say(self, text: str) -> None:
        self.lines.append(text)

    @contextlib.contextmanager
    def work(self, label: str, total: int) -> Iterator[Bar]:
        self.total = total
        yield self

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.steps, self.note = self.steps + steps, note or self.note
        if self._stop_at is not None and self.steps >= self._stop_at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return open_data("digits")


@pytest.fixture(scope="module")
def trained(digits: ImageData) -> Network:
    return fit(convnet(digits), digits, FitConfig(epochs=3, batch_size=64))[0]


@pytest.fixture(scope="module")
def few(digits: ImageData) -> ImageData:
    """A quarter of the digits, for tests that only compare."""
    return as_data(digits, lambda images, targets: targets, 256)


def convnet(data: ImageData, seed: int = 0, **options: float) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return capture(Convnet(data.task.outputs, **options), data.native, data.task)


def as_data(digits: ImageData, target: object, limit: int | None = None) -> ImageData:
    """The digits with other targets, made by `target(images, classes)`; None for no labels."""
    splits = []
    for split in ("train", "validation"):
        batches = list(digits.batches(split, digits.native, batch_size=128, limit=limit))
        images, classes = (torch.cat(part) for part in zip(*batches, strict=True))
        # Other processes need nothing of this module for a `TensorDataset`.
        splits.append(Images(images, None) if target is None else TensorDataset(images, target(images, classes)))
    return open_data(tuple(splits))


def same(one: Network, other: Network) -> bool:
    a, b = one.module.state_dict(), other.module.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Learning


@pytest.mark.parametrize(
    "config",
    [
        FitConfig(epochs=3, batch_size=64),
        FitConfig(epochs=3, batch_size=64, optimizer="adamw", schedule="cosine", learning_rate=5e-3),
        FitConfig(epochs=3, batch_size=64, ema=None, clip=None, label_smoothing=0.1, channels_last=False),
    ],
    ids=["default", "adamw-cosine", "plain-sgd"],
)
def test_three_epochs_read_over_90_percent_of_held_out_digits(digits: ImageData, config: FitConfig) -> None:
    network = convnet(digits)
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    result, curve = fit(network, digits, config)
    assert [epoch.epoch for epoch in curve] == [1, 2, 3]
    assert max(epoch.quality for epoch in curve) > 0.9
    assert evaluate(result, digits).value == max(epoch.quality for epoch in curve)
    assert curve[-1].loss < curve[0].loss
    assert not result.training
    after = network.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "the input network was changed"


def test_a_regression_learns_to_count_ink(digits: ImageData) -> None:
    data = as_data(digits, lambda images, classes: images.mean(dim=(1, 2, 3)) * 3 + 7)
    network = convnet(data)
    with torch.no_grad():
        network.module.get_parameter("head.bias").copy_(get_task(data.task).initial_bias(data.targets("train")))
    config = FitConfig(epochs=3, batch_size=64, optimizer="adamw", learning_rate=5e-3, augment=False)
    result, curve = fit(network, data, config)
    constant = float((data.targets("validation") - data.targets("train").mean()).abs().mean())
    assert evaluate(result, data).value < 0.5 * constant
    assert evaluate(result, data).value == pytest.approx(min(epoch.quality for epoch in curve), rel=1e-5)


def test_a_student_learns_from_a_teacher_without_any_label(digits: ImageData, trained: Network) -> None:
    images = as_data(digits, None)
    assert not images.labelled
    student = convnet(digits, seed=9)
    result, curve = fit(student, images, FitConfig(epochs=3, batch_size=64), teacher=trained)
    assert curve[-1].quality > 0.85, "the curve is agreement with the teacher"
    assert evaluate(result, digits).value > 0.85, "the labels were never seen"


def test_the_loss_with_a_teacher_is_the_weighted_sum_of_both(digits: ImageData, trained: Network) -> None:
    task, config = get_task(digits.task), FitConfig(distillation=0.3, temperature=2.0)
    images, targets = next(iter(digits.batches("train", digits.native, batch_size=16)))
    network = convnet(digits, seed=3).eval()
    outputs = network(images)
    with trained.inference():
        taught = trained(images)
    expected = 0.7 * task.loss(outputs, targets) + 0.3 * task.distance(outputs, taught, temperature=2.0)
    objective = Objective(task, config, labelled=True, network=network, teacher=trained)
    torch.testing.assert_close(objective(network, images, targets), expected)
    torch.testing.assert_close(objective(network, images, targets, taught), expected)
    alone = Objective(task, config, labelled=False, network=network, teacher=trained)
    expected = task.distance(outputs, taught, temperature=2.0)
    torch.testing.assert_close(alone(network, images, targets), expected)


def test_frozen_batch_norm_keeps_its_statistics(digits: ImageData, few: ImageData) -> None:
    module = Convnet()
    module.bn1.running_mean.fill_(0.25)
    module.bn1.eval()

    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def train(self, mode: bool = True) -> "Partly":
            super().train(mode)
            self.inner.bn1.eval()
            return self

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    network = capture(Partly(), digits.native, few.task)
    result, _ = fit(network, few, QUICK)
    state, before = result.module.state_dict(), network.module.state_dict()
    for name in ("running_mean", "running_var"):
        assert torch.equal(state[f"inner.bn1.{name}"], before[f"inner.bn1.{name}"])
        assert not torch.equal(state[f"inner.bn2.{name}"], before[f"inner.bn2.{name}"])


def test_frozen_weights_stay(few: ImageData) -> None:
    network = convnet(few)
    network.module.get_parameter("conv1.weight").requires_grad_(False)
    result, _ = fit(network, few, QUICK)
    old, new = network.module.get_parameter("conv1.weight"), result.module.get_parameter("conv1.weight")
    assert torch.equal(old, new)
    assert not new.requires_grad
    network.module.requires_grad_(False)
    with pytest.raises(InputError, match="no parameter to train"):
        fit(network, few, QUICK)


# The same again


def test_the_same_seed_gives_the_same_network_and_another_seed_another(few: ImageData) -> None:
    network = convnet(few, dropout=0.2)
    torch.manual_seed(11)
    first, curve = fit(network, few, QUICK)
    outside = torch.rand(1)
    torch.manual_seed(11)
    assert torch.equal(outside, torch.rand(1)), "training drew from the process's random numbers"
    second, again = fit(network, few, QUICK)
    other, _ = fit(network, few, dataclasses.replace(QUICK, seed=4))
    assert same(first, second)
    assert [(e.loss, e.quality) for e in curve] == [(e.loss, e.quality) for e in again]
    assert not same(first, other)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("schedule", ["onecycle", "cosine"])
def test_a_training_that_was_cut_off_ends_as_if_it_had_not_been(
    few: ImageData, tmp_path: Path, optimizer: str, schedule: str
) -> None:
    network, path = convnet(few, dropout=0.2), tmp_path / "deep" / "training.pt"
    config = FitConfig(epochs=4, batch_size=64, optimizer=optimizer, schedule=schedule, seed=3)
    whole, curve = fit(network, few, config)
    said = Said(stop_at=2 * 4 + 2)
    with pytest.raises(KeyboardInterrupt):
        fit(network, few, config, progress=said, checkpoint=path)
    said = Said()
    resumed, rest = fit(network, few, config, progress=said, checkpoint=path)
    assert "goes on after epoch 2 of 4" in said.lines[0]
    assert said.steps == said.total == 16
    assert same(whole, resumed)
    assert [(e.loss, e.quality, e.learning_rate) for e in curve] == [(e.loss, e.quality, e.learning_rate) for e in rest]
    done, _ = fit(network, few, config, checkpoint=path)
    assert same(done, whole), "a finished training is not trained again"


def test_a_damaged_or_foreign_checkpoint_is_left_aside_and_said(few: ImageData, tmp_path: Path) -> None:
    network, path = convnet(few), tmp_path / "training.pt"
    expected, _ = fit(network, few, QUICK, checkpoint=path)
    path.write_bytes(path.read_bytes()[:-500])
    said = Said()
    result, _ = fit(network, few, QUICK, progress=said, checkpoint=path)
    assert "training.pt is damaged" in said.lines[0]
    assert same(result, expected)
    for changed, other in ((network, dataclasses.replace(QUICK, momentum=0.8)), (convnet(few, seed=1), QUICK)):
        said = Said()
        fit(changed, few, other, progress=said, checkpoint=path)
        assert "is of another training" in said.lines[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["training.pt"], "no half-written file stays"


def test_a_checkpoint_that_cannot_be_written_is_said(few: ImageData, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(StorageError, match="could not be written"):
        fit(convnet(few), few, QUICK, checkpoint=blocked / "training.pt")


# What is kept


def test_training_stops_when_quality_no_longer_rises_and_gives_the_best_network(few: ImageData) -> None:
    start, _ = fit(convnet(few), few, QUICK)
    config = FitConfig(epochs=30, batch_size=64, learning_rate=1e-7, early_stopping=2)
    said = Said()
    _, curve = fit(start, few, config, progress=said)
    assert len(curve) < 30
    assert "Stopped early" in said.lines[-1]


def test_the_best_network_is_kept_and_of_equals_the_later(few: ImageData) -> None:
    best = Best(MetricInfo("mae", higher_is_better=False))
    network = convnet(few)
    for quality in (math.inf, 3.0, math.nan, 2.0, 2.0, 2.5):
        with torch.no_grad():
            network.module.get_parameter("head.bias").add_(1.0)
        best.rank(network, quality)
    assert best.weights is not None
    drift = best.weights["head.bias"] - convnet(few).module.get_parameter("head.bias")
    torch.testing.assert_close(drift, torch.full((10,), 5.0))
    assert best.stale == 2


def test_the_moving_average_forgets_the_start_and_averages_batch_norm_too(few: ImageData) -> None:
    network = convnet(few)
    average = Average(network, 0.999)
    name = "bn1.running_mean"
    with torch.no_grad():
        network.module.get_buffer(name).fill_(1.0)
        network.module.get_parameter("head.bias").fill_(1.0)
        for _ in range(30):
            average.update(network)
    state = average.network.module.state_dict()
    torch.testing.assert_close(state[name], torch.ones(16), atol=1e-6, rtol=0)
    torch.testing.assert_close(state["head.bias"], torch.ones(10), atol=1e-6, rtol=0)
    with torch.no_grad():
        network.module.get_buffer(name).fill_(2.0)
        average.update(network)
    assert 1.0 < float(state[name][0]) < 1.5


# Precision and layout


@pytest.mark.parametrize("precision", ["32", "bf16-mixed", "16-mixed"])
def test_each_precision_learns_and_gives_float32_weights(few: ImageData, precision: str) -> None:
    config = FitConfig(epochs=2, batch_size=32, precision=precision, augment=False)
    result, curve = fit(convnet(few), few, config)
    assert curve[-1].quality > 0.6
    assert curve[-1].loss < curve[0].loss
    assert all(p.dtype == torch.float32 for p in result.module.parameters())


def test_mixed_precision_really_computes_in_it(few: ImageData) -> None:
    network = convnet(few)
    for precision, dtype in (("32", torch.float32), ("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16)):
        fabric = make_fabric(precision)
        with fabric.autocast():
            assert only(network(network.example().to(fabric.device))).dtype == dtype
    assert not is_emulated("32", torch.device("cpu"))


def test_a_step_that_overflows_fp16_is_skipped_and_leaves_no_infinity(few: ImageData, tmp_path: Path) -> None:
    """The first steps overflow at the usual first scale of 65536 once the loss is large."""
    network = convnet(few)
    with torch.no_grad():
        network.module.get_parameter("head.weight").mul_(3000)
    config = FitConfig(epochs=2, batch_size=64, precision="16-mixed", learning_rate=1e-3)
    result, curve = fit(network, few, config, checkpoint=tmp_path / "training.pt")
    state = torch.load(tmp_path / "training.pt", weights_only=True)["state"]["stepper"]
    assert state["scaler"]["scale"] < 65536, "no step was skipped"
    assert all(torch.isfinite(t).all() for t in result.module.state_dict().values())
    assert math.isfinite(curve[-1].quality)


def test_a_loss_scale_that_collapses_is_an_error(few: ImageData) -> None:
    network = convnet(few)
    with torch.no_grad():
        network.module.get_parameter("bn1.weight").fill_(1e30)
    with pytest.raises(TrainingError, match=r"step 17 .*loss scale of 16-mixed has collapsed"):
        fit(network, few, FitConfig(epochs=2, batch_size=16, precision="16-mixed"))


def test_running_statistics_are_put_back_after_a_skipped_step(few: ImageData) -> None:
    network, fabric = convnet(few), make_fabric("16-mixed")
    optimizer = fabric.setup_optimizers(torch.optim.SGD(network.module.parameters(), lr=0.1))
    scale, before = LossScale(fabric), network.module.get_buffer("bn1.running_mean").clone()
    network.train()
    with scale.step(network, "here"):
        fabric.backward((only(network(network.example() * 1e30)) * math.inf).sum())
        optimizer.step()
    assert scale.skipped
    assert torch.equal(network.module.get_buffer("bn1.running_mean"), before)


def test_a_network_that_needs_the_ordinary_layout_is_trained_in_it(few: ImageData) -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).view(-1, 4 * 36))

    network = capture(Viewing(), few.native, few.task)
    cpu = torch.device("cpu")
    assert fitting_layout(network, cpu, True) == torch.contiguous_format
    assert fitting_layout(convnet(few), cpu, True) == torch.channels_last
    result, _ = fit(network, few, QUICK)
    assert result.module.get_parameter("conv.weight").is_contiguous()


_NARROW = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
from afina.data import open_data
from afina.graph import capture
from afina.training import FitConfig, fit

class Narrow(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.down, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 1, stride=2), nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.down(self.stem(x)).mean((2, 3)))

images = TensorDataset(torch.rand(128, 1, 8, 8), torch.arange(128) % 10)
data = open_data((images, images))
fit(capture(Narrow(), data.native, data.task), data, FitConfig(epochs=1, batch_size=64))
print("trained")
"""


def test_a_narrow_network_is_trained_on_a_processor_of_few_instructions() -> None:
    """In channels last, the process died of its shortcut's gradient where there is AVX2 and no AVX-512."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run([sys.executable, "-c", _NARROW], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "trained", done.stderr


# Several devices


def plain(data: ImageData) -> Network:
    """Without batch norm, whose statistics are those of one device's images."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    return capture(module, data.native, data.task)


class Killed(Exception):
    pass


def test_two_devices_give_the_network_of_one_and_go_on_from_a_checkpoint(few: ImageData, tmp_path: Path) -> None:
    config = FitConfig(epochs=2, batch_size=61, augment=False, seed=1)
    network, checkpoint = plain(few), tmp_path / "checkpoint"

    def stop(epoch: Epoch) -> None:
        raise Killed

    with pytest.raises(Killed):
        fit(network, few, config, checkpoint=checkpoint, after=stop)
    said = Said()
    together, curve = fit(network, few, config, checkpoint=checkpoint, progress=said, devices=2)
    assert any("goes on after epoch 1" in line for line in said.lines)
    alone, own = fit(network, few, config)
    for ours, theirs in zip(together.module.parameters(), alone.module.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert [epoch.loss for epoch in curve] == pytest.approx([epoch.loss for epoch in own], rel=1e-4)
    assert [epoch.quality for epoch in curve] == [epoch.quality for epoch in own]


@pytest.mark.parametrize(
    ("options", "near"),
    [({"precision": "16-mixed"}, 1e-3), ({"keep_zeros": True, "distillation": 0.5}, 1e-5)],
    ids=["fp16 with a loss scale", "zeros kept, and a teacher"],
)
def test_two_devices_give_the_network_of_one_in_every_way_to_train(
    few: ImageData, options: dict[str, Any], near: float
) -> None:
    config = FitConfig(**{"epochs": 1, "batch_size": 61, "augment": False, "optimizer": "sgd", **options})
    network, teacher = plain(few), plain(few) if "distillation" in options else None
    with torch.no_grad():
        network.module.get_parameter("1.weight")[::2] = 0.0
    together, _ = fit(network, few, config, teacher=teacher, devices=2)
    alone, _ = fit(network, few, config, teacher=teacher)
    for ours, theirs in zip(together.module.parameters(), alone.module.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=near, rtol=10 * near)
    weight, before = (n.module.get_parameter("1.weight") for n in (together, network))
    assert (weight - before).abs().max() > 10 * near
    assert bool((weight[::2] == 0).all()) == config.keep_zeros


def _dies_in_another_process() -> None:
    if multiprocessing.parent_process() is not None:
        raise MemoryError("no room for it")


class DyingImages(Images):
    """Cannot be unpacked in another process."""

    def __reduce__(self) -> object:
        return _dies_in_another_process, ()


def test_a_device_that_cannot_begin_says_why_at_once(few: ImageData) -> None:
    batches = list(few.batches("train", few.native, batch_size=64))
    images, targets = (torch.cat(part) for part in zip(*batches, strict=True))
    data = open_data((DyingImages(images, targets), Images(images, targets)))
    with pytest.raises(TrainingError, match="the process of device 1 failed") as found:
        fit(plain(data), data, QUICK, devices=2)
    assert "no room for it" in found.value.why
    assert not multiprocessing.active_children()


def test_what_several_devices_cannot_do_is_refused(few: ImageData) -> None:
    with pytest.raises(InputError, match="0 devices"):
        fit(plain(few), few, QUICK, devices=0)


def test_an_error_of_the_training_itself_is_the_same_on_two_devices(few: ImageData) -> None:
    wild = dataclasses.replace(QUICK, learning_rate=1e30, clip=None, optimizer="sgd")
    with pytest.raises(TrainingError, match=r"the (loss|gradient) is (nan|inf)"):
        fit(plain(few), few, wild, devices=2)
    assert not multiprocessing.active_children()


def test_a_device_whose_process_dies_ends_the_training_with_its_reason(few: ImageData) -> None:
    def kill(epoch: Epoch) -> None:
        for process in multiprocessing.active_children():
            process.kill()

    with pytest.raises(TrainingError, match="the process of device 1 ended with code -9"):
        fit(plain(few), few, QUICK, after=kill, devices=2)
    assert not multiprocessing.active_children()
    assert not torch.distributed.is_initialized()


# Schedules and optimizers


@pytest.mark.parametrize("schedule", ["onecycle", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 50])
@pytest.mark.parametrize("warmup", [None, 0.0, 0.1, 0.5])
def test_the_learning_rate_rises_to_its_peak_and_falls_whatever_the_length(
    schedule: str, steps: int, warmup: float | None
) -> None:
    config = FitConfig(learning_rate=0.5, schedule=schedule, warmup=warmup)
    optimizer = make_optimizer([nn.Parameter(torch.zeros(2, 2))], config)
    scheduler = make_schedule(optimizer, config, steps)
    rates = [scheduler.get_last_lr()[0]]
    for _ in range(steps - 1):
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    assert all(0 <= rate <= 0.5 + 1e-9 for rate in rates)
    peak = int(np.argmax(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    if steps >= 10:
        assert rates[peak] > 0.48
        assert rates[-1] < 0.05


def test_norms_and_biases_are_not_decayed() -> None:
    weight, bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    for name, decay in (("sgd", 5e-4), ("adamw", 0.05)):
        groups = make_optimizer([weight, bias], FitConfig(optimizer=name)).param_groups
        assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(1, decay), (1, 0.0)]
        assert groups[0]["params"][0] is weight


# Judging


def test_quality_has_a_standard_error_and_a_count(digits: ImageData, trained: Network) -> None:
    found = evaluate(trained, digits)
    reference = predict(trained, digits)
    outputs = only(reference)
    right = outputs.argmax(1) == digits.targets("validation").numpy()
    assert outputs.dtype == np.float32
    assert found.value == pytest.approx(right.mean())
    assert found.n == digits.count("validation") == len(outputs)
    assert found.spread == pytest.approx(math.sqrt(right.mean() * (1 - right.mean()) / (found.n - 1)))
    assert (found.unit, found.how) == ("accuracy", "measured")
    assert evaluate(trained, digits, limit=40).n == 40
    assert evaluate(trained, digits, reference=reference).value == 1.0
    assert evaluate(trained, digits, reference=reference).unit == "agreement"


def test_images_without_labels_are_judged_by_agreement_only(digits: ImageData, trained: Network) -> None:
    images = as_data(digits, None, 64)
    with pytest.raises(InputError, match="no labels"):
        evaluate(trained, images)
    with pytest.raises(InputError, match="no teacher"):
        fit(trained, images, QUICK)
    assert evaluate(trained, images, reference=predict(trained, images)).value == 1.0


# What goes wrong


def test_a_loss_that_is_not_a_number_stops_with_step_rate_and_remedy(few: ImageData) -> None:
    config = FitConfig(epochs=2, batch_size=64, learning_rate=1e30, clip=None, schedule="cosine", warmup=0.0)
    with pytest.raises(TrainingError) as caught:
        fit(convnet(few), few, config)
    assert "step 2 (epoch 1)" in caught.value.what
    assert "The learning rate was " in caught.value.why
    assert "e+29" in caught.value.why
    assert "lower learning rate" in caught.value.fix


def test_a_teacher_or_data_for_something_else_is_refused(digits: ImageData, few: ImageData, trained: Network) -> None:
    larger = capture(Convnet(), digits.native, TaskSpec("classification", tuple("abcdefghij")))
    with pytest.raises(InputError, match="teacher's labels differs"):
        fit(trained, digits, QUICK, teacher=larger)
    wide = dataclasses.replace(digits.native, mean=(0.1,))
    with pytest.raises(InputError, match="teacher's input differs"):
        fit(trained, digits, QUICK, teacher=capture(Convnet(), wide, digits.task))
    numbers = as_data(digits, lambda images, classes: images.mean(dim=(1, 2, 3)), 32)
    with pytest.raises(InputError, match="is for classification with 10 outputs"):
        fit(trained, numbers, QUICK)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("optimizer", "adam", "Did you mean adamw?"),
        ("schedule", "cosin", "Did you mean cosine?"),
        ("precision", "16mixed", "Did you mean 16-mixed"),
        ("epochs", 0, "1 or more"),
        ("epochs", 2.5, "a whole number"),
        ("batch_size", 1, "2 or more"),
        ("learning_rate", -0.1, "more than 0"),
        ("learning_rate", math.nan, "more than 0"),
        ("label_smoothing", 1.0, "less than 1"),
        ("distillation", 1.5, "at most 1"),
        ("ema", 1.0, "less than 1"),
        ("early_stopping", 0, "or None"),
        ("augment", "yes", "at least 0 and at most 2"),
        ("augment", 2.5, "at least 0 and at most 2"),
        ("augment", math.nan, "at least 0 and at most 2"),
        ("seed", -1, "0 or more"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_allowed(option: str, value: object, said: str) -> None:
    with pytest.raises(InputError) as caught:
        FitConfig(**{option: value})
    assert f"option {option} is {value!r}" in str(caught.value)
    assert said in str(caught.value)


def test_progress_counts_every_step_and_tells_each_epoch(few: ImageData) -> None:
    said = Said()
    fit(convnet(few), few, QUICK, progress=said)
    assert said.steps == said.total == 8
    assert "loss" in said.note
    assert "accuracy" in said.note
    assert [line.split(":")[0] for line in said.lines] == ["Epoch 1/2", "Epoch 2/2"]


# What suits a network where the user does not say


def test_networks_with_batch_norm_alone_are_trained_by_sgd_and_others_by_adamw(few: ImageData) -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    hybrid = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LayerNorm(144), nn.ReLU(), nn.Linear(144, 10)
    )
    assert suited_optimizer(convnet(few)) == "sgd"
    assert suited_optimizer(capture(plain, few.native, few.task)) == "adamw"
    assert suited_optimizer(capture(hybrid, few.native, few.task)) == "adamw"


def test_the_nearer_the_weights_are_to_the_goal_the_smaller_are_the_steps(few: ImageData) -> None:
    network = convnet(few)
    for optimizer in ("sgd", "adamw"):
        rates = [
            config.learning_rate or 0.0
            for config in (
                initial_training(network, 1000, pretrained=False, optimizer=optimizer),
                fine_tuning(network, 1000, optimizer=optimizer),
                initial_training(network, 1000, pretrained=True, optimizer=optimizer),
                quantization_aware_training(network, 1000, epochs=1, optimizer=optimizer),
            )
        ]
        assert rates == sorted(set(rates), reverse=True)


def test_what_the_user_says_of_a_training_comes_before_what_suits_it(few: ImageData) -> None:
    options: dict[str, Any] = {
        "epochs": 7, "optimizer": "adamw", "learning_rate": 0.3, "batch_size": 9, "weight_decay": 0.1,
        "schedule": "onecycle", "keep_zeros": False, "label_smoothing": 0.0, "seed": 5,
    }  # fmt: skip
    expected = FitConfig(**options)
    assert initial_training(convnet(few), 1000, pretrained=True, **options) == expected
    assert fine_tuning(convnet(few), 1000, **options) == expected
    assert quantization_aware_training(convnet(few), 1000, **options) == expected


def test_few_images_get_small_batches_and_more_epochs() -> None:
    assert suited_batch(20) == 8
    assert suited_batch(50_000) == 128
    assert suited_epochs(200, 2000) == 20
    assert suited_epochs(1_000_000, 2000) == 3


def test_an_unknown_optimizer_is_refused_by_name(few: ImageData) -> None:
    with pytest.raises(InputError, match="optimizer is 'adam'"):
        fine_tuning(convnet(few), 1000, optimizer="adam")  # type: ignore[arg-type]


def test_two_searches_in_one_folder_keep_the_best_network_without_disturbing_each_other(tmp_path: Path) -> None:
    content = b"network" * 200_000
    study = optuna.create_study(direction="maximize")
    study.add_trial(optuna.trial.create_trial(value=0.9))
    network_file(tmp_path, 0).write_bytes(content)

    def keep(_: int) -> bool:
        return keep_best(study, tmp_path, tmp_path / "network.pt2")

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(keep, range(40)))
    assert (tmp_path / "network.pt2").read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["network.pt2", "trial-0.pt2"]


# Strong variation of images


def test_strong_variation_is_learnt_from_and_is_the_same_for_a_seed(digits):
    config = dataclasses.replace(QUICK, erasing=0.2, randaugment=3.0, mixup=0.2, cutmix=0.5)
    trained, curve = fit(convnet(digits), digits, config)
    again, _ = fit(convnet(digits), digits, config)
    assert curve[-1].quality > 0.5
    assert trained.fingerprint() == again.fingerprint()


def test_mixtures_are_refused_for_numbers(digits):
    numbers = as_data(digits, lambda images, classes: images.mean(dim=(1, 2, 3)))
    network = capture(Convnet(1).eval(), numbers.native, numbers.task)
    with pytest.raises(InputError, match="mixup and cutmix are for tasks with classes"):
        fit(network, numbers, dataclasses.replace(QUICK, mixup=0.2))
