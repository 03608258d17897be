"""Further figures of the quality: what each output keeps of the original's, F1, and the like."""

from dataclasses import dataclass

from afina.types import Result

_WHOLE = "all"


@dataclass(frozen=True)
class DetailTable:
    """Further figures of the winner's quality.

    Attributes:
        figures: Their names, the titles of the columns.
        rows: For each output (or `all` of them) the winner's figures and the original's, as text; empty where there
            is none.
    """

    figures: tuple[str, ...]
    rows: dict[str, tuple[tuple[str, str], ...]]


def detail_table(result: Result) -> DetailTable | None:
    """The further figures of the images that judged; None where the task has none.

    Details are named `figure`, or `output: figure` where there are several outputs.
    """
    after = _details(result, result.winner)
    if not after:
        return None
    # The original agrees with itself, which says nothing.
    before = {} if result.metric.of_original else _details(result, result.original)
    figures = tuple(dict.fromkeys(figure for _, figure in after))
    outputs = dict.fromkeys(output for output, _ in after)
    return DetailTable(
        figures,
        {
            output: tuple((_text(after, output, figure), _text(before, output, figure)) for figure in figures)
            for output in outputs
        },
    )


def _details(result: Result, name: str) -> dict[tuple[str, str], float]:
    """The figures by output and name."""
    measured = result.candidate(name).measurements
    quality = measured.get("test_quality", measured.get("quality"))
    details = {} if quality is None else quality.details
    return {_parts(key): value for key, value in details.items()}


def _parts(name: str) -> tuple[str, str]:
    """`boxes: cosine` as `("boxes", "cosine")`."""
    output, colon, figure = name.rpartition(": ")
    return (output, figure) if colon else (_WHOLE, name)


def _text(details: dict[tuple[str, str], float], output: str, figure: str) -> str:
    value = details.get((output, figure))
    return "" if value is None else f"{value:.4g}"
