"""Models of `transformers`: a folder with its configuration and weights, or a name on the Hugging Face hub.

    ./folder                    config.json, model.safetensors, preprocessor_config.json
    hf:ORG/NAME                 the same files, from the hub or its cache

The class is the one that `transformers` itself has for the configuration and a task for images; code that comes with a
model is never run. The configuration of the preprocessor says how images are made ready, and `id2label` what the
outputs mean.
"""

import contextlib
import importlib.util
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from afina.errors import InputError, Unsupported, first_lines
from afina.models.hub import hub_access, hub_url, is_reachable
from afina.models.preprocessor_config import input_of_preprocessor, sides_of
from afina.models.transforms import timm_input
from afina.progress import Progress
from afina.tasks.forms import CLASSES
from afina.types import InputSpec, TaskSpec

PREFIX = "hf:"
CONFIG = "config.json"
_PREPROCESSOR = ("preprocessor_config.json", "processor_config.json")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_EXTRA = "pip install 'afina[transformers]'"


@dataclass(frozen=True)
class Kind:
    """One kind of model.

    Attributes:
        auto: The class of `transformers` that knows the models of this kind.
        outputs: The outputs that a device needs, by name; all others serve training.
        task: The task that they are for; None where Afina has none for it.
    """

    auto: str
    outputs: tuple[str, ...]
    task: str | None = None


# In the order in which they are looked for; a configuration names its class, which decides.
KINDS = (
    Kind("AutoModelForImageClassification", ("logits",), CLASSES.task),
    Kind("AutoModelForObjectDetection", ("logits", "pred_boxes")),
    Kind("AutoModelForSemanticSegmentation", ("logits",)),
    Kind("AutoModelForDepthEstimation", ("predicted_depth",)),
    Kind("AutoModelForUniversalSegmentation", ("class_queries_logits", "masks_queries_logits")),
    Kind("AutoModelForKeypointDetection", ()),
    Kind("AutoBackbone", ()),
    Kind("AutoModel", ("last_hidden_state", "pooler_output")),
)


@dataclass(frozen=True)
class HuggingFaceSource:
    """A model as a module.

    Attributes:
        module: Takes images, and gives the outputs of its kind by name.
        input: How images are made ready; None where there is no configuration of it.
        task: What the outputs mean; None where Afina has no task for them.
        trained: Whether it holds trained weights.
        new_head: Classes of the trained model, where its last layer was replaced by a new one; else None.
    """

    module: nn.Module
    input: InputSpec | None
    task: TaskSpec | None
    trained: bool
    new_head: int | None = None


