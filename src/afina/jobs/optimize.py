"""The main job: one model, one folder of images and one budget in; one judged artifact out."""

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from afina.budget import Decision, check_images, decide, enough_to_judge, excess, judge, make_budget
from afina.budget.limits import DEFAULT_DROP
from afina.capacity import available_cores
from afina.data import ImageData
from afina.devices.machine import describe_machine
from afina.errors import InputError, TrainingError
from afina.graph.network import Network
from afina.graph.propagate import output_shapes
from afina.jobs.candidates.judging import TestJudgement, judge_on_test
from afina.jobs.candidates.making import Maker
from afina.jobs.candidates.pool import CandidatePool
from afina.jobs.candidates.search import Search
from afina.jobs.candidates.stages import Job
from afina.jobs.candidates.variants import ORIGINAL
from afina.jobs.common.chance import alarm
from afina.jobs.common.model_source import check_source, name_of, parse_input_size
from afina.jobs.common.recipe import RECIPE_FILE, recipe_text
from afina.jobs.common.subject import load_for, open_images
from afina.jobs.options.declaration import command, command_line, plain
from afina.jobs.options.optimize import OptimizeOptions
from afina.jobs.options.shared import names
from afina.jobs.report import write_all
from afina.jobs.tune import tune
from afina.jobs.tuning.settings import Settings, read_settings
from afina.models import Loaded
from afina.progress import Progress
from afina.reporting import write_metadata
from afina.runtimes import get_runtime
from afina.store.files import check_folder
from afina.store.run import Run
from afina.tasks import get_task
from afina.training import FitConfig, fit, layer_dtypes
from afina.training.policy import check_patterns, summary
from afina.training.suited import INITIAL_STEPS, fine_tuning, initial_training, suited_epochs
from afina.types import Budget, Candidate, Epoch, MetricInfo, Result

# Options that a run folder keeps in another form, or that do not decide what a run does.
_RESOLVED = ("size", "latency", "memory", "max_drop", "out", "cache_memory")


@dataclass(frozen=True)
class Adapted:
    """How the network was adapted to the data before compression.

    Attributes:
        notes: What the user should know of it, one sentence each.
        curve: The training curve; empty where the network was not trained here.
    """

    notes: tuple[str, ...]
    curve: tuple[Epoch, ...]


def _optimize(options: OptimizeOptions) -> Result:
    """Fit `model` to `data` and to a budget, and prove it on the exported file.

    Returns:
        The result, as in `result.json`: `verdict` is `fits` or `misses`.

    Raises:
        InputError: the model, the data or the budget cannot be used.
        TrainingError: training does not converge to finite numbers.
        StorageError: the run folder cannot be written; what is finished is kept.

    Example:
        >>> import afina
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 10))
        >>> result = afina.optimize(model, "digits", size="30KB", epochs=1, out="runs/small")
        >>> result.verdict, result.artifact
        ('fits', 'artifact/model.onnx')
        >>> result.candidate(result.winner).measurements["size"].value <= 30_000
        True
    """
    progress = options.progress or Progress()
    if options.out is not None:
        check_folder(Path(options.out), "--out")
    settings = read_settings(options.training or {})
    base = _base_training(options, settings)
    runtime, input_size = get_runtime(options.runtime), options.input_size or settings.input_size
    check_source(options.model, options.weights, input_size)
    images = open_images(options.data, options, unlabelled=True)
    source = load_for(images, options.model, options, progress, settings.model, input_size)
    metric = _metric(images, source.network)
    budget = make_budget(metric, options.size, options.latency, options.memory, options.max_drop)
    images, judging = _with_judges(images, budget, metric, asked=options.max_drop is not None)
    check_patterns(source.network, base.keep_fp32)
    trainings = _trainings(options, settings, base, images, source)
    threads = options.threads or available_cores()
    name = f"{name_of(options.model)}-{name_of(images.name)}"
    folder = Path(options.out) if options.out is not None else Path("runs") / name
    config = _run_config(options, settings, budget, images, source.network, threads)
    with Run.open(folder, config, argv=command_line("optimize", replace(options, out=folder))) as run:
        job = Job(run, images, runtime, threads, options.batch, options.seed, progress)
        _report_data(job)
        adapted, network = _adapt(job, source, options, trainings)
        adapted = replace(adapted, notes=(*alarm(network, images, progress), *adapted.notes))
        pool = CandidatePool(Maker(job, network, budget, trainings.finetuning), metric)
        candidates = Search(pool, options.thorough).run()
        result = _decide(job, candidates, adapted, network, budget, metric, name_of(options.model, full=True))
        result = replace(result, notes=(*result.notes, judging))
        _write(job, result)
    return result


optimize = command(OptimizeOptions, _optimize)


@dataclass(frozen=True)
class _Trainings:
    """How the network is trained: before compression, and after it became smaller.

    Attributes:
        adapting: The training before compression.
        finetuning: The training after it, with the network before as teacher.
        trains: Whether the network is trained before compression.
    """

    adapting: FitConfig
    finetuning: FitConfig
    trains: bool


