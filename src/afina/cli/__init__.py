"""The command line: arguments in, exit codes out, no logic. Each command is the Python function of the same name.

Exit codes: 0 done (and the budget fits), 3 the budget is missed, 2 wrong usage or input, 1 anything else.
"""

# Each module adds its commands; `afina --help` lists them in this order.
from afina.cli import fitting, tuning, compressing, inspecting  # noqa: F401, I001
from afina.cli.base import app

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of the `afina` command."""
    app()
