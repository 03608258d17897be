"""The mathematics of the tensor-train sampler: kernel, likelihood, train, acquisition, encoding."""

import itertools
from dataclasses import replace

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from scipy.stats import multivariate_normal, norm

from afina.search.tensor_train.acquisition import (
    log_feasible,
    log_feasible_slopes,
    log_improvement,
    log_improvement_slopes,
)
from afina.search.tensor_train.encoding import Coordinate, Domain, latin_hypercube, patterns
from afina.search.tensor_train.history import PARTS, History, bilog, read, scalarise, thin
from afina.search.tensor_train.kernel import Layout, Pairs, covariance, distances, evidence
from afina.search.tensor_train.online_surrogate import OnlineSurrogate
from afina.search.tensor_train.output_warping import WARPINGS, compress_outliers, warp_values
from afina.search.tensor_train.posterior_train import TensorTrain
from afina.search.tensor_train.rotation import Rotation, fit_rotation
from afina.search.tensor_train.schedule import Countdown, FitSchedule, FitStep, RotationSchedule, evaluations_per_fit
from afina.search.tensor_train.strategies import STRATEGIES, Trajectory, choose_strategy
from afina.search.tensor_train.surrogate import Surrogate, fit, starts

MIXED = Layout(np.array([False, True, False, False]))


