"""The command that searches: `tune`."""

from typing import Annotated

import typer

from afina.cli.base import app
from afina.cli.options import (
    Debug,
    InputSize,
    Json,
    KeepFP32,
    Optimizer,
    Precision,
    Quiet,
    RuntimeOption,
    Seed,
    Threads,
    Weights,
)
from afina.cli.running import guarded, progress_of, show


@app.command()
def tune(
    model: Annotated[
        str | None, typer.Argument(help="As for `optimize`; `builtin:convnet` has free arguments.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="As for `optimize`; with labels.")] = None,
    objective: Annotated[
        str | None, typer.Option(help="Instead of a model: a function of the parameters, `path/file.py:function`.")
    ] = None,
    space: Annotated[str | None, typer.Option(help="YAML file of the search space; the training's by default.")] = None,
    sampler: Annotated[
        str, typer.Option(help="`tensor-train`, `tpe`, `gp`, `cmaes`, `qmc`, `random` or `grid`.")
    ] = "tensor-train",
    trials: Annotated[int | None, typer.Option(help="Trials in all; 50 by default, or no limit with --time.")] = None,
    time: Annotated[str | None, typer.Option(help="No trial is begun after it, as in 30min or 1h.")] = None,
    early_stopping: Annotated[
        str | None,
        typer.Option(
            help="Which trials end early: `median` (default), `none`, `halving`, `hyperband`; with --folds `wilcoxon`."
        ),
    ] = None,
    fidelity: Annotated[
        str, typer.Option(help="What is cheap at first: `epochs`, `images` or `input-size`.")
    ] = "epochs",
    folds: Annotated[
        int | None, typer.Option(min=2, help="Judge trials by so many parts of the training images (cross-validation).")
    ] = None,
    grid_points: Annotated[
        int | None, typer.Option(min=1, help="With --sampler grid: values of each continuous parameter; 5 by default.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Of each training, where the space does not say.")] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            help="To be low beside the quality: `size`, `latency`, `parameters`, `macs`, `seconds`; several. "
            "With --objective: names of what it gives after its value."
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Limit on the float file, as in 500KB; beyond it nothing is trained.")
    ] = None,
    latency: Annotated[str | None, typer.Option(help="Limit on that file's time for one image, as in 2ms.")] = None,
    maximize: Annotated[bool, typer.Option("--maximize", help="The function's value is to be high.")] = False,
    out: Annotated[str | None, typer.Option(help="The run folder; the same command on it goes on.")] = None,
    storage: Annotated[
        str | None, typer.Option(help="URL of a database, for many machines (postgresql://..., grpc://HOST:PORT).")
    ] = None,
    study: Annotated[
        str | None, typer.Option(help="Name of the study in that database; by default that of what is tuned.")
    ] = None,
    optimizer: Optimizer = None,
    precision: Precision = "32",
    keep_fp32: KeepFP32 = None,
    runtime: RuntimeOption = "onnxruntime",
    threads: Threads = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Local processes, each with its share of the cores; on Ray, trials at once."),
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="Run trials on a Ray cluster: `auto`, `local`, or its address.")
    ] = None,
    trial_cpus: Annotated[float, typer.Option(min=0.1, help="Processors of a trial on Ray.")] = 1,
    trial_gpus: Annotated[float, typer.Option(min=0, help="GPUs of a trial, which share its batches.")] = 0,
    weights: Weights = None,
    input_size: InputSize = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Search the hyperparameters of MODEL's training on DATA, or those of any Python function."""

    def run() -> None:
        from afina.jobs.tune import describe_search
        from afina.jobs.tune import tune as job

        tuned = job(
            model, data, objective=objective, space=space, sampler=sampler, trials=trials, time=time,
            early_stopping=early_stopping, fidelity=fidelity, folds=folds, grid_points=grid_points, epochs=epochs,
            also=also or (), size=size, latency=latency, maximize=maximize, out=out, storage=storage, study=study,
            weights=weights, input_size=input_size, optimizer=optimizer, precision=precision,
            keep_fp32=tuple(keep_fp32 or ()), runtime=runtime, threads=threads, workers=workers, ray=ray,
            trial_cpus=trial_cpus, trial_gpus=trial_gpus, seed=seed, progress=progress_of(quiet),
        )  # fmt: skip
        show(tuned, describe_search(tuned), as_json)

    guarded(run, debug, resumes=True)
