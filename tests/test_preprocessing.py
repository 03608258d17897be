"""Preprocessing is the network's own: equal to timm's and torchvision's, stored with it, and changed where asked."""

import json
from dataclasses import asdict, replace
from functools import cache

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import create_transform, resolve_data_config
from torch.nn import functional as F
from torchvision.models import get_model_weights

import afina
from afina.data import decode, open_data, preprocess
from afina.errors import InputError
from afina.graph import Network
from afina.models import Preprocessing, load_model
from afina.models.inputs import choose_input, described_input
from afina.models.preprocessing import parse_resize
from afina.models.sources import torchvision_names
from afina.models.transforms import timm_input, torchvision_input
from afina.reporting.words import input_words
from afina.runtimes.table import read_metadata
from afina.store.result import from_plain, to_plain
from afina.types import InputSpec, TaskSpec

# One of each kind of configuration: crop mode, share, filter, size.
TIMM = (
    "resnet18.a1_in1k", "resnet18.tv_in1k", "resnet50.a1_in1k", "mobilenetv3_small_050", "efficientnet_b0.ra_in1k",
    "convnext_base.clip_laion2b_augreg_ft_in12k_in1k_384", "vit_tiny_patch16_224", "inception_v3.tv_in1k",
    "mixer_b16_224", "deit_tiny_patch16_224", "regnety_002", "test_resnet", "test_vit", "tinynet_e",
)  # fmt: skip
TORCHVISION = (
    "resnet18", "resnet50", "mobilenet_v3_small", "efficientnet_b0", "inception_v3", "vit_b_16", "swin_t", "maxvit_t",
)  # fmt: skip
WAYS = {
    "cover": InputSpec(48, 40),
    "cover, sampled": InputSpec(48, 40, antialias=False),
    "stretch": InputSpec(48, 40, resize="stretch", interpolation="bicubic"),
    "stretch and cut": InputSpec(48, 40, resize="stretch", crop_share=0.9, interpolation="box"),
    "crop": InputSpec(48, 48, resize="crop", crop_share=0.875, interpolation="bicubic"),
    "crop of another shape": InputSpec(48, 40, resize="crop", crop_share=0.95, interpolation="lanczos"),
    "crop with a border": InputSpec(48, 48, resize="crop", crop_share=1.15, interpolation="hamming"),
    "letterbox": InputSpec(48, 40, resize="letterbox", fill=(124, 116, 104), order="BGR"),
    "letterbox, cut": InputSpec(48, 48, (0.5,), (0.5,), "L", resize="letterbox", crop_share=0.8, fill=(114,)),
    "letterbox, sampled": InputSpec(48, 48, resize="letterbox", antialias=False, interpolation="bicubic"),
    "nearest": InputSpec(48, 48, resize="stretch", interpolation="nearest"),
}


