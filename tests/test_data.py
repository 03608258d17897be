"""What a user may call data, what becomes of it, and what is said about data that will not do."""

import io
import multiprocessing
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from torch.utils.data import DataLoader, Dataset, IterableDataset, SubsetRandomSampler, TensorDataset

from afina.data import AUGMENTATIONS, ImageData, Strong, batches, decode, open_data, preprocess
from afina.data.augment import Augmentation, draw
from afina.data.files import ZipFiles
from afina.errors import InputError
from afina.progress import Progress
from afina.types import InputSpec

PHOTOS = [Image.fromarray(photo) for photo in load_sample_images().images]  # 640 x 427
PLAIN = InputSpec(32, 32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def _photo(i: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """A small real picture, different for each number."""
    left, top = (i * 37) % 500, (i * 53) % 300
    return PHOTOS[i % 2].crop((left, top, left + 120, top + 96)).resize(size)


def _bytes(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _folder(root: Path, counts: dict[str, int], size: tuple[int, int] = (40, 32)) -> Path:
    """Folders with so many images each: `{"train/cat": 5}`."""
    number = 0
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            _photo(number, size).save(root / folder / f"{i:03}.png")
            number += 1
    return root


def _zip(folder: Path, path: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path


def _table(root: Path, name: str, rows: list[tuple[Any, ...]], header: str = "image,target") -> Path:
    """A table, and the images that it names in its first column."""
    root.mkdir(parents=True, exist_ok=True)
    lines = [header, *(",".join(str(cell) for cell in row) for row in rows)]
    (root / name).write_text("\n".join(lines) + "\n")
    for i, row in enumerate(rows):
        file = root / str(row[0])
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            _photo(i).save(file)
    return root / name


def _all(data: ImageData, split: str, input: InputSpec = PLAIN, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    images, targets = zip(*data.batches(split, input, batch_size=7, **options), strict=True)
    return torch.cat(images), torch.cat(targets)


class TestDigits:
    def test_are_real_grey_digits_with_their_own_normalisation_and_one_split_for_everyone(self) -> None:
        data, again = open_data("digits"), open_data("digits", seed=5)
        assert data.task.labels == tuple("0123456789")
        assert data.native.shape == (1, 8, 8)
        assert data.count("train") + data.count("validation") == 1797
        assert 355 <= data.count("validation") <= 365
        assert set(data.names("validation")) == set(again.names("validation"))
        images, targets = _all(data, "train", data.native)
        assert abs(images.mean()) < 0.01
        assert abs(images.std() - 1) < 0.01
        digit = load_digits().images[int(data.names("train")[0])] / 16
        mean, std = data.native.mean[0], data.native.std[0]
        np.testing.assert_allclose(images[0, 0].numpy() * std + mean, digit, atol=0.003)
        assert targets[0] == load_digits().target[int(data.names("train")[0])]

    def test_are_shifted_but_never_mirrored(self) -> None:
        data = open_data("digits")
        images, _ = _all(data, "train", data.native)
        varied, _ = _all(data, "train", data.native, augment=True)
        same = (images - varied).abs().flatten(1).max(1).values < 1e-6
        assert 0.05 < same.float().mean() < 0.2  # one in nine stays where it was
        inner = varied[:, :, 2:6, 2:6]
        found = torch.zeros(len(images), dtype=torch.bool)
        for y in (1, 2, 3):
            for x in (1, 2, 3):
                part = images[:, :, y : y + 4, x : x + 4]
                found |= (part - inner).abs().flatten(1).max(1).values < 1e-6
        assert found.all()


class TestFolders:
    def test_with_two_splits_are_read_as_they_are(self, tmp_path: Path) -> None:
        data = open_data(_folder(tmp_path, {"train/cat": 5, "train/dog": 4, "val/cat": 2, "val/dog": 3}))
        assert (data.count("train"), data.count("validation")) == (9, 5)
        assert data.task.name == "classification"
        assert data.task.labels == ("cat", "dog")
        assert data.labelled
        assert data.native == InputSpec(32, 40)
        assert data.targets("train").bincount().tolist() == [5, 4]
        for name, target in zip(data.names("validation"), data.targets("validation"), strict=True):
            assert name.split("/")[:2] == ["val", data.task.labels[target]]

    @pytest.mark.parametrize("word", ["val", "valid", "validation", "test", "Test"])
    def test_may_call_the_validation_split_by_any_usual_name(self, tmp_path: Path, word: str) -> None:
        _folder(tmp_path, {"train/a": 2, "train/b": 2, f"{word}/a": 2, f"{word}/b": 2})
        assert all(name.startswith(word) for name in open_data(tmp_path).names("validation"))

    def test_with_val_and_test_are_judged_on_val(self, tmp_path: Path) -> None:
        splits = ("train", "test", "val")
        data = open_data(_folder(tmp_path, {f"{split}/{label}": 3 for split in splits for label in "ab"}))
        assert {name.split("/")[0] for name in data.names("validation")} == {"val"}

    @pytest.mark.parametrize("prefix", ["", "train/", "pets/", "pets/train/"])
    def test_with_one_split_are_split_by_class_the_same_way_each_time(self, tmp_path: Path, prefix: str) -> None:
        _folder(tmp_path, {f"{prefix}cat": 20, f"{prefix}dog": 10})
        data, again, other = (open_data(tmp_path, seed=seed) for seed in (1, 1, 2))
        assert data.task.labels == ("cat", "dog")
        assert data.targets("train").bincount().tolist() == [16, 8]
        assert data.targets("validation").bincount().tolist() == [4, 2]
        assert not set(data.names("train")) & set(data.names("validation"))
        assert data.names("validation") == again.names("validation")
        assert set(data.names("validation")) != set(other.names("validation"))

    def test_ignore_hidden_files_and_system_litter(self, tmp_path: Path) -> None:
        _folder(tmp_path, {"cat": 5, "dog": 5, ".cache": 2, "__MACOSX/cat": 2})
        for name in ("cat/Thumbs.db", "cat/._000.png", "dog/notes.txt", ".DS_Store", "loose.png"):
            (tmp_path / name).write_bytes(b"litter")
        data = open_data(tmp_path)
        assert data.count("train") + data.count("validation") == 10
        assert not data.unreadable

    def test_hold_a_class_called_train_too(self, tmp_path: Path) -> None:
        assert open_data(_folder(tmp_path, {"train": 5, "plane": 5})).task.labels == ("plane", "train")

    def test_take_images_in_folders_below_a_class_and_survive_a_link_to_themselves(self, tmp_path: Path) -> None:
        _folder(tmp_path, {"cat/day": 3, "cat/night": 3, "dog": 6})
        (tmp_path / "dog" / "loop").symlink_to(tmp_path / "dog")
        data = open_data(tmp_path)
        assert data.count("train") + data.count("validation") == 12

    @pytest.mark.parametrize(
        ("sizes", "expected"),
        [([(40, 32)], (32, 40)), ([(40, 32), (41, 32)], (224, 224)), ([(600, 500)], (224, 224))],
    )
    def test_suggest_their_own_size_where_all_images_share_a_small_one(
        self, tmp_path: Path, sizes: list[tuple[int, int]], expected: tuple[int, int]
    ) -> None:
        for i, size in enumerate(sizes):
            _folder(tmp_path, {f"a/{i}": 2, f"b/{i}": 2}, size)
        native = open_data(tmp_path).native
        assert (native.height, native.width, native.order) == (*expected, "RGB")


class TestZips:
    def test_give_what_the_folder_gives_without_extracting(self, tmp_path: Path) -> None:
        folder = _folder(tmp_path / "pets", {"train/cat": 4, "train/dog": 4, "val/cat": 3, "val/dog": 2})
        path = _zip(folder, tmp_path / "pets.zip")
        before = set(tmp_path.rglob("*"))
        expected, given = open_data(folder), open_data(path)
        assert given.names("train") == expected.names("train")
        torch.testing.assert_close(_all(given, "validation"), _all(expected, "validation"))
        assert set(tmp_path.rglob("*")) == before

    def test_may_wrap_all_in_one_folder(self, tmp_path: Path) -> None:
        folder = _folder(tmp_path / "pets", {"cat": 5, "dog": 5})
        path = _zip(folder, tmp_path / "a.zip", prefix="pets-main/images/")
        assert open_data(path).task.labels == ("cat", "dog")
        assert open_data(path / "pets-main").task.labels == ("cat", "dog")

    def test_are_read_from_other_processes_too(self, tmp_path: Path) -> None:
        path = _zip(_folder(tmp_path / "f", {"a": 2, "b": 2}), tmp_path / "f.zip")
        files = ZipFiles(path)
        content = {name: files.read(name) for name in files.names}
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            assert pool.map(files.read, list(content)) == list(content.values())
        assert pickle.loads(pickle.dumps(files)).names == files.names


class TestTables:
    ROWS: ClassVar = [(f"{i}.png", i / 2) for i in range(20)]

    def test_of_numbers_are_regression_split_80_20(self, tmp_path: Path) -> None:
        data = open_data(_table(tmp_path, "sizes.csv", self.ROWS))
        assert data.task.name == "regression"
        assert data.task.labels == ("target",)
        assert (data.count("train"), data.count("validation")) == (16, 4)
        assert data.targets("train").dtype == torch.float32
        assert data.targets("train").shape == (16, 1)
        for name, target in zip(data.names("train"), data.targets("train"), strict=True):
            assert target.item() == int(name.removesuffix(".png")) / 2

    @pytest.mark.parametrize(("stem", "other"), [("cells_", "val"), ("cells-", "test"), ("", "valid")])
    @pytest.mark.parametrize("zipped", [False, True])
    def test_with_a_sibling_for_the_other_split_use_it(
        self, tmp_path: Path, stem: str, other: str, zipped: bool
    ) -> None:
        _table(tmp_path / "t", f"{stem}train.csv", self.ROWS[:12])
        _table(tmp_path / "t", f"{stem}{other}.csv", self.ROWS[12:])
        base = _zip(tmp_path / "t", tmp_path / "t.zip") if zipped else tmp_path / "t"
        for path in (base / f"{stem}train.csv", base / f"{stem}{other}.csv", base):
            data = open_data(path)
            assert (data.count("train"), data.count("validation")) == (12, 8)
            assert data.targets("validation").min() == 6.0

    def test_with_a_split_column_use_it(self, tmp_path: Path) -> None:
        words = ["train"] * 12 + ["Val"] * 5 + ["test"] * 3
        rows = [(*row, word) for row, word in zip(self.ROWS, words, strict=True)]
        data = open_data(_table(tmp_path, "t.csv", rows, "image,target,split"))
        assert (data.count("train"), data.count("validation")) == (12, 5)

    def test_of_words_or_on_request_are_classification(self, tmp_path: Path) -> None:
        rows = [(f"{i}.png", ["owl", "emu"][i % 2]) for i in range(20)]
        data = open_data(_table(tmp_path / "w", "t.csv", rows))
        assert (data.task.name, data.task.labels) == ("classification", ("emu", "owl"))
        assert data.targets("train").dtype == torch.int64
        graded = _table(tmp_path / "n", "t.csv", [(f"{i}.png", i % 3) for i in range(30)])
        assert open_data(graded).task.name == "regression"
        assert open_data(graded, task="classification").task.labels == ("0", "1", "2")

    def test_find_images_in_a_folder_beside_them_and_read_what_spreadsheets_write(self, tmp_path: Path) -> None:
        _folder(tmp_path, {"images": 12})
        lines = ["\ufeffImage;Target", *(f"{i:03}.png;{i}" for i in range(12)), "", ";"]
        (tmp_path / "t.csv").write_text("\r\n".join(lines[:-1]), encoding="utf-8")
        data = open_data(tmp_path)
        assert data.count("train") + data.count("validation") == 12
        assert data.unreadable == {}


class _Pictures(Dataset[Any]):
    classes = ("ant", "bee")

    def __init__(self, items: list[Any], transform: Callable[[Any], Any] | None = None) -> None:
        self.items, self.transform = items, transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.transform(self.items[i]) if self.transform else self.items[i]


def _tensors(n: int = 20, targets: bool = True) -> TensorDataset:
    images = torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return TensorDataset(images, torch.arange(n) % 2) if targets else TensorDataset(images)


class TestTorchData:
    def test_ready_tensors_are_passed_as_they_are(self) -> None:
        dataset = _tensors()
        data = open_data(dataset)
        assert data.task.labels == ("0", "1")
        assert data.native.shape == (3, 16, 16)
        images, targets = _all(data, "validation", data.native)
        for name, image, target in zip(data.names("validation"), images, targets, strict=True):
            expected = dataset[int(name.split("/")[1])]
            assert torch.equal(image, expected[0])
            assert target == expected[1]

    def test_ready_tensors_of_another_size_are_refused_not_resized(self) -> None:
        with pytest.raises(InputError, match=r"3 x 16 x 16 .* expects 3 x 32 x 32"):
            open_data(_tensors()).batches("train", PLAIN, batch_size=4)

    @pytest.mark.parametrize("as_array", [False, True])
    def test_pictures_are_preprocessed_like_files(self, as_array: bool) -> None:
        pictures = [_photo(i) for i in range(10)]
        items = [(np.asarray(p) if as_array else p, i % 2) for i, p in enumerate(pictures)]
        data = open_data(_Pictures(items))
        assert data.task.labels == ("ant", "bee")
        images, _ = _all(data, "train")
        first = int(data.names("train")[0].split("/")[1])
        np.testing.assert_allclose(images[0], preprocess(pictures[first], PLAIN), atol=1e-5)

    def test_a_pair_gives_both_splits_and_a_loader_only_what_its_sampler_chooses(self) -> None:
        dataset = _tensors(30)
        train = DataLoader(dataset, batch_size=4, sampler=SubsetRandomSampler(range(20)), drop_last=True)
        validation = DataLoader(dataset, batch_size=4, sampler=SubsetRandomSampler(range(20, 30)))
        state = torch.get_rng_state()
        data = open_data((train, validation))
        assert (data.count("train"), data.count("validation")) == (20, 10)
        assert torch.equal(torch.get_rng_state(), state)
        images, _ = _all(data, "validation", data.native)
        expected = {dataset[i][0].sum().item() for i in range(20, 30)}
        assert {image.sum().item() for image in images} == expected

    def test_images_alone_are_data_without_labels(self) -> None:
        for source in (_tensors(targets=False), DataLoader(_tensors(targets=False), batch_size=4, shuffle=True)):
            data = open_data(source)
            assert not data.labelled
            assert data.task.labels == ()
            assert data.targets("train").tolist() == [0] * 16

    def test_fractions_are_regression_with_an_output_each(self) -> None:
        images = torch.randn(10, 1, 8, 8)
        data = open_data(TensorDataset(images, torch.rand(10, 2)))
        assert (data.task.name, data.task.outputs, data.native.order) == ("regression", 2, "L")
        assert data.targets("train").shape == (8, 2)
        assert open_data(TensorDataset(images, torch.rand(10))).targets("train").shape == (8, 1)

    def test_streams_are_kept_and_custom_collation_is_honoured(self) -> None:
        class Stream(IterableDataset[Any]):
            def __iter__(self) -> Iterator[Any]:
                return iter(_tensors(12))

        assert open_data(Stream()).count("train") == 10
        assert open_data(DataLoader(Stream(), batch_size=5)).count("train") == 10
        doubled = DataLoader(
            _tensors(12), batch_size=5, collate_fn=lambda b: (torch.stack([i * 2 for i, _ in b]), [t for _, t in b])
        )
        data = open_data(doubled)
        images, _ = _all(data, "train", data.native)
        first = int(data.names("train")[0].split("/")[1])
        assert torch.equal(images[0], _tensors(12)[first][0] * 2)

    def test_the_normalisation_of_a_dataset_is_found_for_the_artifact(self) -> None:
        from torchvision.transforms import Compose, Normalize

        normalise = Compose([Normalize((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))])
        items = [(torch.rand(3, 8, 8), i % 2) for i in range(10)]
        dataset = _Pictures(items, None)
        dataset.transform = lambda item: (normalise(item[0]), item[1])
        assert open_data(dataset).native.mean == (0.0, 0.0, 0.0)  # inside a function it cannot be seen
        tensors = _tensors()
        tensors.transform = normalise  # type: ignore[attr-defined]
        assert open_data(DataLoader(tensors)).native.mean == pytest.approx((0.1, 0.2, 0.3))

    def test_a_dataset_that_varies_its_images_is_read_anew_and_not_varied_further(self) -> None:
        dataset = _Pictures(list(_tensors(10)), lambda item: (item[0] + torch.rand(1), item[1]))
        data = open_data(dataset)
        first, second = (_all(data, "train", data.native, augment=True)[0] for _ in range(2))
        assert not torch.equal(first, second)
        difference = (first - second).flatten(1)
        assert difference.std(1).max() < 1e-5  # only the dataset's own variation: one number an image

    @pytest.mark.parametrize(
        ("items", "message"),
        [
            ([("a.png", 0), ("b.png", 1)], "a str where an image is expected"),
            ([(torch.rand(3, 8, 8), "cat")] * 4, "a target of the dataset is 'cat'"),
            ([(torch.rand(3, 8, 8), float("nan"))] * 4, "a target of the dataset is 'nan'"),
            ([(torch.rand(3, 8, 8), -1)] * 4, "-1 is not a class number"),
            ([(torch.rand(3, 8, 8), 7)] * 4, "names 2 classes, and has a target 7"),
            ([(torch.rand(3, 8, 8), 0), (torch.rand(3, 9, 8), 1)] * 4, "train/1 of the dataset is unlike"),
            ([{"image": 1}] * 4, "a dict where an image"),
            ([(torch.rand(3, 8, 8), 0)] * 20, "one class only"),
            ([], "0 of the 2 or more images"),
        ],
    )
    def test_items_that_will_not_do_are_described(self, items: list[Any], message: str) -> None:
        with pytest.raises(InputError, match=f"(?i){re.escape(message)}"):
            open_data(_Pictures(items))


def _half_transparent() -> Image.Image:
    image = Image.new("RGBA", (32, 32), (255, 0, 0, 255))
    image.paste((0, 0, 255, 0), (0, 0, 16, 32))
    return image


class TestPreprocessing:
    @pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "LA", "RGBA", "I;16", "I"])
    @pytest.mark.parametrize("order", ["RGB", "L"])
    def test_every_usual_mode_shows_the_same_picture(self, mode: str, order: Any) -> None:
        grey = Image.fromarray(np.repeat(np.linspace(0, 255, 32).astype(np.uint8)[None], 32, 0))
        if mode in ("I;16", "I"):
            wide = np.asarray(grey).astype(np.int32 if mode == "I" else np.uint16) * 257
            image = Image.fromarray(wide)
        elif mode == "P":
            image = grey.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
        else:
            image = grey.convert("RGB").convert(mode) if mode != "LA" else grey.convert("LA")
        assert image.mode == mode
        pixels = decode(image, InputSpec(32, 32, order=order))
        assert pixels.dtype == np.uint8
        assert pixels.shape == (1 if order == "L" else 3, 32, 32)
        if mode != "1":
            assert np.abs(pixels.astype(int) - np.asarray(grey)).max() <= 3

    def test_transparent_parts_are_white_however_they_are_stored(self) -> None:
        palette = Image.new("P", (32, 32))
        palette.putpalette([0, 0, 255, 255, 0, 0])
        palette.paste(1, (16, 0, 32, 32))
        for data in (
            _bytes(_half_transparent()),
            _bytes(palette, "GIF", transparency=0),
            _bytes(palette, transparency=0),
        ):
            pixels = decode(Image.open(io.BytesIO(data)), PLAIN)
            assert pixels[:, 0, 0].tolist() == [255, 255, 255]
            assert pixels[:, 0, 31].tolist() == [255, 0, 0]

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_images_are_turned_as_the_camera_was_held(self, orientation: int) -> None:
        upright = PHOTOS[0].resize((64, 48))
        undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
        stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
        exif = Image.Exif()
        exif[0x0112] = orientation
        seen = decode(Image.open(io.BytesIO(_bytes(stored, exif=exif))), InputSpec(48, 64))
        assert np.array_equal(seen, np.asarray(upright).transpose(2, 0, 1))

    def test_the_aspect_ratio_decides_between_resizing_whole_and_cutting_the_middle(self) -> None:
        near = PHOTOS[0].resize((105, 100))
        assert np.array_equal(
            decode(near, PLAIN), np.asarray(near.resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        )
        wide = Image.new("RGB", (300, 100), "white")
        wide.paste((0, 0, 0), (100, 0, 200, 100))
        middle = decode(wide, PLAIN)
        assert middle[:, :, 2:30].max() == 0
        usual = PHOTOS[0].resize((48, 32), Image.Resampling.BILINEAR).crop((8, 0, 40, 32))
        difference = decode(PHOTOS[0], PLAIN).astype(int) - np.asarray(usual).transpose(2, 0, 1)
        assert np.abs(difference).mean() < 1  # as resizing the shorter side and cropping the centre

    def test_numbers_are_scaled_and_normalised_in_the_order_that_the_network_wants(self) -> None:
        red = Image.new("RGB", (8, 8), (255, 51, 0))
        spec = InputSpec(8, 8, (0.5, 0.1, 0.0), (0.5, 0.2, 1.0), "RGB")
        assert preprocess(red, spec)[:, 0, 0] == pytest.approx([1.0, 0.5, 0.0])
        assert preprocess(red, InputSpec(8, 8, (0, 0, 0), (1, 1, 1), "BGR"))[:, 0, 0] == pytest.approx([0, 0.2, 1])
        assert preprocess(red, spec).dtype == np.float32

    def test_batches_hold_exactly_what_preprocess_gives(self, tmp_path: Path) -> None:
        data = open_data(_folder(tmp_path, {"a": 5, "b": 5}))
        spec = InputSpec(24, 24, order="BGR")
        for memory in (10**9, 1):
            data = open_data(tmp_path, memory=memory)
            images, _ = _all(data, "train", spec)
            expected = [preprocess(Image.open(tmp_path / name), spec) for name in data.names("train")]
            np.testing.assert_allclose(images, np.stack(expected), atol=1e-5)
            assert images.dtype == torch.float32


class TestBatches:
    @pytest.fixture
    def data(self, tmp_path: Path) -> ImageData:
        return open_data(_folder(tmp_path, {"a": 14, "b": 14}))

    def test_cover_each_image_once_in_the_order_of_the_targets(self, data: ImageData) -> None:
        batches = data.batches("train", PLAIN, batch_size=5)
        assert len(batches) == 5
        assert [len(images) for images, _ in batches] == [5, 5, 5, 5, 2]
        assert torch.equal(torch.cat([targets for _, targets in batches]), data.targets("train"))

    @pytest.mark.parametrize("memory", [10**9, 1])
    def test_of_one_seed_are_the_same_and_of_another_are_not(self, tmp_path: Path, memory: int) -> None:
        data = open_data(_folder(tmp_path, {"a": 14, "b": 14}), memory=memory)
        options = {"augment": True, "shuffle": True}
        first, same, other = (_all(data, "train", seed=seed, **options) for seed in (1, 1, 2))
        assert torch.equal(first[0], same[0])
        assert torch.equal(first[1], same[1])
        assert not torch.equal(first[0], other[0])

    def test_with_a_limit_are_a_fair_sample_and_match_the_first_targets(self, data: ImageData) -> None:
        images, targets = _all(data, "train", limit=10)
        assert len(images) == 10
        assert torch.equal(targets, data.targets("train")[:10])
        assert set(targets.tolist()) == {0, 1}

    def test_are_shared_out_whole_and_the_parts_means_weigh_up_to_that_of_the_batch(self, data: ImageData) -> None:
        whole, targets = _all(data, "train", shuffle=True, seed=3)
        parts = [data.batches("train", PLAIN, batch_size=9, shuffle=True, seed=3, share=(i, 2)) for i in range(2)]
        batches = [list(part) for part in parts]
        start = 0
        for number, (first, second) in enumerate(zip(*batches, strict=True)):
            count = parts[0].parts[number].whole
            own = whole[start : start + count]
            assert torch.equal(
                torch.sort(torch.cat([first[1], second[1]]))[0], torch.sort(targets[start : start + count])[0]
            )
            mean = sum(p.parts[number].weight * b[0].mean(0) for p, b in zip(parts, (first, second), strict=True)) / 2
            assert torch.allclose(mean, own.mean(0), atol=1e-6)
            start += count
        assert start == len(whole)

    def test_that_are_small_are_not_shared_out(self, data: ImageData) -> None:
        for i in range(4):
            part = data.batches("train", PLAIN, batch_size=7, share=(i, 4))
            assert [len(images) for images, _ in part] == [7, 7, 7, 1]
            assert [p.weight for p in part.parts] == [1, 1, 1, 1]

    def test_never_leave_a_single_image_to_train_on(self, data: ImageData) -> None:
        assert [len(i) for i, _ in data.batches("train", PLAIN, batch_size=7, shuffle=True)] == [7, 7, 8]
        assert [len(i) for i, _ in data.batches("train", PLAIN, batch_size=7)] == [7, 7, 7, 1]

    def test_may_be_left_in_the_middle_while_images_are_still_being_read(self, tmp_path: Path) -> None:
        data = open_data(_folder(tmp_path, {"a": 20, "b": 20}), memory=1)
        for _ in data.batches("train", PLAIN, batch_size=2):
            break

    def test_of_a_known_input_need_one_pass_over_the_files(self, tmp_path: Path) -> None:
        class Count(Progress):
            passes = 0

            def work(self, label: str, total: int) -> Any:
                Count.passes += 1
                return super().work(label, total)

        _folder(tmp_path, {"a": 5, "b": 5})
        data = open_data(tmp_path, input=PLAIN, progress=Count())
        _all(data, "train")
        _all(data, "validation")
        assert Count.passes == 2  # one for each split
        _all(data, "train", InputSpec(16, 16))
        assert Count.passes == 3

    @pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"batch_size": 4, "limit": 0}])
    def test_of_no_images_are_refused(self, data: ImageData, arguments: dict[str, int]) -> None:
        with pytest.raises(InputError, match="is 0"):
            data.batches("train", PLAIN, **arguments)

    @pytest.mark.parametrize("memory", [10**9, 1])
    def test_of_folds_judge_each_training_image_once_by_class_and_never_train_on_it(
        self, tmp_path: Path, memory: int
    ) -> None:
        data = open_data(_folder(tmp_path, {"a": 20, "b": 11}), input=PLAIN, memory=memory)
        whole, targets = _all(data, "train")
        places = {name: i for i, name in enumerate(data.names("train"))}
        judged: list[str] = []
        for number in range(3):
            fold = data.fold(number, 3)
            for split in ("train", "validation"):
                images, own = _all(fold, split)
                at = torch.tensor([places[name] for name in fold.names(split)])
                assert torch.equal(images, whole[at])
                assert torch.equal(own, targets[at])
            assert not set(fold.names("train")) & set(fold.names("validation"))
            assert fold.targets("validation").bincount().tolist() in ([5, 3], [6, 3], [5, 4])
            judged += fold.names("validation")
        assert sorted(judged) == sorted(places)

    def test_of_a_fold_of_a_share_are_those_of_the_share(self, data: ImageData) -> None:
        whole, _ = _all(data, "train", limit=12)
        fold = data.with_share(0.5).fold(0, 2)
        places = {name: i for i, name in enumerate(data.names("train")[:12])}
        for split in ("train", "validation"):
            images, _ = _all(fold, split)
            assert torch.equal(images, whole[torch.tensor([places[name] for name in fold.names(split)])])

    def test_of_folds_need_two_images_of_a_class(self, tmp_path: Path) -> None:
        data = open_data(_folder(tmp_path, {"a": 20, "b": 2}))
        with pytest.raises(InputError, match="cannot be divided into 3 folds"):
            data.fold(1, 3)

    def test_of_a_mistyped_split_get_did_you_mean(self, data: ImageData) -> None:
        with pytest.raises(InputError, match="Did you mean train"):
            data.batches("trian", PLAIN, batch_size=4)


def augment(images: torch.Tensor, kind: Augmentation, generator: torch.Generator) -> torch.Tensor:
    """A varied copy of `[N, C, H, W]`."""
    return draw(len(images), *images.shape[2:], kind, generator).applied(images)


class TestAugmentation:
    IMAGES = torch.stack([torch.from_numpy(np.asarray(_photo(i, (32, 32))).copy()).permute(2, 0, 1) for i in range(64)])

    def _varied(self, kind: str, images: torch.Tensor | None = None) -> torch.Tensor:
        given = self.IMAGES if images is None else images
        return augment(given, AUGMENTATIONS[kind], torch.Generator().manual_seed(0))

    @pytest.mark.parametrize("kind", AUGMENTATIONS)
    def test_keeps_shape_range_and_the_given_images(self, kind: str) -> None:
        before = self.IMAGES.clone()
        varied = self._varied(kind)
        assert varied.shape == before.shape
        assert torch.equal(self.IMAGES, before)
        assert varied.min() >= before.min()
        assert varied.max() <= before.max() + 1e-3
        assert (kind == "none") == torch.equal(varied, before)

    def test_shifts_by_whole_pixels_within_an_eighth_and_reflects_the_border(self) -> None:
        padded = torch.nn.functional.pad(self.IMAGES.float(), (4, 4, 4, 4), mode="reflect")
        places = []
        for image, given in zip(self._varied("shift").float(), padded, strict=True):
            windows = given.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4)
            hits = (windows == image).flatten(2).all(2).nonzero()
            assert len(hits) == 1
            places.append(tuple(hits[0].tolist()))
        assert len(set(places)) > 30

    @pytest.mark.parametrize("kind", ["shift", "crop"])
    def test_varies_more_with_more_strength(self, kind: str) -> None:
        def change(strength: float) -> float:
            options = replace(AUGMENTATIONS[kind], strength=strength)
            varied = augment(self.IMAGES, options, torch.Generator().manual_seed(0))
            assert varied.shape == self.IMAGES.shape
            return float((varied.float() - self.IMAGES.float()).abs().mean())

        assert change(0.0) < 1e-3
        assert change(0.5) < change(1.0) < change(2.0)
        usual = augment(self.IMAGES, AUGMENTATIONS[kind], torch.Generator().manual_seed(0))
        assert change(1.0) == float((usual.float() - self.IMAGES.float()).abs().mean())

    def test_of_training_has_the_strength_that_is_asked_for(self) -> None:
        data = open_data("digits", seed=0)

        def change(strength: float) -> float:
            varied = data.batches("train", data.native, batch_size=64, augment=strength)
            plain = data.batches("train", data.native, batch_size=64)
            return sum(float((a - b).abs().mean()) for (a, *_), (b, *_) in zip(varied, plain, strict=True))

        assert 0 == change(0) < change(1) == change(True) < change(2)

    def test_mirrors_about_half_of_the_images(self) -> None:
        flat = self.IMAGES[:, :, :7, :7]  # too small to be shifted
        varied = self._varied("shift+flip", flat)
        mirrored = (varied == flat.flip(3)).flatten(1).all(1)
        assert 16 < mirrored.sum() < 48
        assert torch.equal(varied[~mirrored], flat[~mirrored])

    def test_crops_parts_of_half_to_all_of_the_area_from_inside_the_image(self) -> None:
        ramp = torch.arange(128.0).expand(256, 1, 128, 128)
        varied = self._varied("crop", ramp)
        widths = (varied[:, 0, 64, -1] - varied[:, 0, 64, 0]) / 127
        assert 0.5 < widths.min() < 0.7
        assert 0.9 < widths.max() <= 1.001
        assert (varied[:, 0, 0, 0] >= 0).all()
        assert (varied[:, :, 0] - varied[:, :, -1]).abs().max() < 1e-3

    def test_crops_large_photos_but_never_what_a_regression_measures(self, tmp_path: Path) -> None:
        large = InputSpec(96, 96)
        photos = open_data(_folder(tmp_path / "f", {"a": 5, "b": 5}))
        numbers = open_data(_table(tmp_path / "t", "t.csv", TestTables.ROWS))
        assert photos._augmentation(large).crop
        assert not photos._augmentation(PLAIN).crop
        assert not numbers._augmentation(large).crop
        assert open_data(tmp_path / "f", augment="none")._augmentation(large) == AUGMENTATIONS["none"]


