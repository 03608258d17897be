"""What a study found, as plain data and as a page of plots."""

import csv
import io
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from afina.search.spaces import Space
from afina.search.studies import ERROR
from afina.search.tensor_train.history import LOST

# Fewer trials say nothing about which parameter matters.
_LEAST_TRIALS = 8


def best_trial(study: Study) -> FrozenTrial | None:
    """The best trial that ran to its end; None where there is none."""
    return study.best_trial if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) else None


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
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
    except (ValueError, RuntimeError):
        return {}


def trials_csv(study: Study, space: Space) -> str:
    """One row for each trial: its number, state, value, seconds, parameters and, where it failed, why."""
    names = list(space.parameters)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["trial", "state", "value", "seconds", *names, "error"])
    for t in study.get_trials(deepcopy=False):
        known = space.complete(t.params) if t.state.is_finished() and _is_whole(t, space) else t.params
        seconds = f"{t.duration.total_seconds():.2f}" if t.duration is not None else ""
        error = t.user_attrs.get(ERROR, {}).get("message", "")
        values = [known.get(name, "") for name in names]
        state = "lost" if LOST in t.user_attrs else t.state.name.lower()
        writer.writerow([t.number, state, "" if t.values is None else t.value, seconds, *values, error])
    return stream.getvalue()


def page(study: Study, title: str, metric: str) -> str:
    """History, curves, slices and importances as one HTML page that needs no network."""
    plots = [
        optuna.visualization.plot_optimization_history(study, target_name=metric),
        optuna.visualization.plot_slice(study, target_name=metric),
    ]
    if any(t.intermediate_values for t in study.get_trials(deepcopy=False)):
        plots.insert(1, optuna.visualization.plot_intermediate_values(study))
    if importances(study):
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        plots.append(optuna.visualization.plot_param_importances(study, evaluator=evaluator))
    parts = [figure.to_html(full_html=False, include_plotlyjs=i == 0) for i, figure in enumerate(plots)]
    return f'<!doctype html>\n<meta charset="utf-8">\n<title>{title}</title>\n<h1>{title}</h1>\n' + "\n".join(parts)


def _is_whole(trial: FrozenTrial, space: Space) -> bool:
    """Whether the trial has every parameter that was active in it."""
    try:
        space.complete(trial.params)
    except KeyError:
        return False
    return True


def counts(study: Study) -> dict[str, Any]:
    """How many trials ended in which way; those that were lost with their process are not counted."""
    states = [t.state for t in study.get_trials(deepcopy=False) if LOST not in t.user_attrs]
    return {
        "finished": states.count(TrialState.COMPLETE),
        "stopped": states.count(TrialState.PRUNED),
        "failed": states.count(TrialState.FAIL),
    }
