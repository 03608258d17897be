"""What a search says: trial by trial, and in the end."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import yaml
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from afina.jobs.tuning.costs import COSTS as UNITS
from afina.jobs.tuning.problem import WORK, TuningProblem
from afina.jobs.tuning.trial_networks import COSTS, CURVE, keep_best, network_file
from afina.progress import Progress
from afina.search import best_trial, broken, counts, front, importances, page, trials_csv
from afina.search.studies import ERROR
from afina.search.tensor_train.history import LOST, PARTS
from afina.store.files import write
from afina.types import Epoch, Measurement
from afina.units import format_measurement, format_time, format_value

_NETWORK = "network.pt2"
# Trials after which the rest is estimated.
_ESTIMATED_AFTER = 3
_ENDED = {
    "finished": "finished",
    "stopped": "stopped early",
    "beyond": "beyond a limit",
    "failed": "failed",
    "running": "still running elsewhere",
}


@dataclass(frozen=True)
class Choice:
    """A trial of the Pareto front: no other trial is better in every objective.

    Attributes:
        trial: The number of the trial.
        values: The value of each objective, by name.
        params: Values of the active parameters, fixed ones too.
        network: The file of the trial's network; None for a function.
    """

    trial: int
    values: Mapping[str, float]
    params: Mapping[str, Any]
    network: str | None


@dataclass(frozen=True)
class Tuned:
    """The result of `afina tune`.

    Attributes:
        best: Values of the active parameters of the best trial, fixed ones too; None where no trial ended well. With
            several objectives, the one that is best by the first.
        value: The first objective of the best trial; None where there is no best trial.
        metric: The name of that objective.
        trials: Trials of the study, by how they ended: `finished`, `stopped` early, `beyond` a limit, `failed`; and
            those that are still `running` in other processes.
        importances: Share of each parameter in what makes trials good; empty where there are few trials.
        network: File of the best trial's network; None for a function.
        curve: The training curve of the best trial's network; empty for a function.
        front: With several objectives, all trials that no other is better than in every one; else the best.
        out: The run folder.
        seconds: Time that this call took.
        shares: Names of the objectives that lie in 0..1 and are written in percent.
        test: The quality of the best network on the test images, which chose nothing; None where there are none.
    """

    best: Mapping[str, Any] | None
    value: float | None
    metric: str
    trials: Mapping[str, int]
    importances: Mapping[str, float]
    network: str | None
    curve: tuple[Epoch, ...]
    front: tuple[Choice, ...]
    out: str
    seconds: float
    shares: frozenset[str] = frozenset()
    test: Measurement | None = None


class TrialReporter:
    """Says each trial that ended, once, whichever process ran it; after a few trials also how long the rest takes.

    Args:
        study: The study.
        problem: The search problem, for names and units.
        total: Trials in all; None where it is not known.
        progress: What the user sees.
    """

    def __init__(self, study: Study, problem: TuningProblem, total: int | None, progress: Progress) -> None:
        self._study, self._problem, self._total, self._progress = study, problem, total, progress
        self._reported = {t.number for t in study.get_trials(deepcopy=False) if t.state.is_finished()}
        self._first, self._begun = len(self._reported), time.monotonic()

    def look(self) -> None:
        """Say each trial that has ended since the last look."""
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state.is_finished() and trial.number not in self._reported and LOST not in trial.user_attrs:
                self._reported.add(trial.number)
                self._progress.say(_trial_line(trial, best_trial(self._study), self._problem))
                self._estimate()

    def _estimate(self) -> None:
        done = len(self._reported) - self._first
        if self._total is not None and done == _ESTIMATED_AFTER and len(self._reported) < self._total:
            left = self._total - len(self._reported)
            seconds = (time.monotonic() - self._begun) / done * left
            self._progress.say(f"At this pace the other {left:,} trials take {format_time(seconds)}.")


def describe_search(tuned: Tuned) -> str:
    """The result as text."""
    ended = ", ".join(f"{count} {_ENDED[state]}" for state, count in tuned.trials.items() if count)
    lines = [f"{sum(tuned.trials.values())} trials: {ended or 'none was begun'}."]
    if tuned.best is None or tuned.value is None:
        return "\n".join([*lines, f"None ended with a value{' within the limits' if tuned.trials['beyond'] else ''}."])
    lines.append(
        f"Best {tuned.metric}: {format_value(tuned.value, tuned.metric, share=tuned.metric in tuned.shares)}, with"
    )
    for name, value in tuned.best.items():
        share = f"  (importance {tuned.importances[name]:.0%})" if name in tuned.importances else ""
        lines.append(f"  {name}: {_short(value)}{share}")
    if tuned.test is not None:
        lines.append(f"On {tuned.test.n:,} test images, which chose nothing: {format_measurement(tuned.test)}.")
    if len(tuned.front) > 1:
        lines.append(f"No trial is better in everything than one of these {len(tuned.front)}:")
        for choice in tuned.front:
            units = UNITS if choice.network else {}
            values = ", ".join(
                f"{name} {format_value(value, units.get(name, name), share=name in tuned.shares)}"
                for name, value in choice.values.items()
            )
            lines.append(f"  trial {choice.trial}: {values} ({choice.network or _params_text(choice.params)})")
    files = f"{tuned.out}/best.yaml, trials.csv, report.html" + (", network.pt2" if tuned.network else "")
    return "\n".join([*lines, f"Kept in {files}"])


def write_search(study: Study, problem: TuningProblem) -> None:
    """Write tables, report and the best network into the run folder; also where the search is interrupted."""
    folder, space = problem.folder, problem.space
    if problem.trains:
        keep_best(study, folder / WORK, folder / _NETWORK)
    best = best_trial(study)
    write(folder / "space.yaml", yaml.safe_dump(space.to_plain(), sort_keys=False).encode())
    write(folder / "trials.csv", trials_csv(study, space, problem.metrics[1:]).encode())
    if best is None:
        return
    write(folder / "best.yaml", yaml.safe_dump(dict(space.complete(best.params)), sort_keys=False).encode())
    write(folder / "report.html", page(study, escape(f"Search of {problem.name}"), problem.metrics).encode())


def results(study: Study, problem: TuningProblem, seconds: float) -> Tuned:
    """The result of a study, as far as it has got; `seconds` is what this call took."""
    best, file, space = best_trial(study), problem.folder / _NETWORK, problem.space
    trained = problem.trains and file.is_file()
    return Tuned(
        best=None if best is None else space.complete(best.params),
        value=None if best is None else best.values[0],
        metric=problem.metrics[0],
        trials=counts(study),
        importances=importances(study),
        network=str(file) if trained else None,
        curve=() if best is None else tuple(Epoch(**epoch) for epoch in best.user_attrs.get(CURVE, ())),
        front=tuple(_choice(trial, problem) for trial in front(study)),
        out=str(problem.folder),
        seconds=seconds,
        shares=problem.shares,
        test=problem.judge(file) if trained and problem.judge is not None else None,
    )


def _choice(trial: FrozenTrial, problem: TuningProblem) -> Choice:
    file: Path = network_file(problem.folder / WORK, trial.number)
    return Choice(
        trial.number,
        dict(zip(problem.metrics, trial.values, strict=True)),
        problem.space.complete(trial.params),
        str(file) if file.is_file() else None,
    )


def _format(problem: TuningProblem, name: str, value: float, unit: str) -> str:
    return format_value(value, unit, share=name in problem.shares)


def _trial_line(trial: FrozenTrial, best: FrozenTrial | None, problem: TuningProblem) -> str:
    """A trial in one line."""
    seconds = trial.duration.total_seconds() if trial.duration is not None else 0.0
    shown = _params_text(trial.params)
    metric, unit = problem.metrics[0], problem.units[0]
    if trial.state == TrialState.FAIL:
        ended = f"failed: {trial.user_attrs.get(ERROR, {}).get('message', 'no reason')}"
    elif trial.state == TrialState.PRUNED and problem.trains and (over := broken(trial)):
        costs = trial.user_attrs[COSTS]
        what = ", ".join(f"{name} {format_value(costs[name], UNITS[name])}" for name in over)
        ended = f"not trained: {what} is beyond the limit"
    elif trial.state == TrialState.PRUNED:
        parts = PARTS in trial.user_attrs
        steps = trial.intermediate_values if parts else trial.user_attrs.get(CURVE, trial.intermediate_values)
        ended = f"stopped after {len(steps)} {'folds' if parts else 'epochs' if problem.trains else 'steps'}"
    else:
        reached = zip(problem.metrics, trial.values, problem.units, strict=True)
        ended = ", ".join(f"{name} {_format(problem, name, value, unit)}" for name, value, unit in reached)
    if not problem.trains and (over := broken(trial)):
        ended += f", beyond the limit on {' and '.join(over)}"
    so_far = ""
    if best is not None:
        so_far = f" (best {metric} {_format(problem, metric, best.values[0], unit)}, trial {best.number})"
    return f"Trial {trial.number}: {ended}{so_far}, {seconds:.1f} s: {shown}"


def _params_text(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in params.items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
