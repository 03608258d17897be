"""The outcome of `afina optimize`: the candidates that were tried, and `result.json`."""

from dataclasses import dataclass, field
from typing import Any, Literal

from afina.types.measures import Budget, JudgedDrop, Measurement, MetricInfo, Verdict
from afina.types.network import InputSpec, OutputGuide, TaskSpec
from afina.types.records import Epoch, LayerRow, Record, Step


@dataclass(frozen=True)
class Candidate:
    """One network that was tried, exported and judged.

    Attributes:
        name: Short and unique in the run: `original`, `int8`, `prune-0.50-int8`.
        recipe: The steps that led to it, in order, with options as `afina run` takes them.
        status: `judged`, or `rejected` with a `reason`.
        reason: Why it was rejected; empty where it was not.
        file: The exported file, relative to the run folder; None where there is none.
        measurements: `quality`, `size`, `latency`, `peak_memory`, `parameters`, `macs`; `drop`, what it loses against
            the original with the paired error; `test_quality` of the original and the winner, where a test split
            judges.
        parity: Largest relative difference between the file's outputs and the network's; None if not compared.
        layers: The per-layer table.
        curve: Training curve of the candidate, where it was trained.
        records: What each technique did.
    """

    name: str
    recipe: tuple[Step, ...]
    status: Literal["judged", "rejected"]
    reason: str = ""
    file: str | None = None
    measurements: dict[str, Measurement] = field(default_factory=dict)
    parity: float | None = None
    layers: tuple[LayerRow, ...] = ()
    curve: tuple[Epoch, ...] = ()
    records: tuple[Record, ...] = ()


@dataclass(frozen=True)
class Result:
    """`result.json`: the outcome of `afina optimize`.

    Attributes:
        schema: Version of this structure.
        verdict: `fits`, `misses`, or either `within the error`, where the images are too few to be sure.
        metric: The metric that `quality` and `drop` are in.
        budget: The limits that were asked for.
        drop: Quality of the original less quality of the winner, in the direction that hurts; negative is a gain.
        original: Name of the original among the candidates.
        winner: Name of the best candidate; with `misses`, of the nearest.
        best_achievable: With `misses`, the best value reached for each limit that was set, by candidate name.
        machine: What it was measured on: processor, threads, system, versions.
        runtime: The target runtime.
        model: What was optimized, as the user named it.
        data: What it was optimized on, as the user named it.
        task: Task and labels.
        input: Preprocessing.
        notes: What the user should know (a new head, weights that could not be downloaded, ...).
        candidates: All of them, rejected ones too.
        artifact: The winner's file, relative to the run folder.
        out: The run folder, as the user named it.
        usage: Lines of Python, as the runtime gives them, that load the artifact into `model` and turn a preprocessed
            image `x` into `outputs` by name; empty where the runtime does not say, and in results of 0.1.0.
        judged: How sure the drop is; None where the winner is the original, and in older results.
        guide: What the outputs mean.
    """

    verdict: Verdict
    metric: MetricInfo
    budget: Budget
    drop: float
    original: str
    winner: str
    machine: dict[str, Any]
    runtime: str
    model: str
    data: str
    task: TaskSpec
    input: InputSpec
    candidates: tuple[Candidate, ...]
    best_achievable: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    artifact: str = ""
    out: str = ""
    usage: str = ""
    judged: JudgedDrop | None = None
    guide: OutputGuide = field(default_factory=OutputGuide)
    schema: str = "afina/result/1"

    @property
    def fits(self) -> bool:
        """Whether the winner keeps every limit, surely or within the error."""
        return self.verdict.startswith("fits")

    @property
    def is_sure(self) -> bool:
        """Whether the verdict holds with `CONFIDENCE`: more images would hardly change it."""
        return not self.verdict.endswith("within the error")

    def candidate(self, name: str) -> Candidate:
        """The candidate of that name."""
        return next(c for c in self.candidates if c.name == name)
