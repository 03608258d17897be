"""Studies: every sampler runs them, they are taken up again, and nothing finished is lost."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages._grpc.server import make_server
from optuna.trial import TrialState

from afina.errors import InputError, StorageError
from afina.search import SearchError, counts, make_sampler, make_space, open_study, run_study, workers
from afina.search.storage import JOURNAL, open_storage
from afina.search.studies import ERROR
from afina.search.tensor_train.history import LOST
from afina.search.workers import give_up, retry_lost

SPACE = make_space(
    {
        "x": {"type": "float", "low": 0, "high": 1},
        "kind": ["a", "b"],
        "depth": {"type": "int", "low": 1, "high": 3, "when": {"kind": "b"}},
        "epochs": 3,
    }
)


def objective(params, trial):
    assert params["epochs"] == 3
    return (params["x"] - 0.4) ** 2 + abs(params.get("depth", 3) - 2)


def study_in(folder, sampler="random", space=SPACE, **more):
    return open_study(folder, space, make_sampler(sampler, space, seed=0, grid_points=3), **more)


def test_a_grid_has_each_combination_of_active_parameters_once(tmp_path):
    study = study_in(tmp_path, "grid")
    run_study(study, objective, SPACE, trials=12)
    assert len({tuple(t.params.items()) for t in study.trials}) == 3 + 3 * 3


def test_a_mistyped_sampler_is_named():
    with pytest.raises(InputError, match="Did you mean tensor-train"):
        make_sampler("tensortrain", SPACE)


def test_a_grid_ends_by_itself_and_goes_on_where_it_was(tmp_path):
    run_study(study_in(tmp_path, "grid"), objective, SPACE, trials=5)
    study = study_in(tmp_path, "grid")
    run_study(study, objective, SPACE)
    assert len(study.trials) == 12
    assert len({tuple(t.params.items()) for t in study.trials}) == 12
    assert run_study(study, objective, SPACE).trials == 0


def test_a_finer_grid_tries_all_that_the_coarse_one_did_not(tmp_path):
    space = make_space({"x": {"type": "float", "low": 0, "high": 1}, "kind": [1, 1.0, True]})
    for points, count in ((3, 9), (5, 15)):
        study = open_study(tmp_path, space, make_sampler("grid", space, grid_points=points))
        run_study(study, lambda p, t: p["x"], space)
        assert len(study.trials) == count
    assert {t.params["x"] for t in study.trials} == {0, 0.25, 0.5, 0.75, 1}


def test_a_study_is_taken_up_again(tmp_path):
    run_study(study_in(tmp_path), objective, SPACE, trials=4)
    study = study_in(tmp_path)
    assert run_study(study, objective, SPACE, trials=7).trials == 3
    assert len(study.trials) == 7


def test_another_space_or_direction_is_refused(tmp_path):
    run_study(study_in(tmp_path), objective, SPACE, trials=1)
    other = make_space({"x": {"type": "float", "low": 0, "high": 2}})
    with pytest.raises(InputError, match=r"another search space(.|\n)*x: "):
        study_in(tmp_path, space=other)
    with pytest.raises(InputError, match="directions"):
        study_in(tmp_path, directions=("maximize",))
    assert len(study_in(tmp_path).trials) == 1


def test_failures_are_kept_with_their_reason_and_the_study_goes_on(tmp_path):
    def troubled(params, trial):
        if trial.number % 5 == 1:
            raise RuntimeError("out of memory")
        if trial.number == 10:
            sys.exit("no more licences")
        return [0.5, None, float("nan"), "3.5"][trial.number % 4] if trial.number % 2 else params["x"]

    study = study_in(tmp_path)
    done = run_study(study, troubled, SPACE, trials=12)
    assert len(study.trials) == 12
    states = [t.state for t in study.trials]
    assert done.failed == states.count(TrialState.FAIL) > 2
    assert all(t.user_attrs[ERROR]["message"] for t in study.trials if t.state == TrialState.FAIL)
    first = study.trials[1].user_attrs[ERROR]
    assert first["message"] == "RuntimeError: out of memory"
    assert "troubled" in first["traceback"]
    assert study.trials[3].user_attrs[ERROR]["message"] == "The objective gave '3.5', not a number."
    assert study.trials[10].user_attrs[ERROR]["message"] == "SystemExit: no more licences"


def test_an_infinite_value_is_no_result(tmp_path):
    study = study_in(tmp_path)
    with pytest.raises(SearchError, match="The objective gave -inf"):
        run_study(study, lambda p, t: float("-inf"), SPACE, trials=9)
    assert not study.get_trials(states=(TrialState.COMPLETE,))


def test_failures_in_a_row_stop_it_with_the_last_traceback(tmp_path):
    def broken(params, trial):
        raise ValueError(f"trial {trial.number} has no data")

    study = study_in(tmp_path)
    with pytest.raises(SearchError, match="trial 3 has no data"):
        run_study(study, broken, SPACE, trials=20, most_failures=4)
    assert len(study.trials) == 4
    assert run_study(study, objective, SPACE, trials=6).failed == 0


def test_a_wrong_number_of_values_fails_the_trial(tmp_path):
    study = study_in(tmp_path, directions=("minimize", "maximize"))
    run_study(study, lambda p, t: (p["x"], 1.0) if t.number else p["x"], SPACE, trials=3)
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    assert "1 values" in study.trials[0].user_attrs[ERROR]["message"]


def test_time_ends_it(tmp_path):
    study = study_in(tmp_path)
    done = run_study(study, lambda p, t: time.sleep(0.05) or p["x"], SPACE, seconds=0.3)
    assert 1 <= done.trials <= 8
    with pytest.raises(InputError, match="no end"):
        run_study(study, objective, SPACE)


def test_stopped_trials_are_no_failures(tmp_path):
    def stopped(params, trial):
        trial.report(params["x"], step=0)
        raise optuna.TrialPruned

    study = study_in(tmp_path, "tensor-train")
    assert run_study(study, stopped, SPACE, trials=12, most_failures=2).failed == 0


def test_an_interrupted_trial_is_run_again(tmp_path):
    def interrupted(params, trial):
        if trial.number == 2:
            raise KeyboardInterrupt
        return params["x"]

    study = study_in(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, interrupted, SPACE, trials=6)
    again = study_in(tmp_path)
    run_study(again, objective, SPACE, trials=6)
    lost, repeated = again.trials[2], again.trials[3]
    assert LOST in lost.user_attrs
    assert repeated.params == lost.params
    assert sum(t.state == TrialState.COMPLETE for t in again.trials) == 6


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_search_studies import SPACE, study_in
from afina.search import run_study

def objective(params, trial):
    if trial.number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return params["x"]

run_study(study_in({folder!r}), objective, SPACE, trials=8)
"""


