"""The run folder: what is finished stays finished, what is half-written is never taken for whole."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from afina.errors import InputError, StorageError
from afina.store import files as store_files
from afina.store.result import from_plain, read_result, result_schema, to_plain
from afina.store.run import Run, read_config
from afina.types import (
    Budget,
    Candidate,
    Epoch,
    InputSpec,
    LayerRow,
    Measurement,
    MetricInfo,
    Record,
    Result,
    Step,
    TaskSpec,
)

CONFIG = {"model": "resnet18", "budget": {"size": 350_000, "max_drop": 0.01}, "input": (8, 8), "quiet": False}


def start(path: Path, **changes: Any) -> Run:
    return Run.open(path, {**CONFIG, **changes}, argv="afina optimize resnet18 --data photos")


def result() -> Result:
    record = Record(
        Step("prune", {"keep": 0.5}), ("conv1",), {"fc": "it is the head"}, {"macs": 2.0}, {"macs": 1.0}, 0.1
    )
    original = Candidate(
        name="original",
        recipe=(),
        status="judged",
        file="artifact/model.onnx",
        measurements={"quality": Measurement(0.99, "accuracy", "measured", 0.005, 360, "onnxruntime, 2 threads")},
        parity=1e-6,
        layers=(LayerRow("conv1", "conv2d", 10, 20, 80, (8, 4, 4), (4, 8), "int8"),),
        curve=(Epoch(1, 0.5, 0.9, 0.1, 2.0),),
    )
    rejected = Candidate(
        "prune-0.50", (Step("prune", {"keep": 0.5}),), "rejected", "NaN", records=(record,), parity=math.nan
    )
    return Result(
        verdict="misses",
        metric=MetricInfo("accuracy", True),
        budget=Budget(size=350_000),
        drop=0.0,
        original="original",
        winner="original",
        machine={"threads": 2},
        runtime="onnxruntime",
        model="resnet18",
        data="digits",
        task=TaskSpec("classification", ("0", "1")),
        input=InputSpec(8, 8, (0.5,), (0.5,), "L"),
        candidates=(original, rejected),
    )


def test_a_finished_stage_is_found_again_by_the_same_command(tmp_path: Path) -> None:
    with start(tmp_path / "deep" / "run") as run:
        assert not run.resumed
        assert run.done("adapt") is None
        run.finish("adapt", {"epochs": 3, "rate": 1e-05, "loss": math.inf})
        run.finish("judge prune/0.50", {"ok": True})
    with start(tmp_path / "deep" / "run") as run:
        assert run.resumed
        assert run.done("adapt") == {"epochs": 3, "rate": 1e-05, "loss": "Infinity"}
        assert run.done("judge prune/0.50") == {"ok": True}
        assert run.done("judge") is None


def test_config_yaml_has_the_resolved_settings_and_the_command(tmp_path: Path) -> None:
    with start(tmp_path, _volatile=["quiet"]):
        pass
    config, command = read_config(tmp_path)
    assert command == "afina optimize resnet18 --data photos"
    assert config == {**CONFIG, "input": [8, 8]}
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["config"] == config


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
def test_a_stage_whose_file_is_not_whole_is_not_done(tmp_path: Path, damage: str) -> None:
    with start(tmp_path) as run:
        with run.file("models/adapted.pt2") as partial:
            partial.write_bytes(b"weights" * 100)
        run.finish("adapt", {"epochs": 3}, files=["models/adapted.pt2"])
        assert run.done("adapt") == {"epochs": 3}
        file = run.path("models/adapted.pt2")
        if damage == "truncated":
            file.write_bytes(file.read_bytes()[:-1])
        elif damage == "changed":
            file.write_bytes(b"Weights" * 100)
        else:
            file.unlink()
        assert run.done("adapt") is None


def test_a_damaged_record_is_not_taken_for_a_finished_stage(tmp_path: Path) -> None:
    with start(tmp_path) as run:
        run.finish("adapt", {"epochs": 3})
        (record,) = (tmp_path / "stages").iterdir()
        record.write_bytes(record.read_bytes()[:-20])
        assert run.done("adapt") is None
        run.finish("adapt", {"epochs": 4})
        assert run.done("adapt") == {"epochs": 4}


def test_a_file_whose_writer_fails_is_not_moved_into_place(tmp_path: Path) -> None:
    with start(tmp_path) as run:
        with pytest.raises(ZeroDivisionError), run.file("model.onnx") as partial:
            assert partial.write_bytes(b"half") / 0
        assert not (tmp_path / "model.onnx").exists()
        assert not list(tmp_path.glob(".partial*"))


def test_files_that_a_writer_puts_beside_move_too(tmp_path: Path) -> None:
    with start(tmp_path) as run:
        with run.file("candidates/int8/model.xml") as partial:
            partial.write_text("<net/>")
            partial.with_suffix(".bin").write_bytes(b"1234")
        folder = run.path("candidates/int8")
        assert sorted(path.name for path in folder.iterdir()) == ["model.bin", "model.xml"]


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o002, 0o664)])
def test_a_file_has_the_permissions_that_the_users_umask_gives(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        store_files.write(tmp_path / "written", b"private")
        store_files.copy(tmp_path / "written", tmp_path / "copied")
        with start(tmp_path / "run") as run:
            run.finish("adapt", {})
    finally:
        os.umask(before)
    files = [tmp_path / "written", tmp_path / "copied", *(f for f in (tmp_path / "run").rglob("*") if f.is_file())]
    assert len(files) >= 4
    assert {file.stat().st_mode & 0o777 for file in files} == {mode}


COPIER = """
import sys
from pathlib import Path
from afina.store.files import copy
for _ in range(60):
    copy(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_processes_that_keep_their_file_under_one_name_do_not_disturb_each_other(tmp_path: Path) -> None:
    contents = {bytes([letter]) * 2_000_000 for letter in b"ab"}
    target, processes = tmp_path / "network.pt2", []
    for number, content in enumerate(sorted(contents)):
        source = tmp_path / f"trial-{number}.pt2"
        source.write_bytes(content)
        processes.append(subprocess.Popen([sys.executable, "-c", COPIER, str(source), str(target)]))
    while any(process.poll() is None for process in processes):
        assert not target.exists() or target.read_bytes() in contents
    assert [process.returncode for process in processes] == [0, 0]
    assert target.read_bytes() in contents
    assert sorted(path.name for path in tmp_path.iterdir()) == ["network.pt2", "trial-0.pt2", "trial-1.pt2"]


def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    with start(tmp_path / "run") as run, pytest.raises(ValueError, match="inside the run folder"):
        run.path("../elsewhere")


def test_other_settings_on_the_same_folder_are_refused_by_name(tmp_path: Path) -> None:
    with start(tmp_path):
        pass
    with pytest.raises(InputError) as caught:
        start(tmp_path, budget={"size": 180_000, "max_drop": 0.01}, seed=1)
    assert "--size: 350000 there, 180000 now" in str(caught.value)
    assert "--seed: not set there, 1 now" in str(caught.value)
    assert "max_drop" not in str(caught.value)
    assert "--out" in caught.value.fix
    assert "afina optimize resnet18 --data photos" in caught.value.fix


def test_a_run_of_an_earlier_version_with_other_options_is_refused_with_the_way_on(tmp_path: Path) -> None:
    old = {**CONFIG, "input": [8, 8], "speed": 3}
    text = yaml.safe_dump({"format": "afina/run/1", "command": "afina optimize resnet18 --data photos", "config": old})
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        start(tmp_path, keep_fp32=["head"])
    assert "earlier version" in caught.value.why
    assert '--keep-fp32: not set there, ["head"] now' in caught.value.why
    assert "--speed: 3 there, not set now" in caught.value.why
    assert "--out" in caught.value.fix
    assert f"remove {tmp_path}" in caught.value.fix
    assert "afina optimize" not in caught.value.fix  # it would be refused in the same way
    assert caught.value.exit_code == 2
    assert (tmp_path / "config.yaml").read_text() == text


def test_a_run_of_an_earlier_version_with_the_same_options_is_taken_up(tmp_path: Path) -> None:
    about = {"format": "afina/run/1", "command": "afina optimize resnet18", "config": {**CONFIG, "input": [8, 8]}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(about))
    with start(tmp_path) as run:
        assert run.resumed


def test_a_run_whose_format_is_not_known_here_says_which_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("format: afina/run/7\nconfig: {}\n")
    with pytest.raises(InputError, match=r"another version[\s\S]*afina/run/7[\s\S]*--out") as caught:
        start(tmp_path)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: [1\n", b"- 1\n", b"", b"format: 3\n", b"[" * 3000])
def test_a_config_that_is_broken_or_foreign_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.yaml (cannot be read|was not written by Afina)") as caught:
        start(tmp_path)
    assert "--out" in caught.value.fix
    assert caught.value.exit_code == 2
    assert (tmp_path / "config.yaml").read_bytes() == content


def test_settings_that_do_not_change_the_outcome_may_differ(tmp_path: Path) -> None:
    with start(tmp_path, _volatile=["quiet", "json"]):
        pass
    with start(tmp_path, quiet=True, json=True, _volatile=["quiet", "json"]) as run:
        assert run.resumed


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"is not a run[\s\S]*thesis\.tex"):
        start(tmp_path)
    (tmp_path / "config.yaml").write_text("a: 1\n")
    with pytest.raises(InputError, match="not the folder of a run"):
        start(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [1\n")
    with pytest.raises(InputError, match="cannot be read"):
        start(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="is a file"):
        start(tmp_path / "run")
    with pytest.raises(StorageError, match="cannot be written"):
        start(tmp_path / "run" / "below")


def test_a_folder_that_cannot_be_written_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match=r"cannot be written[\s\S]*Permission denied[\s\S]*--out"):
        start(tmp_path / "run")


WORKER = """
import sys, time
from pathlib import Path
from afina.store.run import Run
with Run.open(sys.argv[1], {"a": 1}, argv="worker") as run:
    print("open", flush=True)
    if sys.argv[2] == "wait":
        time.sleep(60)
    number = next(n for n in range(10**6) if run.done(f"stage {n}") is None)
    while True:
        with run.file(f"file {number}") as partial:
            partial.write_bytes(str(number).encode() * 200_000)
        run.finish(f"stage {number}", {"number": number, "filler": "x" * 200_000}, files=[f"file {number}"])
        number += 1
"""


def spawn(folder: Path, mode: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", WORKER, str(folder), mode], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_a_run_that_another_process_works_on_is_refused_and_taken_over_when_it_died(tmp_path: Path) -> None:
    process = spawn(tmp_path, "wait")
    try:
        with pytest.raises(InputError, match=f"Process {process.pid} has it open"):
            Run.open(tmp_path, {"a": 1}, argv="")
    finally:
        kill(process)
    with Run.open(tmp_path, {"a": 1}, argv="") as run:
        assert run.resumed
        with pytest.raises(InputError, match=f"Process {os.getpid()} has it open"):
            Run.open(tmp_path, {"a": 1}, argv="")
        # The refused attempt must not have released the lock of the one that holds it.
        again = subprocess.run([sys.executable, "-c", WORKER, str(tmp_path), "wait"], capture_output=True, text=True)
        assert f"Process {os.getpid()} has it open" in again.stderr


def test_a_run_killed_while_it_writes_stages_resumes_with_whole_stages_only(tmp_path: Path) -> None:
    finished = 0
    for delay in (0.3, 0.217, 0.151):
        process = spawn(tmp_path, "write")
        time.sleep(delay)
        kill(process)
        with Run.open(tmp_path, {"a": 1}, argv="") as run:
            assert not list(tmp_path.rglob(".partial*")), "what was half-written is swept away"
            values = [run.done(f"stage {n}") for n in range(len(list((tmp_path / "stages").iterdir())))]
            for number, value in enumerate(values):
                assert value is not None
                assert value["number"] == number
                assert len(value["filler"]) == 200_000
                assert run.path(f"file {number}").read_bytes() == str(number).encode() * 200_000
        assert len(values) > finished, "each start goes on from the last"
        finished = len(values)


def test_a_folder_of_a_run_killed_before_its_first_line_is_taken_up(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("1\n")
    (tmp_path / ".partial-abc").write_text("format: af")
    with start(tmp_path) as run:
        assert not run.resumed


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_so_and_what_is_finished_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    with start(tmp_path) as run:
        run.finish("adapt", {"epochs": 3})
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            for write in (
                lambda: run.finish("compress", {}),
                lambda: run.finish("adapt", {"epochs": 4}),
                lambda: run.result(result()),
            ):
                with pytest.raises(StorageError) as caught:
                    write()
                assert "disk is full" in caught.value.what
                assert "kept" in caught.value.why
                assert "same command again: it resumes" in caught.value.fix
            with pytest.raises(StorageError, match="disk is full"), run.file("model.onnx") as partial:
                partial.write_bytes(b"whole in the cache, not on the disk")
        assert run.done("adapt") == {"epochs": 3}
        assert run.done("compress") is None
        assert not (tmp_path / "result.json").exists()
        assert not (tmp_path / "model.onnx").exists()
        assert not list(tmp_path.rglob(".partial*"))


def test_a_full_disk_is_recognised_in_the_errors_of_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with start(tmp_path) as run:
        with pytest.raises(StorageError, match="disk is full"), run.file("a.onnx"):
            raise OSError(errno.ENOSPC, "No space left on device")
        with pytest.raises(RuntimeError, match="unexpected pos"), run.file("a.pt2"):
            raise RuntimeError("unexpected pos 704 vs 598")
        monkeypatch.setattr(store_files, "_FULL_BELOW", 2**80)
        with pytest.raises(StorageError, match="disk is full"), run.file("a.pt2"):
            raise RuntimeError("unexpected pos 704 vs 598")


def test_a_log_line_that_does_not_fit_on_the_disk_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with start(tmp_path) as run:
        monkeypatch.setattr(Path, "open", full)
        with pytest.raises(StorageError, match="disk is full"):
            run.log("hello")


def test_the_log_has_the_time_of_each_line(tmp_path: Path) -> None:
    with start(tmp_path) as run:
        run.log("first\nsecond")
        run.log("third")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line[20:] for line in lines] == ["first", "second", "third"]
    for line in lines:
        time.strptime(line[:19], "%Y-%m-%d %H:%M:%S")


def test_a_result_reads_back_as_it_was_written(tmp_path: Path) -> None:
    with start(tmp_path) as run:
        path = run.result(result())
    assert path == tmp_path / "result.json"
    text = path.read_text()
    assert "NaN" in text
    json.loads(text, parse_constant=pytest.fail)
    for source in (tmp_path, path):
        back = read_result(source)
        assert math.isnan(back.candidates[1].parity or 0.0)
        assert repr(back) == repr(result())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "Its schema is None"),
        ('{"schema": "afina/result/99"}', "afina/result/99"),
        ('{"schema": "afina/result/1", "verdict": "maybe"}', "not a valid result"),
    ],
)
def test_a_broken_result_is_refused_with_the_reason(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_result(tmp_path)


def test_a_run_without_a_result_says_whether_it_was_started(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no result") as caught:
        read_result(tmp_path)
    assert "has not finished" not in str(caught.value)
    with start(tmp_path):
        pass
    with pytest.raises(InputError, match="has not finished"):
        read_result(tmp_path)
    with pytest.raises(InputError, match="There is no file"):
        read_result(tmp_path / "nowhere")


def test_every_record_goes_through_plain_data_unchanged() -> None:
    for value in (*result().candidates[0].curve, *result().candidates[0].layers, result().task, result().input):
        assert from_plain(type(value), json.loads(json.dumps(to_plain(value)))) == value
    record = result().candidates[1].records[0]
    assert from_plain(Record, to_plain(record)) == record
    assert to_plain({"a": (record.step, Path("x"))})["a"][1] == "x"


def test_a_result_of_before_that_does_not_say_what_is_in_percent_is_read_as_it_was_meant(tmp_path: Path) -> None:
    plain = to_plain(result())
    for key in ("share", "mean_of_images"):
        del plain["metric"][key]
    for candidate in plain["candidates"]:
        for measurement in candidate["measurements"].values():
            del measurement["share"], measurement["details"]
    (tmp_path / "result.json").write_text(json.dumps(plain))
    assert read_result(tmp_path).metric.share
    quality = read_result(tmp_path).candidates[0].measurements.get("quality")
    assert quality is None or quality.share


def test_the_published_schema_is_the_one_of_the_code() -> None:
    published = Path(__file__).parents[1] / "docs" / "result.schema.json"
    assert json.loads(published.read_text()) == result_schema(), "python -m afina.store > docs/result.schema.json"


def test_a_result_has_every_field_that_the_schema_requires() -> None:
    schema, plain = result_schema(), to_plain(result())
    assert set(plain) == set(schema["properties"])
    assert set(schema["required"]) <= set(plain)
    assert set(plain["candidates"][0]) == set(schema["$defs"]["Candidate"]["properties"])


def test_the_run_folder_needs_no_torch() -> None:
    code = "import sys, afina.store.run; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
