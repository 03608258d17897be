"""What every technique promises, over the table of techniques."""

import dataclasses
import json

import pytest
import torch

from afina.graph import Network
from afina.runtimes import IntegerPolicy, check_parity, get_runtime
from afina.store.result import to_plain
from afina.techniques import factorize, prune, quantize, sparsify
from afina.techniques.context import Context

TECHNIQUES = {
    "factorize": (factorize, factorize.FactorizeConfig(share=0.5)),
    "prune": (prune, prune.PruneConfig(ratio=0.5)),
    "sparsify": (sparsify, sparsify.SparsifyConfig(sparsity=0.5)),
    "quantize": (quantize, quantize.QuantizeConfig(policy=IntegerPolicy(int8_weight_bits=7))),
}


@pytest.fixture(params=TECHNIQUES)
def technique(request):
    return request.param, *TECHNIQUES[request.param]


@pytest.fixture
def context() -> Context:
    images = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return Context(calibration=lambda: iter(images.split(16)), seed=0)


def test_the_config_is_frozen_with_defaults(technique):
    _, _, config = technique
    assert dataclasses.is_dataclass(config)
    assert type(config)() is not None
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1


def test_the_record_is_plain_data_that_names_what_was_touched(technique, small_network, context):
    name, module, config = technique
    _, record = module.apply(small_network, config, context)
    assert record.step.technique == name
    assert record.touched
    assert record.seconds > 0
    assert {"parameters", "macs", "bytes"} <= record.before.keys() & record.after.keys()
    assert any(record.after[key] < value for key, value in record.before.items())
    json.dumps(to_plain(record))


def test_the_input_network_is_left_as_it_was(technique, small_network, context):
    _, module, config = technique
    before = {key: value.clone() for key, value in small_network.module.state_dict().items()}
    code = small_network.module.code
    small_network.train()
    module.apply(small_network, config, context)
    assert small_network.training
    assert small_network.eval().module.code == code
    assert all(torch.equal(before[key], value) for key, value in small_network.module.state_dict().items())


def test_the_same_seed_gives_the_same_result(technique, small_network, context):
    _, module, config = technique
    first, second = (module.apply(small_network, config, context)[0] for _ in range(2))
    with first.inference(), second.inference():
        assert torch.equal(first(small_network.example()), second(small_network.example()))


def test_the_result_saves_loads_and_keeps_its_input_and_task(technique, small_network, context, tmp_path):
    _, module, config = technique
    result, _ = module.apply(small_network, config, context)
    loaded = Network.load(result.save(tmp_path / "n.pt2"))
    assert (loaded.input, loaded.task) == (small_network.input, small_network.task)
    with result.inference(), loaded.inference():
        assert torch.equal(result(result.example()), loaded(result.example()))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_exported_file_answers_as_the_result(technique, small_network, context, tmp_path, runtime):
    if runtime == "openvino":
        pytest.importorskip("openvino")
    _, module, config = technique
    result, _ = module.apply(small_network, config, context)
    chosen = get_runtime(runtime)
    path = chosen.export(result, tmp_path / f"model{chosen.suffix}")
    assert check_parity(result, path, None, threads=1) < 0.1
