"""`fit`: trains a network on labels, on a teacher's outputs, or on both."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from afina.data import Batches, ImageData
from afina.errors import InputError, TrainingError
from afina.graph.network import Network
from afina.graph.propagate import output_shapes
from afina.progress import Bar, Progress
from afina.tasks import get_task
from afina.training.best import Best
from afina.training.checkpoint import identity, read_state, write_state
from afina.training.config import FitConfig
from afina.training.evaluation import evaluate, predict
from afina.training.layout import fitting_layout, place
from afina.training.losses import Objective, check_teacher
from afina.training.policy import check_patterns, keep_in_32
from afina.training.precision import is_emulated, make_fabric
from afina.training.step import Stepper
from afina.training.team import Seat, Team, gathered
from afina.types import Epoch
from afina.units import format_value

_SEEDS = 2**31
_MOST_TEACHER_BYTES = 2**28  # of the teacher's outputs for all training images


def fit(
    network: Network,
    data: ImageData,
    config: FitConfig,
    *,
    teacher: Network | None = None,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    sparse: Network | None = None,
    after: Callable[[Epoch], None] | None = None,
    devices: int = 1,
    start_counts: bool = False,
) -> tuple[Network, tuple[Epoch, ...]]:
    """Train a copy of `network`; gives the best one by the validation metric, in inference form, and the curve.

    Each epoch: all training images once, in steps of one batch (`training.step`); then the network, or the moving
    average of its weights, is evaluated on the validation images; the best is kept, and the state is written to the
    checkpoint. Training ends after the last epoch, or where quality has not risen for `early_stopping` epochs.

    The same seed gives the same network on the same machine, also when the training was cut off and went on from
    its checkpoint. Random numbers elsewhere in the process are left as they are.

    Args:
        network: The network to start from; it is left as it is.
        data: Images with a `train` and a `validation` split. Without labels a teacher is needed, and the metric is
            agreement with it.
        config: How to train.
        teacher: A network to learn from, with the same input and task (Hinton et al. 2015).
        progress: Advanced by each step, and given one line for each epoch.
        checkpoint: A file for the state after each epoch. Where it holds this very training, that goes on; anything
            else in it is left aside, with a line to the user, and overwritten. It is not removed at the end.
        sparse: With `keep_zeros`, the network whose zeros stay; by default those of `network` itself.
        after: Called with each epoch that ended; what it raises ends the training.
        devices: GPUs (without any, processes) that share each batch. A step is that of one device, but for what
            depends on more than one image (batch norm, relations between images), which sees a device's own, and for
            what is drawn (augmentation, dropout), which each draws for itself.
        start_counts: Whether the network as it came is one of those that the best is chosen from: a network that works
            already is then never handed out worse than it was.

    Raises:
        InputError: nothing to learn from, a precision that the device does not have, or fewer devices.
        TrainingError: the loss or the gradient is no longer a finite number.
        StorageError: the checkpoint cannot be written.
    """
    progress = progress or Progress()
    _check(network, data, teacher, config)
    check_patterns(network, config.keep_fp32)
    work = _Work(network, data, config.resolved(), teacher, sparse, checkpoint, start_counts)
    with gathered(devices, _join, work) as seat:
        return _train(work, seat, progress, after)


@dataclass(frozen=True)
class _Work:
    """The arguments of a training, the same in every process."""

    network: Network
    data: ImageData
    config: FitConfig
    teacher: Network | None
    sparse: Network | None
    checkpoint: Path | None
    start_counts: bool


def _join(seat: Seat, work: _Work) -> None:
    """Run the training in one of the other processes."""
    _train(work, seat, Progress(), None)


def _train(
    work: _Work, seat: Seat, progress: Progress, after: Callable[[Epoch], None] | None
) -> tuple[Network, tuple[Epoch, ...]]:
    network, data, config, teacher = work.network, work.data, work.config, work.teacher
    # The same in every process, but for `seat`: its number decides the part of each batch that it gets.
    team = Team(make_fabric(config.precision, seat), seat)
    fabric = team.fabric
    if is_emulated(config.precision, fabric.device):
        progress.say(f"This processor has no instructions for {config.precision}: precision 32 is faster on it.")

    layout = fitting_layout(network, fabric.device, config.channels_last)
    student = place(network.copy(), fabric.device, layout)
    placed_teacher = None if teacher is None else place(teacher.copy(), fabric.device, layout)
    task = get_task(network.task)
    steps = config.epochs * len(_batches(data, network, config, team, seed=0))
    with _reproducible(fabric.device):
        torch.manual_seed(config.seed)
        objective = Objective(task, config, labelled=data.labelled, network=student, teacher=placed_teacher)
        if config.precision != "32":
            keep_in_32(student, config.keep_fp32)
        stepper = Stepper(student, config, team, objective, steps, layout, work.sparse)
        precomputed = config.epochs > 1 and not (config.augment or config.strong) and objective.needs_outputs_only
        training = _Training(student, placed_teacher, data, config, team, stepper, progress, precomputed)
        if work.checkpoint is not None:
            digest = identity((network, teacher, work.sparse), config, data.fingerprint, fabric.device.type)
            training.keep_in(work.checkpoint, digest)
        training.run(steps, after or (lambda epoch: None), work.start_counts)
    return training.best_of(network), tuple(training.curve)


class _Training:
    """The epochs of one training: steps, judgement, curve, checkpoint."""

    def __init__(
        self,
        network: Network,
        teacher: Network | None,
        data: ImageData,
        config: FitConfig,
        team: Team,
        stepper: Stepper,
        progress: Progress,
        precomputed: bool,
    ) -> None:
        self._network, self._data, self._config = network, data, config
        self._team, self._stepper, self._progress = team, stepper, progress
        task = get_task(network.task)
        self._metric = task.metric if data.labelled else task.agreement
        self._reference = None if data.labelled or teacher is None else predict(teacher, data)
        # For images that are not varied the teacher's outputs are the same in every epoch: they are computed once.
        self._teacher_outputs = _outputs_of_teacher(teacher, data) if precomputed and teacher is not None else None
        self._best = Best(self._metric)
        self._checkpoint: tuple[Path, str] | None = None
        self.curve: list[Epoch] = []

    def keep_in(self, path: Path, digest: str) -> None:
        """Write the state to `path` after each epoch from now on; go on from what it holds of this training."""
        self._checkpoint = (path, digest)
        state = read_state(path, digest, self._progress)
        if state is None:
            return
        self._stepper.restore(state["stepper"])
        self._best.restore(state["best"])
        self.curve = [Epoch(**epoch) for epoch in state["curve"]]
        self._progress.say(f"Training goes on after epoch {len(self.curve)} of {self._config.epochs}.")

    def run(self, steps: int, after: Callable[[Epoch], None], start_counts: bool) -> None:
        """All the epochs that are left; with `start_counts` the network is judged before the first of them."""
        if start_counts and not self.curve:
            self._best.rank(self._stepper.judged, self._judge())
        with self._progress.work("Training", steps) as bar:
            if self._stepper.done:
                bar.advance(self._stepper.done)
            while len(self.curve) < self._config.epochs and not self._stale():
                self._epoch(bar)
                after(self.curve[-1])
        if start_counts and self._best.stale == len(self.curve):
            self._progress.say("No epoch made the network better.")

    def best_of(self, network: Network) -> Network:
        """A copy of `network`, with its device and layout, that has the best weights."""
        if self._best.weights is None:
            raise TrainingError(
                f"After training, the {self._metric.name} is not a number in any epoch.",
                why="The network's outputs on the validation images are not finite.",
                fix="Use a lower learning rate, or precision 32.",
            )
        result = network.copy().eval()
        result.module.load_state_dict(self._best.weights)
        return result

    def _epoch(self, bar: Bar) -> None:
        """One epoch: the steps, the quality, its point of the curve, the checkpoint, and a line for the user."""
        start, number = time.monotonic(), len(self.curve) + 1
        loss, rate = self._learn(number, bar)
        quality = self._judge()
        self._best.rank(self._stepper.judged, quality)
        log = self._stepper.take_log()
        seconds = time.monotonic() - start
        self.curve.append(Epoch(number, loss, quality, rate, seconds, log.skipped, log.grown, log.scale))
        if self._checkpoint is not None and self._team.leads:
            write_state(*self._checkpoint, self._state())
        self._progress.say(
            f"Epoch {number}/{self._config.epochs}: loss {loss:.4g}{self._quality()}, "
            f"learning rate {rate:.2g}, {seconds:.1f} s"
        )
        if str(log):
            self._progress.say(str(log))
        if self._stale() and number < self._config.epochs:
            self._progress.say(f"Stopped early: no better {self._metric.name} for {self._best.stale} epochs.")

    def _judge(self) -> float:
        """The quality after an epoch, measured by the first process and sent to the others."""
        leads = self._team.leads
        judged = self._stepper.judged
        quality = evaluate(judged, self._data, reference=self._reference).value if leads else math.nan
        return self._team.broadcast(quality)

    def _learn(self, number: int, bar: Bar) -> tuple[float, float]:
        """The steps of one epoch; gives the mean loss, and the last learning rate."""
        # A seed of its own for each epoch: what is drawn in it does not depend on what was drawn before, so that a
        # training that goes on from a checkpoint draws the same, without any generator's state.
        seed = (self._config.seed * 1_000_003 + number) % _SEEDS
        batches = _batches(self._data, self._network, self._config, self._team, seed=seed)
        torch.manual_seed(batches.seed)
        total, count, rate = 0.0, 0, self._stepper.rate
        self._network.train()
        for part, (images, targets) in zip(batches.parts, batches, strict=True):
            rate = self._stepper.rate
            teacher_outputs = None
            if self._teacher_outputs is not None:
                teacher_outputs = {name: value[part.places] for name, value in self._teacher_outputs.items()}
            loss = self._stepper.take(images, targets, number, teacher_outputs, part.weight)
            if math.isfinite(loss):
                total, count = total + loss * part.whole, count + part.whole
            bar.advance(1, f"loss {loss:.4g}{self._quality()}")
        return (total / count if count else math.nan), rate

    def _quality(self) -> str:
        """The last quality, in words."""
        if not self.curve:
            return ""
        return (
            f", {self._metric.name} {format_value(self.curve[-1].quality, self._metric.name, share=self._metric.share)}"
        )

    def _stale(self) -> bool:
        return self._config.early_stopping is not None and self._best.stale >= self._config.early_stopping

    def _state(self) -> dict[str, object]:
        curve = [dataclasses.asdict(epoch) for epoch in self.curve]
        return {"stepper": self._stepper.state(), "best": self._best.state(), "curve": curve}


def _outputs_of_teacher(teacher: Network, data: ImageData) -> dict[str, torch.Tensor] | None:
    """The teacher's outputs for every training image, by name; None where they would take too much memory."""
    numbers = sum(math.prod(shape) for shape in output_shapes(teacher).values())
    if 4 * data.count("train") * numbers > _MOST_TEACHER_BYTES:
        return None
    return {name: torch.from_numpy(value) for name, value in predict(teacher, data, split="train").items()}


