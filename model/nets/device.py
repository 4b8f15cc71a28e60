"""The torch device of a setting."""

import torch

from ddaebm.model.errors import ConfigError


def choose_device(device: str) -> torch.device:
    """Return the torch device for "auto", "cpu" or "cuda"; "auto" is CUDA if it is available.

    Raises:
        ConfigError: The device is unknown or not available.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"torch runs on device auto, cpu or cuda, not {device!r}")
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"device=cuda, but torch {torch.__version__} finds no GPU; use device auto or cpu, or see docs/gpu.md"
        )
    return torch.device("cuda", torch.cuda.current_device())
