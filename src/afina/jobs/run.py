"""`afina run`: a recipe, which is ordered steps as plain data, applied to a model.

Which orders are legal follows from what each step requires of the network and what it leaves: `float-weights` (nothing
is in integers yet) and `dense-weights` (zeros that were made would not be filled again).
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from afina.data import ImageData, open_data
from afina.devices.machine import available_cores
from afina.errors import InputError, did_you_mean
from afina.graph.network import Network
from afina.jobs.common.exporter import Exporter
from afina.jobs.common.model_source import ModelSource, check_source, name_of
from afina.jobs.common.subject import UNOPENED, OptionsChecked, load_for
from afina.jobs.distill import distill
from afina.jobs.factorize import factorize
from afina.jobs.prune import prune
from afina.jobs.quantize import quantize
from afina.jobs.sparsify import sparsify
from afina.progress import Progress
from afina.runtimes import get_runtime
from afina.store.result import from_plain, to_plain
from afina.store.run import Run
from afina.types import Measurement, Record, Step
from afina.units import format_value

FLOAT, DENSE = "float-weights", "dense-weights"
# What the recipe as a whole says, or what a step is given by it: these are no options of a step.
_GIVEN = frozenset(
    "model data teacher student unlabelled runtime threads batch weights checkpoint input_size seed example progress "
    "save_plan".split()
)
RECIPE_FILE = "recipe.yaml"


@dataclass(frozen=True)
class Kind:
    """One kind of step.

    Attributes:
        job: What does it.
        requires: Traits of the network that it needs.
        takes: Traits that the network has no more after it.
        own: Options of the job that are the step's although the recipe gives options of that name to other jobs.
    """

    job: Callable[..., tuple[Network, Record]]
    requires: tuple[str, ...]
    takes: tuple[str, ...] = ()
    own: tuple[str, ...] = ()

    @property
    def options(self) -> tuple[str, ...]:
        """The names of a step's options."""
        named = inspect.signature(self.job).parameters.values()
        return tuple(p.name for p in named if p.kind is p.KEYWORD_ONLY and (p.name in self.own or p.name not in _GIVEN))

    def read(self, option: str, value: Any) -> Any:
        """An option's value, of the type that the job takes. Raises `pydantic.ValidationError`."""
        return TypeAdapter[Any](get_type_hints(self.job)[option]).validate_python(value)


KINDS = {
    "prune": Kind(prune, (FLOAT, DENSE)),
    "factorize": Kind(factorize, (FLOAT, DENSE)),
    "sparsify": Kind(sparsify, (FLOAT,), takes=(DENSE,)),
    "distill": Kind(distill, (FLOAT,)),
    "quantize": Kind(quantize, (FLOAT,), takes=(FLOAT,), own=("weights",)),
}


def read_recipe(source: str | Path | Mapping[str, Any] | Sequence[Any]) -> tuple[Step, ...]:
    """The steps of a YAML or JSON file, or of what such a file holds; checked.

    Raises:
        InputError: the file cannot be read, a step or an option is not known, or the order is not legal.
    """
    content = _content(Path(source)) if isinstance(source, (str, Path)) else source
    if isinstance(content, Mapping):
        _check_keys("The recipe", content, ("steps",))
        content = content.get("steps")
    if not isinstance(content, (list, tuple)) or not content:
        raise InputError("A recipe is a list of steps.", fix=_EXAMPLE)
    steps = tuple(_step(number, entry) for number, entry in enumerate(content, 1))
    check_order(steps)
    return steps


def recipe_text(steps: Sequence[Step]) -> str:
    """Steps as YAML, which `read_recipe` takes."""
    return yaml.safe_dump({"steps": [{step.technique: to_plain(step.config)} for step in steps]}, sort_keys=False)


@dataclass(frozen=True)
class RecipeResult:
    """What a recipe made.

    Attributes:
        network: The `.pt2` file.
        file: The exported file for the runtime.
        records: What each step did.
        quality: Of the exported file, and of the original's, by the task's metric.
        original: Likewise of the model as it was.
        size: Bytes of the file.
        original_size: Of the original's.
    """

    network: str
    file: str
    records: tuple[Record, ...]
    quality: Measurement
    original: Measurement
    size: float
    original_size: float


