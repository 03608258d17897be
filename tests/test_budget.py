"""Budgets and verdicts: what a user types, and which candidate is deployed."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afina.budget import check_images, decide, enough_to_judge, excess, judge, judged_drop, make_budget
from afina.budget.silence import silent_library
from afina.errors import InputError
from afina.tasks import drop_with_error, get_task
from afina.types import Budget, Candidate, Measurement, MetricInfo, TaskSpec
from afina.units import format_count, format_size, format_time, parse_drop, parse_size, parse_time

ACCURACY = MetricInfo("accuracy", True, share=True, mean_of_images=True)
MAE = MetricInfo("mae", False, mean_of_images=True)


def _candidate(name, quality, size, latency=1e-3, memory=1e6):
    values = {
        "quality": (quality, "accuracy"),
        "size": (size, "B"),
        "latency": (latency, "s"),
        "peak_memory": (memory, "B"),
    }
    return Candidate(
        name, (), "judged", measurements={k: Measurement(v, u, "measured") for k, (v, u) in values.items()}
    )


ORIGINAL = _candidate("original", 0.90, 1_000_000)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("350KB", 350_000),
        ("3 MB", 3_000_000),
        ("1.5mb", 1_500_000),
        ("2MiB", 2_097_152),
        ("77", 77),
        (12, 12),
    ],
)
def test_sizes_are_decimal_bytes(text, value):
    assert parse_size(text) == value


@pytest.mark.parametrize(("text", "value"), [("5ms", 0.005), ("0.2s", 0.2), ("800us", 0.0008), (0.5, 0.5)])
def test_times_are_seconds(text, value):
    assert parse_time(text) == pytest.approx(value)


@pytest.mark.parametrize(("text", "value"), [("1%", 0.01), ("0.5", 0.5), ("0", 0.0), (0.02, 0.02)])
def test_drops_are_absolute_points(text, value):
    assert parse_drop(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["3MBs", "-1MB", "0", "MB", "", "nan", "1 e5 KB", "inf"])
def test_a_size_that_makes_no_sense_names_the_option(text):
    with pytest.raises(InputError, match="--size"):
        parse_size(text)


@pytest.mark.parametrize("text", ["5mss", "-5ms", "fast"])
def test_a_time_that_makes_no_sense_names_the_option(text):
    with pytest.raises(InputError, match="--latency"):
        parse_time(text)


@given(st.integers(1, 10**12))
def test_a_size_reads_back_as_written_to_three_digits(value):
    assert parse_size(format_size(value)) == pytest.approx(value, rel=6e-3)


@given(st.floats(1e-7, 100))
def test_a_time_reads_back_as_written_to_three_digits(value):
    assert parse_time(format_time(value)) == pytest.approx(value, rel=6e-3)


@given(
    st.floats(1e-6, 9e11),
    st.sampled_from([format_count, format_size, format_time]),
)
def test_a_number_for_people_has_at_most_three_digits_and_no_exponent(value, write):
    text = write(value)
    assert "e" not in text, text
    if write is format_time and value >= 120:
        return  # minutes are whole
    number = text.partition(" ")[0]
    assert float(number) < 1000, text
    assert len(number.replace(".", "").lstrip("0")) <= 3, text


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (format_count, 999_700, "1 M"),
        (format_count, 999.6, "1 k"),
        (format_count, 999_400, "999 k"),
        (format_count, 12, "12"),
        (format_size, 999_600, "1 MB"),
        (format_size, 999.7, "1 KB"),
        (format_size, 999_999_999, "1 GB"),
        (format_size, 1234e9, "1234 GB"),
        (format_time, 0.9997, "1 s"),
        (format_time, 9.999e-4, "1 ms"),
        (format_time, 1e-3, "1 ms"),
        (format_time, 0.001229, "1.23 ms"),
        (format_time, 119.9, "2 min"),
        (format_time, 0, "0 µs"),
    ],
)
def test_a_number_that_rounds_up_is_written_in_the_next_unit(write, value, text):
    assert write(value).strip() == text


def test_no_budget_means_one_percent_of_accuracy_and_is_an_error_for_an_error_in_units():
    assert make_budget(ACCURACY) == Budget(max_drop=0.01)
    with pytest.raises(InputError, match="No budget"):
        make_budget(MAE)


def test_limits_that_contradict_the_metric_are_refused():
    with pytest.raises(InputError, match="any answer"):
        make_budget(ACCURACY, max_drop="150%")
    with pytest.raises(InputError, match="percentage"):
        make_budget(MAE, max_drop="1%")
    assert make_budget(MAE, max_drop="0.5").max_drop == 0.5


def test_without_a_drop_the_best_quality_that_fits_wins():
    tried = [ORIGINAL, _candidate("a", 0.89, 400_000), _candidate("b", 0.85, 100_000)]
    decision = decide(tried, ORIGINAL, Budget(size=500_000), ACCURACY)
    assert (decision.verdict, decision.winner.name) == ("fits", "a")


def test_with_a_drop_the_smallest_and_fastest_within_it_wins():
    tried = [
        ORIGINAL,
        _candidate("a", 0.89, 400_000),
        _candidate("b", 0.892, 300_000, 2e-3),
        _candidate("c", 0.85, 10_000),
    ]
    decision = decide(tried, ORIGINAL, Budget(max_drop=0.02), ACCURACY)
    assert (decision.verdict, decision.winner.name) == ("fits", "a")


def test_when_nothing_helps_the_original_is_the_answer():
    tried = [ORIGINAL, _candidate("a", 0.5, 900_000)]
    assert decide(tried, ORIGINAL, Budget(max_drop=0.01), ACCURACY).winner.name == "original"


def test_a_miss_names_the_nearest_for_each_limit():
    tried = [ORIGINAL, _candidate("a", 0.88, 400_000), _candidate("b", 0.80, 250_000)]
    decision = decide(tried, ORIGINAL, Budget(size=200_000, max_drop=0.01), ACCURACY)
    assert decision.verdict == "misses"
    assert decision.best_achievable == {"size": "b", "max_drop": "original"}


def test_a_winner_that_is_slower_than_doing_nothing_says_so():
    tried = [ORIGINAL, _candidate("a", 0.9, 100_000, 5e-3)]
    decision = decide(tried, ORIGINAL, Budget(size=200_000), ACCURACY)
    assert "slower than the original (5.00 times)" in decision.warnings[0]


def test_rejected_candidates_never_win():
    broken = Candidate("x", (), "rejected", reason="parity")
    assert decide([ORIGINAL, broken], ORIGINAL, Budget(max_drop=0.5), ACCURACY).winner.name == "original"


def test_a_lower_metric_drops_upwards():
    better, worse = _candidate("better", 0.8, 1), _candidate("worse", 1.0, 1)
    limits = Budget(max_drop=0.05)
    assert excess(better, ORIGINAL, limits, MAE) == {}
    assert set(excess(worse, ORIGINAL, limits, MAE)) == {"max_drop"}


def test_a_missed_limit_weighs_by_that_limit_whatever_the_unit_of_the_metric():
    """With a mean error of 0.001, a network 100 times beyond the drop was preferred to one 20% too large."""
    original = _candidate("original", 0.001, 1_000_000)
    budget = Budget(size=100_000, max_drop=0.0001)
    far_off, too_large = _candidate("far off", 0.011, 90_000), _candidate("too large", 0.001, 120_000)
    assert excess(too_large, original, budget, MAE) == {"size": pytest.approx(0.2)}
    assert excess(far_off, original, budget, MAE) == {"max_drop": pytest.approx(99)}
    assert decide([original, far_off, too_large], original, budget, MAE).winner.name == "too large"


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 10**6), st.floats(1e-4, 1)), max_size=6),
    st.floats(0, 0.5),
)
def test_the_answer_never_breaks_the_budget_while_the_original_keeps_it(others, allowed):
    tried = [ORIGINAL, *(_candidate(str(i), *values) for i, values in enumerate(others))]
    decision = decide(tried, ORIGINAL, Budget(max_drop=allowed), ACCURACY)
    assert decision.verdict == "fits"
    assert decision.drop <= allowed + 1e-6


def test_what_a_library_prints_does_not_reach_the_standard_output(capfd):
    libc = ctypes.CDLL(None)
    print("before")
    with silent_library():
        libc.puts(b"debugging")
    print("after")
    libc.fflush(None)
    assert capfd.readouterr().out == "before\nafter\n"


def _drop(value, spread, n=1000):
    return Measurement(value, "accuracy", "measured", spread, n, share=True)


@pytest.mark.parametrize(
    ("drop", "words"),
    [
        (_drop(0.002, 0.002), "fits"),
        (_drop(0.008, 0.004), "fits, within the error"),
        (_drop(0.012, 0.004), "misses, within the error"),
        (_drop(0.030, 0.004), "misses"),
        (_drop(0.030, None), "misses"),
        (_drop(0.008, None), "fits"),
        (None, "fits"),
    ],
)
def test_a_verdict_says_so_where_the_images_are_too_few_to_be_sure(drop, words):
    broken = {"max_drop": 1.0} if drop is not None and drop.value > 0.01 else {}
    assert judge(broken, drop, Budget(max_drop=0.01), ACCURACY, "test")[0] == words


def test_a_file_that_is_too_large_misses_however_unsure_its_drop_is():
    verdict, _ = judge({"size": 0.1}, _drop(0.008, 0.004), Budget(size=10, max_drop=0.01), ACCURACY, "test")
    assert verdict == "misses"


@pytest.mark.parametrize(("images", "changed"), [(100, 0.02), (300, 0.02), (1000, 0.04), (3000, 0.1)])
def test_a_file_beyond_its_limit_is_rarely_called_a_fit(images, changed):
    task, random, limit = get_task(TaskSpec("classification", ("a", "b"))), np.random.default_rng(0), 0.01
    # Of the answers that change, so many go wrong that the real drop is the limit and a little more.
    lost, gained = (changed + limit + 1e-6) / 2, (changed - limit - 1e-6) / 2
    fits = 0
    for _ in range(1000):
        outcome = random.choice(3, size=images, p=[lost, gained, 1 - lost - gained])
        before, after = (outcome != 1).astype(float)[:, None], (outcome != 0).astype(float)[:, None]
        drop, error = drop_with_error(task, before, after)
        fits += judge({}, _drop(drop, error, images), Budget(max_drop=limit), ACCURACY, "test")[0] == "fits"
    assert fits <= 60  # 5%, and the chance of a thousand draws


@given(st.floats(0.001, 0.019), st.floats(0.02, 0.5), st.integers(50, 5000))
def test_the_number_of_images_that_would_settle_it_settles_it(value, spread_of_images, count):
    limit = 0.01
    first = judged_drop(_drop(value, spread_of_images / count**0.5, count), ACCURACY, limit)
    if first.needed is None or first.needed < 50:
        return
    then = judged_drop(_drop(value, spread_of_images / first.needed**0.5, first.needed), ACCURACY, limit)
    nearest = then.high if value <= limit else then.low
    assert nearest == pytest.approx(limit, abs=0.05 * abs(value - limit) + 1e-4)


def test_a_cheaper_file_that_may_lose_too_much_is_named_and_not_taken():
    def candidate(name, quality, size, spread):
        drop = _drop(0.90 - quality, spread)
        plain = _candidate(name, quality, size)
        return replace(plain, measurements={**plain.measurements, "drop": drop})

    sure, unsure = candidate("half", 0.90, 500_000, 0.0005), candidate("int8", 0.893, 250_000, 0.004)
    decision = decide([ORIGINAL, sure, unsure], ORIGINAL, Budget(max_drop=0.01), ACCURACY)
    assert decision.winner == sure
    assert decision.verdict == "fits"
    assert any("int8 is cheaper and not taken: it loses 0.70%" in warning for warning in decision.warnings)
    alone = decide([ORIGINAL, unsure], ORIGINAL, Budget(max_drop=0.01), ACCURACY)
    assert alone.winner == unsure
    assert alone.verdict == "fits, within the error"


def test_too_few_images_for_the_drop_are_refused_with_how_many_would_do():
    with pytest.raises(InputError, match=r"(?s)50 images cannot tell a drop of 1%.*265 images"):
        check_images(50, Budget(max_drop=0.01), ACCURACY)
    check_images(265, Budget(max_drop=0.01), ACCURACY)
    nothing_changed = drop_with_error(get_task(TaskSpec("classification", ("a", "b"))), *[np.ones((265, 1))] * 2)
    assert judged_drop(_drop(*nothing_changed, 265), ACCURACY, 0.01).high <= 0.0101
    check_images(5, Budget(max_drop=0.01), MAE)


def test_a_gentler_limit_needs_fewer_images_apart():
    assert enough_to_judge(0.05, ACCURACY) < enough_to_judge(0.01, ACCURACY) < enough_to_judge(0.001, ACCURACY)
