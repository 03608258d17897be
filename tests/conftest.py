"""What several tests share: small networks on real images."""

import gc
import importlib
import os

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from afina import capacity
from afina.devices import measure_latency
from afina.graph import Network, capture
from afina.types import InputSpec, TaskSpec

if not torch.cuda.is_available():
    # A library that some test imports has torch look for a driver anew at each tensor without data.
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

DIGITS = TaskSpec("classification", tuple("0123456789"))
GREY = InputSpec(8, 8, mean=(0.3,), std=(0.3,), order="L")


def pytest_collection_finish():
    """What is imported stays: a collector that looks at a million objects again and again takes a tenth of the time."""
    for name in ("hypothesis", "onnxruntime", "onnxscript", "torch.export", "torch.onnx"):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def short_timings():
    """What is promised here does not depend on how exactly files are timed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(measure_latency.__kwdefaults__, "seconds", 0.2)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_kept_statistics():
    """No test finds what an earlier command left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINA_CACHE", "off")
        yield


@pytest.fixture(scope="session", autouse=True)
def one_core():
    """Tests run side by side: where the user does not say, each takes one core."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capacity, "cores_of_container", lambda: 1)
        yield


class SmallNet(nn.Module):
    """Convolutions, batch norm, a residual addition, dropout and a linear layer."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.inner_norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.inner_norm(self.inner(x)))
        return self.head(self.dropout(x.mean(dim=(2, 3))))


@pytest.fixture
def small_module() -> SmallNet:
    torch.manual_seed(0)
    module = SmallNet()
    for norm in (module.norm, module.inner_norm):
        norm.running_mean.uniform_(-0.2, 0.2)
        norm.running_var.uniform_(0.5, 1.5)
    return module


@pytest.fixture
def small_network(small_module: SmallNet) -> Network:
    return capture(small_module, GREY, DIGITS)


class DigitsNet(nn.Module):
    """What most vision networks are made of, small: strided convolutions with batch norm, an addition, a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.down, self.norm2 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32)
        self.inner, self.norm3 = nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm1(self.stem(x)))
        x = torch.relu(self.norm2(self.down(x)))
        x = torch.relu(x + self.norm3(self.inner(x)))
        return self.head(x.mean((2, 3)))


def only(outputs):
    """The one output of a network or a file that gives one."""
    (value,) = outputs.values()
    return value


def digits(start: int = 0, end: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Images as `GREY` wants them, and their labels."""
    data = load_digits()
    images = torch.tensor(data.images[start:end], dtype=torch.float32)[:, None] / 16
    return (images - 0.3) / 0.3, torch.tensor(data.target[start:end])


@pytest.fixture(scope="session")
def digits_network() -> Network:
    """Trained on the first 1438 digits: about 95% right on the others. Tests leave it as it is."""
    torch.manual_seed(0)
    module, (images, targets) = DigitsNet(), digits(0, 1438)
    optimizer, generator = torch.optim.AdamW(module.parameters(), 5e-3), torch.Generator().manual_seed(0)
    for _ in range(8):
        for index in torch.randperm(len(images), generator=generator).split(64):
            optimizer.zero_grad()
            F.cross_entropy(module(images[index]), targets[index]).backward()
            optimizer.step()
    return capture(module.eval(), GREY, DIGITS)
