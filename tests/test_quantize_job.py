"""`afina quantize`: a file judged, plans by time and bytes, a guard on the quality, clear errors, the command line."""

import contextlib
import json
import re

import pytest
import torch
from conftest import GREY, digits, only
from test_cli import call

import afina
from afina.errors import AfinaError, InputError, ParityError
from afina.graph import Network, capture
from afina.graph.cost import cost_of, layer_rows
from afina.jobs import quantize as quantize_job
from afina.jobs.common.exporter import Answers, Exporter, Shelf
from afina.runtimes import RUNTIMES, measure_quality
from afina.tasks import get_task
from afina.techniques.quantize import Source, rounding, weights
from afina.training import predict
from afina.types import Measurement, TaskSpec

QUICK = {"calibration": "minmax", "rounding": "nearest", "equalize": "none", "images": 64, "threads": 1}


class Images(torch.utils.data.Dataset):
    """Images without labels, or pairs of an image and its target."""

    def __init__(self, images: list) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        return self.images[index]


def _is_integer(network: Network) -> bool:
    """Whether it computes on integers, and does not only store them."""
    return any("quantize_per_tensor" in str(node.target) for node in network.graph.nodes)


@pytest.fixture
def no_files(monkeypatch):
    """Networks are judged by themselves and sized by their cost: what is promised here does not depend on files."""

    def judge(self, network, data, progress, reference=None, split="validation"):
        outputs, task = predict(network, data, split), get_task(network.task)
        against = outputs if reference is None and not data.labelled else reference
        quality = measure_quality(
            outputs, data, task, network.input, reference=against, runtime=self.runtime, split=split
        )
        return Answers(quality, outputs, float(cost_of(network).bytes))

    monkeypatch.setattr(Exporter, "judge", judge)
    monkeypatch.setattr(Exporter, "size", lambda self, network: float(cost_of(network).bytes))
    monkeypatch.setattr(Exporter, "shelf", _by(lambda network: 1e-3))


@pytest.fixture
def timed(monkeypatch, no_files):
    """Latency by a rule: seconds for a network."""

    return lambda rule: monkeypatch.setattr(Exporter, "shelf", _by(rule))


def _by(rule, wrong=lambda network: False, spread=None):
    class Networks(Shelf):
        def check(self, name, network, images):
            if wrong(network):
                raise ParityError(name)

        def add(self, name, network):
            self._files[name] = network

        def keep(self, names):
            self._files = {name: self._files[name] for name in names}

        def latencies(self, names):
            return {name: Measurement(rule(self._files[name]), "s", "measured", spread) for name in names}

    return lambda exporter: contextlib.nullcontext(Networks(exporter, None))


# The file


@pytest.fixture(scope="module")
def int4(digits_network):
    return afina.quantize(digits_network, "digits", weight_type="int4", images=128, threads=1)


def test_the_file_loses_next_to_nothing_and_answers_as_the_simulation(int4):
    _, record = int4
    assert record.after["quality"] >= record.before["quality"] - 0.01
    assert record.after["agreement"] >= 0.995
    assert record.after["file"] < 0.35 * record.before["file"]
    assert any("agree on" in note for note in record.notes)


def test_calibration_images_of_little_contrast_are_warned_of(digits_network, no_files):
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def notes(low, high):
        ready = [((low + (high - low) * image) - 0.3) / 0.3 for image in images]
        return " ".join(afina.quantize(digits_network, Images(ready), example=GREY, **QUICK)[1].notes)

    assert "the calibration images have 19% of the contrast" in notes(0.4, 0.6)
    assert "of the contrast" not in notes(0.0, 1.0)


def test_the_network_exports_to_the_file_that_was_judged(int4, tmp_path):
    network, record = int4
    path = RUNTIMES["onnxruntime"].export(network, tmp_path / "q.onnx")
    assert path.stat().st_size == record.after["file"]


# Plans


def test_a_plan_leaves_float_what_is_faster_in_float_and_stores_its_weights_small(digits_network, timed):
    timed(lambda network: 2e-3 if _is_integer(network) else 1e-3)
    network, record = afina.quantize(digits_network, "digits", plan="auto", **QUICK)
    assert not _is_integer(network)
    assert {row.precision for row in layer_rows(network)} == {"int8"}
    assert any("Taken: float" in note for note in record.notes)
    assert record.after["bytes"] < 0.35 * record.before["bytes"]


