"""`results/tables.md` from the rows: `python benchmarks/quantization/table.py`."""

from collections.abc import Callable

from judging import RUNTIMES
from rows import RESULTS, Row, Rows, made
from subjects import CIFAR, LARGE

PAGE = RESULTS / "tables.md"
_ORDER = ("W8A8", "W4A8", "W3A8", "W2A8", "W4A4", "W8", "W4", "W3", "W2", *LARGE)
_HEAD = """# Quantization, beside peers

Made by `python benchmarks/quantization/table.py` from the rows beside it. Everyone calibrates on the same 512 images.
W4A8 means weights of 4 bits and activations of 8; W4: weights alone.
"""
_ACCURACY = """## Accuracy on CIFAR-10 as JPEG

On the 10,000 test images, by the exported file on its runtime (`torch`: what has no file). In brackets, for Afina: how
many of the file's predictions are those of the network that was simulated.
"""
_AGREEMENT = """## Agreement with the float network at 224 pixels

Signal-to-noise ratio of the outputs in dB, and top-1 agreement, on 256 images that nobody calibrated on. The networks
have random weights (at the scale and with norms as `subjects.py` says), so this compares methods, and does not tell
what trained networks lose; top-1 among 1,000 random classes is a hard test.
"""
_LATENCY = """## Time of one image at 224 pixels

Milliseconds, in turns in one run for each line. `default` and peers' files on OpenVINO: its defaults (bfloat16 where
the processor can). Last column: Afina's chosen plan as a share of the fastest of the others.
"""
_CALIBRATION = """## Time and memory of quantizing for OpenVINO

Calibration, rounding, export; `judged`: and the files of both networks judged, as `afina quantize` does. Memory: all
that is resident at the peak, and before the start.
"""
_EXPORTS = """## Time of an export to ONNX

Seconds, in turns: Afina's export, and torch.onnx's by itself of the same network.
"""
_ZOO = """## All-int8 of many models

Random weights, calibrated on noise, at the size that each is made for: quantized, exported, run, and compared with the
simulation. `auto`: the plan by measured time.
"""


def main() -> None:
    """Write the page."""
    parts = (
        ("accuracy", _ACCURACY, accuracy),
        ("agreement", _AGREEMENT, agreement),
        ("latency", _LATENCY, latency),
        ("calibration", _CALIBRATION, calibration),
        ("exports", _EXPORTS, exports),
        ("zoo", _ZOO, zoo),
    )
    lines = [_HEAD]
    for name, head, lines_of in parts:
        rows = Rows(name).found
        if rows:
            lines += [head, *lines_of(rows), f"{made(rows.values())}\n"]
    PAGE.write_text("\n".join(lines))
    print(f"written: {PAGE}")


def accuracy(rows: dict[str, Row]) -> list[str]:
    """For each network a table: methods by bits; the mean of the seeds, where there are several."""
    lines = []
    for network in CIFAR:
        cases: dict[tuple[str, str], list[Row]] = {}
        for name, row in rows.items():
            model, bits, method, runtime, _ = name.split("/")
            if model == network:
                cases.setdefault((f"{method}, {runtime}", bits), []).append(row)
        original = next((row["original"] for found in cases.values() for row in found if "original" in row), 0.0)
        lines += [f"### {network} ({original:.2%} in float)", "", *_grid(cases, _accuracy), ""]
    return lines


def agreement(rows: dict[str, Row]) -> list[str]:
    """For each kind of bits a table: methods by networks."""
    lines = []
    for bits in dict.fromkeys(name.split("/")[1] for name in rows):
        cases: dict[tuple[str, str], list[Row]] = {}
        for network in LARGE:
            for name, row in rows.items():
                model, kind, method, runtime = name.split("/")
                if (model, kind) == (network, bits):
                    cases.setdefault((f"{method}, {runtime}", network), []).append(row)
        lines += [f"### {bits}", "", *_grid(cases, _agreement), ""]
    return lines


