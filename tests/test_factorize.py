"""Decomposition: chains that compute what they say, as near to the layer as they can be, down to the target."""

import math

import pytest
import torch
from conftest import DIGITS, GREY, digits, only
from torch import nn

import afina
from afina.errors import InputError, NothingToDo
from afina.graph import Network, capture
from afina.graph.cost import cost_of
from afina.graph.statistics import Effect, Moments, Reader, find_readers
from afina.graph.stored import attribute
from afina.graph.surgery import remove
from afina.techniques.context import Context
from afina.techniques.factorize import FactorizeConfig, apply, layers_of, shaped
from afina.techniques.factorize.fitting import decompose, multiplied, refine
from afina.techniques.factorize.forms import FORMS
from afina.techniques.factorize.problem import Problem, problems_of
from afina.techniques.factorize.starting import start

RANKS = {"svd": (4,), "spatial": (6,), "tucker": (6, 5), "cp": (12,), "tt": (6, 8, 5)}


def context(count: int = 256) -> Context:
    images = digits(0, count)[0]
    return Context(calibration=lambda: iter(images.split(64)), images=count, held_out=lambda: [digits(1500, 1560)[0]])


def problem(outputs: int = 12, inputs: int = 8, kernel: tuple[int, int] = (3, 3), seed: int = 0) -> Problem:
    """A random layer on rows that vary far more in some directions than in others, as activations do."""
    generator = torch.Generator().manual_seed(seed)
    columns = inputs * math.prod(kernel)
    rows = torch.randn(400, columns, generator=generator, dtype=torch.float64)
    rows = (
        rows @ torch.randn(columns, columns, generator=generator, dtype=torch.float64) * torch.linspace(3, 0.1, columns)
    )
    weight = torch.randn(outputs, inputs, *kernel, generator=generator, dtype=torch.float64)
    return Problem(weight, rows.T @ rows / len(rows))


@pytest.mark.parametrize("form", FORMS)
def test_factors_have_the_shapes_and_parameters_that_the_form_says(form):
    factors = decompose(problem(), form, RANKS[form])
    assert tuple(tuple(factor.shape) for factor in factors) == FORMS[form].shapes((12, 8, 3, 3), RANKS[form])
    assert sum(factor.numel() for factor in factors) == FORMS[form].parameters((12, 8, 3, 3), RANKS[form])
    assert multiplied(form, factors).shape == (12, 8, 3, 3)


@pytest.mark.parametrize("form", ["svd", "spatial", "tucker", "tt"])
def test_at_full_rank_nothing_is_lost(form):
    layer = problem()
    most = FORMS[form].most((12, 8, 3, 3))
    assert layer.error(multiplied(form, decompose(layer, form, most))) < 1e-6


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_the_svd_reaches_the_least_error_that_a_matrix_of_that_rank_can_have(rank):
    layer = problem()
    found = layer.error(multiplied("svd", decompose(layer, "svd", (rank,))))
    # Eckart and Young, on the weight times a square root of the metric.
    root = torch.linalg.cholesky(layer.metric)
    sizes = torch.linalg.svdvals(layer.matrix @ root).square()
    assert found == pytest.approx(float(sizes[rank:].sum() / sizes.sum()), rel=1e-6)


@pytest.mark.parametrize("form", ["spatial", "tucker", "cp", "tt"])
def test_refining_in_the_metric_only_ever_comes_nearer(form):
    layer = problem()
    factors = start(layer, form, RANKS[form])
    errors = [layer.error(multiplied(form, factors))]
    for _ in range(4):
        factors = refine(layer, FORMS[form], factors)
        errors.append(layer.error(multiplied(form, factors)))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.9 * errors[0]


