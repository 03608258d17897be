"""Families of `transformers` for images, read from folders: captured, pruned, quantized, on both runtimes.

    python benchmarks/models/families.py SHARED          # what has no row yet; a stopped run goes on
    python benchmarks/models/families.py SHARED --table

One small configuration of each family (fewer layers, narrower where the configuration allows it), with random weights,
is saved with `save_pretrained` and read as `afina ... FOLDER` does. A step passes, is refused (a clear error of Afina,
or a family that cannot be built from its default configuration), or fails. Statistics are of 8 photographs; the files
are compared with the networks on 4. Pruning takes a fifth of the units of each axis.
"""

import json
import os
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import output_transformers
import torch
from common import Row, Rows, arguments, made
from PIL import Image

from afina.errors import AfinaError, first_lines
from afina.graph import Network
from afina.models import load_model
from afina.runtimes import check_parity, get_runtime
from afina.techniques import prune, quantize
from afina.techniques.context import Context

RUNTIMES = ("onnxruntime", "openvino")
STEPS = ("load", "export", "prune", "int8")
LIMIT = 600
KINDS = {
    "classification": "AutoModelForImageClassification", "segmentation": "AutoModelForSemanticSegmentation",
    "depth": "AutoModelForDepthEstimation", "detection": "AutoModelForObjectDetection",
}  # fmt: skip
FAMILIES = {
    "classification": "beit bit convnext convnextv2 cvt data2vec-vision deit dinov2 dinov2_with_registers donut-swin "
    "efficientnet focalnet hgnet_v2 hiera levit mobilenet_v1 mobilenet_v2 mobilevit mobilevitv2 poolformer pp_lcnet "
    "pvt pvt_v2 regnet resnet swiftformer swin swinv2 textnet vit vit_msn clip siglip ijepa",
    "segmentation": "dpt mobilenet_v2 mobilevit segformer upernet",
    "depth": "dpt glpn depth_anything",
    "detection": "yolos detr rt_detr d_fine",
}
# Families whose default configuration is of no use here: those of `output_transformers`.
BY_HAND = ("detection/detr", "detection/rt_detr", "detection/d_fine", "segmentation/upernet", "depth/depth_anything")
_FEWER = {
    "num_hidden_layers": 2, "encoder_layers": 2, "decoder_layers": 2, "hidden_size": 96, "num_attention_heads": 4,
    "intermediate_size": 192, "num_queries": 20, "num_detection_tokens": 20, "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128, "decoder_hidden_size": 64, "image_size": 224,
    "width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640,
}  # fmt: skip
_WIDTHS = ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers")
_SETTLING, _COMPARED = 8, 4


class FamilyRows(Rows):
    """One row for each family and kind."""

    libraries = ("afina", "torch", "transformers", "onnxruntime", "openvino")
    shown = ("model", *STEPS, "failed")


def main() -> None:
    """Measure what is asked for, each in a process of its own, and print the table."""
    parser = arguments(__doc__)
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--one", help="measure this one, and print its row as JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one.split("/"), options.shared)))
        return
    rows = FamilyRows(Path(__file__).parent / "results" / "families.jsonl", options.only, options.skip, options.again)
    if not options.table:
        for kind, names in FAMILIES.items():
            for name in names.split():
                rows.measure(f"{kind}/{name}", partial(_apart, f"{kind}/{name}", options.shared))
    print(table(rows.found))


def _apart(name: str, shared: Path) -> Row:
    command = [sys.executable, __file__, str(shared), "--one", name]
    environment = {**os.environ, "AFINA_CACHE": "off"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=environment)
    except subprocess.TimeoutExpired:
        return {"failed": f"more than {LIMIT} s"}
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1][:300]}
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def measure(kind: str, family: str, shared: Path) -> Row:
    """What each step gives."""
    torch.manual_seed(0)
    warnings.filterwarnings("ignore")
    row: Row = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            save(kind, family, folder / "model", shared / "data" / "photos.zip")
        except Exception as error:
            return {
                "load": f"refused: it cannot be built from its default configuration: {first_lines(error, 1)}"[:200]
            }
        networks: dict[str, Network] = {}

        def load() -> None:
            networks["float"] = load_model(str(folder / "model"), trains=False).network
            row["model"] = repr(networks["float"])

        row["load"] = _outcome(load)
        if not networks:
            return row
        original = networks["float"]
        images = _photographs(shared / "data" / "photos.zip", original.input.height, original.input.width)
        context = Context(calibration=lambda: iter(images.split(4)), images=len(images))

        def export(key: str) -> None:
            for runtime in RUNTIMES:
                chosen = get_runtime(runtime)
                path = chosen.export(networks[key], folder / f"{key}-{runtime}{chosen.suffix}")
                check_parity(networks[key], path, images[:_COMPARED], threads=2)

        def pruned() -> None:
            networks["pruned"] = prune.apply(original, prune.PruneConfig(ratio=0.2), context)[0]
            export("pruned")

        def quantized() -> None:
            networks["int8"] = quantize.apply(original, quantize.QuantizeConfig(), context)[0]
            export("int8")

        for step, function in (("export", partial(export, "float")), ("prune", pruned), ("int8", quantized)):
            row[step] = _outcome(function)
    return row