def latency(rows: dict[str, Row]) -> list[str]:
    """For each runtime a table: networks by files."""
    lines = []
    for runtime in dict.fromkeys(name.split("/")[1] for name in rows):
        own = {name.split("/")[0]: row for name, row in rows.items() if name.endswith(f"/{runtime}")}
        files = list(dict.fromkeys(file for row in own.values() for file in row.get("latency", {})))
        lines += [f"### {runtime}", "", *_header(["network", *files, "plan"])]
        for network, row in own.items():
            times = row.get("latency", {})
            cells = [f"{times[file]:.2f}" if file in times else "" if times else "fails" for file in files]
            lines.append(f"| {' | '.join([network, *cells, str(row.get('ratio', ''))])} |")
        lines.append("")
    return lines


def calibration(rows: dict[str, Row]) -> list[str]:
    """One table."""
    lines = _header(["network", "method", "images", "threads", "seconds", "peak, GB", "before, GB"])
    for name, row in rows.items():
        cells = (
            ["fails", "", ""]
            if "failed" in row
            else [f"{row['took']:.0f}", f"{row['peak'] / 1e9:.2f}", f"{row['start'] / 1e9:.2f}"]
        )
        lines.append(f"| {' | '.join([*name.split('/'), *cells])} |")
    return [*lines, ""]


def exports(rows: dict[str, Row]) -> list[str]:
    """One table."""
    lines = _header(["model", "form", "afina, s", "torch.onnx, s", "afina, MB", "torch.onnx, MB"])
    for name, row in rows.items():
        cells = ["fails", *[""] * 3]
        if "failed" not in row:
            ways = ("afina", "torch")
            cells = [f"{row['took'][way]:.1f}" for way in ways] + [f"{row['bytes'][way] / 1e6:.1f}" for way in ways]
        lines.append(f"| {' | '.join([*name.split('/'), *cells])} |")
    return [*lines, ""]


def zoo(rows: dict[str, Row]) -> list[str]:
    """How many models pass, which, and what is said of the others."""
    lines = []
    for plan in dict.fromkeys(name.split("/")[0] for name in rows):
        own = {name.split("/")[1]: row for name, row in rows.items() if name.startswith(f"{plan}/")}
        bad = {model: row for model, row in own.items() if any(row.get(r) != "pass" for r in RUNTIMES)}
        lines += [f"{plan}: {len(own) - len(bad)} of {len(own)} models pass on both runtimes.", ""]
        lines += [", ".join(sorted(set(own) - set(bad))) + ".", ""]
        if bad:
            lines += _header(["model", *RUNTIMES])
            for model, row in sorted(bad.items()):
                said = [str(row.get(runtime) or row["failed"]).replace("|", "/") for runtime in RUNTIMES]
                lines.append(f"| {' | '.join([model, *said])} |")
            lines.append("")
    return lines


def _grid(cases: dict[tuple[str, str], list[Row]], cell: Callable[[list[Row]], str]) -> list[str]:
    """A table of cells by their two names; Afina's lines first."""
    columns = sorted({column for _, column in cases}, key=_ORDER.index)
    methods = sorted({method for method, _ in cases}, key=lambda name: (not name.startswith("afina"), name))
    lines = _header(["method", *columns])
    for method in methods:
        cells = [cell(cases[method, column]) if (method, column) in cases else "" for column in columns]
        lines.append(f"| {' | '.join([method, *cells])} |")
    return lines


def _header(names: list[str]) -> list[str]:
    return [f"| {' | '.join(names)} |", "| --- " * len(names) + "|"]


def _accuracy(rows: list[Row]) -> str:
    good = [row for row in rows if "accuracy" in row]
    if not good:
        return "fails"
    text = f"{sum(row['accuracy'] for row in good) / len(good):.2%}"
    if "same" in good[0]:
        text += f" ({min(row['same'] for row in good):.2%})"
    return text


def _agreement(rows: list[Row]) -> str:
    row = rows[-1]
    return "fails" if "failed" in row else f"{row['snr']:.1f} dB, {row['agreement']:.0%}"


if __name__ == "__main__":
    main()
