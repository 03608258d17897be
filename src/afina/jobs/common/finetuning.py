"""Fine-tuning after a compression, and what suits a training where nothing is asked for."""

import torch

from afina.data import ImageData
from afina.graph.network import Network
from afina.jobs.common.subject import Subject
from afina.jobs.options.shared import FineTuneOptions
from afina.training import FitConfig, fit
from afina.training.config import Optimizer

# Highest learning rates of fine-tuning, by optimizer.
RATES: dict[Optimizer, float] = {"sgd": 0.05, "adamw": 5e-4}


def finetuned(
    network: Network,
    subject: Subject,
    asked: FineTuneOptions,
    epochs: int,
    keep_zeros: bool = False,
) -> Network:
    """The network after fine-tuning for so many epochs, taught by the subject's teacher."""
    assert subject.data is not None
    chosen = asked.optimizer or suited_optimizer(network)
    config = FitConfig(
        epochs=epochs,
        optimizer=chosen,
        learning_rate=asked.learning_rate or RATES[chosen],
        batch_size=suited_batch(subject.data),
        seed=subject.seed,
        keep_zeros=keep_zeros,
    )
    subject.progress.say(f"Fine-tuning for {epochs} epochs, taught by the original.")
    return fit(network, subject.data, config, teacher=subject.teacher or subject.network, progress=subject.progress)[0]


def suited_optimizer(network: Network) -> Optimizer:
    """SGD suits networks with batch norm; those without it (transformers, plain VGG) need adaptive steps."""
    normed = any(node.target is torch.ops.aten.batch_norm.default for node in network.graph.nodes)
    return "sgd" if normed else "adamw"


def suited_batch(data: ImageData) -> int:
    """Batch size of training: enough steps in an epoch also where there are few images."""
    return max(8, min(128, data.count("train") // 16))