class TestFingerprint:
    def test_changes_when_a_file_does_and_only_then(self, tmp_path: Path) -> None:
        folder = _folder(tmp_path / "f", {"a": 3, "b": 3})
        first = open_data(folder).fingerprint
        assert open_data(folder, seed=3).fingerprint == first
        _photo(99, (50, 50)).save(folder / "a" / "000.png")
        assert open_data(folder).fingerprint != first

    @pytest.mark.parametrize("name", ["x.bmp", "x.jpg", "x.png"])
    def test_of_a_folder_sees_a_picture_replaced_by_one_of_the_same_size_and_time(
        self, tmp_path: Path, name: str
    ) -> None:
        folder = _folder(tmp_path / "f", {"a": 3, "b": 3})
        picture = folder / "a" / name
        kind = {"x.bmp": "BMP", "x.jpg": "JPEG", "x.png": "PNG"}[name]
        contents = [_bytes(_photo(number, (300, 300)), kind) for number in (1, 2)]
        size = max(map(len, contents))
        assert size > 3 * 16 * 1024 or name == "x.jpg"
        fingerprints = []
        for content in contents:
            picture.write_bytes(content.ljust(size, b"\0"))
            os.utime(picture, ns=(10**18, 10**18))
            fingerprints.append(open_data(folder).fingerprint)
        assert fingerprints[0] != fingerprints[1]

    def test_of_a_bitmap_sees_a_single_pixel(self, tmp_path: Path) -> None:
        folder = _folder(tmp_path / "f", {"a": 3, "b": 3})
        picture = _photo(1, (300, 300))
        picture.save(folder / "a" / "x.bmp")
        first = open_data(folder).fingerprint
        picture.putpixel((100, 100), (1, 2, 3))
        picture.save(folder / "a" / "x.bmp")
        assert open_data(folder).fingerprint != first

    def test_of_a_copy_elsewhere_is_the_same(self, tmp_path: Path) -> None:
        folder = _folder(tmp_path / "f", {"a": 3, "b": 3})
        shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
        assert open_data(tmp_path / "copy").fingerprint == open_data(folder).fingerprint

    def test_of_a_zip_sees_a_change_of_the_same_size(self, tmp_path: Path) -> None:
        folder = _folder(tmp_path / "f", {"a": 3, "b": 3})
        bitmap = folder / "a" / "x.bmp"
        _photo(1).save(bitmap)
        first = open_data(_zip(folder, tmp_path / "1.zip")).fingerprint
        _photo(2).save(bitmap)
        assert open_data(_zip(folder, tmp_path / "2.zip")).fingerprint != first

    def test_of_a_table_sees_a_changed_target(self, tmp_path: Path) -> None:
        path = _table(tmp_path, "t.csv", TestTables.ROWS)
        first = open_data(path).fingerprint
        path.write_text(path.read_text().replace("0.png,0.0", "0.png,9.0"))
        assert open_data(path).fingerprint != first

    def test_of_tensors_sees_a_changed_image(self) -> None:
        dataset = _tensors()
        first = open_data(dataset).fingerprint
        dataset.tensors[0][3] += 1
        assert open_data(dataset).fingerprint != first


