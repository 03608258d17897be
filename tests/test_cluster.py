"""Searches on a Ray cluster: this machine as one, with real processes that really die."""

import csv
import logging
from pathlib import Path

import pytest
import torch
from test_training import Said
from test_tune import LAST_IS_HOPELESS

import afina
from afina.data import open_data
from afina.errors import InputError
from afina.graph import Network
from afina.search import SearchError
from afina.training import evaluate

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster():
    """One that all tests here share; its processes are as important as others, so that busy cores do not stop them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        # The GPUs are a name only: what asks for them trains on processors.
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        yield "local"
        ray.shutdown()


def rows(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "trials.csv").read_text().splitlines()))


def test_a_process_that_dies_loses_no_finished_trial_and_its_own_is_run_again(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work.py").write_text(
        "import os\nfrom pathlib import Path\n\nHERE = Path(__file__).parent\n\n\n"
        "def work(x):\n    if x == 3 and not (HERE / 'died').exists():\n        (HERE / 'died').touch()\n"
        "        os._exit(9)\n    return (x - 2) ** 2\n"
    )
    said = Said()
    (tmp_path / "space.yaml").write_text("x: [0, 1, 2, 3, 4]")
    result = afina.tune(
        objective="work.py:work", space="space.yaml", sampler="grid", ray=cluster, out="run", progress=said
    )
    assert result.best == {"x": 2}
    assert sorted(row["x"] for row in rows(tmp_path / "run") if row["state"] == "complete") == list("01234")
    assert [row["x"] for row in rows(tmp_path / "run") if row["state"] == "lost"] == ["3"]
    assert sum("died; it is run again" in line for line in said.lines) == 1


def same(x):
    return x


def test_what_a_trial_does_wrong_on_the_cluster_fails_that_trial_alone(cluster, tmp_path):
    (tmp_path / "work.py").write_text(
        "def work(x, trial):\n    trial.report(value='no number' if x == 1 else x, step=1)\n"
        "    trial.set_constraint('heat', x - 2)\n    return x if x != 3 else trial.params\n"
    )
    result = afina.tune(
        objective=f"{tmp_path}/work.py:work", space={"x": [0, 1, 2, 3]}, sampler="grid", maximize=True, ray=cluster,
        out=tmp_path / "run",
    )  # fmt: skip
    assert result.best == {"x": 2}
    failed = {row["x"]: row["error"] for row in rows(tmp_path / "run") if row["state"] == "fail"}
    assert set(failed) == {"1", "3"}
    assert "On Ray a trial has no params" in failed["3"]


def test_trainings_report_stop_early_and_leave_the_best_network(cluster, tmp_path):
    # One at once, so that the last one is compared with the others.
    space = {**LAST_IS_HOPELESS, "epochs": 4}
    result = afina.tune("builtin:mlp", "digits", space=space, sampler="grid", ray=cluster, workers=1, out=tmp_path)
    assert result.trials == {"finished": 4, "stopped": 1, "beyond": 0, "failed": 0, "running": 0}
    assert len(result.curve) == 4
    quality = evaluate(Network.load(result.network), open_data("digits", seed=0)).value
    assert quality == pytest.approx(result.value)
    assert len(list((tmp_path / "work").glob("*.pt2"))) == 1


def test_a_training_on_two_devices_leaves_the_network_that_one_device_gives(cluster, tmp_path):
    rate = {"type": "float", "low": 0.05, "high": 0.0501}
    space = {"learning_rate": rate, "epochs": 1, "augment": False, "ema": 0.9, "model.depth": 1}
    options = {"space": space, "trials": 1}
    found = [
        afina.tune("builtin:mlp", "digits", out=tmp_path / "1", **options),
        afina.tune("builtin:mlp", "digits", ray=cluster, trial_gpus=2, out=tmp_path / "2", **options),
    ]
    qualities = [evaluate(Network.load(result.network), open_data("digits", seed=0)).value for result in found]
    assert [result.value for result in found] == pytest.approx(qualities)
    first = [next(iter(Network.load(result.network).module.parameters())) for result in found]
    assert not torch.equal(*first)
    assert qualities[1] == pytest.approx(qualities[0], abs=0.05)  # batch norm sees half of each batch


def test_trials_that_fail_and_fail_end_the_search_with_the_last_traceback(cluster, tmp_path):
    def looking(camera):
        def look(x):
            if not camera:
                raise OSError("no camera")
            return abs(x)

        return look

    given = {"space": {"x": list(range(9))}, "trials": 9, "ray": cluster, "out": tmp_path}
    with pytest.raises(SearchError, match="no camera"):
        afina.tune(objective=looking(None), **given)
    before = len(rows(tmp_path))
    assert 5 <= before < 9
    # Corrected, the same command goes on.
    result = afina.tune(objective=looking("camera"), **given)
    assert result.trials["finished"] >= 9 - before


def test_a_trial_that_the_cluster_has_no_room_for_is_refused(cluster, tmp_path):
    with pytest.raises(InputError, match="3 processors and 3 GPUs"):
        afina.tune(objective=same, space={"x": [1, 2]}, ray=cluster, trial_cpus=3, trial_gpus=3, out=tmp_path)


def test_a_cluster_that_is_not_there_is_an_error_at_once(tmp_path):
    with pytest.raises(InputError, match=r"There is no Ray cluster at 127\.0\.0\.1:9"):
        afina.tune(objective=same, space={"x": [1, 2]}, ray="127.0.0.1:9", out=tmp_path)
