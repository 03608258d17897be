"""The commands that end in a verdict: `optimize`, `demo`."""

from typing import Annotated

import typer

from afina.cli.base import app
from afina.cli.options import (
    Batch,
    DataOption,
    Debug,
    InputSize,
    Json,
    KeepFP32,
    Model,
    Optimizer,
    Precision,
    Quiet,
    RuntimeOption,
    Seed,
    Threads,
    Weights,
)
from afina.cli.running import progress_of, run_and_show


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

    run_and_show(lambda: job(out=out, runtime=runtime, seed=seed, progress=progress_of(quiet)), as_json, debug)


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
    tune: Annotated[int, typer.Option(min=0, help="Search over so many trainings before compression.")] = 0,
    training: Annotated[
        str | None, typer.Option(help="YAML file of the training's hyperparameters: best.yaml of `afina tune`.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Learning rate of training and fine-tuning.")] = None,
    optimizer: Optimizer = None,
    precision: Precision = None,
    keep_fp32: KeepFP32 = None,
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

    run_and_show(
        lambda: job(
            model, data, size=size, latency=latency, memory=memory, max_drop=max_drop, runtime=runtime, out=out,
            weights=weights, input_size=input_size, epochs=epochs, finetune=finetune, tune=tune, training=training,
            learning_rate=learning_rate, optimizer=optimizer, precision=precision, keep_fp32=keep_fp32 or (),
            threads=threads, batch=batch, thorough=thorough, seed=seed, progress=progress_of(quiet),
        ),
        as_json,
        debug,
    )  # fmt: skip
