"""The plain data that every layer shares: no torch, nothing that computes.

Everything here is a frozen dataclass of plain values, so that it can be written as JSON and read back.
"""

from afina.types.measures import CONFIDENCE, Budget, How, JudgedDrop, LabelTable, Measurement, MetricInfo, Verdict
from afina.types.network import UNKNOWN_TASK, InputSpec, Interpolation, Order, OutputGuide, Resize, TaskSpec, plain_task
from afina.types.outcome import Candidate, Result
from afina.types.records import Epoch, LayerRow, Record, Sensitivity, Step

__all__ = [
    "CONFIDENCE",
    "UNKNOWN_TASK",
    "Budget",
    "Candidate",
    "Epoch",
    "How",
    "InputSpec",
    "Interpolation",
    "JudgedDrop",
    "LabelTable",
    "LayerRow",
    "Measurement",
    "MetricInfo",
    "Order",
    "OutputGuide",
    "Record",
    "Resize",
    "Result",
    "Sensitivity",
    "Step",
    "TaskSpec",
    "Verdict",
    "plain_task",
]
