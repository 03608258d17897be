"""Options that several commands have."""

from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[
    str,
    typer.Argument(
        help="`resnet18` or `timm:NAME`, `torchvision:NAME`, `file.py:builder`, `builtin:convnet`, a saved `.pt2`."
    ),
]
DataOption = Annotated[
    str,
    typer.Option("--data", help="A folder of images or a .zip of one, a table `image,target` (CSV), or `digits`."),
]
Weights = Annotated[
    str | None,
    typer.Option(help="`pretrained`, `random`, or a file (.safetensors, .pth); pretrained by default."),
]
InputSize = Annotated[str | None, typer.Option(help="Input size in pixels, as in 224 or 224x320 (height x width).")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of the runtime; all cores by default.")]
Batch = Annotated[int, typer.Option(min=1, help="Images per call when latency is measured.")]
RuntimeOption = Annotated[str, typer.Option(help="What will run the file: `onnxruntime` or `openvino`.")]
Optimizer = Annotated[
    Any, typer.Option(parser=str, metavar="NAME", help="`sgd` or `adamw`; by default the one that suits the network.")
]
Precision = Annotated[
    Any, typer.Option(parser=str, metavar="NAME", help="Of training: `32`, `bf16-mixed` or `16-mixed`.")
]
KeepFP32 = Annotated[
    list[str] | None,
    typer.Option(help="A layer that stays in 32 bits in mixed precision, as in `head` or `layer4.*`; may be repeated."),
]
OptionalData = Annotated[
    str | None,
    typer.Option("--data", help="As for `optimize`; without it units and weights go by magnitude."),
]
Axes = Annotated[
    list[str] | None,
    typer.Option(help="`channels`, `hidden`, `heads`, `head-dim`, `embedding`, `groups`, `blocks`, or an axis."),
]
Finetune = Annotated[int, typer.Option(min=0, help="Epochs of fine-tuning, taught by the model as it was.")]
FinetuneRate = Annotated[float | None, typer.Option(help="Learning rate of fine-tuning.")]
Images = Annotated[int, typer.Option(min=1, help="Training images that the statistics rest on.")]
NetworkOut = Annotated[Path | None, typer.Option(help="The .pt2 file to write; named after the model by default.")]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the result.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