def run(
    recipe: str | Path | Mapping[str, Any] | Sequence[Any],
    model: ModelSource,
    data: Any,
    *,
    out: str | Path | None = None,
    runtime: str = "onnxruntime",
    threads: int | None = None,
    weights: str | None = None,
    input_size: str | tuple[int, int] | None = None,
    seed: int = 0,
    example: Any = None,
    progress: Progress | None = None,
) -> RecipeResult:
    """Apply a recipe to a model; the result is judged as the file that the runtime will run.

    The original teaches every training in it. Finished steps are kept in the run folder: the same call resumes, and a
    recipe whose later steps were changed goes on from the last step that is the same.

    Args:
        recipe: A YAML or JSON file, or its content: `[{"prune": {"macs": "50%"}}, {"quantize": {"weights": "int4"}}]`.
        model: As in `optimize`.
        data: As in `optimize`.
        out: The run folder; `runs/RECIPE-MODEL` by default.
        runtime: What will run the file: `onnxruntime` or `openvino`.
        threads: Threads of the runtime; all cores by default.
        weights: `pretrained`, `random` or a file of weights.
        input_size: Height and width of the input, where the model's own is wrong.
        seed: Seed of every random choice.
        example: For an `nn.Module`: a tensor of the input's shape, or an `InputSpec`.
        progress: What the user sees.

    Raises:
        InputError: an unknown step or option, an order that is not legal, or an option that is out of range.
    """
    steps, progress = read_recipe(recipe), progress or Progress()
    exporter = Exporter(get_runtime(runtime), threads or available_cores())
    _check_values(steps, exporter)
    check_source(model, weights, input_size)
    images = open_data(data, seed=seed, progress=progress)
    original = load_for(images, model, weights, input_size, example, seed, progress).network
    name = Path(recipe).stem if isinstance(recipe, (str, Path)) else "recipe"
    folder = Path(out) if out is not None else Path("runs") / f"{name}-{name_of(model)}"
    config = {"model": name_of(model, full=True), "data": images.fingerprint, "runtime": runtime, "seed": seed}
    with Run.open(folder, config, argv=f"afina run {recipe} {model} --data {data} --out {folder}") as kept:
        job = _Job(kept, steps, original, images, exporter, seed, progress)
        return job.finish(*job.apply())


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
            known = self.run.done(stage)
            if known is None:
                self.progress.say(f"Step {number} of {len(self.steps)}: {step.technique}.")
                network, record = self._apply(step, network, records)
                for note in record.notes:
                    self.progress.say(note)
                network.save(self.run.path(file))
                self.run.finish(stage, {"record": to_plain(record)}, files=[file])
            else:
                network, record = Network.load(self.run.path(file)), from_plain(Record, known["record"])
            records.append(record)
        return network, tuple(records)

    def _apply(self, step: Step, network: Network, before: Sequence[Record]) -> tuple[Network, Record]:
        call = _bound(step, network, self.original, self.exporter)
        if step.technique == "distill" and any(record.step.technique == "sparsify" for record in before):
            call = partial(call, **{"keep_zeros": True, **step.config})
        done: tuple[Network, Record] = call(data=self.data, seed=self.seed, progress=self.progress)
        return done

    def finish(self, network: Network, records: tuple[Record, ...]) -> RecipeResult:
        """The files, and what they answer."""
        runtime = self.exporter.runtime
        with self.run.file("network.pt2") as path:
            network.save(path)
        with self.run.file(f"model{runtime.suffix}") as path:
            runtime.export(network, path)
            first = self.exporter.judge(self.original, self.data, self.progress)
            after = self.exporter.judge_file(path, network, self.data, self.progress, first.outputs)
        with self.run.file(RECIPE_FILE) as path:
            path.write_text(recipe_text(self.steps))
        result = RecipeResult(
            str(self.run.folder / "network.pt2"), str(self.run.folder / f"model{runtime.suffix}"), records,
            after.quality, first.quality, after.size, first.size,
        )  # fmt: skip
        with self.run.file("metadata.json") as path:
            path.write_text(json.dumps(to_plain(result), indent=2))
        return result


