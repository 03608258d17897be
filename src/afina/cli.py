"""The command line: arguments in, exit codes out, no logic. Each command is the Python function of the same name.

Exit codes: 0 done (and the budget fits), 3 the budget is missed, 2 wrong usage or input, 1 anything else.
"""

import json
import sys
import traceback
import webbrowser
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from afina.errors import AfinaError
from afina.progress import PlainProgress, Progress, RichProgress

app = typer.Typer(
    name="afina",
    help="Fit a computer-vision model to your data and your device, and prove it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

MISSES = 3

Model = Annotated[
    str,
    typer.Argument(
        help="`resnet18` or `timm:NAME`, `torchvision:NAME`, `file.py:builder`, `builtin:convnet`, a saved `.pt2`."
    ),
]
DataOption = Annotated[
    str,
    typer.Option("--data", help="A folder of images or a .zip of one, a table `image,target` (CSV), or `digits`."),
]
Weights = Annotated[
    str | None,
    typer.Option(help="`pretrained`, `random`, or a file (.safetensors, .pth); pretrained by default."),
]
InputSize = Annotated[str | None, typer.Option(help="Input size in pixels, as in 224 or 224x320 (height x width).")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of the runtime; all cores by default.")]
Batch = Annotated[int, typer.Option(min=1, help="Images per call when latency is measured.")]
RuntimeOption = Annotated[str, typer.Option(help="What will run the file: `onnxruntime` or `openvino`.")]
Optimizer = Annotated[
    Any, typer.Option(parser=str, metavar="NAME", help="`sgd` or `adamw`; by default the one that suits the network.")
]
Precision = Annotated[
    Any, typer.Option(parser=str, metavar="NAME", help="Of training: `32`, `bf16-mixed` or `16-mixed`.")
]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the result.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from afina import __version__

        typer.echo(f"afina {__version__}")
        raise typer.Exit


@app.command()
def demo(
    out: Annotated[str, typer.Option(help="The run folder.")] = "runs/demo",
    runtime: RuntimeOption = "onnxruntime",
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Real scanned digits, a small network, a sixth of its size: the whole job, with no download and no argument."""
    from afina.jobs.demo import demo as job

    _run_and_show(lambda: job(out=out, runtime=runtime, seed=seed, progress=_progress(quiet)), as_json, debug)


@app.command()
def optimize(
    model: Model,
    data: DataOption,
    size: Annotated[str | None, typer.Option(help="Limit on the file, as in 350KB or 3MB.")] = None,
    latency: Annotated[str | None, typer.Option(help="Limit on the time for one batch, as in 5ms.")] = None,
    memory: Annotated[str | None, typer.Option(help="Limit on the peak memory that running the file adds.")] = None,
    max_drop: Annotated[str | None, typer.Option(help="Quality that may be lost, absolute: 1% of accuracy.")] = None,
    runtime: RuntimeOption = "onnxruntime",
    out: Annotated[str | None, typer.Option(help="The run folder; the same command on it resumes.")] = None,
    weights: Weights = None,
    input_size: InputSize = None,
    epochs: Annotated[
        int | None, typer.Option(min=0, help="Epochs of training before compression; 0 for none.")
    ] = None,
    finetune: Annotated[int | None, typer.Option(min=1, help="Epochs of fine-tuning after pruning.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Learning rate of training and fine-tuning.")] = None,
    optimizer: Annotated[
        Any, typer.Option(parser=str, metavar="NAME", help="`sgd` or `adamw`; one that suits the network.")
    ] = None,
    precision: Annotated[
        Any, typer.Option(parser=str, metavar="NAME", help="Of training: `32`, `bf16-mixed` or `16-mixed`.")
    ] = "32",
    threads: Threads = None,
    batch: Batch = 1,
    thorough: Annotated[bool, typer.Option("--thorough", help="Try every candidate, also when one fits.")] = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Fit MODEL to DATA and to a budget; the best deployable file comes out, with the evidence."""
    from afina.jobs.optimize import optimize as job

    _run_and_show(
        lambda: job(
            model, data, size=size, latency=latency, memory=memory, max_drop=max_drop, runtime=runtime, out=out,
            weights=weights, input_size=input_size, epochs=epochs, finetune=finetune,
            learning_rate=learning_rate, optimizer=optimizer,
            precision=precision, threads=threads, batch=batch, thorough=thorough, seed=seed, progress=_progress(quiet),
        ),
        as_json,
        debug,
    )  # fmt: skip


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
        result = job(
            model, weights=weights, input_size=input_size, runtimes=runtime, threads=threads, batch=batch,
            progress=_progress(quiet),
        )  # fmt: skip
        if csv is not None:
            write_layers(result, csv)
        _print(result, describe(result), as_json)

    _guard(run, debug)


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
        rows = job(files, data, input_size=input_size, threads=threads, batch=batch, progress=_progress(quiet))
        if csv is not None:
            write_table(rows, csv)
        _print(rows, describe(rows), as_json)

    _guard(run, debug)


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
            progress=_progress(quiet),
        )
        text = f"{result.file} ({result.size.value / 1e6:.3g} MB), largest difference {result.parity:.2g} (relative)"
        _print(result, text, as_json)

    _guard(run, debug)


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

    _guard(show, debug)


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
        _print({"machine": machine, "checks": list(checks)}, "\n".join(lines), as_json)

    _guard(run, debug)


def main() -> None:
    """Entry point of the `afina` command."""
    app()


def _run_and_show(job: Any, as_json: bool, debug: bool) -> None:
    """Run a job that ends in a verdict, print it, and leave with its exit code."""

    def run() -> None:
        from afina.reporting import summary

        result = job()
        _print(result, summary(result), as_json)
        if result.verdict != "fits":
            raise typer.Exit(MISSES)

    _guard(run, debug)


def _guard(run: Any, debug: bool) -> None:
    """Turn errors into one clear message and an exit code."""
    try:
        run()
    except typer.Exit:
        raise
    except AfinaError as error:
        _fail(error, error.exit_code, debug)
    except KeyboardInterrupt:
        typer.echo("Stopped. What is finished is kept: the same command resumes.", err=True)
        raise typer.Exit(1) from None
    except Exception as error:
        text = f"Something unexpected happened: {type(error).__name__}: {error}\nRun again with --debug to see where."
        _fail(RuntimeError(text) if not debug else error, 1, debug)


def _fail(error: Exception, code: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    typer.echo(f"Error: {error}", err=True)
    raise typer.Exit(code) from None


def _progress(quiet: bool) -> Progress:
    if quiet:
        return Progress()
    return RichProgress() if sys.stderr.isatty() else PlainProgress()


def _print(value: Any, text: str, as_json: bool) -> None:
    if not as_json:
        typer.echo(text)
        return
    from afina.store import to_plain

    typer.echo(json.dumps(to_plain(value), indent=2))


if __name__ == "__main__":
    main()
