"""The part of an ONNX file that chooses boxes, put behind an exported file again: see `models.onnx.cutting`."""

import json
from pathlib import Path

from afina.errors import Unsupported, first_lines
from afina.store.files import write
from afina.types.metadata import TAIL_OUTPUTS_KEY

_PREFIX = "tail/"


def with_tail(path: Path, tail: bytes) -> None:
    """Write the ONNX file at `path` anew, with the tail behind its outputs, which are called as the tail's inputs are.

    Raises:
        Unsupported: the operators of the two cannot be of one version, or the whole does not run.
    """
    import onnx
    import onnxruntime

    head = onnx.load(path)
    opset = next(entry.version for entry in head.opset_import if entry.domain in ("", "ai.onnx"))
    try:
        rest = onnx.load_model_from_string(tail)
        outputs = next(
            (json.loads(entry.value) for entry in rest.metadata_props if entry.key == TAIL_OUTPUTS_KEY), None
        )
        if any(entry.version != opset for entry in rest.opset_import if entry.domain in ("", "ai.onnx")):
            rest = onnx.version_converter.convert_version(rest, opset)
        rest.ir_version = head.ir_version
        joins = [(value.name, _PREFIX + value.name) for value in rest.graph.input]
        rest = onnx.compose.add_prefix(rest, _PREFIX, rename_outputs=False)
        kept = {entry.key: entry.value for entry in head.metadata_props}
        whole = onnx.compose.merge_models(head, rest, joins, outputs=outputs)
        onnx.helper.set_model_props(whole, kept)
        content = whole.SerializeToString()
        onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnx and ONNX Runtime raise several classes of their own
        raise Unsupported(
            "What the file did behind the network (the choice of boxes) cannot be put back.",
            why=first_lines(error, 2),
            fix="Choose boxes on the host, as the original file does.",
        ) from error
    write(path, content)