@cache
def photos() -> tuple[Image.Image, ...]:
    """Parts of two photographs: 20 of other sizes and aspect ratios, from 60 to 1600 pixels."""
    whole = [Image.fromarray(pixels) for pixels in load_sample_images().images]  # 640 x 427
    random, parts = np.random.default_rng(0), []
    for i in range(20):
        width, height = (int(side) for side in random.integers(60, 427, 2))
        left, top = int(random.integers(0, 640 - width)), int(random.integers(0, 427 - height))
        part = whole[i % 2].crop((left, top, left + width, top + height))
        parts.append(part.resize((width * 7 // 2, height * 7 // 2), Image.Resampling.BICUBIC) if i % 5 == 4 else part)
    return tuple(parts)


def difference(transform, input: InputSpec, photo: Image.Image) -> float:
    """The largest difference between what a library's transform and `preprocess` make of a photo, in steps of 1/255."""
    std = np.reshape(input.std, (-1, 1, 1))
    return float(np.abs((transform(photo).numpy() - preprocess(photo, input)) * std).max() * 255)


def timm_transform(config):
    return create_transform(**resolve_data_config(pretrained_cfg=config))


# As the libraries do it


@pytest.mark.parametrize("name", TIMM)
def test_preprocessing_equals_that_of_timm(name):
    config = timm.get_pretrained_cfg(name).to_dict()
    transform, input = timm_transform(config), timm_input(config)
    assert max(difference(transform, input, photo) for photo in photos()) < 1e-3


@pytest.mark.parametrize("name", TORCHVISION)
def test_preprocessing_equals_that_of_torchvision(name):
    transform = get_model_weights(name).DEFAULT.transforms()
    input = torchvision_input(transform)
    assert max(difference(transform, input, photo) for photo in photos()) < 1e-3


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("share", [0.875, 1.0, 1.15])
def test_every_crop_mode_of_timm_is_known_for_inputs_of_any_shape(mode, share):
    for size in ((3, 64, 64), (3, 60, 97), (3, 96, 64)):
        config = {"input_size": size, "crop_mode": mode, "crop_pct": share, "interpolation": "bicubic"}
        transform, input = timm_transform(config), timm_input(config)
        assert max(difference(transform, input, photo) for photo in photos()) < 1e-3


def test_every_preset_of_torchvision_is_resized_to_its_own_size():
    for name in torchvision_names():
        for weights in get_model_weights(name):
            preset = weights.transforms()
            input = torchvision_input(preset)
            assert int(input.width / input.crop_share) == preset.resize_size[0]


def test_without_antialiasing_pixels_are_sampled_as_torch_does():
    for filter in ("bilinear", "bicubic"):
        input = InputSpec(48, 40, resize="stretch", interpolation=filter, antialias=False)
        for photo in photos()[:6]:
            whole = torch.from_numpy(np.asarray(photo).copy()).permute(2, 0, 1)[None].float()
            right = F.interpolate(whole, (48, 40), mode=filter, align_corners=False)[0].round().clamp(0, 255)
            apart = np.abs(decode(photo, input).astype(int) - right.numpy())[:, 2:-2, 2:-2]
            assert apart.mean() < (0.6 if filter == "bilinear" else 4)  # torch has another cubic function


# Where it comes from


@pytest.mark.parametrize(("name", "cut"), [("timm:test_resnet", timm_input), ("torchvision:squeezenet1_1", None)])
def test_a_loaded_model_has_the_evaluation_transform_of_its_library(name, cut):
    input, short = load_model(name, weights="random").network.input, name.partition(":")[2]
    if cut:
        transform = timm_transform(timm.get_pretrained_cfg(short).to_dict())
    else:
        transform = get_model_weights(short).DEFAULT.transforms()
    assert max(difference(transform, input, photo) for photo in photos()[:5]) < 1e-3


def test_another_input_size_keeps_the_crop_share_and_the_filter():
    own = timm_input(timm.get_pretrained_cfg("test_resnet").to_dict())
    other = load_model("test_resnet", weights="random", input_size=(96, 64)).network.input
    assert own.resize == "crop"
    assert other == replace(own, height=96, width=64)


def test_small_images_of_an_untrained_network_are_not_cut():
    small = InputSpec(32, 32)
    for size in (None, (32, 32)):
        input = load_model("test_resnet", weights="random", input=small, input_size=size).network.input
        assert (input.shape, input.resize, input.crop_share) == ((3, 32, 32), "cover", 1.0)


def test_a_module_of_timm_brings_its_own():
    module = timm.create_model("test_resnet", pretrained=False)
    own = timm_input(module.pretrained_cfg)
    alone, notes = choose_input(module, None, None, None, trained=True)
    assert (alone, notes) == (own, ())
    large, _ = choose_input(module, None, InputSpec(224, 224), None, trained=True)
    assert large == replace(own, height=224, width=224)
    small, _ = choose_input(module, None, InputSpec(32, 32), None, trained=True)
    assert (small.resize, small.mean) == ("cover", own.mean), "nothing is cut off small images"
    grey, _ = choose_input(
        timm.create_model("test_resnet", pretrained=False, in_chans=1), None, InputSpec(32, 32), None, trained=True
    )
    assert grey.order == "L"


def test_a_module_may_state_how_images_are_resized(toy):
    toy.input_size, toy.crop_pct, toy.interpolation = (3, 16, 16), 0.9, "bicubic"
    input = described_input(toy)
    assert (input.resize, input.crop_share, input.interpolation) == ("crop", 0.9, "bicubic")
    toy.crop_mode, toy.interpolation = "border", "smooth"
    input = described_input(toy)
    assert (input.resize, input.interpolation) == ("letterbox", "bilinear")


@pytest.fixture
def toy():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())


# What the user asks


def test_the_user_says_how_images_are_resized(tmp_path):
    afina.export(
        "builtin:convnet",
        to="pt2",
        input_size=8,
        resize="letterbox:114",
        interpolation="lanczos",
        out=tmp_path / "n.pt2",
    )
    input = Network.load(tmp_path / "n.pt2").input
    assert (input.resize, input.fill, input.interpolation) == ("letterbox", (114, 114, 114), "lanczos")
    again = load_model(tmp_path / "n.pt2", preprocessing=Preprocessing(resize="stretch")).network.input
    assert (again.resize, again.fill, again.interpolation) == ("stretch", (), "lanczos")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("crop:9", "0.1 to 2"),
        ("strech", "Did you mean stretch"),
        ("letterbox:300", "0 to 255"),
        ("cover:1", "understood"),
    ],
)
def test_a_way_of_resizing_that_is_none_is_refused(text, said):
    with pytest.raises(InputError, match=said):
        parse_resize(text)


