"""What several tests share: small networks on real images."""

import pytest
import torch
from torch import nn

from afina.graph import Network, capture
from afina.types import InputSpec, TaskSpec

DIGITS = TaskSpec("classification", tuple("0123456789"))
GREY = InputSpec(8, 8, mean=(0.3,), std=(0.3,), order="L")


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
