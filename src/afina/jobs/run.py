"""`afina run`: a recipe applied to a model, and the file that comes out of it judged."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from afina.data import ImageData
from afina.errors import InputError
from afina.graph.network import Network
from afina.jobs.common.chance import alarm
from afina.jobs.common.drops import drop_note
from afina.jobs.common.exporter import Exporter
from afina.jobs.common.model_source import check_source, name_of
from afina.jobs.common.recipe import RECIPE_FILE, STEPS, exact_step, read_recipe, recipe_text
from afina.jobs.common.subject import context_of, load_for, open_images
from afina.jobs.distill import distill, fit_config
from afina.jobs.factorize import factorize, factorize_config
from afina.jobs.options.declaration import check_values, command, command_line, declared
from afina.jobs.options.run import RunOptions
from afina.jobs.prune import prune, prune_config
from afina.jobs.quantize import quantize, quantize_config
from afina.jobs.sparsify import sparsify, sparsify_config
from afina.progress import Progress
from afina.store.files import check_folder
from afina.store.result import from_plain, to_plain
from afina.store.run import Run
from afina.tasks import get_task
from afina.techniques import replay
from afina.types import Measurement, Record, Step
from afina.units import format_measurement, format_value

_JOBS: Mapping[str, Callable[..., tuple[Network, Record]]] = {
    "prune": prune,
    "factorize": factorize,
    "sparsify": sparsify,
    "distill": distill,
    "quantize": quantize,
}
# Calibration images of a step that is done again by its configuration.
_IMAGES = 1024
# For each command the configuration of its technique, which raises `InputError` for options that are out of range.
_CONFIGS: Mapping[str, Callable[[Any, Exporter], object]] = {
    "prune": lambda options, _: prune_config(options),
    "factorize": lambda options, _: factorize_config(options),
    "sparsify": lambda options, _: sparsify_config(options),
    "distill": lambda options, _: fit_config(options),
    "quantize": lambda options, exporter: quantize_config(options, exporter.runtime),
}


@dataclass(frozen=True)
class RecipeResult:
    """The network and the file that a recipe made.

    Attributes:
        network: The `.pt2` file.
        file: The exported file for the runtime.
        records: What each step did.
        quality: Quality of the exported file, by the task's metric.
        original: Quality of the file of the model as it was, by the same metric.
        size: Bytes of the exported file.
        original_size: Bytes of the file of the model as it was.
        split: The split that both files were judged on: `test`, or `validation` where there is no other.
        drop: What the file loses against the model as it was, and how sure that is, in words.
        notes: What the user should know of the model as it was.
    """

    network: str
    file: str
    records: tuple[Record, ...]
    quality: Measurement
    original: Measurement
    size: float
    original_size: float
    split: str
    drop: str
    notes: tuple[str, ...] = ()


def _run(options: RunOptions) -> RecipeResult:
    """Apply a recipe to a model; the result is judged as the file that the runtime will run.

    The original teaches every training in it. Finished steps are kept in the run folder: the same call resumes, and a
    recipe whose later steps were changed goes on from the last step that is the same.

    Raises:
        InputError: an unknown step or option, an order that is not legal, or an option that is out of range.

    Example:
        >>> import afina
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 10))
        >>> recipe = [{"prune": {"macs": "50%", "images": 128}}, {"sparsify": {"sparsity": "80%", "images": 128}}]
        >>> result = afina.run(recipe, model, "digits", out="runs/recipe")
        >>> [record.step.technique for record in result.records], result.size < 0.6 * result.original_size
        (['prune', 'sparsify'], True)
    """
    steps, progress = read_recipe(options.recipe), options.progress or Progress()
    if options.out is not None:
        check_folder(Path(options.out), "--out")
    exporter = Exporter.of(options)
    _check_steps(steps, exporter)
    check_source(options.model, options.weights, options.input_size)
    images = open_images(options.data, options, unlabelled=True)
    loaded = load_for(images, options.model, options, progress, trains=False)
    original = loaded.network
    name = Path(options.recipe).stem if isinstance(options.recipe, (str, Path)) else "recipe"
    folder = Path(options.out) if options.out is not None else Path("runs") / f"{name}-{name_of(options.model)}"
    config = {
        "model": name_of(options.model, full=True), "weights": options.weights, "network": original.fingerprint(),
        "data": images.fingerprint, "runtime": options.runtime, "seed": options.seed,
    }  # fmt: skip
    with Run.open(folder, config, argv=command_line("run", replace(options, out=folder))) as run_folder:
        job = _Job(run_folder, steps, original, images, exporter, options.seed, progress)
        notes = alarm(original, images, progress) if loaded.pretrained else ()
        return job.finish(*job.apply(), notes)


run = command(RunOptions, _run)


@dataclass(frozen=True)
class _Job:
    run: Run
    steps: tuple[Step, ...]
    original: Network
    data: ImageData
    exporter: Exporter
    seed: int
    progress: Progress

    def apply(self) -> tuple[Network, tuple[Record, ...]]:
        """The network after all steps, and what each did."""
        network, records, key = self.original, list[Record](), ""
        for number, step in enumerate(self.steps, 1):
            key = _digest(key, step)
            file, stage = f"work/{number}-{step.technique}-{key}.pt2", f"step {number} {key}"
            finished = self.run.done(stage)
            if finished is None:
                self.progress.say(f"Step {number} of {len(self.steps)}: {step.technique}.")
                network, record = self._apply(step, network, records)
                for note in record.notes:
                    self.progress.say(note)
                network.save(self.run.path(file))
                self.run.finish(stage, {"record": to_plain(record)}, files=[file])
            else:
                network, record = Network.load(self.run.path(file)), from_plain(Record, finished["record"])
            records.append(record)
        return network, tuple(records)

    def _apply(self, step: Step, network: Network, before: Sequence[Record]) -> tuple[Network, Record]:
        exact = exact_step(step)
        if exact is not None:
            return replay(exact, network, context_of(self.data, network, _IMAGES, self.seed, self.progress))
        if step.technique == "distill" and any(record.step.technique == "sparsify" for record in before):
            step = replace(step, config={"keep_zeros": True, **step.config})
        arguments = _options(step, network, self.original, self.data, self.exporter, self.seed, self.progress)
        outcome: tuple[Network, Record] = _JOBS[step.technique](**arguments)
        return outcome

    def finish(self, network: Network, records: tuple[Record, ...], notes: tuple[str, ...]) -> RecipeResult:
        """Write the network and its file into the run folder, and judge the file beside the original's."""
        runtime = self.exporter.runtime
        with self.run.file("network.pt2") as path:
            network.save(path)
        with self.run.file(f"model{runtime.suffix}") as path:
            runtime.export(network, path)
            split = self.data.judging
            first = self.exporter.judge(self.original, self.data, self.progress, split=split)
            after = self.exporter.judge_file(path, network, self.data, self.progress, first.outputs, split)
        with self.run.file(RECIPE_FILE) as path:
            path.write_text(recipe_text(self.steps))
        result = RecipeResult(
            str(self.run.folder / "network.pt2"), str(self.run.folder / f"model{runtime.suffix}"), records,
            after.quality, first.quality, after.size, first.size, split,
            drop_note(first.outputs, after.outputs, self.data, get_task(network.task), network.input, split), notes,
        )  # fmt: skip
        with self.run.file("metadata.json") as path:
            path.write_text(json.dumps(to_plain(result), indent=2))
        return result


