"""The results of a run, for people: an HTML report, a Markdown model card, a CSV table, a plain-text summary.

Everything here reads plain records (`Result`, `Sensitivity`) and nothing else: it never imports torch. `words`
says numbers in words, `facts` compares what was reached with the limits, `charts` draws, and one module for each kind
of file writes it, whole or not at all.
"""

from afina.reporting.card import write_card
from afina.reporting.page import write_html
from afina.reporting.sensitivity import sensitivity_text, write_sensitivity_csv, write_sensitivity_html
from afina.reporting.tables import write_csv, write_metadata
from afina.reporting.text import summary

__all__ = [
    "sensitivity_text",
    "summary",
    "write_card",
    "write_csv",
    "write_html",
    "write_metadata",
    "write_sensitivity_csv",
    "write_sensitivity_html",
]