def test_a_plan_takes_integers_only_where_they_are_clearly_faster(digits_network, timed):
    timed(lambda network: 0.995e-3 if _is_integer(network) else 1e-3)
    assert not _is_integer(afina.quantize(digits_network, "digits", plan="auto", **QUICK)[0])
    timed(lambda network: 0.5e-3 if _is_integer(network) else 1e-3)
    network, record = afina.quantize(digits_network, "digits", plan="auto", **QUICK)
    assert _is_integer(network)
    assert any("Taken: integers" in note for note in record.notes)


def test_a_plan_times_placements_that_come_to_the_same_once(digits_network, monkeypatch):
    made = []

    def add(self, name, network):
        made.append(network.module.code)
        keep(self, name, network)

    keep = Shelf.add
    monkeypatch.setattr(Shelf, "add", add)
    monkeypatch.setattr(
        Shelf, "latencies", lambda self, names: {name: Measurement(1e-3, "s", "measured") for name in names}
    )
    afina.quantize(digits_network, "digits", plan="auto", runtime="openvino", **QUICK)
    assert len(made) > 3
    # What is told of the whole file in the end is timed beside the original, and needs both again.
    assert len(set(made[:-2])) == len(made) - 2


def test_a_gain_that_varies_more_than_it_gains_is_no_gain(digits_network, monkeypatch, no_files):
    shelf = _by(lambda network: 0.9e-3 if _is_integer(network) else 1e-3, spread=0.1e-3)
    monkeypatch.setattr(Exporter, "shelf", shelf)
    assert not _is_integer(afina.quantize(digits_network, "digits", plan="auto", **QUICK)[0])


def test_a_placement_that_the_last_timing_calls_slower_is_taken_back(digits_network, monkeypatch, no_files):
    def rule(network):
        # Integers win as long as placements are tried, and lose to the original in the last timing.
        return (1.07e-3 if finished else 0.7e-3) if _is_integer(network) else 1e-3

    finished = []
    judge = quantize_job.with_answers
    monkeypatch.setattr(quantize_job, "with_answers", lambda *a: (finished.append(1), judge(*a))[1])
    monkeypatch.setattr(Exporter, "shelf", _by(rule))
    network, record = afina.quantize(digits_network, "digits", plan="auto", **QUICK)
    assert not _is_integer(network)
    assert record.after["latency"] <= record.before["latency"]
    assert any("not in the last timing (1 ms to 1.07 ms)" in note for note in record.notes)
    assert {row.precision for row in layer_rows(network)} == {"int8"}
    assert not any("--plan auto" in note for note in record.notes)


def test_a_plan_looks_for_the_scales_of_each_weight_once(digits_network, no_files, monkeypatch):
    looked = []

    def best_scales(flat, *rest):
        looked.append(flat)
        return rounding.best_scales(flat, *rest)

    monkeypatch.setattr(weights, "best_scales", best_scales)
    afina.quantize(digits_network, "digits", plan="auto", **QUICK)
    assert 0 < len(looked) <= len(Source.of(digits_network).layers)


def test_a_plan_leaves_out_placements_that_the_runtime_cannot_run(digits_network, timed):
    def rule(network):
        if _is_integer(network):
            raise AfinaError("The process that measures ended with exit code 1.")
        return 1e-3

    timed(rule)
    network, record = afina.quantize(digits_network, "digits", plan="auto", **QUICK)
    assert not _is_integer(network)
    assert any("Taken: float" in note for note in record.notes)


def test_a_plan_takes_out_the_kind_of_layer_that_slows_the_file(digits_network, timed):
    def reads_integers(network, name):
        (node,) = [n for n in network.graph.nodes if name in str(n.target)]
        return "dequantize" in str(node.args[0].target)

    timed(
        lambda network: (
            (0.5e-3 if _is_integer(network) else 1e-3) + (0.3e-3 if reads_integers(network, "aten.linear") else 0)
        )
    )
    network, record = afina.quantize(digits_network, "digits", plan="auto", **QUICK)
    assert _is_integer(network)
    assert not reads_integers(network, "aten.linear")
    assert any("integers, linear layers in float" in note for note in record.notes)


