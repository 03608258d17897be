"""An option is declared once: Python, the command line, recipes and resume commands say the same of it."""

import importlib
import inspect
import pkgutil
import shlex
import subprocess
import sys
from itertools import pairwise

import pytest
from typer.testing import CliRunner

import afina
import afina.jobs.options
from afina.cli import app
from afina.errors import InputError
from afina.jobs.common.recipe import STEPS, read_recipe, recipe_text
from afina.jobs.options.declaration import MISSING, command_line, declared, plain, recipe_keys, step_of
from afina.jobs.options.optimize import OptimizeOptions
from afina.jobs.options.quantize import QuantizeOptions
from afina.jobs.options.tune import TuneOptions

MODULES = [module.name for module in pkgutil.iter_modules(afina.jobs.options.__path__)]
COMMANDS = [name for name in MODULES if name not in ("declaration", "shared", "targets")]


def options_of(command: str) -> type:
    module = importlib.import_module(f"afina.jobs.options.{command}")
    return next(kind for name, kind in vars(module).items() if name.lower() == f"{command}options")


@pytest.mark.parametrize("command", COMMANDS)
def test_python_and_the_command_line_have_the_same_options_with_the_same_defaults(command):
    options = options_of(command)
    parameters = inspect.signature(getattr(afina, command)).parameters
    assert [each.name for each in declared(options)] == list(parameters)
    flags = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "400"}).stdout
    for each in declared(options):
        default = parameters[each.name].default
        assert default == (inspect.Parameter.empty if each.default is MISSING else each.default)
        assert (each.flag in flags) != each.option.python_only, each.name


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_in_the_documentation_of_the_function(command):
    text = getattr(afina, command).__doc__
    for each in declared(options_of(command)):
        assert f"{each.name}: {each.option.help}" in text


def test_help_is_read_without_the_libraries_that_compute():
    code = "import afina.cli, sys; print(*{'torch', 'scipy', 'optuna', 'onnxruntime', 'sklearn'} & set(sys.modules))"
    assert not subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_the_command_that_resumes_says_every_option_that_was_given_quoted_for_a_shell():
    asked = OptimizeOptions(
        "my net.py:build", "my photos/a", size="3 MB", max_drop=0.01, input_size=(24, 32), keep_fp32=("head", "a*"),
        thorough=True, out="runs/x y", weights="w.pth", finetune=3,
    )  # fmt: skip
    words = shlex.split(command_line("optimize", asked))
    assert words[:3] == ["afina", "optimize", "my net.py:build"]
    for pair in (
        ("--data", "my photos/a"), ("--size", "3 MB"), ("--max-drop", "0.01"), ("--input-size", "24x32"),
        ("--keep-fp32", "head"), ("--keep-fp32", "a*"), ("--out", "runs/x y"), ("--weights", "w.pth"),
        ("--finetune", "3"),
    ):  # fmt: skip
        assert pair in pairwise(words), pair
    assert "--thorough" in words
    assert "--epochs" not in words


def test_an_object_that_only_python_has_gives_no_command_that_cannot_run():
    assert command_line("optimize", OptimizeOptions(object(), "digits")).startswith("# from Python")


@pytest.mark.parametrize("technique", STEPS)
def test_a_step_of_a_recipe_is_the_command_and_can_be_read_again(technique):
    keys = recipe_keys(STEPS[technique])
    assert not {"model", "data", "weights", "input_size", "seed", "runtime", "progress", "example"} & set(keys)
    numbers = {"epochs": 3, "finetune": 2, "qat": 1}
    config = {name: value for name, value in numbers.items() if name in keys}
    (step,) = read_recipe([{technique: config}])
    assert step.config == config
    (again,) = read_recipe({"steps": [{step.technique: step.config}]})
    assert again == step
    assert technique in recipe_text([step])


def test_a_step_holds_what_differs_from_the_defaults_and_nothing_of_the_surroundings():
    asked = QuantizeOptions("net.pt2", "digits", weight_type="int4", runtime="openvino", seed=3, skip=("stem",))
    assert step_of("quantize", asked).config == {"weight_type": "int4", "skip": ["stem"]}
    assert plain(asked)["runtime"] == "openvino"


OLD = {
    "activations": (["--activations", "int8"], "--activation-type int8"),
    "checkpoint": (["--checkpoint", "w.pth"], "--weights w.pth"),
    "number type as weights": (["--weights", "int4"], "--weight-type int4"),
}


@pytest.mark.parametrize(("arguments", "now"), OLD.values(), ids=OLD)
def test_an_old_spelling_names_the_new_one_and_nothing_is_written(arguments, now, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["quantize", "builtin:convnet", "--data", "digits", *arguments])
    assert result.exit_code == 2
    assert now in result.stderr
    assert not list(tmp_path.iterdir())


def test_an_old_spelling_in_python_or_in_a_recipe_names_the_new_one():
    with pytest.raises(InputError, match="weights instead"):
        afina.quantize("builtin:convnet", "digits", checkpoint="w.pth")
    with pytest.raises(InputError, match="weight_type instead"):
        read_recipe([{"quantize": {"weights": "int4"}}])


def test_a_name_that_is_no_option_is_refused_with_the_nearest():
    with pytest.raises(TypeError, match="Did you mean parameters"):
        afina.prune("builtin:convnet", "digits", parameter="50%")
    result = CliRunner().invoke(app, ["prune", "builtin:convnet", "--parameter", "50%"])
    assert result.exit_code == 2


WRONG = {
    "no choice": ({"criterion": "fitt", "macs": "50%"}, "--criterion 'fitt' is not known"),
    "too small": ({"images": 0, "macs": "50%"}, "--images is 0"),
    "no target": ({}, "No target was given"),
    "two targets": ({"macs": "50%", "size": "1MB"}, "More than one target was given: macs, size"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_a_value_that_is_not_allowed_names_the_option_before_anything_is_opened(options, message):
    with pytest.raises(InputError, match=message):
        afina.prune("no such model", "digits", **options)


def test_what_trials_need_follows_from_the_options_of_a_search():
    assert TuneOptions("net", "digits").most_trials == 50
    assert TuneOptions("net", "digits", time="1h").most_trials is None
    assert TuneOptions("net", "digits", time="1h").seconds == 3600
    assert TuneOptions("net", "digits", sampler="grid").most_trials is None
    assert TuneOptions("net", "digits", also="size", size="5KB").limits == {"size": 5000.0}
