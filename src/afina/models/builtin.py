"""Small networks of our own, `builtin:convnet` and `builtin:mlp`: for the demo, for tests, for small images."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from afina.types import InputSpec


class ConvNet(nn.Module):
    """A residual network (He et al. 2016) in stages: each but the first halves the image and doubles the width."""

    def __init__(self, classes: int, channels: int, width: int, depth: int, stages: int, kernel_size: int):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, and is {kernel_size}")
        self.stem = _norm_conv(channels, width, kernel_size, 1)
        blocks: list[nn.Module] = []
        for stage in range(stages):
            wide = width * 2**stage
            for index in range(depth):
                shrinks = stage > 0 and index == 0
                blocks.append(_Block(wide // 2 if shrinks else wide, wide, kernel_size, 2 if shrinks else 1))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width * 2 ** (stages - 1), classes)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.blocks(F.relu(self.stem(x)))
        outputs: Tensor = self.head(features.mean(dim=(2, 3)))
        return outputs


class MLP(nn.Module):
    """Linear layers with batch norm over the flattened image: fixed to one image size."""

    def __init__(self, classes: int, inputs: int, width: int, depth: int):
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(depth):
            layers += [nn.Linear(width if index else inputs, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width if depth else inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.layers(x.flatten(1)))
        return outputs


def convnet(
    classes: int, channels: int = 1, width: int = 64, depth: int = 2, stages: int = 2, kernel_size: int = 3
) -> ConvNet:
    """A small residual network for images of any size; at its defaults, 0.67 M parameters, 18 M MACs at 8x8.

    Args:
        classes: Width of the output.
        channels: Channels of the image.
        width: Channels of the first stage; each further stage doubles them.
        depth: Residual blocks per stage.
        stages: Number of stages; each but the first halves height and width.
        kernel_size: Size of the convolutions' kernels, odd.

    Raises:
        ValueError: `kernel_size` is even.

    Example:
        >>> import torch
        >>> convnet(classes=10, width=8)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    return ConvNet(classes, channels, width, depth, stages, kernel_size)


def mlp(classes: int, inputs: int, width: int = 256, depth: int = 2) -> MLP:
    """Linear layers over `inputs` = channels x height x width numbers, `depth` hidden layers of `width`."""
    return MLP(classes, inputs, width, depth)


# The builder of each network, and the arguments that the task and the input decide; the user may choose the others.
BUILTIN: dict[str, tuple[Callable[..., nn.Module], Callable[[int, InputSpec], dict[str, Any]]]] = {
    "convnet": (convnet, lambda classes, input: {"classes": classes, "channels": input.channels}),
    "mlp": (
        mlp,
        lambda classes, input: {"classes": classes, "inputs": input.channels * input.height * input.width},
    ),
}


class _Block(nn.Module):
    def __init__(self, channels_in: int, channels: int, kernel_size: int, stride: int):
        super().__init__()
        self.conv1 = _norm_conv(channels_in, channels, kernel_size, stride)
        self.conv2 = _norm_conv(channels, channels, kernel_size, 1)
        same = stride == 1 and channels_in == channels
        self.shortcut = nn.Identity() if same else _norm_conv(channels_in, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


def _norm_conv(channels_in: int, channels: int, kernel_size: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels, kernel_size, stride, padding=kernel_size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels))