def test_a_wrong_colour_or_filter_is_refused(toy):
    with pytest.raises(InputError, match="has 2 numbers, and the model takes images of 3"):
        load_model(toy, preprocessing=Preprocessing(resize="letterbox", fill=(1, 2)))
    for wrong in ({"interpolation": "cubic"}, {"interpolation": "box", "antialias": False}, {"resize": "pad"}):
        with pytest.raises(InputError, match="cannot have"):
            load_model(toy, input=InputSpec(8, 8, **wrong), preprocessing=Preprocessing(known=True))


def test_a_student_gets_the_images_of_its_teacher(tmp_path):
    task = TaskSpec("classification", ("a", "b"))
    teacher = load_model("builtin:convnet", task=task, input=InputSpec(8, 8, resize="crop", crop_share=0.8)).network
    student, _ = afina.distill(teacher, "builtin:mlp", _folder(tmp_path), epochs=1, cache_memory="1KB")
    assert student.input == teacher.input
    with pytest.raises(InputError, match="--cache-memory"):
        afina.distill(teacher, "builtin:mlp", tmp_path, epochs=1, cache_memory="lots")


def test_a_search_within_an_optimization_prepares_images_in_the_same_way(monkeypatch, tmp_path):
    asked = {"mean": "0.4", "std": "0.2", "resize": "stretch", "interpolation": "box", "cache_memory": "5MB"}

    def look(*_, **options):
        assert {name: options[name] for name in asked} == asked
        raise InputError("That is all.")

    monkeypatch.setattr("afina.jobs.optimize.tune", look)
    with pytest.raises(InputError, match="That is all"):
        afina.optimize("builtin:convnet", "digits", tune=1, out=tmp_path / "run", **asked)


def _folder(root):
    for i, photo in enumerate(photos()):
        (root / "train" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        photo.save(root / "train" / "ab"[i % 2] / f"{i}.png")
    return root


# Where it is stored


@pytest.mark.parametrize("way", WAYS)
def test_every_way_fills_the_input_and_is_said(way):
    input = WAYS[way]
    for photo in photos():
        assert decode(photo, input).shape == input.shape
    assert f"{input.width} pixels wide and {input.height} high" in input_words(input)[1]
    assert input.interpolation in input_words(input)[1]


def test_pixels_of_two_ways_are_kept_apart(tmp_path):
    data = open_data(_folder(tmp_path))
    for input in (WAYS["crop"], WAYS["nearest"], WAYS["crop"]):
        images, _ = next(iter(data.batches("train", input, batch_size=2)))
        image = Image.open(tmp_path / data.names("train")[0])
        np.testing.assert_allclose(images[0], preprocess(image, input), atol=1e-5)


def test_the_way_travels_in_saved_networks_files_and_results(small_network, tmp_path):
    small_network.input = input = replace(small_network.input, resize="letterbox", fill=(114,), interpolation="bicubic")
    before = small_network.fingerprint()
    assert Network.load(small_network.save(tmp_path / "n.pt2")).input == input
    afina.export(small_network, to="onnx", out=tmp_path / "n.onnx")
    assert read_metadata(tmp_path / "n.onnx")[0] == input
    assert (
        from_plain(InputSpec, to_plain(input)) == input == InputSpec.from_plain(json.loads(json.dumps(asdict(input))))
    )
    small_network.input = replace(input, fill=(0,))
    assert small_network.fingerprint() != before


def test_what_older_versions_wrote_means_what_it_meant():
    old = {"height": 8, "width": 8, "mean": [0.5], "std": [0.2], "order": "L"}
    input = InputSpec(8, 8, (0.5,), (0.2,), "L", resize="cover", interpolation="bilinear", antialias=True)
    assert InputSpec.from_plain(old) == from_plain(InputSpec, old) == input
