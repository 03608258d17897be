"""Makes docs/reference.md from the docstrings of the public functions. `--check` fails where it is out of date."""

import inspect
import sys
from pathlib import Path

import afina

TARGET = Path(__file__).with_name("reference.md")


def render() -> str:
    """The whole page."""
    parts = ["# Reference", "Made from docstrings by `python docs/reference.py`."]
    for name in sorted(afina.__all__, key=lambda n: (n[0].isupper(), n)):
        item = getattr(afina, name)
        parts.append(f"## `afina.{name}`")
        parts.append(f"```python\n{name}{_signature(item)}\n```")
        parts.append(_text(item))
        if inspect.isclass(item):
            for method, value in vars(item).items():
                function = value.__func__ if isinstance(value, classmethod) else value
                if method.startswith("_") or not inspect.isfunction(function):
                    continue
                parts.append(f"### `{name}.{method}{_signature(function)}`\n\n{_text(function)}")
    return "\n\n".join(parts) + "\n"


def _signature(item: object) -> str:
    text = str(inspect.signature(item))  # type: ignore[arg-type]
    if len(text) < 90:
        return text
    arguments = text[1 : text.rindex(")")]
    ending = text[text.rindex(")") + 1 :]
    return "(\n    " + ",\n    ".join(_split(arguments)) + f",\n){ending}"


def _split(arguments: str) -> list[str]:
    parts, depth, current = [], 0, ""
    for character in arguments:
        depth += (character in "[(") - (character in "])")
        if character == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += character
    return [*parts, current.strip()]


def _text(item: object) -> str:
    text, _, example = inspect.cleandoc(item.__doc__ or "").partition("Example:\n")
    lines, out = text.splitlines(), []
    for line in lines:
        if line.rstrip(":") in ("Args", "Attributes", "Returns", "Raises") and line.endswith(":"):
            out.append(f"**{line[:-1]}**\n")
        elif line.startswith("    ") and not line.startswith("     ") and out:
            name, colon, rest = line.strip().partition(":")
            out.append(f"- `{name}`: {rest.strip()}" if colon and " " not in name else f"- {line.strip()}")
        elif line.startswith("        "):
            out[-1] += f" {line.strip()}"
        else:
            out.append(line)
    if example:
        out.append(f"```python\n{inspect.cleandoc(example)}\n```")
    return "\n".join(out)


if __name__ == "__main__":
    page = render()
    if "--check" in sys.argv:
        current = TARGET.is_file() and TARGET.read_text() == page
        sys.exit(0 if current else f"{TARGET} is out of date: run python {__file__}")
    TARGET.write_text(page)
