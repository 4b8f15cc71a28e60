"""The image contract: the form in which a model takes images."""

from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

from ddaebm.model.errors import ConfigError

FILTERS = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR,
           "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}  # fmt: skip


@dataclass(frozen=True)
class Contract:
    """Image shape (height, width, channels) and resize filter. Every image is converted to it.

    Raises:
        ConfigError: The number of channels or the filter is not supported.
    """

    height: int
    width: int
    channels: int  # 1: grey, 3: RGB
    resize_filter: str = "bicubic"  # with antialiasing when an image is reduced

    masked: ClassVar[bool] = False  # see `Masked`

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ConfigError(f"images have 1 or 3 channels, not {self.channels}")
        if self.resize_filter not in FILTERS:
            raise ConfigError(f"resize_filter must be one of {', '.join(FILTERS)}, not {self.resize_filter!r}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.height, self.width, self.channels

    @property
    def row_shape(self) -> tuple[int, int, int]:
        """Shape of the array of one image: `shape`, with one more channel if it is `masked`."""
        return self.height, self.width, self.channels + self.masked


@dataclass(frozen=True)
class Masked(Contract):
    """A contract whose images have one more channel, their opacity: 255 where a pixel counts, 0 where it does not."""

    masked: ClassVar[bool] = True
