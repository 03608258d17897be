"""Budgets in units, and the verdict over what was measured."""

from afina.budget.limits import make_budget
from afina.budget.verdict import Decision, decide, excess

__all__ = ["Decision", "decide", "excess", "make_budget"]
