"""The commands that look at models, files, runs and this machine."""

import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from afina.cli.base import app
from afina.cli.options import Batch, DataOption, Debug, InputSize, Json, Model, Quiet, Threads, Weights
from afina.cli.running import check_files, guarded, progress_of, show


@app.command()
def profile(
    model: Model,
    weights: Weights = "random",
    input_size: InputSize = None,
    runtime: Annotated[list[str] | None, typer.Option(help="Runtimes to time it on; all that are installed.")] = None,
    threads: Threads = None,
    batch: Batch = 1,
    csv: Annotated[Path | None, typer.Option(help="Write the per-layer table here.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Parameters, MACs, bytes and peak activations of MODEL, per layer; its latency on each runtime."""
    from afina.jobs.profile import describe, write_layers
    from afina.jobs.profile import profile as job

    def run() -> None:
        check_files(csv=csv)
        result = job(
            model, weights=weights, input_size=input_size, runtimes=runtime, threads=threads, batch=batch,
            progress=progress_of(quiet),
        )  # fmt: skip
        if csv is not None:
            write_layers(result, csv)
        show(result, describe(result), as_json)

    guarded(run, debug)


@app.command()
def benchmark(
    files: Annotated[list[Path], typer.Argument(help="Any .onnx, OpenVINO .xml or .pt2 files.")],
    data: DataOption,
    input_size: InputSize = None,
    threads: Threads = None,
    batch: Batch = 1,
    csv: Annotated[Path | None, typer.Option(help="Write the table here.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """FILES side by side on the same images: quality, latency, size, memory."""
    from afina.jobs.benchmark import benchmark as job
    from afina.jobs.benchmark import describe, write_table

    def run() -> None:
        check_files(csv=csv)
        rows = job(files, data, input_size=input_size, threads=threads, batch=batch, progress=progress_of(quiet))
        if csv is not None:
            write_table(rows, csv)
        show(rows, describe(rows), as_json)

    guarded(run, debug)


@app.command()
def export(
    model: Model,
    to: Annotated[str, typer.Option("--to", help="`onnx`, `openvino` or `pt2`.")],
    out: Annotated[Path | None, typer.Option(help="The file to write; named after the model by default.")] = None,
    weights: Weights = None,
    input_size: InputSize = None,
    half: Annotated[bool, typer.Option("--half", help="Store the weights in 16 bits.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write MODEL as a file for a runtime, and check that the file answers as the model does."""
    from afina.jobs.export import export as job

    def run() -> None:
        result = job(
            model,
            to=to,
            out=out,
            weights=weights,
            input_size=input_size,
            half=half,
            progress=progress_of(quiet),
        )
        text = f"{result.file} ({result.size.value / 1e6:.3g} MB), largest difference {result.parity:.2g} (relative)"
        show(result, text, as_json)

    guarded(run, debug)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="The folder of a run.")],
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open it in the browser.")] = True,
    debug: Debug = False,
) -> None:
    """Rebuild the report of a run from its result, and open it."""
    from afina.jobs.report import report as job

    def show() -> None:
        page = job(run)
        typer.echo(str(page))
        if open_browser and sys.stdout.isatty():
            webbrowser.open(page.resolve().as_uri())

    guarded(show, debug)


@app.command()
def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """What is installed, what is missing and how to get it, what this machine can measure."""
    from afina.jobs.doctor import doctor as job

    def run() -> None:
        machine, checks = job()
        lines = [f"{machine['processor']}, {machine['cores']} cores, {machine['system']}"]
        for check in checks:
            lines.append(f"{'ok     ' if check.good else 'missing'} {check.name}: {check.found}")
            if check.fix:
                lines.append(f"        {check.fix}")
        show({"machine": machine, "checks": list(checks)}, "\n".join(lines), as_json)

    guarded(run, debug)