@pytest.mark.parametrize("form", FORMS)
def test_chains_are_nearer_than_plain_decompositions_of_the_same_rank(form):
    import tensorly
    from tensorly.decomposition import parafac, partial_tucker, tensor_train

    layer, ranks = problem(), RANKS[form]
    weight = layer.weight
    with tensorly.backend_context("pytorch"):
        if form == "svd":
            left, sizes, right = torch.linalg.svd(layer.matrix, full_matrices=False)
            plain = (left[:, : ranks[0]] * sizes[: ranks[0]]) @ right[: ranks[0]]
        elif form == "spatial":
            left, sizes, right = torch.linalg.svd(weight.permute(0, 3, 1, 2).reshape(36, 24), full_matrices=False)
            plain = (left[:, : ranks[0]] * sizes[: ranks[0]]) @ right[: ranks[0]]
            plain = plain.reshape(12, 3, 8, 3).permute(0, 2, 3, 1)
        elif form == "tucker":
            (core, parts), _ = partial_tucker(weight, rank=ranks, modes=[0, 1])
            plain = tensorly.tenalg.multi_mode_dot(core, parts, modes=[0, 1])
        elif form == "cp":
            plain = tensorly.cp_to_tensor(parafac(weight, rank=ranks[0], init="random", random_state=0))
        else:
            train = tensor_train(weight.permute(0, 3, 2, 1), rank=[1, *ranks, 1])
            plain = tensorly.tt_to_tensor(train).permute(0, 3, 2, 1)
    ours = layer.error(multiplied(form, decompose(layer, form, ranks)))
    assert ours < 0.85 * layer.error(plain.reshape(weight.shape))