def _outcome(step: Callable[[], None]) -> str:
    try:
        step()
    except AfinaError as error:
        return f"refused: {type(error).__name__}: {error}".replace("\n", " ")[:250]
    except Exception as error:
        return f"failed: {type(error).__name__}: {error}".replace("\n", " ")[:250]
    return "pass"


def save(kind: str, family: str, folder: Path, archive: Path) -> None:
    """A small model of that family as `save_pretrained` writes it, its batch norms with statistics of photographs."""
    import transformers as t

    if f"{kind}/{family}" in BY_HAND:
        model = getattr(output_transformers, family)()
        model = getattr(model, "model", model) if isinstance(model, output_transformers.Chosen) else model
        config = model.config
    else:
        config = smaller(t.CONFIG_MAPPING[family])
        config.num_labels = 5
        auto = getattr(t, KINDS[kind])
        classes = auto._model_mapping[type(config)]
        if isinstance(classes, tuple):
            config.architectures = [classes[0].__name__]
        model = auto.from_config(config)
    for parameter in model.parameters():
        if parameter.numel() > 1 and parameter.min() == parameter.max():
            parameter.data.add_(torch.empty_like(parameter).uniform_(-0.1, 0.1))
    side = getattr(config, "image_size", 224)
    side = side if isinstance(side, int) else side[0] if isinstance(side, (list, tuple)) else 224
    _settle(model, _photographs(archive, side, side))
    model.save_pretrained(folder)
    size = {"height": side, "width": side}
    said = {"size": size, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_rescale": True, "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))


@torch.no_grad()
def _settle(model: torch.nn.Module, images: torch.Tensor) -> None:
    """Give batch norms the statistics of images: without, nothing is left of an image after a few random layers."""
    norms = [part for part in model.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    for norm in norms:
        norm.momentum = None
        norm.train()
    model(pixel_values=images)
    for norm in norms:
        norm.momentum = 0.1
    model.eval()


def smaller(kind: type) -> Any:
    """A configuration of that class with fewer and narrower layers, where it has these; those within it as well."""
    usual = kind()
    stages = any(isinstance(getattr(usual, name, None), (list, tuple)) for name in ("depths", "hidden_sizes"))
    changes: dict[str, Any] = {}
    for name, value in _FEWER.items():
        now = getattr(usual, name, None)
        if (
            isinstance(now, (int, float))
            and not isinstance(now, bool)
            and now > value
            and not (stages and name in _WIDTHS)
        ):
            changes[name] = value
    if isinstance(getattr(usual, "image_size", None), tuple):
        changes["image_size"] = (224, 224)
    for name in ("depths", "layers"):
        each = getattr(usual, name, None)
        if isinstance(each, (list, tuple)) and all(isinstance(n, int) for n in each):
            changes[name] = [2 if n % 2 == 0 else 1 for n in each]
    for name in ("backbone_config", "vision_config", "text_config"):
        inside = getattr(usual, name, None)
        if inside is not None and not isinstance(inside, dict):
            changes[name] = smaller(type(inside))
            if getattr(inside, "out_features", None) and "num_hidden_layers" not in changes:
                changes[name] = inside
    return kind(**changes)


def _photographs(archive: Path, height: int, width: int) -> torch.Tensor:
    with zipfile.ZipFile(archive) as files:
        names = sorted(name for name in files.namelist() if name.endswith(".jpg"))[:_SETTLING]
        pictures = [Image.open(files.open(name)).convert("RGB").resize((width, height)) for name in names]
    pixels = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures])
    return (pixels.float() / 255 - 0.5) / 0.5


def table(rows: dict[str, Row]) -> str:
    """One line for each family, in Markdown, and the shares."""
    lines = [f"| family | {' | '.join(STEPS)} |", f"| --- |{' --- |' * len(STEPS)}"]
    counts = dict.fromkeys(("pass", "refused", "failed"), 0)
    for name, row in rows.items():
        cells = ["failed" if "failed" in row else str(row.get(step, "")) for step in STEPS]
        lines.append(f"| {name} | {' | '.join(cell[:90].replace('|', '/') for cell in cells)} |")
        words = [cell.partition(":")[0] for cell in cells if cell]
        counts["failed" if "failed" in words else "refused" if "refused" in words else "pass"] += 1
    told = ", ".join(f"{count} {word}" for word, count in counts.items())
    return "\n".join([*lines, "", f"{len(rows)} families: {told}.", "", made(rows.values())])


if __name__ == "__main__":
    main()