class TestUnreadableImages:
    DAMAGE: ClassVar = {
        "cut.png": _bytes(PHOTOS[0])[:9000],
        "cut.jpg": _bytes(PHOTOS[0], "JPEG")[:9000],
        "empty.png": b"",
        "text.jpg": b"<html>404</html>",
    }

    def _damaged(self, root: Path, good: int) -> Path:
        _folder(root, {"a": good // 2, "b": good // 2}, (8, 8))
        for name, content in self.DAMAGE.items():
            (root / "a" / name).write_bytes(content)
        return root

    @pytest.mark.parametrize("memory", [10**9, 1])
    def test_are_listed_with_the_reason_and_left_out(self, tmp_path: Path, memory: int) -> None:
        data = open_data(self._damaged(tmp_path, 500), memory=memory, input=InputSpec(8, 8))
        assert set(data.unreadable) == {f"a/{name}" for name in self.DAMAGE}
        assert data.unreadable["a/empty.png"] == "the file is empty"
        assert data.unreadable["a/text.jpg"] == "not an image"
        assert "truncated" in data.unreadable["a/cut.jpg"]
        assert data.count("train") + data.count("validation") == 500
        images, targets = _all(data, "train", InputSpec(8, 8))
        assert len(images) == len(targets) == data.count("train")
        assert not set(data.names("train")) & set(data.unreadable)

    def test_above_one_in_a_hundred_stop_the_work_and_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"4 of the 304 images .*\n.*more than 1%.* a/cut") as caught:
            open_data(self._damaged(tmp_path, 300))
        assert caught.value.exit_code == 2

    def test_include_bombs_and_damaged_entries_of_a_zip(self, tmp_path: Path, monkeypatch: Any) -> None:
        folder = _folder(tmp_path / "f", {"a": 150, "b": 150}, (8, 8))
        _photo(0, (100, 100)).save(folder / "b" / "huge.png")
        path = _zip(folder, tmp_path / "f.zip")
        content = bytearray(path.read_bytes())
        place = content.find((folder / "a" / "007.png").read_bytes())
        content[place + 60] ^= 0xFF
        path.write_bytes(content)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        data = open_data(path)
        assert set(data.unreadable) == {"a/007.png", "b/huge.png"}
        assert data.unreadable["b/huge.png"] == "too many pixels to decode safely"

    def test_include_rows_that_name_no_file(self, tmp_path: Path) -> None:
        path = _table(tmp_path, "t.csv", [(f"{i}.png", i) for i in range(120)])
        (tmp_path / "7.png").unlink()
        data = open_data(path)
        assert list(data.unreadable) == ["7.png"]
        assert "no such file" in data.unreadable["7.png"]
        (tmp_path / "8.png").unlink()
        with pytest.raises(InputError, match="2 of the 120 images"):
            open_data(path)

    def test_that_vanish_later_are_named_too(self, tmp_path: Path) -> None:
        data = open_data(_folder(tmp_path, {"a": 5, "b": 5}), memory=1)
        (tmp_path / data.names("train")[0]).unlink()
        with pytest.raises(InputError, match="can no longer be read"):
            _all(data, "train")


class TestDataThatWillNotDo:
    """One clear message each: what, why, the fix."""

    def _refused(self, source: Any, *words: str, **options: Any) -> None:
        with pytest.raises(InputError) as caught:
            open_data(source, **options)
        for word in words:
            assert re.search(word, str(caught.value)), str(caught.value)

    def test_a_mistyped_path_offers_its_siblings(self, tmp_path: Path) -> None:
        _folder(tmp_path / "photos", {"a": 1})
        self._refused(tmp_path / "fotos", "does not exist", "Did you mean photos")
        self._refused(tmp_path / "photo" / "train", "does not exist", "no photo in", "Did you mean photos")
        self._refused("digit", "Did you mean digits")

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        self._refused(tmp_path, "holds no images", "train/CLASS/IMAGE")
        (tmp_path / "notes.txt").write_text("x")
        self._refused(tmp_path, "but 1 other files")

    def test_images_without_class_folders(self, tmp_path: Path) -> None:
        self._refused(_folder(tmp_path / "x", {"": 3}), "no class folders")
        self._refused(_folder(tmp_path / "y", {"train": 3, "val": 3}), "no class folders inside train, val")
        counts = {"val/a": 2, "val/b": 2, "test/a": 2, "test/b": 2}
        self._refused(_folder(tmp_path / "z", counts), "test and val but no train")

    @pytest.mark.parametrize("counts", [{"cat": 5}, {"train/cat": 5, "val/cat": 5}])
    def test_one_class(self, tmp_path: Path, counts: dict[str, int]) -> None:
        self._refused(_folder(tmp_path, counts), r"one class only \(cat\)", "two or more|other class")

    def test_a_class_only_in_validation(self, tmp_path: Path) -> None:
        counts = {"train/cat": 3, "train/dog": 3, "val/cat": 3, "val/emu": 3}
        self._refused(_folder(tmp_path, counts), "only in the validation split, not in train: emu")

    def test_a_split_of_less_than_two_images(self, tmp_path: Path) -> None:
        self._refused(_folder(tmp_path, {"train/a": 3, "train/b": 3, "val/a": 1}), "validation split has 1 of")

    def test_a_class_with_too_few_images_to_split(self, tmp_path: Path) -> None:
        self._refused(_folder(tmp_path, {"cat": 5, "dog": 1}), "class 'dog' has one image")

    def test_a_file_of_another_kind(self, tmp_path: Path) -> None:
        (tmp_path / "data.tar").write_bytes(b"x")
        self._refused(tmp_path / "data.tar", "not data that Afina reads", "CSV table")
        self._refused(tmp_path / "data.tar" / "train", "is a file, not a folder")
        self._refused(42, "cannot be a int")

    def test_a_broken_zip(self, tmp_path: Path) -> None:
        path = _zip(_folder(tmp_path / "f", {"a": 3, "b": 3}), tmp_path / "f.zip")
        path.write_bytes(path.read_bytes()[:-200])
        self._refused(path, "not a zip that can be read", "again")

    def test_an_encrypted_zip(self, tmp_path: Path) -> None:
        path = _zip(_folder(tmp_path / "f", {"a": 3, "b": 3}), tmp_path / "f.zip")
        content = bytearray(path.read_bytes())
        content[content.find(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
        path.write_bytes(content)
        self._refused(path, "is encrypted", "without a password")

    def test_a_path_inside_a_zip_that_is_not_there(self, tmp_path: Path) -> None:
        _table(tmp_path / "f", "cells_train.csv", TestTables.ROWS)
        path = _zip(tmp_path / "f", tmp_path / "f.zip")
        self._refused(path / "cels_train.csv", "no cels_train.csv in", "Did you mean cells_train.csv")

    def test_a_table_without_the_columns(self, tmp_path: Path) -> None:
        path = _table(tmp_path, "t.csv", [("a.png", 1)], "file,label")
        self._refused(path, "no column named image or target", "Its columns are: file, label")
        self._refused(tmp_path, "no column named image or target")

    @pytest.mark.parametrize("target", ["nan", "inf", "twelve", ""])
    def test_a_target_that_is_not_a_number(self, tmp_path: Path, target: str) -> None:
        rows = [*TestTables.ROWS, ("x.png", target)]
        self._refused(_table(tmp_path, "t.csv", rows), f"t.csv, line 22: the target '{target}' is not a")
        words = _table(tmp_path / "w", "t.csv", [(f"{i}.png", "ab"[i % 2]) for i in range(10)])
        self._refused(words, "the target 'a' is not a number", task="regression")

    def test_a_table_that_is_empty_or_has_an_unknown_split(self, tmp_path: Path) -> None:
        self._refused(_table(tmp_path / "a", "t.csv", []), "has no rows")
        (tmp_path / "void.csv").write_text("")
        self._refused(tmp_path / "void.csv", "it is empty")
        rows = [(f"{i}.png", i, "holdout") for i in range(4)]
        self._refused(_table(tmp_path / "b", "t.csv", rows, "image,target,split"), "line 2: the split is 'holdout'")

    def test_two_tables_to_choose_from(self, tmp_path: Path) -> None:
        for name in ("x.csv", "y.csv"):
            _table(tmp_path, name, TestTables.ROWS)
        self._refused(tmp_path, "2 tables: x.csv, y.csv", "Choose one")

    def test_a_task_that_the_data_is_not_for(self, tmp_path: Path) -> None:
        folder = _folder(tmp_path, {"a": 3, "b": 3})
        self._refused(folder, "data for classification, not for regression", task="regression")
        self._refused(folder, "Did you mean regression", task="regresion")
        self._refused(folder, "Did you mean shift", augment="shfit")


# What people call their folders, tables and pictures


class Said(Progress):
    """Keeps what the user would read."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_training_and_testing_are_splits(tmp_path):
    data = open_data(_folder(tmp_path / "d", {f"{s}/{c}": 4 for s in ("Training", "testing") for c in ("cat", "dog")}))
    assert data.task.labels == ("cat", "dog")
    assert (data.count("train"), data.count("validation")) == (8, 8)


def test_files_that_are_left_out_and_classes_without_images_are_told(tmp_path):
    folder = _folder(tmp_path / "d", {"apple": 8, "pear": 8})
    (folder / "plum").mkdir()
    for i in range(3):
        (folder / "pear" / f"{i}.HEIC").write_bytes(b"ftypheic")
    archive = _zip(folder, tmp_path / "d.zip")
    for source in (folder, archive):
        progress = Said()
        open_data(source, progress=progress)
        said = " ".join(progress.lines)
        assert "3 files that are no images are left out (3 .heic)" in said
        assert "without an image, and so no class: plum." in said


def test_decimal_commas_in_a_table_with_semicolons_are_numbers(tmp_path):
    (tmp_path / "d").mkdir()
    for i in range(20):
        _photo(i).save(tmp_path / "d" / f"{i}.png")
    rows = "\n".join(f"{i}.png;{('1,5', '-0,25')[i % 2]}" for i in range(20))
    (tmp_path / "d" / "t.csv").write_text(f"image;target\n{rows}\n")
    data = open_data(tmp_path / "d" / "t.csv")
    assert data.task.name == "regression"
    assert set(data.targets("train").ravel().tolist()) == {1.5, -0.25}


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (0.5, np.float32, 128),
        (128.0, np.float32, 128),
        (32896.0, np.float32, 128),
        (128, np.int32, 128),
        (32896, np.int32, 128),
        (2**31 - 1, np.int32, 128),
        (32896, np.uint16, 128),
    ],
)
def test_floats_and_wide_integers_keep_their_brightness(values, kind, expected):
    image = Image.fromarray(np.full((32, 32), values, kind))
    assert np.abs(decode(image, replace(PLAIN, order="L", mean=(0.0,), std=(1.0,))).astype(int) - expected).max() <= 1


class TestThreeSplits:
    def test_validation_and_test_folders_are_both_used(self, tmp_path: Path) -> None:
        counts = {f"{split}/{name}": n for split, n in (("train", 4), ("val", 3), ("test", 2)) for name in "ab"}
        data = open_data(_folder(tmp_path, counts))
        assert {split: data.count(split) for split in ("train", "validation", "test")} == {
            "train": 8,
            "validation": 6,
            "test": 4,
        }
        assert data.judging == "test"

    def test_a_test_folder_alone_chooses_and_judges(self, tmp_path: Path) -> None:
        data = open_data(_folder(tmp_path, {"train/a": 4, "train/b": 4, "test/a": 2, "test/b": 2}))
        assert data.count("validation") == 4
        assert data.judging == "validation"

    def test_a_test_split_without_a_class_is_refused(self, tmp_path: Path) -> None:
        counts = {"train/a": 4, "train/b": 4, "val/a": 2, "val/b": 2, "test/a": 3}
        with pytest.raises(InputError, match="the test split has no image of: b"):
            open_data(_folder(tmp_path, counts))

    def test_tables_with_a_column_or_beside_each_other_have_three(self, tmp_path: Path) -> None:
        _folder(tmp_path, {"images": 9})
        names = sorted(path.name for path in (tmp_path / "images").iterdir())
        rows = [(name, i) for i, name in enumerate(names)]
        for split, part in (("train", rows[:4]), ("val", rows[4:7]), ("test", rows[7:])):
            _table(tmp_path, f"age_{split}.csv", part)
        beside = open_data(tmp_path / "age_train.csv")
        words = ["train"] * 4 + ["val"] * 3 + ["test"] * 2
        _table(tmp_path, "all.csv", [(*row, word) for row, word in zip(rows, words, strict=True)], "image,target,split")
        for data in (beside, open_data(tmp_path / "all.csv")):
            assert [data.count(split) for split in ("train", "validation", "test")] == [4, 3, 2]

    def test_the_secret_targets_of_a_competition_are_no_test_split(self, tmp_path: Path) -> None:
        _folder(tmp_path, {"images": 6})
        names = sorted(path.name for path in (tmp_path / "images").iterdir())
        _table(tmp_path, "train.csv", [(name, i) for i, name in enumerate(names[:4])])
        _table(tmp_path, "val.csv", [(name, i) for i, name in enumerate(names[4:])])
        _table(tmp_path, "test.csv", [(name,) for name in names[4:]], "image")
        assert open_data(tmp_path / "train.csv").judging == "validation"

    def test_three_datasets_are_train_validation_and_test(self) -> None:
        data = open_data((_tensors(20), _tensors(10), _tensors(6)))
        assert [data.count(split) for split in ("train", "validation", "test")] == [20, 10, 6]

    def test_half_of_the_validation_images_can_be_set_aside_of_each_class_alike(self, tmp_path: Path) -> None:
        data = open_data(_folder(tmp_path, {"train/a": 4, "train/b": 4, "val/a": 8, "val/b": 4}))
        apart = data.with_test_split()
        assert sorted(apart.names("validation") + apart.names("test")) == sorted(data.names("validation"))
        assert np.bincount(apart.targets("test").numpy()).tolist() == [4, 2]
        assert apart.fingerprint != data.fingerprint
        whole, _ = _all(data, "validation")
        parts = [_all(apart, split) for split in ("validation", "test")]
        shown = {name: image for split, (images, _) in zip(("validation", "test"), parts, strict=True)
                 for name, image in zip(apart.names(split), images, strict=True)}  # fmt: skip
        assert torch.equal(torch.stack([shown[name] for name in data.names("validation")]), whole)
        assert apart.with_test_split() is apart


class TestStrongVariation:
    KINDS = (Strong(randaugment=9), Strong(erasing=0.5), Strong(mixup=0.4), Strong(cutmix=1), Strong(9, 0.3, 0.4, 1))

    @pytest.fixture
    def data(self, tmp_path: Path) -> ImageData:
        return open_data(_folder(tmp_path, {"a": 24, "b": 24}))

    @pytest.mark.parametrize("strong", KINDS, ids=str)
    def test_of_one_seed_is_the_same_whatever_the_threads_and_of_another_is_not(
        self, data: ImageData, strong: Strong, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def images(seed: int) -> torch.Tensor:
            return torch.cat([x for x, _ in data.batches("train", PLAIN, batch_size=12, strong=strong, seed=seed)])

        first, other = images(1), images(2)
        monkeypatch.setattr(batches, "_LEAST_AHEAD", 0)
        assert torch.equal(first, images(1))
        assert not torch.equal(first, other)
        assert not torch.equal(first, _all(data, "train", PLAIN)[0])

    def test_mixes_two_images_and_says_how_much_there_is_of_each(self, data: ImageData) -> None:
        plain, targets = next(iter(data.batches("train", PLAIN, batch_size=12)))
        mixed, both = next(iter(data.batches("train", PLAIN, batch_size=12, strong=Strong(mixup=1), seed=3)))
        assert torch.allclose(mixed, both.share * plain + (1 - both.share) * plain.flip(0), atol=1e-6)
        assert torch.equal(both.first, targets)
        assert torch.equal(both.second, targets.flip(0))
        cut, both = next(iter(data.batches("train", PLAIN, batch_size=12, strong=Strong(cutmix=1), seed=3)))
        own = (cut == plain).all(1).float().mean((1, 2))
        assert own.min() >= both.share - 1e-6
        assert (cut == plain.flip(0)).all(1).float().mean((1, 2)).min() >= 1 - both.share - 1e-6

    def test_erases_a_part_of_some_images(self, data: ImageData) -> None:
        plain, _ = _all(data, "train", PLAIN)
        erased, _ = _all(data, "train", PLAIN, strong=Strong(erasing=0.5))
        gone = (erased != plain).any(1).float().mean((1, 2))
        assert 0.2 < (gone > 0).float().mean() < 0.8
        assert gone.max() < 0.4

    def test_changes_shape_and_colours_with_the_magnitude(self, data: ImageData) -> None:
        plain, _ = _all(data, "train", PLAIN)
        changed = [_all(data, "train", PLAIN, strong=Strong(randaugment=size))[0] for size in (1, 9)]
        little, much = (float((images - plain).abs().mean()) for images in changed)
        assert 0 < little < much

    def test_of_colours_is_refused_for_tensors(self) -> None:
        data = open_data(TensorDataset(torch.rand(12, 3, 8, 8), torch.arange(12) % 2))
        with pytest.raises(InputError, match="ready for the network"):
            data.batches("train", data.native, batch_size=4, strong=Strong(randaugment=5))
        next(iter(data.batches("train", data.native, batch_size=4, strong=Strong(cutmix=1))))


class TestReading:
    def test_is_done_once_for_the_network_that_is_known_later(self, tmp_path: Path) -> None:
        labels: list[str] = []

        class Count(Progress):
            def work(self, label: str, total: int) -> Any:
                labels.append(label)
                return super().work(label, total)

        data = open_data(_folder(tmp_path, {"a": 5, "b": 5}), progress=Count(), read=False)
        assert (data.native.height, len(data.listed_targets("train")), labels) == (32, 8, [])
        data.read(PLAIN)
        data.read(replace(PLAIN, height=16))
        _all(data, "train")
        assert (len(labels), data.unreadable) == (2, {})  # one for each split

    def test_that_was_put_off_finds_damaged_images_where_it_matters(self, tmp_path: Path) -> None:
        _folder(tmp_path, {"a": 100, "b": 100})
        (tmp_path / "a" / "000.png").write_bytes(b"nothing")
        data = open_data(tmp_path, read=False)
        assert len(data.listed_targets("train")) + len(data.listed_targets("validation")) == 200
        assert data.count("train") + data.count("validation") == 199
        assert list(data.unreadable) == ["a/000.png"]
        for i in range(20):
            (tmp_path / "b" / f"{i:03}.png").write_bytes(b"nothing")
        with pytest.raises(InputError, match="cannot be read"):
            open_data(tmp_path, read=False).targets("train")

    @pytest.mark.parametrize("memory", [10**9, 1])
    def test_finds_a_jpeg_that_ends_too_early(self, tmp_path: Path, memory: int) -> None:
        _folder(tmp_path, {"a": 100, "b": 100})
        whole = _bytes(PHOTOS[0], "JPEG")
        (tmp_path / "a" / "cut.jpg").write_bytes(whole[: len(whole) * 9 // 10])
        assert list(open_data(tmp_path, memory=memory).unreadable) == ["a/cut.jpg"]


class TestWorkersOfALoader:
    def test_read_its_images(self) -> None:
        dataset = _InWorkers()
        for workers in (0, 1):
            data = open_data(DataLoader(dataset, batch_size=4, num_workers=workers))
            seen = {tuple(image[:, 0, 0].tolist()) for image, _ in _each(data)}
            assert {worker >= 0 for _, worker, _ in seen} == {workers > 0}
            assert {int(number) for number, _, _ in seen} == {int(name.split("/")[1]) for name in data.names("train")}

    def test_leave_out_what_cannot_be_read(self) -> None:
        data = open_data(DataLoader(_InWorkers(damaged=7), batch_size=4, num_workers=1))
        assert data.unreadable == {"train/7": "damaged"}


def _each(data: ImageData) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for images, targets in data.batches("train", data.native, batch_size=5):
        yield from zip(images, targets, strict=True)


class _InWorkers(Dataset[Any]):
    """Images that hold their number, the worker that read them, and something random."""

    def __init__(self, damaged: int | None = None) -> None:
        self.damaged = damaged

    def __len__(self) -> int:
        return 120

    def __getitem__(self, number: int) -> Any:
        if number == self.damaged:
            raise OSError("damaged")
        worker = torch.utils.data.get_worker_info()
        values = torch.tensor([float(number), -1.0 if worker is None else worker.id, float(torch.rand(()))])
        return values[:, None, None].expand(3, 4, 4).clone(), number % 2
