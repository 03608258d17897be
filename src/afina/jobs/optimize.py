"""The main job: one model, one folder of images and one budget in; one judged artifact out."""

import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from afina.budget import decide, make_budget, read_limits
from afina.data import ImageData, open_data
from afina.devices.machine import available_cores, describe_machine
from afina.errors import InputError, TrainingError
from afina.graph.network import Network
from afina.jobs.candidates.judging import ORIGINAL
from afina.jobs.candidates.search import Search
from afina.jobs.candidates.stages import Job
from afina.jobs.common.model_source import ModelSource, check_source, name_of, parse_input_size
from afina.jobs.common.subject import RATES, load_for, suited_batch, suited_optimizer
from afina.jobs.report import write_all
from afina.jobs.run import RECIPE_FILE, recipe_text
from afina.jobs.tune import tune as search
from afina.jobs.tuning.training_trials import read_settings
from afina.models import Loaded
from afina.progress import Progress
from afina.reporting import write_metadata
from afina.runtimes import get_runtime
from afina.store.run import Run
from afina.tasks import get_task
from afina.training import FitConfig, fit, layer_dtypes
from afina.training.config import Optimizer, TrainingPrecision
from afina.training.policy import check_patterns, summary
from afina.types import Budget, Candidate, Epoch, MetricInfo, Result

# Trainings are sized in steps, so that a small data set gets more epochs than a large one.
_ADAPT_STEPS, _FINETUNE_STEPS = 4000, 2000
_FEWEST_EPOCHS, _MOST_EPOCHS = 3, 20
# Highest learning rates: from random weights, from given weights.
_RATES: dict[Optimizer, tuple[float, float]] = {"sgd": (0.1, 0.02), "adamw": (1e-3, 2e-4)}
# Of classification; a regression has nothing to smooth and takes no notice.
_SMOOTHING = 0.1
_REPEATED = (
    "runtime",
    "weights",
    "epochs",
    "finetune",
    "tune",
    "training",
    "learning_rate",
    "optimizer",
    "precision",
    "threads",
    "batch",
    "seed",
)


@dataclass(frozen=True)
class Adapted:
    """The network before compression: whether it was trained here, and what the user should know."""

    notes: tuple[str, ...]
    curve: tuple[Epoch, ...]


