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
OptionalData = Annotated[
    str | None,
    typer.Option("--data", help="As for `optimize`; without it units and weights go by magnitude."),
]
Axes = Annotated[
    list[str] | None,
    typer.Option(help="`channels`, `hidden`, `heads`, `head-dim`, `embedding`, `groups`, `blocks`, or an axis."),
]
Finetune = Annotated[int, typer.Option(min=0, help="Epochs of fine-tuning, taught by the model as it was.")]
FinetuneRate = Annotated[float | None, typer.Option(help="Learning rate of fine-tuning.")]
Images = Annotated[int, typer.Option(min=1, help="Training images that the statistics rest on.")]
NetworkOut = Annotated[Path | None, typer.Option(help="The .pt2 file to write; named after the model by default.")]
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
def prune(
    model: Model,
    data: OptionalData = None,
    macs: Annotated[str | None, typer.Option(help="Multiply-accumulates that may stay, as in 50%.")] = None,
    parameters: Annotated[str | None, typer.Option(help="Parameters that may stay, as in 30%.")] = None,
    size: Annotated[str | None, typer.Option(help="Bytes of the exported float file, as in 5MB.")] = None,
    latency: Annotated[str | None, typer.Option(help="Time for one batch of that file, as in 8ms.")] = None,
    criterion: Annotated[
        str, typer.Option(help="Which units go: `fit`, `magnitude`, `taylor`, `batchnorm` or `random`.")
    ] = "fit",
    axis: Axes = None,
    per: Annotated[
        Any, typer.Option(parser=str, metavar="WHERE", help="`global`: shared out by sensitivity; `layer`: the same.")
    ] = "global",
    multiple: Annotated[
        int | None, typer.Option(min=1, help="Keep a multiple of so many channels (8, 16); 8 for --latency, else 1.")
    ] = None,
    finetune: Finetune = 0,
    steps: Annotated[int, typer.Option(min=1, help="Prune in so many steps, with fine-tuning after each.")] = 1,
    images: Images = 1024,
    runtime: RuntimeOption = "onnxruntime",
    threads: Threads = None,
    batch: Batch = 1,
    out: NetworkOut = None,
    weights: Weights = None,
    input_size: InputSize = None,
    learning_rate: FinetuneRate = None,
    optimizer: Optimizer = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Remove channels, neurons, heads from MODEL until it meets a target; no training is needed."""
    from afina.jobs.prune import prune as job

    _network_job(
        lambda: job(
            model, data, macs=macs, parameters=parameters, size=size, latency=latency, criterion=criterion, axis=axis,
            per=per, multiple=multiple, finetune=finetune, steps=steps, images=images, runtime=runtime,
            threads=threads, batch=batch, weights=weights, input_size=input_size, learning_rate=learning_rate,
            optimizer=optimizer, seed=seed, progress=_progress(quiet),
        ),
        model, "pruned", out, as_json, debug,
    )  # fmt: skip


@app.command()
def sparsify(
    model: Model,
    data: OptionalData = None,
    sparsity: Annotated[str | None, typer.Option(help="Share of the weights that become zero, as in 80%.")] = None,
    pattern: Annotated[str | None, typer.Option(help="N:M: of every M weights at most N stay, as in 2:4.")] = None,
    criterion: Annotated[str, typer.Option(help="Which weights go: `fit` or `magnitude`.")] = "fit",
    finetune: Finetune = 0,
    images: Images = 1024,
    out: NetworkOut = None,
    weights: Weights = None,
    input_size: InputSize = None,
    learning_rate: FinetuneRate = None,
    optimizer: Optimizer = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make weights of MODEL zero, free or in an N:M pattern, with the least change of its outputs."""
    from afina.jobs.sparsify import sparsify as job

    _network_job(
        lambda: job(
            model, data, sparsity=sparsity, pattern=pattern, criterion=criterion, finetune=finetune, images=images,
            weights=weights, input_size=input_size, learning_rate=learning_rate, optimizer=optimizer, seed=seed,
            progress=_progress(quiet),
        ),
        model, "sparse", out, as_json, debug,
    )  # fmt: skip


@app.command()
def quantize(
    model: Model,
    data: DataOption,
    weights: Annotated[str, typer.Option(help="`int8`, `int7` to `int2`, `int16`, `fp16`, `bf16`.")] = "int8",
    activations: Annotated[str, typer.Option(help="`int8` to `int2`, `int16`; `none` for float.")] = "int8",
    granularity: Annotated[
        str, typer.Option(help="Weights that share a scale: `tensor`, `channel` or `block:N`.")
    ] = "channel",
    scheme: Annotated[
        Any, typer.Option(parser=str, metavar="SCHEME", help="Of weights: `absmax` or `affine`.")
    ] = "absmax",
    calibration: Annotated[
        str, typer.Option(help="Ranges: `auto`, `mse`, `minmax`, `average`, `percentile` or `entropy`.")
    ] = "auto",
    rounding: Annotated[
        Any, typer.Option(parser=str, metavar="HOW", help="Of weights: `auto`, `nearest` or `gram`.")
    ] = "auto",
    equalize: Annotated[
        Any, typer.Option(parser=str, metavar="HOW", help="Move scale between layers: `auto` or `none`.")
    ] = "auto",
    power_of_two: Annotated[bool, typer.Option("--power-of-two", help="Scales are powers of two.")] = False,
    full_range: Annotated[bool, typer.Option("--full-range", help="Absmax uses the lowest code too.")] = False,
    skip: Annotated[list[str] | None, typer.Option(help="A layer that stays in float; may be given again.")] = None,
    plan: Annotated[
        str | None, typer.Option(help="`auto`: each layer's precision by time, bytes, damage; or a plan's file.")
    ] = None,
    save_plan: Annotated[Path | None, typer.Option(help="Write every layer's precision here (.json).")] = None,
    size: Annotated[str | None, typer.Option(help="With a plan: bytes of the file, as in 500KB.")] = None,
    latency: Annotated[str | None, typer.Option(help="With a plan: time for one batch, as in 5ms.")] = None,
    max_drop: Annotated[
        str | None, typer.Option(help="Quality that the file may lose, absolute: 1% of accuracy.")
    ] = None,
    qat: Annotated[int, typer.Option(min=0, help="Epochs of training with simulated integers.")] = 0,
    learn_scales: Annotated[bool, typer.Option("--learn-scales", help="That training learns scales too.")] = False,
    images: Images = 512,
    runtime: RuntimeOption = "onnxruntime",
    threads: Threads = None,
    batch: Batch = 1,
    out: NetworkOut = None,
    checkpoint: Annotated[str | None, typer.Option(help="Weights of MODEL: `pretrained`, `random` or a file.")] = None,
    input_size: InputSize = None,
    learning_rate: FinetuneRate = None,
    optimizer: Optimizer = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write weights and activations of MODEL in fewer bits, judged as the file that its runtime will run."""
    from afina.jobs.quantize import quantize as job

    _network_job(
        lambda: job(
            model, data, weights=weights, activations=activations, granularity=granularity, scheme=scheme,
            calibration=calibration, rounding=rounding, equalize=equalize, power_of_two=power_of_two,
            full_range=full_range, skip=tuple(skip or ()), plan=plan, save_plan=save_plan, size=size,
            latency=latency, max_drop=max_drop, qat=qat, learn_scales=learn_scales, images=images, runtime=runtime,
            threads=threads, batch=batch, checkpoint=checkpoint, input_size=input_size,
            learning_rate=learning_rate, optimizer=optimizer, seed=seed, progress=_progress(quiet),
        ),
        model, "quantized", out, as_json, debug,
    )  # fmt: skip


@app.command()
def sensitivity(
    model: Model,
    data: DataOption,
    criterion: Annotated[
        str, typer.Option(help="Which units go: `fit`, `magnitude`, `taylor`, `batchnorm` or `random`.")
    ] = "fit",
    axis: Axes = None,
    levels: Annotated[str, typer.Option(help="Shares that go, with commas between.")] = "25%,50%,75%",
    images: Images = 512,
    csv: Annotated[Path | None, typer.Option(help="Write the table here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a page with the plot here (.html).")] = None,
    weights: Weights = None,
    input_size: InputSize = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """What the outputs of MODEL lose when an axis loses units, or a layer weights: table, plot, CSV."""
    from afina.jobs.sensitivity import sensitivity as job
    from afina.reporting import sensitivity_text, write_sensitivity_csv, write_sensitivity_html

    def run() -> None:
        rows = job(
            model, data, criterion=criterion, axis=axis, levels=levels.split(","), images=images, weights=weights,
            input_size=input_size, seed=seed, progress=_progress(quiet),
        )  # fmt: skip
        if csv is not None:
            write_sensitivity_csv(rows, csv)
        if plot is not None:
            write_sensitivity_html(rows, plot, f"Sensitivity of {model}")
        _print(rows, sensitivity_text(rows), as_json)

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


def _network_job(job: Any, model: str, what: str, out: Path | None, as_json: bool, debug: bool) -> None:
    """Run a job that gives a network and a record, save the one and print the other."""

    def run() -> None:
        from afina.jobs.compression import Saved, describe, target_file

        path = target_file(out, model, what)
        network, record = job()
        network.save(path)
        _print(Saved(str(path), record), describe(record, path), as_json)

    _guard(run, debug)


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