def test_a_plan_takes_no_file_that_answers_wrongly_however_fast_it_is(digits_network, monkeypatch, no_files):
    halved = lambda network: any(t.dtype == torch.bfloat16 for t in network.module.state_dict().values())  # noqa: E731
    monkeypatch.setattr(type(RUNTIMES["onnxruntime"]), "computes_bf16", lambda self: True)
    seconds = lambda network: 0.3e-3 if halved(network) else 0.5e-3 if _is_integer(network) else 1e-3  # noqa: E731
    monkeypatch.setattr(Exporter, "shelf", _by(seconds, wrong=halved))
    network, record = afina.quantize(digits_network, "digits", plan="auto", **QUICK)
    assert _is_integer(network)
    assert any("bf16 left out, since its file does not answer as its network" in note for note in record.notes)
    monkeypatch.setattr(Exporter, "shelf", _by(seconds, wrong=lambda network: halved(network) or _is_integer(network)))
    network, record = afina.quantize(digits_network, "digits", plan="auto", **QUICK)
    assert not _is_integer(network)
    assert any("Taken: float" in note for note in record.notes)


def test_a_file_is_checked_on_the_images_that_are_given(digits_network, small_network):
    images = digits_network.example(8)
    with Exporter(RUNTIMES["onnxruntime"], 1).shelf() as shelf:
        shelf.add("digits", digits_network)
        shelf.check("digits", digits_network, images)
        with pytest.raises(ParityError, match=r"(?s)Over 8 images"):
            shelf.check("digits", small_network, images)


def test_a_plan_tries_what_a_runtime_may_compute_faster_beside_integers(timed, monkeypatch, tmp_path):
    from small_networks import network_of, vision_transformer

    from afina.jobs.planning.plan_file import read_plan, write_plan
    from afina.jobs.planning.precisions import plan_precisions
    from afina.techniques.context import Context
    from afina.techniques.quantize import QuantizeConfig, Source
    from afina.types import Budget

    def seconds(network):
        held = [tensor.dtype for tensor in network.module.state_dict().values()]
        undone = [n for n in network.graph.nodes if "dequantize_per_tensor" in str(n.target)]
        centred = sum(n.args[2] == 128 for n in undone)
        return 1e-3 * (1 - 0.3 * bool(undone) - 0.1 * (torch.bfloat16 in held) - 0.05 * centred / max(1, len(undone)))

    timed(seconds)
    monkeypatch.setattr(type(RUNTIMES["openvino"]), "computes_bf16", lambda self: True)
    source = Source.of(network_of(vision_transformer()))
    images = source.network.example(32)
    context = Context(calibration=lambda: iter([images]), images=32)
    openvino = RUNTIMES["openvino"]
    config, (note,) = plan_precisions(
        source, QuantizeConfig(policy=openvino.policy()), Budget(), Exporter(openvino, 1), context
    )
    chosen = ("bf16", "always")
    assert (config.policy.norm_parameters, config.policy.symmetric_inputs_of_linear_layers) == chosen
    assert "norms in bf16, symmetric before linear layers" in note
    write_plan(tmp_path / "plan.json", source, config, "openvino")
    again = read_plan(tmp_path / "plan.json").configure(QuantizeConfig())
    assert (again.policy.norm_parameters, again.policy.symmetric_inputs_of_linear_layers) == chosen


@pytest.mark.parametrize("limit", [9_000, 6_000])
def test_a_plan_for_a_size_keeps_it_with_more_than_one_precision(digits_network, timed, limit):
    timed(lambda network: 0.5e-3 if _is_integer(network) else 1e-3)
    network, record = afina.quantize(digits_network, "digits", plan="auto", size=limit, **QUICK)
    assert cost_of(network).bytes <= limit
    assert cost_of(network).bytes > 0.6 * limit
    assert len({row.precision for row in layer_rows(network)}) > 1
    assert any("Bits shared out" in note for note in record.notes)


def test_a_size_that_no_bits_can_keep_says_what_can(digits_network, timed):
    timed(lambda network: 1e-3)
    with pytest.raises(InputError, match=r"(?s)cannot be made by quantization.*smallest possible"):
        afina.quantize(digits_network, "digits", plan="auto", size="3KB", **QUICK)


