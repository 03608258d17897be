"""`TensorTrainSampler` in Optuna studies: how good it is, and what it promises beyond the contract of samplers."""

import pickle
import subprocess
import sys
import threading

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)
from optuna.trial import TrialState, create_trial

from afina.search import TensorTrainSampler
from afina.search.tensor_train import propose
from afina.search.tensor_train.rotated_candidates import rotated_candidates

SPACE = {
    "x": FloatDistribution(0.0, 1.0),
    "rate": FloatDistribution(1e-4, 1.0, log=True),
    "layers": IntDistribution(1, 6),
    "kind": CategoricalDistribution(["a", "b", "c"]),
}


def bowl(params: dict) -> float:
    """Least, at 0, at x = 0.3, rate = 0.01, layers = 4 and kind b."""
    far = (params["x"] - 0.3) ** 2 + (np.log10(params["rate"]) + 2) ** 2 / 8
    return far + 0.05 * (params["layers"] - 4) ** 2 + 0.3 * (params["kind"] != "b")


def ask_and_tell(study: optuna.Study, function, trials: int, space=None) -> list[dict]:
    asked = []
    for _ in range(trials):
        trial = study.ask(space or SPACE)
        asked.append(trial.params)
        study.tell(trial, function(trial.params))
    return asked


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(sampler=TensorTrainSampler(seed=0))


class TestContract(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    """Optuna's own promises of a sampler."""

    @pytest.fixture
    def sampler(self):
        return lambda: TensorTrainSampler(seed=0, startup=4)


def test_it_finds_the_minimum_of_a_mixed_space(study):
    ask_and_tell(study, bowl, 36)
    assert study.best_value < 0.01
    assert study.best_params["kind"] == "b"
    assert study.best_params["layers"] == 4


def test_other_seeds_give_other_suggestions():
    first, other = (
        ask_and_tell(optuna.create_study(sampler=TensorTrainSampler(seed=seed)), bowl, 2) for seed in (3, 4)
    )
    assert first != other


def test_it_maximises():
    study = optuna.create_study(direction="maximize", sampler=TensorTrainSampler(seed=0))
    ask_and_tell(study, lambda p: -bowl(p), 28)
    assert study.best_value > -0.05


def test_a_grid_is_never_tried_twice_while_something_is_left(study):
    space = {"a": IntDistribution(0, 3), "b": CategoricalDistribution(["u", "v", "w"])}
    asked = ask_and_tell(study, lambda p: p["a"] + (p["b"] == "u"), 12, space)
    later = [tuple(p.values()) for p in asked[6:]]
    assert len(set(later)) == len(later)
    ask_and_tell(study, lambda p: p["a"], 12, space)


def test_failed_and_diverged_trials_are_survived_and_avoided(study):
    def objective(trial: optuna.Trial) -> float:
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        if x > 0.5:
            return [float("nan"), float("inf"), 1e300][trial.number % 3]
        return (x - 0.4) ** 2 + (y - 0.7) ** 2

    study.optimize(objective, n_trials=26)
    assert study.best_value < 0.005
    late = [t.params["x"] for t in study.trials[-10:]]
    assert np.mean(np.array(late) > 0.5) < 0.4


def test_all_trials_may_fail(study):
    study.optimize(lambda t: float("nan") * t.suggest_float("x", 0, 1), n_trials=9)
    assert all(t.state == TrialState.FAIL for t in study.trials)
    assert len({t.params["x"] for t in study.trials}) == 9


def test_trials_stopped_early_count(study):
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        trial.report(abs(x - 0.2) + 1, step=0)
        if x > 0.6:
            raise optuna.TrialPruned
        return abs(x - 0.2)

    study.optimize(objective, n_trials=16)
    assert study.best_value < 0.03


def test_conditional_parameters_are_chosen_with_what_they_depend_on(study):
    def objective(trial: optuna.Trial) -> float:
        if trial.suggest_categorical("optimizer", ["sgd", "adam"]) == "sgd":
            return (trial.suggest_float("momentum", 0, 1) - 0.9) ** 2 + (trial.suggest_float("rate", 0, 1) - 0.3) ** 2
        return 0.3 + (trial.suggest_float("beta", 0, 1) - 0.5) ** 2 + (trial.suggest_float("rate", 0, 1) - 0.3) ** 2

    study.optimize(objective, n_trials=32)
    assert study.best_value < 0.01
    assert sum(t.params["optimizer"] == "sgd" for t in study.trials[-10:]) >= 6


def test_constraints_are_held():
    study = optuna.create_study(sampler=TensorTrainSampler(seed=0))

    def objective(trial: optuna.Trial) -> float:
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        trial.set_constraint("sum", 0.8 - x - y)
        trial.set_constraint("x", x - 0.6)
        return x + 2 * y

    study.optimize(objective, n_trials=25)
    assert study.best_value == pytest.approx(1.0, abs=0.05)


def test_no_trial_is_feasible_at_first():
    study = optuna.create_study(sampler=TensorTrainSampler(seed=1))

    def objective(trial: optuna.Trial) -> float:
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        trial.set_constraint("corner", 1.9 - x - y)
        return x

    study.optimize(objective, n_trials=25)
    assert any(t.constraints["corner"] <= 0 for t in study.trials)


def test_several_objectives_spread_along_the_front():
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=TensorTrainSampler(seed=0))

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        return x**2 + (y - 0.5) ** 2, -((x - 1) ** 2) - (y - 0.5) ** 2

    study.optimize(objective, n_trials=28)
    front = np.array(sorted(t.params["x"] for t in study.best_trials))
    assert len(front) >= 8
    assert front[0] < 0.2
    assert front[-1] > 0.8


