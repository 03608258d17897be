"""Which range each activation gets."""

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

# Multiply-accumulates that comparing the methods may take for single activations, and for all at once: on a ResNet-50
# the latter took a third of the whole calibration.
_WORK, _MOST_WORK = 2e11, 1e12
# Images to choose by. By 16 the choice was worse than one method for all networks; by 64 it was better
# (`benchmarks/quantization/choosing.py`).
_FEWEST_IMAGES, _MOST_IMAGES = 64, 128
# Of the calibration images, this part may be held out.
_PART = 4
# Without such images.
_SAFE: Method = "mse"


def hold_out(source: Source, config: QuantizeConfig, context: Context) -> None:
    """Set calibration images apart that ranges are chosen by, not found on: none where they are few, or nothing chosen.

    On the images that it was found on, the widest range looks better than it is, since it cuts nothing off there.
    """
    asked = {config.default.activations, *(precision.activations for _, precision in config.layers)}
    if config.calibration == "auto" and context.calibration is not None and not asked <= {"none", "int16"}:
        macs = float(cost_of(source.network).macs)
        apart = min(_to_compare(macs), context.images // _PART)
        enough = apart >= _FEWEST_IMAGES and macs <= _most_macs()
        source.apart = apart if enough else 0


def choose_ranges(prepared: Prepared, context: Context) -> list[str]:
    """Give each activation its scale and zero point; the notes say how they were found.

    Raises:
        InputError: the images are all the same, or most activations never vary on them.

    `auto` compares the methods by the network's outputs, on the images that were held out: first one method for all
    activations, then, as far as the work allows, other methods for one activation at a time, kept where the outputs
    gain. Where images are too few to hold some out, or the network is very large, it is `mse`.
    """
    _check_varied(context)
    edges = list(prepared.activations.values())
    notes = _constants(edges)
    asked = prepared.config.calibration
    if asked != "auto":
        _choose(edges, asked)  # type: ignore[arg-type]
        return [*notes, f"Ranges of activations: {asked}."]
    if edges[0].grid.bits == 16:
        _choose(edges, "minmax")
        return [*notes, "Ranges of activations: minmax, since 16 bits need no clipping."]
    if not prepared.source.apart:
        _choose(edges, _SAFE)
        limits = f"{_PART * _FEWEST_IMAGES} images or more, and networks of {_most_macs() / 1e9:.0f} GMACs or less"
        return [*notes, f"Ranges of activations: {_SAFE}; methods are compared with {limits}."]
    macs = float(cost_of(prepared.source.network).macs)
    images = context.first(1.0, prepared.source.apart)
    return [*notes, _compare(prepared, edges, images, runs=int(_WORK / macs / len(images)))]


def _to_compare(macs: float) -> int:
    """Images that the methods are compared on."""
    return int(min(max(_WORK / max(macs, 1.0) / (4 * len(METHODS)), _FEWEST_IMAGES), _MOST_IMAGES))


def _most_macs() -> float:
    """Of a network on which methods are compared."""
    return _MOST_WORK / (len(METHODS) * _FEWEST_IMAGES)


def _compare(prepared: Prepared, edges: list[ActivationEdge], images: Tensor, runs: int) -> str:
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
    told = f"Ranges of activations: {best}, the best of {len(METHODS)} methods by the outputs"
    return f"{told}; another for {changed} of {len(edges)}." if changed else f"{told}."


def _choose(edges: list[ActivationEdge], method: Method) -> None:
    for edge in edges:
        edge.choose(method)


def _refine(edges: list[ActivationEdge], best: Method, least: float, loss: Callable[[], float], runs: int) -> int:
    """Other methods for single activations, kept where the outputs gain; gives how many changed."""
    others = [method for method in METHODS if method != best]
    changed = 0
    for edge in edges:
        if runs < len(others):
            break
        kept: tuple[Tensor, Tensor] = (edge.scale.detach().clone(), edge.zero.clone())
        tried, better = {(float(kept[0]), int(kept[1]))}, False
        for method in others:
            edge.choose(method)
            key = (float(edge.scale), int(edge.zero))
            if key in tried:
                continue
            tried.add(key)
            runs -= 1
            found = loss()
            if found < least:
                least, kept, better = found, (edge.scale.detach().clone(), edge.zero.clone()), True
        edge.set(*kept)
        changed += better
    return changed


def _check_varied(context: Context) -> None:
    """Ranges of one image, however often it comes, are not those of others: they would cut those off."""
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
    constant = [edge.name for edge in edges if edge.seen.constant]
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
