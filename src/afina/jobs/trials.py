"""One training as a trial of a search: its parameters, its reports, its network."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import optuna
from optuna.study import Study

from afina.data import ImageData
from afina.errors import InputError, did_you_mean
from afina.graph.network import Network
from afina.jobs.compression import suited_batch, suited_optimizer
from afina.jobs.target import ModelSource, input_of, parse_input_size
from afina.models import Loaded, load_model
from afina.progress import Progress
from afina.search import Space, best_trial, make_space
from afina.tasks import get_task
from afina.training import FitConfig, fit
from afina.training.config import Optimizer
from afina.types import Epoch, MetricInfo

# User attribute of a trial: the epochs of its training.
CURVE = "afina:curve"
_MODEL = "model."
_EPOCHS = 5
# What a search may vary of a training; the rest is for networks with a teacher.
_OF_TEACHERS = {"distillation", "temperature", "features", "feature_weight", "attention_weight", "relation_weight"}
TRAINING = sorted({f.name for f in fields(FitConfig)} - _OF_TEACHERS - {"keep_fp32", "keep_zeros", "seed"})


class Training:
    """Trainings of one model on the same images; a trial's parameters say how.

    Args:
        model: As in `optimize`.
        data: Images with labels.
        weights: As in `optimize`.
        input_size: Where the space does not say.
        epochs: Where the space does not say.
        seed: Of weights, order and augmentation, the same in every trial.
        example: For an `nn.Module`.
        progress: What the user sees.
        common: Options of `FitConfig` where the space does not say.

    Raises:
        InputError: the images have no labels, or the model cannot be loaded.
    """

    def __init__(
        self,
        model: ModelSource,
        data: ImageData,
        weights: str | None,
        input_size: str | tuple[int, int] | None,
        epochs: int | None,
        seed: int,
        example: Any,
        progress: Progress,
        common: Mapping[str, Any],
    ) -> None:
        if not data.labelled:
            raise InputError(
                f"{data.name} has no labels.", why="A training learns from them.", fix="Give images with labels."
            )
        self._model, self._data, self._weights, self._size = model, data, weights, input_size
        self._epochs, self._seed, self._example, self._progress = epochs or _EPOCHS, seed, example, progress
        self._common = {name: value for name, value in common.items() if value}
        self._first = self._load({})
        for note in self._first.notes:
            progress.say(note)

    @property
    def network(self) -> Network:
        """The model as it is without any parameter of the search."""
        return self._first.network

    @property
    def metric(self) -> MetricInfo:
        """What trials are judged by, on the validation images."""
        return get_task(self.network.task).metric

    @property
    def pretrained(self) -> bool:
        """Whether trainings start from trained weights."""
        return self._first.pretrained

    @property
    def batch(self) -> int:
        """Batch size that suits the number of images."""
        return suited_batch(self._data)

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer where a space does not say."""
        return self._common.get("optimizer") or suited_optimizer(self.network)

    @property
    def epochs(self) -> int:
        """Epochs where a space does not say."""
        return self._epochs

    def check(self, space: Space) -> None:
        """Whether every parameter is one of a training, and the model takes those that are its own.

        Raises:
            InputError: the first that is not.
        """
        for name in space.parameters:
            if not name.startswith(_MODEL) and name not in (*TRAINING, "input_size"):
                near = did_you_mean(name, [*TRAINING, "input_size"])
                raise InputError(f"A training has no parameter {name!r}.", fix=f"{near} Or {_MODEL}NAME for the model.")
        own = {name: p.grid(1)[0] for name, p in space.parameters.items() if name.startswith(_MODEL)}
        if own:
            self._load(own)

    def most_epochs(self, space: Space) -> int:
        """Epochs of the longest trial."""
        known = space.parameters.get("epochs")
        return self._epochs if known is None else max(int(value) for value in known.grid(2))  # type: ignore[arg-type]

    def run(self, params: dict[str, Any], trial: optuna.Trial, folder: Path) -> float:
        """Train with these parameters; gives the best quality on the validation images.

        The network of a trial that is the best so far is kept in `folder` before its value is told: a process that
        is killed between leaves a file too many, never one too few.
        """
        options = {k: v for k, v in params.items() if k != "input_size" and not k.startswith(_MODEL)}
        loaded = self._load(params)
        config = FitConfig(**{**self._defaults(loaded.network), **options})
        curve: list[dict[str, Any]] = []

        def after(epoch: Epoch) -> None:
            curve.append(asdict(epoch))
            trial.set_user_attr(CURVE, curve)
            trial.report(epoch.quality, epoch.epoch)
            if epoch.epoch < config.epochs and trial.should_prune():
                raise optuna.TrialPruned

        network, epochs = fit(loaded.network, self._data, config, after=after)
        sign = 1 if self.metric.higher_is_better else -1
        value = sign * max(sign * epoch.quality for epoch in epochs)
        best = best_trial(trial.study)
        if best is None or best.value is None or sign * value > sign * best.value:
            folder.mkdir(parents=True, exist_ok=True)
            network.save(_file(folder, trial.number))
        return float(value)

    def _defaults(self, network: Network) -> dict[str, Any]:
        return {
            "epochs": self._epochs, "optimizer": suited_optimizer(network), "batch_size": self.batch,
            "seed": self._seed, **self._common,
        }  # fmt: skip

    def _load(self, params: dict[str, Any]) -> Loaded:
        size = params.get("input_size", self._size)
        return load_model(
            self._model,
            weights=self._weights,
            task=self._data.task,
            input=input_of(self._example) or self._data.native,
            input_size=None if size is None else parse_input_size(size),
            targets=self._data.targets("train"),
            progress=self._progress,
            seed=self._seed,
            options={k.removeprefix(_MODEL): v for k, v in params.items() if k.startswith(_MODEL)},
        )


def default_space(training: Training) -> Space:
    """What matters for a training, around what suits the network: rates, decay, batch size, schedule, augmentation."""
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
        "augment": [True, False],
    }
    if training.network.task.name == "classification":
        space["label_smoothing"] = {"type": "float", "low": 0.0, "high": 0.2}
    return make_space(space)


def keep_best(study: Study, folder: Path, path: Path) -> bool:
    """Put the best trial's network at `path`, and remove the others of `folder`; False where it is not there."""
    best = best_trial(study)
    ended = [t.number for t in study.get_trials(deepcopy=False) if t.state.is_finished()]
    for number in ended:
        if best is None or number != best.number:
            _file(folder, number).unlink(missing_ok=True)
    if best is None or not _file(folder, best.number).is_file():
        path.unlink(missing_ok=True)
        return False
    partial = path.with_name(f".{path.name}")
    shutil.copyfile(_file(folder, best.number), partial)
    partial.replace(path)
    return True


def _file(folder: Path, number: int) -> Path:
    return folder / f"trial-{number}.pt2"