def optimize(
    model: ModelSource,
    data: Any,
    *,
    size: str | float | None = None,
    latency: str | float | None = None,
    memory: str | float | None = None,
    max_drop: str | float | None = None,
    runtime: str = "onnxruntime",
    out: str | Path | None = None,
    weights: str | None = None,
    input_size: str | tuple[int, int] | None = None,
    epochs: int | None = None,
    finetune: int | None = None,
    tune: int = 0,
    training: str | Path | Mapping[str, Any] | None = None,
    learning_rate: float | None = None,
    optimizer: Optimizer | None = None,
    precision: TrainingPrecision | None = None,
    keep_fp32: str | Sequence[str] = (),
    threads: int | None = None,
    batch: int = 1,
    thorough: bool = False,
    seed: int = 0,
    example: Any = None,
    progress: Progress | None = None,
) -> Result:
    """Fit `model` to `data` and to a budget, and prove it on the exported file.

    Args:
        model: A name (`resnet18`, `timm:NAME`, `torchvision:NAME`, `path/file.py:builder`, a saved `.pt2`), an
            `nn.Module` or a `Network`.
        data: A folder of images, a `.zip` of one, a table `image,target`, `digits`; a `Dataset` or `DataLoader`.
        size: Limit on the file, as in `350KB`; a number is bytes.
        latency: Limit on the time for one batch, as in `5ms`; a number is seconds.
        memory: Limit on the peak memory that loading and running the file adds.
        max_drop: Limit on the loss of quality, absolute in the metric's points: `1%` = 0.01 of accuracy.
        runtime: What will run the file: `onnxruntime` or `openvino`.
        out: The run folder; `runs/MODEL-DATA` by default. The same call on the same folder resumes.
        weights: `pretrained`, `random` or a file of weights.
        input_size: Height and width of the network's input (`224` or `224x224`), where the model's own is wrong.
        epochs: Epochs of training before compression; 0 for none. By default a model that already fits the data
            (weights given, head matches) is not trained.
        finetune: Epochs of fine-tuning after pruning.
        tune: Search over so many trainings (see `tune`), and compress the best network.
        training: Hyperparameters of the training: a YAML file, such as `best.yaml` of a search, or a mapping. Other
            options here come before it.
        learning_rate: Of training and fine-tuning; by default one that suits each.
        optimizer: `sgd` or `adamw`; by default the first for networks with batch norm, the second for others.
        precision: Of training: `32` (the default), `bf16-mixed` or `16-mixed`.
        keep_fp32: Names of layers that stay in 32 bits in mixed precision, with `*` and `?` as in file names.
        threads: Threads of the runtime; all cores by default.
        batch: Images per call when latency is measured.
        thorough: Try every candidate, also when a cheap one already fits.
        seed: Seed of every random choice.
        example: For an `nn.Module`: a tensor of the input's shape, or an `InputSpec`.
        progress: What the user sees; nothing by default.

    Returns:
        The result, as in `result.json`: `verdict` is `fits` or `misses`.

    Raises:
        InputError: the model, the data or the budget cannot be used.
        TrainingError: training does not converge to finite numbers.
        StorageError: the run folder cannot be written; what is finished is kept.
    """
    progress = progress or Progress()
    if tune < 0 or (tune and epochs == 0):
        raise InputError(
            f"--tune {tune} with --epochs {epochs} is not possible." if tune > 0 else f"--tune is {tune}.",
            fix="Give the number of trainings, each of one epoch or more.",
        )
    if tune and training is not None:
        raise InputError("--tune and --training both say how to train.", fix="Give one of them.")
    if tune and learning_rate is not None:
        raise InputError("--tune searches for the learning rate itself.", fix="Leave out --learning-rate.")
    given = read_settings(training or {})
    precision = precision or given.options.get("precision", "32")
    chosen = get_runtime(runtime)
    input_size = input_size or given.input_size
    check_source(model, weights, input_size)
    read_limits(size, latency, memory, max_drop)
    FitConfig(optimizer=optimizer or "sgd", precision=precision, learning_rate=learning_rate)
    images = open_data(data, seed=seed, progress=progress)
    source = load_for(images, model, weights, input_size, example, seed, progress, given.model)
    metric = _metric(images, source.network)
    budget = make_budget(metric, size, latency, memory, max_drop)
    folder = Path(out) if out is not None else Path("runs") / f"{name_of(model)}-{name_of(images.name)}"
    threads = threads or available_cores()
    kept = (keep_fp32,) if isinstance(keep_fp32, str) else tuple(keep_fp32)
    check_patterns(source.network, kept)
    config: dict[str, Any] = {
        "model": name_of(model, full=True), "weights": weights, "data": images.name, "fingerprint": images.fingerprint,
        "budget": asdict(budget), "runtime": runtime, "input_size": input_size and list(parse_input_size(input_size)),
        "epochs": epochs, "finetune": finetune, "tune": tune or None,
        "training": str(training) if isinstance(training, (str, Path)) else None, "hyperparameters": asdict(given),
        "learning_rate": learning_rate, "optimizer": optimizer, "precision": precision, "keep_fp32": list(kept),
        "threads": threads, "batch": batch, "thorough": thorough, "seed": seed,
    }  # fmt: skip
    common = FitConfig(
        optimizer=optimizer or given.options.get("optimizer") or suited_optimizer(source.network),
        precision=precision,
        keep_fp32=kept,
        seed=seed,
        batch_size=suited_batch(images),
    )
    if epochs is None and training is not None:
        epochs = given.options.get("epochs", _epochs(images, _ADAPT_STEPS))
    own = {name: value for name, value in given.options.items() if name not in ("optimizer", "epochs", "precision")}
    adapting = replace(common, **_adapting(images, source, common, epochs, learning_rate, own))
    tuning = replace(
        common,
        epochs=finetune or _epochs(images, _FINETUNE_STEPS),
        learning_rate=learning_rate or RATES[common.optimizer],
    )
    with Run.open(folder, config, argv=_command(config, folder)) as run:
        job = Job(run, images, chosen, threads, batch, seed, progress)
        _tell_data(job)
        searched = partial(_searched, job, model, weights, input_size, example, tune) if tune else None
        adapted, network = _adapt(job, source, adapting, epochs, searched)
        candidates = Search(job, network, budget, metric, tuning, thorough).run()
        result = _decide(job, candidates, adapted, network, budget, metric, name_of(model, full=True))
        _write(job, result)
    return result


