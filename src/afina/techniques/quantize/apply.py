"""Post-training static quantization: observe a stream of images, then write weights and activations as int8."""

import copy
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from afina.errors import AfinaError, InputError, NothingToDo
from afina.graph.cost import cost_of
from afina.graph.network import Network, unlifted
from afina.techniques.context import Context
from afina.techniques.quantize.quantizer import WEIGHTED, Int8Quantizer, layer_name
from afina.types import Record, Step


@dataclass(frozen=True)
class QuantizeConfig:
    """How to quantize.

    Attributes:
        weight_bits: 8, or 7 where the processor's int8 products saturate; stored as int8 in both cases.
        skip: Names of layers that stay in float.
    """

    weight_bits: int = 8
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.weight_bits not in (7, 8):
            raise InputError(f"weight_bits is {self.weight_bits}.", fix="Choose 7 or 8.")


def apply(network: Network, config: QuantizeConfig, context: Context) -> tuple[Network, Record]:
    """`network` in int8: a graph of quantize and dequantize operators around the original ones.

    Real value = (code - zero point) * scale, with codes rounded to nearest even. Weights: absmax, one scale per
    output channel, zero point 0. Activations: affine, one scale per tensor, range of least mean squared error
    over the calibration images. Batch norm is folded into the convolution before it.

    Raises:
        InputError: there are no calibration images.
        NothingToDo: the network has no layer that can be quantized.
    """
    start = time.monotonic()
    if context.calibration is None:
        raise InputError("Static quantization needs images to calibrate on.", fix="Give data.")
    before = cost_of(network)
    twin = network.copy().eval()
    names = {node.name: layer_name(node) for node in twin.graph.nodes if node.target in WEIGHTED}
    _separate_weights(twin.module)
    quantizer = Int8Quantizer(weight_bits=config.weight_bits, skip=frozenset(config.skip))
    with _quiet(), torch.no_grad():
        prepared = prepare_pt2e(_fresh(twin), quantizer)
        if not quantizer.quantized:
            raise NothingToDo("Quantization found no convolution or linear layer that it could change.")
        _calibrate(prepared, context)
        converted = convert_pt2e(prepared)
    _name_weights(converted, names)
    result = Network(converted, network.input, network.task)
    touched = tuple(dict.fromkeys(names.get(n, n) for n in quantizer.quantized))
    record = Record(
        step=Step("quantize", asdict(config)),
        touched=touched,
        skipped=dict(quantizer.skipped),
        before=asdict(before),
        after=asdict(cost_of(result)),
        seconds=time.monotonic() - start,
    )
    return result, record


def _fresh(network: Network) -> GraphModule:
    """The network captured anew, so that every node carries the shape and type that the quantizer looks at."""
    return unlifted(network.exported())


def _calibrate(prepared: GraphModule, context: Context) -> None:
    assert context.calibration is not None
    seen = 0
    for images in context.calibration():
        try:
            prepared(images)
        except FloatingPointError as error:
            raise AfinaError(
                "Calibration met activations that are not finite numbers.",
                why="The network gives NaN or infinity on these images.",
                fix="Check the weights and the data.",
            ) from error
        seen += len(images)
    if not seen:
        raise InputError("There are no calibration images.", fix="Give data with training images.")


def _separate_weights(module: GraphModule) -> None:
    """Give each layer that shares its weight with another its own copy: each gets scales of its own."""
    seen: set[str] = set()
    for node in module.graph.nodes:
        weight = node.args[1] if node.target in WEIGHTED else None
        if not isinstance(weight, Node) or weight.op != "get_attr":
            continue
        name = str(weight.target)
        if name in seen:
            own = f"{name}_of_{node.name}".replace(".", "_")
            module.register_parameter(own, copy.deepcopy(module.get_parameter(name)))
            with module.graph.inserting_before(node):
                twin = module.graph.get_attr(own)
            twin.meta = copy.copy(weight.meta)
            node.update_arg(1, twin)
        seen.add(name)
    module.recompile()


def _name_weights(module: GraphModule, names: dict[str, str]) -> None:
    """Put each int8 weight, which PT2E calls `_frozen_paramN`, back under the name of its layer."""
    for node in module.graph.nodes:
        name = names.get(node.name)
        dequantized = node.args[1] if name else None
        if name is None or not isinstance(dequantized, Node) or not dequantized.args:
            continue
        stored = dequantized.args[0]
        if not isinstance(stored, Node) or stored.op != "get_attr" or not str(stored.target).startswith("_frozen"):
            continue
        value = getattr(module, str(stored.target)).detach()
        delattr(module, str(stored.target))
        owner, _, leaf = f"{name}.weight".rpartition(".")
        parent = _submodule(module, owner)
        if hasattr(parent, leaf):
            delattr(parent, leaf)
        parent.register_buffer(leaf, value)
        stored.target = f"{name}.weight"
    module.recompile()


def _submodule(module: torch.nn.Module, path: str) -> torch.nn.Module:
    for part in path.split("."):
        if not hasattr(module, part):
            module.add_module(part, torch.nn.Module())
        module = getattr(module, part)
    return module


@contextmanager
def _quiet() -> Iterator[None]:
    """PT2E warns about its own internals (deprecated quantized tensors, erased nodes), which no user can act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
