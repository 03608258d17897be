"""The `afina` command, to which the other modules here add theirs."""

from typing import Annotated

import typer

app = typer.Typer(
    name="afina",
    help="Fit a computer-vision model to your data and your device, and prove it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from afina import __version__

        typer.echo(f"afina {__version__}")
        raise typer.Exit
