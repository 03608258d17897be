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
    """The input of a network for an image, float32 `[C, H, W]`.

    The image is turned upright (EXIF), laid over white where it is transparent, converted to the channel order, resized
    as `InputSpec.resize` says, scaled to 0..1 and normalised.

    Raises:
        OSError, ValueError, ...: the image cannot be read (Pillow raises many kinds).
    """
    mean, scale = (np.asarray(v, dtype=np.float32).reshape(-1, 1, 1) for v in (input.mean, input.std))
    pixels = decode(image, input).astype(np.float32) / np.float32(255)
    return np.asarray((pixels - mean) / scale, dtype=np.float32)


def decode(image: Image.Image, input: InputSpec) -> np.ndarray:
    """The pixels of an image before `normalise`: uint8 `[C, H, W]`, channels in the order `input.order`."""
    image = _resize(_convert(_turn_upright(image), input.order), input)
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


def verify(image: Image.Image) -> None:
    """Raise what Pillow raises where the image is damaged; a JPEG is decoded at an eighth of its size for that."""
    image.draft(image.mode, (1, 1))
    image.load()


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height as a viewer shows the image, from its header alone."""
    width, height = image.size
    return (height, width) if image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8) else (width, height)


def seen_part(width: int, height: int, input: InputSpec) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the part of an upright image that a network sees, in the image's pixels.

    It reaches beyond the image where that is laid on a larger ground.

    Example:
        >>> seen_part(200, 100, InputSpec(50, 50)), seen_part(105, 100, InputSpec(50, 50))
        ((50.0, 0.0, 150.0, 100.0), (0.0, 0.0, 105.0, 100.0))
        >>> seen_part(200, 100, InputSpec(50, 50, resize="letterbox"))
        (0.0, -48.0, 200.0, 152.0)
    """
    if input.resize == "cover":
        return _covering_box(width, height, input) or (0.0, 0.0, float(width), float(height))
    scaled_width, scaled_height = _scaled_size(width, height, input)
    across, down = width / scaled_width, height / scaled_height
    left, top = _start(scaled_width, input.width) * across, _start(scaled_height, input.height) * down
    return left, top, left + input.width * across, top + input.height * down


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


def _resize(image: Image.Image, input: InputSpec) -> Image.Image:
    if input.resize == "cover":
        return _resampled(image, (input.width, input.height), input, _covering_box(*image.size, input))
    return _centred(_resampled(image, _scaled_size(*image.size, input), input), input)


def _resampled(
    image: Image.Image, size: tuple[int, int], input: InputSpec, box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    """The part `box` of the image, by default all of it, with that many pixels."""
    if image.size == size:
        return image
    method = Image.Resampling[input.interpolation.upper()]
    if input.antialias:
        return image.resize(size, method, box=box)
    return image.transform(size, Image.Transform.EXTENT, box or (0, 0, *image.size), method)


def _covering_box(width: int, height: int, input: InputSpec) -> tuple[float, float, float, float] | None:
    """The largest centred part that has the network's aspect ratio; None where the image has it, more or less."""
    network_aspect = input.width / input.height
    if abs(math.log(width / height / network_aspect)) <= _ASPECT_TOLERANCE:
        return None
    part_width, part_height = min(width, height * network_aspect), min(height, width / network_aspect)
    left, top = (width - part_width) / 2, (height - part_height) / 2
    return left, top, left + part_width, top + part_height


def _scaled_size(width: int, height: int, input: InputSpec) -> tuple[int, int]:
    """Width and height before the centre is cut out or the border is added, rounded as timm and torchvision do."""
    network_width, network_height = (math.floor(side / input.crop_share) for side in (input.width, input.height))
    if input.resize == "stretch":
        return network_width, network_height
    if input.resize == "crop" and network_width == network_height:
        shorter = min(width, height)
        return int(network_width * width / shorter), int(network_height * height / shorter)
    ratios = width / network_width, height / network_height
    ratio = min(ratios) if input.resize == "crop" else max(ratios)
    return max(1, round(width / ratio)), max(1, round(height / ratio))


def _centred(image: Image.Image, input: InputSpec) -> Image.Image:
    """The centre of the image, filled around where the image is smaller than the network's input."""
    left, top = _start(image.width, input.width), _start(image.height, input.height)
    if image.width >= input.width and image.height >= input.height:
        return image.crop((left, top, left + input.width, top + input.height))
    fill = input.fill or (0,) * input.channels
    canvas = Image.new(image.mode, (input.width, input.height), fill[::-1] if input.order == "BGR" else fill)
    canvas.paste(image, (-left, -top))
    return canvas


def _start(length: int, target: int) -> int:
    """Where a centred window of `target` pixels starts: in 70 for 64 at 3, in 60 at -2, in 63 at 0 (one is added)."""
    start = (length - target) / 2
    return round(start) if start > 0 else int(start)
