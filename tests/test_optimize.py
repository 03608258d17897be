"""The main job end to end on real digits: what a run folder holds, resuming, misses, and what goes wrong well."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import only
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from small_networks import noisy
from test_cli import call

import afina
from afina.data import open_data
from afina.errors import InputError, StorageError, TrainingError
from afina.graph import Network
from afina.jobs.candidates import probing, proposals, reducers, search, stages
from afina.progress import Progress
from afina.runtimes import get_runtime
from afina.store.result import read_result
from afina.types import Result, Step

BUILDER = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.features(x).mean(dim=(2, 3)))

def build():
    torch.manual_seed(0)
    return Net()
"""
QUICK = {"epochs": 3, "finetune": 2, "threads": 1}
CHEAP = {"size": "100KB", "max_drop": "30%", **QUICK}


class Items(torch.utils.data.Dataset):
    """A data set over a list."""

    def __init__(self, items: list) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.items[index]


class Lines(Progress):
    """Keeps what the user would read."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module", autouse=True)
def few_images():
    """Statistics on few images, and few ratios: what is promised here does not depend on how many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proposals, "IMAGES", 64)
        patch.setattr(stages, "CALIBRATION_IMAGES", 128)
        patch.setattr(proposals, "_PLAIN_RATIOS", (0.5,))
        patch.setattr(proposals, "_RATIOS", (0.25, 0.5, 0.75, 0.9))
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    (folder / "net.py").write_text(BUILDER)
    return folder


