"""`afina distill`: a network that learns from another one, with or without labels."""

import time
from dataclasses import asdict, replace
from typing import Any

from afina.data import open_data
from afina.errors import InputError
from afina.graph.cost import cost_of
from afina.graph.network import Network
from afina.jobs.common.model_source import ModelSource, check_source, name_of
from afina.jobs.common.subject import (
    RATES,
    UNOPENED,
    OptionsChecked,
    Subject,
    load_for,
    suited_batch,
    suited_optimizer,
)
from afina.models import load_model
from afina.progress import Progress
from afina.training import FitConfig, fit
from afina.training.config import Optimizer, TrainingPrecision
from afina.types import Record, Step


def distill(
    teacher: ModelSource,
    student: ModelSource,
    data: Any = None,
    *,
    unlabelled: Any = None,
    epochs: int = 10,
    temperature: float = 4.0,
    weight: float = 0.9,
    features: str = "none",
    feature_weight: float = 1.0,
    attention_weight: float = 0.0,
    relation_weight: float = 0.0,
    keep_zeros: bool = False,
    augment: bool = True,
    precision: TrainingPrecision = "32",
    keep_fp32: tuple[str, ...] = (),
    weights: str | None = None,
    input_size: str | tuple[int, int] | None = None,
    learning_rate: float | None = None,
    optimizer: Optimizer | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    example: Any = None,
    progress: Progress | None = None,
) -> tuple[Network, Record]:
    """Train `student` on what `teacher` answers (and on labels, where there are any); gives it and the record.

    Args:
        teacher: As in `optimize`: the network that is learned from; it is left as it was.
        student: The network that learns: a compressed form of the teacher, or any other model, which starts from its
            own weights.
        data: As in `optimize`; its validation images judge the student.
        unlabelled: Images to learn from that need no labels; the teacher alone teaches. Without `data` they judge too,
            by the student's agreement with the teacher.
        epochs: Passes over the training images.
        temperature: Softens the teacher's answers (classification).
        weight: Share of the teacher in the loss, where there are labels.
        features: What is learned from inside the teacher: `none`, `auto`, or pairs `STUDENT:TEACHER` of layers.
        feature_weight: Of the feature maps.
        attention_weight: Of where feature maps are active.
        relation_weight: Of how images relate to each other.
        keep_zeros: Weights that are zero stay zero.
        augment: Vary the training images; without, the teacher is asked once for each image.
        precision: `32`, `bf16-mixed` or `16-mixed`.
        keep_fp32: Layers, as names or patterns (`layer4.*`), that run in 32 bits whatever the precision.
        weights: Of the teacher: `pretrained`, `random` or a file of weights.
        input_size: Height and width of the teacher's input, where the model's own is wrong.
        learning_rate: By default one that suits the optimizer.
        optimizer: `sgd` or `adamw`; by default the one that suits the student.
        batch_size: Images in one step.
        seed: Seed of every random choice.
        example: For an `nn.Module`: a tensor of the input's shape, or an `InputSpec`.
        progress: What the user sees.

    Raises:
        InputError: no images, or teacher and student answer different questions.
    """
    start, progress = time.monotonic(), progress or Progress()
    if data is None and unlabelled is None:
        raise InputError("There are no images to learn from.", fix="Give --data, --unlabelled, or both.")
    config = FitConfig(
        epochs=epochs, optimizer=optimizer or "sgd", learning_rate=learning_rate, batch_size=batch_size or 128,
        augment=augment, precision=precision, keep_fp32=tuple(keep_fp32), distillation=weight,
        temperature=temperature, features=features, feature_weight=feature_weight, attention_weight=attention_weight,
        relation_weight=relation_weight, keep_zeros=keep_zeros, seed=seed,
    )  # fmt: skip
    if student is UNOPENED:
        raise OptionsChecked
    check_source(teacher, weights, input_size)
    check_source(student)
    judged = open_data(data if data is not None else unlabelled, seed=seed, unlabelled=data is None, progress=progress)
    master = load_for(judged, teacher, weights, input_size, example, seed, progress).network
    network = load_model(
        student, task=master.task, input=master.input, input_size=(master.input.height, master.input.width),
        targets=judged.targets("train") if judged.labelled else None, progress=progress, seed=seed,
    ).network  # fmt: skip
    learned = judged
    if data is not None and unlabelled is not None:
        learned = open_data(unlabelled, seed=seed, unlabelled=True, progress=progress).without_labels()
    elif data is None:
        judged = learned = judged.without_labels()
    chosen = optimizer or suited_optimizer(network)
    config = replace(
        config,
        optimizer=chosen,
        learning_rate=learning_rate or RATES[chosen],
        batch_size=batch_size or suited_batch(learned),
    )
    trained, curve = fit(network, learned, config, teacher=master, progress=progress)
    record = Record(
        step=Step("distill", asdict(config)),
        touched=tuple(name for name, _ in trained.module.named_parameters()),
        skipped={},
        before=asdict(cost_of(network)),
        after=asdict(cost_of(trained)),
        seconds=time.monotonic() - start,
        notes=(f"trained for {len(curve)} epochs, taught by {name_of(teacher)}",),
    )
    return trained, Subject(network, judged, 0, seed, progress, teacher=master).judged(record, trained)
