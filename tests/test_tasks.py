"""What every task promises, and what each one means by it."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score

from afina.errors import InputError
from afina.tasks import TASKS, Task, drop_with_error, get_task, value_with_error
from afina.tasks.multilabel import average_precision
from afina.types import TaskSpec

N, LABELS = 64, 3
LABELLED = ("classification", "regression", "multilabel")


def _task(name: str) -> Task:
    return get_task(TaskSpec(name, ("ant", "bee", "cow")))


def _targets(name: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if name == "classification":
        return torch.randint(LABELS, (N,), generator=generator)
    numbers = torch.randn(N, LABELS, generator=generator)
    return (numbers > 0).float() if name == "multilabel" else numbers * 5 + 20


def _perfect(name: str) -> dict[str, torch.Tensor]:
    targets = _targets(name)
    if name == "classification":
        targets = torch.nn.functional.one_hot(targets, LABELS).float() * 50
    return {"outputs": targets * 100 - 50 if name == "multilabel" else targets}


def _noise(seed: int = 0) -> dict[str, torch.Tensor]:
    return {"outputs": torch.randn(N, LABELS, generator=torch.Generator().manual_seed(seed))}


def _arrays(outputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in outputs.items()}


def _quality(task: Task, outputs: dict[str, torch.Tensor], targets: torch.Tensor) -> float:
    return task.value(task.evidence(task.decode(_arrays(outputs)), targets.numpy()))


def _agreement(task: Task, outputs: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> float:
    return task.agreement_value(task.agreement_evidence(_arrays(outputs), _arrays(reference)))


@pytest.mark.parametrize("name", LABELLED)
class TestEveryTask:
    def test_perfect_outputs_have_the_best_quality_and_a_loss_near_zero(self, name: str) -> None:
        task, outputs, targets = _task(name), _perfect(name), _targets(name)
        assert _quality(task, outputs, targets) == pytest.approx(1.0 if task.metric.higher_is_better else 0.0)
        assert task.loss(outputs, targets).item() == pytest.approx(0, abs=1e-6)

    def test_worse_outputs_are_judged_worse_and_cost_more(self, name: str) -> None:
        task, targets = _task(name), _targets(name)
        good, bad = _perfect(name), _noise()
        assert task.loss(bad, targets) > task.loss(good, targets)
        quality = [_quality(task, outputs, targets) for outputs in (good, bad)]
        assert task.metric.lost(*quality) > 0
        assert task.metric.lost(*reversed(quality)) < 0

    def test_descending_the_loss_improves_the_metric(self, name: str) -> None:
        task, targets = _task(name), _targets(name)
        outputs = _noise()["outputs"].requires_grad_()
        before = _quality(task, {"outputs": outputs}, targets)
        for _ in range(50):
            (gradient,) = torch.autograd.grad(task.loss({"outputs": outputs}, targets, label_smoothing=0.1), outputs)
            outputs = (outputs - 20 * gradient).detach().requires_grad_()
        assert task.metric.lost(before, _quality(task, {"outputs": outputs}, targets)) < 0

    def test_a_network_agrees_fully_with_itself_and_less_with_another(self, name: str) -> None:
        task = _task(name)
        assert task.agreement.higher_is_better == task.metric.higher_is_better
        best = 1.0 if task.agreement.higher_is_better else 0.0
        assert _agreement(task, _noise(0), _noise(0)) == best
        assert abs(_agreement(task, _noise(0), _noise(1)) - best) > 0.1

    def test_distance_is_zero_between_equals_and_pulls_the_student_to_the_teacher(self, name: str) -> None:
        task, teacher, student = _task(name), _noise(0), _noise(1)["outputs"].requires_grad_()
        assert task.distance(teacher, teacher).item() == pytest.approx(0, abs=1e-6)
        loss = task.distance({"outputs": student}, teacher)
        (gradient,) = torch.autograd.grad(loss, student)
        assert task.distance({"outputs": student - gradient}, teacher) < loss

    def test_outputs_that_are_not_finite_never_count_as_good(self, name: str) -> None:
        task, targets = _task(name), _targets(name)
        broken = {"outputs": torch.full((N, LABELS), torch.nan)}
        for judged in (_quality(task, broken, targets), _agreement(task, broken, broken)):
            assert task.metric.lost(_quality(task, _noise(), targets), judged) >= 0 or judged <= 0.6

    def test_there_is_a_prediction_for_each_image_and_a_bias_for_each_label(self, name: str) -> None:
        task = _task(name)
        assert len(task.plain(task.decode(_arrays(_noise())))) == N
        bias = task.initial_bias(_targets(name))
        assert bias is not None
        assert bias.shape == (LABELS,)
        assert bias.dtype == torch.float32

    def test_outputs_of_another_form_are_refused_with_what_was_expected_and_what_came(self, name: str) -> None:
        task = _task(name)
        task.check_outputs({"outputs": (2, LABELS)})
        for shapes in ({"maps": (2, 3, 8, 8)}, {"a": (2, 3), "b": (2, 3)}, {"outputs": (2, 7)}):
            with pytest.raises(InputError, match=rf"(?s){name} needs one output \[N, 3\].*{next(iter(shapes))} \[N, "):
                task.check_outputs(shapes)


def test_classification_predicts_class_names_and_starts_without_bias() -> None:
    task = _task("classification")
    outputs = {"outputs": np.array([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0], [np.nan, 0.0, 0.0]])}
    assert task.plain(task.decode(outputs)) == ["bee", "ant", None]
    assert task.initial_bias(_targets("classification")).eq(0).all()


def test_distillation_of_classes_is_the_divergence_of_softened_probabilities_times_the_square() -> None:
    student, teacher = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[0.0, 2.0, 1.0]])
    p, q = torch.softmax(teacher / 2, 1), torch.softmax(student / 2, 1)
    expected = (p * (p / q).log()).sum() * 4
    distance = _task("classification").distance({"outputs": student}, {"outputs": teacher}, temperature=2.0)
    torch.testing.assert_close(distance, expected)


def test_regression_predicts_numbers_and_starts_from_the_mean_target() -> None:
    task = get_task(TaskSpec("regression", ("target",)))
    targets = torch.tensor([[10.0], [20.0]])
    assert task.plain(np.array([[1.5], [2.5]])) == [1.5, 2.5]
    assert task.initial_bias(targets).tolist() == [15.0]
    assert task.evidence(np.array([[12.0], [20.0]]), targets.numpy())[:, 0].tolist() == [2.0, 0.0]


def test_mean_average_precision_and_f1_are_those_of_scikit_learn() -> None:
    task, targets, outputs = _task("multilabel"), _targets("multilabel").numpy(), _arrays(_noise(3))
    outputs["outputs"] = outputs["outputs"].round(1)  # with ties
    evidence = task.evidence(task.decode(outputs), targets)
    assert task.value(evidence) == pytest.approx(average_precision_score(targets, outputs["outputs"], average="macro"))
    assert task.details(evidence, ["outputs"])["f1"] == pytest.approx(
        f1_score(targets, outputs["outputs"] >= 0, average="micro")
    )
    assert average_precision(np.zeros(4), np.zeros(4, dtype=bool)) is None


def test_outputs_without_a_task_are_compared_in_energy_decibel_and_cosine() -> None:
    task = _task("outputs")
    reference = {"map": np.random.default_rng(0).normal(size=(8, 3, 4, 4)), "vector": np.ones((8, 5))}
    noisy = {"map": reference["map"] * 1.1, "vector": reference["vector"]}
    evidence = task.agreement_evidence(noisy, reference)
    assert task.agreement_value(evidence) == pytest.approx(0.99)
    details = task.details(evidence, list(noisy))
    assert details["map: signal-to-noise in dB"] == pytest.approx(20)
    assert details["map: cosine"] == pytest.approx(1)
    broken = {**noisy, "vector": np.full((8, 5), np.nan)}
    assert task.agreement_value(task.agreement_evidence(broken, reference)) == -np.inf


def test_the_error_of_any_metric_is_what_other_samples_of_images_show() -> None:
    task, rng = _task("multilabel"), np.random.default_rng(0)

    def sample(count: int) -> np.ndarray:
        targets = (rng.random((count, LABELS)) < 0.3).astype(float)
        return task.evidence(targets * 1.5 + rng.normal(size=(count, LABELS)), targets)

    _, error = value_with_error(task, sample(200))
    spread = np.std([task.value(sample(200)) for _ in range(200)])
    assert error == pytest.approx(spread, rel=0.3)


def test_the_error_of_a_drop_is_that_of_the_images_on_which_two_files_differ() -> None:
    task, rng = _task("classification"), np.random.default_rng(0)
    before = (rng.random((1000, 1)) < 0.8).astype(float)
    after = before.copy()
    after[:10] = 1 - after[:10]
    drop, error = drop_with_error(task, before, after)
    assert drop == pytest.approx(float(before.mean() - after.mean()))
    assert error < 0.3 * value_with_error(task, after)[1]


def test_a_mistyped_task_gets_did_you_mean() -> None:
    with pytest.raises(InputError, match="Did you mean classification"):
        get_task(TaskSpec("clasification", ("a", "b")))


def test_the_table_has_the_tasks_that_the_documentation_names() -> None:
    assert {"classification", "regression", "multilabel", "outputs"} <= set(TASKS)
