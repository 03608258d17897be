"""Tables (CSV) with images beside them: numbers to predict, class names, or several labels for each image.

    image,target        image,target        image,tags           image,cat,dog
    a.png,12.5          a.png,cat           a.png,cat;dog        a.png,1,1
    b.png,3             b.png,dog           b.png,               b.png,0,0

are a regression, a classification, and (the last two) several labels for each image. Tags have `|`, `;`, `,` or white
space between them; a column `target` with `|` in it holds tags too.
"""

import contextlib
import csv
import io
import posixpath
import re
from collections.abc import Iterable
from typing import NamedTuple

from afina.data.files import Files, FileSource
from afina.data.folders import SPLIT_NAMES, fingerprint_of, roles, split_word
from afina.data.listing import Listing, Part, split_one
from afina.errors import InputError
from afina.tasks.forms import BETWEEN_LABELS, CLASSES, FLAGS, FORMS, NUMBERS, Form, Written, as_number, with_bars
from afina.types import TaskSpec

_COLUMNS = ("image", "target")
_TAGS = ("tags", "labels")  # columns that hold several labels
_FAMILY = re.compile(rf"(?P<stem>(?:.*[_./-])?)(?P<split>{'|'.join(SPLIT_NAMES)})\.csv", re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+(?:[eE][-+]?\d+)?")
_MISSING = "named in the table, but there is no such file"


class Row(NamedTuple):
    """One line of a table; `place` is the file and line, for messages."""

    place: str
    image: str
    target: str
    split: str


def find_table(files: Files, name: str) -> str:
    """The table of a folder or zip, at its top or in the one folder there; "" where there is none.

    Tables that differ by `_train`, `_val`, ... in their names count as one.

    Raises:
        InputError: there are several, and which one is meant cannot be known.
    """
    tables = [path for path in top_tables(files) if _is_table(_text(files, path))]
    families: dict[str, list[str]] = {}
    for path in tables:
        match = _FAMILY.fullmatch(path)
        families.setdefault(match["stem"] if match else path, []).append(path)
    if len(families) > 1:
        raise InputError(
            f"{name} holds {len(tables)} tables: {', '.join(tables[:5])}.",
            fix=f"Choose one: {name}/{tables[0]}",
        )
    members = next(iter(families.values()), [])
    return min(members, key=_rank, default="")


def top_tables(files: Files) -> list[str]:
    """CSV files at the top of a folder or zip, or in the one folder there, that can be read as text."""
    folders = {posixpath.dirname(path) for path in files.names} or {""}
    top = posixpath.commonpath(folders)
    return [
        path
        for path in files.names
        if path.lower().endswith(".csv") and posixpath.dirname(path) in ("", top) and _is_text(files, path)
    ]


def list_table(files: Files, table: str, name: str, seed: int, task: str | None) -> Listing:
    """The images that a table names, split by its `split` column, by a sibling table, or 80/20 by `seed`.

    Raises:
        InputError: columns are missing, or a target is not a finite number where numbers are expected.
    """
    tables = _split_tables(files, table)
    texts = {path: _text(files, path) for path in tables}
    rows = {tables[path]: _rows(texts[path], path) for path in tables}
    if len(tables) == 1 and any(row.split for row in next(iter(rows.values()))):
        rows = _by_column(next(iter(rows.values())))
    form = _form([row for split in rows.values() for row in split], task, texts[table])
    if form is FLAGS:
        rows = _with_bars(rows)
    columns, every_row = _label_columns(texts[table]), [row for split in rows.values() for row in split]
    spec = form.spec(columns or form.labels([Written(row.place, row.target) for row in every_row]))
    parts, missing = {}, dict[str, str]()
    for split, split_rows in rows.items():
        parts[split] = _part(files, posixpath.dirname(table), split_rows, form, spec, missing)
    if len(parts) == 1:
        labels = spec.labels if form.by_class else ()
        parts = split_one(next(iter(parts.values())), labels, seed, name)
    content = "\0".join(texts[path] for path in sorted(texts)).encode()
    fingerprint = fingerprint_of(files, {key for part in parts.values() for key in part.keys}, content)
    return Listing(name, spec, FileSource(files), parts, fingerprint, unreadable=missing)


def _rank(path: str) -> int:
    match = _FAMILY.fullmatch(path)
    return SPLIT_NAMES.index(match["split"].lower()) if match else -1


def _split_tables(files: Files, table: str) -> dict[str, str]:
    """A table and, where there are any, its siblings for the other splits, each with the split that it holds."""
    match = _FAMILY.fullmatch(table)
    if not match or "split" in _header(_text(files, table)):
        return {table: "train"}
    table_word = match["split"]
    sibling = {
        word: f"{table[: match.start('split')]}{_like(table_word, word)}{table[match.end('split') :]}"
        for word in SPLIT_NAMES
    }
    present = {word for word in SPLIT_NAMES if sibling[word] == table or files.has(sibling[word])}
    if "train" not in present:
        return {table: "train"}
    tables = {split: sibling[word] for split, word in roles(present).items()}
    if tables.get("test", table) != table and not _is_table(_text(files, tables["test"])):
        del tables["test"]  # as competitions have it: images whose targets are kept secret
    return {path: split for split, path in tables.items()}


def _like(example: str, word: str) -> str:
    return word.upper() if example.isupper() else word.capitalize() if example.istitle() else word


def _text(files: Files, table: str) -> str:
    try:
        return files.read(table).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{table} is not UTF-8 text.", why=str(error), fix="Save it as CSV in UTF-8.") from error
    except (OSError, KeyError) as error:
        raise InputError(f"{table} cannot be read.", why=str(error)) from error


def _is_text(files: Files, table: str) -> bool:
    with contextlib.suppress(InputError):
        return bool(_text(files, table).strip())
    return False


def _delimiter(text: str) -> str:
    first = text.split("\n", 1)[0]
    return max(",;\t", key=first.count)


def _header(text: str) -> list[str]:
    first = next(csv.reader(io.StringIO(text), delimiter=_delimiter(text)), [])
    return [column.strip().lower() for column in first]


def _is_table(text: str) -> bool:
    return _target_column(text) is not None or bool(_label_columns(text))


def _target_column(text: str) -> str | None:
    """The column of the targets, in a table that has one beside that of the images."""
    columns = _header(text)
    return next((name for name in ("target", *_TAGS) if name in columns and "image" in columns), None)


def _label_columns(text: str) -> tuple[str, ...]:
    """The columns that say 1 or 0 for a label each, in a table that has no target; none in any other."""
    reader = csv.reader(io.StringIO(text), delimiter=_delimiter(text))
    names = [column.strip() for column in next(reader, [])]
    if "image" not in map(str.lower, names) or _target_column(text) is not None:
        return ()
    places = [i for i, name in enumerate(names) if name.lower() not in ("image", "split")]
    lines = [line for line in reader if any(cell.strip() for cell in line)]
    flags = all(i < len(line) and line[i].strip() in ("0", "1") for line in lines for i in places)
    return tuple(names[i] for i in places) if len(places) > 1 and lines and flags else ()


def _rows(text: str, table: str) -> list[Row]:
    columns, labels, target_column = _header(text), _label_columns(text), _target_column(text)
    if not labels and target_column is None:
        raise InputError(
            f"{table} has no column named {' or '.join(c for c in _COLUMNS if c not in columns)}.",
            why=f"Its columns are: {', '.join(columns) or 'none, it is empty'}.",
            fix="Name the columns image and target in the first line, image and tags for several labels, or image and, "
            "with 0 or 1 in each line, a label each.",
        )
    flags = {label: columns.index(label.lower()) for label in labels}
    places = [columns.index(c) if c in columns else -1 for c in ("image", target_column, "split")]
    delimiter = _delimiter(text)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    next(reader)
    rows = []
    for line in reader:
        if any(cell.strip() for cell in line):
            image, target, split = (line[i].strip() if 0 <= i < len(line) else "" for i in places)
            if labels:
                target = BETWEEN_LABELS.join(label for label, i in flags.items() if line[i].strip() == "1")
            target = _with_point(target, delimiter != ",")
            rows.append(Row(f"{table}, line {reader.line_num}", image, target, split_word(split)))
    if not rows:
        raise InputError(f"{table} has no rows.", fix="Add a line with an image and its target for each image.")
    return rows


def _with_point(text: str, semicolons: bool) -> str:
    """A number as spreadsheets of half the world write it (`1,5`, in tables with semicolons), as Python reads it."""
    return text.replace(",", ".") if semicolons and _DECIMAL_COMMA.fullmatch(text) else text


def _by_column(rows: list[Row]) -> dict[str, list[Row]]:
    wrong = next((row for row in rows if row.split not in SPLIT_NAMES), None)
    if wrong:
        raise InputError(
            f"{wrong.place}: the split is {wrong.split!r}.", fix=f"Write one of: {', '.join(SPLIT_NAMES)}."
        )
    words = {row.split for row in rows}
    if "train" not in words and len(words) > 1:
        raise InputError(f"{rows[0].place}: the column split never says train.", fix="Mark rows with train.")
    return {split: [row for row in rows if row.split == word] for split, word in roles(words).items()}


def _form(rows: list[Row], task: str | None, text: str) -> Form:
    """The form of the targets: the one that is asked for, or what the columns and the targets say."""
    if _label_columns(text):
        return FLAGS
    if task is not None:
        return FORMS[task]
    if _target_column(text) in _TAGS or any(BETWEEN_LABELS in row.target for row in rows):
        return FLAGS
    return CLASSES if all(as_number(row.target) is None for row in rows) else NUMBERS


def _with_bars(rows: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """The rows with `|` between the labels of an image, whatever the table has there."""
    texts = iter(with_bars([row.target for split in rows.values() for row in split]))
    return {name: [row._replace(target=next(texts)) for row in split] for name, split in rows.items()}


def _part(files: Files, base: str, rows: Iterable[Row], form: Form, spec: TaskSpec, missing: dict[str, str]) -> Part:
    keys, targets = [], []
    for row in rows:
        key = _find_image(files, base, row.image)
        if key is None:
            missing[row.image or row.place] = _MISSING
            continue
        keys.append(key)
        targets.append(row.target)
    return Part(tuple(keys), form.from_text(targets, spec.labels))


def _find_image(files: Files, base: str, image: str) -> str | None:
    if not image:
        return None
    for written in (image, image.replace("\\", "/")):
        for folder in (base, posixpath.join(base, "images")):
            if files.has(name := posixpath.join(folder, written)):
                return name
    return None