def test_a_latency_that_cannot_be_kept_says_what_can(digits_network, timed):
    timed(lambda network: 1e-3)
    with pytest.raises(InputError, match=r"(?s)cannot be kept by quantization.*1 ms"):
        afina.quantize(digits_network, "digits", plan="auto", latency="0.2ms", **QUICK)


def test_bits_alone_are_shared_out_for_a_size(digits_network, no_files):
    network, record = afina.quantize(digits_network, "digits", plan="bits", size=6000, **QUICK)
    assert record.after["bytes"] <= 6000
    assert _is_integer(network)
    with pytest.raises(InputError, match="--plan bits is for a limit on size"):
        afina.quantize(digits_network, "digits", plan="bits", latency="1ms", **QUICK)


def test_a_plan_can_be_kept_and_used_again_for_its_network_alone(digits_network, small_network, timed, tmp_path):
    timed(lambda network: 0.5e-3 if _is_integer(network) else 1e-3)
    path = tmp_path / "plan.json"
    first, _ = afina.quantize(digits_network, "digits", plan="auto", size=9_000, save_plan=path, **QUICK)
    again, _ = afina.quantize(digits_network, "digits", plan=path, **QUICK)
    assert [row.precision for row in layer_rows(again)] == [row.precision for row in layer_rows(first)]
    with pytest.raises(InputError, match="another network"):
        afina.quantize(small_network, "digits", plan=path, **QUICK)
    path.write_text("{}")
    with pytest.raises(InputError, match="is not a plan"):
        afina.quantize(digits_network, "digits", plan=path, **QUICK)


STEM = {"stem": {"weights": "int8", "activations": "int8"}}
NEW = {"format": "afina/plan/2"}
BAD_PLANS = {
    "a number": (None, "its format is 3"),
    "no network": ({"network": None}, "does not name its network"),
    "layers in a list": ({"layers": []}, "its layers are not names"),
    "a layer that is a number": ({"layers": {"stem": 3}}, "the precision of layer 'stem' is 3"),
    "bits that there are not": ({"layers": {"stem": {"weights": "int1", "activations": "int8"}}}, "int1"),
    "sums that there are not": ({"sums": "x"}, "sums is 'x'"),
    "text instead of yes or no": ({"centred": "no"}, "centred is 'no'"),
    "additions that there are not": ({**NEW, "policy": {"additions": "x"}}, "additions is 'x'"),
    "a misspelt part of the policy": ({**NEW, "policy": {"addition": "float"}}, "Did you mean additions"),
    "a policy that is a text": ({**NEW, "policy": "fast"}, "policy is 'fast'"),
    "bits of a machine": ({**NEW, "policy": {"int8_weight_bits": 8}}, "its policy has 'int8_weight_bits'"),
}


@pytest.mark.parametrize("case", BAD_PLANS)
def test_a_malformed_plan_is_refused_before_any_work_and_says_what_is_wrong_in_it(case, tmp_path):
    changed, expected = BAD_PLANS[case]
    path, plan = tmp_path / "plan.json", {"format": "afina/plan/1", "network": "0123", "layers": STEM}
    path.write_text(json.dumps(3 if changed is None else {**plan, **changed}))
    with pytest.raises(InputError, match=rf"(?s)plan.json is not a plan.*{expected}"):
        afina.quantize("no such model", "digits", plan=path)


def test_a_plan_keeps_what_the_codes_depend_on_and_what_is_asked_for_beside_it_goes_first(
    digits_network, no_files, tmp_path
):
    path = tmp_path / "plan.json"
    given = {"weight_type": "int4", "granularity": "block:8", "scheme": "affine"}
    first, _ = afina.quantize(digits_network, "digits", save_plan=path, **given, **QUICK)
    again, record = afina.quantize(digits_network, "digits", plan=path, **QUICK)
    kept = again.module.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in first.module.state_dict().items())
    assert "granularity is block:8, as the plan says." in record.notes
    _, record = afina.quantize(digits_network, "digits", plan=path, granularity="tensor", **QUICK)
    assert "granularity is tensor, as was asked for; the plan says block:8." in record.notes


