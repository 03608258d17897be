"""From a network to a judged candidate: export it, compare the file with the network, measure the file."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from afina.devices import measure_latency, measure_memory
from afina.errors import AfinaError
from afina.graph.cost import cost_of, layer_rows
from afina.graph.network import Network
from afina.jobs.candidates.stages import Job
from afina.jobs.candidates.variants import ORIGINAL
from afina.runtimes import check_parity, measure_drop, measure_quality, outputs_of_file
from afina.tasks import get_task
from afina.types import Candidate, Epoch, InputSpec, Measurement, Record, Step, TaskSpec

ORIGINAL_OUTPUTS = "work/original-outputs.npz"


@dataclass(frozen=True)
class Draft:
    """A candidate before it is judged.

    Attributes:
        name: Name of the candidate.
        network: The network to export.
        recipe: The steps that led to it.
        records: What each technique did.
        curve: Training curve.
    """

    name: str
    network: Network
    recipe: tuple[Step, ...] = ()
    records: tuple[Record, ...] = ()
    curve: tuple[Epoch, ...] = ()


@dataclass(frozen=True)
class TestJudgement:
    """What the test split says.

    Attributes:
        quality: The quality of the original and of the winner, by name.
        drop: What the winner loses; None where it is the original.
    """

    quality: dict[str, Measurement]
    drop: Measurement | None


def judge(job: Job, draft: Draft, original: Network) -> Candidate:
    """Export and measure everything but latency, which `add_latency` measures for all candidates together.

    A candidate whose file cannot be made or disagrees with its network is rejected with the reason; the original
    must succeed, since everything is compared with it.
    """
    job.progress.say(f"Judging {draft.name} on {job.runtime.name}.")
    file = f"candidates/{draft.name}/model{job.runtime.suffix}"
    try:
        path = job.runtime.export(draft.network, job.run.path(file))
        difference = check_parity(draft.network, path, job.data, threads=job.threads)
        measurements = _measure(job, draft, path)
    except AfinaError as error:
        if draft.name == ORIGINAL:
            raise
        return rejected(draft.name, draft.recipe, error)
    rows = layer_rows(draft.network, original if draft.network is not original else None)
    return Candidate(
        name=draft.name,
        recipe=draft.recipe,
        status="judged",
        file=file,
        measurements=measurements,
        parity=difference,
        layers=rows,
        curve=draft.curve,
        records=draft.records,
    )


def rejected(name: str, recipe: tuple[Step, ...], error: AfinaError) -> Candidate:
    """A candidate that could not be made, with the reason."""
    return Candidate(name=name, recipe=recipe, status="rejected", reason=" ".join(str(error).split("\n")[:2]))


def add_latency(job: Job, candidates: list[Candidate], shape: tuple[int, int, int]) -> list[Candidate]:
    """The same candidates with their latencies, measured interleaved in one fresh process."""
    files = {c.name: job.run.path(c.file) for c in candidates if c.status == "judged" and c.file}
    job.progress.say(f"Timing {len(files)} files, interleaved, {job.threads} threads, batch {job.batch}.")
    times = measure_latency(files, shape, threads=job.threads, batch=job.batch)
    return [
        replace(c, measurements={**c.measurements, "latency": times[c.name]}) if c.name in times else c
        for c in candidates
    ]


def judge_on_test(job: Job, original: Candidate, winner: Candidate, input: InputSpec, task: TaskSpec) -> TestJudgement:
    """The files of the original and of the winner on the images of the test split, which no choice was made on."""
    job.progress.say(f"Judging {winner.name} beside the original on {job.data.count('test')} test images.")
    judge_of, original_outputs = get_task(task), dict[str, np.ndarray]()
    measured, drop = dict[str, Measurement](), None
    for candidate in (original, winner):
        path = job.run.path(candidate.file or "")
        outputs = outputs_of_file(path, job.data, input, threads=job.threads, split="test", progress=job.progress)
        original_outputs = original_outputs or outputs
        quality = measure_quality(
            outputs, job.data, judge_of, input, reference=original_outputs, runtime=job.runtime, split="test"
        )
        measured[candidate.name] = quality
        if candidate.name != original.name:
            drop = measure_drop(original_outputs, outputs, job.data, judge_of, input, split="test")
    return TestJudgement(measured, drop)


def file_size(job: Job, path: Path) -> Measurement:
    """Bytes of all the files that belong to an artifact."""
    total = sum(part.stat().st_size for part in job.runtime.files(path))
    return Measurement(total, "B", "measured", where="bytes on disk")


def _measure(job: Job, draft: Draft, path: Path) -> dict[str, Measurement]:
    network, task = draft.network, get_task(draft.network.task)
    outputs = outputs_of_file(path, job.data, network.input, threads=job.threads, progress=job.progress)
    if draft.name == ORIGINAL:
        job.keep_arrays(ORIGINAL_OUTPUTS, outputs)
    first = job.arrays(ORIGINAL_OUTPUTS)
    quality = measure_quality(outputs, job.data, task, network.input, reference=first, runtime=job.runtime)
    measured = {"quality": quality}
    if draft.name != ORIGINAL:
        measured["drop"] = measure_drop(first, outputs, job.data, task, network.input)
    cost = cost_of(network)
    return {
        **measured,
        "size": file_size(job, path),
        "peak_memory": measure_memory(path, network.input.shape, threads=job.threads),
        "parameters": Measurement(cost.parameters, "1", "computed", where="the network"),
        "macs": Measurement(cost.macs, "1", "computed", where="the network, one image"),
    }