def _check(network: Network, data: ImageData, teacher: Network | None, config: FitConfig) -> None:
    if teacher is not None:
        check_teacher(teacher, network)
    ours, theirs = network.task, data.task
    if data.labelled and (ours.name, ours.outputs) != (theirs.name, theirs.outputs):
        raise InputError(
            f"The network is for {ours.name} with {ours.outputs} outputs, and {data.name} is for {theirs.name} with "
            f"{theirs.outputs}.",
            fix="Give the network a head that fits the data, or data that fits the network.",
        )
    if (config.mixup or config.cutmix) and data.labelled and not get_task(network.task).has_classes:
        raise InputError(
            f"mixup and cutmix are for tasks with classes, and the network is for {ours.name}.",
            why="Half of two images has not half of what a number tells of them.",
            fix="Leave them out.",
        )
    if data.count("train") < 2:
        raise InputError(
            f"{data.name} has {data.count('train')} training images.",
            why="At least two are needed.",
            fix="Give more images.",
        )


def _batches(data: ImageData, network: Network, config: FitConfig, team: Team, *, seed: int) -> Batches:
    """One epoch of training images, or a process's part of it."""
    return data.batches(
        "train",
        network.input,
        batch_size=config.batch_size,
        augment=config.augment,
        strong=config.strong,
        shuffle=True,
        seed=seed,
        share=(team.rank, team.size),
    )


@contextlib.contextmanager
def _reproducible(device: torch.device) -> Iterator[None]:
    """Random numbers of its own, and the deterministic algorithms of cuDNN."""
    cuda = device.type == "cuda"
    was = torch.backends.cudnn.deterministic
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.backends.cudnn.deterministic = was or cuda
        try:
            yield
        finally:
            torch.backends.cudnn.deterministic = was
