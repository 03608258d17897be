"""`afina tune`: trainings and functions searched, kept, gone on with; and what is refused."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import psutil
import pytest
import yaml
from conftest import digits
from test_training import Said
from torch.utils.data import TensorDataset
from typer.testing import CliRunner

import afina
from afina.capacity import available_cores
from afina.cli import app
from afina.data import open_data
from afina.errors import InputError
from afina.graph import Network
from afina.jobs.common.subject import load_for
from afina.jobs.tune import describe_search
from afina.jobs.tuning import settings, training_trials
from afina.search import SearchError, importances, make_stopping, open_storage
from afina.training import evaluate

SPACE = {
    "model.width": {"type": "int", "low": 8, "high": 32, "step": 8},
    "model.depth": 1,
    "learning_rate": {"type": "float", "low": 1e-2, "high": 0.2, "log": True},
    "epochs": 2,
}
# Trainings of which the first ones learn and the last one cannot.
LAST_IS_HOPELESS = {"learning_rate": [0.1, 0.12, 0.14, 0.16, 1e-6], "model.width": 16, "model.depth": 1}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("tune") / "run"
    afina.tune("builtin:mlp", "digits", space=SPACE, trials=3, out=out, early_stopping="none")
    return out


def rows(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "trials.csv").read_text().splitlines()))


def test_the_best_network_of_a_search_has_the_quality_that_is_told(tuned):
    best = max(float(row["value"]) for row in rows(tuned))
    network = Network.load(tuned / "network.pt2")
    assert evaluate(network, open_data("digits", seed=0)).value == pytest.approx(best)


def test_a_test_split_judges_the_network_that_the_validation_split_chose(tmp_path):
    images, targets = digits()
    parts = [TensorDataset(images[i:j], targets[i:j]) for i, j in ((0, 600), (600, 900), (900, 1200))]
    result = afina.tune("builtin:mlp", tuple(parts), space=SPACE, trials=2, out=tmp_path, early_stopping="none")
    judged = evaluate(Network.load(result.network), open_data(tuple(parts), seed=0), "test")
    assert result.test == judged
    assert judged.n == 300
    assert "On 300 test images, which chose nothing:" in describe_search(result)


def test_the_best_parameters_are_those_of_the_best_trial_and_shape_the_network(tuned):
    best = yaml.safe_load((tuned / "best.yaml").read_text())
    winner = max(rows(tuned), key=lambda row: float(row["value"]))
    assert best["learning_rate"] == pytest.approx(float(winner["learning_rate"]))
    widths = [p.shape[0] for p in Network.load(tuned / "network.pt2").module.parameters() if p.ndim == 2]
    assert widths[0] == best["model.width"]


def test_the_page_shows_the_search_without_any_network_access(tuned):
    page = (tuned / "report.html").read_text()
    assert "learning_rate" in page
    assert 'src="http' not in page


def test_a_search_goes_on_where_it_stopped(tuned):
    before = rows(tuned)
    result = afina.tune("builtin:mlp", "digits", space=SPACE, trials=4, out=tuned, early_stopping="none")
    after = rows(tuned)
    assert after[:3] == before
    assert len(after) == 4
    assert sum(result.trials.values()) == 4
    assert result.value == max(float(row["value"]) for row in after)
    assert evaluate(Network.load(result.network), open_data("digits", seed=0)).value == pytest.approx(result.value)


def test_only_the_best_trials_network_stays(tuned):
    assert len(list((tuned / "work").glob("*.pt2"))) == 1


def test_a_resumed_random_search_does_not_try_the_same_points_again(tmp_path):
    space = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
    for trials in (4, 8):
        afina.tune(objective=lambda x: x, space=space, sampler="random", trials=trials, out=tmp_path)
    assert len({row["x"] for row in rows(tmp_path)}) == 8


def test_the_default_space_suits_the_task_and_trains(tmp_path):
    result = afina.tune("builtin:mlp", "digits", trials=1, epochs=1, out=tmp_path)
    assert result.best["optimizer"] == "sgd"
    assert {"learning_rate", "weight_decay", "batch_size", "augment", "label_smoothing"} <= result.best.keys()


def test_a_hopeless_training_is_stopped_and_says_how_far_it_came(tmp_path):
    space = {**LAST_IS_HOPELESS, "epochs": 4}
    result = afina.tune("builtin:mlp", "digits", space=space, sampler="grid", out=tmp_path)
    assert result.trials == {"finished": 4, "stopped": 1, "beyond": 0, "failed": 0, "running": 0}
    assert [row["state"] for row in rows(tmp_path)][-1] == "pruned"


def test_a_trial_that_cannot_be_built_fails_and_the_search_goes_on(tmp_path):
    space = {"model.kernel_size": [3, 4], "epochs": 1, "model.width": 4, "model.depth": 1, "model.stages": 1}
    result = afina.tune("builtin:convnet", "digits", space=space, sampler="grid", out=tmp_path)
    assert result.trials == {"finished": 1, "stopped": 0, "beyond": 0, "failed": 1, "running": 0}
    assert "kernel_size must be odd" in rows(tmp_path)[1]["error"]


def test_a_function_in_a_file_is_tuned_from_the_command_line(tmp_path):
    (tmp_path / "mine.py").write_text("def loss(x, kind):\n    return (x - 0.3) ** 2 + (kind == 'b')\n")
    (tmp_path / "space.yaml").write_text("x: {type: float, low: 0, high: 1}\nkind: [a, b]\n")
    arguments = ["tune", "--objective", f"{tmp_path}/mine.py:loss", "--space", f"{tmp_path}/space.yaml"]
    arguments += ["--trials", "20", "--out", f"{tmp_path}/run", "--json", "-q"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["best"]["kind"] == "a"
    assert told["value"] < 0.01
    assert set(told["importances"]) == {"x", "kind"}


def test_a_function_may_be_maximized(tmp_path):
    space = {"x": [1, 2, 3]}
    result = afina.tune(objective=lambda x: x, space=space, sampler="grid", maximize=True, out=tmp_path)
    assert result.value == 3


def test_a_function_that_always_fails_ends_the_search_with_its_last_traceback(tmp_path):
    def broken(x):
        raise RuntimeError("no camera")

    with pytest.raises(SearchError, match="no camera"):
        afina.tune(objective=broken, space={"x": [1, 2, 3, 4, 5, 6]}, trials=10, out=tmp_path)
    assert len(rows(tmp_path)) == 5


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("def loss(x, width): return x", r"takes no argument 'widht'(?s:.*)width"),
        ("def loss(x, widht, depth): return x", r"needs 'depth', and the space has no such parameter"),
    ],
)
def test_a_function_that_does_not_fit_the_space_is_refused_before_any_trial(function, message, tmp_path):
    (tmp_path / "mine.py").write_text(function + "\n")
    space = {name: {"type": "float", "low": 0, "high": 1} for name in ("x", "widht")}
    with pytest.raises(InputError, match=message):
        afina.tune(objective=f"{tmp_path}/mine.py:loss", space=space, trials=2, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"epochs": {"type": "int", "low": 0, "high": 3}}, "epochs is 0"),
        ({"learning_rate": {"type": "float", "low": -1, "high": 1}}, "learning_rate is -1"),
        ({"schedule": {"type": "categorical", "choices": ["cosine", "onecycl"]}}, "onecycle"),
        (
            {"batch_size": {"type": "fixed", "value": 1}, "momentum": {"type": "float", "low": 0, "high": 0.9}},
            "batch_size",
        ),
    ],
)
def test_values_that_no_training_can_have_are_refused_before_any_trial(space, message, tmp_path):
    with pytest.raises(InputError, match=message):
        afina.tune("builtin:mlp", "digits", space=space, trials=2, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_function_does_not_go_on_with_the_study_of_the_first(tmp_path):
    (tmp_path / "mine.py").write_text("def loss(x): return x\n\ndef other(x): return -x\n")
    given = {"space": {"x": {"type": "float", "low": 0, "high": 1}}, "trials": 2, "out": tmp_path / "run"}
    afina.tune(objective=f"{tmp_path}/mine.py:loss", **given)
    with pytest.raises(InputError, match="begun with other options"):
        afina.tune(objective=f"{tmp_path}/mine.py:other", **given)


def test_a_search_whose_every_trial_failed_is_an_error_with_the_last_failure(tmp_path):
    (tmp_path / "mine.py").write_text("def loss(x):\n    raise RuntimeError('no camera')\n")
    (tmp_path / "space.yaml").write_text("x: {type: float, low: 0, high: 1}\n")
    arguments = ["tune", "--objective", f"{tmp_path}/mine.py:loss", "--space", f"{tmp_path}/space.yaml"]
    result = CliRunner().invoke(app, [*arguments, "--trials", "2", "--out", f"{tmp_path}/run"])
    assert result.exit_code == 1
    assert "all 2 failed" in result.stderr
    assert "no camera" in result.stderr
    assert [row["state"] for row in rows(tmp_path / "run")] == ["fail", "fail"]


def loss(x):
    return x


def placed(x, trial, /):
    return x


def test_a_search_in_which_no_trial_keeps_its_limit_says_so(tmp_path):
    def hot(x, trial):
        trial.set_constraint("heat", x)
        return x

    result = afina.tune(objective=hot, space={"x": [1, 2]}, sampler="grid", out=tmp_path)
    assert result.best is None
    assert "2 beyond a limit.\nNone ended with a value within the limits." in afina.jobs.tune.describe_search(result)


def test_a_function_that_takes_its_trial_reports_stops_early_and_tells_limits(tmp_path):
    def curve(x, trial):
        trial.set_constraint("heat", x - 7)
        for step in range(1, 9):
            trial.report(float(x), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return float(x)

    space = {"x": list(range(1, 11))}
    result = afina.tune(
        objective=curve, space=space, sampler="grid", maximize=True, early_stopping="halving", out=tmp_path
    )
    assert result.best == {"x": 7}
    said = Said()
    stopped = afina.tune(
        objective=curve,
        space={"x": [5, 4, 3, 2, 1, 0]},
        sampler="grid",
        maximize=True,
        out=tmp_path / "median",
        progress=said,
    )
    assert stopped.trials["stopped"] == 2
    assert any("stopped after 2 steps" in line for line in said.lines)
    strict = afina.tune(objective=curve, space={"x": [9, 8, 7]}, sampler="grid", out=tmp_path / "strict", progress=said)
    assert strict.best == {"x": 7}
    assert any("value 9, beyond the limit on heat" in line for line in said.lines)


def test_a_function_may_give_several_values(tmp_path):
    space = {"x": list(range(10))}
    result = afina.tune(objective=lambda x: (abs(x - 6), x), also="cost", space=space, sampler="grid", out=tmp_path)
    assert {choice.params["x"] for choice in result.front} == set(range(7))
    assert result.best == {"x": 6}
    assert "cost 6 (x 6)" in afina.jobs.tune.describe_search(result)
    assert set(rows(tmp_path)[0]) >= {"value", "cost", "seed"}


def test_one_database_has_several_studies_each_by_its_name(tmp_path):
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    given = {"storage": url, "sampler": "random", "trials": 2}
    afina.tune(objective=loss, space={"x": [1, 2]}, out=tmp_path / "a", **given)
    with pytest.raises(InputError, match=r"another search space(.|\n)*another name \(--study\)"):
        afina.tune(objective=loss, space={"x": [1, 2, 3]}, out=tmp_path / "b", **given)
    afina.tune(objective=loss, space={"x": [1, 2, 3]}, out=tmp_path / "b", study="wider", seed=5, **given)
    assert optuna.get_all_study_names(url) == ["loss", "wider"]
    assert [row["seed"] for row in rows(tmp_path / "b")] == ["5", "5"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing to tune"),
        ({"objective": len, "model": "builtin:mlp", "space": {"x": [1, 2]}}, "Both a function and a model"),
        ({"objective": len}, "needs a search space"),
        ({"objective": "mine.txt", "space": {"x": [1, 2]}}, "is not a function"),
        ({"objective": "absent.py:f", "space": {"x": [1, 2]}}, "There is no file absent.py"),
        ({"objective": len, "space": {"x": [1, 2]}, "trials": 0}, "--trials is 0"),
        ({"objective": len, "space": {"x": [1, 2]}, "grid_points": 3}, "--grid-points is for --sampler grid"),
        ({"objective": len, "space": {"x": [1, 2]}, "sampler": "tpee"}, "Did you mean tpe"),
        ({"objective": len, "space": {"x": [1, 2]}, "early_stopping": "medien"}, "Did you mean median"),
        ({"objective": len, "space": {"x": [1, 2]}, "fidelity": "image"}, "Did you mean images"),
        ({"objective": len, "space": {"x": [1, 2]}, "time": "soon"}, "--time"),
        ({"objective": len, "space": {"x": [1, 2]}, "size": "1MB"}, "Leave out --size"),
        ({"objective": len, "space": {"x": [1, 2]}, "epochs": 3, "input_size": 8}, "out --input-size and --epochs"),
        ({"objective": len, "space": {"x": [1, 2]}, "precision": "bf16-mixed"}, "Leave out --precision"),
        ({"objective": loss, "space": {"x": [1, 2]}, "early_stopping": "halving"}, "reports nothing"),
        ({"objective": loss, "space": {"x": [1, 2]}, "also": ["cost", "cost"]}, "names two of the values"),
        ({"objective": loss, "space": {"x": [1, 2]}, "storage": "mine.db"}, "Write sqlite:///mine.db"),
        ({"objective": loss, "space": {"x": [1, 2]}, "study": "second"}, "a run folder has one study"),
        ({"model": "builtin:mlp", "data": "digits", "maximize": True}, "for functions"),
        ({"model": "builtin:mlp", "data": "digits", "fidelity": "input-size"}, "cannot begin on smaller images"),
        ({"model": "builtin:mlp", "data": "digits", "also": "size", "sampler": "cmaes"}, "one objective only"),
        ({"model": "builtin:mlp", "data": "digits", "also": "size", "fidelity": "images"}, "gains nothing"),
        ({"model": "builtin:mlp", "data": "digits", "folds": 1}, "--folds is 1"),
        ({"model": "builtin:mlp", "data": "digits", "folds": 3, "fidelity": "images"}, "exclude each other"),
        ({"model": "builtin:mlp", "data": "digits", "folds": 3, "early_stopping": "median"}, "along their curves"),
        ({"model": "builtin:mlp", "data": "digits", "early_stopping": "wilcoxon"}, "Give --folds"),
        ({"model": "builtin:mlp", "data": "digits", "folds": 1000}, "cannot be divided into 1000 folds"),
        ({"objective": loss, "space": {"x": [1, 2]}, "folds": 3}, "Leave out --folds"),
        ({"model": "builtin:mlp", "data": "digits", "trial_gpus": 99}, "--trial-gpus is 99"),
        ({"model": "builtin:mlp", "data": "digits", "trial_gpus": 2, "workers": 2}, "exclude each other"),
        ({"model": "builtin:mlp", "data": "digits", "trial_gpus": 1.5}, "--trial-gpus is 1.5"),
        ({"model": "builtin:mlp", "data": "digits", "trial_gpus": 0.5}, "Add --ray local"),
        ({"objective": loss, "space": {"x": [1, 2]}, "trial_cpus": 2}, "Add --ray local"),
        ({"objective": loss, "space": {"x": [1, 2]}, "trial_gpus": float("inf")}, "--trial-gpus is inf"),
        ({"objective": loss, "space": {"x": [1, 2]}, "threads": 2}, "Leave out --threads"),
        ({"objective": loss, "space": {"x": [1, 2]}, "runtime": "openvino"}, "Leave out --runtime"),
        ({"objective": placed, "space": {"x": [1, 2]}}, "by its place only"),
        ({"model": "builtin:mlp", "data": "digits", "also": "weight"}, "no objective 'weight'"),
        ({"model": "builtin:mlp", "data": "digits", "also": "size", "early_stopping": "median"}, "several objectives"),
        ({"model": "builtin:mlp", "data": "digits", "space": {"learning_rat": [1, 2]}}, "Did you mean learning_rate"),
        ({"model": "builtin:mlp", "data": "digits", "space": {"model.widht": [8, 9]}}, "Did you mean width"),
        ({"model": "resnet18", "weights": "random", "data": "digits", "space": {"model.width": [1, 2]}}, "no argument"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_is_written(arguments, message, tmp_path):
    with pytest.raises(InputError, match=message):
        afina.tune(**arguments, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_options_in_the_same_folder_are_refused_and_nothing_is_lost(tuned):
    before = (tuned / "study.journal").read_bytes()
    with pytest.raises(InputError, match="begun with other options"):
        afina.tune("builtin:mlp", "digits", space=SPACE, trials=9, size="1MB", out=tuned)
    assert len(rows(tuned)) >= 3
    assert (tuned / "study.journal").read_bytes().startswith(before)


def test_of_two_trials_as_good_as_each_other_the_network_of_the_told_one_is_kept(tmp_path):
    # Nothing is learned, so that all are equally good.
    space = {"learning_rate": [1e-9, 1.1e-9, 1.2e-9], "epochs": 1, "model.width": 8}
    result = afina.tune("builtin:mlp", "digits", space=space, sampler="grid", out=tmp_path)
    assert len({row["value"] for row in rows(tmp_path)}) == 1
    assert result.best["learning_rate"] == 1e-9
    assert [path.name for path in (tmp_path / "work").glob("*.pt2")] == ["trial-0.pt2"]


def test_another_space_in_the_same_folder_is_refused_and_nothing_is_lost(tuned):
    before = rows(tuned)
    with pytest.raises(InputError, match="another search space"):
        afina.tune("builtin:mlp", "digits", space={**SPACE, "epochs": 3}, trials=9, out=tuned)
    assert rows(tuned) == before


def test_what_a_space_may_vary_of_a_training_is_an_option_of_it():
    assert {"learning_rate", "optimizer", "batch_size", "precision", "augment"} <= set(settings.TRAINING)


@pytest.mark.parametrize("name", ["none", "median", "halving", "hyperband"])
def test_every_rule_of_early_stopping_ends_what_is_hopeless_and_leaves_what_is_best(name):
    study = optuna.create_study(study_name="curves", direction="maximize", pruner=make_stopping(name, 16))

    def stopped_at(quality: float) -> int | None:
        trial = study.ask()
        for step in range(1, 17):
            trial.report(quality, step)
            if trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                return step
        study.tell(trial, quality)
        return None

    # Each better than those before it: none of these may go.
    assert [stopped_at(0.5 + number / 100) for number in range(12)] == [None] * 12
    hopeless = [stopped_at(0.1 - number / 1000) for number in range(12)]
    assert hopeless == [None] * 12 if name == "none" else any(step is not None and step < 16 for step in hopeless)


def test_two_workers_try_every_combination_of_a_grid_once(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import os, time\n\n\ndef loss(x, y):\n    time.sleep(0.05)\n"
        f"    open(r'{tmp_path}/pids', 'a').write(f'{{os.getpid()}} {{os.environ[\"OMP_NUM_THREADS\"]}}\\n')\n"
        "    return x + y\n"
    )
    space = {"x": [1, 2, 3, 4], "y": [1, 2, 3]}
    result = afina.tune(
        objective=f"{tmp_path}/mine.py:loss", space=space, sampler="grid", workers=2, out=tmp_path / "run"
    )
    done = [row for row in rows(tmp_path / "run") if row["state"] == "complete"]
    assert sorted((row["x"], row["y"]) for row in done) == sorted(
        (str(x), str(y)) for x in (1, 2, 3, 4) for y in (1, 2, 3)
    )
    assert result.value == 2
    assert {line.split()[1] for line in (tmp_path / "pids").read_text().splitlines()} == {
        str(max(1, available_cores() // 2))
    }


def test_a_worker_that_is_killed_is_replaced_and_no_finished_trial_is_lost(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import os, pathlib, signal\n\n\ndef loss(x):\n"
        f"    mark = pathlib.Path(r'{tmp_path}/killed')\n"
        "    if x > 0.5 and not mark.exists():\n        mark.touch()\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return x\n"
    )
    said = Said()
    result = afina.tune(
        objective=f"{tmp_path}/mine.py:loss", space={"x": {"type": "float", "low": 0, "high": 1}}, sampler="random",
        trials=12, workers=2, out=tmp_path / "run", progress=said,
    )  # fmt: skip
    assert result.trials["finished"] >= 12
    assert result.trials["failed"] == 0
    assert any("A worker died (exit code -9)" in line for line in said.lines)


# Two workers, each of which prints its process and then takes its time.
SLOW = """
import os, signal, sys, time
from afina.jobs.tuning.local_workers import work_together
from afina.progress import Progress