def test_running_trials_are_not_suggested_again(study):
    ask_and_tell(study, bowl, 14)
    running = [study.ask(SPACE).params for _ in range(6)]
    points = np.array([[p["x"], np.log10(p["rate"]), p["layers"], len(p["kind"]) + ord(p["kind"])] for p in running])
    gaps = np.abs(points[:, None] - points[None]).sum(axis=2) + np.eye(6)
    assert gaps.min() > 1e-5


def test_many_workers_that_begin_at_once_never_get_the_same_point(study):
    space = {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}
    points = {tuple(study.ask(space).params.values()) for _ in range(20)}
    assert len(points) == 20


@pytest.mark.parametrize("seed", range(3))
def test_workers_that_begin_at_once_share_out_a_small_space(seed):
    study = optuna.create_study(sampler=TensorTrainSampler(seed))
    space = {"a": IntDistribution(0, 2), "c": CategoricalDistribution(["p", "q", "r"])}
    points = {tuple(study.ask(space).params.values()) for _ in range(9)}
    assert len(points) == 9
    study.ask(space)  # nothing is left, and still there is an answer


def test_threads_share_a_sampler(study):
    study.optimize(lambda t: bowl({n: t._suggest(n, d) for n, d in SPACE.items()}), n_trials=24, n_jobs=3)
    assert len(study.trials) == 24
    assert study.best_value < 0.1


def test_a_space_may_grow_and_change(study):
    ask_and_tell(study, lambda p: p["x"], 8, {"x": FloatDistribution(0, 1)})
    wider = {"x": FloatDistribution(0, 2), "y": FloatDistribution(0, 1)}
    ask_and_tell(study, lambda p: (p["x"] - 1.5) ** 2 + p["y"], 20, wider)
    assert min(t.value for t in study.trials[8:]) < 0.3


def test_one_sampler_serves_several_studies_and_survives_a_pickle():
    sampler = TensorTrainSampler(seed=0)
    for trials in (10, 10):
        ask_and_tell(optuna.create_study(sampler=sampler), bowl, trials)
    copy = pickle.loads(pickle.dumps(sampler))
    ask_and_tell(optuna.create_study(sampler=copy), bowl, 12)


def test_threads_may_ask_at_once(study):
    ask_and_tell(study, bowl, 12)
    asked: list[dict] = []
    threads = [threading.Thread(target=lambda: asked.append(study.ask(SPACE).params)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tuple(p.values()) for p in asked}) == 4


def askew(params: dict) -> float:
    """Valleys along slanted lines, with two other parameters that have no part in them; 0 at the least."""
    long, short = params["x"] * 0.8 + params["y"] * 0.6 - 0.7, params["y"] * 0.8 - params["x"] * 0.6 - 0.05
    waves = sum(z**2 + 0.15 * (1 - np.cos(25 * z)) for z in (long, short))
    return waves + 0.02 * (params["layers"] - 4) ** 2 + 0.3 * (params["kind"] != "b")


@pytest.mark.parametrize("steps", [None, 0.02])
def test_a_study_that_is_stuck_goes_on_along_slanted_axes(steps, study, monkeypatch):
    turned = []
    monkeypatch.setattr(propose, "rotated_candidates", lambda *a: turned.append(rotated_candidates(*a)) or turned[-1])
    space = {name: FloatDistribution(0.0, 1.0, step=steps) for name in ("x", "y")}
    space |= {name: SPACE[name] for name in ("layers", "kind")}
    corner = np.random.default_rng(0).integers(0, 15, (70, 2)) * 0.02
    for x, y in corner.tolist():
        params = {"x": x, "y": y, "layers": 4, "kind": "b"}
        study.add_trial(create_trial(params=params, distributions=space, value=askew(params)))
    stuck = study.best_value
    ask_and_tell(study, askew, 20, space)
    assert turned
    assert study.best_value < stuck / 2


def test_it_needs_no_torch():
    code = "import sys, afina.search; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_startup_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        TensorTrainSampler(startup=0)