def test_a_plan_that_was_made_for_another_runtime_says_so(digits_network, no_files, tmp_path):
    path = tmp_path / "plan.json"
    afina.quantize(digits_network, "digits", save_plan=path, **QUICK)
    path.write_text(path.read_text().replace("onnxruntime", "openvino"))
    _, record = afina.quantize(digits_network, "digits", plan=path, **QUICK)
    assert any("The plan was made for openvino" in note for note in record.notes)


def test_a_plan_in_the_first_format_places_integers_as_it_did(tmp_path):
    from afina.jobs.planning.plan_file import read_plan
    from afina.runtimes.policy import IntegerPolicy
    from afina.techniques.quantize import QuantizeConfig

    old = {"sums": "joined", "joins": True, "fused": "all", "rescales": True, "centred": True, "norms": "bf16"}
    plan = {"format": "afina/plan/1", "network": "0123", "runtime": "openvino", **old, "layers": STEM}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    config = read_plan(path).configure(QuantizeConfig(policy=IntegerPolicy(int8_weight_bits=7)))
    assert config.policy == IntegerPolicy(
        additions="in convolution",
        convolution_absorbs_every_addition=True,
        concatenated_channels_share_scale=True,
        symmetric_inputs_of_linear_layers="always",
        fused_activation_functions="all",
        norm_parameters="bf16",
        int8_weight_bits=7,
    )
    path.write_text(json.dumps({**plan, **dict.fromkeys(("joins", "rescales", "centred"), False), "sums": "apart"}))
    config = read_plan(path).configure(QuantizeConfig(policy=RUNTIMES["openvino"].policy()))
    assert config.policy.additions == "own kernel"
    assert not config.policy.convolution_absorbs_every_addition
    assert config.policy.symmetric_inputs_of_linear_layers == "never"


def test_a_plan_of_before_that_says_less_can_still_be_read(digits_network, no_files, tmp_path):
    path = tmp_path / "plan.json"
    afina.quantize(digits_network, "digits", weight_type="int4", save_plan=path, **QUICK)
    plan = json.loads(path.read_text())
    for name in ("runtime", "granularity", "scheme", "full_range", "power_of_two"):
        del plan[name]
    path.write_text(json.dumps(plan))
    network, _ = afina.quantize(digits_network, "digits", plan=path, scheme="affine", **QUICK)
    assert {row.precision for row in layer_rows(network)} == {"int4"}


def test_a_plan_with_activations_that_the_runtime_cannot_run_is_refused_before_any_work(tmp_path):
    pytest.importorskip("openvino")
    layers = {"stem": {"weights": "int8", "activations": "int16"}}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"format": "afina/plan/1", "network": "0123", "layers": layers}))
    with pytest.raises(InputError, match="openvino cannot run activations in int16"):
        afina.quantize("no such model", "digits", plan=path, runtime="openvino")


def test_a_network_with_activations_that_the_runtime_cannot_run_is_not_exported_for_it(
    digits_network, no_files, tmp_path
):
    pytest.importorskip("openvino")
    network, _ = afina.quantize(digits_network, "digits", activation_type="int16", **QUICK)
    with pytest.raises(InputError, match="openvino cannot run activations in int16"):
        afina.export(network, to="openvino", out=tmp_path / "net.xml")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("limit", "expected"), [("10MB", {"bf16"}), ("8KB", {"int8", "int6", "int4", "int3"})])
def test_weights_in_16_bits_floats_stay_so_as_far_as_the_size_allows(digits_network, no_files, limit, expected):
    given = {"weight_type": "bf16", "activation_type": "none", "runtime": "openvino", **QUICK}
    network, _ = afina.quantize(digits_network, "digits", plan="bits", size=limit, **given)
    found = {row.precision for row in layer_rows(network)}
    assert found <= expected, found


def test_a_plan_stores_layers_in_float_in_the_integers_that_were_asked_for(digits_network, timed):
    timed(lambda network: 2e-3 if _is_integer(network) else 1e-3)
    network, _ = afina.quantize(digits_network, "digits", plan="auto", weight_type="int4", **QUICK)
    assert {row.precision for row in layer_rows(network)} == {"int4"}


# The guard


def test_the_guard_does_not_give_back_more_than_the_limit_on_size_allows(digits_network, no_files):
    with pytest.raises(InputError, match=r"(?s)cannot be kept together.*keeps --max-drop has .*more than 5 KB"):
        afina.quantize(digits_network, "digits", plan="bits", size="5KB", max_drop="0.3%", **QUICK)


