"""`Technique`: the contract of a technique, which the built-in ones and those of other packages keep. No torch here."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from afina.errors import InputError, did_you_mean
from afina.extensions import BrokenContract
from afina.store.result import from_plain, to_plain
from afina.types import Record, Step

if TYPE_CHECKING:
    from afina.graph.network import Network
    from afina.techniques.context import Context

FLOAT_WEIGHTS, DENSE_WEIGHTS = "float-weights", "dense-weights"
# What a technique can require of a network, and remove from it, with the reason that a user reads.
TRAITS = {
    FLOAT_WEIGHTS: "Weights in integers cannot be changed any more.",
    DENSE_WEIGHTS: "It solves for new weights, which would fill the zeros.",
}


@dataclass(frozen=True)
class Technique:
    """One technique: a function from a network to a new network, with its options as a frozen dataclass.

    `apply(network, config, context)` gives the new network and the `Record` of what was done. It leaves the input
    network as it was, gives the same result for the same seed, raises `NothingToDo` where it would touch nothing, and
    its `Record.step` (see `step_of_config`) is enough for `afina.techniques.replay` to do the same again.
    `afina.testing.techniques.check_technique` checks all of that.

    Attributes:
        name: As recipes and `Record.step` name it: `prune`.
        config: A frozen dataclass whose fields all have defaults and types that JSON can hold; it checks its values
            when it is made, and raises `InputError`.
        apply: The function.
        summary: One sentence for lists of techniques.
        requires: The traits (`TRAITS`) that a network must have before it.
        removes: The traits that a network does not have any more after it.

    Example:
        >>> from afina.techniques import TECHNIQUES
        >>> technique = TECHNIQUES.get("sparsify")
        >>> technique.requires, technique.removes
        (('float-weights',), ('dense-weights',))
        >>> technique.read({"pattern": "2:4"}).pattern
        '2:4'
    """

    name: str
    config: type[Any]
    apply: "Callable[[Network, Any, Context], tuple[Network, Record]]"
    summary: str
    requires: tuple[str, ...] = ()
    removes: tuple[str, ...] = ()

    def read(self, values: Mapping[str, Any]) -> Any:
        """The config with these values, and the defaults of the options that are not named.

        Args:
            values: By the option's name, as Python or as JSON holds them (lists for tuples).

        Raises:
            InputError: there is no option of that name, or a value is of a wrong type or out of range.
        """
        names = [field.name for field in dataclasses.fields(self.config)]
        for name in values:
            if name not in names:
                raise InputError(f"{self.name} has no option {name!r}.", fix=did_you_mean(str(name), names))
        try:
            return from_plain(self.config, dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            option = ".".join(map(str, first["loc"])) or "its configuration"
            raise InputError(f"{self.name}: {option} is {first['input']!r}.", why=f"{first['msg']}.") from error


def step_of_config(name: str, config: Any) -> Step:
    """A technique's name and its config as plain data that JSON can hold: what `Record.step` is.

    Example:
        >>> from afina.techniques.sparsify import SparsifyConfig
        >>> step_of_config("sparsify", SparsifyConfig(skip=("head",))).config["skip"]
        ['head']
    """
    return Step(name, to_plain(config))


def accept_technique(value: Any) -> Technique:
    """The value of an entry point of the group `afina.techniques`, once it is known to keep the contract.

    Args:
        value: Whatever the entry point refers to.

    Raises:
        BrokenContract: the value does not keep the contract; the text names the part.
    """
    if not isinstance(value, Technique):
        raise BrokenContract(f"it is {type(value).__name__}, not an afina.techniques.Technique")
    for part in ("name", "summary"):
        text = getattr(value, part)
        if not (isinstance(text, str) and text):
            raise BrokenContract(f"its `{part}` is {text!r}, not a text")
    _check_config(value.config)
    if not callable(value.apply):
        raise BrokenContract(f"its `apply` is {value.apply!r}, not a function")
    try:
        inspect.signature(value.apply).bind(None, None, None)
    except TypeError as error:
        raise BrokenContract(f"its `apply` does not take (network, config, context): {error}") from error
    for part in ("requires", "removes"):
        traits = getattr(value, part)
        unknown = [trait for trait in traits if trait not in TRAITS] if isinstance(traits, tuple) else [traits]
        if unknown:
            raise BrokenContract(f"its `{part}` has {unknown[0]!r}, which is none of: {', '.join(TRAITS)}")
    return value


def _check_config(config: Any) -> None:
    if not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        raise BrokenContract(f"its `config` is {config!r}, not a dataclass")
    if not config.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise BrokenContract("its `config` is a dataclass that is not frozen")
    missing = [
        field.name
        for field in dataclasses.fields(config)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise BrokenContract(f"its `config` has no default for `{missing[0]}`")
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(config)
        survives = adapter.validate_python(to_plain(config())) == config()
    except Exception as error:
        raise BrokenContract(f"its `config` cannot be written as plain data and read back: {error}") from error
    if not survives:
        raise BrokenContract("its `config` is another one when it is written as plain data and read back")
