"""The report, the card, the tables and the summary say what the result says, to people and to machines."""

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afina import reporting
from afina.errors import StorageError
from afina.reporting.card import snippet
from afina.reporting.charts import charts
from afina.reporting.facts import best_achievable, comparison, exceeded, headline, limits, pareto
from afina.reporting.labels import label_columns, label_rows
from afina.reporting.layers import layer_table
from afina.reporting.words import step_words
from afina.runtimes import RUNTIMES, Runtime
from afina.runtimes.onnx_runtime import ONNXRuntime
from afina.runtimes.openvino_runtime import OpenVINORuntime
from afina.runtimes.pt2 import TorchRuntime
from afina.store.result import read_result, to_plain
from afina.tasks import get_task
from afina.types import (
    Budget,
    Candidate,
    Epoch,
    InputSpec,
    JudgedDrop,
    LayerRow,
    Measurement,
    MetricInfo,
    Record,
    Result,
    Step,
    TaskSpec,
)

_spec = importlib.util.spec_from_file_location("screenshot", Path(__file__).parents[1] / "docs" / "screenshot.py")
assert _spec
assert _spec.loader
screenshot = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(screenshot)

NASTY = "</script><b>bold</b>"
ON_ORT = "onnxruntime 1.32.0, 2 threads, batch 1"
#        name                 quality  size       latency  spread   memory     parameters  macs        ratio
TRIED = (
    ("original", 0.9889, 1_112_480, 6.91e-4, 1.1e-5, 9.8e6, 272_474, 40_813_184, None),
    ("half", 0.9889, 561_208, 7.42e-4, 1.6e-5, 9.1e6, 272_474, 40_813_184, None),
    ("int8", 0.9861, 331_904, 4.38e-4, 0.9e-5, 8.2e6, 272_474, 40_813_184, None),
    ("prune-0.25-int8", 0.9889, 242_770, 3.51e-4, 0.8e-5, 7.9e6, 189_310, 27_006_112, 0.25),
    ("prune-0.50-int8", 0.9833, 142_306, 2.47e-4, 0.7e-5, 7.1e6, 97_482, 14_218_400, 0.5),
    ("prune-0.70-int8", 0.9583, 88_412, 1.83e-4, 0.6e-5, 6.6e6, 46_702, 6_900_518, 0.7),
)


def example(verdict: str = "fits") -> Result:
    """A result of `afina optimize` as a user would see it: eight candidates, two of them rejected."""
    rejected = (
        Candidate(
            "prune-0.85-int8",
            _recipe(0.85),
            "rejected",
            reason="layer3.2.conv2 would keep fewer than 4 channels.",
        ),
        Candidate(
            "sparse-int8",
            (Step("sparsify", {"pattern": "2:4"}),),
            "rejected",
            reason="The file differs from the network by 0.31 (relative); 0.05 is allowed.",
            parity=0.31,
        ),
    )
    fits = verdict == "fits"
    return Result(
        verdict="fits" if fits else "misses",
        metric=MetricInfo("accuracy", True, share=True),
        budget=Budget(size=160_000 if fits else 100_000, latency=5e-4, memory=None, max_drop=0.01),
        drop=0.0056,
        original="original",
        winner="prune-0.50-int8",
        best_achievable={}
        if fits
        else {"size": "prune-0.70-int8", "latency": "prune-0.70-int8", "max_drop": "prune-0.25-int8"},
        machine={
            "processor": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
            "cores": 2,
            "threads": 2,
            "memory": 16_700_000_000,
            "system": "Linux 6.1 x86_64",
            "versions": {"afina": "0.1.0", "torch": "2.14.1", "onnxruntime": "1.32.0"},
        },
        runtime="onnxruntime",
        usage=ONNXRuntime().usage_of("artifact/model.onnx"),
        model="models/cifar_resnet.py:resnet20",
        data="digits",
        task=TaskSpec("classification", tuple("0123456789")),
        guide=get_task(TaskSpec("classification", tuple("0123456789"))).guide({"outputs": (10,)}),
        input=InputSpec(8, 8, mean=(0.3053,), std=(0.3766,), order="L"),
        candidates=(*(_candidate(*row) for row in TRIED), *rejected),
        notes=("The model had 1000 outputs and the data has 10 classes, so it was given a new head.",),
        artifact="artifact/model.onnx",
        out="runs/digits",
    )


