"""`result.json` and every other record: our frozen dataclasses as JSON, and back."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

from afina.errors import InputError
from afina.store.older import completed
from afina.types import Result

T = TypeVar("T")

RESULT_FILE = "result.json"
CONFIG_FILE = "config.yaml"
_ANYTHING: TypeAdapter[Any] = TypeAdapter(Any, config=ConfigDict(ser_json_inf_nan="strings"))


def read_result(path: str | Path) -> Result:
    """The result in a run folder, or in the file `result.json` itself.

    Raises:
        InputError: it is missing, is not JSON, or is not of this schema.
    """
    path = Path(path)
    file = path / RESULT_FILE if path.is_dir() else path
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        unfinished = path.is_dir() and (path / CONFIG_FILE).is_file()
        raise InputError(
            f"There is no result in {path}." if path.is_dir() else f"There is no file {path}.",
            why="The run has not finished." if unfinished else "",
            fix="Run its command again: it resumes." if unfinished else "Give the folder of a run (its --out).",
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as JSON.", why=str(error), fix="Run the command again.") from error
    schema = raw.get("schema") if isinstance(raw, dict) else None
    expected = next(f.default for f in dataclasses.fields(Result) if f.name == "schema")
    if schema != expected:
        raise InputError(
            f"{file} is not a result that this version reads.",
            why=f"Its schema is {schema!r}, and this version reads {expected!r}.",
            fix="Read it with the version that wrote it, or run the command again.",
        )
    try:
        return from_plain(Result, completed(raw))
    except ValidationError as error:
        raise InputError(
            f"{file} is not a valid result.", why=_problems(error), fix="Run the command again."
        ) from error


def result_schema() -> dict[str, Any]:
    """The JSON schema of `result.json` (draft 2020-12)."""
    schema = _adapter(Result).json_schema(mode="serialization")
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Afina result"}
    return {**cast(dict[str, Any], _with_infinities(schema)), **head}


def to_plain(value: Any) -> Any:
    """A frozen dataclass (or a tuple, list or dict of them) as values that JSON can hold.

    Numbers that JSON does not have become the strings `NaN`, `Infinity` and `-Infinity`, which `from_plain`
    reads.

    Example:
        >>> from afina.types import Step
        >>> plain = to_plain(Step("prune", {"keep": 0.5}))
        >>> plain
        {'technique': 'prune', 'config': {'keep': 0.5}}
        >>> from_plain(Step, plain)
        Step(technique='prune', config={'keep': 0.5})
    """
    return json.loads(_ANYTHING.dump_json(value))


def from_plain(kind: type[T], data: Any) -> T:
    """The `kind` that `to_plain` made `data` from. Raises `pydantic.ValidationError` if it does not fit."""
    return cast(T, _adapter(cast(Any, kind)).validate_python(data))


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _with_infinities(schema: Any) -> Any:
    """The schema with the strings of `to_plain` allowed wherever a number is."""
    if isinstance(schema, dict):
        inner = {key: _with_infinities(value) for key, value in schema.items() if key != "type"}
        if schema.get("type") == "number":
            return {**inner, "anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}
        return {**({"type": schema["type"]} if "type" in schema else {}), **inner}
    return [_with_infinities(value) for value in schema] if isinstance(schema, list) else schema


def _problems(error: ValidationError) -> str:
    problems = error.errors()
    shown = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in problems[:3])
    return shown + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
