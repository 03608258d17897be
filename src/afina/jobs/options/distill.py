"""Options of `afina distill`."""

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from afina.errors import InputError
from afina.jobs.options.declaration import Option
from afina.jobs.options.shared import (
    DATA_HELP,
    DataOptions,
    KeepFP32,
    LearningRate,
    OptimizerName,
    Precision,
)

if TYPE_CHECKING:
    from afina.jobs.common.model_source import ModelSource
else:
    ModelSource = Any


@dataclass(frozen=True)
class DistillOptions(DataOptions):
    """Train STUDENT on what TEACHER answers, and on labels where there are any."""

    teacher: Annotated[
        ModelSource,
        Option("The network that is learned from, named as MODEL elsewhere; it is left as it was.", positional=True,
               in_recipe=False),
    ]  # fmt: skip
    student: Annotated[
        ModelSource,
        Option(
            "The network that learns: a compressed form of the teacher (a `.pt2`), or any other model, which starts "
            "from its own weights.",
            positional=True,
            in_recipe=False,
        ),
    ]
    data: Annotated[
        Any, Option(f"{DATA_HELP} Its validation images judge the student.", metavar="DATA", in_recipe=False)
    ] = None
    _: KW_ONLY
    unlabelled: Annotated[
        Any,
        Option(
            "Images to learn from that need no labels; the teacher alone teaches. Without data they judge too, by the "
            "student's agreement with the teacher.",
            metavar="DATA",
            in_recipe=False,
        ),
    ] = None
    epochs: Annotated[int, Option("Passes over the training images.", least=1)] = 10
    temperature: Annotated[float, Option("Softens the teacher's answers (classification).")] = 4.0
    weight: Annotated[float, Option("Share of the teacher in the loss, where there are labels.")] = 0.9
    features: Annotated[
        str,
        Option("What is learned from inside the teacher: `none`, `auto`, or `STUDENT:TEACHER` layers, with commas."),
    ] = "none"
    feature_weight: Annotated[float, Option("Weight of the feature maps in the loss.")] = 1.0
    attention_weight: Annotated[float, Option("Weight of where feature maps are active.")] = 0.0
    relation_weight: Annotated[float, Option("Weight of how images relate to each other.")] = 0.0
    keep_zeros: Annotated[bool, Option("Weights that are zero stay zero.")] = False
    augment: Annotated[
        bool,
        Option("Vary the training images; without, the teacher is asked once for each image.",
               flags=("--augment", "--no-augment")),
    ] = True  # fmt: skip
    precision: Precision = "32"
    keep_fp32: KeepFP32 = ()
    learning_rate: LearningRate = None
    optimizer: OptimizerName = None
    batch_size: Annotated[int | None, Option("Images in one step.", least=2)] = None

    def check(self) -> None:
        """Raise `InputError` where there is nothing to learn from."""
        if self.data is None and self.unlabelled is None:
            raise InputError("There are no images to learn from.", fix="Give --data, --unlabelled, or both.")
