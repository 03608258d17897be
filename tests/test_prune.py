"""Pruning real networks: smaller as promised, trainable, saved and loaded, the same on the runtimes."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DIGITS, GREY, digits, only
from small_networks import grouped, known, standardised_weights
from torch import nn
from typer.testing import CliRunner

import afina
from afina.cli import app
from afina.data import open_data
from afina.errors import AfinaError, InputError, NothingToDo
from afina.graph import Network, capture
from afina.graph.axes import Analysis
from afina.graph.blocks import find_blocks, remove_blocks
from afina.graph.cost import cost_of
from afina.graph.statistics import Effect, write_matrices
from afina.graph.stored import attribute
from afina.graph.surgery import remove
from afina.jobs.planning.axes import AxisPlanner
from afina.jobs.planning.targets import Target
from afina.models.builtin import convnet
from afina.reporting import sensitivity_text, write_sensitivity_csv, write_sensitivity_html
from afina.runtimes import get_runtime
from afina.techniques.context import Context
from afina.techniques.prune import PruneConfig, Study, apply, sensitivities
from afina.training import FitConfig, fit
from afina.types import InputSpec, TaskSpec

_INPUT, _TASK = InputSpec(64, 64), TaskSpec("classification", tuple(map(str, range(1000))))


def _zoo(name: str) -> Network:
    import torchvision

    torch.manual_seed(0)
    return capture(getattr(torchvision.models, name)(), _INPUT, _TASK)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_networks_that_people_use_are_halved_train_save_and_load(name, tmp_path):
    network = _zoo(name)
    pruned, record = apply(network, PruneConfig(ratio=0.5), Context())
    assert cost_of(pruned).macs < 0.4 * cost_of(network).macs
    assert record.after["parameters"] == cost_of(pruned).parameters < 0.65 * record.before["parameters"]
    only(pruned.train()(pruned.example())).square().mean().backward()
    assert all(p.grad is not None for p in pruned.module.parameters())
    loaded = Network.load(pruned.eval().save(tmp_path / "n.pt2"))
    with pruned.inference(), loaded.inference():
        assert torch.equal(only(pruned(pruned.example(3))), only(loaded(pruned.example(3))))


def test_units_that_carry_nothing_go_first_and_cost_nothing(small_network):
    readers = [small_network.module.get_parameter(f"{name}.weight") for name in ("head", "inner")]
    with torch.no_grad():
        for weight in readers:
            weight[:, ::2] = 0
    images = torch.randn(16, 1, 8, 8)
    context = Context(calibration=lambda: iter([images]))
    pruned, _ = apply(small_network, PruneConfig(ratio=0.5), context)
    with small_network.inference(), pruned.inference():
        assert torch.allclose(only(small_network(images)), only(pruned(images)), atol=1e-5)


@pytest.fixture
def uneven_network(small_network) -> Network:
    """Norms that differ from channel to channel, so that criteria which read them have something to choose by."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        scales = 0.2 + torch.rand(16, generator=generator)
        for name in ("norm", "inner_norm"):
            small_network.module.get_parameter(f"{name}.weight").copy_(scales)
    return small_network


def kept_scales(network: Network, config: PruneConfig, seed: int = 3) -> list[float]:
    """The scales of the first norm's channels that stay: they tell which channels these are."""
    pruned, _ = apply(network, config, Context(seed=seed))
    return pruned.module.get_parameter("norm.weight").tolist()


@pytest.mark.parametrize("criterion", ["fit", "magnitude", "taylor", "batchnorm", "random"])
def test_the_same_seed_gives_the_same_network(uneven_network, criterion):
    images = digits(0, 32)[0]
    context = Context(calibration=lambda: iter([images]), seed=3)
    first, second = (apply(uneven_network, PruneConfig(0.5, criterion=criterion), context)[0] for _ in range(2))
    for key, value in first.module.state_dict().items():
        assert torch.equal(value, second.module.state_dict()[key])


def test_another_seed_draws_other_units_at_random(uneven_network):
    config = PruneConfig(0.5, criterion="random")
    assert kept_scales(uneven_network, config, seed=3) != kept_scales(uneven_network, config, seed=4)