def test_a_killed_search_loses_at_most_the_trial_that_was_running(tmp_path):
    code = KILLED.format(tests=os.path.dirname(__file__), folder=str(tmp_path))
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -signal.SIGKILL
    journal = tmp_path / JOURNAL
    with journal.open("a") as file:
        file.write('{"op_code":4,"half a line')
    study = study_in(tmp_path)
    assert sum(t.state == TrialState.COMPLETE for t in study.trials) == 3
    done = run_study(study, objective, SPACE, trials=8)
    assert done.retried == (3,)
    assert sum(t.state == TrialState.COMPLETE for t in study.trials) == 8
    assert study.trials[4].params == study.trials[3].params


SHARED = """
import sys
sys.path.insert(0, {tests!r})
from test_search_studies import SPACE, objective, study_in
from afina.search import run_study

run_study(study_in({folder!r}, "tensor-train"), objective, SPACE, trials=24)
"""


def test_several_processes_share_a_study(tmp_path):
    code = SHARED.format(tests=os.path.dirname(__file__), folder=str(tmp_path))
    workers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    trials = study_in(tmp_path).trials
    assert 24 <= len(trials) <= 25
    assert all(t.state == TrialState.COMPLETE for t in trials)
    assert len({t.user_attrs["afina:worker"]["pid"] for t in trials}) == 2
    assert len({tuple(t.params.items()) for t in trials}) > 20


def test_a_trial_that_ends_its_process_is_not_tried_for_ever(tmp_path):
    study = study_in(tmp_path)
    for _ in range(6):
        trial = study.ask()
        SPACE.suggest(trial)
        trial.set_user_attr("afina:worker", {"host": os.uname().nodename, "pid": 2**22 + 1, "since": 0.0})
        retry_lost(study)
        if not study.get_trials(states=(TrialState.WAITING,)):
            break
    assert len(study.trials) == 3


def test_running_trials_of_living_processes_are_left_alone(tmp_path):
    study = study_in(tmp_path)
    run_study(study, lambda p, t: p["x"] + len(retry_lost(study)), SPACE, trials=2)
    assert all(t.state == TrialState.COMPLETE for t in study.trials)


