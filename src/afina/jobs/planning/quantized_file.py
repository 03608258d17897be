"""The record of a quantized file: its quality, its bytes, its time, and warnings for the user."""

from dataclasses import replace

from afina.errors import InputError
from afina.graph.network import Network
from afina.jobs.common.drops import drop_note
from afina.jobs.common.exporter import Answers, Exporter
from afina.jobs.common.subject import Subject
from afina.jobs.planning.placement import NOTICEABLE
from afina.runtimes import Runtime
from afina.tasks import get_task
from afina.techniques.quantize.config import bits_of
from afina.types import Budget, Record
from afina.units import format_details, format_size, format_time

# Without a limit, a loss of this share of the quality is not what a user wants; slower by this share is no noise.
_COLLAPSE, _SLOWER = 0.1, 0.03


def check_kept(record: Record, limits: Budget) -> None:
    """Check size and latency of the file that keeps the quality: precision that was given back costs bytes and time.

    Args:
        record: The record, with `file` (bytes) and `latency` (seconds) of the file.
        limits: The limits on both; None where there is none.

    Raises:
        InputError: the file is beyond one of them.
    """
    over, size, seconds = [], record.after["file"], record.after["latency"]
    if limits.size is not None and size > limits.size:
        over.append(f"has {format_size(size)}, more than {format_size(limits.size)}")
    if limits.latency is not None and seconds > limits.latency:
        over.append(f"takes {format_time(seconds)}, more than {format_time(limits.latency)}")
    if over:
        raise InputError(
            "The limits cannot be kept together by quantization alone.",
            why=f"The file that keeps --max-drop {' and '.join(over)}.",
            fix="Give a larger limit, train with --qat, or let afina optimize look for a combination.",
        )


def with_answers(
    record: Record,
    before: Answers,
    after: Answers,
    network: Network,
    subject: Subject,
    exporter: Exporter,
    max_drop: float | None,
) -> Record:
    """The record with what the files are and answer on the images that judge, and how sure the drop is.

    Args:
        record: The record of the quantization.
        before: The answers of the original's file on the validation images.
        after: Those of the new file.
        network: The quantized network, which the file must answer as.
        subject: The original and the images.
        exporter: Makes and judges files.
        max_drop: The drop that is allowed; None for no limit.
    """
    data, task = subject.data, get_task(subject.network.task)
    assert data is not None
    agreement, words = after.agreement(network, data)
    if data.judging == "test":
        before = exporter.judge(subject.network, data, subject.progress, split="test")
        after = exporter.judge(network, data, subject.progress, before.outputs, split="test")
    qualities = " to ".join(format_details(a.quality) for a in (before, after))
    notes = (
        f"{after.quality.unit} of the file on {after.quality.n} {data.judging} images: {qualities}",
        drop_note(before.outputs, after.outputs, data, task, network.input, data.judging, max_drop),
        f"File: {format_size(before.size)} to {format_size(after.size)}, {before.size / after.size:.1f} times smaller.",
        f"The file and the simulation {words}.",
    )
    return replace(
        record,
        before={**record.before, "quality": before.quality.value, "file": before.size},
        after={**record.after, "quality": after.quality.value, "file": after.size, task.agreement.name: agreement},
        notes=(*record.notes, *_widened(record, exporter.runtime), *notes),
    )


def with_times(record: Record, original: Network, network: Network, exporter: Exporter) -> Record:
    """The record with the time of both files, measured in turns."""
    times = exporter.latencies({"before": original, "after": network})
    before, after = times["before"].value, times["after"].value
    note = f"Time of one batch on {exporter.runtime.name}: {format_time(before)} to {format_time(after)}."
    return replace(
        record,
        before={**record.before, "latency": before},
        after={**record.after, "latency": after},
        notes=(*record.notes, note),
    )


def is_slower(record: Record) -> bool:
    """Whether the last timing, in turns with the original, calls the file slower by more than timings are fine."""
    return record.after["latency"] > record.before["latency"] * (1 + NOTICEABLE)


def not_confirmed(record: Record) -> str:
    """A note on a placement that its own timing called faster, and the last timing does not."""
    before, after = (format_time(record.before["latency"]), format_time(record.after["latency"]))
    return (
        f"Integers were faster when placements were timed, and not in the last timing ({before} to {after}): all "
        "layers compute in float, and store their weights as planned."
    )


def cautions(record: Record, subject: Subject, *, guarded: bool) -> tuple[str, ...]:
    """Warnings where quality collapses or the file is slower, each with what to do about it.

    Args:
        record: The record, with `quality` and `latency` of both files.
        subject: The network that it is about.
        guarded: Whether a limit on the loss of quality was given, and kept.
    """
    warnings = []
    was, quality = record.before["quality"], record.after["quality"]
    lost = get_task(subject.network.task).metric.lost(was, quality)
    if not guarded and 0 < _COLLAPSE * abs(was) < lost:
        warnings.append(
            "Warning: more than a tenth of the quality is lost. Give --max-drop, which gives precision back to the "
            "layers to blame; more bits; or --qat."
        )
    if record.after["latency"] > record.before["latency"] * (1 + _SLOWER):
        warnings.append(
            "Warning: the file is slower than that of the original. With --plan auto, what is faster in float stays so."
        )
    return tuple(warnings)


def _widened(record: Record, runtime: Runtime) -> tuple[str, ...]:
    """A note for each type of weights that the runtime's file does not have, and stores in a wider one."""
    notes = []
    for name in sorted({str(layer["precision"]).split(" x ")[0] for layer in record.layers.values()}):
        bits = bits_of(name) if name.startswith("int") else 8
        stored = min((kind for kind in runtime.stored_bits if kind >= bits), default=bits)
        if stored != bits:
            notes.append(f"{name} weights are stored in {stored} bits: {runtime.name} has no narrower type for them.")
    return tuple(notes)
