"""What trials keep: their networks, as files in the run folder, and what the study notes of each."""

from pathlib import Path

from optuna.study import Study

from afina.search import best_trial, front
from afina.store.files import copy

# User attribute of a trial: the epochs of its training.
CURVE = "afina:curve"
# And what its network costs.
COSTS = "afina:costs"


def keep_best(study: Study, folder: Path, path: Path) -> bool:
    """Put the best trial's network at `path`, and remove those of `folder` that others are better than."""
    clear(study, folder)
    best = best_trial(study)
    if best is None or not network_file(folder, best.number).is_file():
        path.unlink(missing_ok=True)
        return False
    try:
        copy(network_file(folder, best.number), path)
    except FileNotFoundError:  # another process has a better one by now: it keeps that, and has removed this one
        return path.is_file()
    return True


def network_file(folder: Path, number: int) -> Path:
    """The file of the network of a trial."""
    return folder / f"trial-{number}.pt2"


def clear(study: Study, folder: Path) -> None:
    """Remove the networks of trials that ended and that others are better than."""
    # Those that ended first: another process may tell a better one at any moment.
    ended = [t.number for t in study.get_trials(deepcopy=False) if t.state.is_finished()]
    best_numbers = {t.number for t in front(study)}
    for number in ended:
        if number not in best_numbers:
            network_file(folder, number).unlink(missing_ok=True)
