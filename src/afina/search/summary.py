"""The results of a study, as plain data and as a page of plots."""

import contextlib
import csv
import io
import warnings
from collections.abc import Callable, Iterator, Sequence

import optuna
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from afina.search.spaces import Space
from afina.search.studies import ERROR, SEED
from afina.search.tensor_train.history import LOST

# Fewer trials say nothing about which parameter matters.
_LEAST_TRIALS = 8


def best_trial(study: Study) -> FrozenTrial | None:
    """The best trial that ran to its end and keeps its limits: by the first of several objectives; None if none did."""
    if len(study.directions) > 1:
        sign = -1 if study.directions[0] == StudyDirection.MINIMIZE else 1
        return max(front(study), key=lambda trial: sign * trial.values[0], default=None)
    try:
        return study.best_trial
    except ValueError:
        return None


def front(study: Study) -> list[FrozenTrial]:
    """The trials that no other is better than in every objective, the best of the first objective first."""
    if len(study.directions) == 1:
        best = best_trial(study)
        return [] if best is None else [best]
    sign = -1 if study.directions[0] == StudyDirection.MINIMIZE else 1
    return sorted(study.best_trials, key=lambda trial: -sign * trial.values[0])


def importances(study: Study) -> dict[str, float]:
    """Share of each parameter in what makes trials good (PED-ANOVA, Watanabe et al. 2023), the largest first.

    Empty where the study has too few trials that ran to their end.
    """
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    varied = [name for name in done[0].params if len({str(t.params.get(name)) for t in done}) > 1] if done else []
    if len(done) < _LEAST_TRIALS or len(varied) < 2:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    try:
        with _quietly():
            return dict(optuna.importance.get_param_importances(study, evaluator=evaluator, target=_low(study)))
    except (ValueError, RuntimeError):
        return {}


def trials_csv(study: Study, space: Space, also: Sequence[str] = ()) -> str:
    """One row for each trial: its number, state, value, seconds, seed, parameters and, where it failed, why.

    Args:
        study: A study of `open_study`.
        space: What it searches.
        also: Names of the objectives after the first.
    """
    names = list(space.parameters)
    seed_column = [] if "seed" in names else ["seed"]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["trial", "state", "value", *also, "seconds", *seed_column, *names, "error"])
    for t in study.get_trials(deepcopy=False):
        params = space.complete(t.params) if t.state.is_finished() and _is_whole(t, space) else t.params
        seconds = f"{t.duration.total_seconds():.2f}" if t.duration is not None else ""
        error = t.user_attrs.get(ERROR, {}).get("message", "")
        values = [params.get(name, "") for name in names]
        state = "lost" if LOST in t.user_attrs else t.state.name.lower()
        reached = t.values if t.values is not None else [""] * len(study.directions)
        writer.writerow(
            [t.number, state, *reached, seconds, *(t.user_attrs.get(SEED, "") for _ in seed_column), *values, error]
        )
    return stream.getvalue()


def page(study: Study, title: str, metrics: Sequence[str]) -> str:
    """History, curves, slices and importances as one HTML page that needs no network.

    Args:
        study: A study of `open_study`.
        title: The page's title, as HTML.
        metrics: Names of the objectives; the plots are of the first, and of all where there are two or three.
    """
    metric, target = metrics[0], _target(study)
    plots = [
        optuna.visualization.plot_optimization_history(study, target=target, target_name=metric),
        optuna.visualization.plot_slice(study, target=target, target_name=metric),
    ]
    if len(metrics) in (2, 3):
        plots.insert(0, optuna.visualization.plot_pareto_front(study, target_names=list(metrics)))
    if any(t.intermediate_values for t in study.get_trials(deepcopy=False)):
        plots.insert(1, optuna.visualization.plot_intermediate_values(study))
    if importances(study):
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        with _quietly():
            plots.append(
                optuna.visualization.plot_param_importances(
                    study, evaluator=evaluator, target=_low(study), target_name=metric
                )
            )
    parts = [figure.to_html(full_html=False, include_plotlyjs=i == 0) for i, figure in enumerate(plots)]
    return f'<!doctype html>\n<meta charset="utf-8">\n<title>{title}</title>\n<h1>{title}</h1>\n' + "\n".join(parts)


def _target(study: Study) -> Callable[[FrozenTrial], float] | None:
    """The first objective, where there are several."""
    return None if len(study.directions) == 1 else lambda trial: trial.values[0]


def _low(study: Study) -> Callable[[FrozenTrial], float] | None:
    """The first objective of several with the sign that makes low values good, as PED-ANOVA expects."""
    target, sign = _target(study), 1 if study.directions[0] == StudyDirection.MINIMIZE else -1
    return None if target is None else lambda trial: sign * trial.values[0]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """PED-ANOVA warns of every target that low values of it count as good, which `_low` sees to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _is_whole(trial: FrozenTrial, space: Space) -> bool:
    """Whether the trial has every parameter that was active in it."""
    try:
        space.complete(trial.params)
    except KeyError:
        return False
    return True


def counts(study: Study) -> dict[str, int]:
    """How many trials ended in which way, or run in some process; those that were lost with theirs are not counted."""
    trials = [t for t in study.get_trials(deepcopy=False) if LOST not in t.user_attrs]
    states = [t.state for t in trials]
    over = [t.state for t in trials if t.state in (TrialState.PRUNED, TrialState.COMPLETE) and broken(t)]
    return {
        "finished": states.count(TrialState.COMPLETE) - over.count(TrialState.COMPLETE),
        "stopped": states.count(TrialState.PRUNED) - over.count(TrialState.PRUNED),
        "beyond": len(over),
        "failed": states.count(TrialState.FAIL),
        "running": states.count(TrialState.RUNNING),
    }


def broken(trial: FrozenTrial) -> list[str]:
    """Names of the limits that a trial does not keep."""
    return [name for name, over in trial.constraints.items() if over > 0]
