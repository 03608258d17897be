"""The command line: arguments in, exit codes out, no logic. Each command is the Python function of the same name.

`commands` lists the commands and what each does with its result; `building` makes a command of the options that
`afina.jobs.options` declares; `running` turns errors into messages and exit codes.

Exit codes: 0 done (and the budget fits), 3 the budget is missed, 2 wrong usage or input, 1 anything else.
"""

from afina.cli.commands import app

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of the `afina` command."""
    app()
