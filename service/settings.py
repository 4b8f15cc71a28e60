"""Settings: a flag beats the environment (`DDAEBM_…`), which beats `.env`, which beats the default."""

import re
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="DDAEBM_", env_file=".env", extra="ignore", frozen=True)

    # NoDecode: the environment has NAME,NAME and no JSON.
    bundle: Annotated[tuple[str, ...], NoDecode] = Field(
        ("fashion-mnist",),
        description="bundles by shipped name or folder, separated by commas; the first answers where none is named",
    )
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    api_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="SHA-256 of the keys that may ask, separated by commas (`ddaebm key` makes one); empty: anybody"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="origins whose pages may ask from a browser, separated by commas; * for all, empty for none"
    )
    log_format: Literal["text", "json"] = Field("text", description="json: one object a line, for log collectors")
    backend: Literal["onnx", "torch"] = Field("onnx", description="torch needs the extra of that name (docs/gpu.md)")
    device: Literal["auto", "cpu", "cuda", "tensorrt"] = Field(
        "auto", description="auto takes CUDA where the backend has it; tensorrt is for onnx alone"
    )
    tensorrt_cache: str = Field("", description="folder of TensorRT's engines; empty: in the user's cache folder")
    workers: int = Field(0, ge=0, description="inferences at a time; 0: one a core, or one on a GPU or with torch")
    threads: int = Field(0, ge=0, description="threads of one inference; 0: the cores, shared among the workers")
    max_batch: int = Field(64, ge=1, description="images in one inference")
    max_queue_images: int = Field(4096, ge=1, description="images that may wait; requests beyond them get 429")
    max_connections: int = Field(
        2048, ge=1, description="open connections; one more closes the one that has kept the service waiting longest"
    )
    max_pipelined: int = Field(
        16, ge=1, description="requests waiting on one connection; with one more it is closed after their answers"
    )
    max_header_bytes: int = Field(32 * 2**10, ge=256, description="bytes of request line and headers together")
    max_headers: int = Field(100, ge=1, description="headers of one request")
    header_seconds: float = Field(10.0, gt=0, description="time that request line and headers may take to arrive")
    keep_alive_seconds: int = Field(
        65, ge=1, description="time a connection may be idle between requests; more than the proxy's in front"
    )
    max_body_bytes: int = Field(64 * 2**20, ge=1, description="bytes of one request body")
    max_bodies_bytes: int = Field(
        256 * 2**20,
        ge=1,
        validate_default=True,
        description="bytes of all request bodies at once, without the first 64 KiB of each",
    )
    body_seconds: float = Field(30.0, gt=0, description="time a request body may take to arrive")
    send_seconds: float = Field(30.0, gt=0, description="time a client may take to take what is sent to it")
    decode_threads: int = Field(2, ge=1, description="threads that parse and decode what is sent")
    max_files: int = Field(256, ge=1, description="images of one scoring request")
    max_image_pixels: int = Field(16_000_000, ge=1, description="pixels of one image sent, checked before decoding")
    max_request_pixels: int = Field(64_000_000, ge=1, description="pixels of all images of one request")
    deadline_seconds: float = Field(30.0, gt=0, description="time a request may take; X-Request-Timeout shortens it")
    hang_seconds: float = Field(60.0, gt=0, description="time one inference may take before its thread is given up")
    drain_seconds: int = Field(30, ge=1, description="time that work in flight has after SIGTERM")

    @field_validator("bundle", "api_keys", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        names = value.split(",") if isinstance(value, str) and value else value or ()
        if isinstance(names, (list, tuple)):
            names = tuple(name.strip() if isinstance(name, str) else name for name in names)
            if "" in names:
                raise ValueError("one of the values is empty; separate several by single commas")
        return names

    @field_validator("max_bodies_bytes")
    @classmethod
    def _one_body_fits(cls, limit: int, info: ValidationInfo) -> int:
        one = info.data.get("max_body_bytes", 0)
        if limit < one:
            raise ValueError(f"all bodies together, {limit}, must be allowed what one is: max_body_bytes is {one}")
        return limit

    @field_validator("bundle")
    @classmethod
    def _at_least_one(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError("name at least one bundle; separate several by commas")
        return names

    @field_validator("api_keys")
    @classmethod
    def _are_hashes(cls, hashes: tuple[str, ...]) -> tuple[str, ...]:
        if not all(re.fullmatch("[0-9a-f]{64}", text) for text in hashes):  # the value is not repeated: it may be a key
            raise ValueError("takes SHA-256 in 64 small hexadecimal digits, not keys; `ddaebm key` makes both")
        return hashes

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        if bad := [text for text in origins if text != "*" and not re.fullmatch(r"https?://[^/\s]+", text)]:
            raise ValueError(
                f"{bad[0]!r} is no origin: https://example.org, without a path or a slash at the end, or *"
            )
        return origins
