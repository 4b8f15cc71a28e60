"""Settings: argument over environment over `.env` over default."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ddaebm.service.settings import Settings


def test_the_defaults_are_the_documented_ones() -> None:
    assert Settings().model_dump() == {
        "bundle": ("fashion-mnist",),
        "host": "127.0.0.1",
        "port": 8000,
        "api_keys": (),
        "cors_origins": (),
        "log_format": "text",
        "backend": "onnx",
        "device": "auto",
        "tensorrt_cache": "",
        "workers": 0,
        "threads": 0,
        "max_batch": 64,
        "max_queue_images": 4096,
        "max_connections": 2048,
        "max_pipelined": 16,
        "max_header_bytes": 32 * 2**10,
        "max_headers": 100,
        "header_seconds": 10.0,
        "keep_alive_seconds": 65,
        "max_body_bytes": 64 * 2**20,
        "max_bodies_bytes": 256 * 2**20,
        "body_seconds": 30.0,
        "send_seconds": 30.0,
        "decode_threads": 2,
        "decode_processes": 2,
        "max_decode_pixels": 128_000_000,
        "max_files": 256,
        "max_image_pixels": 16_000_000,
        "max_request_pixels": 64_000_000,
        "deadline_seconds": 30.0,
        "hang_seconds": 60.0,
        "drain_seconds": 30,
    }


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("9000", "port", 9000),
        ("mine", "bundle", ("mine",)),
        ("mine, /bundles/yours", "bundle", ("mine", "/bundles/yours")),
        ("a" * 64 + "," + "0" * 64, "api_keys", ("a" * 64, "0" * 64)),
        ("", "api_keys", ()),
        ("https://a.example,http://b:8080", "cors_origins", ("https://a.example", "http://b:8080")),
        ("*", "cors_origins", ("*",)),
        ("torch", "backend", "torch"),
        ("tensorrt", "device", "tensorrt"),
        ("/engines", "tensorrt_cache", "/engines"),
        ("0.5", "deadline_seconds", 0.5),
        ("7", "max_batch", 7),
    ],
)
def test_every_setting_is_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, text: str, name: str, value: object
) -> None:
    monkeypatch.setenv(f"DDAEBM_{name.upper()}", text)
    assert getattr(Settings(), name) == value


def test_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("DDAEBM_PORT=1\nDDAEBM_HOST=from-file\nDDAEBM_THREADS=3\nOTHER=ignored\n")
    monkeypatch.setenv("DDAEBM_PORT", "2")
    monkeypatch.setenv("DDAEBM_HOST", "from-environment")
    settings = Settings(port=3)
    assert (settings.port, settings.host, settings.threads) == (3, "from-environment", 3)


@pytest.mark.parametrize(
    "bad",
    [
        {"bundle": ""},
        {"bundle": "a,,b"},
        {"bundle": ()},
        {"port": "abc"},
        {"port": -1},
        {"port": 65_536},
        {"api_keys": "secret"},
        {"api_keys": "A" * 64},
        {"api_keys": "a" * 64 + ","},
        {"api_keys": "a" * 63},
        {"cors_origins": "example.org"},
        {"cors_origins": "https://example.org/"},
        {"cors_origins": "null"},
        {"log_format": "xml"},
        {"backend": "tensorflow"},
        {"device": "tpu"},
        {"max_batch": 0},
        {"max_queue_images": 0},
        {"max_body_bytes": 0},
        {"body_seconds": 0},
        {"max_files": 0},
        {"max_image_pixels": 0},
        {"max_request_pixels": 0},
        {"threads": -1},
        {"drain_seconds": 0},
        {"hang_seconds": 0},
        {"deadline_seconds": 0},
        {"deadline_seconds": -1},
        {"deadline_seconds": "nan"},
    ],
    ids=str,
)
def test_a_value_without_a_meaning_is_refused_and_named(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as error:
        Settings(**bad)
    assert error.value.errors()[0]["loc"] == tuple(bad)


def test_settings_do_not_change_under_a_running_service() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1
