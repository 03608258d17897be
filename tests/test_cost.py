"""Costs that are exact: counted by hand, the same as the module's own parameters, right after int8."""

import pytest
import torch
from conftest import DIGITS, GREY
from torch import nn

from afina.graph import capture
from afina.graph.cost import cost_of, layer_rows
from afina.techniques.context import Context
from afina.techniques.quantize import QuantizeConfig, apply


def test_macs_and_parameters_are_those_counted_by_hand(small_module, small_network):
    cost = cost_of(small_network)
    assert cost.parameters == sum(p.numel() for p in small_module.parameters())
    assert cost.macs == 16 * 9 * 64 + 16 * 16 * 9 * 64 + 16 * 10
    assert cost.bytes == 4 * cost.parameters


def test_rows_add_up_and_carry_the_users_names(small_network):
    rows, cost = layer_rows(small_network), cost_of(small_network)
    assert [row.name for row in rows] == ["stem", "norm", "inner", "inner_norm", "head"]
    assert sum(row.macs for row in rows) == cost.macs
    assert sum(row.parameters for row in rows) == cost.parameters
    assert rows[0].output == (16, 8, 8)


def test_grouped_convolutions_count_what_a_group_reads():
    module = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(288, 10))
    rows = {row.name: row for row in layer_rows(capture(module, GREY, DIGITS))}
    assert rows["1"].macs == 8 * 9 * 36


def test_peak_activations_are_at_least_the_largest_pair_alive(small_network):
    assert cost_of(small_network).peak_activations >= 2 * 16 * 64 * 4


@pytest.mark.parametrize(("precision", "bits"), [("int8", 8), ("int7", 8), ("int4", 4), ("int3", 3), ("int2", 2)])
def test_integer_layers_take_the_bits_of_their_codes_with_scales_and_biases_and_say_so(small_network, precision, bits):
    context = Context(calibration=lambda: iter([torch.randn(8, 1, 8, 8)]))
    config = QuantizeConfig(weights=precision, rounding="nearest", calibration="minmax", equalize="none")
    quantized, _ = apply(small_network, config, context)
    rows = {row.name: row for row in layer_rows(quantized)}
    assert rows["inner"].precision == f"int{bits}"
    assert rows["inner"].bytes == 16 * 16 * 9 * bits / 8 + 4 * 16 + 4 * 16
    assert rows["inner"].macs == 16 * 16 * 9 * 64
    assert [row.name for row in layer_rows(quantized)] == ["stem", "inner", "head"]
    assert cost_of(quantized).macs == cost_of(small_network).macs


def test_blocks_cost_a_scale_each(small_network):
    context = Context(calibration=lambda: iter([torch.randn(8, 1, 8, 8)]))
    config = QuantizeConfig(weights="int4", activations="none", granularity="block:48", rounding="nearest")
    rows = {row.name: row for row in layer_rows(apply(small_network, config, context)[0])}
    assert rows["inner"].bytes == 16 * 144 / 2 + 4 * 16 * 3 + 4 * 16
