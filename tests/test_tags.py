"""Several labels for each image: from tables, from text files beside images, from class folders, from Python."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from afina.data import open_data
from afina.errors import InputError
from afina.progress import Progress

TAGS = ("cat", "dog", "cat; big dog", "")


def _photo(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), number, dtype=np.uint8)).save(path)


def _table(folder: Path, header: str, tags: tuple[str, ...] = TAGS) -> Path:
    for number in range(20):
        _photo(folder / f"{number}.png", number)
    lines = [f"{number}.png,{tags[number % len(tags)]}" for number in range(20)]
    (folder / "table.csv").write_text("\n".join([header, *lines]))
    return folder


@pytest.mark.parametrize("mark", [";", "|", " | ", " ;"])
def test_a_column_of_tags_makes_several_labels_whatever_stands_between_them(mark, tmp_path):
    data = open_data(_table(tmp_path, "image,tags", tuple(tag.replace(";", mark) for tag in TAGS)))
    assert (data.task.name, data.task.labels) == ("multilabel", ("big dog", "cat", "dog"))
    both = data.targets("train")[[name in ("2.png", "6.png") for name in data.names("train")]]
    assert both.tolist() == [[1, 1, 0]] * len(both)


def test_tags_with_commas_or_spaces_are_told_apart_by_the_whole_table(tmp_path):
    commas = _table(tmp_path / "commas", "image,tags", ("cat", '"cat, big dog"', "big dog"))
    assert open_data(commas).task.labels == ("big dog", "cat")
    spaces = _table(tmp_path / "spaces", "image,tags", ("cat", "cat dog", "dog"))
    assert open_data(spaces).task.labels == ("cat", "dog")


def test_a_target_column_with_bars_says_several_labels_and_words_stay_classes(tmp_path):
    assert open_data(_table(tmp_path / "bars", "image,target", ("cat", "cat|dog", "dog"))).task.name == "multilabel"
    assert open_data(_table(tmp_path / "words", "image,target", ("cat", "dog"))).task.name == "classification"


def _tagged(folder: Path, tags: tuple[str, ...], count: int = 20) -> Path:
    for number in range(count):
        _photo(folder / f"{number:02}.jpg", number)
        (folder / f"{number:02}.txt").write_text(tags[number % len(tags)])
    return folder


@pytest.mark.parametrize("tags", [("cat", "cat, dog", ""), ("cat\n", "cat\ndog\n", "")])
def test_a_text_file_beside_each_image_holds_its_tags(tags, tmp_path):
    data = open_data(_tagged(tmp_path / "photos", tags))
    assert (data.task.name, data.task.labels) == ("multilabel", ("cat", "dog"))
    assert data.count("train") + data.count("validation") == 20
    row = dict(zip(data.names("train"), data.targets("train").tolist(), strict=True))
    assert all(row[name] == [[1, 0], [1, 1], [0, 0]][int(name[:2]) % 3] for name in row)


def test_tags_of_folders_that_name_splits_stay_in_them_and_another_tag_is_other_data(tmp_path):
    _tagged(tmp_path / "train", ("cat", "dog"))
    _tagged(tmp_path / "val", ("cat", "dog"), 6)
    data = open_data(tmp_path)
    assert (data.count("train"), data.count("validation")) == (20, 6)
    (tmp_path / "val" / "00.txt").write_text("dog")
    assert open_data(tmp_path).fingerprint != data.fingerprint


def test_images_without_a_text_file_are_left_out_and_told(tmp_path):
    said = []

    _photo(_tagged(tmp_path, ("cat", "dog")) / "extra.jpg", 9)
    progress = Progress()
    progress.say = said.append
    assert open_data(tmp_path, progress=progress).count("train") == 16
    assert any("1 images without a text file of tags are left out" in text for text in said)


def test_boxes_in_text_files_are_no_tags(tmp_path):
    _tagged(tmp_path, ("0 0.5 0.5 0.2 0.3", "1 0.1 0.2 0.3 0.4"))
    with pytest.raises(InputError, match="no class folders"):
        open_data(tmp_path)


def test_class_folders_stay_classes_although_text_files_lie_beside_the_images(tmp_path):
    for label in ("ant", "bee"):
        _tagged(tmp_path / label, ("cat", "dog"))
    assert open_data(tmp_path).task.labels == ("ant", "bee")


def test_an_image_in_several_class_folders_has_all_their_labels_where_that_is_asked_for(tmp_path):
    for number in range(20):
        _photo(tmp_path / "cat" / f"{number}.png", number)
        _photo(tmp_path / "dog" / f"{number}.png", number if number < 10 else 100 + number)
    data = open_data(tmp_path, task="multilabel")
    targets = torch.cat([data.targets("train"), data.targets("validation")])
    assert (len(targets), int(targets.sum()), data.task.labels) == (30, 40, ("cat", "dog"))
    assert open_data(tmp_path).task.name == "classification"


@pytest.mark.parametrize("kind", [torch.float32, torch.int64, torch.bool])
def test_a_dataset_whose_targets_are_vectors_of_flags_has_several_labels(kind):
    flags = (torch.arange(60).reshape(20, 3) % 4 == 0).to(kind)
    data = open_data(TensorDataset(torch.rand(20, 3, 8, 8), flags))
    assert (data.task.name, data.task.labels) == ("multilabel", ("0", "1", "2"))
    assert data.targets("train").dtype == torch.float32
    if kind == torch.float32:
        assert open_data(TensorDataset(torch.rand(20, 3, 8, 8), flags), task="regression").task.name == "regression"


def test_a_vector_that_is_no_flags_is_refused_for_several_labels():
    data = TensorDataset(torch.rand(20, 3, 8, 8), torch.rand(20, 3))
    with pytest.raises(InputError, match="no vector of 0 and 1"):
        open_data(data, task="multilabel")
