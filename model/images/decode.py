"""Decode image files to uint8 arrays under the preprocessing contract of a bundle.

Training, calibration and scoring all use this code, so that they preprocess images identically.
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
MAX_SIDE = 16_384  # resizing a very long, thin image is slow despite its few pixels
MAX_SCANS = 100  # per JPEG; a scan needs only a few bytes in the file, but decoding it touches every pixel
_TILE_WIDTH, _TILE_HEIGHT = 322, 323  # TIFF tags
# EXIF orientation -> the transpose that turns the image upright.
_TRANSPOSE = dict(enumerate((
    Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90,
), start=2))  # fmt: skip


@dataclass(frozen=True)
class Decoded:
    """An image in the form of the contract."""

    pixels: NDArray[np.uint8]  # (H, W, C), the shape of the contract
    resized: bool


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an image file: read its header but do not decode its pixels yet.

    Raises:
        ImageFormatError: `data` is not an image in one of `FORMATS`, or has too many parts.
        ImageTooLargeError: The header states more than `max_pixels` pixels, or a side over `MAX_SIDE`.
    """
    try:
        check_parts(data)
        image = Image.open(CountedReads(data), formats=FORMATS)
    except (MemoryError, ImageError):
        raise
    except (
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:  # Pillow's own limit, or one that the program set
        reason = str(error).partition(",")[0]  # this part states the number of pixels
        raise ImageTooLargeError(f"{reason}; send one of at most {max_pixels} pixels") from error
    except Exception as error:  # Pillow raises many types of exception on malformed data
        raise ImageFormatError(f"not a readable image; send {', '.join(FORMATS)}") from error
    check_size(image.width, image.height, max_pixels)
    if image.format == "JPEG" and data.count(b"\xff\xda") > MAX_SCANS:
        raise ImageFormatError(f"the JPEG has more than {MAX_SCANS} scans; save it again as a baseline JPEG")
    if isinstance(image, TiffImageFile):  # tiles are decoded whole and may be larger than the image
        width, height = image.tag_v2.get(_TILE_WIDTH, 1), image.tag_v2.get(_TILE_HEIGHT, 1)
        if not (isinstance(width, int) and isinstance(height, int)):
            raise ImageFormatError("the image's tile size is not a number")
        if width * height > max_pixels:
            raise ImageTooLargeError(f"the image has tiles of {width}x{height} pixels, over the limit of {max_pixels}")
    return image


def from_pixels(pixels: NDArray[np.uint8], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Convert uint8 (H, W, 1 or 3) to a PIL image, so that arrays are treated like files with the same pixels.

    Raises:
        ImageTooLargeError: As `open_image`.
    """
    height, width, channels = pixels.shape
    check_size(width, height, max_pixels)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise ImageTooLargeError if there are more than `max_pixels` pixels or a side is over `MAX_SIDE`."""
    if max(width, height) > MAX_SIDE:
        raise ImageTooLargeError(f"the image has {width}x{height} pixels; no side may be over {MAX_SIDE}")
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"the image has {width}x{height} pixels, over the limit of {max_pixels}; send a smaller one"
        )


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of an image after its EXIF rotation.

    Raises:
        ImageFormatError: The EXIF data is corrupt, or the image data before it.
    """
    if isinstance(image, TiffImageFile):  # Pillow has already rotated it
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
        raise ImageFormatError("the image has too much EXIF data; save it again without metadata")
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if isinstance(orientation, int) else 1


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF rotation. ImageOps.exif_transpose would also re-encode the EXIF data, which can be slow."""
    image.load()
    method = _TRANSPOSE.get(_orientation(image))
    return image if method is None else image.transpose(method)


def convert(image: Image.Image, contract: Contract) -> Decoded:
    """Convert an opened image to the form of the contract.

    Uses the first frame of an animation, applies the EXIF rotation and composites transparent pixels over black. 16-bit
    grey keeps its high byte. Palette and CMYK images are converted to RGB first. Images of another size are resized
    without keeping the aspect ratio.

    Raises:
        ImageFormatError: The image is truncated or corrupt, or has floating-point pixels, whose range is unknown.
    """
    try:
        image = _to_channels(_upright(image), contract.channels)
    except (MemoryError, ImageError):
        raise
    except Exception as error:  # as in open_image, but raised by the decoder
        raise ImageFormatError("the image is truncated or corrupt") from error
    resized = image.size != (contract.width, contract.height)
    if resized:
        image = image.resize((contract.width, contract.height), FILTERS[contract.resize_filter])
    return Decoded(np.asarray(image, dtype=np.uint8).reshape(contract.shape), resized)


def decode(data: bytes, contract: Contract, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode an image file to uint8 (H, W, C) of the contract. Raises the errors of `open_image` and `convert`."""
    return convert(open_image(data, max_pixels), contract)


def _to_channels(image: Image.Image, channels: int) -> Image.Image:
    image.load()
    if image.mode == "F":
        raise ImageFormatError("floating-point images have no known range; send 8- or 16-bit pixels")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow may store in 32-bit integers
        high_byte = np.asarray(image) >> 8
        image = Image.fromarray(high_byte.clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")