def data(n: int = 24, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points with a category and with coordinates that are missing, values, and hyperparameters near the prior."""
    rng = np.random.default_rng(seed)
    points = rng.random((n, 4))
    points[:, 1] = rng.integers(0, 3, n)
    points[::5, 3] = np.nan
    theta = MIXED.prior()[0] + 0.3 * rng.normal(size=MIXED.size)
    theta[-1] = np.log(1e-3)
    return points, rng.normal(size=n), theta


def slope(function, x: np.ndarray, step: float = 1e-6) -> np.ndarray:
    return np.array([(function(x + step * e) - function(x - step * e)) / (2 * step) for e in np.eye(len(x))])


def test_evidence_is_that_of_a_normal_distribution():
    points, values, theta = data()
    matrix = covariance(MIXED, theta, distances(points, points, MIXED.categorical))
    noisy = matrix + (np.exp(theta[-1]) + 1e-9) * np.eye(len(points))
    expected = multivariate_normal(np.zeros(len(points)), noisy).logpdf(values)
    assert evidence(MIXED, theta, Pairs.of(points, MIXED.categorical), values)[0] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_gradient_of_the_evidence_is_its_slope(seed):
    points, values, theta = data(seed=seed)
    pairs = Pairs.of(points, MIXED.categorical)
    _, gradient, by_gap = evidence(MIXED, theta, pairs, values)
    np.testing.assert_allclose(gradient, slope(lambda t: evidence(MIXED, t, pairs, values)[0], theta), atol=1e-5)
    for coordinate, pair in ((0, 3), (2, 40), (3, 100)):

        def stretched(by, coordinate=coordinate, pair=pair):
            gap = pairs.gap.copy()
            gap[coordinate, pair] *= np.exp(by[0])
            return evidence(MIXED, theta, replace(pairs, gap=gap), values)[0]

        assert by_gap[coordinate, pair] == pytest.approx(slope(stretched, np.zeros(1))[0], abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 30))
def test_kernel_is_positive_definite_also_with_missing_coordinates(seed, n):
    points, _, theta = data(n, seed)
    matrix = covariance(MIXED, theta, distances(points, points, MIXED.categorical))
    np.testing.assert_allclose(matrix, matrix.T)
    assert np.linalg.eigvalsh(matrix).min() > -1e-8 * matrix.max()


def test_posterior_goes_through_the_data_and_its_gradient_is_its_slope():
    points, values, theta = data()
    theta[-1] = np.log(1e-7)
    surrogate = Surrogate(MIXED, theta, points, values)
    mean, variance = surrogate.posterior(points)
    np.testing.assert_allclose(mean, values, atol=1e-3)
    assert variance.max() < 1e-3
    query = np.array([[0.3, 1.0, 0.7, 0.2], [0.9, 2.0, 0.1, 0.6]])
    _, _, by_mean, by_variance = surrogate.gradient(query)
    for i, point in enumerate(query):
        by_hand = slope(lambda x: surrogate.posterior(x[None])[0][0], point)
        np.testing.assert_allclose(by_mean[i, [0, 2, 3]], by_hand[[0, 2, 3]], atol=1e-5)
        by_hand = slope(lambda x: surrogate.posterior(x[None])[1][0], point)
        np.testing.assert_allclose(by_variance[i, [0, 2, 3]], by_hand[[0, 2, 3]], atol=1e-5)
    assert not by_mean[:, 1].any()


def orthogonal(k: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(k, k)))[0]


def test_a_turned_surrogate_has_the_gradient_and_the_curvature_of_its_mean():
    points, values, theta = data()
    rotation = Rotation(np.array([0, 2]), orthogonal(2))
    surrogate = Surrogate(MIXED, theta, points, values, rotation)
    np.testing.assert_allclose(rotation.rotate_back(rotation.rotate(points)), points)
    query = np.array([0.3, 1.0, 0.7, 0.2])
    _, _, by_mean, by_variance = surrogate.gradient(query[None])
    for k, by in enumerate((by_mean[0], by_variance[0])):
        by_hand = slope(lambda x, k=k: surrogate.posterior(x[None])[k][0], query)
        np.testing.assert_allclose(by[[0, 2, 3]], by_hand[[0, 2, 3]], atol=1e-5)
    which = np.array([0, 2, 3])
    by_hand = np.array([slope(lambda x, j=j: surrogate.gradient(x[None])[2][0, j], query, 1e-5)[which] for j in which])
    np.testing.assert_allclose(surrogate.curvature(query, which), by_hand, rtol=1e-2, atol=1e-2)
    after, _ = surrogate.believing(query[None]).posterior(query[None])
    assert after == pytest.approx(surrogate.posterior(query[None])[0], abs=1e-2)


def slanted(points: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """A sum of waves along each of three axes, standardised."""
    z = points @ axes.T
    values = np.sin(7 * z[:, 0]) + np.sin(5 * z[:, 1] + 1) + np.sin(4 * z[:, 2] + 2)
    return (values - values.mean()) / values.std()


def test_the_rotation_with_most_evidence_has_the_axes_of_a_sum():
    points, axes = np.random.default_rng(1).random((90, 3)), orthogonal(3, 1)
    layout, values = Layout(np.zeros(3, dtype=bool)), slanted(points, axes)
    theta, straight = fit(layout, points, values, starts(layout), 60)
    _, rotation, found = fit_rotation(layout, points, values, theta, Rotation(np.arange(3), np.eye(3)), 200)
    assert found > straight + 20
    np.testing.assert_allclose(rotation.matrix @ rotation.matrix.T, np.eye(3), atol=1e-9)
    agreement = np.abs(rotation.matrix @ axes.T)
    np.testing.assert_allclose(np.sort(agreement, axis=1)[:, -1], 1.0, atol=0.02)


def test_a_model_turns_for_a_slanted_sum_and_stays_straight_for_one_along_the_parameters():
    points = np.random.default_rng(1).random((90, 3))
    layout, turned = Layout(np.zeros(3, dtype=bool)), {}
    for name, axes in (("slanted", orthogonal(3, 1)), ("straight", np.eye(3))):
        online, values = OnlineSurrogate(("identity",)), slanted(points, axes)
        for n in range(80, 91):
            surrogate = online.update(layout, points[:n], values[:n], allow_rotation=True)
        turned[name] = surrogate.rotation is not None
        assert online.update(layout, points, values, allow_rotation=False).rotation is None
    assert turned == {"slanted": True, "straight": False}


def test_a_rotation_is_of_the_numbers_that_differ_and_ends_where_the_space_grows():
    points, axes = np.random.default_rng(1).random((90, 3)), orthogonal(3, 1)
    values, fixed = slanted(points, axes), np.full((90, 1), 0.5)
    layout, online = Layout(np.zeros(4, dtype=bool)), OnlineSurrogate(("identity",))
    for n in range(80, 91):
        surrogate = online.update(layout, np.hstack([points, fixed])[:n], values[:n], allow_rotation=True)
    assert surrogate.rotation is not None
    assert surrogate.rotation.indices.tolist() == [0, 1, 2]
    unknown = np.array([[0.5, np.nan, 0.5, 0.5]])
    assert len(surrogate.believing(unknown).points) == len(points)
    grown = np.hstack([points, fixed, np.full((90, 1), np.nan)])
    assert online.update(Layout(np.zeros(5, dtype=bool)), grown, values, allow_rotation=True).rotation is None


def test_running_points_are_believed():
    points, values, theta = data()
    surrogate = Surrogate(MIXED, theta, points, values)
    query = np.array([[0.5, 0.0, 0.5, 0.5]])
    mean, variance = surrogate.posterior(query)
    after, left = surrogate.believing(query).posterior(query)
    assert after == pytest.approx(mean, abs=1e-2)
    assert left[0] < 0.1 * variance[0]


def test_a_fit_improves_on_its_start():
    rng = np.random.default_rng(0)
    layout = Layout(np.zeros(3, dtype=bool))
    points = rng.random((40, 3))
    values = np.sin(9 * points[:, 0]) + points[:, 1]
    values = (values - values.mean()) / values.std()
    _, begun = fit(layout, points, values, starts(layout)[:1], 1)
    theta, found = fit(layout, points, values, starts(layout), 40)
    assert found > begun + 10
    query = rng.random((50, 3))
    mean, _ = Surrogate(layout, theta, points, values).posterior(query)
    truth = np.sin(9 * query[:, 0]) + query[:, 1]
    assert np.corrcoef(mean, truth)[0, 1] > 0.95


def train(seed: int = 0) -> TensorTrain:
    points, values, theta = data(seed=seed)
    rng = np.random.default_rng(seed)
    grids = [np.sort(rng.random(4)), np.arange(3.0), np.sort(rng.random(5)), np.array([np.nan])]
    return TensorTrain(Surrogate(MIXED, theta, points, values), grids)


def everywhere(of: TensorTrain) -> np.ndarray:
    return np.array(list(itertools.product(*[range(len(grid)) for grid in of.levels])))


def test_the_train_is_the_posterior_on_its_grid():
    found = train()
    rows = everywhere(found)
    for got, expected in zip(found.posterior(rows), found.surrogate.posterior(found.points(rows)), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_minimum_of_the_additive_part_is_exact(seed):
    found = train(seed)
    s, rows = found.surrogate, everywhere(found)
    theta = s.theta.copy()
    theta[3 * MIXED.d : 3 * MIXED.d + 2] = -np.inf
    gap = distances(found.points(rows), s.points, MIXED.categorical)
    additive = covariance(MIXED, theta, gap) @ s.weights
    np.testing.assert_array_equal(found.additive_minimum()[0], rows[np.argmin(additive)])


def test_neighbours_are_all_that_differ_in_one_coordinate():
    found = train()
    row = np.array([1, 2, 0, 0])
    rows, cross = found.neighbours(row)
    assert len(rows) == 3 + 2 + 4
    assert ((rows != row).sum(axis=1) == 1).all()
    np.testing.assert_allclose(cross, found.covariance(rows), atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_the_beam_finds_the_minimum_when_it_is_wide_and_is_never_worse_than_its_start(seed):
    found = train(seed)
    rows = everywhere(found)
    means = found.posterior(rows)[0]
    start = rows[np.random.default_rng(seed).integers(len(rows))]
    order = np.random.default_rng(seed).permutation(4)
    best = found.beam(start, len(rows), order)
    assert found.posterior(best)[0].min() == pytest.approx(means.min())
    narrow = found.beam(start, 2, order)
    assert found.posterior(narrow)[0].min() <= found.posterior(start[None])[0][0] + 1e-12


def test_log_improvement_is_that_of_the_formula_and_stays_finite():
    mean, variance = np.array([-1.0, 0.0, 0.5]), np.array([0.2, 1.0, 0.04])
    z = (0.1 - mean) / np.sqrt(variance)
    expected = np.log(np.sqrt(variance) * (norm.pdf(z) + z * norm.cdf(z)))
    np.testing.assert_allclose(log_improvement(mean, variance, 0.1), expected)
    far = log_improvement(np.array([1.0, 1e3, 1e6]), np.full(3, 1e-4), 0.0)
    assert np.isfinite(far).all()
    assert (np.diff(far) < 0).all()


@pytest.mark.parametrize(
    ("value", "slopes"),
    [
        (lambda m, v: log_improvement(m, v, 0.1), lambda m, v: log_improvement_slopes(m, v, 0.1)),
        (log_feasible, log_feasible_slopes),
    ],
)
def test_slopes_of_the_acquisition(value, slopes):
    mean, variance = np.array([-1.0, 0.5, 4.0]), np.array([0.2, 0.5, 0.3])
    by_mean, by_variance = slopes(mean, variance)
    step = 1e-6
    near = (value(mean + step, variance) - value(mean - step, variance)) / (2 * step)
    np.testing.assert_allclose(by_mean, near, rtol=1e-4)
    near = (value(mean, variance + step) - value(mean, variance - step)) / (2 * step)
    np.testing.assert_allclose(by_variance, near, rtol=1e-4)


DISTRIBUTIONS = st.one_of(
    st.builds(FloatDistribution, st.floats(-5, 0), st.floats(0.5, 5)),
    st.builds(lambda low, high: FloatDistribution(low, high, log=True), st.floats(1e-6, 1e-2), st.floats(0.1, 10)),
    st.builds(lambda low, n, step: FloatDistribution(low, low + n * step, step=step),
              st.integers(-3, 3), st.integers(1, 90), st.sampled_from([0.25, 0.5, 2.0])),
    st.builds(lambda low, n, step: IntDistribution(low, low + n * step, step=step),
              st.integers(-9, 9), st.integers(0, 90), st.integers(1, 4)),
    st.builds(lambda low, n: IntDistribution(low, low + n, log=True), st.integers(1, 9), st.integers(0, 300)),
    st.builds(CategoricalDistribution, st.lists(st.sampled_from(["a", "b", 1, 2.5, None, True]),
                                                min_size=1, max_size=4, unique=True)),
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(DISTRIBUTIONS, st.floats(0, 1))
def test_every_value_survives_its_encoding(distribution, unit):
    c = Coordinate.of("x", distribution)
    places = [unit] if c.levels is None else list(c.levels)
    for place in places:
        value = c.decode(place)
        assert distribution._contains(distribution.to_internal_repr(value))
        again = c.decode(c.encode(value))
        assert again == value or again == pytest.approx(value, rel=1e-9)


def test_points_out_of_range_are_left_out():
    domain = Domain.of({"x": FloatDistribution(0, 1), "k": CategoricalDistribution(["a", "b"])})
    assert domain.encode({"x": 3.0, "k": "a"}) is None
    np.testing.assert_allclose(domain.encode({"x": 0.25, "k": "b"}), [1.0, 0.25])
    assert np.isnan(domain.encode({"k": "b"})[1])


def test_patterns_keep_categories_with_the_parameters_they_came_with():
    domain = Domain.of(
        {"momentum": FloatDistribution(0, 1), "optimizer": CategoricalDistribution(["adam", "sgd", "new"])}
    )
    points = np.array([[np.nan, 0.0], [0.4, 1.0], [0.9, 1.0]])
    found = {tuple(p.active): p.levels[1].tolist() for p in patterns(domain, points)}
    assert found == {(False, True): [0.0, 2.0], (True, True): [1.0, 2.0]}


@pytest.mark.parametrize("name", WARPINGS)
def test_warps_keep_the_order_and_standardise(name):
    values = np.random.default_rng(0).lognormal(size=50)
    mapped = warp_values(name, values)
    np.testing.assert_array_equal(np.argsort(mapped.values), np.argsort(values))
    assert mapped.values.mean() == pytest.approx(0, abs=1e-9)
    assert mapped.values.std() == pytest.approx(1)
    if name != "identity":
        return
    assert not warp_values(name, np.ones(5)).values.any()


def test_the_slope_of_a_warp_is_counted_in_its_evidence():
    values = np.random.default_rng(0).lognormal(size=30)
    step = 1e-6
    for name in WARPINGS[1:]:
        # All but the best and the median, which fix the map, moved one by one.
        mapped, total = warp_values(name, values), 0.0
        share = float(name.split()[1])
        total = -np.log(values - values.min() + share * (np.median(values) - values.min())).sum()
        spread = np.log(values + step - values.min() + share * (np.median(values) - values.min())).std()
        assert mapped.log_slope == pytest.approx(total - 30 * np.log(spread), abs=1e-2)


def test_failures_and_outliers_are_drawn_in():
    values = np.array([1.0, 2.0, 3.0, 4.0, 1e30, np.inf])
    drawn = compress_outliers(values)
    assert np.isfinite(drawn).all()
    assert (np.diff(drawn) >= 0).all()
    np.testing.assert_array_equal(drawn[:4], values[:4])
    assert drawn[-1] < 1000


def test_bilog_keeps_signs_and_zero():
    drawn = bilog(np.array([-1e9, -1.0, 0.0, 2.0, 1e300]))
    assert (np.diff(drawn) > 0).all()
    assert drawn[2] == 0


def test_latin_hypercubes_have_one_point_in_each_slice():
    points = latin_hypercube(9, 4, np.random.default_rng(0))
    for column in points.T:
        assert sorted((column * 9).astype(int)) == list(range(9))


def test_scalarised_order_agrees_with_dominance():
    values = np.array([[0.0, 0.0], [1.0, 1.0], [0.5, 0.2]])
    for seed in range(5):
        one = scalarise(values, np.random.default_rng(seed))
        assert one[0] < one[2] < one[1]


def history(values: np.ndarray, ways: list[str] | None = None) -> History:
    n = len(values)
    points = np.linspace(0, 1, n)[:, None]
    return History(
        points, values[:, None], np.empty((0, 1)), np.empty((n, 0)), tuple(range(n)), tuple(ways or [""] * n)
    )


def lottery(values: np.ndarray, ways: list[str] | None = None, draws: int = 300) -> list[str]:
    trajectory = Trajectory.of(history(values, ways), values)
    return [choose_strategy(trajectory, np.random.default_rng(i)) for i in range(draws)]


def test_the_usual_way_is_kept_while_it_pays():
    assert set(lottery(np.linspace(10, 1, 20))) == {""}


def test_a_stagnation_lets_every_way_take_part_by_its_successes():
    stuck = np.array([10.0, 5.0, 9.0, 1.0, *np.linspace(4, 8, 31)])
    drawn = lottery(stuck)
    assert set(drawn) == set(STRATEGIES)
    failed = lottery(stuck, ["", "", "", "", *["far"] * 31])
    assert failed.count("far") < drawn.count("far")
    falling = np.array([20.0, 10.0, *np.repeat(np.linspace(8, 1, 8), 20)])
    ways = ["", "", *(["near"] + [""] * 19) * 8]
    assert lottery(falling, ways).count("near") > drawn.count("near")


def test_a_study_is_stuck_after_a_long_stagnation_also_when_it_goes_on():
    falling = np.linspace(100, 1, 30)
    idle = np.full(36, 50.0)
    assert not Trajectory.of(history(falling), falling).stuck
    for values, stuck in ((idle[:-1], False), (idle, True), (np.append(idle, 0.1), True)):
        series = np.concatenate([falling, values])
        assert Trajectory.of(history(series), series).stuck == stuck
    limits = np.where(np.arange(len(series)) < len(series) - 2, 1.0, -1.0)[:, None]
    assert not Trajectory.of(replace(history(series), constraints=limits), series).stuck


def test_many_trials_are_thinned_to_the_best_and_the_latest():
    values = np.random.default_rng(0).permutation(1000).astype(float)
    kept = thin(history(values), values, 100)
    assert len(kept.points) == 100
    assert set(range(975, 1000)) <= set(kept.numbers)
    assert set(np.argsort(values)[:50]) <= set(kept.numbers)
    assert thin(history(values), values, 1000).numbers == tuple(range(1000))


def test_a_trial_that_was_stopped_counts_as_its_last_report_and_of_parts_as_their_mean():
    space = {"x": FloatDistribution(0, 1)}
    values = [4.0, 1.0, 3.0]

    def stopped(**options):
        reports = dict(enumerate(values))
        state = optuna.trial.TrialState.PRUNED
        return optuna.trial.create_trial(
            state=state, params={"x": 0.5}, distributions=space, intermediate_values=reports, **options
        )

    trials = [stopped(), stopped(user_attrs={PARTS: 3})]
    domain = Domain((Coordinate.of("x", space["x"]),))
    history = read(domain, trials, [optuna.study.StudyDirection.MINIMIZE], {})
    assert history.values.ravel().tolist() == [3.0, np.mean(values)]


def test_many_data_are_refined_and_explored_by_turns_and_every_alternative_has_its_turn():
    assert evaluations_per_fit(20, 5) == 60
    assert FitSchedule.for_budget(60).step(1) is FitStep.REFINE_AND_EXPLORE
    schedule = FitSchedule.for_budget(evaluations_per_fit(300, 5))
    steps = [schedule.step(update) for update in range(1, 13)]
    assert steps == [FitStep.REFINE, FitStep.EXPLORE] * 6
    explored = [schedule.alternative(update, range(6)) for update in range(2, 14, 2)]
    assert sorted(explored) == list(range(6))


def test_a_rotation_is_due_at_once_and_then_after_its_trials():
    countdown, due = Countdown(), []
    for trial in range(13):
        countdown.tick()
        if countdown.is_due:
            due.append(trial)
            countdown.restart(RotationSchedule.FIT_EVERY)
    assert due == [0, 6, 12]
