"""What every task promises, and what each one means by it."""

import math

import numpy as np
import pytest
import torch

from afina.errors import InputError
from afina.tasks import TASKS, Task, get_task
from afina.types import TaskSpec

N, OUTPUTS = 64, 3


def _task(name: str) -> Task:
    return get_task(TaskSpec(name, ("ant", "bee", "cow")))


def _targets(name: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if name == "classification":
        return torch.randint(OUTPUTS, (N,), generator=generator)
    return torch.randn(N, OUTPUTS, generator=generator) * 5 + 20


def _perfect(name: str) -> torch.Tensor:
    targets = _targets(name)
    return torch.nn.functional.one_hot(targets, OUTPUTS).float() * 50 if name == "classification" else targets


def _noise(seed: int = 0) -> torch.Tensor:
    return torch.randn(N, OUTPUTS, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", TASKS)
class TestEveryTask:
    def test_perfect_outputs_have_the_best_score_and_a_loss_near_zero(self, name: str) -> None:
        task, outputs, targets = _task(name), _perfect(name), _targets(name)
        scores = task.scores(outputs.numpy(), targets.numpy())
        assert scores.shape == (N,)
        assert scores.mean() == pytest.approx(1.0 if task.metric.higher_is_better else 0.0)
        assert task.loss(outputs, targets).item() == pytest.approx(0, abs=1e-6)

    def test_worse_outputs_score_worse_and_cost_more(self, name: str) -> None:
        task, targets = _task(name), _targets(name)
        good, bad = _perfect(name), _noise()
        loss_of_bad = task.loss(bad, targets)
        assert loss_of_bad.ndim == 0
        assert loss_of_bad > task.loss(good, targets)
        quality = [task.scores(o.numpy(), targets.numpy()).mean() for o in (good, bad)]
        assert task.metric.lost(*quality) > 0
        assert task.metric.lost(*reversed(quality)) < 0

    def test_descending_the_loss_improves_the_metric(self, name: str) -> None:
        task, targets = _task(name), _targets(name)
        outputs = _noise().requires_grad_()
        before = task.scores(outputs.detach().numpy(), targets.numpy()).mean()
        for _ in range(50):
            (gradient,) = torch.autograd.grad(task.loss(outputs, targets, label_smoothing=0.1), outputs)
            outputs = (outputs - 20 * gradient).detach().requires_grad_()
        assert task.metric.lost(before, task.scores(outputs.detach().numpy(), targets.numpy()).mean()) < 0

    def test_a_network_agrees_fully_with_itself_and_less_with_another(self, name: str) -> None:
        task, mine, other = _task(name), _noise(0).numpy(), _noise(1).numpy()
        assert task.agreement.higher_is_better == task.metric.higher_is_better
        best = 1.0 if task.agreement.higher_is_better else 0.0
        assert task.agreements(mine, mine).shape == (N,)
        assert task.agreements(mine, mine).mean() == best
        assert abs(task.agreements(mine, other).mean() - best) > 0.1

    def test_distillation_is_zero_between_equals_and_pulls_the_student_to_the_teacher(self, name: str) -> None:
        task, teacher, student = _task(name), _noise(0), _noise(1).requires_grad_()
        assert task.distillation(teacher, teacher).item() == pytest.approx(0, abs=1e-6)
        loss = task.distillation(student, teacher)
        (gradient,) = torch.autograd.grad(loss, student)
        assert task.distillation(student - gradient, teacher) < loss

    def test_outputs_that_are_not_finite_never_count_as_good(self, name: str) -> None:
        task, targets = _task(name), _targets(name).numpy()
        broken = np.full((N, OUTPUTS), np.nan, dtype=np.float32)
        worst = 0.0 if task.metric.higher_is_better else math.inf
        assert (task.scores(broken, targets) == worst).all()
        assert (task.agreements(broken, broken) == worst).all()

    def test_there_is_a_prediction_for_each_image_and_a_bias_for_each_output(self, name: str) -> None:
        task = _task(name)
        assert len(task.predictions(_noise().numpy())) == N
        bias = task.initial_bias(_targets(name))
        assert bias.shape == (OUTPUTS,)
        assert bias.dtype == torch.float32


def test_classification_predicts_class_names_and_starts_without_bias() -> None:
    task = _task("classification")
    assert task.predictions(np.array([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])) == ["bee", "ant"]
    assert task.initial_bias(_targets("classification")).eq(0).all()


def test_distillation_of_classes_is_the_divergence_of_softened_probabilities_times_the_square() -> None:
    student, teacher = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[0.0, 2.0, 1.0]])
    p, q = torch.softmax(teacher / 2, 1), torch.softmax(student / 2, 1)
    expected = (p * (p / q).log()).sum() * 4
    torch.testing.assert_close(_task("classification").distillation(student, teacher, temperature=2.0), expected)


def test_regression_predicts_numbers_and_starts_from_the_mean_target() -> None:
    task = get_task(TaskSpec("regression", ("target",)))
    targets = torch.tensor([[10.0], [20.0]])
    assert task.predictions(np.array([[1.5], [2.5]])) == [1.5, 2.5]
    assert task.initial_bias(targets).tolist() == [15.0]
    assert task.scores(np.array([[12.0], [20.0]]), targets.numpy()).tolist() == [2.0, 0.0]


def test_a_mistyped_task_gets_did_you_mean() -> None:
    with pytest.raises(InputError, match="Did you mean classification"):
        get_task(TaskSpec("clasification", ("a", "b")))