class Many(nn.Module):
    """Kernels, strides, paddings, dilations and groups of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(1, 16, 3, padding=1)
        self.strided = nn.Conv2d(16, 24, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.dilated = nn.Conv2d(24, 24, 3, padding=2, dilation=2)
        self.grouped = nn.Conv2d(24, 32, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.uneven = nn.Conv2d(32, 24, (3, 5), padding=(0, 2), stride=(1, 2))
        self.same = nn.Conv2d(24, 24, 3, padding="same")
        self.flat = nn.Conv2d(24, 24, (1, 3), padding=(0, 1))
        self.point = nn.Conv2d(24, 24, 1)
        self.head = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.strided(torch.relu(self.plain(x)))))
        x = torch.relu(self.depthwise(torch.relu(self.grouped(torch.relu(self.dilated(x))))))
        x = torch.relu(self.flat(torch.relu(self.same(torch.relu(self.uneven(x))))))
        return self.head(self.point(x).mean((2, 3)))


@pytest.fixture(scope="module")
def many() -> Network:
    torch.manual_seed(0)
    return capture(Many().eval(), GREY, DIGITS)


@pytest.mark.parametrize("form", FORMS)
def test_the_chain_in_the_graph_computes_what_its_weight_says(many, form):
    """Whatever the stride, padding, dilation and groups: the network with the whole weight answers the same."""
    config = FactorizeConfig(share=0.6, method=form)
    chained, record = apply(many, config, Context())
    assert any(row["form"] == form for row in record.layers.values())
    whole, layers = many.copy(), layers_of(many, config)[0]
    for name, row in record.layers.items():
        reader = layers[name].reader
        letters = FORMS[row["form"]].factors
        weights = [attribute(chained.module, f"{name}.{place}.weight") for place in range(len(letters))][::-1]
        parts = []
        for group in range(reader.groups):
            own = [weight.chunk(reader.groups)[group] if reader.groups > 1 else weight for weight in weights]
            shapes = FORMS[row["form"]].shapes(layers[name].shape, row["ranks"])
            parts.append(multiplied(row["form"], [w.reshape(s) for w, s in zip(own, shapes, strict=True)]))
        with torch.no_grad():
            attribute(whole.module, reader.weight).copy_(torch.cat(parts).reshape(reader.shape))
    images = digits(0, 16)[0]
    with whole.inference(), chained.inference():
        torch.testing.assert_close(only(chained(images)), only(whole(images)), rtol=1e-3, atol=1e-4)


def test_what_cannot_become_a_chain_is_listed_with_the_reason(many):
    _, record = apply(many, FactorizeConfig(skip=("same",), method="svd"), Context())
    assert record.skipped["depthwise"] == "depthwise: each output reads one input only"
    assert record.skipped["same"] == "asked to stay whole"
    assert set(record.touched) | set(record.skipped) == {reader.name for reader in find_readers(many).values()}


def test_parameters_and_macs_of_a_chain_are_those_of_the_network(many):
    layers, _ = layers_of(many, FactorizeConfig())
    before = cost_of(many)
    chosen = {
        "dilated": ("tucker", (8, 6)),
        "uneven": ("spatial", (7,)),
        "strided": ("cp", (20,)),
        "grouped": ("svd", (5,)),
    }
    for name, (form, ranks) in chosen.items():
        after = cost_of(shaped(many, layers, {name: (form, ranks)}))
        chain = layers[name].chain(form, ranks, 0.0)
        assert after.parameters - before.parameters == chain.parameters - layers[name].parameters
        assert after.macs - before.macs == chain.macs - layers[name].macs


def test_with_images_the_outputs_change_far_less_than_without(digits_network):
    effect = Effect(digits_network, digits(1438, 1700)[0])
    fitted, plain = (
        effect.of(apply(digits_network, FactorizeConfig(share=0.5, method="tucker"), given)[0])
        for given in (context(512), Context())
    )
    assert fitted < 0.5 * plain


@pytest.mark.parametrize("target", ["parameters", "macs"])
def test_a_target_is_met_from_below_within_two_percent(digits_network, target):
    share = 0.6
    result, record = afina.factorize(digits_network, "digits", **{target: share}, images=256)
    reached = getattr(cost_of(result), target) / getattr(cost_of(digits_network), target)
    assert 0.98 * share <= reached <= share
    assert record.after["quality"] > record.before["quality"] - 0.03
    assert all(0 <= row["error"] < 1 for row in record.layers.values())


def test_few_rows_let_no_layer_look_as_if_nothing_were_lost():
    torch.manual_seed(0)
    linear = nn.Linear(64, 64)
    reader = Reader("weight", "bias", (64, 64), ("linear",))

    def error_at_rank_eight(rows: int) -> float:
        moments = Moments(torch.zeros(1, 65, 65, dtype=torch.float64))
        moments.add(torch.randn(1, rows, 64, dtype=torch.float64), None)
        (layer,) = problems_of(reader, linear.weight, moments)
        return 1 - float(layer.output_energies()[:8].sum())

    assert error_at_rank_eight(4096) > 0.5
    assert error_at_rank_eight(6) > 0.1


def test_the_error_told_of_a_layer_is_that_of_its_outputs_on_held_out_images(digits_network):
    result, record = apply(digits_network, FactorizeConfig(layers={"inner": ("svd", (8,))}, refit=False), context())
    images = digits(1500, 1560)[0]
    seen = []
    for network, name in ((digits_network, "inner"), (result, "inner.1")):
        nodes = {n.name: n for n in network.graph.nodes if n.op == "call_function"}
        node = next(n for n in nodes.values() if any(str(i.target) == f"{name}.weight" for i in n.all_input_nodes))
        module = torch.fx.Interpreter(network.module)
        values = {}
        run = module.run_node
        module.run_node = lambda n, run=run, node=node, values=values: values.setdefault(n.name, run(n))
        with network.inference():
            module.run(images)
        seen.append(values[node.name])
    before, after = (value.movedim(1, 0).flatten(1).double() for value in seen)
    gap = after - before
    expected = (gap - gap.mean(1, keepdim=True)).square().sum() / (before - before.mean(1, keepdim=True)).square().sum()
    assert record.layers["inner"]["error"] == pytest.approx(float(expected), rel=1e-3)


def test_a_file_is_as_small_as_asked_for(digits_network, tmp_path):
    result, _ = afina.factorize(digits_network, "digits", size="40KB", method="svd", images=128)
    afina.export(result, to="onnx", out=tmp_path / "model.onnx")
    assert 39_000 <= (tmp_path / "model.onnx").stat().st_size <= 40_000


def test_a_chain_is_pruned_along_its_ranks_and_its_channels(digits_network):
    from afina.graph.axes import analyse

    chained, _ = apply(digits_network, FactorizeConfig(layers={"down": ("tucker", (12, 10))}), context())
    axes = {axis.name: axis for axis in analyse(chained).free}
    ranks = [axis for axis in axes.values() if any("down." in name for name in axis.producers)]
    assert sorted(axis.size for axis in ranks) == [10, 12, 32]
    smaller = remove(chained, {axis: range(axis.size // 2) for axis in ranks})
    assert attribute(smaller.module, "down.1.weight").shape == (6, 5, 3, 3)


def test_a_wide_linear_layer_is_factorized_in_blocks_of_its_inputs():
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Conv2d(1, 136, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(136 * 64, 10))
    network = capture(wide.eval(), GREY, DIGITS)
    result, record = apply(network, FactorizeConfig(layers={"3": ("svd", (6,))}), context(128))
    assert attribute(result.module, "3.0.weight").shape == (6, 136 * 64)
    assert record.layers["3"]["error"] < 0.5


def test_a_weight_that_is_used_twice_becomes_one_chain():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.again = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
            self.head = nn.Linear(16, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.again(torch.relu(self.again(torch.relu(self.stem(x)))))).mean((2, 3)))

    torch.manual_seed(0)
    network = capture(Twice().eval(), GREY, DIGITS)
    result, _ = apply(network, FactorizeConfig(layers={"again": ("cp", (20,))}), context(128))
    assert cost_of(result).parameters == cost_of(network).parameters - 16 * 16 * 9 + 20 * (16 + 16 + 6)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"layers": {"inner": ("svd", (99,))}}, "above the largest that means anything, 32"),
        ({"layers": {"head": ("tucker", (3, 3))}}, "cannot be written as tucker"),
        ({"layers": {"iner": ("svd", (3,))}}, "inner"),
        ({"layers": {"inner": ("svd", (3, 3))}}, "takes 1 rank,"),
        ({"method": "tuker"}, "tucker"),
        ({"share": 0.0}, "more than 0"),
        ({"skip": ("hed",)}, "head"),
    ],
)
def test_a_wrong_config_is_refused_in_words(digits_network, config, said):
    with pytest.raises(InputError, match=said):
        apply(digits_network, FactorizeConfig(**config), context())


def test_a_rank_that_makes_nothing_smaller_says_how_large_ranks_are(digits_network):
    with pytest.raises(NothingToDo, match="largest rank of any layer is 32"):
        afina.factorize(digits_network, rank=500)


def test_a_target_out_of_reach_says_the_smallest(digits_network):
    with pytest.raises(InputError, match="the smallest possible is"):
        afina.factorize(digits_network, "digits", parameters="1%", method="svd", images=64)


def test_a_group_of_a_grouped_convolution_is_named_when_it_is_refused(many):
    with pytest.raises(InputError, match="2 groups"):
        apply(many, FactorizeConfig(layers={"grouped": ("cp", (4,))}), Context())


def test_for_a_latency_only_chains_that_are_faster_are_used(small_network):
    """A small network is all overhead: chains do not pay, and the answer says so instead of slowing it down."""
    with pytest.raises((InputError, NothingToDo)):
        afina.factorize(small_network, "digits", latency="1us", method="svd", images=64)


def test_a_linear_layer_on_tokens_is_one_matrix_for_all_of_them():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix, self.head = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.mix(torch.relu(self.embed(x[:, 0])))).mean(1))

    torch.manual_seed(0)
    network = capture(Tokens().eval(), GREY, DIGITS)
    result, record = apply(network, FactorizeConfig(layers={"mix": ("svd", (8,))}), context(128))
    assert attribute(result.module, "mix.0.weight").shape == (8, 32)
    assert record.before["macs"] - record.after["macs"] == 8 * (32 * 32 - 2 * 8 * 32)
