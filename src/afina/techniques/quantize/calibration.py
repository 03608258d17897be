"""Which range each activation gets.

Methods (`ranges`) differ in what they cut off. Which one serves a network best is seen at its outputs, and only on
images that the ranges were not found on. So of 512 calibration images of a small network 128 are held out: the others
go through the network once, and fill a histogram for each activation; then each of the five methods gives all
activations their ranges, the network runs on the 128 with simulated integers, and the method whose outputs are nearest
to the float ones is taken. With what work is left, single activations try the other four.
"""

from collections.abc import Callable

from torch import Tensor

from afina.errors import InputError
from afina.graph.cost import cost_of
from afina.graph.statistics import Effect
from afina.techniques.context import Context
from afina.techniques.quantize.config import QuantizeConfig
from afina.techniques.quantize.edges import ActivationEdge
from afina.techniques.quantize.prepared import Prepared, Source
from afina.techniques.quantize.ranges import METHODS, Method

# Multiply-accumulates that the comparison of methods may take, for single activations (`_WORK`) and for all at once
# (`_MOST_WORK`): on a ResNet-50 the latter took a third of the whole calibration.
_WORK, _MOST_WORK = 2e11, 1e12
# Images to choose by. By 16 the choice was worse than one method for all networks; by 64 it was better
# (`benchmarks/quantization/choosing.py`).
_FEWEST_IMAGES, _MOST_IMAGES = 64, 128
# At most one in so many of the calibration images is held out.
_PART = 4
# The method where no images are held out.
_SAFE: Method = "mse"


def hold_out(source: Source, config: QuantizeConfig, context: Context) -> None:
    """Set `source.held_out_count`: on how many images methods are compared, which are left out of the histograms.

    None are held out where images are few, where the network is very large, or where there is no choice of methods. On
    the images that it was found on, the widest range looks better than it is, since it cuts nothing off there.

    Args:
        source: Its `held_out` is set, before anything is calibrated.
        config: Says whether methods are compared.
        context: Calibration images.
    """
    compared = config.activation_types - {"none", "int16"}
    if config.calibration == "auto" and context.calibration is not None and compared:
        macs = float(cost_of(source.network).macs)
        count = min(_images_to_compare(macs), context.images // _PART)
        is_worth_it = count >= _FEWEST_IMAGES and macs <= _most_macs()
        source.held_out_count = count if is_worth_it else 0


def choose_ranges(prepared: Prepared, context: Context) -> list[str]:
    """Give each activation its scale and zero point; the notes say how they were chosen.

    `auto` compares the methods by the network's outputs, on the images that were held out: first one method for all
    activations, then, as far as the work allows, other methods for one activation at a time, kept where the outputs
    gain. Where images are too few to hold some out, or the network is very large, it is `mse`.

    Raises:
        InputError: the images are all the same, or most activations never vary on them.
    """
    _check_varied(context)
    edges = list(prepared.activations.values())
    notes = _constants(edges)
    method = prepared.config.calibration
    if method != "auto":
        _choose(edges, method)  # type: ignore[arg-type]
        return [*notes, f"Ranges of activations: {method}."]
    if edges[0].grid.bits == 16:
        _choose(edges, "minmax")
        return [*notes, "Ranges of activations: minmax, since 16 bits need no clipping."]
    if not prepared.source.held_out_count:
        _choose(edges, _SAFE)
        limits = f"{_PART * _FEWEST_IMAGES} images or more, and networks of {_most_macs() / 1e9:.0f} GMACs or less"
        return [*notes, f"Ranges of activations: {_SAFE}; methods are compared with {limits}."]
    macs = float(cost_of(prepared.source.network).macs)
    images = context.first(1.0, prepared.source.held_out_count)
    return [*notes, _compare(prepared, edges, images, runs=int(_WORK / macs / len(images)))]


def _images_to_compare(macs: float) -> int:
    """How many images the methods are compared on, for a network of that many MACs."""
    return int(min(max(_WORK / max(macs, 1.0) / (4 * len(METHODS)), _FEWEST_IMAGES), _MOST_IMAGES))


def _most_macs() -> float:
    """The MACs of the largest network on which methods are compared."""
    return _MOST_WORK / (len(METHODS) * _FEWEST_IMAGES)


def _compare(prepared: Prepared, edges: list[ActivationEdge], images: Tensor, runs: int) -> str:
    """Choose the method of least change of the outputs on images, and give a note; the network may run `runs` times."""
    effect = Effect(prepared.network, images)

    def loss() -> float:
        return effect.of(prepared.network)

    for edge in edges:
        edge.on = True
    errors = {}
    for method in METHODS:
        _choose(edges, method)
        errors[method] = loss()
    best = min(METHODS, key=lambda method: errors[method])
    _choose(edges, best)
    changed = _refine(edges, best, errors[best], loss, runs - len(METHODS) - 1)
    for edge in edges:
        edge.on = False
    note = f"Ranges of activations: {best}, the best of {len(METHODS)} methods by the outputs"
    return f"{note}; another for {changed} of {len(edges)}." if changed else f"{note}."


def _choose(edges: list[ActivationEdge], method: Method) -> None:
    for edge in edges:
        edge.choose(method)


def _refine(edges: list[ActivationEdge], best: Method, least: float, loss: Callable[[], float], runs: int) -> int:
    """Try other methods for single activations, and keep them where the outputs gain.

    Args:
        edges: At the ranges of the best method.
        best: That method.
        least: The change of the outputs by then.
        loss: The change of the outputs as the edges are.
        runs: How often `loss` may be computed.

    Returns:
        How many activations changed.
    """
    others = [method for method in METHODS if method != best]
    changed = 0
    for edge in edges:
        if runs < len(others):
            break
        best_grid: tuple[Tensor, Tensor] = (edge.scale.detach().clone(), edge.zero.clone())
        tried, is_better = {(float(best_grid[0]), int(best_grid[1]))}, False
        for method in others:
            edge.choose(method)
            key = (float(edge.scale), int(edge.zero))
            if key in tried:
                continue
            tried.add(key)
            runs -= 1
            change = loss()
            if change < least:
                least, best_grid, is_better = change, (edge.scale.detach().clone(), edge.zero.clone()), True
        edge.set(*best_grid)
        changed += is_better
    return changed


def _check_varied(context: Context) -> None:
    """Raise `InputError` where all images are the same: their ranges would cut off what other images give."""
    first, count = None, 0
    for batch in context.calibration() if context.calibration is not None else ():
        first = batch[:1] if first is None else first
        if bool((batch != first).any()):
            return
        count += len(batch)
    if count > 1:
        raise InputError(
            f"The {count} calibration images are all the same.",
            fix="Give images like those that the network will see.",
        )


def _constants(edges: list[ActivationEdge]) -> list[str]:
    """A note on activations that never vary; `InputError` where those are most."""
    constant = [edge.name for edge in edges if edge.histogram.constant]
    if len(constant) > len(edges) / 2:
        raise InputError(
            "The calibration images tell nothing apart.",
            why=f"{len(constant)} of {len(edges)} activations have one and the same value on all of them.",
            fix="Give images like those that the network will see.",
        )
    if not constant:
        return []
    shown = ", ".join(constant[:4]) + (", ..." if len(constant) > 4 else "")
    return [f"{len(constant)} activations never varied on the calibration images: {shown}."]