def _recipe(ratio: float | None) -> tuple[Step, ...]:
    quantize = Step("quantize", {"bits": 8, "calibration": 512, "weights": "per channel"})
    if ratio is None:
        return (quantize,)
    tune = {"epochs": 12, "optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.9, "teacher": "original"}
    return (Step("prune", {"ratio": ratio, "round_to": 4}), Step("distill", tune), quantize)


def _candidate(
    name: str,
    quality: float,
    size: int,
    latency: float,
    spread: float,
    memory: float,
    count: int,
    macs: int,
    ratio: Any,
) -> Candidate:
    plain = name in ("original", "half")
    recipe = (() if name == "original" else (Step("half"),)) if plain else _recipe(ratio)
    layers = tuple(_layers(ratio or 0.0, "fp32" if plain else "int8"))
    trained = name == "original" or ratio
    record = Record(
        step=recipe[0] if recipe else Step("none"),
        touched=tuple(row.name for row in layers if row.kept),
        skipped={"fc": "Its output is the output of the network.", "layer1.0.conv2": "Held by a residual addition."},
        before={"parameters": 272_474, "macs": 40_813_184, "bytes": 1_089_896},
        after={"parameters": count, "macs": macs, "bytes": count * (4 if plain else 1)},
        seconds=2.31,
        notes=("Channels are rounded to multiples of 4.",),
    )
    return Candidate(
        name=name,
        recipe=recipe,
        status="judged",
        file=f"candidates/{name}/model.onnx",
        measurements={
            "quality": Measurement(
                quality, "accuracy", "measured", 0.0055, 360, f"the exported file, {ON_ORT}", share=True
            ),
            "size": Measurement(size, "B", "measured", where="bytes on disk"),
            "latency": Measurement(latency, "s", "measured", spread, 240, f"{ON_ORT}, fresh process, interleaved"),
            "peak_memory": Measurement(memory, "B", "measured", None, 1, f"{ON_ORT}, fresh process"),
            "parameters": Measurement(count, "1", "computed", where="the network"),
            "macs": Measurement(macs, "1", "computed", where="the network, one image"),
        },
        parity=2.1e-6 if plain else 8.7e-3,
        layers=layers,
        curve=tuple(_curve(12 if trained else 0, quality)),
        records=(record,) if recipe else (),
    )


def _layers(ratio: float, precision: str) -> Iterator[LayerRow]:
    width = 4 if precision == "fp32" else 1
    yield LayerRow("conv1", "conv2d", 27_648, 432, 432 * width, (16, 8, 8), None, precision)
    for stage, channels in enumerate((16, 32, 64), start=1):
        side = 8 >> (stage - 1)
        for block in range(3):
            inner = max(4, round(channels * (1 - ratio) / 4) * 4)
            count = channels * inner * 9
            for conv, out in (("conv1", inner), ("conv2", channels)):
                kept = (inner, channels) if ratio and conv == "conv1" else None
                name = f"layer{stage}.{block}.{conv}"
                yield LayerRow(
                    name, "conv2d", count * side * side, count, count * width, (out, side, side), kept, precision
                )
    yield LayerRow("fc", "linear", 640, 650, 650 * width, (10,), None, precision)


def _curve(epochs: int, quality: float) -> Iterator[Epoch]:
    for epoch in range(1, epochs + 1):
        left = np.exp(-0.45 * epoch)
        wobble = 0.004 * np.sin(5 * epoch * quality)
        yield Epoch(epoch, float(0.52 + 1.6 * left + wobble), float(quality - 0.4 * left + wobble), 0.05, 3.2)


def misses_nothing_measured() -> Result:
    """The least that a result can hold: one candidate, nothing measured, no limit met."""
    lone = Candidate("original", (), "judged")
    return replace(
        example(),
        verdict="misses",
        candidates=(lone,),
        winner="original",
        notes=(),
        task=TaskSpec("regression", ("age",)),
    )


def text_of(html: str) -> str:
    """What a reader of the page sees, without scripts and styles."""
    html = re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


# What was asked and reached


def test_the_comparison_gives_factors_in_words_and_the_limits_that_are_met() -> None:
    rows = {row.measure.key: row for row in comparison(example())}
    assert rows["size"].change == "7.8× smaller"
    assert rows["latency"].change == "2.8× faster"
    assert rows["quality"].change == "−0.56 points"
    assert rows["quality"].better is False
    assert [(limit.name, limit.allowed, limit.reached, limit.met) for limit in limits(example())] == [
        ("size", "160 KB", "142 KB", True),
        ("latency", "500 µs", "247 µs", True),
        ("max_drop", "1 point", "0.56 points", True),
    ]


def test_the_verdict_is_one_sentence_with_what_was_asked_and_what_was_reached() -> None:
    assert headline(example()) == (
        "You asked for at most 160 KB, 500 µs and a drop of 1 point; prune-0.50-int8 needs 142 KB (7.8× smaller) "
        "and 247 µs (2.8× faster), and loses 0.56 points of accuracy."
    )
    missed = headline(example("misses"))
    assert "no candidate fits" in missed
    assert missed.endswith("it is over in size.")


def test_a_miss_names_the_best_value_for_each_limit_and_who_reached_it() -> None:
    assert best_achievable(example("misses")) == (
        ("Size", "88.4 KB", "prune-0.70-int8"),
        ("Latency", "183 µs", "prune-0.70-int8"),
        ("Drop", "none", "prune-0.25-int8"),
    )


def test_a_drop_of_exactly_the_limit_is_met() -> None:
    result = replace(example(), budget=Budget(max_drop=0.01), drop=0.98 - 0.97)
    assert limits(result)[0].met


def test_an_original_that_wins_is_told_so() -> None:
    result = replace(example(), winner="original", drop=0.0, budget=Budget(size=2_000_000))
    assert "the original already fits" in headline(result)
    assert {row.change for row in comparison(result)} == {"same"}


def test_an_error_metric_counts_in_its_own_direction() -> None:
    def as_error(candidate: Candidate, value: float) -> Candidate:
        return replace(
            candidate,
            measurements={**candidate.measurements, "quality": Measurement(value, "mae", "measured", 0.01, 90)},
        )

    base = example()
    candidates = (as_error(base.candidates[0], 0.50), as_error(base.candidates[4], 0.53))
    result = replace(
        base,
        metric=MetricInfo("mae", False, words="mean absolute error"),
        candidates=candidates,
        drop=0.03,
        budget=Budget(max_drop=0.02),
    )
    row = comparison(result)[0]
    assert (row.label, row.change, row.better) == ("Mean absolute error", "+0.03", False)
    assert exceeded(result, candidates[1]) == {"quality"}
    assert "is worse by 0.03 (mean absolute error)" in headline(replace(result, verdict="fits"))
    scatter = charts(result)[0]
    assert scatter["layout"]["shapes"][-1]["y0"] == pytest.approx(0.52)


def test_the_pareto_front_holds_what_nothing_else_beats() -> None:
    points = [(1.0, 0.5), (2.0, 0.9), (3.0, 0.8), (2.0, 0.7), (4.0, 0.95)]
    assert pareto(points, True) == [(1.0, 0.5), (2.0, 0.9), (4.0, 0.95)]
    assert pareto(points, False) == [(1.0, 0.5)]


def test_layers_that_are_new_or_gone_are_marked() -> None:
    base = example()
    winner = base.candidate(base.winner)
    changed = replace(winner, layers=(*winner.layers[1:], replace(winner.layers[0], name="conv1.first")))
    result = replace(base, candidates=tuple(changed if c.name == winner.name else c for c in base.candidates))
    status = {layer.name: layer.status for layer in layer_table(result)}
    assert status["conv1.first"] == "new"
    assert status["conv1"] == "gone"
    assert status["fc"] == ""


# Terminal, tables and metadata


def test_the_summary_says_verdict_numbers_limits_and_where_the_file_is_in_plain_characters() -> None:
    text = reporting.summary(example())
    assert text.startswith("FITS\n")
    assert re.search(r"Size +1\.11 MB +142 KB +7\.8x smaller +<= 160 KB +met", text)
    assert re.search(r"Accuracy +98\.89% \+- 0\.55 points +98\.33%.* -0\.56 points +drop <= 1 point +met", text)
    assert str(Path("runs/digits/artifact/model.onnx")) in text
    assert text.isascii()
    missed = reporting.summary(example("misses"))
    assert missed.startswith("MISSES\n")
    assert "Best achievable size: 88.4 KB (prune-0.70-int8)" in missed


def test_the_csv_has_a_row_for_each_candidate_and_all_of_each_measurement(tmp_path: Path) -> None:
    path = reporting.write_csv(example(), tmp_path / "candidates.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [c.name for c in example().candidates]
    int8 = rows[2]
    assert float(int8["latency_value"]) == 4.38e-4
    assert [int8[f"latency_{field}"] for field in ("unit", "spread", "n", "how")] == ["s", "9e-06", "240", "measured"]
    assert json.loads(int8["recipe"])[0]["technique"] == "quantize"
    assert rows[-1]["status"] == "rejected"
    assert "0.05 is allowed" in rows[-1]["reason"]
    assert rows[-1]["size_value"] == ""


def test_the_metadata_says_how_to_preprocess_and_what_the_outputs_mean(tmp_path: Path) -> None:
    path = reporting.write_metadata(example(), tmp_path / "metadata.json")
    about = json.loads(path.read_text())
    assert about["file"] == "model.onnx"
    assert about["labels"] == list("0123456789")
    assert (about["input"]["height"], about["input"]["mean"], about["input"]["order"]) == (8, [0.3053], "L")
    assert any("divide by the standard deviation (0.3766)" in step for step in about["input"]["steps"])
    assert about["measurements"]["size"] == {
        "value": 142_306, "unit": "B", "how": "measured", "spread": None, "n": None, "where": "bytes on disk",
        "details": {}, "share": False, "by_label": None,
    }  # fmt: skip
    assert [step["technique"] for step in about["recipe"]] == ["prune", "distill", "quantize"]
    assert about["machine"]["versions"]["torch"] == "2.14.1"


# The card


def test_the_card_has_the_numbers_the_recipe_and_limits_from_the_facts(tmp_path: Path) -> None:
    text = reporting.write_card(example(), tmp_path / "card.md").read_text()
    assert "| Size | 1.11 MB | 142 KB | 7.8× smaller | ≤ 160 KB: met |" in text
    assert "prune (ratio 0.5, round to 4), then distill" in text
    assert "measured on 360 validation images of digits" in text
    assert "Xeon" in text
    assert "classification of images into 10 classes, on images like those of digits" in text
    assert not re.search(r"^\|[^\n]*\n\n\|", text, re.MULTILINE)


def test_the_card_shows_what_a_user_named_as_it_is(tmp_path: Path) -> None:
    result = replace(
        example(), model="a|b*c*", task=TaskSpec("classification", (NASTY, "x`y", *"23456789")), notes=("one\n\n# two",)
    )
    text = reporting.write_card(result, tmp_path / "card.md").read_text()
    assert r"a\|b\*c\*" in text
    assert "<b>" not in text.replace(r"\<b\>", "")
    assert "\n# two" not in text


@pytest.mark.parametrize(
    "input",
    [
        InputSpec(8, 8, mean=(0.3,), std=(0.4,), order="L"),
        InputSpec(6, 8, mean=(0.3, 0.4, 0.5), std=(0.4, 0.2, 0.1), order="BGR"),
        InputSpec(8, 8),
        InputSpec(8, 8, resize="stretch", crop_share=0.9, interpolation="box"),
        InputSpec(8, 8, resize="letterbox", fill=(124, 116, 104), interpolation="bicubic", order="BGR"),
    ],
    ids=["grey", "bgr", "rgb", "stretch", "letterbox"],
)
def test_the_code_on_the_card_loads_the_artifact_and_names_the_class(input: InputSpec, tmp_path: Path) -> None:
    labels = tuple(f"digit {i}" for i in range(10))
    result = replace(example(), input=input, task=TaskSpec("classification", labels))
    weights = _write_gemm(tmp_path / result.artifact, input)
    _write_image(tmp_path / "photo.jpg")
    printed = _run_card(result, tmp_path)

    from PIL import Image

    from afina.data.decode import preprocess

    x = preprocess(Image.open(tmp_path / "photo.jpg"), input)
    assert printed == labels[int((x.reshape(-1) @ weights).argmax())]


_MEANS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("resize", ["cover", "stretch", "crop", "letterbox"])
@pytest.mark.parametrize("share", [0.875, 1.0, 1.15])
def test_the_code_on_the_card_prepares_a_photo_exactly_as_it_was_judged(
    resize: Any, share: float, antialias: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image
    from sklearn.datasets import load_sample_images

    from afina.data import preprocess

    way = {"resize": resize, "crop_share": share, "antialias": antialias, "interpolation": "bicubic"}
    specs = [
        InputSpec(48, 48, **way),
        InputSpec(48, 64, *_MEANS, "BGR", fill=(124, 116, 104), **way),
        InputSpec(56, 48, (0.5,), (0.25,), "L", fill=(114,), **way),
    ]
    monkeypatch.chdir(tmp_path)
    photo = Image.fromarray(load_sample_images().images[0])
    for part in (photo, photo.crop((100, 0, 300, 427)), photo.resize((51, 50)), photo.resize((301, 37))):
        part.save("photo.jpg", "PNG")
        for spec in specs:
            lines = snippet(replace(example(), input=spec)).splitlines()
            end = next(i for i, line in enumerate(lines) if line.startswith("x = "))
            code = [line for line in lines[: end + 1] if not line.startswith("import onnx")]
            names: dict[str, Any] = {}
            exec("\n".join(code), names)
            np.testing.assert_allclose(names["x"][0], preprocess(part, spec), atol=2e-6)


def test_the_code_on_the_card_runs_on_openvino(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    result = replace(
        example(),
        runtime="openvino",
        artifact="artifact/model.xml",
        usage=OpenVINORuntime().usage_of("artifact/model.xml"),
    )
    _write_gemm(tmp_path / "model.onnx", result.input)
    openvino.save_model(openvino.convert_model(tmp_path / "model.onnx"), tmp_path / result.artifact)
    _write_image(tmp_path / "photo.jpg")
    assert _run_card(result, tmp_path) in result.task.labels


def test_the_code_on_the_card_runs_on_a_saved_network(small_network: Any, tmp_path: Path) -> None:
    result = replace(
        example(),
        runtime="pt2",
        artifact="artifact/model.pt2",
        usage=TorchRuntime().usage_of("artifact/model.pt2"),
        input=small_network.input,
    )
    (tmp_path / "artifact").mkdir()
    small_network.save(tmp_path / result.artifact)
    _write_image(tmp_path / "photo.jpg")
    assert _run_card(result, tmp_path) in result.task.labels


def test_the_code_on_the_card_of_a_regression_prints_each_number_by_name(tmp_path: Path) -> None:
    task = TaskSpec("regression", tuple(f"y{i}" for i in range(10)))
    result = replace(example(), task=task, guide=get_task(task).guide({"outputs": (10,)}))
    _write_gemm(tmp_path / result.artifact, result.input)
    _write_image(tmp_path / "photo.jpg")
    assert _run_card(result, tmp_path).startswith("{'y0': ")


def test_the_card_of_a_runtime_that_gives_no_code_says_so_and_gives_no_other_runtimes(tmp_path: Path) -> None:
    result = replace(example(), runtime="toaster", usage="")
    card = reporting.write_card(result, tmp_path / "card.md").read_text()
    assert "How toaster loads and runs the file is not known here" in card
    assert "```python" not in card
    assert "import" not in card
    assert "Subtract the mean" in card


def test_a_result_of_an_earlier_version_without_the_lines_of_its_runtime_still_makes_a_card(tmp_path: Path) -> None:
    plain = to_plain(example())
    del plain["usage"]
    (tmp_path / "result.json").write_text(json.dumps(plain))
    card = reporting.write_card(read_result(tmp_path), tmp_path / "card.md").read_text()
    assert "How onnxruntime loads and runs the file is not known here" in card


def test_the_card_of_a_result_of_before_reads_the_scores_that_its_runtime_gave(tmp_path: Path) -> None:
    plain = to_plain(example())
    del plain["guide"]
    load = 'import onnxruntime\nmodel = onnxruntime.InferenceSession("artifact/model.onnx")\n'
    plain["usage"] = f"{load}scores = model.run(None, {{model.get_inputs()[0].name: x}})[0][0]\n"
    (tmp_path / "result.json").write_text(json.dumps(plain))
    result = read_result(tmp_path)
    _write_gemm(tmp_path / result.artifact, result.input)
    _write_image(tmp_path / "photo.jpg")
    assert _run_card(result, tmp_path) in result.task.labels
    assert "One score (logit) for each class" in reporting.write_card(result, tmp_path / "card.md").read_text()


def test_the_report_has_the_classes_that_lost_most_first_with_the_figures_of_the_original() -> None:
    task, wanted = get_task(example().task), np.arange(100) % 10
    worse = np.where(wanted == 3, 4, wanted)  # all threes are taken for fours

    def with_table(candidate: Candidate, given: np.ndarray, measurement: str = "quality") -> Candidate:
        table = task.by_label(task.evidence(given, wanted))
        quality = replace(candidate.measurements["quality"], by_label=table)
        return replace(candidate, measurements={**candidate.measurements, measurement: quality})

    base = example()
    tables = {base.original: wanted, base.winner: worse}
    judged = tuple(with_table(c, tables[c.name]) if c.name in tables else c for c in base.candidates)
    result = replace(base, candidates=judged)
    assert label_columns(result) == ("Recall", "Precision", "Images")
    first = label_rows(result)[0]
    assert (first.label, first.cells[0], first.cells[1]) == ("3", (0.0, "0.00%", "100.00%"), (None, "–", "100.00%"))
    assert next(row for row in label_rows(result) if row.label == "4").cells[1][0] == 0.5
    assert label_rows(base) == ()
    # Where a test split judges, its figures stand there.
    tables[base.winner] = np.where(wanted == 7, 4, wanted)
    judged = tuple(with_table(c, tables[c.name], "test_quality") if c.name in tables else c for c in judged)
    assert label_rows(replace(base, candidates=judged))[0].label == "7"


@pytest.mark.parametrize("runtime", list(RUNTIMES.loaded().values()), ids=list(RUNTIMES))
def test_every_runtime_of_the_table_says_how_its_files_are_loaded_and_run(runtime: Runtime) -> None:
    usage = runtime.usage_of("artifact/a model")
    compile(usage, "usage", "exec")
    assert '"artifact/a model"' in usage
    assert "outputs = " in usage


def _run_card(result: Result, folder: Path) -> str:
    card = reporting.write_card(result, folder / "card.md").read_text()
    reporting.write_metadata(result, folder / "artifact" / "metadata.json")
    found = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert found
    done = subprocess.run(
        [sys.executable, "-c", found[1]], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _write_gemm(path: Path, input: InputSpec) -> np.ndarray:
    """A network of one random linear layer, as ONNX; gives its weights [inputs, 10]."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    size = int(np.prod(input.shape))
    weights = np.random.default_rng(0).normal(size=(size, 10)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["images"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weights"], ["scores"]),
        ],
        "gemm",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", *input.shape])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(weights, "weights")],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return weights


def _write_image(path: Path) -> None:
    """A scanned digit, wider than high and lying on its side as its EXIF says, under the name that the card uses."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digit = Image.fromarray((load_digits().images[17] * 15.9).astype(np.uint8)).resize((48, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    digit.convert("RGB").save(path, "PNG", exif=exif)


# The page


def test_the_page_says_the_verdict_first_and_every_number_with_its_source(tmp_path: Path) -> None:
    page = reporting.write_html(example(), tmp_path / "report.html", log="first line\nsecond line").read_text()
    text = text_of(page)
    assert text.index("Fits the budget") < text.index("You asked for") < text.index("Before and after")
    assert "7.8× smaller" in text
    assert "measured; ± 7 µs (half the interquartile range); n = 240; onnxruntime 1.32.0, 2 threads" in text
    assert "layer3.2.conv2 would keep fewer than 4 channels." in text
    assert "second line" in text
    assert page.count("plotly.js v") == 1


def unsure(verdict: str = "fits, within the error", needed: int | None = 5965) -> Result:
    """A result judged on a test split that is too small to be sure."""
    result = example()
    tested = {"original": 0.981, result.winner: 0.974}
    candidates = tuple(
        replace(
            c,
            measurements=c.measurements
            | {"test_quality": Measurement(tested[c.name], "accuracy", "measured", 0.004, 1000, "", share=True)},
        )
        if c.name in tested
        else c
        for c in result.candidates
    )
    judged = JudgedDrop("test", 1000, 0.007, 0.0042, -0.0009, 0.0149, needed)
    return replace(result, verdict=verdict, drop=0.007, judged=judged, candidates=candidates)


@pytest.mark.parametrize("write", ["page", "card", "summary"])
def test_a_verdict_within_the_error_says_so_and_how_many_images_would_settle_it(write: str, tmp_path: Path) -> None:
    writers = {
        "page": lambda r: text_of(reporting.write_html(r, tmp_path / "report.html").read_text()),
        "card": lambda r: reporting.write_card(r, tmp_path / "card.md").read_text(),
        "summary": lambda r: " ".join(reporting.summary(r).replace("+-", "±").split()),
    }
    text = writers[write](unsure())
    assert "within the error" in text.lower()
    assert "On 1,000 test images the drop is 0.7 points, ± 0.42 points" in text
    assert "with 95% confidence it is a drop of at most 1.49 points" in text
    assert "About 5,965 images like these would settle whether it keeps the limit." in text
    assert "Accuracy (test)" in text or r"Accuracy \(test\)" in text
    assert "98.10%" in text
    assert "more images would hardly settle it" in writers[write](unsure(needed=None))
    sure = replace(unsure("fits"), judged=JudgedDrop("test", 9000, 0.007, 0.0014, 0.0046, 0.0094, None))
    assert "at most 0.94 points" in writers[write](sure)
    assert "settle" not in writers[write](sure)


def test_the_page_of_a_miss_says_what_is_achievable(tmp_path: Path) -> None:
    text = text_of(reporting.write_html(example("misses"), tmp_path / "report.html").read_text())
    assert text.index("Misses the budget") < text.index("Best achievable")
    assert "88.4 KB" in text


def test_names_that_look_like_markup_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    base = example()
    renamed = replace(base.candidates[2], name=NASTY, reason=NASTY)
    result = replace(
        base,
        model=NASTY,
        data=NASTY,
        notes=(NASTY,),
        task=TaskSpec("classification", (NASTY, *"123456789")),
        candidates=(*base.candidates[:2], renamed, *base.candidates[3:]),
    )
    page = reporting.write_html(result, tmp_path / "report.html", log=NASTY).read_text()
    assert NASTY not in page
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold" in page
    data = re.search(r'<script type="application/json" id="chart-data">(.*?)</script>', page, re.DOTALL)
    assert data
    assert "&lt;b&gt;bold" in json.dumps(json.loads(data[1]))


@pytest.mark.parametrize("write", ["write_html", "write_card", "write_csv", "write_metadata"])
def test_a_result_with_nothing_measured_can_still_be_reported(write: str, tmp_path: Path) -> None:
    assert getattr(reporting, write)(misses_nothing_measured(), tmp_path / "file").stat().st_size > 0
    assert "not measured" in reporting.summary(misses_nothing_measured())


def test_numbers_that_are_not_finite_are_left_out_of_the_charts(tmp_path: Path) -> None:
    base = example()
    first = base.candidates[0]
    curve = (*first.curve[:-1], replace(first.curve[-1], loss=float("nan")))
    broken = replace(
        base.candidates[2],
        measurements={
            **base.candidates[2].measurements,
            "quality": Measurement(float("inf"), "accuracy", "measured", float("nan"), 9, share=True),
        },
    )
    result = replace(
        base, candidates=(replace(first, curve=curve), *base.candidates[1:2], broken, *base.candidates[3:])
    )
    json.dumps(charts(result), allow_nan=False)
    reporting.write_html(result, tmp_path / "report.html")
    reporting.write_metadata(replace(result, winner="int8"), tmp_path / "metadata.json")
    assert "NaN" not in re.sub(r'"NaN"', "", (tmp_path / "metadata.json").read_text())


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "card.md"
    path.write_text("the old card")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError):
        reporting.write_card(example(), path)
    assert path.read_text() == "the old card"
    assert [p.name for p in tmp_path.iterdir()] == ["card.md"]


def test_reporting_does_not_load_torch() -> None:
    code = "import sys, afina.reporting; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


# In a browser

_READ = """
const cells = (row) => [...row.cells].map((cell) => cell.innerText.trim());
const rows = (id) => [...document.querySelectorAll(`#${id} tbody tr`)].map(cells);
return {
  charts: Object.fromEntries([...document.querySelectorAll('.chart')].map((chart) =>
    [chart.id, {points: chart.querySelectorAll('svg .points path').length,
                lines: chart.querySelectorAll('svg .shapelayer path').length,
                curves: chart.querySelectorAll('svg .lines path.js-line').length}])),
  table: rows('before-after'), candidates: rows('candidates'), layers: rows('layers'),
  fetched: performance.getEntriesByType('resource').map((e) => e.name),
  width: document.documentElement.scrollWidth, window: innerWidth,
};
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    pytest.importorskip("selenium")
    if screenshot.find_browser() is None:
        pytest.skip("no Chromium with chromedriver is installed (Debian: apt-get install chromium chromium-driver)")
    with screenshot.open_browser() as driver:
        yield driver


def _requests(driver: Any) -> list[str]:
    """Addresses that the page asked for, whatever became of it (the browser's own start page aside)."""
    events = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [params["request"]["url"] for params in sent if params["documentURL"].startswith("file:")]


def test_a_browser_draws_the_plots_sorts_the_tables_and_fetches_nothing(browser: Any, tmp_path: Path) -> None:
    result = example()
    screenshot.show(browser, reporting.write_html(result, tmp_path / "report.html", log="log"))
    seen = browser.execute_script(_READ)
    for name in ("quality-size", "quality-latency"):
        assert seen["charts"][name]["points"] == len(TRIED)
        assert seen["charts"][name]["lines"] == 2
    assert seen["charts"]["curve-loss"]["curves"] == 4
    assert seen["table"][1][:4] == ["Size", "1.11 MB", "142 KB", "7.8× smaller"]
    assert len(seen["candidates"]) == len(result.candidates)
    assert len(seen["layers"]) == 20

    def click(table: str, column: int) -> list[str]:
        heads = browser.find_elements("css selector", f"#{table} thead button")
        browser.execute_script("arguments[0].click()", heads[column])
        return [row[0] for row in browser.execute_script(_READ)[table]]

    assert click("layers", 4)[0] == "fc"
    assert click("layers", 4)[-1] == "fc"
    by_size = [name.split()[0] for name in click("candidates", 2)]
    assert by_size[:2] == ["prune-0.70-int8", "prune-0.50-int8"]
    assert set(by_size[-2:]) == {"prune-0.85-int8", "sparse-int8"}
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    assert [url for url in seen["fetched"] if url.startswith("http")] == []
    asked = _requests(browser)
    assert any(url.endswith("report.html") for url in asked)
    assert [url for url in asked if not url.endswith("report.html") and not url.startswith(("data:", "blob:"))] == []


def test_a_browser_runs_nothing_that_a_name_brings_along(browser: Any, tmp_path: Path) -> None:
    attack = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    base = example()
    renamed = tuple(replace(c, name=attack) if c.name == "original" else c for c in base.candidates)
    result = replace(base, model=attack, original=attack, candidates=renamed)
    screenshot.show(browser, reporting.write_html(result, tmp_path / "report.html", log=attack))
    assert browser.title != "owned"
    assert browser.execute_script("return document.querySelectorAll('img').length") == 0
    assert browser.execute_script(_READ)["charts"]["quality-size"]["points"] == len(TRIED)
    browser.get_log("browser")


def test_the_page_fits_a_phone_and_follows_the_dark_scheme(browser: Any, tmp_path: Path) -> None:
    page = reporting.write_html(example(), tmp_path / "report.html")
    screenshot.set_screen(browser, 390, 844, dark=True)
    try:
        screenshot.show(browser, page)
        seen = browser.execute_script(_READ)
        assert seen["width"] <= seen["window"] == 390
        assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 24)"
        ink = "return getComputedStyle(document.querySelector('#quality-size .xtitle')).fill"
        assert browser.execute_script(ink) == "rgb(166, 174, 182)"
    finally:
        screenshot.set_screen(browser)


def test_the_picture_for_the_readme_is_made_by_its_script(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporting.write_html(example(), tmp_path / "report.html")
    monkeypatch.setattr(sys, "argv", [screenshot.__file__, str(tmp_path), str(tmp_path / "report.png")])
    screenshot.main()
    assert 20_000 < (tmp_path / "report.png").stat().st_size < 250_000


@pytest.mark.parametrize("nested", [False, True])
def test_a_step_is_told_without_the_long_lists_that_repeat_it(nested):
    config = {
        "ratio": 0.5,
        "skip": ["head", "stem"],
        "keep": {"inner": 8},
        "removed": {"inner": list(range(8))},
        "names": [f"layer{i}" for i in range(9)],
        "blocks": [],
    }
    expected = "ratio 0.5, skip head, stem, keep inner 8"
    step = Step("prune", {"config": config} if nested else config)
    assert step_words(step) == f"prune ({'config ' if nested else ''}{expected})"
