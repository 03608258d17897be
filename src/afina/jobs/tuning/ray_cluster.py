"""Trials as tasks of a Ray cluster, each with its share of processors and GPUs.

The study stays with the process that began the search, which also suggests the parameters; a task gets them, runs the
trial, and asks through an actor of the cluster what only the study knows. So any cluster will do, with any storage: a
worker needs nothing but Afina. The data is put into the cluster's object store once.
"""

import asyncio
import logging
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import TrialState

from afina.capacity import available_cores
from afina.errors import AfinaError, InputError
from afina.jobs.options.tune import TuneOptions
from afina.jobs.tuning.problem import WORK, TuningProblem, problem_of
from afina.jobs.tuning.trial_networks import clear, network_file
from afina.progress import Progress
from afina.search.studies import Outcome, attempt, conclude, is_done, stop_if_hopeless, suggest
from afina.search.workers import Heartbeat, give_up, retry_lost

# A question's key, the number of a trial, a method and its arguments.
_Question = tuple[str, int, str, tuple[Any, ...], dict[str, Any]]
# What a task may ask of its trial.
_REMOTE_METHODS = ("report", "should_prune", "set_user_attr", "set_constraint")
_MOST_DEATHS = 3
_LOOK = 0.2
_LOST_AFTER = 30.0
# Seconds for a cluster to answer.
_PATIENCE = 5.0


@dataclass(frozen=True)
class Cluster:
    """Where trials run.

    Attributes:
        address: `auto` (the cluster that this machine is in), `local` (this machine alone, for this search), or the
            address of a cluster.
        most: Trials at once; None for as many as there are processors and GPUs for.
        cpus: Processors for each.
        gpus: GPUs for each; a part of one where several share it.
    """

    address: str
    most: int | None = None
    cpus: float = 1
    gpus: float = 0


def work_on_ray(
    cluster: Cluster,
    options: TuneOptions,
    study: Study,
    problem: TuningProblem,
    look: Callable[[], None],
    progress: Progress,
    failures: int,
) -> None:
    """Run trials on a cluster until the study has as many as `options` says.

    A trial whose process dies is run again. What has finished is kept, whatever happens.

    Args:
        cluster: The cluster, and the share of it that each trial gets.
        options: The options of `afina tune`.
        study: A study of `open_study`.
        problem: The search problem: the space, and what a trial runs.
        look: Called when trials may have ended.
        progress: Told of processes that died.
        failures: So many failed trials in a row end the search.

    Raises:
        InputError: Ray is not installed, there is no cluster, it is too small, or what is tuned cannot be sent.
        SearchError: too many trials failed in a row.
    """
    with _connected(cluster) as ray:
        room = _room(ray, cluster)
        most = min(cluster.most or room, room)
        progress.say(f"Up to {most} trials at once on Ray.")
        scheduler = _Scheduler(ray, cluster, options, study, problem, progress)
        with scheduler.heart:
            scheduler.run(most, look, failures)


