"""Recipes: any legal sequence of steps is one network that trains, saves, loads and runs; an illegal one says why."""

import json
from itertools import permutations

import pytest
import torch
import yaml
from conftest import GREY, digits, only
from small_networks import noisy
from torch import nn

import afina
from afina.data import open_data
from afina.errors import InputError
from afina.graph import Network, capture
from afina.graph.stored import attribute
from afina.jobs.common.recipe import check_order, read_recipe, recipe_text
from afina.runtimes import check_parity, get_runtime
from afina.training import FitConfig, evaluate, fit
from afina.types import Step

STEPS = {
    "prune": {"macs": 0.7, "images": 64},
    "factorize": {"parameters": 0.7, "images": 64, "method": "spatial"},
    "sparsify": {"sparsity": 0.5, "images": 64},
    "distill": {"epochs": 1, "learning_rate": 0.01},
    "quantize": {"weight_type": "int7", "images": 64, "calibration": "minmax"},
}


def legal(*names: str) -> bool:
    try:
        check_order([Step(name) for name in names])
    except InputError:
        return False
    return True


PAIRS = [pair for pair in permutations(STEPS, 2) if legal(*pair)]


class Tokens(nn.Module):
    """A transformer block, small: linear layers on tokens, attention, layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.grow, self.shrink, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x[:, 0])
        normed = self.norm1(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        x = x + self.shrink(torch.relu(self.grow(self.norm2(x))))
        return self.head(x.mean(1))


@pytest.fixture(scope="module")
def data():
    return open_data("digits", seed=0)


@pytest.fixture(scope="module")
def tokens(data) -> Network:
    torch.manual_seed(0)
    start = capture(Tokens(), GREY, data.task)
    return fit(start, data, FitConfig(epochs=4, optimizer="adamw", learning_rate=5e-3, batch_size=64))[0]


@pytest.fixture(scope="module")
def one_step(data, digits_network, tokens):
    """Networks after one step each, made when they are first asked for."""
    known: dict[tuple[str, str], Network] = {}
    whole = {"convolutions": digits_network, "tokens": tokens}

    def make(which: str, name: str) -> Network:
        if (which, name) not in known:
            known[which, name] = apply(whole[which], name, data, whole[which])
        return known[which, name]

    return make


def apply(network: Network, name: str, data, original: Network) -> Network:
    if name == "distill":
        return afina.distill(original, network, data, **STEPS[name])[0]
    return getattr(afina, name)(network, data, teacher=original, **STEPS[name])[0]


@pytest.mark.parametrize("which", ["convolutions", "tokens"])
@pytest.mark.parametrize(("first", "second"), PAIRS, ids=[f"{a}-{b}" for a, b in PAIRS])
def test_every_legal_pair_gives_a_network_that_loads_trains_and_runs_on_both_runtimes(
    which, first, second, one_step, data, digits_network, tokens, tmp_path
):
    result = apply(one_step(which, first), second, data, digits_network if which == "convolutions" else tokens)
    loaded = Network.load(result.save(tmp_path / "n.pt2"))
    images = digits(0, 32)[0]
    with result.inference(), loaded.inference():
        assert torch.equal(only(result(images)), only(loaded(images)))
    # Each pair on both runtimes: convolutions on one, tokens on the other, and the other way round for the next pair.
    runtime = get_runtime(("onnxruntime", "openvino")[(PAIRS.index((first, second)) + (which == "tokens")) % 2])
    assert check_parity(loaded, runtime.export(loaded, tmp_path / f"m{runtime.suffix}"), data, threads=1) < 0.1
    if second != "quantize":
        trained = fit(loaded, data, FitConfig(epochs=1, learning_rate=0.01), teacher=loaded)[0]
        assert torch.isfinite(only(trained(images))).all()


@pytest.mark.parametrize("qat", [0, 1])
def test_zeros_survive_distillation_and_quantization(digits_network, tmp_path, qat):
    steps = [
        {"sparsify": {"sparsity": 0.6, "images": 64}},
        {"distill": {"epochs": 1}},
        {"quantize": {"weight_type": "int4", "images": 64, "calibration": "minmax", "qat": qat}},
    ]
    result = afina.run(steps, digits_network, "digits", out=tmp_path / "r")
    network = Network.load(result.network)
    sparse = Network.load(next((tmp_path / "r" / "work").glob("1-*.pt2")))
    zero = attribute(sparse.module, "inner.weight") == 0
    assert float(zero.float().mean()) > 0.3
    codes = [value for name, value in network.module.state_dict().items() if value.dtype == torch.int8]
    inner = next(code for code in codes if code.shape == zero.shape)
    assert (inner[zero] == 0).all()


def test_a_recipe_from_a_file_is_run_judged_kept_and_replayed_on_another_model(digits_network, tmp_path):
    recipe = tmp_path / "small.yaml"
    recipe.write_text(
        "steps:\n- factorize: {parameters: 60%, method: spatial, images: 64}\n"
        "- quantize: {images: 64, calibration: minmax}\n"
    )
    result = afina.run(recipe, digits_network, "digits", out=tmp_path / "first")
    assert result.size < 0.4 * result.original_size
    assert result.quality.value > result.original.value - 0.03
    assert [record.step.technique for record in result.records] == ["factorize", "quantize"]
    kept = json.loads((tmp_path / "first" / "metadata.json").read_text())
    assert kept["records"][0]["step"]["config"]["layers"]
    assert (tmp_path / "first" / "model.onnx").stat().st_size == result.size
    other = noisy(digits_network, 0.1)
    again = afina.run(tmp_path / "first" / "recipe.yaml", other, "digits", out=tmp_path / "second")
    assert again.size == result.size
    assert again.original.value == pytest.approx(evaluate(other, open_data("digits", seed=0)).value, abs=0.005)
    assert again.quality.value > again.original.value - 0.05
    images = digits(0, 32)[0]
    first, second = Network.load(result.network), Network.load(again.network)
    with other.inference(), first.inference(), second.inference():
        # It is the other model that was compressed: the second network is closer to it than the first is.
        assert (only(second(images)) - only(other(images))).norm() < (only(first(images)) - only(other(images))).norm()


def test_a_recipe_goes_on_from_the_last_step_that_is_the_same(digits_network, tmp_path):
    from test_training import Said

    steps = [{"prune": {"macs": "70%", "images": 64}}, {"quantize": {"images": 64, "calibration": "minmax"}}]
    afina.run(steps, digits_network, "digits", out=tmp_path / "r")
    said = Said()
    steps[1] = {"quantize": {"images": 64, "calibration": "mse"}}
    afina.run(steps, digits_network, "digits", out=tmp_path / "r", progress=said)
    assert [line for line in said.lines if line.startswith("Step")] == ["Step 2 of 2: quantize."]


def test_the_original_teaches_every_training(digits_network, tmp_path, monkeypatch):
    from afina.jobs.common import finetuning

    teachers = []
    real = finetuning.fit

    def watched(*args, teacher, **rest):
        teachers.append(teacher)
        return real(*args, teacher=teacher, **rest)

    monkeypatch.setattr(finetuning, "fit", watched)
    steps = [
        {"prune": {"macs": 0.7, "images": 64, "finetune": 1}},
        {"sparsify": {"sparsity": 0.5, "images": 64, "finetune": 1}},
    ]
    afina.run(steps, digits_network, "digits", out=tmp_path / "r")
    with digits_network.inference():
        expected = only(digits_network(digits(0, 4)[0]))
        for teacher in teachers:
            assert torch.equal(only(teacher(digits(0, 4)[0])), expected)
    assert len(teachers) == 2


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (
            [{"quantize": {}}, {"prune": {"macs": 0.5}}],
            r"Step 2 \(prune\) requires float-weights, which step 1",
        ),
        ([{"sparsify": {}}, {"factorize": {}}], r"requires dense-weights.*[\s\S]*Put factorize before sparsify"),
        ([{"prun": {}}], "prune"),
        ([{"prune": {"mcas": 0.5}}], "macs"),
        ([{"prune": {"data": "digits"}}], "has no option 'data'"),
        ([{"prune": 3}], "its options are 3"),
        ([], "list of steps"),
        ({"step": []}, "has no option 'step'"),
        ([{"prune": {}, "quantize": {}}], "not one step"),
        ([{"prune": {"macs": 0.5, "finetune": "one"}}], r"Step 1 \(prune\): finetune is 'one'"),
        ([{"prune": {"macs": 0.5, "finetune": 1, "learning_rate": -1}}], "--learning-rate is -1"),
        ([{"prune": {"macs": 0.5}}, {"prune": {}}], r"Step 2 \(prune\): No target was given"),
        ([{"prune": {"macs": 0.5}}, {"factorize": {"parameters": "150%"}}], r"Step 2 \(factorize\): --parameters 150%"),
        ([{"prune": {"macs": 0.5}}, {"sparsify": {"pattern": "4:2"}}], r"Step 2 \(sparsify\): .*4:2"),
        ([{"prune": {"macs": 0.5}}, {"distill": {"epochs": 0}}], r"Step 2 \(distill\): .*epochs is 0"),
        (
            [{"prune": {"macs": 0.5}}, {"quantize": {"weight_type": "int9"}}],
            r"Step 2 \(quantize\): --weight-type 'int9'",
        ),
        ([{"prune": {"macs": 0.5}}, {"quantize": {"max_drop": "2 percent"}}], r"Step 2 \(quantize\): --max-drop"),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_is_run(steps, said, digits_network, tmp_path):
    with pytest.raises(InputError, match=said):
        afina.run(steps, digits_network, "digits", out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_recipe_that_is_not_yaml_says_so(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("steps: [")
    with pytest.raises(InputError, match="cannot be read"):
        read_recipe(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_recipe(tmp_path / "missing.yaml")


def test_a_recipe_is_written_as_it_is_read():
    steps = [{"prune": {"macs": "50%"}}, {"quantize": {"weight_type": "int4"}}]
    recipe = read_recipe(steps)
    assert yaml.safe_load(recipe_text(recipe)) == {"steps": steps}
    assert read_recipe(yaml.safe_load(recipe_text(recipe))) == recipe


def test_what_a_record_says_was_done_is_done_again_by_a_recipe(digits_network, tmp_path):
    pruned, record = afina.prune(digits_network, "digits", macs="60%", images=64)
    recipe = tmp_path / "again.yaml"
    recipe.write_text(recipe_text([Step("prune", {"config": record.step.config})]))
    again = Network.load(afina.run(recipe, digits_network, "digits", out=tmp_path / "r").network)
    assert [p.shape for p in again.module.parameters()] == [p.shape for p in pruned.module.parameters()]
    assert again.module.code == pruned.module.code


def test_other_weights_or_another_input_size_never_give_the_network_of_before(digits_network, tmp_path):
    steps = [{"prune": {"macs": "60%", "criterion": "magnitude"}}]
    afina.run(steps, digits_network, "digits", out=tmp_path / "r")
    other = noisy(digits_network)
    with pytest.raises(InputError, match="another"):
        afina.run(steps, other, "digits", out=tmp_path / "r")
