"""The table of samplers: built-in ones and those of other packages keep one contract."""

import importlib
import sys

import optuna
import pytest

from afina.errors import InputError
from afina.search import SAMPLERS, check_sampler_name, make_sampler, make_space
from afina.testing import samplers as contract

SPACE = make_space({"x": {"type": "float", "low": 0, "high": 1}})


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("check", contract.SAMPLER_PROMISES, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_every_sampler_keeps_its_promises(check, name):
    check(name)


class OutOfBounds(optuna.samplers.RandomSampler):
    def sample_independent(self, study, trial, param_name, param_distribution):
        value = super().sample_independent(study, trial, param_name, param_distribution)
        return 5.0 if param_name == "x" else value


class ForgetsItsSeed(optuna.samplers.RandomSampler):
    def __init__(self):
        super().__init__(seed=None)


class StopsAtAFailure(optuna.samplers.RandomSampler):
    def after_trial(self, study, trial, state, values):
        if state == optuna.trial.TrialState.FAIL:
            raise RuntimeError("no value")


@pytest.mark.parametrize(
    ("factory", "error", "says"),
    [
        (lambda space, seed: OutOfBounds(seed), AssertionError, r"x is not within \[-1, 1\]"),
        (lambda space, seed: ForgetsItsSeed(), AssertionError, "same seed differ at trial 0"),
        (lambda space, seed: None, AssertionError, "returned NoneType"),
        (lambda space, seed: StopsAtAFailure(seed), RuntimeError, "no value"),
    ],
)
def test_the_contract_finds_a_sampler_that_breaks_a_promise(factory, error, says):
    with pytest.raises(error, match=says):
        contract.check_sampler(factory)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package `otherpackage` whose entry point `theirs` refers to `make` in this source."""

    def write(source: str) -> None:
        (tmp_path / "otherpackage.py").write_text(source)
        info = tmp_path / "otherpackage-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: otherpackage\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[afina.samplers]\ntheirs = otherpackage:make\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        importlib.invalidate_caches()
        SAMPLERS.refresh()

    yield write
    monkeypatch.undo()
    sys.modules.pop("otherpackage", None)
    SAMPLERS.refresh()


def test_a_sampler_of_another_package_is_found_and_keeps_the_contract(install):
    install("import optuna\ndef make(space, seed):\n    return optuna.samplers.RandomSampler(seed)\n")
    assert "theirs" in SAMPLERS
    assert isinstance(make_sampler("theirs", SPACE, seed=0), optuna.samplers.RandomSampler)
    contract.check_sampler("theirs")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import nothing_of_this_name", "cannot be imported"),
        ("make = 3", r"it is 3, not a function or class that takes \(space, seed\)"),
        ("def make(): pass", r"cannot be called with \(space, seed\)"),
        ("def make(space, seed): return 'random'", "it returns str, not an optuna.samplers.BaseSampler"),
        ("def make(space, seed): return 1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_broken_sampler_of_another_package_is_named_with_the_part_that_is_broken(install, source, says):
    install(source)
    with pytest.raises(InputError, match="'theirs' of the package otherpackage") as caught:
        check_sampler_name("theirs")
    assert "theirs = otherpackage:make" in str(caught.value)
    with pytest.raises(InputError, match=says):
        make_sampler("theirs", SPACE)
    assert isinstance(make_sampler("random", SPACE), optuna.samplers.RandomSampler)


REFUSES_TWO = """import optuna
def make(space, seed):
    if len(space.parameters) > 1:
        raise ValueError("one")
    return optuna.samplers.RandomSampler(seed)
"""


def test_a_sampler_that_refuses_a_space_is_an_error_that_names_it(install):
    install(REFUSES_TWO)
    wide = make_space({"x": [1, 2], "y": [1, 2]})
    with pytest.raises(InputError, match=r"otherpackage\.make raised ValueError: one"):
        make_sampler("theirs", wide)