class _Scheduler:
    """Starts trials on the cluster, answers their questions, and stores how they ended."""

    def __init__(
        self, ray: Any, cluster: Cluster, options: TuneOptions, study: Study, problem: TuningProblem, progress: Progress
    ) -> None:
        self._ray, self._options, self._study, self._problem, self._progress = ray, options, study, problem, progress
        self._queue = ray.remote(num_cpus=0)(_QuestionQueue).remote()
        self._task = ray.remote(num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_retries=0)(_run_trial)
        self._key, self._options_ref = (
            uuid.uuid4().hex,
            _put_options(ray, replace(options, space=problem.space, progress=None), progress),
        )
        self._running: dict[Any, optuna.Trial] = {}
        self._deaths, self.heart = 0, Heartbeat(study)

    def run(self, most: int, look: Callable[[], None], failures: int) -> None:
        """Run trials until there are enough of them or the time is over, and the last has ended."""
        begun, looked, waiting = time.monotonic(), 0.0, self._queue.take.remote()
        try:
            while True:
                if time.monotonic() - looked > _LOST_AFTER:
                    retry_lost(self._study)
                    looked = time.monotonic()
                more = self._options.seconds is None or time.monotonic() - begun < self._options.seconds
                while more and len(self._running) < most and not is_done(self._study, self._options.most_trials):
                    self._begin()
                if not self._running:
                    return
                ready, _ = self._ray.wait([waiting, *self._running], timeout=_LOOK)
                if waiting in ready:
                    self._answer(self._ray.get(waiting))
                    waiting = self._queue.take.remote()
                failed = [self._end(task) for task in ready if task in self._running]
                look()
                if any(failed):
                    stop_if_hopeless(self._study, failures)
        finally:
            for task, trial in self._running.items():
                self._ray.cancel(task, force=True)
                give_up(self._study, self._study._storage.get_trial(trial._trial_id))

    def _begin(self) -> None:
        trial = self._study.ask()
        self.heart.begin(trial)
        params = suggest(self._study, trial, self._problem.space)
        if params is None:
            self.heart.end(trial)
        else:
            task = self._task.remote(self._key, [self._options_ref], self._queue, trial.number, params)
            self._running[task] = trial

    def _answer(self, questions: list[_Question]) -> None:
        """Answer the questions of tasks about their trials; an error in a call is raised again in the task."""
        trials = {trial.number: trial for trial in self._running.values()}
        answers: dict[str, tuple[Any, Exception | None]] = {}
        for question, number, method, arguments, keywords in questions:
            trial = trials.get(number)
            assert method in _REMOTE_METHODS
            try:
                answers[question] = None if trial is None else getattr(trial, method)(*arguments, **keywords), None
            except Exception as error:
                answers[question] = None, error
        if answers:
            self._queue.answer.remote(answers)

    def _end(self, task: Any) -> bool:
        """Store how a trial ended, and its network; gives whether it failed."""
        trial = self._running.pop(task)
        self.heart.end(trial)
        try:
            outcome, network = self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:
            conclude(self._study, trial, Outcome(TrialState.FAIL, (), str(error.cause), str(error)))
            return True
        except self._ray.exceptions.RayError as error:
            self._died(trial, error)
            return False
        folder = self._problem.folder / WORK
        if network is not None:
            folder.mkdir(parents=True, exist_ok=True)
            network_file(folder, trial.number).write_bytes(network)
        conclude(self._study, trial, outcome)
        if network is not None:
            clear(self._study, folder)
        return bool(outcome.state == TrialState.FAIL)

    def _died(self, trial: optuna.Trial, error: Exception) -> None:
        give_up(self._study, self._study._storage.get_trial(trial._trial_id))
        self._deaths += 1
        why = str(error).strip().splitlines()[0]
        self._progress.say(f"The process of trial {trial.number} died; it is run again.")
        if self._deaths > _MOST_DEATHS:
            raise AfinaError(
                f"Processes died {self._deaths} times.",
                why=why,
                fix="Run fewer at once, if memory is short. What was finished is kept: the same command goes on.",
            )


