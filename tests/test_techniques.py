"""What every technique promises, over the table of techniques."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

from afina.errors import InputError, NothingToDo
from afina.runtimes import IntegerPolicy, check_parity, get_runtime
from afina.techniques import TECHNIQUES, replay, step_of_config
from afina.techniques.context import Context
from afina.techniques.quantize import FLOAT, Precision, QuantizeConfig
from afina.testing.techniques import check_technique
from afina.types import Step

# Options that make a check short, or exact on every processor.
OPTIONS = {"quantize": {"policy": IntegerPolicy(int8_weight_bits=7)}, "factorize": {"method": "tucker"}}


@pytest.fixture(params=["prune", "factorize", "sparsify", "quantize"])
def technique(request):
    return TECHNIQUES[request.param]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def _config(technique):
    return technique.config(**OPTIONS.get(technique.name, {}))


def test_a_technique_keeps_its_contract(technique, small_network, images):
    check_technique(technique, small_network, images, _config(technique))


def test_a_contract_that_is_broken_is_told_by_the_promise(small_network, images):
    prune = TECHNIQUES["prune"]

    def in_place(network, config, context):
        result, record = prune.apply(network, config, context)
        with torch.no_grad():
            network.module.get_parameter("head.weight").zero_()
        return result, record

    def silent(network, config, context):
        try:
            return prune.apply(network, config, context)
        except NothingToDo:
            return network, None

    def forgetful(network, config, context):
        result, record = prune.apply(network, config, context)
        return result, dataclasses.replace(record, step=Step("prune", {"ratio": 0.25}))

    for apply, promise in (
        (in_place, "numbers of the input network"),
        (silent, "NothingToDo"),
        (forgetful, "replayed"),
    ):
        with pytest.raises(AssertionError, match=promise):
            check_technique(dataclasses.replace(prune, apply=apply), small_network, images)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_exported_file_answers_as_the_result(technique, small_network, images, tmp_path, runtime):
    if runtime == "openvino":
        pytest.importorskip("openvino")
    context = Context(calibration=lambda: iter(images.split(16)))
    result, _ = technique.apply(small_network, _config(technique), context)
    chosen = get_runtime(runtime)
    path = chosen.export(result, tmp_path / f"model{chosen.suffix}")
    assert check_parity(result, path, None, threads=1) < 0.1


def test_units_chosen_on_some_images_are_kept_in_a_replay_on_others(small_network, images):
    first, record = replay(Step("prune", {"ratio": 0.5}), small_network, Context(lambda: iter([images])))
    _, again = replay(record.step, small_network, Context(lambda: iter([torch.ones(4, 1, 8, 8)])))
    assert again.step.config["removed"] == record.step.config["removed"]
    assert first.module.get_parameter("head.weight").shape == (10, 8)


MIXED = QuantizeConfig(
    policy=IntegerPolicy(int8_weight_bits=7, symmetric_inputs_of_linear_layers="always"),
    layers=(("inner", Precision("int4", "int8")), ("head", FLOAT), ("stem", Precision("fp16", "none"))),
)


@pytest.mark.parametrize("step", [Step("quantize", MIXED.plain()), step_of_config("quantize", MIXED)])
def test_precisions_of_layers_and_a_policy_survive_json(step):
    config = json.loads(json.dumps(step.config))
    assert config == step.config
    assert TECHNIQUES["quantize"].read(config) == MIXED


def test_a_network_of_mixed_precision_is_quantized_again_from_its_record(small_network, images):
    check_technique(TECHNIQUES["quantize"], small_network, images, MIXED)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Step("prun"), "Did you mean prune"),
        (Step("prune", {"rati": 0.5}), "Did you mean ratio"),
        (Step("prune", {"ratio": "half"}), "ratio is 'half'"),
        (Step("prune", {"ratio": 2.0}), "between 0 and 1"),
        (Step("quantize", {"layers": {"head": "int9 x int8"}}), "weights is 'int9'"),
        (Step("quantize", {"layers": {"head": 4}}), "quantize: layers"),
        (Step("prune", {"keep": {"stem, inner": 8}, "removed": {"stem, inner": [1, 1]}}), "is to lose 8 of 16"),
    ],
)
def test_a_step_that_cannot_be_replayed_is_one_clear_error(small_network, step, message):
    with pytest.raises(InputError, match=message):
        replay(step, small_network, Context())


def test_the_names_of_techniques_are_listed_without_torch():
    code = "import sys; from afina.techniques import TECHNIQUES; TECHNIQUES.names(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