def _bound(step: Step, network: Network, original: Network, exporter: Exporter) -> Callable[..., Any]:
    """The job of a step with its options, for a network that the original teaches."""
    job = KINDS[step.technique].job
    call = partial(distill, original, network) if job is distill else partial(job, network, teacher=original)
    if "runtime" in inspect.signature(job).parameters:
        call = partial(call, runtime=exporter.runtime.name, threads=exporter.threads)
    return partial(call, **step.config)


def _check_values(steps: Sequence[Step], exporter: Exporter) -> None:
    """Raise now what a step would raise, when its turn comes, for options that are wrong in themselves."""
    for number, step in enumerate(steps, 1):
        try:
            _bound(step, UNOPENED, UNOPENED, exporter)(data=UNOPENED)
        except OptionsChecked:
            continue
        except InputError as error:
            raise InputError(f"Step {number} ({step.technique}): {error.what}", error.why, error.fix) from error


def describe(result: RecipeResult) -> str:
    """A result in words."""
    lines = [f"{number}. {record.step.technique}: {_short(record)}" for number, record in enumerate(result.records, 1)]
    before, after = (format_value(m.value, m.unit) for m in (result.original, result.quality))
    lines.append(f"{result.quality.unit} of the file on {result.quality.n} validation images: {before} to {after}")
    sizes = " to ".join(format_value(size, "B") for size in (result.original_size, result.size))
    lines.append(f"File: {sizes}, {result.original_size / result.size:.1f} times smaller.")
    return "\n".join([*lines, f"The file is {result.file}, the network {result.network}."])


def _short(record: Record) -> str:
    told = [f"{len(record.touched)} layers"]
    for key, name in (("parameters", "parameters"), ("macs", "MACs"), ("nonzero", "weights"), ("file", "file")):
        if key in record.after and record.after[key] < record.before[key]:
            told.append(f"{record.after[key] / record.before[key]:.1%} of the {name}")
    return ", ".join(told)


def check_order(steps: Sequence[Step]) -> None:
    """Raise `InputError` where a step requires what one before it has taken away."""
    taken: dict[str, tuple[int, str]] = {}
    for number, step in enumerate(steps, 1):
        for trait in KINDS[step.technique].requires:
            if trait in taken:
                before, culprit = taken[trait]
                raise InputError(
                    f"Step {number} ({step.technique}) requires {trait}, which step {before} ({culprit}) takes away.",
                    why=_MEANING[trait],
                    fix=f"Put {step.technique} before {culprit}.",
                )
        for trait in KINDS[step.technique].takes:
            taken.setdefault(trait, (number, step.technique))


_MEANING = {
    FLOAT: "Weights in integers cannot be changed any more; training with simulated integers is `quantize: {qat: N}`.",
    DENSE: "It solves for new weights, which would fill the zeros.",
}
_EXAMPLE = "Write, for example:\nsteps:\n  - prune: {macs: 50%, finetune: 1}\n  - quantize: {weights: int8}"


def _content(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"The recipe {path} cannot be read.", why=str(error).splitlines()[0], fix=_EXAMPLE) from error


def _step(number: int, entry: Any) -> Step:
    if isinstance(entry, str):
        entry = {entry: {}}
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise InputError(f"Step {number} of the recipe is not one step with its options: {entry!r}.", fix=_EXAMPLE)
    (name, options), *_ = entry.items()
    if name not in KINDS:
        raise InputError(f"Step {number}: there is no step {name!r}.", fix=did_you_mean(str(name), KINDS))
    if not isinstance(options or {}, Mapping):
        raise InputError(f"Step {number} ({name}): its options are {options!r}.", fix=_EXAMPLE)
    where, kind = f"Step {number} ({name})", KINDS[name]
    _check_keys(where, options or {}, kind.options)
    return Step(name, {key: _value(where, kind, key, value) for key, value in (options or {}).items()})


def _value(where: str, kind: Kind, option: str, value: Any) -> Any:
    try:
        return kind.read(option, value)
    except ValidationError as error:
        why = "; or ".join(dict.fromkeys(each["msg"] for each in error.errors()))
        raise InputError(f"{where}: {option} is {value!r}.", why=f"{why}.") from error


def _check_keys(where: str, given: Mapping[str, Any], known: Any) -> None:
    for key in given:
        if key not in known:
            raise InputError(f"{where} has no option {key!r}.", fix=did_you_mean(str(key), known))


def _digest(before: str, step: Step) -> str:
    text = json.dumps([before, asdict(step)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
