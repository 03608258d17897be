"""Options of `afina tune`."""

import math
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from afina.errors import InputError
from afina.jobs.options.declaration import Option
from afina.jobs.options.shared import (
    DATA_HELP,
    MODEL_HELP,
    DataOptions,
    KeepFP32,
    OptimizerName,
    Precision,
    Quantity,
    RunFolder,
    names,
)
from afina.units import parse_size, parse_time

if TYPE_CHECKING:
    from afina.jobs.common.model_source import ModelSource
else:
    ModelSource = Any


EPOCHS = "epochs"
DEFAULT_RUNTIME = "onnxruntime"
# Without a number of trials and without a time.
_TRIALS = 50


@dataclass(frozen=True)
class TuneOptions(DataOptions):
    """Search the hyperparameters of MODEL's training on DATA, or those of any Python function."""

    model: Annotated[
        ModelSource | None,
        Option(f"{MODEL_HELP} `builtin:convnet` has free arguments.", positional=True),
    ] = None
    data: Annotated[
        Any, Option(f"{DATA_HELP} With labels; its validation images judge the trials.", metavar="DATA")
    ] = None
    _: KW_ONLY
    objective: Annotated[
        str | Callable[..., Any] | None,
        Option(
            "Instead of both: a function of the parameters by name that gives a number, or `path/file.py:function`. "
            "Where it has an argument `trial`, it gets that too (Optuna's), for `trial.report(value, step)`, "
            "`trial.should_prune()` and `trial.set_constraint(name, value)`."
        ),
    ] = None
    space: Annotated[
        Any,
        Option(
            "A YAML file of the search space, a mapping, or a `Space`; by default what matters for a training. Its "
            "names are those of `FitConfig`, `input_size`, and `model.NAME` for the arguments of what builds the "
            "model.",
            metavar="FILE",
        ),
    ] = None
    sampler: Annotated[
        str,
        Option(
            "What suggests parameters: `tensor-train`, `tpe`, `gp`, `cmaes`, `qmc`, `random`, `grid`, or another "
            "that is installed."
        ),
    ] = "tensor-train"
    trials: Annotated[
        int | None,
        Option("How many in all; by default 50, or no limit where there is a time. A grid is tried once.", least=1),
    ] = None
    time: Annotated[
        Quantity, Option("After which no new trial is begun, as in `30min` or `1h`; a number is seconds.")
    ] = None
    early_stopping: Annotated[
        str | None,
        Option(
            "Which trials are stopped before their end: `none`, `median`, `halving` or `hyperband`; with folds, "
            "`none` or `wilcoxon`. By default `median`, or `wilcoxon`; with several objectives `none`."
        ),
    ] = None
    fidelity: Annotated[
        str,
        Option(
            "What trainings are compared by before their end: `epochs`; `images` (a ninth of them first, then a third, "
            "then all) or `input-size` (half of it first, then 0.7, then all), each from the weights before.",
            choices=(EPOCHS, "images", "input-size"),
        ),
    ] = EPOCHS
    folds: Annotated[
        int | None,
        Option(
            "Judge each trial by cross-validation: trained once for each of so many parts of the training images, on "
            "the others. The network of a trial that is kept is trained on all of them.",
            least=2,
        ),
    ] = None
    grid_points: Annotated[
        int | None, Option("Values of each continuous parameter in a grid; 5 by default.", least=1)
    ] = None
    epochs: Annotated[int | None, Option("Epochs of each training, where the space does not vary them.", least=1)] = (
        None
    )
    also: Annotated[
        tuple[str, ...] | str,
        Option(
            "What is to be low beside the quality: `size`, `latency`, `parameters`, `macs`, `seconds` (of training); "
            "may be repeated. The result then is every trial that no other is better than in all. With a function: "
            "names of what it gives after its value."
        ),
    ] = ()
    size: Annotated[
        Quantity, Option("Limit on the exported float file, as in `500KB`; networks beyond it are not trained.")
    ] = None
    latency: Annotated[Quantity, Option("Limit on the time of that file for one image, as in `2ms`.")] = None
    maximize: Annotated[bool, Option("The function's value is to be high; a training knows its metric.")] = False
    out: RunFolder = None
    storage: Annotated[
        str | None,
        Option(
            "URL of a database of Optuna's, for many machines (`postgresql://...`, `grpc://HOST:PORT`); by default a "
            "file in the run folder.",
            metavar="URL",
        ),
    ] = None
    study: Annotated[str | None, Option("Name of the study in that database; by default that of what is tuned.")] = None
    optimizer: OptimizerName = None
    precision: Precision = "32"
    keep_fp32: KeepFP32 = ()
    runtime: Annotated[str, Option("What runs the files that `size` and `latency` are about.")] = DEFAULT_RUNTIME
    threads: Annotated[int | None, Option("Threads of the runtime; all cores by default.", least=1)] = None
    workers: Annotated[
        int | None,
        Option(
            "Local processes, each with its share of the cores, that work on one study; 1 by default. On Ray, trials "
            "at once; by default as many as it has processors for.",
            least=1,
        ),
    ] = None
    ray: Annotated[
        str | None,
        Option(
            "Run trials as tasks of a Ray cluster: `auto` (the one that this machine is in), `local` (this machine "
            "alone), or an address."
        ),
    ] = None
    trial_cpus: Annotated[float, Option("Processors of a trial on Ray.", least=0.1)] = 1
    trial_gpus: Annotated[
        float,
        Option(
            "GPUs of a trial: several share each of its batches. On Ray also a part of one, where several trials "
            "share it.",
            least=0,
        ),
    ] = 0

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of what is to be low beside the quality, or of what a function gives after its value."""
        return names(self.also)

    @property
    def seconds(self) -> float | None:
        """Seconds after which no new trial is begun; None for no limit."""
        return None if self.time is None else parse_time(self.time, "--time", "1h")

    @property
    def most_trials(self) -> int | None:
        """How many trials in all; None for no limit (a time ends the search, or the grid)."""
        return _TRIALS if self.trials is None and self.time is None and self.sampler != "grid" else self.trials

    @property
    def limits(self) -> Mapping[str, float]:
        """Limits on a trial's network: bytes of `size`, seconds of `latency`."""
        limits = {} if self.size is None else {"size": float(parse_size(self.size))}
        return limits if self.latency is None else {**limits, "latency": parse_time(self.latency)}

    @property
    def training(self) -> dict[str, Any]:
        """Options of `FitConfig` where the space does not say."""
        return {"optimizer": self.optimizer, "precision": self.precision, "keep_fp32": names(self.keep_fp32)}

    @property
    def devices(self) -> int:
        """GPUs that share a training."""
        return max(1, int(self.trial_gpus))

    def check(self) -> None:
        """Raise `InputError` for options that are wrong together."""
        _ = self.seconds, self.limits
        self._check_objectives()
        self._check_storage()
        self._check_devices()
        if self.grid_points is not None and self.sampler != "grid":
            raise InputError(f"--grid-points is for --sampler grid, not {self.sampler}.", fix="Leave it out.")
        if self.folds and self.fidelity != EPOCHS:
            raise InputError(
                f"--fidelity {self.fidelity} and --folds exclude each other.", fix="Leave one of them out."
            )

    def _check_objectives(self) -> None:
        if self.objectives and self.sampler == "cmaes":
            raise InputError(
                "--sampler cmaes knows one objective only.", fix="Leave out --also, or take another sampler."
            )
        if self.objectives and self.fidelity != EPOCHS:
            raise InputError(
                f"--fidelity {self.fidelity} gains nothing with several objectives.",
                why="It is for stopping trainings early, and no single value says which has no hope.",
                fix="Leave it out.",
            )

    def _check_storage(self) -> None:
        if self.storage is not None and "://" not in self.storage:
            raise InputError(
                f"--storage {self.storage} is not a URL.",
                fix=f"Write sqlite:///{self.storage} for a file, or leave it out: the study is in the run folder "
                "(--out).",
            )
        if self.study is not None and self.storage is None:
            raise InputError(
                f"--study {self.study} names a study of a database, and there is none: a run folder has one study.",
                fix="Give --storage URL, or another --out instead.",
            )

    def _check_devices(self) -> None:
        gpus = self.trial_gpus
        if self.ray is None and (self.trial_cpus != 1 or 0 < gpus < 1):
            raise InputError(
                "Parts of a machine for each trial (--trial-cpus, --trial-gpus below 1) are shared out by Ray.",
                fix="Add --ray local, or leave them out.",
            )
        if not math.isfinite(gpus) or (gpus > 1 and gpus != int(gpus)):
            raise InputError(f"--trial-gpus is {gpus:g}.", fix="Give a whole number, or less than 1 to share one GPU.")
        if self.ray is None and gpus > 1 and self.workers not in (None, 1):
            raise InputError(
                "--workers and --trial-gpus exclude each other.", fix="Add --ray local, which shares out the GPUs."
            )