def _adapting(
    images: ImageData,
    source: Loaded,
    common: FitConfig,
    epochs: int | None,
    learning_rate: float | None,
    own: Mapping[str, Any],
) -> dict[str, Any]:
    """How the model is trained before compression, where `common` does not say."""
    found = {
        "epochs": epochs or _epochs(images, _ADAPT_STEPS),
        "learning_rate": _RATES[common.optimizer][0 if not source.pretrained else 1],
        "label_smoothing": _SMOOTHING,
        **own,
    }
    return found if learning_rate is None else {**found, "learning_rate": learning_rate}


def _command(config: dict[str, Any], folder: Path) -> str:
    """The command line that does the same, which a user repeats to resume."""
    budget = {"size": None, "latency": None, "memory": None, **config["budget"]}
    options = {
        "data": config["data"], "size": budget["size"], "latency": budget["latency"], "memory": budget["memory"],
        "max-drop": budget["max_drop"], "out": folder,
        **{key.replace("_", "-"): config[key] for key in _REPEATED},
        "keep-fp32": [shlex.quote(name) for name in config["keep_fp32"]],
    }  # fmt: skip
    if config["thorough"]:
        options["thorough"] = ""
    several = {key: value if isinstance(value, list) else [value] for key, value in options.items()}
    given = [f"--{key} {value}".strip() for key, values in several.items() for value in values if value is not None]
    return f"afina optimize {config['model']} {' '.join(given)}"


def _metric(images: ImageData, network: Network) -> MetricInfo:
    task = get_task(network.task)
    return task.metric if images.labelled else task.agreement


