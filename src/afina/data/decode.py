"""The one definition of preprocessing: from an image of any size and mode to the pixels that a network expects.

Training, validation, calibration and the judging of exported files all go through `decode`.
"""

import io
import math

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from afina.types import InputSpec

PREPROCESSING = (
    "Turn the image upright (EXIF), lay it over white where it is transparent and convert it to the "
    "channel order; if its aspect ratio is within 10% of the network's resize it whole, otherwise cut out "
    "the largest centred part that has the network's aspect ratio and resize that (bilinear, antialiased); "
    "scale to 0..1, subtract the mean and divide by the standard deviation of each channel."
)
_ASPECT_TOLERANCE = math.log(1.1)
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def preprocess(image: Image.Image, input: InputSpec) -> np.ndarray:
    """The input of a network for an image, float32 `[C, H, W]`; `PREPROCESSING` describes the steps.

    Raises:
        OSError, ValueError, ...: the image cannot be read (Pillow raises many kinds).
    """
    mean, scale = (np.asarray(v, dtype=np.float32).reshape(-1, 1, 1) for v in (input.mean, input.std))
    pixels = decode(image, input).astype(np.float32) / np.float32(255)
    return np.asarray((pixels - mean) / scale, dtype=np.float32)


def decode(image: Image.Image, input: InputSpec) -> np.ndarray:
    """The pixels of an image before `normalise`: uint8 `[C, H, W]`, channels in the order `input.order`."""
    image = _resize(_convert(_turn_upright(image), input.order), input.width, input.height)
    pixels = np.asarray(image)
    if input.order == "L":
        return pixels[None]
    if input.order == "BGR":
        pixels = pixels[:, :, ::-1]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def normalise(pixels: Tensor, input: InputSpec) -> Tensor:
    """The last step of `preprocess` for a batch `[N, C, H, W]` of pixels in 0..255, uint8 or float; float32."""
    mean, std = (torch.tensor(v, dtype=torch.float32).view(1, -1, 1, 1) for v in (input.mean, input.std))
    return pixels.float().sub(mean * 255).div_(std * 255)


def open_image(data: bytes) -> Image.Image:
    """The image in `data`, not decoded yet; raises what Pillow raises, `ValueError` for no bytes at all."""
    if not data:
        raise ValueError("the file is empty")
    return Image.open(io.BytesIO(data))


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height as a viewer shows the image, from its header alone."""
    width, height = image.size
    return (height, width) if image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8) else (width, height)


def seen_part(width: int, height: int, input: InputSpec) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the part of an upright image that a network sees, in the image's pixels.

    Example:
        >>> seen_part(200, 100, InputSpec(50, 50)), seen_part(105, 100, InputSpec(50, 50))
        ((50.0, 0.0, 150.0, 100.0), (0.0, 0.0, 105.0, 100.0))
    """
    return _part(width, height, input.width, input.height)


def reason(error: BaseException) -> str:
    """Why an image could not be read, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, Image.DecompressionBombError):
        return "too many pixels to decode safely"
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__


def _turn_upright(image: Image.Image) -> Image.Image:
    turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


def _convert(image: Image.Image, order: str) -> Image.Image:
    mode = "L" if order == "L" else "RGB"
    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        image = _from_wide_integers(image)
    elif image.mode == "F":
        image = _from_floats(image)
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size, "white")
        image.paste(rgba, mask=rgba.getchannel("A"))
    elif image.mode == "P":  # its colours count, also for grey: the indices alone mean nothing
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _from_wide_integers(image: Image.Image) -> Image.Image:
    # Pillow would clip at 255 and give a white image. A fixed scale, whatever the image's own range is, keeps a dark
    # image dark: that of 16 bits; of 32 bits, that of the narrowest type that holds the values.
    values = np.asarray(image).astype(np.int64)
    most = int(values.max(initial=0))
    divisor = 257 if image.mode != "I" or 255 < most < 2**16 else 1 if most <= 255 else 2**24
    return Image.fromarray(np.clip((values + divisor // 2) // divisor, 0, 255).astype(np.uint8))


def _from_floats(image: Image.Image) -> Image.Image:
    # Pillow would cut the fractions off, which makes floats in 0..1 black.
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    most = values.max(initial=0.0)
    scale = 255.0 if most <= 1 else 1.0 if most <= 255 else 1 / 257
    return Image.fromarray(np.clip(np.round(values * scale), 0, 255).astype(np.uint8))


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    if image.size == (width, height):
        return image
    box = _part(image.width, image.height, width, height)
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box)


def _part(image_width: int, image_height: int, width: int, height: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the part of an image that is resized to a width and height."""
    image_aspect, network_aspect = image_width / image_height, width / height
    if abs(math.log(image_aspect / network_aspect)) <= _ASPECT_TOLERANCE:
        return (0.0, 0.0, float(image_width), float(image_height))
    part_width, part_height = (
        min(image_width, image_height * network_aspect),
        min(image_height, image_width / network_aspect),
    )
    left, top = (image_width - part_width) / 2, (image_height - part_height) / 2
    return (left, top, left + part_width, top + part_height)