class ForImages(nn.Module):
    """A model of `transformers` as a module of images alone, which gives the outputs that a device needs.

    Attributes:
        input_size: Channels, height and width of its images; None where its configuration does not say.
    """

    input_size: tuple[int, int, int] | None = None

    def __init__(self, model: nn.Module, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.outputs = model, outputs

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        given = self.model(pixel_values=images)
        tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        chosen = {name: tensors[name] for name in self.outputs if name in tensors}
        if chosen:
            return chosen
        features = given.get("feature_maps")
        return {f"feature_maps.{i}": value for i, value in enumerate(features)} if features else tensors


def is_folder(model: str | Path) -> bool:
    """Whether a model is a folder with a configuration."""
    return (Path(model) / CONFIG).is_file()


def is_named(model: str | Path) -> bool:
    """Whether a model is a name on the hub."""
    return str(model).startswith(PREFIX)


def build_transformers(
    model: str | Path, *, trained: bool, outputs: int | None, size: tuple[int, int] | None, progress: Progress
) -> HuggingFaceSource:
    """The module of a folder or of a name on the hub.

    Args:
        model: The folder, or `hf:ORG/NAME`.
        trained: Whether it should have its trained weights; else they are random.
        outputs: The number of classes that a classifier should have; None leaves it as it is.
        size: Height and width that the user asked for.
        progress: Shows a line before a download.

    Raises:
        InputError: `transformers` is not installed, there is no such model, a file is missing or broken, or the class
            is not one for images.
        Unsupported: the model needs code that comes with it.
    """
    folder = _downloaded(str(model).removeprefix(PREFIX), progress) if is_named(model) else Path(model)
    plain = _plain_configuration(folder)
    if "architecture" in plain and "model_type" not in plain:
        return _of_timm(folder, plain, trained, outputs)
    transformers = _library()
    with _quiet():
        config = _configuration(transformers, folder, plain)
        kind = _kind(transformers, config, folder)
        before = None
        if outputs is not None and kind.task == CLASSES.task and outputs != config.num_labels:
            before, config.num_labels = config.num_labels, outputs
        module, is_trained = _module(transformers, kind, config, folder, trained, before is not None)
    task = None
    if kind.task is not None:
        labels = getattr(config, "id2label", None) or {}
        task = TaskSpec(kind.task, tuple(str(labels[key]) for key in sorted(labels, key=int)) if before is None else ())
    wrapped = ForImages(module, kind.outputs).eval()
    sides = size or sides_of(getattr(config, "image_size", None))
    if sides is not None:
        wrapped.input_size = (getattr(config, "num_channels", 3), *sides)
    return HuggingFaceSource(wrapped, _input(folder, sides), task, is_trained, before)


def check_installed() -> None:
    """Raise `InputError` where `transformers` is not installed."""
    if importlib.util.find_spec("transformers") is None:
        raise InputError("This model needs the package transformers.", fix=f"Install it: {_EXTRA}")


def _library() -> Any:
    check_installed()
    import transformers

    return transformers


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own reports on weights, which are told here where they matter."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.set_verbosity(before)


def _downloaded(name: str, progress: Progress) -> Path:
    """The folder of a model of the hub in the cache; downloaded where it is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    files = [CONFIG, *_PREPROCESSOR, *_WEIGHTS, "*.safetensors"]
    try:
        return Path(snapshot_download(name, allow_patterns=files, local_files_only=True))
    except (OSError, ValueError, HFValidationError):
        pass
    online = is_reachable(hub_url())
    if not online:
        raise InputError(
            f"{PREFIX}{name} is not in the cache, and the hub cannot be reached.",
            why=f"There is no connection to {hub_url()}.",
            fix="Download it where there is a network, and give the folder.",
        )
    progress.say(f"Loading {name} from the hub.")
    try:
        with hub_access(online):
            return Path(snapshot_download(name, allow_patterns=files))
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        raise InputError(
            f"{PREFIX}{name} cannot be loaded.", why=first_lines(error, 2), fix="Check the name."
        ) from error


def _plain_configuration(folder: Path) -> Mapping[str, Any]:
    """The content of `config.json`. Raises `InputError`."""
    try:
        plain = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / CONFIG} cannot be read.", why=first_lines(error, 1)) from error
    if not isinstance(plain, Mapping) or not {"model_type", "architecture"} & set(plain):
        raise InputError(
            f"{folder / CONFIG} is not a configuration of transformers (it has no model_type) or timm.",
            fix="Give a folder that `save_pretrained` wrote, or that timm wrote for the hub.",
        )
    return plain


def _of_timm(folder: Path, plain: Mapping[str, Any], trained: bool, outputs: int | None) -> HuggingFaceSource:
    """A model of timm, as timm writes it for the hub."""
    import timm

    classes = plain.get("num_classes")
    changed = outputs is not None and outputs != classes
    try:
        with warnings.catch_warnings(action="ignore"):
            module = timm.create_model(
                f"local-dir:{folder}", pretrained=trained, **({"num_classes": outputs} if changed else {})
            )
    except Exception as error:  # timm raises several kinds for broken files and unknown names
        raise InputError(f"{folder} cannot be read as a model of timm.", why=first_lines(error, 2)) from error
    labels = () if changed else tuple(map(str, plain.get("label_names") or ()))
    input = timm_input(module.pretrained_cfg)
    return HuggingFaceSource(module, input, TaskSpec(CLASSES.task, labels), trained, classes if changed else None)


def _configuration(transformers: Any, folder: Path, plain: Mapping[str, Any]) -> Any:
    """The configuration. Raises `InputError` where it is broken or of no kind that the library knows."""
    if plain.get("auto_map"):
        known = plain["model_type"] in transformers.CONFIG_MAPPING
        if not known:
            raise Unsupported(
                f"{folder.name} needs code that comes with it ({', '.join(map(str, plain['auto_map'].values()))}).",
                why="Code of a model is never run.",
                fix="Build the model in a file of your own that you have read, and give that: path/file.py:builder.",
            )
    try:
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the library raises several kinds for wrong values
        raise InputError(f"{folder / CONFIG} cannot be used.", why=first_lines(error, 2)) from error


def _kind(transformers: Any, config: Any, folder: Path) -> Kind:
    """The kind of a model: that of the class in its configuration, else the first that knows its type."""
    named = (getattr(config, "architectures", None) or [""])[0]
    for kind in KINDS:
        mapping = getattr(transformers, kind.auto)._model_mapping
        if type(config) not in mapping:
            continue
        classes = mapping[type(config)]
        these = classes if isinstance(classes, (tuple, list)) else (classes,)
        takes_images = getattr(these[0], "main_input_name", "") == "pixel_values"
        if takes_images and (not named or named in [each.__name__ for each in these]):
            return kind
    raise InputError(
        f"{folder.name} is no model for images that is read: {named or config.model_type}.",
        why="Read are models of transformers for image classification, object detection, segmentation, depth, key "
        "points and image features.",
        fix="Build it in a file of your own, in a module of images alone: path/file.py:builder.",
    )


def _module(
    transformers: Any, kind: Kind, config: Any, folder: Path, trained: bool, changed: bool
) -> tuple[nn.Module, bool]:
    """The model with its weights, or with random ones; and whether they are trained. `changed`: of other classes."""
    auto = getattr(transformers, kind.auto)
    if not trained:
        return auto.from_config(config), False
    if not any((folder / name).is_file() for name in _WEIGHTS) and not list(folder.glob("*.safetensors")):
        others = [file.name for file in folder.glob("*.bin")]
        raise InputError(
            f"{folder} has no model.safetensors.",
            why=f"It has {', '.join(others)}, a pickle, which could run code." if others else "",
            fix="Save it with save_pretrained(folder, safe_serialization=True); or give --weights random.",
        )
    try:
        model, report = auto.from_pretrained(
            folder, config=config, trust_remote_code=False, use_safetensors=True, output_loading_info=True,
            ignore_mismatched_sizes=True, dtype=torch.float32,
        )  # fmt: skip
    except Exception as error:  # the library raises several kinds for broken files
        raise InputError(f"The weights in {folder} cannot be read.", why=first_lines(error, 2)) from error
    missing = sorted(report["missing_keys"])
    # Of a classifier with other classes the last layer differs: in its outputs, and in nothing else.
    wrong = sorted(key for key, was, now in report["mismatched_keys"] if not changed or was[1:] != now[1:])
    if missing or wrong:
        raise InputError(
            f"The weights in {folder} do not fit its configuration.",
            why="; ".join(
                f"{word}: {', '.join(keys[:4])}"
                for word, keys in (("missing", missing), ("of another shape", wrong))
                if keys
            ),
            fix="Give the folder as save_pretrained wrote it.",
        )
    return model, True


def _input(folder: Path, sides: tuple[int, int] | None) -> InputSpec | None:
    """How images are made ready, by the preprocessor's configuration; None where there is none."""
    file = next((folder / name for name in _PREPROCESSOR if (folder / name).is_file()), None)
    if file is None:
        return None
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read.", why=first_lines(error, 1)) from error
    said = said.get("image_processor", said)
    return input_of_preprocessor(said, sides)