def work(given, number):
    print(os.getpid(), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    # What runs in the background of a shell is born deaf to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        work_together(2, work, {}, lambda: None, Progress())
    except KeyboardInterrupt:
        sys.exit("Stopped.")
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_workers_end_quietly_with_the_search_however_it_ends(how, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True, "text": True}
    with subprocess.Popen([sys.executable, tmp_path / "slow.py"], **pipes) as search:
        workers = [psutil.Process(int(search.stdout.readline())) for _ in range(2)]
        # A terminal sends Ctrl-C to workers as well.
        os.killpg(search.pid, how) if how == signal.SIGINT else search.send_signal(how)
        assert psutil.wait_procs(workers, timeout=20)[1] == []
        assert search.communicate()[1].split() == (["Stopped."] if how == signal.SIGINT else [])


def test_workers_that_fail_and_fail_end_the_search_with_the_last_traceback(tmp_path):
    (tmp_path / "mine.py").write_text("def loss(x):\n    raise RuntimeError('no camera')\n")
    space = {"x": {"type": "float", "low": 0, "high": 1}}
    with pytest.raises(SearchError, match="no camera"):
        afina.tune(objective=f"{tmp_path}/mine.py:loss", space=space, trials=30, workers=2, out=tmp_path / "run")


def test_a_function_that_cannot_be_sent_to_workers_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be given to other processes"):
        afina.tune(objective=lambda x: x, space={"x": [1, 2]}, trials=2, workers=2, out=tmp_path)


def test_workers_train_and_keep_the_best_network(tmp_path):
    result = afina.tune("builtin:mlp", "digits", space=SPACE, trials=2, workers=2, out=tmp_path)
    assert evaluate(Network.load(result.network), open_data("digits", seed=0)).value == pytest.approx(result.value)


def test_optimize_searches_before_it_compresses_and_resumes(tmp_path):
    arguments = {"size": "10MB", "tune": 2, "epochs": 1, "out": tmp_path / "run"}
    result = afina.optimize("builtin:mlp", "digits", **arguments)
    first = result.candidates[0]
    assert first.curve
    assert any("The best of 2 trainings had" in note for note in result.notes)
    told = max(float(row["value"]) for row in rows(tmp_path / "run" / "tune") if row["value"])
    assert first.measurements["quality"].value == pytest.approx(told, abs=0.005)
    assert afina.optimize("builtin:mlp", "digits", **arguments).winner == result.winner


@pytest.mark.parametrize(
    ("training", "message"),
    [({"learning_rat": 0.1}, "Did you mean learning_rate"), ("absent.yaml", "cannot be read")],
)
def test_optimize_refuses_what_is_no_training(training, message, tmp_path):
    with pytest.raises(InputError, match=message):
        afina.optimize("builtin:convnet", "digits", size="1MB", training=training, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_optimize_refuses_to_search_without_training(tmp_path):
    with pytest.raises(InputError, match="--tune 2 with --epochs 0"):
        afina.optimize("builtin:convnet", "digits", size="1MB", tune=2, epochs=0, out=tmp_path)


def test_quality_against_size_gives_every_network_that_no_other_beats_in_both(tmp_path):
    space = {"model.width": [8, 32], "model.depth": [1, 2], "epochs": 2, "learning_rate": 0.1}
    arguments = {"space": space, "sampler": "grid", "also": "size", "out": tmp_path}
    result = afina.tune("builtin:mlp", "digits", **arguments)
    values = [choice.values for choice in result.front]
    assert 1 <= len(values) < 4
    for mine in values:
        others = [other for other in values if other is not mine]
        assert all(other["accuracy"] < mine["accuracy"] or other["size"] > mine["size"] for other in others)
    for choice in result.front:
        network = Network.load(choice.network)
        assert evaluate(network, open_data("digits", seed=0)).value == pytest.approx(choice.values["accuracy"])
    assert len(list((tmp_path / "work").glob("*.pt2"))) == len(result.front)
    assert result.value == max(value["accuracy"] for value in values)
    assert all(float(row["size"]) > 0 for row in rows(tmp_path))
    assert "pareto" in (tmp_path / "report.html").read_text().lower()


def test_a_network_beyond_the_limit_on_size_is_not_trained_and_never_the_answer(tmp_path):
    space = {"model.width": [4, 128], "epochs": 1}
    said = Said()
    result = afina.tune("builtin:mlp", "digits", space=space, sampler="grid", size="50KB", out=tmp_path, progress=said)
    assert result.best["model.width"] == 4
    assert result.trials == {"finished": 1, "stopped": 0, "beyond": 1, "failed": 0, "running": 0}
    assert any("not trained: size" in line and "beyond the limit" in line for line in said.lines)


def test_after_a_few_trials_the_rest_is_estimated(tmp_path):
    said = Said()
    space = {"x": [1, 2, 3, 4, 5]}
    afina.tune(objective=lambda x: x, space=space, sampler="grid", out=tmp_path, progress=said)
    assert said.lines[0] == "The grid has 5 combinations."
    assert sum(line.startswith("At this pace the other 2 trials take") for line in said.lines) == 1


def test_optimize_trains_with_the_parameters_that_a_search_found(tuned, tmp_path):
    best = yaml.safe_load((tuned / "best.yaml").read_text())
    # Numbers as people write them.
    (tmp_path / "best.yaml").write_text((tuned / "best.yaml").read_text() + "weight_decay: 1e-4\n")
    result = afina.optimize("builtin:mlp", "digits", size="10MB", training=tmp_path / "best.yaml", out=tmp_path / "run")
    first = result.candidates[0]
    assert len(first.curve) == best["epochs"]
    network = Network.load(tuned / "network.pt2")
    assert first.measurements["parameters"].value == sum(p.numel() for p in network.module.parameters())


@pytest.mark.parametrize(
    ("fidelity", "model"), [("images", "mlp"), ("input-size", "convnet")], ids=["images", "input-size"]
)
def test_a_training_begins_cheaply_and_goes_on_from_its_weights_or_stops(fidelity, model, tmp_path):
    space = {**LAST_IS_HOPELESS, "epochs": 1}
    result = afina.tune(
        f"builtin:{model}", "digits", space=space, sampler="grid", fidelity=fidelity, early_stopping="halving",
        out=tmp_path,
    )  # fmt: skip
    assert [epoch.epoch for epoch in result.curve] == [1, 2, 3]
    assert [row["state"] for row in rows(tmp_path)][-1] == "pruned"
    quality = evaluate(Network.load(result.network), open_data("digits", seed=0)).value
    assert quality == pytest.approx(result.value)


def test_a_model_that_the_space_leaves_as_it_is_is_loaded_once_and_starts_anew_in_each_trial(tmp_path, monkeypatch):
    loads = []
    monkeypatch.setattr(training_trials, "load_for", lambda *a, **named: loads.append(named) or load_for(*a, **named))
    space = {"learning_rate": [0.1, 0.1000001], "epochs": 1, "model.width": 16, "model.depth": 1}
    result = afina.tune("builtin:mlp", "digits", space=space, sampler="grid", fidelity="images", out=tmp_path)
    assert result.trials["finished"] == 2
    assert len(loads) == 2, "the model as it is, and as the space has it"
    first, second = (
        trial.intermediate_values
        for trial in optuna.load_study(study_name="search", storage=open_storage(tmp_path)).trials
    )
    assert first == pytest.approx(second, abs=0.02)


def test_with_folds_a_trial_is_judged_by_each_part_of_the_training_images_and_stops_where_all_are_worse(tmp_path):
    space = {**LAST_IS_HOPELESS, "learning_rate": [0.1, 1e-6], "epochs": 2}
    said = Said()
    result = afina.tune(
        "builtin:mlp", "digits", space=space, sampler="grid", folds=4, out=tmp_path, progress=said
    )  # fmt: skip
    assert result.trials == {"finished": 1, "stopped": 1, "beyond": 0, "failed": 0, "running": 0}
    assert any("stopped after 3 folds" in line for line in said.lines)
    study = optuna.load_study(study_name="search", storage=open_storage(tmp_path))
    folds = study.best_trial.intermediate_values
    assert sorted(folds) == [1, 2, 3, 4]
    assert result.value == pytest.approx(sum(folds.values()) / 4)
    # The network is another: of all training images, and its curve is by the validation images.
    quality = evaluate(Network.load(result.network), open_data("digits", seed=0)).value
    assert quality == pytest.approx(max(epoch.quality for epoch in result.curve))


def test_what_matters_is_what_makes_the_first_of_several_objectives_good():
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=optuna.samplers.RandomSampler(seed=0))

    def values(trial):
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        # What is high is so by x; what is low is so by y.
        return (x if x > 0.8 else y - 1), y

    study.optimize(values, n_trials=150)
    found = importances(study)
    assert found["x"] > 0.8


def test_a_search_over_a_function_does_not_wait_for_torch(tmp_path):
    (tmp_path / "valley.py").write_text("def valley(x):\n    return (x - 0.25) ** 2\n")
    code = (
        "import sys, afina\n"
        "space = {'x': {'type': 'float', 'low': 0, 'high': 1}}\n"
        "afina.tune(objective='valley.py:valley', space=space, sampler='random', trials=2, out='run')\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
