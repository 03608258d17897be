"""`python -m afina` is the `afina` command."""

from afina.cli import main

main()
