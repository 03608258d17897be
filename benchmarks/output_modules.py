"""Networks written here, as their papers and repositories have them, only narrower."""

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

_WIDTH = 12


def _convolution(inputs: int, outputs: int, stride: int = 1, groups: int = 1, kernel: int = 3) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


def _separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(_convolution(inputs, inputs, stride, inputs), _convolution(inputs, outputs, kernel=1))


class UNet(nn.Module):
    """U-Net with transposed convolutions: the map of each scale is laid beside the decoder's. Gives one map."""

    def __init__(self, width: int = _WIDTH, depth: int = 3, classes: int = 4) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(depth + 1)]
        double = lambda a, b: nn.Sequential(_convolution(a, b), _convolution(b, b))  # noqa: E731
        self.down = nn.ModuleList(double(a, b) for a, b in zip([3, *widths], widths, strict=False))
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.joined = nn.ModuleList(double(2 * b, b) for _, b in pairs)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        for block in self.down:
            x = block(F.max_pool2d(x, 2) if maps else x)
            maps.append(x)
        for up, block, skip in zip(self.up, self.joined, maps[-2::-1], strict=True):
            x = up(x)
            x = F.pad(x, [0, skip.shape[-1] - x.shape[-1], 0, skip.shape[-2] - x.shape[-2]])
            x = block(torch.cat([skip, x], 1))
        return self.head(x)


