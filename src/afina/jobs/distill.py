"""`afina distill`: a network that learns from another one, with or without labels."""

import time
from dataclasses import asdict, replace

from afina.data import open_data
from afina.graph.cost import cost_of
from afina.graph.network import Network
from afina.jobs.common.model_source import check_source, name_of
from afina.jobs.common.subject import Subject, load_for
from afina.jobs.options.declaration import command
from afina.jobs.options.distill import DistillOptions
from afina.jobs.options.shared import names
from afina.models import load_model
from afina.progress import Progress
from afina.training import FitConfig, fit
from afina.training.suited import RATES_OF_FINE_TUNING, suited_batch, suited_optimizer
from afina.types import Record, Step


def _distill(asked: DistillOptions) -> tuple[Network, Record]:
    """Train `student` on what `teacher` answers (and on labels, where there are any); gives it and the record.

    Raises:
        InputError: no images, or teacher and student answer different questions.

    Example:
        >>> import afina
        >>> from torch import nn
        >>> teacher = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 10))
        >>> student = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> network, record = afina.distill(teacher, student, "digits", epochs=1)
        >>> network
        Network(classification, input=(1, 8, 8), outputs=10, parameters=650)
    """
    start, progress, seed = time.monotonic(), asked.progress or Progress(), asked.seed
    config, data, unlabelled = fit_config(asked), asked.data, asked.unlabelled
    check_source(asked.teacher, asked.weights, asked.input_size)
    check_source(asked.student)
    judged = open_data(data if data is not None else unlabelled, seed=seed, unlabelled=data is None, progress=progress)
    master = load_for(judged, asked.teacher, asked, progress).network
    network = load_model(
        asked.student, task=master.task, input=master.input, input_size=(master.input.height, master.input.width),
        targets=judged.targets("train") if judged.labelled else None, progress=progress, seed=seed,
    ).network  # fmt: skip
    learned = judged
    if data is not None and unlabelled is not None:
        learned = open_data(unlabelled, seed=seed, unlabelled=True, progress=progress).without_labels()
    elif data is None:
        judged = learned = judged.without_labels()
    optimizer = asked.optimizer or suited_optimizer(network)
    config = replace(
        config,
        optimizer=optimizer,
        learning_rate=asked.learning_rate or RATES_OF_FINE_TUNING[optimizer],
        batch_size=asked.batch_size or suited_batch(learned.count("train")),
    )
    trained, curve = fit(network, learned, config, teacher=master, progress=progress)
    record = Record(
        step=Step("distill", asdict(config)),
        touched=tuple(name for name, _ in trained.module.named_parameters()),
        skipped={},
        before=asdict(cost_of(network)),
        after=asdict(cost_of(trained)),
        seconds=time.monotonic() - start,
        notes=(f"trained for {len(curve)} epochs, taught by {name_of(asked.teacher)}",),
    )
    return trained, Subject(network, judged, 0, seed, progress, teacher=master).judged(record, trained)


distill = command(DistillOptions, _distill)


def fit_config(asked: DistillOptions) -> FitConfig:
    """How the student is trained, as far as the options say. Raises `InputError` where one is out of range."""
    return FitConfig(
        epochs=asked.epochs, optimizer=asked.optimizer or "sgd", learning_rate=asked.learning_rate,
        batch_size=asked.batch_size or 128, augment=asked.augment, precision=asked.precision,
        keep_fp32=names(asked.keep_fp32), distillation=asked.weight, temperature=asked.temperature,
        features=asked.features, feature_weight=asked.feature_weight, attention_weight=asked.attention_weight,
        relation_weight=asked.relation_weight, keep_zeros=asked.keep_zeros, seed=asked.seed,
    )  # fmt: skip