def _base_training(options: OptimizeOptions, settings: Settings) -> FitConfig:
    """What both trainings share, as far as options say it. Raises `InputError` where it is out of range."""
    return FitConfig(
        optimizer=options.optimizer or settings.options.get("optimizer", "sgd"),
        precision=options.precision or settings.options.get("precision", "32"),
        learning_rate=options.learning_rate,
        keep_fp32=names(options.keep_fp32),
        seed=options.seed,
    )


def _trainings(
    options: OptimizeOptions, settings: Settings, base: FitConfig, images: ImageData, source: Loaded
) -> _Trainings:
    """Both trainings; where options say nothing, with what suits the network and the images.

    Raises:
        InputError: the network has to be trained, and the images have no labels.
    """
    optimizer = base.optimizer if options.optimizer or "optimizer" in settings.options else None
    both: dict[str, Any] = {"precision": base.precision, "keep_fp32": base.keep_fp32, "seed": base.seed}
    count, epochs = images.count("train"), options.epochs
    if epochs is None and options.training is not None:
        epochs = settings.options.get("epochs", suited_epochs(count, INITIAL_STEPS))
    handled = ("optimizer", "epochs", "precision", "learning_rate")
    adapting = initial_training(
        source.network,
        count,
        pretrained=source.pretrained,
        epochs=epochs or None,
        optimizer=optimizer,
        learning_rate=options.learning_rate or settings.options.get("learning_rate"),
        **both,
        **{name: value for name, value in settings.options.items() if name not in handled},
    )
    finetuning = fine_tuning(
        source.network,
        count,
        epochs=options.finetune,
        optimizer=optimizer,
        learning_rate=options.learning_rate,
        **both,
    )
    trains = not source.pretrained if epochs is None else epochs > 0
    if (trains or options.tune) and not images.labelled:
        why = "" if source.pretrained else "It starts from random weights, so it would have to be."
        raise InputError(
            "The network cannot be trained on images without labels.", why=why,
            fix="Give the network's trained weights with --weights FILE, or images with labels.",
        )  # fmt: skip
    return _Trainings(adapting, finetuning, trains)


def _run_config(
    options: OptimizeOptions, settings: Settings, budget: Budget, images: ImageData, network: Network, threads: int
) -> dict[str, Any]:
    """The facts that must be the same to resume a run: every option, and fingerprints of the model and the data."""
    resolved = {
        "model": name_of(options.model, full=True), "network": network.fingerprint(),
        "data": images.name, "fingerprint": images.fingerprint, "budget": asdict(budget),
        "hyperparameters": asdict(settings), "threads": threads,
        "input_size": None if options.input_size is None else list(parse_input_size(options.input_size)),
        "training": str(options.training) if isinstance(options.training, (str, Path)) else None,
    }  # fmt: skip
    return {**{name: value for name, value in plain(options).items() if name not in _RESOLVED}, **resolved}


def _metric(images: ImageData, network: Network) -> MetricInfo:
    task = get_task(network.task)
    return task.metric if images.labelled else task.agreement


def _with_judges(images: ImageData, budget: Budget, metric: MetricInfo, asked: bool) -> tuple[ImageData, str]:
    """The images with a test split where there are enough to set one aside, and a sentence on what judges.

    Args:
        images: The data as it is.
        budget: The limits.
        metric: What quality is.
        asked: Whether the user named the drop that is allowed.

    Raises:
        InputError: one image weighs more than the drop that was asked for.
    """
    count = images.count("validation")
    if images.judging == "test":
        text = f"Chosen on {count:,} validation images, judged on {images.count('test'):,} test images."
    elif count >= 2 * (enough := enough_to_judge(budget.max_drop or DEFAULT_DROP, metric)):
        images = images.with_test_split()
        text = (
            f"Half of the {count:,} validation images were set aside, and judge; no choice was made on them: there is "
            "no test split of its own."
        )
    else:
        text = (
            f"The same {count:,} validation images chose and judge: there is no test split, and setting a part of them "
            f"aside would leave too few (it takes {2 * enough:,})."
        )
    if asked:
        check_images(images.count(images.judging), budget, metric)
    return images, text


def _report_data(job: Job) -> None:
    data = job.data
    task = get_task(data.task)
    kind = f"{len(data.task.labels)} {task.label_word}" if task.has_classes else data.task.name
    kind = kind if data.labelled else "without labels"
    counts = f"{data.count('train')} images to train, {data.count('validation')} to "
    counts += f"choose, {data.count('test')} to judge" if data.judging == "test" else "judge"
    text = f"{data.name}: {counts}, {kind}."
    if data.unreadable:
        with job.run.file("unreadable.txt") as partial:
            Path(partial).write_text("".join(f"{path}: {reason}\n" for path, reason in sorted(data.unreadable.items())))
        text += f" {len(data.unreadable)} unreadable images are skipped, listed in unreadable.txt."
    job.progress.say(text)
    job.run.log(text)


