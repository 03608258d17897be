"""Several labels for each image of a folder: a text file of tags beside each, or the image in several class folders.

photos/a.jpg  photos/a.txt: "cat, dog"          photos/cat/a.jpg  photos/dog/a.jpg   (the same file twice)
photos/b.jpg  photos/b.txt: "cat"               photos/cat/b.jpg
"""

import posixpath
from collections.abc import Mapping

from afina.data.files import Files, FileSource, is_image
from afina.data.folders import class_folders, fingerprint_of
from afina.data.listing import Listing
from afina.data.splits import folder_split, split_by_folders
from afina.errors import InputError
from afina.tasks.forms import BETWEEN_LABELS, FLAGS, Written, as_number, with_bars

_SHARE = 0.5  # of the images that have tags, from which on they are what the data is about


def list_tags(files: Files, name: str, seed: int) -> Listing:
    """The images of a folder with the tags in the text file beside each; those without one are left out, with a note.

    Tags are on lines of their own, or have `|`, `;`, `,` or white space between them.

    Raises:
        InputError: no image has such a file, or it is not text.
    """
    paths = _tag_files(files)
    if not paths:
        raise InputError(
            f"{name} has no text files of tags beside its images.",
            fix="Write the tags of photo.jpg into photo.txt, or give a CSV table with the columns image,tags.",
        )
    texts = with_bars([_text(files, path) for path in paths.values()])
    content = "\0".join(f"{path}\0{text}" for path, text in zip(paths.values(), texts, strict=True)).encode()
    images = sum(map(is_image, files.names))
    notes = [f"{name}: {images - len(paths)} images without a text file of tags are left out."]
    return _listing(files, name, seed, dict(zip(paths, texts, strict=True)), content, notes[: images > len(paths)])


def list_repeated(files: Files, name: str, seed: int) -> Listing:
    """The images of class folders, with all the classes that have the same file: same name, same content.

    Raises:
        InputError: there are no class folders.
    """
    texts, first = dict[str, str](), dict[tuple[str, str, str], str]()
    for label, key in (entry for entries in class_folders(files, name).values() for entry in entries):
        same = first.setdefault((folder_split(key), posixpath.basename(key), files.signature(key)), key)
        texts[same] = f"{texts[same]}{BETWEEN_LABELS}{label}" if same in texts else label
    return _listing(files, name, seed, texts, b"several", [])


def has_tags(files: Files) -> bool:
    """Whether a folder is about tags: most images have them, all lie in one folder of each split, none are numbers.

    Numbers are boxes for detectors, in the format of YOLO.
    """
    paths = _tag_files(files)
    folders = {tuple(part for part in key.split("/")[:-1] if part != folder_split(key)) for key in paths}
    if len(paths) < _SHARE * sum(map(is_image, files.names)) or len(folders) != 1:
        return False
    try:
        words = " ".join(_text(files, path) for path in paths.values()).split()
    except InputError:
        return False
    return any(as_number(word) is None for word in words)


def _tag_files(files: Files) -> dict[str, str]:
    """The text file of each image that has one."""
    names = set(files.names)
    beside = {key: f"{posixpath.splitext(key)[0]}.txt" for key in files.names if is_image(key)}
    return {key: path for key, path in beside.items() if path in names}


def _text(files: Files, path: str) -> str:
    try:
        return files.read(path).decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text.", why=str(error), fix="Save it in UTF-8.") from error


def _listing(files: Files, name: str, seed: int, texts: Mapping[str, str], content: bytes, notes: list[str]) -> Listing:
    labels = FLAGS.labels([Written(key, text) for key, text in texts.items()])
    if not labels:
        raise InputError(f"{name} has no tags.", why="All text files beside the images are empty.")
    flags = FLAGS.from_text(list(texts.values()), labels)
    parts = split_by_folders(texts, flags, seed, name)
    fingerprint = fingerprint_of(files, texts, content)
    return Listing(name, FLAGS.spec(labels), FileSource(files), parts, fingerprint, notes=tuple(notes))
