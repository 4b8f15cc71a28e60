"""Image bytes -> uint8 arrays under a bundle's preprocessing contract.

Training, calibration and scoring all use this code, so a pixel means the same everywhere.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

from ddaebm.model.errors import ImageError, ImageFormatError, ImageTooLargeError
from ddaebm.model.images.bounds import MAX_EXIF_BYTES, CountedReads, check_parts
from ddaebm.model.images.contract import FILTERS, Contract

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 16_000_000
MAX_SIDE = 16_384  # resizing a very long, thin image costs far more than its pixels tell
MAX_SCANS = 100  # of a JPEG: each is decoded over all of its pixels, and takes a few bytes
_TILE_WIDTH, _TILE_HEIGHT = 322, 323  # TIFF tags
# By EXIF orientation: what turns the image upright.
_TRANSPOSE = dict(enumerate((
    Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90,
), start=2))  # fmt: skip


@dataclass(frozen=True)
class Decoded:
    pixels: NDArray[np.uint8]  # (H, W, C) of the contract
    resized: bool


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image in `data`, its header read and its pixels not yet decoded.

    Raises:
        ImageFormatError: not an image of `FORMATS`.
        ImageTooLargeError: its header claims more than `max_pixels`, or a side over `MAX_SIDE`.
    """
    try:
        check_parts(data)
        image = Image.open(CountedReads(data), formats=FORMATS)
    except (MemoryError, ImageError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # Pillow's own limit, or its user's
        reason = str(error).partition(",")[0]  # with the number of pixels
        raise ImageTooLargeError(f"{reason}; send one of at most {max_pixels} pixels") from error
    except Exception as error:  # Pillow raises many types on hostile bytes; each means the same here
        raise ImageFormatError(f"not an image that can be read; {', '.join(FORMATS)} can") from error
    check_size(image.width, image.height, max_pixels)
    if image.format == "JPEG" and data.count(b"\xff\xda") > MAX_SCANS:
        raise ImageFormatError(f"the image has over {MAX_SCANS} scans")
    if isinstance(image, TiffImageFile):  # whose tiles may be larger than the image, and are decoded whole
        width, height = image.tag_v2.get(_TILE_WIDTH, 1), image.tag_v2.get(_TILE_HEIGHT, 1)
        if not (isinstance(width, int) and isinstance(height, int)):
            raise ImageFormatError("the image's tile size is not a number")
        if width * height > max_pixels:
            raise ImageTooLargeError(f"the image has tiles of {width}x{height} pixels, over the limit of {max_pixels}")
    return image


def from_pixels(pixels: NDArray[np.uint8], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """uint8 (H, W, 1 or 3) as an image: what comes as an array is treated as a file of the same pixels.

    Raises:
        ImageTooLargeError: as `open_image`.
    """
    height, width, channels = pixels.shape
    check_size(width, height, max_pixels)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises ImageTooLargeError for more pixels than `max_pixels`, or a side over `MAX_SIDE`."""
    if max(width, height) > MAX_SIDE:
        raise ImageTooLargeError(f"the image claims {width}x{height} pixels; no side may be over {MAX_SIDE}")
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"the image claims {width}x{height} pixels, over the limit of {max_pixels}; send a smaller one"
        )


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) once the EXIF rotation has been applied.

    Raises:
        ImageFormatError: the EXIF data is corrupt, or the image that precedes it.
    """
    if isinstance(image, TiffImageFile):  # which Pillow turns by itself
        return image.size
    try:
        turned = _orientation(image) in (5, 6, 7, 8)
    except ImageError:
        raise
    except Exception as error:  # as in open_image
        raise ImageFormatError("the image or its EXIF data is truncated or corrupt") from error
    return (image.height, image.width) if turned else image.size


def _orientation(image: Image.Image) -> int:
    if max(len(image.info.get(key, "")) for key in ("exif", "Raw profile type exif")) > MAX_EXIF_BYTES:
        raise ImageFormatError("the image has more EXIF data than any camera writes")
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if isinstance(orientation, int) else 1


def _upright(image: Image.Image) -> Image.Image:
    """As ImageOps.exif_transpose, which would also write the EXIF data anew, tag by tag."""
    image.load()
    method = _TRANSPOSE.get(_orientation(image))
    return image if method is None else image.transpose(method)


def convert(image: Image.Image, contract: Contract) -> Decoded:
    """Bring an opened image to the contract.

    Animated: the first frame. EXIF rotation is applied. Alpha is composited over black. 16-bit grey
    keeps its high byte; palette and CMYK go through RGB. Another size is resized, without keeping
    the aspect.

    Raises:
        ImageFormatError: truncated or corrupt, or floating-point pixels (which have no known range).
    """
    try:
        image = _to_channels(_upright(image), contract.channels)
    except (MemoryError, ImageError):
        raise
    except Exception as error:  # as above, now from the decoder
        raise ImageFormatError("the image is truncated or corrupt") from error
    resized = image.size != (contract.width, contract.height)
    if resized:
        image = image.resize((contract.width, contract.height), FILTERS[contract.resize_filter])
    return Decoded(np.asarray(image, dtype=np.uint8).reshape(contract.shape), resized)


def decode(data: bytes, contract: Contract, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Bytes -> the contract's uint8 (H, W, C). Raises as `open_image` and `convert`."""
    return convert(open_image(data, max_pixels), contract)


def _to_channels(image: Image.Image, channels: int) -> Image.Image:
    image.load()
    if image.mode == "F":
        raise ImageFormatError("floating-point images have no known range; send 8- or 16-bit pixels")
    if image.mode.startswith("I"):  # 16-bit grey, or 32-bit integers that hold it
        high_byte = np.asarray(image) >> 8
        image = Image.fromarray(high_byte.clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")