def _epochs(images: ImageData, steps: int) -> int:
    per_epoch = max(1, images.count("train") // suited_batch(images))
    return max(_FEWEST_EPOCHS, min(_MOST_EPOCHS, steps // per_epoch))


def _tell_data(job: Job) -> None:
    data = job.data
    kind = f"{len(data.task.labels)} classes" if data.task.name == "classification" else data.task.name
    kind = kind if data.labelled else "without labels"
    text = f"{data.name}: {data.count('train')} images to train, {data.count('validation')} to judge, {kind}."
    if data.unreadable:
        with job.run.file("unreadable.txt") as partial:
            Path(partial).write_text("".join(f"{path}: {reason}\n" for path, reason in sorted(data.unreadable.items())))
        text += f" {len(data.unreadable)} unreadable images are skipped, listed in unreadable.txt."
    job.progress.say(text)
    job.run.log(text)


def _adapt(
    job: Job,
    source: Loaded,
    config: FitConfig,
    epochs: int | None,
    searched: Callable[[FitConfig], tuple[Network, tuple[Epoch, ...], str]] | None,
) -> tuple[Adapted, Network]:
    """The network to compress: trained when it must be or was asked to be, and kept in the run folder."""

    def build() -> Adapted:
        for note in source.notes:
            job.progress.say(note)
        network, curve, notes = source.network, tuple[Epoch, ...](), source.notes
        if searched is not None:
            network, curve, note = searched(config)
            notes += (note, *_casting(network, config))
        elif epochs or (epochs is None and not source.pretrained):
            job.progress.say(f"Training for {config.epochs} epochs.")
            checkpoint = job.run.path("work/adapt.checkpoint")
            network, curve = fit(network, job.data, config, progress=job.progress, checkpoint=checkpoint)
            checkpoint.unlink(missing_ok=True)
            notes += _casting(network, config)
        job.keep_network("adapted", network)
        return Adapted(notes, curve)

    adapted = job.stage("adapt", Adapted, build, files=(job.network_file("adapted"),))
    return adapted, job.load_network("adapted")


def _searched(
    job: Job,
    model: ModelSource,
    weights: str | None,
    input_size: str | tuple[int, int] | None,
    example: Any,
    trials: int,
    config: FitConfig,
) -> tuple[Network, tuple[Epoch, ...], str]:
    """The best network of so many trainings, its curve, and what was found."""
    job.progress.say(f"Training {trials} times for {config.epochs} epochs at most, each time otherwise.")
    tuned = search(
        model, job.data, trials=trials, epochs=config.epochs, precision=config.precision, keep_fp32=config.keep_fp32,
        optimizer=config.optimizer, out=job.run.path("tune"), weights=weights, input_size=input_size, seed=job.seed,
        example=example, progress=job.progress,
    )  # fmt: skip
    if tuned.network is None:
        raise TrainingError("No training ended with a network.", fix="Look into tune/trials.csv in the run folder.")
    best = (tuned.best or {}).items()
    found = ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in best)
    return Network.load(tuned.network), tuned.curve, f"The best of {sum(tuned.trials.values())} trainings had {found}."


def _casting(network: Network, config: FitConfig) -> tuple[str, ...]:
    """In what types the layers were trained, where that is not all in 32 bits."""
    if config.precision == "32":
        return ()
    rows = layer_dtypes(network, config.precision, config.keep_fp32)
    return (f"Trained in {config.precision}. {summary(rows)}",)


def _decide(
    job: Job,
    candidates: list[Candidate],
    adapted: Adapted,
    network: Network,
    budget: Budget,
    metric: MetricInfo,
    model: str,
) -> Result:
    first = replace(candidates[0], curve=adapted.curve)
    candidates = [first, *candidates[1:]]
    decision = decide(candidates, first, budget, metric)
    file = decision.winner.file or ""
    return Result(
        verdict=decision.verdict,
        metric=metric,
        budget=budget,
        drop=decision.drop,
        original=ORIGINAL,
        winner=decision.winner.name,
        machine=describe_machine(job.threads),
        runtime=job.runtime.name,
        model=model,
        data=job.data.name,
        task=network.task,
        input=network.input,
        candidates=tuple(candidates),
        best_achievable=decision.best_achievable,
        notes=(*adapted.notes, *decision.warnings),
        artifact=f"artifact/{Path(file).name}",
        out=str(job.run.folder),
        usage=job.runtime.usage_of(f"artifact/{Path(file).name}"),
    )


def _write(job: Job, result: Result) -> None:
    """The artifact and everything that is said about it; `result.json` last, since it says that the rest is there."""
    winner = job.run.path(result.candidate(result.winner).file or "")
    folder = job.run.path("artifact")
    folder.mkdir(exist_ok=True)
    wanted = {part.name for part in job.runtime.files(winner)}
    for part in job.runtime.files(winner):
        with job.run.file(f"artifact/{part.name}") as partial:
            shutil.copyfile(part, partial)
    for stale in folder.iterdir():
        if stale.name not in wanted:
            stale.unlink()
    write_metadata(result, folder / "metadata.json")
    job.run.path(RECIPE_FILE).unlink(missing_ok=True)
    if steps := result.candidate(result.winner).recipe:
        with job.run.file(RECIPE_FILE) as partial:
            partial.write_text(recipe_text(steps))
    job.run.log(f"{result.verdict}: {result.winner}")
    write_all(result, job.run.folder)
    job.run.result(result)
