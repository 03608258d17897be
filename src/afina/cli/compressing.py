"""The commands of one technique each, and what they would hurt."""

from pathlib import Path
from typing import Annotated, Any

import typer

from afina.cli.base import app
from afina.cli.options import (
    Axes,
    Batch,
    DataOption,
    Debug,
    Finetune,
    FinetuneRate,
    Images,
    InputSize,
    Json,
    KeepFP32,
    Model,
    NetworkOut,
    Optimizer,
    OptionalData,
    Precision,
    Quiet,
    RuntimeOption,
    Seed,
    Threads,
    Weights,
)
from afina.cli.running import check_files, guarded, network_job, progress_of, show


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
        int | None,
        typer.Option(min=1, help="Keep a multiple of so many channels (8, 16); 8 for --latency and wide layers."),
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

    network_job(
        lambda: job(
            model, data, macs=macs, parameters=parameters, size=size, latency=latency, criterion=criterion, axis=axis,
            per=per, multiple=multiple, finetune=finetune, steps=steps, images=images, runtime=runtime,
            threads=threads, batch=batch, weights=weights, input_size=input_size, learning_rate=learning_rate,
            optimizer=optimizer, seed=seed, progress=progress_of(quiet),
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

    network_job(
        lambda: job(
            model, data, sparsity=sparsity, pattern=pattern, criterion=criterion, finetune=finetune, images=images,
            weights=weights, input_size=input_size, learning_rate=learning_rate, optimizer=optimizer, seed=seed,
            progress=progress_of(quiet),
        ),
        model, "sparse", out, as_json, debug,
    )  # fmt: skip


@app.command()
def factorize(
    model: Model,
    data: OptionalData = None,
    parameters: Annotated[str | None, typer.Option(help="Parameters that may stay, as in 50%.")] = None,
    macs: Annotated[str | None, typer.Option(help="Multiply-accumulates that may stay, as in 50%.")] = None,
    size: Annotated[str | None, typer.Option(help="Bytes of the exported float file, as in 5MB.")] = None,
    latency: Annotated[str | None, typer.Option(help="Time for one batch of that file, as in 8ms.")] = None,
    method: Annotated[str, typer.Option(help="`auto`, `svd`, `spatial`, `tucker`, `cp` or `tt`.")] = "auto",
    rank: Annotated[
        str | None, typer.Option(help="Instead of a target: for every layer, as in 16, or 25% of the largest.")
    ] = None,
    multiple: Annotated[int | None, typer.Option(min=1, help="Ranks are a multiple of it; 8 for --latency.")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="A layer that stays whole; may be given again.")] = None,
    finetune: Finetune = 0,
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
    """Write layers of MODEL as chains of smaller ones until it meets a target; no training is needed."""
    from afina.jobs.factorize import factorize as job

    network_job(
        lambda: job(
            model, data, parameters=parameters, macs=macs, size=size, latency=latency, method=method, rank=rank,
            multiple=multiple, skip=tuple(skip or ()), finetune=finetune, images=images, runtime=runtime,
            threads=threads, batch=batch, weights=weights, input_size=input_size, learning_rate=learning_rate,
            optimizer=optimizer, seed=seed, progress=progress_of(quiet),
        ),
        model, "factorized", out, as_json, debug,
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
        str | None,
        typer.Option(
            help="`auto`: each layer's precision by time, bytes, damage; `bits`: for a size; or a plan's file."
        ),
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

    network_job(
        lambda: job(
            model, data, weights=weights, activations=activations, granularity=granularity, scheme=scheme,
            calibration=calibration, rounding=rounding, equalize=equalize, power_of_two=power_of_two,
            full_range=full_range, skip=tuple(skip or ()), plan=plan, save_plan=save_plan, size=size,
            latency=latency, max_drop=max_drop, qat=qat, learn_scales=learn_scales, images=images, runtime=runtime,
            threads=threads, batch=batch, checkpoint=checkpoint, input_size=input_size,
            learning_rate=learning_rate, optimizer=optimizer, seed=seed, progress=progress_of(quiet),
        ),
        model, "quantized", out, as_json, debug,
    )  # fmt: skip


@app.command()
def distill(
    teacher: Annotated[str, typer.Argument(help="The model that is learned from; as MODEL elsewhere.")],
    student: Annotated[str, typer.Argument(help="The model that learns: a compressed .pt2, or any other.")],
    data: Annotated[str | None, typer.Option(help="As for `optimize`; its validation images judge.")] = None,
    unlabelled: Annotated[
        str | None, typer.Option(help="Images to learn from without labels: the teacher alone teaches.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 10,
    temperature: Annotated[float, typer.Option(help="Softens the teacher's answers.")] = 4.0,
    weight: Annotated[float, typer.Option(help="Share of the teacher in the loss, beside labels.")] = 0.9,
    features: Annotated[str, typer.Option(help="`none`, `auto`, or `STUDENT:TEACHER` layers, with commas.")] = "none",
    feature_weight: Annotated[float, typer.Option(help="Of the feature maps.")] = 1.0,
    attention_weight: Annotated[float, typer.Option(help="Of where feature maps are active.")] = 0.0,
    relation_weight: Annotated[float, typer.Option(help="Of how images relate to each other.")] = 0.0,
    keep_zeros: Annotated[bool, typer.Option("--keep-zeros", help="Weights that are zero stay zero.")] = False,
    precision: Precision = "32",
    keep_fp32: KeepFP32 = None,
    out: NetworkOut = None,
    weights: Weights = None,
    input_size: InputSize = None,
    learning_rate: Annotated[float | None, typer.Option(help="By default one that suits the optimizer.")] = None,
    optimizer: Optimizer = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Images in one step.")] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train STUDENT on what TEACHER answers, and on labels where there are any."""
    from afina.jobs.distill import distill as job

    network_job(
        lambda: job(
            teacher, student, data, unlabelled=unlabelled, epochs=epochs, temperature=temperature, weight=weight,
            features=features, feature_weight=feature_weight, attention_weight=attention_weight,
            relation_weight=relation_weight, keep_zeros=keep_zeros, precision=precision,
            keep_fp32=tuple(keep_fp32 or ()), weights=weights,
            input_size=input_size, learning_rate=learning_rate, optimizer=optimizer, batch_size=batch_size, seed=seed,
            progress=progress_of(quiet),
        ),
        student, "distilled", out, as_json, debug,
    )  # fmt: skip


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A YAML file: `steps:` and a list, each step with its options.")],
    model: Model,
    data: DataOption,
    out: Annotated[str | None, typer.Option(help="The run folder; the same command on it resumes.")] = None,
    runtime: RuntimeOption = "onnxruntime",
    threads: Threads = None,
    weights: Weights = None,
    input_size: InputSize = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Apply a recipe to MODEL: its steps in order, and the file that comes out of them judged."""
    from afina.jobs.run import describe
    from afina.jobs.run import run as job

    def finish() -> None:
        result = job(
            recipe, model, data, out=out, runtime=runtime, threads=threads, weights=weights, input_size=input_size,
            seed=seed, progress=progress_of(quiet),
        )  # fmt: skip
        show(result, describe(result), as_json)

    guarded(finish, debug, resumes=True)


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
        check_files(csv=csv, plot=plot)
        rows = job(
            model, data, criterion=criterion, axis=axis, levels=levels.split(","), images=images, weights=weights,
            input_size=input_size, seed=seed, progress=progress_of(quiet),
        )  # fmt: skip
        if csv is not None:
            write_sensitivity_csv(rows, csv)
        if plot is not None:
            write_sensitivity_html(rows, plot, f"Sensitivity of {model}")
        show(rows, sensitivity_text(rows), as_json)

    guarded(run, debug)
