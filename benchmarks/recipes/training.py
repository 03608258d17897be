"""ResNet-18 in its CIFAR form (11.2 M parameters: a 3 x 3 stem, no pooling before the stages), trained here and kept.

The schedule is short, for two cores: some epochs on images of half the size, then some at their own, in bfloat16. Each
part resumes from its checkpoint.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torchvision
from torch import nn

from afina.data import ImageData
from afina.graph import Network, capture
from afina.progress import PlainProgress
from afina.training import FitConfig, fit
from afina.types import InputSpec


@dataclass(frozen=True)
class Part:
    """So many epochs on images of `size` pixels."""

    size: int
    epochs: int
    learning_rate: float


SCHEDULE = (Part(16, 3, 0.2), Part(32, 2, 0.1))


def resnet18(classes: int) -> nn.Module:
    """The form for small images."""
    torch.manual_seed(0)
    module = torchvision.models.resnet18(num_classes=classes)
    module.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    module.maxpool = nn.Identity()
    return module


def trained(data: ImageData, folder: Path, schedule: tuple[Part, ...] = SCHEDULE) -> Network:
    """The trained network, from `folder` where it is there already."""
    kept = folder / "resnet18.pt2"
    if kept.is_file():
        return Network.load(kept)
    folder.mkdir(parents=True, exist_ok=True)
    module = resnet18(data.task.outputs)
    network: Network | None = None
    for number, part in enumerate(schedule):
        spec: InputSpec = replace(data.native, height=part.size, width=part.size)
        start = capture(module, spec, data.task)
        if network is not None:
            start.module.load_state_dict(network.module.state_dict())
        done = folder / f"part-{number}.pt2"
        if done.is_file():
            network = Network.load(done)
            continue
        config = FitConfig(
            epochs=part.epochs, learning_rate=part.learning_rate, precision="bf16-mixed", label_smoothing=0.1
        )
        checkpoint = folder / f"part-{number}.checkpoint"
        network, _ = fit(start, data, config, progress=PlainProgress(every=60), checkpoint=checkpoint)
        network.save(done)
        checkpoint.unlink()
    assert network is not None
    network.save(kept)
    return network


if __name__ == "__main__":
    import sys

    from afina.data import open_data

    images = open_data(str(Path(sys.argv[1]) / "data" / "cifar10-jpeg.zip"), seed=0, progress=PlainProgress(every=60))
    trained(images, Path(sys.argv[2]))