def test_a_drop_that_only_the_float_network_keeps_says_so(digits_network, no_files, monkeypatch):
    monkeypatch.setattr("afina.jobs.planning.quality_guard.Guard._within_limit", lambda self, answers: False)
    with pytest.raises(InputError, match=r"(?s)drop of at most 0.00% cannot be kept.*Every layer would have to stay"):
        afina.quantize(digits_network, "digits", max_drop="0%", **QUICK)


def test_a_file_that_lost_most_of_its_quality_comes_with_a_warning(digits_network, no_files):
    _, record = afina.quantize(digits_network, "digits", weight_type="int2", activation_type="int2", **QUICK)
    assert record.after["quality"] < 0.85
    assert record.notes[-1].startswith("Warning: more than a tenth of the quality is lost")
    _, record = afina.quantize(digits_network, "digits", **QUICK)
    assert not any("Warning" in note for note in record.notes)


def test_a_file_that_is_slower_comes_with_a_warning_and_the_remedy(digits_network, timed):
    timed(lambda network: 2e-3 if _is_integer(network) else 1e-3)
    _, record = afina.quantize(digits_network, "digits", **QUICK)
    assert (record.before["latency"], record.after["latency"]) == (1e-3, 2e-3)
    assert "slower" in record.notes[-1]
    assert "--plan auto" in record.notes[-1]


def test_regression_is_told_in_the_unit_of_its_targets(no_files):
    torch.manual_seed(0)
    images = digits(0, 300)[0]
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 1))
    network = capture(module, GREY, TaskSpec("regression", ("ink",)))
    data = [(image, float(image.sum())) for image in images]
    _, record = afina.quantize(network, Images(data), weight_type="int2", max_drop=1e-3, **QUICK)
    assert any("differ by" in note for note in record.notes)
    assert any("The file lost" in note for note in record.notes)
    assert not any("%" in note for note in record.notes if "lost" in note or "simulation" in note)


def test_the_guard_gives_precision_back_to_the_layers_to_blame_and_names_them(digits_network, no_files):
    free, told = afina.quantize(digits_network, "digits", weight_type="int2", **QUICK)
    lost = told.before["quality"] - told.after["quality"]
    assert lost > 0.04
    network, record = afina.quantize(digits_network, "digits", weight_type="int2", max_drop="2%", **QUICK)
    assert record.after["quality"] >= record.before["quality"] - 0.02
    (note,) = [note for note in record.notes if "given back" in note]
    named = set(re.search(r"layers: (.*)\.", note).group(1).split(", "))
    changed = {row.name for row in layer_rows(network) if row.precision != "int2"}
    assert named == changed
    assert changed < {row.name for row in layer_rows(free)}


def test_the_guard_leaves_alone_what_keeps_the_limit(digits_network, no_files):
    _, record = afina.quantize(digits_network, "digits", max_drop="3%", **QUICK)
    assert not any("given back" in note for note in record.notes)
    assert len(record.touched) == 4


def test_without_labels_the_file_is_judged_by_agreement(digits_network, no_files):
    images = [Images(list(part)) for part in digits(0, 300)[0].split(200)]
    _, record = afina.quantize(digits_network, tuple(images), weight_type="int2", max_drop="5%", **QUICK)
    assert record.before["quality"] == 1.0
    assert record.after["quality"] >= 0.95


def test_a_plain_folder_of_images_without_labels_is_enough(digits_network, no_files, tmp_path):
    from torchvision.transforms.functional import to_pil_image

    for number, image in enumerate(digits(0, 100)[0]):
        to_pil_image(image.clamp(0, 1)).save(tmp_path / f"{number}.png")
    _, record = afina.quantize(digits_network, tmp_path, **QUICK)
    assert record.before["quality"] == 1.0
    assert record.after["quality"] >= 0.9


# Training


def test_training_wins_back_what_two_bits_lose(digits_network, no_files):
    plain, trained = (
        afina.quantize(digits_network, "digits", weight_type="int2", qat=qat, learn_scales=bool(qat), **QUICK)[1]
        for qat in (0, 2)
    )
    assert trained.after["quality"] >= plain.after["quality"] + 0.02
    assert any("trained for 2 epochs" in note for note in trained.notes)


