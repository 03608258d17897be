"""Budgets: from what a user types to limits, how they are shared out, and from measurements to a verdict."""

from afina.budget.allocate import Choice, Costs, Option, allocate, choose, fewest_of
from afina.budget.confidence import check_images, enough_to_judge, judged_drop, verdict_on
from afina.budget.limits import make_budget, read_limits
from afina.budget.verdict import Decision, decide, drop_of, excess, judge

__all__ = [
    "Choice",
    "Costs",
    "Decision",
    "Option",
    "allocate",
    "check_images",
    "choose",
    "decide",
    "drop_of",
    "enough_to_judge",
    "excess",
    "fewest_of",
    "judge",
    "judged_drop",
    "make_budget",
    "read_limits",
    "verdict_on",
]