def _options(
    step: Step, network: Any, original: Any, data: Any, exporter: Exporter, seed: int, progress: Progress | None
) -> dict[str, Any]:
    """All options of a step: those that it says, and those that the whole recipe says and its command has."""
    whole = {"data": data, "runtime": exporter.runtime.name, "threads": exporter.threads, "seed": seed,
             "progress": progress}  # fmt: skip
    whole |= {"teacher": original, **({"student": network} if step.technique == "distill" else {"model": network})}
    names = {each.name for each in declared(STEPS[step.technique])}
    return {**{name: value for name, value in whole.items() if name in names}, **step.config}


def _check_steps(steps: Sequence[Step], exporter: Exporter) -> None:
    """Raise `InputError` for wrong options of any step before the first step, which may take hours, begins."""
    for number, step in enumerate(steps, 1):
        if exact_step(step) is not None:
            continue
        try:
            # No job runs here: the model and the data only have to be there.
            options = STEPS[step.technique](**_options(step, "", "", "", exporter, 0, None))
            check_values(options)
            _CONFIGS[step.technique](options, exporter)
        except InputError as error:
            raise InputError(f"Step {number} ({step.technique}): {error.what}", error.why, error.fix) from error


def describe(result: RecipeResult) -> str:
    """A result in words."""
    lines = [f"{number}. {record.step.technique}: {_short(record)}" for number, record in enumerate(result.records, 1)]
    before, after = (format_measurement(m) for m in (result.original, result.quality))
    lines.append(f"{result.quality.unit} of the file on {result.quality.n} {result.split} images: {before} to {after}")
    lines.append(result.drop)
    sizes = " to ".join(format_value(size, "B") for size in (result.original_size, result.size))
    lines.append(f"File: {sizes}, {result.original_size / result.size:.1f} times smaller.")
    return "\n".join([*lines, *result.notes, f"The file is {result.file}, the network {result.network}."])


def _short(record: Record) -> str:
    changes = [f"{len(record.touched)} layers"]
    for key, name in (("parameters", "parameters"), ("macs", "MACs"), ("nonzero", "weights"), ("file", "file")):
        if key in record.after and record.after[key] < record.before[key]:
            changes.append(f"{record.after[key] / record.before[key]:.1%} of the {name}")
    return ", ".join(changes)


def _digest(before: str, step: Step) -> str:
    """A key of a step after all steps before it, which `before` is the key of: any change gives another key."""
    text = json.dumps([before, asdict(step)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
