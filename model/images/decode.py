"""Decode image files to uint8 arrays under the preprocessing contract of a bundle.

Training, calibration and scoring all use this code, so that they preprocess images identically.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from ddaebm.model.errors import ImageError, ImageFormatError, ImageTooLargeError
from ddaebm.model.images.bounds import CountedReads, check_parts
from ddaebm.model.images.contract import FILTERS, Contract
from ddaebm.model.images.metadata import orientation, strip

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 100_000_000  # unless the caller says otherwise, as the service does
_REDUCED = 16_000_000  # pixels above which a JPEG is decoded at reduced size, in little memory
MAX_SIDE = 16_384  # resizing a very long, thin image is slow despite its few pixels
MAX_SCANS = 100  # per JPEG; a scan needs only a few bytes in the file, but decoding it touches every pixel
_STRIP = 256  # rows of an image that are copied at a time
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF tags, and a value of the second
# Two ends for a JPEG that lacks its own. If its pixels depend on which one is used, some of them are missing.
_END, _OTHER_END = b"\xff\xd9", b"\x55" * 64 + b"\xff\xd9"
# EXIF orientation -> the transpose that turns the image upright.
_TRANSPOSE = dict(enumerate((
    Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90,
), start=2))  # fmt: skip


@dataclass(frozen=True)
class Decoded:
    """An image in the form of the contract."""

    pixels: NDArray[np.uint8]  # (H, W, C), the `row_shape` of the contract
    resized: bool


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an image file: read its header but do not decode its pixels yet.

    Raises:
        ImageFormatError: `data` is not an image in one of `FORMATS`, or has too many parts.
        ImageTooLargeError: The header states more than `max_pixels` pixels, or a side over `MAX_SIDE`.
    """
    try:
        data = strip(data)
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
            f"the image has {width}x{height} pixels, over the limit of {max_pixels}; use a smaller one"
        )


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of an image after its EXIF rotation."""
    if isinstance(image, TiffImageFile):  # Pillow has already rotated it
        return image.size
    return (image.height, image.width) if orientation(image) in (5, 6, 7, 8) else image.size


def _upright(image: Image.Image, contract: Contract) -> Image.Image:
    """Decode the pixels and apply the EXIF rotation. What is done depends on the image and the contract alone."""
    source = getattr(image, "fp", None)
    if isinstance(source, CountedReads) and image.format == "JPEG" and image.width * image.height > _REDUCED:
        image.draft(None, (2 * max(contract.height, contract.width),) * 2)  # twice the size in any orientation, or more
    try:
        image.load()
    except OSError:
        if image.format != "JPEG" or not isinstance(source, CountedReads):
            raise
        image = _load_without_end(source.data)
    method = None if isinstance(image, TiffImageFile) else _TRANSPOSE.get(orientation(image))
    return image if method is None else image.transpose(method)


def _load_without_end(data: bytes) -> Image.Image:
    """Decode a JPEG whose end marker is missing, as some cameras and transfers leave it.

    The decoder fills the place of missing pixels as well, so this decodes twice, with different bits after the end. If
    these make no difference, no pixel is missing.

    Raises:
        OSError: Pixels are missing.
    """
    data = data.rstrip(b"\xff")
    image, other = (Image.open(CountedReads(data + end), formats=["JPEG"]) for end in (_END, _OTHER_END))
    for top in range(0, image.height, _STRIP):
        part = (0, top, image.width, min(top + _STRIP, image.height))
        if image.crop(part).tobytes() != other.crop(part).tobytes():
            raise OSError("image file is truncated")
    return image


def convert(image: Image.Image, contract: Contract) -> Decoded:
    """Convert an opened image to the form of the contract.

    Uses the first frame of an animation, applies the EXIF rotation and composites transparent pixels over black, whose
    opacity is the last channel of a masked contract. 16-bit
    and 12-bit grey keep their upper 8 bits. Palette and CMYK images are converted to RGB first. Images of another size
    are resized without keeping the aspect ratio. JPEGs over 16 megapixels are decoded at reduced size first.

    Raises:
        ImageFormatError: The image is truncated or corrupt, or has pixels of unknown range (floating-point, 32-bit).
    """
    try:
        image = _upright(image, contract)
        opacity = _opacity(image) if contract.masked else None
        image = _to_channels(image, contract.channels)
    except (MemoryError, ImageError):
        raise
    except Exception as error:  # as in open_image, but raised by the decoder
        raise ImageFormatError("the image is truncated or corrupt") from error
    resized = image.size != (contract.width, contract.height)
    size = contract.width, contract.height
    if resized:
        image = image.resize(size, FILTERS[contract.resize_filter])
    pixels = np.asarray(image, dtype=np.uint8).reshape(contract.shape)
    if contract.masked:
        counts = Image.new("L", size, 255) if opacity is None else opacity.resize(size, Image.Resampling.BILINEAR)
        pixels = np.dstack([pixels, np.asarray(counts)])
    return Decoded(pixels, resized)


def bring(images: NDArray[np.uint8], contract: Contract) -> NDArray[np.uint8]:
    """Resize images (B, h, w, C) to the form of the contract, as `convert` does: (B, H, W, C)."""
    if images.shape[1:] == contract.row_shape:
        return images
    resized = [convert(from_pixels(image), contract).pixels for image in images]
    return np.stack(resized) if resized else np.empty((0, *contract.row_shape), np.uint8)


def decode(data: bytes, contract: Contract, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode an image file to uint8 (H, W, C) of the contract. Raises the errors of `open_image` and `convert`."""
    return convert(open_image(data, max_pixels), contract)


def _to_channels(image: Image.Image, channels: int) -> Image.Image:
    if image.mode in ("F", "I"):
        kind = "floating-point" if image.mode == "F" else "32-bit integer"
        raise ImageFormatError(f"{kind} images have no known range; send 8- or 16-bit pixels")
    if image.mode.startswith("I;16"):
        image = _high_byte(image)
    mode = "L" if channels == 1 else "RGB"
    if not image.has_transparency_data:
        return _opaque(image, mode)
    result = Image.new(mode, image.size)
    for top in range(0, image.height, _STRIP):  # needs less memory than the whole image at once
        strip = image.crop((0, top, image.width, min(top + _STRIP, image.height))).convert("RGBA")
        black = Image.new("RGBA", strip.size, (0, 0, 0, 255))
        result.paste(_opaque(Image.alpha_composite(black, strip), mode), (0, top))
    return result


def _opacity(image: Image.Image) -> Image.Image | None:
    """The opacity of each pixel as an L image, or None if all are opaque: 16-bit grey is, as in `_to_channels`."""
    if not image.has_transparency_data or image.mode.startswith(("I", "F")):
        return None
    opacity = Image.new("L", image.size)
    for top in range(0, image.height, _STRIP):
        strip = image.crop((0, top, image.width, min(top + _STRIP, image.height))).convert("RGBA")
        opacity.paste(strip.getchannel("A"), (0, top))
    return opacity


def _opaque(image: Image.Image, mode: str) -> Image.Image:
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return image.convert(mode)


def _high_byte(image: Image.Image) -> Image.Image:
    """The upper 8 bits of 16-bit grey, or of a TIFF's 12-bit grey."""
    values = np.asarray(image)
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    bits = 12 if tags.get(_BITS) == (12,) else 16
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts 8-bit grey alone
        values = 2**bits - 1 - values
    return Image.fromarray((values >> (bits - 8)).astype(np.uint8))
