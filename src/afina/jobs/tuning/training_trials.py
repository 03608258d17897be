"""One training as a trial of a search: its parameters, its reports, its network."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.study import Study

from afina.data import ImageData
from afina.errors import InputError
from afina.graph.network import Network
from afina.jobs.common.subject import load_for
from afina.jobs.options.tune import TuneOptions
from afina.jobs.tuning.costs import SECONDS, Costs
from afina.jobs.tuning.fidelity import Rung, rungs_of
from afina.jobs.tuning.settings import INPUT_SIZE, MODEL, check_space, settings_of
from afina.jobs.tuning.trial_networks import COSTS, CURVE, clear, network_file
from afina.models import Loaded
from afina.progress import Progress
from afina.search import Space, best_trial, make_space
from afina.search.tensor_train.history import PARTS
from afina.tasks import get_task
from afina.training import FitConfig, evaluate, fit
from afina.training.config import Optimizer
from afina.training.suited import suited_batch, suited_optimizer
from afina.types import Epoch, Measurement, MetricInfo

_EPOCHS = 5


class Reports(Protocol):
    """The methods of a trial that its training calls: a trial of Optuna, or one whose study is in another process."""

    @property
    def number(self) -> int:
        """The number of the trial."""

    @property
    def study(self) -> Study | None:
        """The study of the trial; None where that is in another process."""

    def report(self, value: float, step: int) -> None:
        """Report the quality after a step."""

    def should_prune(self) -> bool:
        """Whether the rule of early stopping ends the trial."""

    def set_user_attr(self, key: str, value: Any) -> None:
        """Store a value with the trial."""

    def set_constraint(self, key: str, value: float) -> None:
        """Store by how much a limit is exceeded; 0 or less where it is kept."""


class Training:
    """Trainings of one model on the same images; a trial's parameters say how.

    Args:
        options: The model, how it is opened, and the values of parameters that the space does not have.
        data: Images with labels.
        costs: The costs that count beside the quality.
        progress: What the user sees.

    Raises:
        InputError: the images have no labels or cannot be divided, or the model cannot be loaded.
    """

    def __init__(self, options: TuneOptions, data: ImageData, costs: Costs, progress: Progress) -> None:
        if not data.labelled:
            raise InputError(
                f"{data.name} has no labels.", why="A training learns from them.", fix="Give images with labels."
            )
        self._options, self._data, self._progress, self._costs = options, data, progress, costs
        self._epochs, self._folds, self._devices = options.epochs or _EPOCHS, options.folds, options.devices
        self._common = {name: value for name, value in options.training.items() if value}
        self._rungs, folds = rungs_of(options.fidelity), options.folds
        self._loaded = dict[str, Loaded]()
        self._first = self._load({})
        if folds is not None:
            for number in range(folds):
                data.fold(number, folds)  # tells now what is wrong with one
        self._parts = {rung.images: data if rung.images == 1 else data.with_share(rung.images) for rung in self._rungs}
        for note in self._first.notes:
            progress.say(note)

    @property
    def network(self) -> Network:
        """The model as it is opened without any parameter of the search."""
        return self._first.network

    @property
    def metric(self) -> MetricInfo:
        """The metric that trials are judged by, on the validation images."""
        return get_task(self.network.task).metric

    def on_test(self, file: Path) -> Measurement:
        """The quality of the network in a file on the test images."""
        return evaluate(Network.load(file), self._data, "test")

    @property
    def pretrained(self) -> bool:
        """Whether trainings start from trained weights."""
        return self._first.pretrained

    @property
    def batch(self) -> int:
        """Batch size that suits the number of images."""
        return suited_batch(self._data.count("train"))

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer where a space does not say."""
        return self._common.get("optimizer") or suited_optimizer(self.network)

    @property
    def epochs(self) -> int:
        """Epochs where a space does not say."""
        return self._epochs

    def check(self, space: Space) -> None:
        """Check that every parameter is one of a training, or an argument that the model takes.

        Raises:
            InputError: the first that is not.
        """
        check_space(space)
        model_arguments = {name: p.ends()[0] for name, p in space.parameters.items() if name.startswith(MODEL)}
        if model_arguments:
            self._load(model_arguments)
        for rung in self._rungs:
            if rung.size != 1:
                self._at(rung, {}, self._first.network)

    def most_steps(self, space: Space) -> int:
        """The last step that the longest trial reports."""
        if self._folds is not None:
            return self._folds
        if len(self._rungs) > 1:
            return self._rungs[-1].step
        varied = space.parameters.get("epochs")
        return self._epochs if varied is None else max(int(value) for value in varied.ends())  # type: ignore[arg-type]

    def run(self, params: dict[str, Any], trial: Reports, folder: Path) -> tuple[float, ...]:
        """Train with these parameters; gives the best quality on the validation images, and what else is an objective.

        With folds, the quality is the mean over them, and a network that is kept is trained on all training images.
        A network that breaks a limit is not trained. The network of a trial that is the best so far (with several
        objectives: that no other is better than in all) is kept in `folder` before its values are told: a process that
        is killed between leaves a file too many, never one too few.
        """
        whole = self._load(params)
        costs = self._affordable(whole.network, trial)
        config = FitConfig(**{**self._defaults(whole.network), **settings_of(params).options})
        network = None
        if self._folds is not None:
            value, costs[SECONDS] = self._over_folds(whole.network, config, trial)
        else:
            network, epochs, last = self._fit(whole.network, params, config, trial)
            value, costs[SECONDS] = self._quality(epochs[-last:]), sum(epoch.seconds for epoch in epochs)
        sign = 1 if self.metric.higher_is_better else -1
        best = None if trial.study is None else best_trial(trial.study)
        if self._costs.also or best is None or sign * value >= sign * best.values[0]:
            if network is None:
                network, curve = fit(whole.network, self._data, config, devices=self._devices)
                trial.set_user_attr(CURVE, [asdict(epoch) for epoch in curve])
            folder.mkdir(parents=True, exist_ok=True)
            network.save(network_file(folder, trial.number))
            if trial.study is not None:
                clear(trial.study, folder)
        return (value, *(costs[name] for name in self._costs.also))

    def _fit(
        self, whole: Network, params: dict[str, Any], config: FitConfig, trial: Reports
    ) -> tuple[Network, list[Epoch], int]:
        """Train part by part, each from the weights of the one before; early stopping ends it between epochs or parts.

        Gives the network, all epochs, and how many of them the last part had.
        """
        curve, network = list[Epoch](), whole
        staged = len(self._rungs) > 1

        def report(step: int, last: bool) -> None:
            if not self._costs.also:
                trial.report(curve[-1].quality, step)
                if not last and trial.should_prune():
                    raise optuna.TrialPruned

        def after(epoch: Epoch) -> None:
            curve.append(replace(epoch, epoch=len(curve) + 1))
            trial.set_user_attr(CURVE, [asdict(known) for known in curve])
            if not staged:
                report(epoch.epoch, epoch.epoch == config.epochs)

        before = 0
        for rung in self._rungs:
            before = len(curve)
            start = whole if rung.size == 1 else self._at(rung, params, whole)
            if network is not whole:
                start = start.copy()
                start.module.load_state_dict(network.module.state_dict())
            network, _ = fit(start, self._parts[rung.images], config, after=after, devices=self._devices)
            if staged:
                report(rung.step, rung is self._rungs[-1])
        return network, curve, len(curve) - before

    def _over_folds(self, whole: Network, config: FitConfig, trial: Reports) -> tuple[float, float]:
        """Train once for each fold and judge on that fold; early stopping ends it between folds.

        Gives the mean quality, and the mean seconds of a training.
        """
        assert self._folds is not None
        trial.set_user_attr(PARTS, self._folds)
        values, seconds = list[float](), 0.0
        for number in range(self._folds):
            _, curve = fit(whole, self._data.fold(number, self._folds), config, devices=self._devices)
            values.append(self._quality(curve))
            seconds += sum(epoch.seconds for epoch in curve)
            if not self._costs.also:
                trial.report(values[-1], number + 1)
                if number + 1 < self._folds and trial.should_prune():
                    raise optuna.TrialPruned
        return sum(values) / self._folds, seconds / self._folds

    def _quality(self, curve: Sequence[Epoch]) -> float:
        """The best quality among these epochs."""
        sign = 1 if self.metric.higher_is_better else -1
        return float(sign * max(sign * epoch.quality for epoch in curve))

    def _at(self, rung: Rung, params: dict[str, Any], whole: Network) -> Network:
        """The network for smaller images.

        Raises:
            InputError: its weights are for one size of images only.
        """
        size = tuple(max(1, round(rung.size * pixels)) for pixels in whole.input.shape[1:])
        network = self._load({**params, INPUT_SIZE: size}).network
        shapes = [{k: v.shape for k, v in n.module.state_dict().items()} for n in (network, whole)]
        if shapes[0] != shapes[1]:
            raise InputError(
                "The network cannot begin on smaller images.",
                why="Some of its weights belong to places in the image.",
                fix="Choose --fidelity images or epochs.",
            )
        return network

    def _affordable(self, network: Network, trial: Reports) -> dict[str, float]:
        """The costs of the network; raises `optuna.TrialPruned` where they exceed a limit."""
        costs = self._costs.of(network)
        trial.set_user_attr(COSTS, costs)
        for name, limit in self._costs.limits.items():
            trial.set_constraint(name, costs[name] / limit - 1)
        if any(costs[name] > limit for name, limit in self._costs.limits.items()):
            raise optuna.TrialPruned
        return costs

    def _defaults(self, network: Network) -> dict[str, Any]:
        return {
            "epochs": self._epochs, "optimizer": suited_optimizer(network), "batch_size": self.batch,
            "seed": self._options.seed, **self._common,
        }  # fmt: skip

    def _load(self, params: dict[str, Any]) -> Loaded:
        """The model that these parameters shape; the last ones are kept, since most spaces leave the model as it is."""
        settings = settings_of(params)
        assert self._options.model is not None
        key = repr((sorted(settings.model.items()), settings.input_size))
        loaded = self._loaded.pop(key, None) or load_for(
            self._data,
            self._options.model,
            self._options,
            self._progress,
            builder_arguments=settings.model,
            input_size=settings.input_size,
        )
        self._loaded[key] = loaded
        if len(self._loaded) > len(self._rungs):
            del self._loaded[next(iter(self._loaded))]
        return loaded


def default_space(training: Training) -> Space:
    """The space that is searched by default: the parameters that matter most, around values that suit the network."""
    optimizer = training.optimizer
    high = {"sgd": 0.5, "adamw": 1e-2}[optimizer] * (0.3 if training.pretrained else 1.0)
    decay = {"sgd": (1e-5, 1e-2), "adamw": (1e-3, 0.5)}[optimizer]
    space: dict[str, Any] = {
        "optimizer": optimizer,
        "epochs": training.epochs,
        "learning_rate": {"type": "float", "low": high / 300, "high": high, "log": True},
        "weight_decay": {"type": "float", "low": decay[0], "high": decay[1], "log": True},
        "batch_size": {"type": "int", "low": max(4, training.batch // 4), "high": 2 * training.batch, "log": True},
        "schedule": ["onecycle", "cosine"],
        "augment": {"type": "float", "low": 0.0, "high": 2.0, "step": 0.5},
    }
    return make_space({**space, **get_task(training.network.task).space})
