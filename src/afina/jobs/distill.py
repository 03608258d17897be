"""`afina distill`: a network that learns from another one, with or without labels."""

import time
from dataclasses import asdict, replace

from afina.graph.cost import cost_of
from afina.graph.network import Network
from afina.jobs.common.chance import alarm
from afina.jobs.common.model_source import check_source, name_of
from afina.jobs.common.subject import Subject, load_for, open_images
from afina.jobs.options.declaration import command
from afina.jobs.options.distill import DistillOptions
from afina.jobs.options.shared import names
from afina.models import Preprocessing, load_model
from afina.progress import Progress
from afina.training import FitConfig, fit
from afina.training.suited import RATES_OF_FINE_TUNING, suited_batch, suited_optimizer
from afina.types import UNKNOWN_TASK, Record, Step


def _distill(options: DistillOptions) -> tuple[Network, Record]:
    """Train `student` on the answers of `teacher` (and on labels, where there are any).

    Returns:
        The trained student and its record: settings, cost and quality before and after.

    Raises:
        InputError: no images, or teacher and student answer different questions.

    Example:
        >>> import afina
        >>> from torch import nn
        >>> teacher = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 10))
        >>> student = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> network, record = afina.distill(teacher, student, "digits", epochs=1)
        >>> network
        Network(classification, input=(1, 8, 8), outputs=(outputs), parameters=650)
    """
    start, progress, seed = time.monotonic(), options.progress or Progress(), options.seed
    config, data, unlabelled = fit_config(options), options.data, options.unlabelled
    check_source(options.teacher, options.weights, options.input_size)
    check_source(options.student)
    given = data if data is not None else unlabelled
    judged_images = open_images(given, options, unlabelled=data is None)
    loaded = load_for(judged_images, options.teacher, options, progress, trains=False)
    teacher, alarms = loaded.network, tuple[str, ...]()
    if loaded.pretrained and not isinstance(options.teacher, Network):  # that of a recipe was looked at before
        alarms = alarm(teacher, judged_images, progress)
    network = load_model(
        options.student, task=teacher.task, input=teacher.input, input_size=(teacher.input.height, teacher.input.width),
        targets=judged_images.targets("train") if judged_images.labelled else None, progress=progress, seed=seed,
        preprocessing=Preprocessing(teacher.input.mean, teacher.input.std), trust=options.trust,
    ).network  # fmt: skip
    network.input = teacher.input  # both see the same images
    if teacher.task == UNKNOWN_TASK:
        network.task = UNKNOWN_TASK
    training_images = judged_images
    if data is not None and unlabelled is not None:
        training_images = open_images(unlabelled, replace(options, task=None), unlabelled=True).without_labels()
        training_images.read(network.input)
    elif data is None:
        judged_images = training_images = judged_images.without_labels()
    optimizer = options.optimizer or suited_optimizer(network)
    config = replace(
        config,
        optimizer=optimizer,
        learning_rate=options.learning_rate or RATES_OF_FINE_TUNING[optimizer],
        batch_size=options.batch_size or suited_batch(training_images.count("train")),
    )
    trained, curve = fit(network, training_images, config, teacher=teacher, progress=progress)
    record = Record(
        step=Step("distill", asdict(config)),
        touched=tuple(name for name, _ in trained.module.named_parameters()),
        skipped={},
        before=asdict(cost_of(network)),
        after=asdict(cost_of(trained)),
        seconds=time.monotonic() - start,
        notes=(f"trained for {len(curve)} epochs, taught by {name_of(options.teacher)}",),
    )
    subject = Subject(network, judged_images, 0, seed, progress, teacher=teacher, alarms=alarms)
    return trained, subject.judged(record, trained)


distill = command(DistillOptions, _distill)


def fit_config(options: DistillOptions) -> FitConfig:
    """How the student is trained, as far as the options say. Raises `InputError` where one is out of range."""
    return FitConfig(
        epochs=options.epochs, optimizer=options.optimizer or "sgd", learning_rate=options.learning_rate,
        batch_size=options.batch_size or 128, augment=options.augment, precision=options.precision,
        keep_fp32=names(options.keep_fp32), distillation=options.weight, temperature=options.temperature,
        features=options.features, feature_weight=options.feature_weight, attention_weight=options.attention_weight,
        relation_weight=options.relation_weight, keep_zeros=options.keep_zeros, seed=options.seed,
    )  # fmt: skip