class StyleTransfer(nn.Module):
    """The network of Johnson et al. (2016): reflection padding, instance norm, residual blocks. Gives a picture."""

    def __init__(self, width: int = _WIDTH, blocks: int = 3) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(
                nn.ReflectionPad2d(kernel // 2),
                nn.Conv2d(inputs, outputs, kernel, stride),
                nn.InstanceNorm2d(outputs, affine=True),
                nn.ReLU(),
            )

        wide = 4 * width
        self.encoder = nn.Sequential(layer(3, width, 9), layer(width, 2 * width, 3, 2), layer(2 * width, wide, 3, 2))
        self.blocks = nn.ModuleList(nn.Sequential(layer(wide, wide, 3), layer(wide, wide, 3)) for _ in range(blocks))
        self.decoder = nn.ModuleList([layer(wide, 2 * width, 3), layer(2 * width, width, 3)])
        self.last = nn.Sequential(nn.ReflectionPad2d(4), nn.Conv2d(width, 3, 9))

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        for block in self.blocks:
            x = x + block(x)
        for layer in self.decoder:
            x = layer(F.interpolate(x, scale_factor=2, mode="nearest"))
        return self.last(x).tanh() * 127.5 + 127.5


class FaceDetector(nn.Module):
    """A detector of faces by two maps, as CenterFace: where faces are (after a sigmoid), and their boxes."""

    def __init__(self, width: int = _WIDTH) -> None:
        super().__init__()
        self.stem = _convolution(3, width, 2)
        self.stages = nn.ModuleList(
            nn.Sequential(_separable(a, b, 2), _separable(b, b))
            for a, b in ((width, 2 * width), (2 * width, 4 * width), (4 * width, 6 * width))
        )
        self.lateral = nn.ModuleList(nn.Conv2d(n * width, 24, 1) for n in (2, 4, 6))
        self.faces, self.boxes = nn.Conv2d(24, 1, 1), nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        y = self.lateral[2](maps[2])
        for lateral, level in ((self.lateral[1], maps[1]), (self.lateral[0], maps[0])):
            y = (lateral(level) + F.interpolate(y, size=level.shape[-2:], mode="bilinear")).relu()
        return self.faces(y).sigmoid(), self.boxes(y).exp()


class Embedding(nn.Module):
    """A network for faces as MobileFaceNet: inverted bottlenecks with PReLU, a global depthwise layer, length one."""

    def __init__(self, width: int = _WIDTH, size: int = 64) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            wide = 2 * inputs
            return nn.Sequential(
                nn.Conv2d(inputs, wide, 1, bias=False),
                nn.BatchNorm2d(wide),
                nn.PReLU(wide),
                nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
                nn.BatchNorm2d(wide),
                nn.PReLU(wide),
                nn.Conv2d(wide, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )

        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.PReLU(width))
        shapes = ((1, 2, 2), (2, 2, 1), (2, 4, 2), (4, 4, 1), (4, 4, 2))
        self.blocks = nn.ModuleList(block(a * width, b * width, stride) for a, b, stride in shapes)
        self.mix = nn.Sequential(nn.Conv2d(4 * width, 128, 1, bias=False), nn.BatchNorm2d(128), nn.PReLU(128))
        self.whole = nn.Sequential(nn.Conv2d(128, 128, 7, groups=128, bias=False), nn.BatchNorm2d(128))
        self.head = nn.Sequential(nn.Linear(128, size, bias=False), nn.BatchNorm1d(size))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            y = block(x)
            x = x + y if x.shape == y.shape else y
        return F.normalize(self.head(self.whole(self.mix(x)).flatten(1)))


class DepthNet(nn.Module):
    """An encoder of MobileNetV2 and a decoder that adds the encoder's maps, as FastDepth. Gives a map of depth."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = torchvision.models.mobilenet_v2(width_mult=0.5).features[:-1]
        self.taps = (1, 3, 6, 13, 17)
        channels = self._channels()
        self.decoder = nn.ModuleList(_separable(a, b) for a, b in zip(channels[:0:-1], channels[-2::-1], strict=True))
        self.head = nn.Conv2d(channels[0], 1, 1)

    def _channels(self) -> list[int]:
        widths, x = [], torch.zeros(1, 3, 64, 64)
        for i, layer in enumerate(self.encoder.eval()):
            x = layer(x)
            widths += [x.shape[1]] if i in self.taps else []
        return widths

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        for i, layer in enumerate(self.encoder):
            x = layer(x)
            if i in self.taps:
                maps.append(x)
        for layer, skip in zip(self.decoder, maps[-2::-1], strict=True):
            x = F.interpolate(layer(x), size=skip.shape[-2:], mode="bilinear", align_corners=True) + skip
        depth = F.softplus(self.head(x))
        return F.interpolate(depth, scale_factor=2.0, mode="bilinear").squeeze(1)


class SuperResolution(nn.Module):
    """An efficient sub-pixel network with residual blocks: a picture of twice the height and width."""

    def __init__(self, width: int = 2 * _WIDTH, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.PReLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(blocks)
        )
        self.head = nn.Conv2d(width, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        for block in self.blocks:
            y = y + block(y) * 0.5
        return F.pixel_shuffle(self.head(y), 2) + F.interpolate(x, scale_factor=2, mode="bicubic")


class SimpleBaseline(nn.Module):
    """Heat maps of key points by three transposed convolutions on a ResNet-18, as Xiao et al. (2018)."""

    def __init__(self, points: int = 17, width: int = 64) -> None:
        super().__init__()
        body = torchvision.models.resnet18()
        self.body = nn.Sequential(*list(body.children())[:-2])
        layers: list[nn.Module] = []
        for inputs in (512, width, width):
            layers += [nn.ConvTranspose2d(inputs, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.up, self.head = nn.Sequential(*layers), nn.Conv2d(width, points, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.body(x)))


class Hourglass(nn.Module):
    """Two stacked hourglasses: each gives heat maps, and those of the first go into the second."""

    def __init__(self, width: int = 2 * _WIDTH, points: int = 8, depth: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(3, width, 2), _convolution(width, width))
        self.down = nn.ModuleList(nn.ModuleList(_convolution(width, width) for _ in range(depth)) for _ in range(2))
        self.up = nn.ModuleList(nn.ModuleList(_convolution(width, width) for _ in range(depth)) for _ in range(2))
        self.heads = nn.ModuleList(nn.Conv2d(width, points, 1) for _ in range(2))
        self.back = nn.Conv2d(points, width, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x, given = self.stem(x), list[Tensor]()
        for down, up, head in zip(self.down, self.up, self.heads, strict=True):
            y, skips = x, []
            for block in down:
                skips.append(y)
                y = block(F.avg_pool2d(y, 2))
            for block, skip in zip(up, reversed(skips), strict=True):
                y = F.interpolate(block(y), scale_factor=2, mode="bilinear", align_corners=False) + skip
            given.append(head(y))
            x = x + y + self.back(given[-1])
        return given