def test_trials_of_a_machine_that_is_silent_are_run_again(tmp_path):
    study = study_in(tmp_path)
    for number, silent in enumerate((20.0, 3600.0)):
        trial = study.ask()
        SPACE.suggest(trial)
        trial.set_user_attr("afina:worker", {"host": "another", "pid": 1, "since": 0.0, "begun": time.time() - 4000})
        trial.set_user_attr("afina:beat", time.time() - silent)
        assert number == trial.number
    assert counts(study)["running"] == 2
    done = run_study(study, objective, SPACE, trials=4)
    assert done.retried == (1,)
    assert [t.state for t in study.trials[:2]] == [TrialState.RUNNING, TrialState.FAIL]
    assert study.trials[2].params == study.trials[1].params
    assert counts(study) == {"finished": 3, "stopped": 0, "beyond": 0, "failed": 0, "running": 1}


def test_a_process_says_that_its_trials_still_run(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_PERIOD", 0.02)
    study = study_in(tmp_path)

    def slow(params, trial):
        begun = time.monotonic()
        while len(beats(trial.number)) < 2 and time.monotonic() - begun < 20:
            time.sleep(0.02)
        return len(beats(trial.number))

    def beats(number):
        logs = (json.loads(line) for line in (tmp_path / JOURNAL).read_text().splitlines())
        return [log for log in logs if "afina:beat" in log.get("user_attr", {}) and log["trial_id"] == number]

    run_study(study, slow, SPACE, trials=1)
    assert study.trials[0].value == 2


def test_a_process_that_was_taken_for_dead_tells_nothing_and_goes_on(tmp_path):
    study = study_in(tmp_path)

    def suspended(params, trial):
        if trial.number == 0:
            give_up(study, study.trials[0])
        return objective(params, trial)

    run_study(study, suspended, SPACE, trials=3)
    assert [t.state for t in study.trials] == [TrialState.FAIL, *[TrialState.COMPLETE] * 3]
    assert study.trials[1].params == study.trials[0].params


def test_a_trial_that_is_given_up_while_it_is_told_ends_nothing(tmp_path, monkeypatch):
    study, tell = study_in(tmp_path), optuna.Study.tell

    def late(self, trial, *arguments, **options):
        if trial.number == 0:
            give_up(study, study.trials[0])
        return tell(self, trial, *arguments, **options)

    monkeypatch.setattr(optuna.Study, "tell", late)
    run_study(study, objective, SPACE, trials=2)
    assert [t.state for t in study.trials] == [TrialState.FAIL, *[TrialState.COMPLETE] * 2]


def test_storages_that_cannot_be_reached_are_named(tmp_path):
    with pytest.raises(StorageError, match="cannot be reached"):
        study_in("nosuch://user:secret@host/db")
    with pytest.raises(StorageError) as caught:
        study_in("nosuch://user:secret@host/db")
    assert "secret" not in str(caught.value).splitlines()[0]
    with pytest.raises(StorageError) as caught:
        study_in("nosuch://host/db?user=me&password=secret")
    assert "secret" not in str(caught.value).splitlines()[0]
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        study_in(tmp_path / "file" / "folder")
    for text in (json.dumps({"no": "journal"}) + "\n", "notes of mine"):
        (tmp_path / JOURNAL).write_text(text)
        with pytest.raises(StorageError, match="not a journal"):
            study_in(tmp_path)
        assert (tmp_path / JOURNAL).read_text() == text
    with pytest.raises(StorageError, match=r"Known are postgresql://.*grpc://"):
        study_in("nosuch://user:secret@host/db")
    with pytest.raises(StorageError, match=r"pip install mysqlclient"):
        study_in("mysql://user:secret@host/db")
    with pytest.raises(StorageError, match=r"no port"):
        study_in("grpc://localhost")


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_proxy_serves_several_machines(tmp_path):
    pytest.importorskip("grpc")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with pytest.raises(StorageError, match="cannot be reached"):
        study_in(f"grpc://localhost:{port}")
    server = make_server(open_storage(tmp_path), "localhost", port)
    server.start()
    try:
        run_study(study_in(f"grpc://localhost:{port}"), objective, SPACE, trials=3)
        assert len(study_in(f"grpc://localhost:{port}").trials) == 3
    finally:
        server.stop(None)
    assert len(study_in(tmp_path).trials) == 3


def test_a_database_url_serves_too(tmp_path):
    study = study_in(f"sqlite:///{tmp_path / 'study.db'}")
    run_study(study, objective, SPACE, trials=3)
    assert len(study_in(f"sqlite:///{tmp_path / 'study.db'}").trials) == 3


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_the_documented_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[1] / "docs" / "search.md"
    examples = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    assert examples
    for example in examples:
        exec(compile(example, str(page), "exec"), {})
