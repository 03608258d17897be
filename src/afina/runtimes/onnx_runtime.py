"""ONNX Runtime on the processor: `.onnx` files."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from afina.errors import InputError
from afina.runtimes.base import Runtime, Session, in_fixed_batches
from afina.types import InputSpec, TaskSpec
from afina.types.metadata import parse

if TYPE_CHECKING:
    from afina.graph import Network

_ONLY_FATAL = 4


class ONNXRuntime(Runtime):
    """One self-contained `.onnx` file, run by ONNX Runtime's processor kernels.

    Weights in 16 bits are stored so and computed in float32: half the bytes at the same speed (its processor kernels
    for float16 are few and slow). The drawback: loading takes longer and more memory, as they are widened then.
    """

    name = "onnxruntime"
    extra = None
    format = "onnx"
    suffix = ".onnx"
    package = "onnxruntime"
    usage = """\
import onnxruntime
model = onnxruntime.InferenceSession("{file}")
names = [output.name for output in model.get_outputs()]
outputs = dict(zip(names, model.run(names, {{model.get_inputs()[0].name: x}})))
"""
    stored_bits = {8: 8, 4: 4, 2: 2}  # noqa: RUF012 (a constant)

    def _write(self, network: "Network", path: Path) -> None:
        from afina.runtimes.onnx_file import onnx_bytes

        path.write_bytes(onnx_bytes(network))

    def _open(self, path: Path, threads: int) -> Session:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ONLY_FATAL  # what goes wrong is raised; standard error stays the user's
        # By default idle workers spin for a while after each run. Beside another session (candidates that are timed
        # in turn) they take its cores: a ResNet-20 was seen at 4.8 ms instead of 1.4 ms. On its own it is as fast
        # without, within a few percent, and steadier.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return _ONNXSession(onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]), path)

    def _metadata(self, path: Path) -> tuple[InputSpec, TaskSpec] | None:
        import onnx

        model = onnx.load(str(path), load_external_data=False)
        if not model.graph.output:  # protobuf takes any short text for an empty model
            raise ValueError("it holds no graph")
        return parse({entry.key: entry.value for entry in model.metadata_props})


class _ONNXSession:
    """A file in ONNX Runtime; one whose batch is fixed is run in batches of that size."""

    def __init__(self, session: Any, path: Path) -> None:
        inputs = session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
            listed = ", ".join(f"{i.name}: {i.type} {i.shape}" for i in inputs)
            raise InputError(f"{path} does not take one batch of float images.", why=f"Its inputs are: {listed}")
        self._session, self._name = session, inputs[0].name
        self._outputs = [output.name for output in session.get_outputs()]
        batch = inputs[0].shape[0]
        self._batch = batch if isinstance(batch, int) else None

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        if self._batch is None or len(images) == self._batch:
            return self._run(images)
        return in_fixed_batches(self._run, images, self._batch)

    def _run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(self._outputs, self._session.run(None, {self._name: images}), strict=True))
