"""Fine-tuning after a compression, taught by the network as it was."""

from afina.graph.network import Network
from afina.jobs.common.subject import Subject
from afina.jobs.options.shared import FineTuneOptions
from afina.training import fit
from afina.training.suited import fine_tuning


def finetuned(
    network: Network, subject: Subject, options: FineTuneOptions, epochs: int, keep_zeros: bool = False
) -> Network:
    """The network after fine-tuning for `epochs` epochs, with the subject's teacher (the network before by default).

    Where no epoch makes it better, it is as it was.
    """
    assert subject.data is not None
    config = fine_tuning(
        network,
        subject.data.count("train"),
        epochs=epochs,
        optimizer=options.optimizer,
        learning_rate=options.learning_rate,
        seed=subject.seed,
        keep_zeros=keep_zeros,
    )
    subject.progress.say(f"Fine-tuning for {epochs} epochs, taught by the original.")
    teacher = subject.teacher or subject.network
    return fit(network, subject.data, config, teacher=teacher, progress=subject.progress, start_counts=True)[0]
