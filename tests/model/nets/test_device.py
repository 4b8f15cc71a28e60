"""The choice of a torch device."""

import pytest
import torch

from ddaebm.model.errors import ConfigError
from ddaebm.model.nets.device import choose_device


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(ConfigError, match="finds no GPU"):
        choose_device("cuda")
    with pytest.raises(ConfigError, match="not 'tensorrt'"):
        choose_device("tensorrt")
