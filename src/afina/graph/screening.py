"""Whether a `.pt2` archive holds plain data only: looked at before torch reads it.

`torch.export.load` unpickles what an archive asks it to, resolves operators by any name under `torch`, and hands
shape expressions to `sympify`, which evaluates them. So everything that could make it run code is refused here: weights
and constants must be raw tensors, operators must be on the list of `operators`, expressions must be arithmetic.
"""

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import torch

from afina.graph.operators import computes

_MODEL, _INPUTS = "models/model.json", "data/sample_inputs/model.pt"
_SCREENED = (
    *(_MODEL, _INPUTS),
    *("data/weights/model_weights_config.json", "data/constants/model_constants_config.json"),
)
# All that `Network.save` writes. In an archive with other entries torch would look for older formats and for objects.
_ENTRY = re.compile(
    "|".join(re.escape(name) for name in _SCREENED)
    + r"|data/weights/weight_\d+|data/constants/tensor_\d+|extra/afina\.json"
    r"|archive_format|archive_version|byteorder|version|\.format_version|\.storage_alignment"
    r"|\.data/(version|serialization_id)"
)
_FUNCTIONS = frozenset(
    "Symbol Integer Rational Float Add Mul Pow Mod Max Min Eq Ne Lt Le Gt Ge And Or Not FloorDiv CeilDiv CleanDiv "
    "IntTrueDiv FloatTrueDiv PythonMod ModularIndexing TruncToInt RoundToInt ToFloat CeilToInt FloorToInt".split()
)
_ARITHMETIC = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare),
    *(ast.operator, ast.unaryop, ast.cmpop, ast.Load, ast.keyword),
)
_SYMBOL = re.compile(r"[a-z_]{1,8}\d{0,9}")


def reason_to_refuse(archive: zipfile.ZipFile) -> str:
    """Why the archive must not be given to torch, as one sentence; empty where it holds nothing but plain data.

    Raises:
        KeyError, JSONDecodeError, UnicodeDecodeError: it is no archive of a network.
    """
    names = archive.namelist()
    root = names[0].partition("/")[0] if names else ""
    if len(set(names)) < len(names):
        return "It holds two entries of the same name."  # of which torch may read the other one
    for name in names:
        folder, _, key = name.partition("/")
        if folder != root or not _ENTRY.fullmatch(key):
            return f"It holds {name!r}, which Network.save does not write."
        reason = _reason_in_entry(key, archive.read(name)) if key in _SCREENED else ""
        if reason:
            return reason
    return ""


def _reason_in_entry(key: str, content: bytes) -> str:
    if key == _INPUTS:
        return "" if _is_plain(content) else "Its example inputs are not plain tensors: it holds a pickled object."
    if key == _MODEL:
        return _reason_in_graph(json.loads(content))
    for entry, payload in json.loads(content)["config"].items():
        if payload.get("use_pickle") or not payload.get("path_name", "").startswith(("weight_", "tensor_")):
            return f"It holds a pickled object: {entry}."
    return ""


def _reason_in_graph(model: Any) -> str:
    for key, value in _strings(model):
        # An operator that is handed to another one is an operator as well.
        if key in ("target", "as_operator") and not computes(value):
            return f"Its graph calls {value!r}, which is not on the list of operators that only compute."
        if key == "expr_str" and not _is_arithmetic(value):
            return f"It holds an expression that is not arithmetic: {value[:60]!r}."
    return ""


def _is_arithmetic(text: str) -> bool:
    """Whether `text` is numbers, symbols, operators and calls of the functions that shape expressions are made of."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError):
        return False
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    symbols = {id(node.args[0]) for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_symbol(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            good = isinstance(node.value, (int, float)) or id(node) in symbols
        elif isinstance(node, ast.Name):
            good = node.id in _FUNCTIONS if id(node) in called else bool(_SYMBOL.fullmatch(node.id))
        else:
            good = isinstance(node, _ARITHMETIC) or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name))
        if not good:
            return False
    return True


def _is_symbol(node: ast.Call) -> bool:
    """Whether `node` is `Symbol('s0', ...)`, the one place where a string belongs."""
    match node:
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))]):
            return bool(_SYMBOL.fullmatch(name))
    return False


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All strings in a JSON value, each with the key that it stands under."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for inner, child in value.items():
            yield from _strings(child, inner)
    elif isinstance(value, list):
        for child in value:
            yield from _strings(child, key)


def _is_plain(data: bytes) -> bool:
    """Whether torch reads `data` without unpickling anything but tensors and containers."""
    if not data:
        return True
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception:
        return False
    return True
