"""The form that a model takes images in."""

from dataclasses import dataclass

from PIL import Image

from ddaebm.model.errors import ConfigError

FILTERS = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR,
           "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}  # fmt: skip


@dataclass(frozen=True)
class Contract:
    """What every image is brought to: (height, width, channels), and how it is resized."""

    height: int
    width: int
    channels: int  # 1 grey, 3 RGB
    resize_filter: str = "bicubic"  # antialiased when shrinking

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ConfigError(f"images have 1 or 3 channels, not {self.channels}")
        if self.resize_filter not in FILTERS:
            raise ConfigError(f"resize_filter must be one of {', '.join(FILTERS)}, not {self.resize_filter!r}")

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels
