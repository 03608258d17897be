"""The commands of `afina`, in the order of its help, and what each does with its result."""

import sys
import webbrowser
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any

import typer

from afina.cli.building import Run, add
from afina.cli.running import check_files, show, verdict_code
from afina.cli.shown import NetworkShown, PlotShown, ReportShown, Shown, TableShown, file_of
from afina.jobs.options.benchmark import BenchmarkOptions
from afina.jobs.options.demo import DemoOptions
from afina.jobs.options.distill import DistillOptions
from afina.jobs.options.doctor import DoctorOptions
from afina.jobs.options.export import ExportOptions
from afina.jobs.options.factorize import FactorizeOptions
from afina.jobs.options.optimize import OptimizeOptions
from afina.jobs.options.profile import ProfileOptions
from afina.jobs.options.prune import PruneOptions
from afina.jobs.options.quantize import QuantizeOptions
from afina.jobs.options.report import ReportOptions
from afina.jobs.options.run import RunOptions
from afina.jobs.options.sensitivity import SensitivityOptions
from afina.jobs.options.sparsify import SparsifyOptions
from afina.jobs.options.targets import goal_of
from afina.jobs.options.tune import TuneOptions

# Targets of which several values make several networks.
_TARGETS = ("macs", "parameters", "size", "latency")

Job = Callable[..., Any]
Arguments = dict[str, Any]

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


def _verdict(job: Job, arguments: Arguments, shown: Shown) -> None:
    """Run a job that gives a verdict: print its summary, and exit with 3 where the budget is missed."""
    from afina.reporting import summary

    result = job(**arguments)
    show(result, summary(result), shown.as_json)
    verdict_code(result.fits)


def _network(suffix: str) -> Run:
    """What runs a job that gives a network and a record: it saves the network and prints the record.

    Where a target names several values (`--macs 70%,50%`) there is a network for each: the first leaves what took long
    to measure for the others.
    """

    def run(job: Job, arguments: Arguments, shown: NetworkShown) -> None:
        from afina.jobs.common.subject import Saved, describe, target_file

        out, saved, texts = file_of(shown.out), list[Saved](), list[str]()
        each = [(given, mark) for given, mark in _by_target(arguments)]
        paths = [
            target_file(
                out.with_name(f"{out.stem}{mark}{out.suffix}") if out is not None else None,
                arguments.get("model") or arguments["student"],
                f"{suffix}{mark}",
            )
            for _, mark in each
        ]
        try:
            for (given, _), path in zip(each, paths, strict=True):
                network, record = job(**given)
                network.save(path)
                saved.append(Saved(str(path), record))
                texts.append(describe(record, path))
        except KeyboardInterrupt:
            if not saved:
                raise
            typer.echo(f"Stopped after {len(saved)} of {len(each)} networks.", err=True)
            raise typer.Exit(1) from None
        finally:  # those that were made are told where a later one cannot be
            if saved:
                show(saved if len(each) > 1 else saved[0], "\n\n".join(texts), shown.as_json)

    return run


def _by_target(arguments: Arguments) -> list[tuple[Arguments, str]]:
    """The arguments for each of the values of a target, with what files are called after it; most often there is one.

    Example:
        >>> _by_target({"model": "net.pt2", "macs": "70%, 50%"})
        [({'model': 'net.pt2', 'macs': '70%'}, '-70'), ({'model': 'net.pt2', 'macs': '50%'}, '-50')]
        >>> _by_target({"model": "net.pt2", "macs": "50%"})
        [({'model': 'net.pt2', 'macs': '50%'}, '')]
    """
    several = [name for name in _TARGETS if "," in str(arguments.get(name, ""))]
    if len(several) != 1:
        return [(arguments, "")]
    (name,) = several
    values = [value.strip() for value in str(arguments[name]).split(",") if value.strip()]
    if not values:
        return [(arguments, "")]
    for value in values:
        goal_of(**{name: value})  # none is made where one of them cannot be read
    return [({**arguments, name: value}, f"-{value.removesuffix('%')}") for value in dict.fromkeys(values)]


def _described(module: str, function: str = "describe") -> Run:
    """What runs a job whose module has a function that says the result in words."""

    def run(job: Job, arguments: Arguments, shown: Shown) -> None:
        describe = getattr(import_module(f"afina.jobs.{module}"), function)
        result = job(**arguments)
        show(result, describe(result), shown.as_json)

    return run


def _sensitivity(job: Job, arguments: Arguments, shown: PlotShown) -> None:
    from afina.reporting import sensitivity_text, write_sensitivity_csv, write_sensitivity_html

    csv, plot = file_of(shown.csv), file_of(shown.plot)
    check_files(csv=csv, plot=plot)
    rows = job(**arguments)
    if csv is not None:
        write_sensitivity_csv(rows, csv)
    if plot is not None:
        write_sensitivity_html(rows, plot, f"Sensitivity of {arguments['model']}")
    show(rows, sensitivity_text(rows), shown.as_json)


def _profile(job: Job, arguments: Arguments, shown: TableShown) -> None:
    from afina.jobs.profile import describe, write_layers

    csv = file_of(shown.csv)
    check_files(csv=csv)
    result = job(**arguments)
    if csv is not None:
        write_layers(result, csv)
    show(result, describe(result), shown.as_json)


def _benchmark(job: Job, arguments: Arguments, shown: TableShown) -> None:
    from afina.jobs.benchmark import describe, write_table

    csv = file_of(shown.csv)
    check_files(csv=csv)
    rows = job(**arguments)
    if csv is not None:
        write_table(rows, csv)
    show(rows, describe(rows), shown.as_json)


def _report(job: Job, arguments: Arguments, shown: ReportShown) -> None:
    page = job(**arguments)
    typer.echo(str(page))
    if shown.open_browser and sys.stdout.isatty():
        webbrowser.open(page.resolve().as_uri())


def _doctor(job: Job, arguments: Arguments, shown: Shown) -> None:
    from afina.jobs.doctor import describe

    machine, checks = job(**arguments)
    show({"machine": machine, "checks": list(checks)}, describe(machine, checks), shown.as_json)


add(app, "demo", DemoOptions, Shown, _verdict, resumes=True)
add(app, "optimize", OptimizeOptions, Shown, _verdict, resumes=True)
add(app, "tune", TuneOptions, Shown, _described("tune", "describe_search"), resumes=True)
add(app, "prune", PruneOptions, NetworkShown, _network("pruned"))
add(app, "sparsify", SparsifyOptions, NetworkShown, _network("sparse"))
add(app, "factorize", FactorizeOptions, NetworkShown, _network("factorized"))
add(app, "quantize", QuantizeOptions, NetworkShown, _network("quantized"))
add(app, "distill", DistillOptions, NetworkShown, _network("distilled"))
add(app, "run", RunOptions, Shown, _described("run"), resumes=True)
add(app, "sensitivity", SensitivityOptions, PlotShown, _sensitivity)
add(app, "profile", ProfileOptions, TableShown, _profile)
add(app, "benchmark", BenchmarkOptions, TableShown, _benchmark)
add(app, "export", ExportOptions, Shown, _described("export"))
add(app, "report", ReportOptions, ReportShown, _report)
add(app, "doctor", DoctorOptions, Shown, _doctor)