def test_batchnorm_keeps_the_channels_with_the_largest_scales(uneven_network):
    largest = uneven_network.module.get_parameter("norm.weight").topk(8).values.tolist()
    assert sorted(kept_scales(uneven_network, PruneConfig(0.5, criterion="batchnorm")), reverse=True) == largest


def test_without_images_the_record_says_that_magnitude_was_used(small_network):
    _, record = apply(small_network, PruneConfig(0.5), Context())
    assert record.step.config["criterion"] == "magnitude"
    assert any("no calibration images" in note for note in record.notes)


def test_kept_channels_are_the_multiple_asked_for():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 40, 3), nn.ReLU(), nn.Flatten(), nn.Linear(40 * 36, 10))
    pruned, _ = apply(capture(module, GREY, DIGITS), PruneConfig(0.45, multiple=8), Context())
    assert pruned.module.get_parameter("0.weight").shape[0] == 24


@pytest.mark.parametrize(
    "config", [{"ratio": 0.0}, {"ratio": 1.0}, {"ratio": -1}, {"criterion": "magnitud"}, {"multiple": 0}]
)
def test_a_configuration_that_is_not_possible_is_one_clear_error(small_network, config):
    with pytest.raises(InputError):
        apply(small_network, PruneConfig(**config), Context())


def test_a_network_with_no_free_axis_is_nothing_to_do():
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(NothingToDo):
        apply(capture(module, GREY, DIGITS), PruneConfig(0.5), Context())


class Vision(nn.Module):
    """A small vision transformer: class token, position embedding, fused attention."""

    def __init__(self, width: int = 24, heads: int = 4, depth: int = 1) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 17, width))
        layers = [
            nn.TransformerEncoderLayer(width, heads, 48, 0.0, batch_first=True, norm_first=True) for _ in range(depth)
        ]
        self.blocks = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


@pytest.fixture(scope="module")
def reader_of_digits() -> Network:
    """A narrow residual network that reads real digits."""
    torch.manual_seed(0)
    network = capture(convnet(10, width=16), GREY, DIGITS)
    return fit(network, open_data("digits", seed=0), FitConfig(epochs=6, learning_rate=0.05))[0]


def test_fit_keeps_a_trained_network_reading_without_training(reader_of_digits):
    share, found = 0.5, {}
    for criterion in ("fit", "random"):
        network, record = afina.prune(reader_of_digits, "digits", macs=share, criterion=criterion, images=128)
        found[criterion] = record.after["quality"]
        assert 0.98 * share <= cost_of(network).macs / cost_of(reader_of_digits).macs <= share
    assert record.before["quality"] > 0.95
    assert found["fit"] >= record.before["quality"] - 0.05
    assert found["fit"] >= found["random"] - 0.01


def test_a_target_in_bytes_is_met_by_the_exported_file(reader_of_digits, tmp_path):
    network, record = afina.prune(reader_of_digits, "digits", size="80KB", images=32)
    path = get_runtime("onnxruntime").export(network, tmp_path / "model.onnx")
    assert 0.98 * 80e3 <= path.stat().st_size <= 80e3
    assert record.step.config["keep"]


def test_a_target_in_seconds_is_met_on_the_runtime():
    torch.manual_seed(0)
    network, measured = capture(convnet(10), GREY, DIGITS), []

    def measure(candidate: Network) -> float:
        measured.append(candidate)
        return 1e-4 + 1e-11 * cost_of(candidate).macs

    study = Study(network, PruneConfig(criterion="magnitude"), Context())
    counts = AxisPlanner(study, "global", "macs").reach(Target("latency", 2e-4, "s", measure))
    pruned, _ = study.prune(counts)
    assert 1.96e-4 <= measure(pruned) <= 2e-4
    assert len(measured) < 12


