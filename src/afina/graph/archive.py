"""A network as one `.pt2` file: written whole or not at all, read without running anything from it.

`torch.export.load` unpickles what an archive asks it to, resolves operators by any name under `torch`, and hands
shape expressions to `sympify`, which evaluates them. So an archive is inspected before torch sees it: weights and
constants must be raw tensors, operators must be ATen's or the quantization ops, expressions must be arithmetic.
"""

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from afina.errors import InputError, check_file
from afina.store.files import write as write_whole
from afina.types import InputSpec, TaskSpec

if TYPE_CHECKING:
    from afina.graph.network import Network

_EXTRA = "afina.json"
_FORMAT = "afina/network/1"
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|quantized_decomposed|torchao|higher_order)\.\w+(\.\w+)?|_operator\.[a-z]\w*|math\.[a-z]\w*"
)
_SYMBOL = re.compile(r"[a-z_]{1,8}\d{0,9}")
_FUNCTIONS = frozenset(
    "Symbol Integer Rational Float Add Mul Pow Mod Max Min Eq Ne Lt Le Gt Ge And Or Not FloorDiv CeilDiv CleanDiv "
    "IntTrueDiv FloatTrueDiv PythonMod ModularIndexing TruncToInt RoundToInt ToFloat CeilToInt FloorToInt".split()
)


def write(network: "Network", path: Path) -> Path:
    """Write `network` to `path`. Raises `StorageError` where it cannot be written."""
    write_whole(path, packed(network))
    return path


def packed(network: "Network") -> bytes:
    """What a file of `network` holds."""
    about = {
        "format": _FORMAT,
        "input": asdict(network.input),
        "task": asdict(network.task),
        "frozen": sorted(network.frozen),
    }
    program = network.exported()
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={_EXTRA: json.dumps(about)})
    return buffer.getvalue()


def read(path: Path) -> "Network":
    """Read the network in `path`. Raises `InputError`."""
    check_file(path)
    return unpacked(path.read_bytes(), path)


def unpacked(data: bytes, path: str | Path = "The network") -> "Network":
    """The network that `packed` made bytes of; `path` is for messages. Raises `InputError`."""
    from afina.graph.network import Network, unlifted

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            reason = _reason_to_refuse(archive)
    except (zipfile.BadZipFile, json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is not a saved network.",
            why=f"It cannot be read as one: {error}",
            fix="Save it again with Network.save.",
        ) from error
    if reason:
        raise InputError(
            f"{path} is refused.",
            why=reason,
            fix="Load only files written by Network.save (or `afina export --to pt2`).",
        )
    import torch.ao.quantization.fx._decomposed

    extra = {_EXTRA: ""}
    program = torch.export.load(io.BytesIO(data), extra_files=extra)
    about = json.loads(extra[_EXTRA])
    network = Network(
        unlifted(program), _input_spec(about["input"]), _task_spec(about["task"]), frozenset(about["frozen"])
    )
    return network.eval()


def _reason_to_refuse(archive: zipfile.ZipFile) -> str:
    names = archive.namelist()
    inner = {name.split("/", 1)[1]: name for name in names if "/" in name}
    extra = next((name for key, name in inner.items() if key.endswith(_EXTRA)), None)
    if extra is None or json.loads(archive.read(extra)).get("format") != _FORMAT:
        return f"It was not written by this library (no {_FORMAT} in it)."
    for key, name in inner.items():
        if key.endswith(".pt") and not key.startswith("data/sample_inputs/"):
            return f"It holds a pickled object: {key}."
        if key.endswith("_config.json"):
            for entry, payload in json.loads(archive.read(name))["config"].items():
                if payload.get("use_pickle") or not payload.get("path_name", "").startswith(("weight_", "tensor_")):
                    return f"It holds a pickled object: {entry}."
        if key.startswith("data/sample_inputs/") and not _is_plain(archive.read(name)):
            return "Its example inputs are not plain tensors."
        if key.startswith("models/") and key.endswith(".json"):
            reason = _reason_in_graph(json.loads(archive.read(name)))
            if reason:
                return reason
        if key.startswith("data/aotinductor"):
            return "It holds compiled code."
    return ""


def _reason_in_graph(model: Any) -> str:
    for key, value in _strings(model):
        if key == "target" and not _OPERATOR.fullmatch(value):
            return f"Its graph calls {value!r}, which is not a tensor operator."
        if key == "expr_str" and not _is_arithmetic(value):
            return f"It holds an expression that is not arithmetic: {value[:60]!r}."
    return ""


def _is_arithmetic(text: str) -> bool:
    """Whether `text` is numbers, symbols, operators and calls of the functions that shape expressions are made of."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError):
        return False
    harmless = (
        ast.Expression,
        ast.BinOp,
        ast.UnaryOp,
        ast.Compare,
        ast.operator,
        ast.unaryop,
        ast.cmpop,
        ast.Load,
        ast.keyword,
    )
    named = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    symbols = {id(node.args[0]) for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_symbol(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            good = isinstance(node.value, (int, float)) or id(node) in symbols
        elif isinstance(node, ast.Name):
            good = node.id in _FUNCTIONS if id(node) in named else bool(_SYMBOL.fullmatch(node.id))
        else:
            good = isinstance(node, harmless) or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name))
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
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for inner, child in value.items():
            yield from _strings(child, inner)
    elif isinstance(value, list):
        for child in value:
            yield from _strings(child, key)


def _is_plain(data: bytes) -> bool:
    if not data:
        return True
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception:
        return False
    return True


def _input_spec(raw: dict[str, Any]) -> InputSpec:
    return InputSpec(**{**raw, "mean": tuple(raw["mean"]), "std": tuple(raw["std"])})


def _task_spec(raw: dict[str, Any]) -> TaskSpec:
    return TaskSpec(raw["name"], tuple(raw["labels"]))
