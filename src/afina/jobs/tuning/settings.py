"""The parameters of one training by their names: those of `FitConfig`, `model.NAME` for the builder, `input_size`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from afina.errors import InputError, did_you_mean
from afina.search import Space
from afina.search.spaces import NumberLoader
from afina.training import FitConfig

MODEL, INPUT_SIZE = "model.", "input_size"
# What a search may vary of a training; the rest is for networks with a teacher.
_OF_TEACHERS = {"distillation", "temperature", "features", "feature_weight", "attention_weight", "relation_weight"}
TRAINING = sorted({f.name for f in fields(FitConfig)} - _OF_TEACHERS - {"keep_fp32", "keep_zeros", "seed"})


@dataclass(frozen=True)
class Settings:
    """The parameters of a training, by the thing that they configure.

    Attributes:
        options: Options of `FitConfig`, by name.
        model: Arguments of the function that builds the model, by name.
        input_size: The input size of the network; None where it is not given.
    """

    options: Mapping[str, Any]
    model: Mapping[str, Any]
    input_size: Any


def settings_of(params: Mapping[str, Any]) -> Settings:
    """Parameters, by their flat names, as settings.

    Example:
        >>> settings_of({"learning_rate": 0.1, "model.depth": 3, "input_size": 64})
        Settings(options={'learning_rate': 0.1}, model={'depth': 3}, input_size=64)
    """
    options = {k: v for k, v in params.items() if k != INPUT_SIZE and not k.startswith(MODEL)}
    model = {k.removeprefix(MODEL): v for k, v in params.items() if k.startswith(MODEL)}
    return Settings(options, model, params.get(INPUT_SIZE))


def read_settings(source: str | Path | Mapping[str, Any]) -> Settings:
    """The parameters of one training: a YAML file, such as `best.yaml` of a search, or a mapping.

    Raises:
        InputError: it cannot be read, or a name is not one of a training.
    """
    if isinstance(source, Mapping):
        parameters: Any = source
    else:
        try:
            parameters = yaml.load(Path(source).read_text(encoding="utf-8"), Loader=NumberLoader)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"--training {source} cannot be read.", why=str(error).splitlines()[0]) from error
    if not isinstance(parameters, Mapping):
        raise InputError(
            f"--training {source} is not a list of names with values.",
            fix="Give best.yaml of a run of afina tune, or write, for example: learning_rate: 0.1",
        )
    check_parameters(parameters)
    return settings_of(parameters)


def check_parameters(names: Iterable[str]) -> None:
    """Raise `InputError` for the first name that is no parameter of a training or of the model's builder."""
    for name in names:
        if not str(name).startswith(MODEL) and name not in (*TRAINING, INPUT_SIZE):
            near = did_you_mean(str(name), [*TRAINING, INPUT_SIZE])
            raise InputError(f"A training has no parameter {name!r}.", fix=f"{near} Or {MODEL}NAME for the model.")


def check_space(space: Space) -> None:
    """Raise `InputError` for the first parameter that no training has, or value that none can have."""
    check_parameters(space.parameters)
    for name in space.parameters.keys() & set(TRAINING):
        for value in space.parameters[name].ends():
            FitConfig(**{name: value})  # type: ignore[arg-type]