def test_wide_axes_keep_multiples_of_eight_unless_that_would_miss_the_target():
    torch.manual_seed(0)
    wide = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 512), nn.ReLU(),
        nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10),
    )  # fmt: skip
    _, record = afina.prune(wide, macs=0.61, example=GREY)
    assert 0.98 * 0.61 <= record.after["macs"] / record.before["macs"] <= 0.61
    kept = record.step.config["keep"]
    assert {"3", "5"} & set(kept)
    assert all(kept[name] % 8 == 0 for name in kept if name in ("3", "5"))
    coarse = capture(nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10)), GREY, DIGITS)
    _, record = afina.prune(coarse, macs=0.7)
    assert 0.98 * 0.7 <= record.after["macs"] / record.before["macs"] <= 0.7
    assert any("would miss the target" in note for note in record.notes)
    _, record = afina.prune(coarse, macs=0.7, multiple=8)
    assert record.after["macs"] / record.before["macs"] == 64 / 96


class EveryNinth(nn.Module):
    """A layer reads one channel of each of eight normalised groups: none may be left where groups and channels go."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 64, 3, padding=1), nn.GroupNorm(8, 64)
        self.some, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(72, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.head(torch.cat((x, self.some(x[:, ::9])), dim=1).mean((2, 3)))


def test_plans_leave_something_of_every_layer_where_axes_cross():
    torch.manual_seed(0)
    network = capture(EveryNinth(), GREY, DIGITS)
    axes = {axis.name: axis for axis in Analysis(network).axes.free}
    with pytest.raises(InputError, match=r"Nothing would be left of some\.weight"):
        remove(network, {axes["stem"]: [0], axes["stem #2"]: [1]})
    for share in (0.5, 0.1):
        pruned, record = afina.prune(network, parameters=share)
        assert cost_of(pruned).parameters <= share * cost_of(network).parameters
        assert only(pruned(pruned.example(2))).shape == (2, 10)
        assert "nothing left" in record.skipped["stem #2"]
    with pytest.raises(InputError, match="smallest possible"):
        afina.prune(network, parameters=0.01)


def test_sensitivities_are_measured_on_one_copy_and_leave_the_network_as_it_was(reader_of_digits, monkeypatch):
    network = reader_of_digits.copy().eval()
    before = {key: value.clone() for key, value in network.module.state_dict().items()}
    images = torch.randn(64, 1, 8, 8)
    study = Study(network, PruneConfig(), Context(calibration=lambda: iter([images]), images=64))
    copies, copy = [], Network.copy
    monkeypatch.setattr(Network, "copy", lambda self: copies.append(1) or copy(self))
    found = sensitivities(study)
    assert len(copies) == 1
    assert len(found) == len(study.axes) > 1
    for key, value in network.module.state_dict().items():
        assert torch.equal(value, before[key]), key
    # The same as comparing with a network that lost the units.
    axis = next(axis for axis in study.axes.values() if axis.kind == "channels")
    gone = found[axis.name].gone[0]
    path = study.path(axis, study.states(), axis.size - 1, (gone,))
    keep = sorted(set(range(axis.size)) - set(path.order[:gone]))
    with torch.no_grad():
        for name, matrices in path.matrices[gone].items():
            write_matrices(network, study.readers[name], matrices, [None] * network.module.get_parameter(name).ndim)
    smaller = remove(network, {axis: keep}, analysis=study.analysis)
    effect = Effect(reader_of_digits, images)
    assert effect.of(smaller) == pytest.approx(found[axis.name].measured[0], rel=1e-3)


def test_axes_of_attention_can_be_chosen_by_kind():
    torch.manual_seed(0)
    network = capture(Vision(), GREY, DIGITS)
    images = torch.randn(64, 1, 8, 8)
    context = Context(calibration=lambda: iter(images.split(32)), images=64)
    for kind, weight, shape in (
        ("heads", "blocks.0.self_attn.out_proj.weight", (24, 12)),
        ("hidden", "blocks.0.linear1.weight", (24, 24)),
        ("embedding", "blocks.0.linear1.weight", (48, 12)),
    ):
        pruned, record = apply(network, PruneConfig(ratio=0.5, axes=(kind,)), context)
        assert tuple(pruned.module.get_parameter(weight).shape) == shape, kind
        assert set(record.skipped.values()) >= {"not among the axes asked for"}
        assert only(pruned(images)).shape == (64, 10)


def test_a_transformer_is_pruned_to_half_its_parameters_and_trains_on(tmp_path):
    torch.manual_seed(0)
    network, record = afina.prune(Vision(), "digits", parameters="50%", images=128, example=GREY)
    assert 0.48 <= record.after["parameters"] / record.before["parameters"] <= 0.5
    only(network.train()(network.example())).square().mean().backward()
    loaded = Network.load(network.eval().save(tmp_path / "v.pt2"))
    with network.inference(), loaded.inference():
        assert torch.equal(only(network(network.example(3))), only(loaded(network.example(3))))


def test_per_layer_takes_the_same_share_of_every_axis(reader_of_digits):
    _, record = afina.prune(reader_of_digits, "digits", macs=0.5, per="layer", images=64, criterion="magnitude")
    kept = record.step.config["keep"]
    sizes = {name: axis.size for name, axis in Study(reader_of_digits, PruneConfig(), Context()).axes.items()}
    shares = [kept[name] / sizes[name] for name in sizes]
    assert max(shares) - min(shares) < 0.1  # of axes of 16 units


def test_a_fine_tuning_that_only_harms_leaves_the_network_as_it_was(reader_of_digits):
    options = {"macs": 0.7, "images": 64}
    _, plain = afina.prune(reader_of_digits, "digits", **options)
    _, tuned = afina.prune(reader_of_digits, "digits", **options, finetune=1, optimizer="sgd", learning_rate=3.0)
    assert tuned.after["quality"] == plain.after["quality"]


def test_steps_end_at_the_target_with_fine_tuning_between(reader_of_digits):
    network, record = afina.prune(reader_of_digits, "digits", macs=0.3, steps=2, finetune=1, images=64)
    assert 0.29 <= cost_of(network).macs / cost_of(reader_of_digits).macs <= 0.3
    assert record.after["quality"] > 0.85
    assert record.before["macs"] == cost_of(reader_of_digits).macs


def test_a_record_replays_on_the_same_network(reader_of_digits):
    images = torch.randn(64, 1, 8, 8)
    context = Context(calibration=lambda: iter([images]), images=64)
    first, record = apply(reader_of_digits, PruneConfig(0.4), context)
    second, _ = apply(reader_of_digits, PruneConfig(**record.step.config), context)
    with first.inference(), second.inference():
        assert torch.equal(only(first(images)), only(second(images)))


def test_sensitivities_grow_with_what_is_gone_and_are_shown_as_table_csv_and_plot(reader_of_digits, tmp_path):
    rows = afina.sensitivity(reader_of_digits, "digits", images=128)
    axes, layers = [r for r in rows if r.kind != "weights"], [r for r in rows if r.kind == "weights"]
    assert axes
    assert {row.name for row in layers} >= {"head"}
    for row in rows:
        assert row.measured[-1] > row.measured[0] >= 0
        assert np.all(np.diff(row.losses) >= 0)
    text = sensitivity_text(rows)
    assert all(row.name in text for row in rows)
    table = list(csv.DictReader(write_sensitivity_csv(rows, tmp_path / "s.csv").read_text().splitlines()))
    assert len(table) == sum(len(row.gone) for row in rows)
    page = write_sensitivity_html(rows, tmp_path / "s.html", "x").read_text()
    assert "http" not in page.split("<body>")[0]
    assert "plotly" in page.lower()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "No target was given"),
        ({"macs": 0.5, "parameters": 0.5}, "More than one target"),
        ({"macs": "150%"}, "not between 0 and 1"),
        ({"parameters": "0.01%"}, r"(?s)smallest possible is .*What binds"),
        ({"size": "500B"}, "smallest possible"),
        ({"macs": 0.5, "criterion": "magnitud"}, "Did you mean magnitude"),
        ({"macs": 0.5, "axis": "chanels"}, "Did you mean channels"),
        ({"macs": 0.5, "per": "globl"}, "There are: global, layer"),
        ({"macs": 0.5, "finetune": 1}, "needs images"),
        ({"macs": 0.5, "steps": 2}, "gains nothing"),
        ({"size": "5GB"}, "already"),
    ],
)
def test_a_target_that_is_not_possible_is_one_clear_error(small_network, options, expected):
    with pytest.raises(AfinaError, match=expected):
        afina.prune(small_network, **options)


def test_data_that_contradicts_the_network_is_refused(reader_of_digits):
    images = [(torch.rand(1, 8, 8), 0.5) for _ in range(20)]

    class Items(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int):
            return images[index]

    with pytest.raises(InputError):
        afina.prune(nn.Sequential(nn.Flatten(), nn.ReLU()), Items(), macs=0.5, example=GREY)


def test_the_command_writes_a_network_that_loads_and_nothing_when_it_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = CliRunner().invoke
    good = call(app, ["prune", "builtin:convnet", "--weights", "random", "--parameters", "50%", "--json", "--quiet"])
    assert good.exit_code == 0, good.stderr
    saved = json.loads(good.stdout)
    assert cost_of(Network.load(saved["file"])).parameters == saved["record"]["after"]["parameters"]
    Path(saved["file"]).unlink()
    for options in (
        ["--macs", "0.0001%"],
        ["--macs", "50%", "--out", "n.onnx"],
        ["--macs", "50%", "--out", "no/n.pt2"],
    ):
        bad = call(app, ["prune", "builtin:convnet", "--weights", "random", "--quiet", *options])
        assert bad.exit_code == 2, bad.stderr
        assert "Error:" in bad.stderr
    assert list(tmp_path.iterdir()) == []


def test_whole_residual_blocks_go_and_the_rest_answers_as_without_them(reader_of_digits):
    known = find_blocks(reader_of_digits)
    assert list(known) == ["blocks.0", "blocks.1", "blocks.3"]
    twin = reader_of_digits.copy().eval()
    with torch.no_grad():
        # The last norm of each branch gives nothing: the shortcut goes on alone.
        for name in ("blocks.0.conv2.1", "blocks.3.conv2.1"):
            twin.module.get_parameter(f"{name}.weight").zero_()
            twin.module.get_parameter(f"{name}.bias").zero_()
    without = remove_blocks(reader_of_digits, ["blocks.0", "blocks.3"])
    assert not any(name.startswith(("blocks.0", "blocks.3")) for name, _ in without.module.named_parameters())
    with twin.inference(), without.inference():
        torch.testing.assert_close(only(without(without.example(4))), only(twin(twin.example(4))))
    with pytest.raises(InputError, match=r"Did you mean blocks\.0"):
        remove_blocks(reader_of_digits, ["block.0"])


def test_blocks_alone_stop_below_the_target_and_channels_make_up_the_rest(reader_of_digits):
    whole = cost_of(reader_of_digits).macs
    network, record = afina.prune(reader_of_digits, "digits", macs=0.7, axis="blocks", images=128)
    assert cost_of(network).macs < 0.7 * whole
    assert record.step.config["blocks"]
    assert record.after["quality"] > 0.8
    network, record = afina.prune(reader_of_digits, "digits", macs=0.4, axis=["blocks", "channels"], images=128)
    assert 0.39 * whole <= cost_of(network).macs <= 0.4 * whole
    assert record.step.config["blocks"]
    assert record.step.config["keep"]
    with pytest.raises(InputError, match="cannot be met by taking blocks out"):
        afina.prune(reader_of_digits, "digits", macs=0.01, axis="blocks", images=64)


def _of_one_axis() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 10))


def test_half_of_a_layer_of_32_channels_is_16_of_them():
    network, record = afina.prune(_of_one_axis(), "digits", macs="50%", images=64)
    assert attribute(network.module, "0.weight").shape[0] == 16
    assert record.after["macs"] == 0.5 * record.before["macs"]


def test_a_layer_whose_weights_are_computed_on_the_way_gives_no_more_units_than_the_target_needs():
    """Its cost is no part of what axes are charged for: a target of 60% once ended at 8% of the MACs."""
    original = known(standardised_weights)
    _, record = afina.prune(original, macs="60%")
    assert 0.5 < record.after["macs"] / record.before["macs"] <= 0.6
    assert any("below the target of" in note and "with the next step up" in note for note in record.notes)


def test_a_target_that_is_met_only_from_far_below_is_an_error_with_what_was_reached_and_why():
    with pytest.raises(
        InputError, match=r"(?s)missed from below: the nearest .* has 7\.07 k MACs.*next step up.*larger target"
    ):
        afina.prune(known(grouped), macs="50%")
