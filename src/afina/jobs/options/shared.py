"""Options that several commands have: groups that their classes inherit, and types that differ only in the default."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from afina.errors import InputError
from afina.jobs.options.declaration import Option
from afina.types import Interpolation, Order

if TYPE_CHECKING:
    from afina.graph.network import Network
    from afina.jobs.common.model_source import ModelSource
    from afina.progress import Progress
    from afina.types import InputSpec
else:
    # Only their names are needed at run time: importing them would import torch.
    Network = ModelSource = Progress = InputSpec = Any

MODEL_HELP = (
    "A name (`resnet18`, `timm:NAME`, `torchvision:NAME`, `builtin:convnet`), `path/file.py:builder`, an `.onnx` "
    "file, a saved `.pt2`; from Python also an `nn.Module` or a `Network`."
)
DATA_HELP = (
    "A folder of images, a `.zip` of one, a table `image,target` (CSV), or `digits`; from Python also a `Dataset` or a "
    "`DataLoader`."
)
Model = Annotated[ModelSource, Option(MODEL_HELP, positional=True, in_recipe=False)]
Data = Annotated[Any, Option(DATA_HELP, metavar="DATA", in_recipe=False)]
OptionalData = Annotated[
    Any,
    Option(f"{DATA_HELP} Without it units and weights go by magnitude.", metavar="DATA", in_recipe=False),
]
Quantity = str | float | None  # a share, bytes, a time or points, as a user writes them: `50%`, `5MB`, `8ms`
InputSize = str | int | tuple[int, int] | None
Numbers = str | tuple[float, float, float] | None
Optimizer = Literal["sgd", "adamw"]
TrainingPrecision = Literal["32", "bf16-mixed", "16-mixed"]
TRAINING_PRECISIONS = ("32", "bf16-mixed", "16-mixed")

RunFolder = Annotated[
    str | Path | None,
    Option(
        "The run folder, `runs/` and a name made of the model and the data by default; the same command on it resumes.",
        in_recipe=False,
    ),
]
Images = Annotated[int, Option("Training images that the statistics rest on.", least=1)]
Finetune = Annotated[int, Option("Epochs of fine-tuning, taught by the model as it was; 0 for none.", least=0)]
LearningRate = Annotated[
    float | None, Option("Learning rate of the training; by default one that suits the optimizer.")
]
OptimizerName = Annotated[
    Optimizer | None,
    Option("By default the one that suits the network.", choices=("sgd", "adamw"), metavar="NAME"),
]
Precision = Annotated[
    TrainingPrecision,
    Option("Number type of the training.", choices=TRAINING_PRECISIONS, metavar="NAME"),
]
KeepFP32 = Annotated[
    tuple[str, ...] | str,
    Option("A layer that stays in 32 bits in mixed precision, as in `head` or `layer4.*`; may be repeated."),
]
Skip = Annotated[tuple[str, ...] | str, Option("A layer that stays as it is; may be repeated.")]
Axis = Annotated[
    tuple[str, ...] | str,
    Option(
        "Kind of axis (`channels`, `hidden`, `heads`, `head-dim`, `embedding`, `groups`) or name of one; all by "
        "default, may be repeated. `blocks` takes whole residual blocks out, as long as the target is not met; with "
        "other kinds beside it these make up the rest."
    ),
]
TaskName = Annotated[
    str | None,
    Option(
        "What the images are labelled for, where the data leaves it open: `classification`, `regression`, "
        "`multilabel`, another that is installed, or your own as `path/file.py:MyTask`; `outputs` compares what the "
        "network gives with the original.",
        metavar="TASK",
        in_recipe=False,
    ),
]
CRITERIA = ("fit", "magnitude", "taylor", "batchnorm", "random")
CacheMemory = Annotated[
    Quantity,
    Option(
        "Memory for images that are ready for the network, as in `4GB`; a quarter of what is free by default. Images "
        "that do not fit are read again each time, ahead of their use.",
        in_recipe=False,
    ),
]
SizeLimit = Annotated[Quantity, Option("Bytes of the exported float file, as in `5MB`.")]
LatencyLimit = Annotated[Quantity, Option("Time for one batch of that file on the runtime, as in `8ms`.")]


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """Options of every command that computes."""

    seed: Annotated[int, Option("Seed of every random choice.", least=0, in_recipe=False)] = 0
    progress: Annotated["Progress | None", Option("What the user sees; nothing by default.", python_only=True)] = None


@dataclass(frozen=True, kw_only=True)
class ModelOptions(CommonOptions):
    """Options that say how the model is opened."""

    weights: Annotated[
        str | None,
        Option(
            "Weights of the model: `pretrained`, `random`, or a file; pretrained by default.",
            metavar="WEIGHTS",
            in_recipe=False,
        ),
    ] = None
    input_size: Annotated[
        InputSize,
        Option(
            "Height and width of the network's input in pixels, as in `224` or `224x320`, where the model's own is "
            "wrong.",
            metavar="SIZE",
            in_recipe=False,
        ),
    ] = None
    task: TaskName = None
    mean: Annotated[
        Numbers,
        Option(
            "Mean of each channel, of pixels in 0..1, as in `0.485,0.456,0.406`, where the model's own is wrong.",
            metavar="NUMBERS",
            in_recipe=False,
        ),
    ] = None
    std: Annotated[
        Numbers,
        Option(
            "Standard deviation of each channel, of pixels in 0..1; `--mean 0,0,0 --std 1,1,1` leaves them in 0..1.",
            metavar="NUMBERS",
            in_recipe=False,
        ),
    ] = None
    resize: Annotated[
        str | None,
        Option(
            "How an image gets the network's size, where the model's own way is wrong: `cover` (the largest centred "
            "part; the whole image where its aspect ratio is nearly right), `stretch`, `crop` (the shorter side is "
            "resized, the centre cut out; `crop:0.875` for a part of it) or `letterbox` (`letterbox:114` for a grey "
            "border).",
            metavar="WAY",
            in_recipe=False,
        ),
    ] = None
    interpolation: Annotated[
        Interpolation | None,
        Option(
            "Filter of the resizing, where the model's own is wrong.",
            choices=get_args(Interpolation),
            metavar="NAME",
            in_recipe=False,
        ),
    ] = None
    order: Annotated[
        Order | None,
        Option(
            "Order of the channels, where the model's own is wrong.",
            choices=get_args(Order),
            metavar="NAME",
            in_recipe=False,
        ),
    ] = None
    scale: Annotated[
        float | None,
        Option(
            "What a white pixel is for the network, as in `255`, where that is not 1: `--mean` and `--std` are of such "
            "pixels then, and 0 and 1 where they are not given.",
            metavar="NUMBER",
            in_recipe=False,
        ),
    ] = None
    trust: Annotated[
        bool,
        Option(
            "Unpickle a model file (`.pt` of Ultralytics, or another that `torch.save` wrote of a whole module), which "
            "may run code that is in it.",
            in_recipe=False,
        ),
    ] = False
    example: Annotated[
        Any, Option("For an `nn.Module`: a tensor of the input's shape, or an `InputSpec`.", python_only=True)
    ] = None


@dataclass(frozen=True, kw_only=True)
class DataOptions(ModelOptions):
    """Options that say how the model is opened, and how images are read for it."""

    cache_memory: CacheMemory = None


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """Options that say what runs the file, and how it is timed."""

    runtime: Annotated[
        str, Option("What will run the file: `onnxruntime`, `openvino`, or another that is installed.", in_recipe=False)
    ] = "onnxruntime"
    threads: Annotated[
        int | None, Option("Threads of the runtime; all cores by default.", least=1, in_recipe=False)
    ] = None
    batch: Annotated[int, Option("Images per call when latency is measured.", least=1, in_recipe=False)] = 1


@dataclass(frozen=True, kw_only=True)
class FineTuneOptions:
    """Options that say how a smaller network is trained after it was made."""

    finetune: Finetune = 0
    learning_rate: LearningRate = None
    optimizer: OptimizerName = None
    teacher: Annotated[
        "Network | None",
        Option("The network that teaches the fine-tuning; the model as it was by default.", python_only=True),
    ] = None


def check_training(
    epochs: int, learning_rate: float | None, optimizer: str | None, data: Any, option: str = "--finetune"
) -> None:
    """Raise `InputError` for a training without images, or options of a training where there is none."""
    if epochs < 0:
        raise InputError(f"{option} is {epochs}.", fix="Give a number of epochs, 0 for no training.")
    if epochs and data is None:
        raise InputError("Training needs images.", fix=f"Give --data, or leave {option} out.")
    if learning_rate is not None and not learning_rate > 0:
        raise InputError(f"--learning-rate is {learning_rate}.", fix="Give more than 0.")
    if not epochs and (learning_rate is not None or optimizer is not None):
        flag = "--optimizer" if learning_rate is None else "--learning-rate"
        raise InputError(
            f"{flag} is of a training, and there is none.", fix=f"Give {option} EPOCHS too, or leave {flag} out."
        )


def names(value: tuple[str, ...] | list[str] | str | None) -> tuple[str, ...]:
    """One name or several, as a tuple; none for None."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)
