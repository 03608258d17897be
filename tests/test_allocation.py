"""The allocator: budgets are met with the least damage, and what cannot be met is said."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afina.budget import Choice, Option, allocate, choose, fewest_of
from afina.errors import InputError


class Chain:
    """Layers in a row: each costs its inputs times its outputs."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self.sizes = sizes

    def total(self, counts) -> float:
        widths = [3, *(counts.get(name, size) for name, size in self.sizes.items()), 10]
        return float(sum(a * b for a, b in itertools.pairwise(widths)))

    def saving(self, counts, axis, count) -> float:
        return self.total(counts) - self.total({**counts, axis: count})


def curve(size: int, power: float, scale: float) -> np.ndarray:
    return scale * (np.arange(size) / size) ** power


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(2, 40), st.floats(1, 4), st.floats(0.01, 10)), min_size=1, max_size=5),
    st.floats(0.15, 0.95),
    st.sampled_from([1, 4, 8]),
)
def test_the_limit_is_met_and_nothing_could_be_given_back(axes, share, multiple):
    choices = {f"a{i}": Choice(curve(*axis), multiple, 1) for i, axis in enumerate(axes)}
    costs = Chain({name: choice.size for name, choice in choices.items()})
    limit = share * costs.total({})
    if costs.total(fewest_of(choices)) > limit:
        with pytest.raises(InputError, match="cannot be met"):
            allocate(choices, costs, limit)
        return
    counts = allocate(choices, costs, limit)
    assert costs.total(counts) <= limit
    for name, choice in choices.items():
        kept = counts[name]
        assert 1 <= kept <= choice.size
        assert kept == choice.size or choice.size <= multiple or kept % multiple == 0
        for more in choice.fewer(choice.size + 1):
            assert more <= kept or costs.total({**counts, name: more}) > limit


def test_axes_that_matter_less_give_more():
    choices = {"dear": Choice(curve(32, 2, 10.0)), "cheap": Choice(curve(32, 2, 0.1))}
    counts = allocate(choices, Chain({"dear": 32, "cheap": 32}), 600)
    assert counts["cheap"] < 16 < counts["dear"]


def test_the_allocation_is_near_the_best_of_all():
    sizes = {"a": 8, "b": 8, "c": 8}
    costs = Chain(sizes)
    choices = {name: Choice(curve(8, power, scale)) for name, power, scale in (("a", 2, 1), ("b", 1.5, 3), ("c", 3, 2))}
    limit = 0.5 * costs.total({})
    best = min(
        sum(choices[n].losses[8 - k] for n, k in zip(sizes, kept, strict=True))
        for kept in itertools.product(range(1, 9), repeat=3)
        if costs.total(dict(zip(sizes, kept, strict=True))) <= limit
    )
    counts = allocate(choices, costs, limit)
    assert sum(choices[n].losses[8 - counts[n]] for n in sizes) <= 1.15 * best


def test_a_limit_out_of_reach_says_the_smallest_and_what_binds():
    with pytest.raises(InputError, match=r"(?s)smallest possible is 13.*binds: a \(at 1 of 8\)"):
        allocate({"a": Choice(curve(8, 2, 1))}, Chain({"a": 8}), 5)


def test_the_integer_program_finds_the_best_of_all_choices():
    generator = np.random.default_rng(0)
    options = {
        name: [Option(float(loss), float(cost)) for loss, cost in generator.random((4, 2))] for name in ("a", "b", "c")
    }
    limit = 1.2
    taken = choose(options, limit)

    def of(numbers, what):
        return sum(getattr(options[name][i], what) for name, i in zip(options, numbers, strict=True))

    every = [numbers for numbers in itertools.product(range(4), repeat=3) if of(numbers, "cost") <= limit]
    assert of(tuple(taken.values()), "loss") == pytest.approx(min(of(numbers, "loss") for numbers in every), abs=2e-3)
    with pytest.raises(InputError, match="cannot be met"):
        choose(options, 0.001)