@pytest.fixture(scope="module")
def run(home) -> tuple[Path, Result]:
    """A run whose size limit only a pruned network can keep: bits are not shared out, and no layer becomes a chain."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search.Search, "_planned", lambda _: [])
        patch.setattr(reducers.Factorizer, "most", lambda _: 0.0)
        result = afina.optimize(
            f"{home}/net.py:build", "digits", size="35KB", max_drop="30%", out=home / "run", **QUICK
        )
    return home / "run", result


@pytest.fixture(scope="module")
def cheap(home) -> tuple[Path, Result, list[str]]:
    """A run whose budget int8 meets at once, and what its user reads."""
    lines = Lines()
    result = afina.optimize(f"{home}/net.py:build", "digits", out=home / "cheap", progress=lines, **CHEAP)
    return home / "cheap", result, lines.lines


def files_of(folder: Path) -> dict[str, int]:
    """When each stage, candidate and intermediate file of a run was written."""
    kept = (path for name in ("stages", "work", "candidates") for path in (folder / name).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in kept}


def test_where_int8_is_too_large_bits_are_shared_out_before_anything_is_pruned(home):
    result = afina.optimize(f"{home}/net.py:build", "digits", size="35KB", max_drop="30%", out=home / "bits", **QUICK)
    winner = result.candidate(result.winner)
    assert [step.technique for step in winner.recipe] == ["quantize"]
    assert winner.measurements["size"].value <= 35_000
    assert {row.precision for row in winner.layers if row.macs} & {"int2", "int4"}


def test_the_answer_fits_the_budget_and_is_a_pruned_int8_network(run):
    _, result = run
    assert result.verdict == "fits"
    winner = result.candidate(result.winner)
    assert [step.technique for step in winner.recipe] in (
        ["prune", "quantize"],
        ["prune", "distill", "quantize"],
    )
    assert winner.measurements["size"].value <= 35_000
    assert result.drop <= 0.30


def test_where_bits_are_not_enough_a_factorized_network_in_few_bits_may_be(home):
    result = afina.optimize(f"{home}/net.py:build", "digits", size="16KB", max_drop="30%", out=home / "both", **QUICK)
    winner = result.candidate(result.winner)
    assert [step.technique for step in winner.recipe] == ["factorize", "quantize"]
    assert winner.name.endswith("few-bits")
    assert winner.measurements["size"].value <= 16_000
    assert result.drop <= 0.30


def test_a_recipe_of_the_winner_is_replayed_on_another_model(run, tmp_path):
    folder, result = run
    other = noisy(Network.load(folder / "work" / "adapted.pt2"))
    again = afina.run(folder / "recipe.yaml", other, "digits", out=tmp_path / "again")
    assert again.size == pytest.approx(result.candidate(result.winner).measurements["size"].value, rel=0.05)
    assert again.original.value != result.candidate("original").measurements["quality"].value
    assert again.quality.value > again.original.value - 0.1


def test_where_time_is_short_integers_are_placed_by_measured_time(home, monkeypatch):
    monkeypatch.setattr(proposals.Proposals, "rounds", lambda _: iter(()))
    result = afina.optimize(f"{home}/net.py:build", "digits", latency="1us", out=home / "t", epochs=1, threads=1)
    placed = result.candidate("placed")
    assert placed.status == "judged"
    assert placed.recipe == (Step("quantize", {"plan": "auto"}),)
    assert result.verdict == "misses"


@given(st.lists(st.floats(0, 20), min_size=1, max_size=60), st.booleans())
def test_the_gentlest_way_within_the_limits_is_found_in_few_looks(steps, known):
    falling, looked = sorted(steps, reverse=True), []

    def excess(index):
        looked.append(index)
        return falling[index]

    found = probing.first_within(excess, len(falling), falling[0] + 0.1 if known else None)
    assert found == next((index for index, value in enumerate(falling) if value <= 1), None)
    assert len(looked) == len(set(looked)) <= 3 * len(falling).bit_length()


def test_every_candidate_is_judged_on_its_own_exported_file(run):
    folder, result = run
    judged = [c for c in result.candidates if c.status == "judged"]
    assert {"original", "half", "int8"} < {c.name for c in judged}
    always = {"quality", "size", "latency", "peak_memory", "parameters", "macs"}
    for candidate in judged:
        drop = set() if candidate.name == "original" else {"drop"}
        tested = {"test_quality"} if candidate.name in ("original", result.winner) else set()
        assert set(candidate.measurements) == always | drop | tested
        assert candidate.measurements["size"].value == (folder / candidate.file).stat().st_size
        assert candidate.measurements["quality"].n == 179
        assert candidate.layers


def test_the_artifact_answers_with_the_quality_that_the_result_claims(run):
    folder, result = run
    session = get_runtime("onnxruntime").load(folder / result.artifact, threads=1)
    data = open_data("digits", seed=0).with_test_split()
    for split, claim in (("validation", "quality"), ("test", "test_quality")):
        batches = data.batches(split, result.input, batch_size=128)
        hits = [only(session(images.numpy())).argmax(1) == targets.numpy() for images, targets in batches]
        claimed = result.candidate(result.winner).measurements[claim].value
        assert np.concatenate(hits).mean() == pytest.approx(claimed, abs=1e-9)


def test_images_that_no_choice_was_made_on_judge_where_there_are_enough(run):
    _, result = run
    data = open_data("digits", seed=0)
    apart = data.with_test_split()
    assert set(apart.names("test")).isdisjoint(apart.names("validation"))
    assert {*apart.names("test"), *apart.names("validation")} == set(data.names("validation"))
    assert result.judged.split == "test"
    assert result.judged.images == apart.count("test") == 180
    before, after = (result.candidate(name).measurements["test_quality"] for name in ("original", result.winner))
    assert result.drop == result.judged.value == pytest.approx(before.value - after.value)
    assert any("Half of the 359 validation images were set aside" in note for note in result.notes)


def test_the_run_folder_holds_what_the_documentation_says(run):
    folder, result = run
    for name in ("config.yaml", "result.json", "candidates.csv", "card.md", "report.html", "log.txt"):
        assert (folder / name).stat().st_size > 0, name
    about = json.loads((folder / "artifact" / "metadata.json").read_text())
    assert about
    assert {path.name for path in (folder / "artifact").iterdir()} == {"metadata.json", Path(result.artifact).name}
    assert read_result(folder) == result


def test_pruned_layers_say_how_many_channels_they_kept(run):
    _, result = run
    kept = [row.kept for row in result.candidate(result.winner).layers if row.kept]
    assert kept
    assert all(0 < few < many for few, many in kept)


def test_running_again_computes_nothing_again(cheap, home):
    folder, result, _ = cheap
    before = files_of(folder)
    assert {"stages/adapt.json", "stages/judge-int8.json"} <= set(before)
    assert afina.optimize(f"{home}/net.py:build", "digits", out=folder, **CHEAP) == result
    assert files_of(folder) == before


def test_a_different_command_on_the_same_folder_is_refused(cheap, home):
    folder, _, _ = cheap
    with pytest.raises(InputError, match="other settings"):
        afina.optimize(f"{home}/net.py:build", "digits", out=folder, **{**CHEAP, "size": "101KB"})


def test_a_budget_that_cannot_be_met_names_the_best_for_each_limit_and_leaves_with_3(home):
    arguments = ["optimize", f"{home}/net.py:build", "--data", "digits", "--size", "2KB", "--max-drop", "1%"]
    arguments += ["--out", home / "miss", "--epochs", 1, "--finetune", 1, "--threads", 1]
    code, out, _ = call(*arguments, "--json", "--quiet")
    result = json.loads(out)
    assert code == 3
    assert (result["schema"], result["verdict"]) == ("afina/result/1", "misses")
    assert set(result["best_achievable"]) == {"size", "max_drop"}
    assert (home / "miss" / result["artifact"]).is_file()
    assert call("report", home / "miss", "--no-open")[0] == 0


def test_a_cheap_candidate_that_fits_ends_the_search(cheap):
    _, result, _ = cheap
    assert (result.verdict, result.winner) == ("fits", "int8")
    assert len(result.candidates) == 3


def test_a_killed_run_resumes_with_the_stages_that_it_finished(home, tmp_path):
    out = tmp_path / "run"
    code = (
        "import afina, sys; afina.optimize(sys.argv[1], 'digits', size='100KB', max_drop='30%', out=sys.argv[2],"
        "epochs=3, finetune=2, threads=1)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, f"{home}/net.py:build", str(out)])
    stage = out / "stages" / "adapt.json"
    deadline = time.monotonic() + 120
    while not stage.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert stage.exists()
    assert not (out / "result.json").exists()
    finished = stage.stat().st_mtime_ns
    result = afina.optimize(f"{home}/net.py:build", "digits", out=out, **CHEAP)
    assert result.verdict == "fits"
    assert stage.stat().st_mtime_ns == finished


@pytest.fixture
def stopped_by_a_full_disk(home, tmp_path, monkeypatch):
    """Options of a run that the disk stopped, full when a file of that name was to be written; now there is room."""

    def stopped(name: str) -> dict:
        def replace(source, target):
            if name in str(target):
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(source, target)

        real, options = os.replace, {"out": tmp_path / "run", **CHEAP}
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            with pytest.raises(StorageError, match="disk is full"):
                afina.optimize(f"{home}/net.py:build", "digits", **options)
        return options

    return stopped


def test_a_full_disk_says_so_and_the_run_resumes(home, stopped_by_a_full_disk):
    options = stopped_by_a_full_disk("judge-half")
    assert (options["out"] / "stages" / "judge-original.json").exists()
    assert afina.optimize(f"{home}/net.py:build", "digits", **options).verdict == "fits"


def test_a_disk_that_is_full_right_after_the_last_epoch_costs_no_training(home, stopped_by_a_full_disk):
    options, lines = stopped_by_a_full_disk("adapted.pt2"), Lines()
    afina.optimize(f"{home}/net.py:build", "digits", progress=lines, **options)
    assert not any(line.startswith("Epoch") for line in lines.lines)


def test_a_loss_that_is_not_a_number_stops_with_the_step_and_the_learning_rate(home, tmp_path):
    with pytest.raises(TrainingError, match=r"(?s)step.*learning rate"):
        afina.optimize(
            f"{home}/net.py:build", "digits", size="100KB", out=tmp_path / "run", learning_rate=1e30, **QUICK
        )


def test_the_user_reads_what_was_trained_judged_and_found(cheap):
    said = "\n".join(cheap[2])
    for part in (
        "1438 images to train, 179 to choose, 180 to judge, 10 classes",
        "Training for 3 epochs",
        "Judging int8",
    ):
        assert part in said


@pytest.fixture
def three_folders(tmp_path) -> Path:
    """Pictures of digits in train, val and test; of each class 10, 6 and 6."""
    digits, folder = load_digits(), tmp_path / "digits"
    for label in range(10):
        pictures = digits.images[digits.target == label] * 255 / 16
        for split, start, end in (("train", 0, 10), ("val", 10, 16), ("test", 16, 22)):
            (folder / split / str(label)).mkdir(parents=True)
            for i in range(start, end):
                image = Image.fromarray(pictures[i].astype(np.uint8))
                image.save(folder / split / str(label) / f"{i}.png")
    return folder


def test_folders_of_train_val_and_test_train_choose_and_judge(home, three_folders, tmp_path):
    arguments = [
        "optimize",
        f"{home}/net.py:build",
        "--data",
        str(three_folders),
        "--size",
        "100KB",
        "--max-drop",
        "5%",
    ]
    code, out, _ = call(*arguments, "--epochs", "3", "--threads", "1", "--out", str(tmp_path / "run"))
    result = read_result(tmp_path / "run")
    assert code == (0 if result.fits else 3)
    assert (result.judged.split, result.judged.images) == ("test", 60)
    winner = result.candidate(result.winner)
    assert winner.measurements["quality"].n == winner.measurements["test_quality"].n == 60
    assert result.verdict.upper() in out
    assert result.verdict.endswith("within the error") == (result.judged.low <= 0.05 < result.judged.high)
    assert "with 95% confidence it is" in " ".join(out.split())
    assert any("Chosen on 60 validation images, judged on 60 test images." in note for note in result.notes)
    code, _, err = call(*arguments[:-1], "1%", "--epochs", "3", "--out", str(tmp_path / "other"))
    assert code == 2
    assert "60 images cannot tell a drop of 1%" in " ".join(err.split())
    assert not (tmp_path / "other").exists()


def test_openvino_gives_a_judged_artifact_too(home, tmp_path):
    pytest.importorskip("openvino")
    result = afina.optimize(
        f"{home}/net.py:build", "digits", size="110KB", max_drop="30%", runtime="openvino", out=tmp_path / "r", **QUICK
    )
    assert result.verdict == "fits"
    assert {p.suffix for p in (tmp_path / "r" / "artifact").iterdir()} == {".xml", ".bin", ".json"}


def test_a_module_and_a_dataset_without_labels_are_judged_by_agreement(tmp_path):
    images = torch.tensor(load_digits().images[:400], dtype=torch.float32)[:, None] / 16
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(576, 5)
    )
    dataset = Items(list(images))
    spec = afina.InputSpec(8, 8, (0.0,), (1.0,), "L")
    result = afina.optimize(
        module, dataset, size="8KB", max_drop="20%", example=spec, epochs=0, out=tmp_path / "run", threads=1
    )
    assert result.metric.name == "agreement"
    assert result.candidate("original").measurements["quality"].value == 1.0
    files = {name: tmp_path / "run" / result.candidate(name).file for name in ("original", "int8")}
    shown = torch.cat([batch[0] for batch in open_data(dataset, seed=0).batches("validation", spec, batch_size=64)])
    runtime = get_runtime("onnxruntime")
    answers = {name: only(runtime.load(path, threads=1)(shown.numpy())) for name, path in files.items()}
    noise = ((answers["int8"] - answers["original"]) ** 2).sum() / (answers["original"] ** 2).sum()
    agreement = result.candidate("int8").measurements["quality"]
    assert agreement.value == pytest.approx(1 - noise)
    assert agreement.details["signal-to-noise in dB"] == pytest.approx(-10 * np.log10(noise), abs=1e-3)
    assert 0.9 < agreement.details["cosine"] < 1


def test_an_untrained_network_and_images_without_labels_are_refused_before_anything_is_written(tmp_path):
    dataset = Items(list(torch.tensor(load_digits().images[:40], dtype=torch.float32)[:, None] / 16))
    with pytest.raises(InputError, match=r"cannot be trained on images without labels(.|\n)*--weights FILE"):
        afina.optimize("builtin:convnet", dataset, size="8KB", epochs=1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_regression_is_judged_by_its_error_in_the_targets_unit(tmp_path):
    images = torch.tensor(load_digits().images[:400], dtype=torch.float32)[:, None] / 16
    dataset = Items([(image, image.sum() / 10) for image in images])
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, bias=False),
        torch.nn.BatchNorm2d(16),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(576, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 1),
    )
    spec = afina.InputSpec(8, 8, (0.0,), (1.0,), "L")
    # The weights in 32 bits take 148 KB, and always answering with the mean is 0.25 off.
    result = afina.optimize(
        module, dataset, size="60KB", max_drop=0.1, example=spec, out=tmp_path / "run", **{**QUICK, "epochs": 8}
    )
    assert (result.metric.name, result.metric.higher_is_better) == ("mae", False)
    winner, original = result.candidate(result.winner), result.candidate("original")
    session = get_runtime("onnxruntime").load(tmp_path / "run" / result.artifact, threads=1)
    batches = open_data(dataset, seed=0).batches("validation", spec, batch_size=64)
    errors = [np.abs(only(session(shown.numpy())).ravel() - targets.numpy().ravel()) for shown, targets in batches]
    assert winner.measurements["quality"].value == pytest.approx(np.concatenate(errors).mean(), rel=1e-5)
    assert result.verdict == "fits"
    assert winner.measurements["size"].value <= 60_000 < original.measurements["size"].value
    assert winner.measurements["quality"].value <= original.measurements["quality"].value + 0.1 < 0.25
