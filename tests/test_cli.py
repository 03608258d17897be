"""The command line: exit codes, one clear message for each mistake, no traceback, results for machines."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner

import afina
from afina.cli import app
from afina.types import Measurement

NET = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
"""


def call(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


def folder_of_digits(folder: Path, splits=("train", "val"), classes=range(3), count=20) -> Path:
    digits = load_digits()
    for split_index, split in enumerate(splits):
        for label in classes:
            place = folder / split / str(label)
            place.mkdir(parents=True)
            for image in digits.images[digits.target == label][split_index * count :][:count]:
                name = f"{len(list(place.iterdir()))}.png"
                Image.fromarray((image * 15).astype(np.uint8)).save(place / name)
    return folder


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.py"
    path.write_text(NET)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return folder_of_digits(tmp_path_factory.mktemp("photos"))


def test_help_is_fast_and_imports_no_torch():
    code = "import sys; import afina.cli; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert call("--help")[0] == 0


BAD = {
    "size": (["builtin:convnet", "--data", "digits", "--size", "3MBs"], "--size '3MBs'"),
    "negative": (["builtin:convnet", "--data", "digits", "--size=-3MB"], "more than zero"),
    "latency": (["builtin:convnet", "--data", "digits", "--latency", "quick"], "--latency"),
    "contradiction": (["builtin:convnet", "--data", "digits", "--max-drop", "200%"], "any answer"),
    "model": (["resnet81", "--data", "digits", "--weights", "random"], "Did you mean"),
    "data": (["builtin:convnet", "--data", "digitz"], "digit"),
    "runtime": (["builtin:convnet", "--data", "digits", "--runtime", "onnx"], "onnxruntime"),
    "precision": (["builtin:convnet", "--data", "digits", "--precision", "8"], "precision"),
    "optimizer": (["builtin:convnet", "--data", "digits", "--optimizer", "adam"], "Did you mean adamw"),
    "input size": (["builtin:convnet", "--data", "digits", "--input-size", "big"], "--input-size"),
    "learning rate": (["builtin:convnet", "--data", "digits", "--learning-rate", "-1"], "learning_rate"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_usage_is_one_message_exit_code_2_and_nothing_written(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, expected = BAD[case]
    code, out, err = call("optimize", *arguments, "--out", "run")
    assert code == 2, err
    assert expected in err
    assert "Traceback" not in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", [case for case in BAD if case not in ("data", "contradiction")])
def test_what_is_wrong_whatever_the_data_is_found_before_images_are_read(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, expected = BAD[case]
    code, _, err = call("optimize", *("nowhere" if a == "digits" else a for a in arguments))
    assert code == 2
    assert expected in err


FIRST = {
    "model": ("quantize", "nowhere.pt2"),
    "builder": ("prune", "nowhere.py:build", "--macs", "50%"),
    "name": ("run", "int8.yaml", "resnet81"),
    "weights": ("quantize", "builtin:convnet", "--weights", "nowhere.pth"),
    "kind of weights": ("tune", "builtin:convnet", "--weights", "model.h5"),
    "sampler": ("tune", "builtin:convnet", "--sampler", "tpee"),
    "early stopping": ("tune", "builtin:convnet", "--early-stopping", "medain"),
    "space": ("tune", "builtin:convnet", "--space", "space.yaml"),
    "parameter": ("tune", "builtin:convnet", "--space", "named.yaml"),
    "objective": ("tune", "builtin:convnet", "--also", "speed"),
    "runtime": ("tune", "builtin:convnet", "--runtime", "onnx"),
    "teacher": ("distill", "builtin:convnent", "builtin:convnet"),
    "student": ("distill", "builtin:convnet", "builtin:convnent"),
    "input size": ("factorize", "builtin:convnet", "--macs", "50%", "--input-size", "0"),
}


@pytest.mark.parametrize("case", FIRST)
def test_names_that_mean_nothing_are_found_before_images_are_read(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "int8.yaml").write_text("- quantize: {}\n")
    (tmp_path / "named.yaml").write_text("lerning_rate: [0.1, 0.01]\n")
    code, _, err = call(*FIRST[case], "--data", "images")
    assert code == 2, err
    assert "images does not exist" not in err
    assert any(
        word in err for word in ("no file", "Did you mean", "Choose one", "not a weights file", "out of range")
    ), err


def test_an_unknown_option_or_command_is_exit_code_2():
    assert call("optimize", "builtin:convnet", "--data", "digits", "--sise", "3MB")[0] == 2
    assert call("optimise")[0] == 2


def test_a_folder_with_one_class_is_refused(net, tmp_path):
    data = folder_of_digits(tmp_path / "d", classes=[1])
    code, _, err = call("optimize", f"{net}:build", "--data", data, "--out", tmp_path / "r")
    assert code == 2
    assert "class" in err


def test_a_class_only_in_validation_is_named(net, tmp_path):
    data = folder_of_digits(tmp_path / "d")
    (data / "train" / "2").rename(tmp_path / "gone")
    code, _, err = call("optimize", f"{net}:build", "--data", data, "--out", tmp_path / "r")
    assert code == 2
    assert "2" in err
    assert "validation" in err


def test_more_than_one_percent_unreadable_stops_before_spending_time(net, tmp_path):
    data = folder_of_digits(tmp_path / "d")
    for index in range(5):
        (data / "train" / "0" / f"{index}.png").write_bytes(b"broken")
    code, _, err = call("optimize", f"{net}:build", "--data", data, "--out", tmp_path / "r")
    assert code == 2
    assert "5" in err
    assert not (tmp_path / "r").exists()


def test_a_model_that_fails_on_the_datas_size_says_so(net, photos, tmp_path):
    code, _, err = call("optimize", f"{net}:build", "--data", photos, "--input-size", "12", "--out", tmp_path / "r")
    assert code == 2
    assert "fails on images of shape (3, 12, 12)" in err


def test_weights_that_do_not_match_name_the_first_keys(net, photos, tmp_path):
    import torch

    torch.save({"0.weight": torch.zeros(4, 3, 3, 3), "other.bias": torch.zeros(4)}, tmp_path / "w.pth")
    code, _, err = call(
        "optimize", f"{net}:build", "--weights", tmp_path / "w.pth", "--data", photos, "--out", tmp_path / "r"
    )
    assert code == 2
    assert "0.bias" in err
    assert "other.bias" in err


def test_a_pickle_with_code_is_refused(net, photos, tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "bomb",))

    (tmp_path / "w.pth").write_bytes(pickle.dumps(Bomb()))
    code, _, _ = call(
        "optimize", f"{net}:build", "--weights", tmp_path / "w.pth", "--data", photos, "--out", tmp_path / "r"
    )
    assert code == 2
    assert not (tmp_path / "bomb").exists()


def test_an_out_folder_that_cannot_be_written_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = call("optimize", "builtin:convnet", "--data", "digits", "--out", tmp_path / "file" / "run")
    assert code in (1, 2)
    assert "Error:" in err
    assert "Traceback" not in err


def test_a_folder_that_is_not_a_run_is_refused(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    code, _, err = call("optimize", "builtin:convnet", "--data", "digits", "--out", tmp_path)
    assert code == 2
    assert "precious.txt" in err
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


def test_profile_counts_and_measures(tmp_path):
    where = ("--runtime", "onnxruntime", "--csv", tmp_path / "layers.csv")
    code, out, err = call("profile", "builtin:mlp", *where, "--json", "--quiet")
    assert code == 0, err
    result = json.loads(out)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "layers.csv").read_text())))
    assert sum(int(row["macs"]) for row in rows) == result["totals"]["macs"]["value"]
    assert result["runtimes"]["onnxruntime"]["latency"]["value"] > 0


def test_export_checks_parity_and_benchmark_compares_the_files(tmp_path, monkeypatch):
    # Measured in a process of its own for each file, and tested with the runtimes.
    memory = Measurement(1e6, "B", "measured")
    monkeypatch.setattr("afina.jobs.benchmark.measure_memory", lambda path, shape, threads: memory)
    for to, name in (("onnx", "m.onnx"), ("pt2", "m.pt2")):
        code, _, err = call("export", "builtin:mlp", "--weights", "random", "--to", to, "--out", tmp_path / name)
        assert code == 0, err
    code, out, err = call(
        "benchmark", tmp_path / "m.onnx", tmp_path / "m.pt2", "--data", "digits", "--csv", tmp_path / "t.csv"
    )
    assert code == 0, err
    assert "m.onnx" in out
    rows = list(csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text())))
    assert [row["runtime"] for row in rows] == ["onnxruntime", "pt2"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["export", "builtin:convnet", "--to", "tflite"], "not a format"),
        (["export", "builtin:convnet", "--to", "onnx", "--out", "model.bin"], "does not end in .onnx"),
        (["benchmark", "nothing.onnx", "--data", "digits"], "no file nothing.onnx"),
        (["report", "nowhere"], "no result"),
        (["profile", "missing.pt2"], "missing.pt2"),
        (["profile", "builtin:convnett"], "Did you mean"),
    ],
)
def test_mistakes_in_the_other_commands_are_one_message(arguments, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(*arguments)
    assert code == 2, err
    assert expected in err
    assert list(tmp_path.iterdir()) == []


def test_doctor_says_what_is_there_and_what_is_missing():
    code, out, _ = call("doctor")
    assert code == 0
    assert "runtime onnxruntime" in out
    assert json.loads(call("doctor", "--json")[1])["machine"]["cores"] >= 1


@pytest.mark.parametrize(("busy", "word"), [(0.2, "ok"), (3.9, "missing")])
def test_doctor_says_when_others_keep_the_processor_busy(monkeypatch, busy, word):
    monkeypatch.setattr("os.getloadavg", lambda: (busy, busy, busy))
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    (line,) = [line for line in call("doctor")[1].splitlines() if "quiet processor" in line]
    assert line.startswith(word)
    assert f"{busy} of 4 cores busy" in line


def test_several_targets_make_several_networks_and_a_wrong_one_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ("builtin:convnet", "--data", "digits", "--input-size", "8", "--images", "64", "--quiet")
    code, _, err = call("factorize", *common, "--parameters", "70%,5x")
    assert (code, list(tmp_path.iterdir())) == (2, [])
    assert "5x" in err
    code, out, _ = call("factorize", *common, "--parameters", "70%, 40%", "--method", "svd", "--json")
    assert code == 0
    files = [each["file"] for each in json.loads(out)]
    assert files == ["builtin-convnet-factorized-70.pt2", "builtin-convnet-factorized-40.pt2"]
    for each, share in zip(json.loads(out), (0.7, 0.4), strict=True):
        assert Path(each["file"]).is_file()
        record = each["record"]
        assert 0.9 * share < record["after"]["parameters"] / record["before"]["parameters"] <= share


def test_networks_that_were_made_are_told_where_a_later_target_cannot_be_met(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ("builtin:convnet", "--input-size", "8", "--weights", "random", "--quiet", "--json")
    code, out, err = call("factorize", *common, "--parameters", "70%,0.1%", "--method", "svd")
    assert code == 2
    assert [each["file"] for each in json.loads(out)] == ["builtin-convnet-factorized-70.pt2"]
    assert "cannot be met" in err
    assert "Something unexpected" not in call("factorize", *common, "--parameters", ",")[2]


def test_a_profile_without_runtimes_counts_only():
    code, out, _ = call("profile", "builtin:convnet", "--input-size", "8", "--runtime", "none", "--json")
    assert code == 0
    assert json.loads(out)["totals"]["parameters"]["value"] == 676_682
    assert json.loads(out)["runtimes"] == {}


def test_long_work_is_told_before_it_begins(monkeypatch, tmp_path):
    from afina.jobs.planning import expected_time

    monkeypatch.setattr(expected_time, "_WORTH_TELLING", 0.0)
    for command, target in (("prune", "--macs"), ("factorize", "--parameters")):
        arguments = ("builtin:convnet", "--data", "digits", "--input-size", "8", "--images", "64", target, "50%")
        err = call(command, *arguments, "--out", tmp_path / "small.pt2")[2]
        assert "This takes about" in err


def test_debug_shows_where(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, _, err = call("optimize", "builtin:convnet", "--data", "digits", "--size", "x", "--debug")
    assert "Traceback" in err


@pytest.mark.parametrize(
    ("command", "option", "file"),
    [
        *(
            (("quantize", "no_model", "--data", "digits"), "--out", f)
            for f in ("folder.pt2", "/proc/q.pt2", "no/q.pt2")
        ),
        (("prune", "no_model", "--macs", "50%"), "--out", "/proc/q.pt2"),
        (("export", "no_model", "--to", "onnx"), "--out", "folder.onnx"),
        (("export", "no_model", "--to", "onnx"), "--out", "/proc/sub/q.onnx"),
        (("profile", "no_model"), "--csv", "/proc/q.csv"),
        (("sensitivity", "no_model", "--data", "digits"), "--plot", "folder.pt2"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_any_work(command, option, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = {tmp_path / name for name in ("folder.pt2", "folder.onnx")}
    for folder in folders:
        folder.mkdir()
    code, _, err = call(*command, option, file)
    assert code == 2, err
    assert f"{option} {file}" in err
    assert "no_model" not in err
    assert set(tmp_path.rglob("*")) == folders


@pytest.mark.parametrize(
    ("job", "arguments", "told"),
    [
        ("quantize", ("quantize", "builtin:convnet", "--data", "digits"), "Stopped. Nothing was written."),
        ("optimize", ("optimize", "builtin:convnet", "--data", "digits"), "the same command resumes"),
    ],
)
def test_an_interrupted_command_says_what_is_kept(job, arguments, told, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(afina, job, interrupted)
    monkeypatch.chdir(tmp_path)
    code, _, err = call(*arguments)
    assert code == 1
    assert told in err


@pytest.mark.parametrize("command", ["optimize", "run", "tune"])
def test_a_run_folder_that_cannot_be_written_is_told_before_the_model_is_looked_at(command, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "recipe.yaml").write_text("steps: [{prune: {macs: 50%}}]")
    first = [tmp_path / "recipe.yaml"] if command == "run" else []
    code, _, err = call(command, *first, "no_such_model", "--data", "digits", "--out", tmp_path / "file" / "run")
    assert code == 2
    assert "--out" in err
