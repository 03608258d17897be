"""What an exported file answers over a set of images, and the quality of these answers in the task's metric."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from afina.errors import InputError, first_lines
from afina.progress import Progress
from afina.runtimes.base import Runtime, Session
from afina.runtimes.table import runtime_of
from afina.types import InputSpec, Measurement

if TYPE_CHECKING:
    from afina.data import ImageData
    from afina.tasks import Task


def outputs_of_file(
    path: Path,
    data: "ImageData",
    input: InputSpec,
    *,
    threads: int,
    split: str = "validation",
    batch_size: int | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """The file's outputs `[N, ...]` by name for the images of a split, in the order of its targets.

    Args:
        path: An exported file.
        data: The images.
        input: How they are prepared.
        threads: Threads that the runtime may use.
        split: `train` or `validation`.
        batch_size: Images in one run; by default what is fast on a processor.
        limit: At most so many of the images, the first ones.
        progress: What the user sees.

    Raises:
        InputError: the file cannot be read, or does not take images of this shape.
    """
    session = runtime_of(path).load(Path(path), threads=threads)
    batches = data.batches(split, input, batch_size=batch_size or input.batch, limit=limit)
    parts = []
    with (progress or Progress()).work(f"Running {Path(path).name}", len(batches)) as bar:
        for images, _ in batches:
            parts.append(run_session(session, path, np.ascontiguousarray(images.numpy())))
            bar.advance()
    return joined(parts)


def measure_quality(
    outputs: Mapping[str, np.ndarray],
    data: "ImageData",
    task: "Task",
    *,
    reference: Mapping[str, np.ndarray] | None = None,
    runtime: Runtime | None = None,
    split: str = "validation",
) -> Measurement:
    """The task's metric over outputs of a file; where there are no labels, its agreement with `reference`.

    Args:
        outputs: The file's outputs `[N, ...]` by name, for the first N images of the split.
        data: The images, with or without labels.
        task: What the outputs mean.
        reference: Outputs of the original for the same images; needed where the data has no labels.
        runtime: The runtime that computed the outputs, for the record.
        split: The split that the images belong to.

    Returns:
        The metric, with its standard error as the spread.

    Raises:
        InputError: there are neither labels nor a reference, or the reference is of other images.
    """
    # Imported here: tasks need torch, and files are timed without it.
    from afina.tasks import value_with_error

    evidence = evidence_of(outputs, data, task, reference=reference, split=split)
    value, error = value_with_error(task, evidence, agreement=not data.labelled)
    metric = task.metric if data.labelled else task.agreement
    label = f"{runtime.package} {runtime.version()}, " if runtime else ""
    where = f"{label}{len(evidence)} {split} images of {data.name}"
    details = task.details(evidence, list(outputs))
    return Measurement(value, metric.name, "measured", error, len(evidence), where, details, metric.share)


def evidence_of(
    outputs: Mapping[str, np.ndarray],
    data: "ImageData",
    task: "Task",
    *,
    reference: Mapping[str, np.ndarray] | None = None,
    split: str = "validation",
) -> np.ndarray:
    """What each image says about the quality of outputs, or about their agreement with `reference`.

    Arguments and errors are those of `measure_quality`.
    """
    if data.labelled:
        count = len(next(iter(outputs.values())))
        return task.evidence(task.decode(outputs), data.raw_targets(split)[:count])
    if reference is None or _shapes(reference) != _shapes(outputs):
        raise InputError(
            "There is nothing to judge the outputs by.",
            why="The data has no labels, and there are no outputs of an original for the same images.",
            fix="Give data with labels, or the original beside the file.",
        )
    return task.agreement_evidence(outputs, reference)


def _shapes(outputs: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in outputs.items()}


def joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The outputs of several batches, as those of one.

    Example:
        >>> joined([{"a": np.zeros((2, 3))}, {"a": np.zeros((1, 3))}])["a"].shape
        (3, 3)
    """
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def run_session(session: Session, path: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs `[N, ...]` of a loaded file by name, for images `[N, C, H, W]`.

    Raises:
        InputError: the file does not run on images of this shape.
    """
    try:
        return session(images)
    except Exception as error:
        raise InputError(
            f"{path} does not run on images of shape {list(images.shape[1:])} (channels, height, width).",
            why=f"It says: {first_lines(error)}",
            fix="If it was made for another size, give that with --input-size HEIGHTxWIDTH.",
        ) from error
