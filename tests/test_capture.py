"""What a capture promises: the network is the module, whatever it returns and however it is written; or one error."""

import logging
import math
import threading
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from conftest import DIGITS, GREY
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

from afina.errors import InputError, Unsupported
from afina.graph import Network, capture
from afina.graph.axes import analyse
from afina.graph.outputs import named_tensors
from afina.types import UNKNOWN_TASK, InputSpec


class Body(nn.Module):
    """A convolution, and a linear layer over the mean of its maps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(6, 10)

    def maps(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).relu()

    def forward(self, x: torch.Tensor):
        return self.head(self.maps(x).mean((2, 3)))


@dataclass
class Found:
    boxes: torch.Tensor
    logits: torch.Tensor
    loss: torch.Tensor | None = None


Pair = namedtuple("Pair", "maps vector")
IMAGES = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def returning(make) -> Body:
    """A module that returns what `make` makes of its maps and its vector."""

    class Returning(Body):
        def forward(self, x: torch.Tensor):
            maps = self.maps(x)
            return make(maps, self.head(maps.mean((2, 3))))

    torch.manual_seed(0)
    return Returning().eval()


STRUCTURES = {
    "a map": (lambda maps, _: maps, ["outputs"]),
    "a list of one": (lambda _, vector: [vector], ["outputs"]),
    "a tuple": (lambda maps, vector: (maps, vector), ["out.0", "out.1"]),
    "a dict": (lambda maps, vector: {"maps": maps, "logits": vector}, ["maps", "logits"]),
    "a dict of lists": (lambda maps, vector: {"maps": [maps, maps * 2], "v": vector}, ["maps.0", "maps.1", "v"]),
    "a dataclass": (lambda maps, vector: Found(maps, vector), ["boxes", "logits"]),
    "a named tuple": (lambda maps, vector: Pair(maps, vector), ["maps", "vector"]),
}


@pytest.mark.parametrize("case", STRUCTURES)
def test_whatever_a_module_returns_comes_back_by_name_also_from_a_file(case, tmp_path):
    make, names = STRUCTURES[case]
    module = returning(make)
    network = capture(module, GREY)
    loaded = Network.load(network.save(tmp_path / "n.pt2"))
    assert list(network.outputs) == names
    with torch.no_grad(), network.inference(), loaded.inference():
        expected = named_tensors(module(IMAGES))[0]
        for twin in (network, loaded, network.copy()):
            answers = twin(IMAGES)
            assert list(answers) == names
            assert all(torch.equal(answers[name], expected[name]) for name in names)


def test_what_is_no_tensor_is_left_out_and_named():
    network = capture(returning(lambda maps, vector: {"logits": vector, "scale": 3, "total": maps.sum()}), GREY)
    assert network.outputs == ("logits",)
    assert "scale (int)" in network.notes[0]
    assert "total" in network.notes[1]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda maps, vector: "text", r"returns no tensor[\s\S]*str"),
        (
            lambda maps, vector: {"anchors": torch.zeros(7, 2), "logits": vector},
            "first dimension of the output anchors",
        ),
        (lambda maps, vector: vector.T, r"first dimension[\s\S]*\[10, 3\]"),
    ],
)
def test_outputs_that_cannot_be_told_apart_by_image_are_one_clear_error(make, said):
    with pytest.raises(InputError, match=said):
        capture(returning(make), GREY)


def test_outputs_that_do_not_fit_the_task_say_what_was_expected_and_what_came():
    with pytest.raises(InputError, match=r"classification needs one output \[N, 10\].*outputs \[N, 6, 8, 8\]"):
        capture(returning(lambda maps, _: maps), GREY, DIGITS)


def test_a_module_that_holds_what_cannot_be_copied_is_captured_and_left_as_it_was():
    module = Body().eval()
    module.config, module.lock, module.log = math, threading.Lock(), logging.getLogger("net")
    module.last = module.maps(IMAGES)  # not a leaf of autograd, which torch does not copy either
    network = capture(module, GREY)
    assert module.config is math
    with torch.no_grad():
        assert torch.equal(network(IMAGES)["outputs"], module(IMAGES))


class AdaptiveNorm(Body):
    """Normalises each image by its own statistics, written with a batch norm, as AdaIN is."""

    def maps(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        n, c, h, w = y.shape
        mean, var = torch.zeros(n * c), torch.ones(n * c)
        return F.batch_norm(y.reshape(1, n * c, h, w), mean, var, training=True).view(n, c, h, w)


def test_a_norm_that_uses_its_own_statistics_in_inference_goes_on_doing_so(tmp_path):
    module = AdaptiveNorm().eval()
    network = capture(module, GREY)
    images = IMAGES * torch.linspace(0.2, 3, 5).view(-1, 1, 1, 1)
    for twin in (network, network.train().eval(), Network.load(network.save(tmp_path / "n.pt2"))):
        with torch.no_grad():
            torch.testing.assert_close(twin(images)["outputs"], module(images))


class InPlace(Body):
    def forward(self, x: torch.Tensor):
        return super().forward(x.sub_(0.3).div_(0.5))


def test_a_module_that_writes_into_its_images_leaves_those_of_others_alone_and_trains():
    module = InPlace().eval()
    network, images = capture(module, GREY), IMAGES.clone()
    with torch.no_grad():
        expected = module(IMAGES.clone())
        assert torch.equal(network(images)["outputs"], expected)
    assert torch.equal(images, IMAGES)
    network.train()(images)["outputs"].square().mean().backward()
    assert all(p.grad is not None for p in network.module.parameters())


@pytest.mark.parametrize(
    "norm", [spectral_norm, weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
)
def test_weights_that_are_computed_from_parameters_are_stored_as_they_are(norm):
    module = Body()
    with pytest.warns(FutureWarning) if norm is weight_norm else pytest.MonkeyPatch.context():
        module.conv = norm(module.conv)
    module.eval()
    network = capture(module, GREY)
    assert "conv.weight" in dict(network.module.named_parameters())
    assert parametrize.is_parametrized(module.conv) == (norm.__module__ == parametrizations.__name__)
    with torch.no_grad():
        torch.testing.assert_close(network(IMAGES)["outputs"], module(IMAGES))


class Dropped(Body):
    def forward(self, x: torch.Tensor):
        return self.head(F.dropout(self.maps(x).mean((2, 3)), 0.5, training=True))


def test_random_numbers_in_inference_are_named_as_such():
    with pytest.raises(Unsupported, match=r"draws random numbers in inference[\s\S]*dropout"):
        capture(Dropped().eval(), GREY)


class Checked(Body):
    """Asserts what its values are, as models that are to be compiled do."""

    def forward(self, x: torch.Tensor):
        maps = self.maps(x)
        torch._check(maps.ge(0).all().item())
        return self.head(maps.mean((2, 3)))


def test_checks_that_a_model_makes_of_its_values_do_not_stay_in_the_graph(tmp_path):
    module = Checked().eval()
    network = capture(module, GREY)
    assert not any(word in str(node.target) for node in network.graph.nodes for word in ("assert", "item", "all"))
    loaded = Network.load(network.save(tmp_path / "n.pt2"))
    assert analyse(loaded).free
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES)["outputs"], module(IMAGES))


class Expectation(Body):
    """The mean place of a distribution, by a linear layer whose weight is one vector, as detectors compute edges."""

    def forward(self, x: torch.Tensor):
        shares = super().forward(x).reshape(-1, 2, 5).softmax(-1)
        return F.linear(shares, torch.arange(5.0)), F.linear(shares, torch.ones(5), torch.tensor(0.5))


def test_a_linear_layer_of_one_vector_is_a_product():
    module = Expectation().eval()
    network = capture(module, GREY)
    assert not analyse(network).unknown
    with torch.no_grad():
        for got, expected in zip(network(IMAGES).values(), module(IMAGES), strict=True):
            torch.testing.assert_close(got, expected)


class TwoImages(Body):
    def forward(self, left: torch.Tensor, right: torch.Tensor):
        return super().forward(left) - super().forward(right)


class WithSizes(Body):
    def forward(self, x: torch.Tensor, *, sizes: torch.Tensor, scale: float = 1.0):
        return super().forward(x) * sizes * scale


class Masked(Body):
    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None):
        if mask is None:
            raise ValueError("You have to give a mask")
        return super().forward(x * mask)


class FromDictionary(Body):
    def forward(self, batch: dict):
        return super().forward(batch["image"])


class Wrapped(nn.Module):
    """The way that the message names."""

    def __init__(self) -> None:
        super().__init__()
        self.model = TwoImages()

    def forward(self, images: torch.Tensor):
        return self.model(left=images[:, :1], right=images[:, 1:2])


@pytest.mark.parametrize(("module", "inputs"), [(TwoImages(), "left, right"), (WithSizes(), "x, sizes")])
def test_several_inputs_are_refused_with_what_comes_and_the_way_on(module, inputs):
    with pytest.raises(InputError) as error:
        capture(module, GREY)
    assert f"takes 2 inputs ({inputs})" in error.value.what
    assert error.value.why == "Several inputs are not supported yet."
    assert "def forward(self, images)" in error.value.fix


def test_two_pictures_laid_end_to_end_are_one_input():
    assert capture(Wrapped(), InputSpec(8, 8, mean=(0.5,) * 3, std=(0.5,) * 3)).outputs == ("outputs",)


@pytest.mark.parametrize(("module", "said"), [(Masked(), "without mask"), (FromDictionary(), "It says")])
def test_inputs_that_a_module_misses_only_when_it_runs_are_refused_with_the_way_on(module, said):
    with pytest.raises(InputError) as error:
        capture(module, GREY)
    assert said in error.value.why
    assert "wrap it in a module whose forward takes one tensor of images" in error.value.fix


class Switched(Body):
    """Computes otherwise while it is traced."""

    def forward(self, x: torch.Tensor):
        return super().forward(x) * (1.0 if type(x) is torch.Tensor else 2.0)


def test_a_graph_that_does_not_answer_as_its_module_is_refused():
    with pytest.raises(Unsupported, match="does not answer as Switched does"):
        capture(Switched(), GREY)


class FixedBatch(Body):
    """Takes the number of images as a number of Python, as the detectors of `transformers` do."""

    def forward(self, x: torch.Tensor):
        maps = self.maps(x)
        return {"rows": maps.reshape(int(x.shape[0]), -1)[:, :7], "logits": self.head(maps.mean((2, 3)))}


def test_a_module_that_fixes_the_number_of_images_runs_image_by_image(tmp_path):
    module = FixedBatch().eval()
    network = capture(module, GREY)
    assert network.batch_size == 1
    assert any("image by image" in note for note in network.notes)
    loaded = Network.load(network.save(tmp_path / "n.pt2"))
    with torch.no_grad():
        expected = module(IMAGES)
        for twin in (network, loaded):
            for name, value in twin(IMAGES).items():
                torch.testing.assert_close(value, expected[name])


def test_a_module_in_half_precision_is_captured_in_float32():
    module = Body().eval().half()
    network = capture(module, GREY)
    assert network(IMAGES)["outputs"].dtype == torch.float32
    assert network.task == UNKNOWN_TASK