# Bad input

BAD = {
    "weights": ({"weight_type": "int1"}, "int8"),
    "activations": ({"activation_type": "int9"}, "int8"),
    "granularity": ({"granularity": "block:x"}, "block:N"),
    "runtime": ({"runtime": "tensorrt"}, "onnxruntime"),
    "16-bit activations on OpenVINO": ({"runtime": "openvino", "activation_type": "int16"}, "cannot run.*int8"),
    "a layer that is not there": ({"skip": "heads"}, "Did you mean head"),
    "size without a plan": ({"size": "9KB"}, "--plan auto"),
    "latency without a plan": ({"latency": "1ms"}, "--plan auto"),
    "training backwards": ({"qat": -1}, "--qat is -1"),
    "scales without training": ({"learn_scales": True}, "--qat"),
    "a learning rate without training": ({"learning_rate": 0.1}, "--learning-rate is of a training.*--qat EPOCHS"),
    "an optimizer without training": ({"optimizer": "adamw"}, "--optimizer is of a training.*--qat EPOCHS"),
    "all codes twice": ({"full_range": True, "scheme": "affine"}, "--full-range is for --scheme absmax"),
    "no images": ({"images": 0}, "--images is 0"),
    "a size that is none": ({"plan": "auto", "size": "small"}, "size"),
    "a plan that is not there": ({"plan": "no.json"}, "cannot be read"),
    "half floats with integer activations": ({"weight_type": "fp16"}, "activations none"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_usage_is_one_clear_error_and_nothing_is_written(case, digits_network, no_files, tmp_path, monkeypatch):
    given, expected = BAD[case]
    if given.get("runtime") == "openvino":
        pytest.importorskip("openvino")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"(?s)" + expected):
        afina.quantize(digits_network, "digits", **{**QUICK, **given})
    assert list(tmp_path.iterdir()) == []


def test_no_data_is_one_clear_error(digits_network):
    with pytest.raises(InputError, match="--data"):
        afina.quantize(digits_network, None)


# The command line


def test_the_command_writes_a_network_and_prints_the_record(digits_network, tmp_path):
    source = digits_network.save(tmp_path / "net.pt2")
    code, out, err = call(
        "quantize", source, "--data", "digits", "--weight-type", "int4", "--skip", "stem", "--images", 64, "--rounding",
        "nearest", "--calibration", "minmax", "--out", tmp_path / "q.pt2", "--json", "--quiet", "--threads", 1,
    )  # fmt: skip
    assert code == 0, err
    record = json.loads(out)["record"]
    assert record["step"]["technique"] == "quantize"
    assert record["skipped"] == {"stem": "asked to stay in float"}
    assert record["layers"]["inner"]["precision"] == "int4 x int8"
    network = Network.load(tmp_path / "q.pt2")
    assert {row.precision for row in layer_rows(network)} == {"fp32", "int4"}
    images, targets = digits(1438)
    with network.inference():
        hits = only(network(images)).argmax(1) == targets
    assert float(hits.float().mean()) > 0.9


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--weight-type", "int1"], "int8"),
        (["--activation-type", "fp8"], "int8"),
        (["--size", "9KB"], "--plan auto"),
        (["--skip", "nothing"], "no layer"),
        (["--out", "q.onnx"], "does not end in .pt2"),
    ],
)
def test_wrong_usage_of_the_command_is_one_message_and_exit_code_2(arguments, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = call("quantize", "builtin:convnet", "--data", "digits", *arguments)
    assert code == 2, err
    assert expected in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["plan.txt", "nowhere/plan.json", "folder.json", "/proc/plan.json"])
def test_a_plan_that_cannot_be_written_is_refused_before_any_work(name, tmp_path):
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InputError, match="--save-plan"):
        afina.quantize("no such model", "digits", plan="auto", save_plan=tmp_path / name)


def test_layers_that_were_asked_to_stay_in_float_stay_so_in_every_placement():
    from afina.jobs.planning.placement import _in_float
    from afina.techniques.quantize import FLOAT, Precision, QuantizeConfig

    config = _in_float(QuantizeConfig(weights="int4", layers=(("stem", FLOAT),)), ["stem", "head"])
    assert dict(config.layers) == {"stem": FLOAT, "head": Precision("int4", "none")}
