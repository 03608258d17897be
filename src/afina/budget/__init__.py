"""Budgets: from what a user types to limits, how they are shared out, and from measurements to a verdict."""

from afina.budget.allocate import Choice, Costs, Option, allocate, choose, fewest_of
from afina.budget.limits import make_budget, read_limits
from afina.budget.verdict import Decision, decide, drop_of, excess

__all__ = [
    "Choice",
    "Costs",
    "Decision",
    "Option",
    "allocate",
    "choose",
    "decide",
    "drop_of",
    "excess",
    "fewest_of",
    "make_budget",
    "read_limits",
]