class _QuestionQueue:
    """An actor where tasks leave questions about their trials, and wait for the answers."""

    def __init__(self) -> None:
        self._questions: list[_Question] = []
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self._new = asyncio.Event()

    async def ask(self, number: int, method: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Call a method of the trial of that number; gives its answer, and the error that it raised or None."""
        question = uuid.uuid4().hex
        self._waiting[question] = asyncio.get_running_loop().create_future()
        self._questions.append((question, number, method, arguments, keywords))
        self._new.set()
        return await self._waiting[question]

    async def take(self) -> list[_Question]:
        """All new questions, as soon as there is one."""
        await self._new.wait()
        self._new.clear()
        questions, self._questions = self._questions, []
        return questions

    async def answer(self, answers: dict[str, Any]) -> None:
        """Hand the answers to the tasks that wait for them."""
        for question, value in answers.items():
            self._waiting.pop(question).set_result(value)


class _RemoteTrial:
    """A trial whose study is in another process: see `training_trials.Reports`."""

    study = None

    def __init__(self, number: int, queue: Any) -> None:
        self.number, self._queue = number, queue

    def __getattr__(self, name: str) -> Any:
        if name not in _REMOTE_METHODS:
            raise AttributeError(f"On Ray a trial has no {name}, but {', '.join(_REMOTE_METHODS)} and its number.")

        def ask(*arguments: Any, **keywords: Any) -> Any:
            import ray

            answer, error = ray.get(self._queue.ask.remote(self.number, name, arguments, keywords))
            if error is not None:
                raise error
            return answer

        return ask


# Problems that this process has opened, with their folders, by the key of the search.
_PROBLEMS: dict[str, tuple[TuningProblem, tempfile.TemporaryDirectory[str]]] = {}


def _run_trial(
    key: str, boxed_options: list[Any], queue: Any, number: int, params: dict[str, Any]
) -> tuple[Outcome, bytes | None]:
    """Run one trial in a process of the cluster; gives how it ended, and the bytes of its network if it is kept.

    The reference to the options is in a list, since Ray would fetch a bare one before every call.
    """
    import ray
    import torch

    torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))
    if key not in _PROBLEMS:
        folder = tempfile.TemporaryDirectory()
        options: TuneOptions = replace(ray.get(boxed_options[0]), out=folder.name)
        _PROBLEMS[key] = problem_of(options, Progress()), folder
    problem, folder = _PROBLEMS[key]
    outcome = attempt(problem.objective, params, _RemoteTrial(number, queue), len(problem.directions))
    file = network_file(Path(folder.name) / WORK, number)
    network = file.read_bytes() if file.is_file() else None
    file.unlink(missing_ok=True)
    return outcome, network


def _put_options(ray: Any, options: TuneOptions, progress: Progress) -> Any:
    """Put the options that tasks need into the object store, with the images themselves; gives the reference."""
    data = None
    if options.data is not None:
        from afina.jobs.common.subject import load_for, open_images  # need torch

        data = open_images(_absolute(options.data), options)
        if options.model is not None:
            load_for(data, options.model, options, progress)  # reads the images for its input
    absolute = {name: _absolute(getattr(options, name)) for name in ("model", "weights", "objective", "task")}
    try:
        return ray.put(replace(options, data=data, **absolute))
    except (TypeError, AttributeError) as error:
        raise InputError(
            "What is tuned cannot be given to other processes.",
            why=str(error).splitlines()[0],
            fix="Name it as path/file.py:function (a builder or an objective).",
        ) from error


def _absolute(name: Any) -> Any:
    """The full path of a file or folder, since tasks run in another folder."""
    if not isinstance(name, (str, Path)):
        return name
    path, colon, function = str(name).rpartition(":") if ".py:" in str(name) else (str(name), "", "")
    return f"{Path(path).resolve()}{colon}{function}" if Path(path).exists() else name


def _room(ray: Any, cluster: Cluster) -> int:
    """How many trials the machines of the cluster have processors and GPUs for."""
    requested = {name: amount for name, amount in (("CPU", cluster.cpus), ("GPU", cluster.gpus)) if amount}
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(min(int(machine.get(name, 0) / amount) for name, amount in requested.items()) for machine in machines)
    if room < 1:
        most = {name: max((machine.get(name, 0) for machine in machines), default=0) for name in ("CPU", "GPU")}
        raise InputError(
            f"No machine of the cluster has {cluster.cpus:g} processors and {cluster.gpus:g} GPUs for a trial.",
            why=f"The most that one has is {most['CPU']:g} and {most['GPU']:g}.",
            fix="Ask for less: --trial-cpus, --trial-gpus.",
        )
    return room


@contextmanager
def _connected(cluster: Cluster) -> Iterator[Any]:
    """Ray, connected for the length of a `with` block."""
    try:
        import ray
    except ImportError as error:
        raise InputError("--ray needs Ray, which is not installed.", fix="pip install 'afina[ray]'") from error
    _check_address(cluster.address)
    if ray.is_initialized():
        yield ray
        return
    local_options: dict[str, Any] = (
        {"num_cpus": available_cores(), "include_dashboard": False} if cluster.address == "local" else {}
    )
    try:
        ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False, **local_options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_cluster(cluster.address, error) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raise `InputError` where nothing listens at the address: Ray itself would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> InputError:
    return InputError(
        f"There is no Ray cluster at {address}.",
        why=str(error).strip().splitlines()[0],
        fix="Start one (ray start --head), give its address, or use --ray local: this machine alone.",
    )