def _adapt(job: Job, source: Loaded, options: OptimizeOptions, trainings: _Trainings) -> tuple[Adapted, Network]:
    """The network to compress: trained where it has to be or an option says so, and kept in the run folder."""
    config, checkpoint = trainings.adapting, job.run.path("work/adapt.checkpoint")

    def build() -> Adapted:
        for note in source.notes:
            job.progress.say(note)
        network, curve, notes = source.network, tuple[Epoch, ...](), source.notes
        if options.tune:
            network, curve, note = _search_training(job, options, config)
            notes += (note, *_casting(network, config))
        elif trainings.trains:
            job.progress.say(f"Training for {config.epochs} epochs.")
            network, curve = fit(network, job.data, config, progress=job.progress, checkpoint=checkpoint)
            notes += _casting(network, config)
        job.keep_network("adapted", network)
        checkpoint.unlink(missing_ok=True)  # not before: a full disk must not cost the training
        return Adapted(notes, curve)

    adapted = job.stage("adapt", Adapted, build, files=(job.network_file("adapted"),))
    return adapted, job.load_network("adapted")


def _search_training(job: Job, options: OptimizeOptions, config: FitConfig) -> tuple[Network, tuple[Epoch, ...], str]:
    """The best network of a search over trainings, its curve, and a note for the user."""
    job.progress.say(f"Training {options.tune} times for {config.epochs} epochs at most, each time otherwise.")
    tuned = tune(
        options.model, job.data, trials=options.tune, epochs=config.epochs, precision=config.precision,
        keep_fp32=config.keep_fp32, optimizer=config.optimizer, out=job.run.path("tune"), weights=options.weights,
        input_size=options.input_size, mean=options.mean, std=options.std, resize=options.resize,
        interpolation=options.interpolation, cache_memory=options.cache_memory, seed=job.seed, example=options.example,
        progress=job.progress,
    )  # fmt: skip
    if tuned.network is None:
        raise TrainingError("No training ended with a network.", fix="Look into tune/trials.csv in the run folder.")
    best = (tuned.best or {}).items()
    values = ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in best)
    note = f"The best of {sum(tuned.trials.values())} trainings had {values}."
    return Network.load(tuned.network), tuned.curve, note


def _casting(network: Network, config: FitConfig) -> tuple[str, ...]:
    """A note on the number types of the training; none where all layers were trained in 32 bits."""
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
    if job.data.judging == "test":
        decision, candidates = _judged_on_test(job, decision, candidates, network, budget, metric)
    file = decision.winner.file or ""
    return Result(
        verdict=decision.verdict,
        judged=decision.judged,
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
        guide=get_task(network.task).guide({name: shape[1:] for name, shape in output_shapes(network).items()}),
    )


def _judged_on_test(
    job: Job, decision: Decision, candidates: list[Candidate], network: Network, budget: Budget, metric: MetricInfo
) -> tuple[Decision, list[Candidate]]:
    """The decision with the verdict of the test split, and the candidates with what it says of the two it judged."""
    original, winner = candidates[0], decision.winner
    judgement = job.stage(
        f"test-{winner.name}",
        TestJudgement,
        lambda: judge_on_test(job, original, winner, network.input, network.task),
    )
    candidates = [
        replace(c, measurements={**c.measurements, "test_quality": judgement.quality[c.name]})
        if c.name in judgement.quality
        else c
        for c in candidates
    ]
    drop = 0.0 if judgement.drop is None else judgement.drop.value
    misses = {limit: over for limit, over in excess(winner, original, budget, metric).items() if limit != "max_drop"}
    if budget.max_drop is not None and drop > budget.max_drop:
        misses["max_drop"] = drop - budget.max_drop
    verdict, judged = judge(misses, judgement.drop, budget, metric, "test")
    best = decision.best_achievable if misses else {}
    return replace(decision, verdict=verdict, judged=judged, drop=drop, best_achievable=best), candidates


def _write(job: Job, result: Result) -> None:
    """Write the artifact, the reports and, last, `result.json`, which marks the run as finished."""
    winner = job.run.path(result.candidate(result.winner).file or "")
    folder = job.run.path("artifact")
    folder.mkdir(exist_ok=True)
    current_files = {part.name for part in job.runtime.files(winner)}
    for part in job.runtime.files(winner):
        with job.run.file(f"artifact/{part.name}") as partial:
            shutil.copyfile(part, partial)
    for stale in folder.iterdir():
        if stale.name not in current_files:
            stale.unlink()
    write_metadata(result, folder / "metadata.json")
    job.run.path(RECIPE_FILE).unlink(missing_ok=True)
    if steps := result.candidate(result.winner).recipe:
        with job.run.file(RECIPE_FILE) as partial:
            partial.write_text(recipe_text(steps))
    job.run.log(f"{result.verdict}: {result.winner}")
    write_all(result, job.run.folder)
    job.run.result(result)
