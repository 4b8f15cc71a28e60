"""Settings. Precedence: command-line flag, environment variable (`DDAEBM_…`), `.env`, default."""

import logging
import re
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

logger = logging.getLogger("ddaebm")


def is_service_link(value: str) -> bool:
    """Return True if `value` is the address of a Kubernetes Service, such as tcp://10.0.0.1:8000."""
    return re.match(r"(tcp|udp|sctp)://", value) is not None


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="DDAEBM_", env_file=".env", extra="ignore", frozen=True)

    # NoDecode: environment variables hold NAME,NAME, not JSON.
    bundle: Annotated[tuple[str, ...], NoDecode] = Field(
        ("fashion-mnist",),
        description="bundles by shipped name or folder, separated by commas; the first one is the default",
    )
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 for a free one")
    api_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="SHA-256 of accepted API keys, separated by commas (`ddaebm key` makes one); empty: no key needed",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="origins that may call from a browser, separated by commas; * for all, empty for none"
    )
    log_format: Literal["text", "json"] = Field("text", description="json: one object per line, for log collectors")
    backend: Literal["onnx", "torch"] = Field("onnx", description="torch needs the extra of that name (docs/gpu.md)")
    device: Literal["auto", "cpu", "cuda", "tensorrt"] = Field(
        "auto", description="auto uses CUDA if the backend has it; tensorrt needs backend onnx"
    )
    tensorrt_cache: str = Field("", description="folder for TensorRT engines; empty: in the user's cache folder")
    workers: int = Field(0, ge=0, description="concurrent inferences; 0: one per core, or one on a GPU or with torch")
    threads: int = Field(0, ge=0, description="threads of one inference; 0: the cores divided by the workers")
    max_batch: int = Field(64, ge=1, description="most images in one inference")
    max_queue_images: int = Field(4096, ge=1, description="images that may wait; requests beyond them get 429")
    max_connections: int = Field(
        2048, ge=1, description="open connections; another one closes the one that has waited longest for its client"
    )
    max_pipelined: int = Field(
        16, ge=1, description="pipelined requests on one connection; another one closes it after their responses"
    )
    max_header_bytes: int = Field(32 * 2**10, ge=256, description="total bytes of request line and headers")
    max_headers: int = Field(100, ge=1, description="headers of one request")
    header_seconds: float = Field(10.0, gt=0, description="time for request line and headers to arrive")
    keep_alive_seconds: int = Field(
        65, ge=1, description="idle time between requests on one connection; longer than that of a proxy in front"
    )
    max_body_bytes: int = Field(64 * 2**20, ge=1, description="bytes of one request body")
    max_bodies_bytes: int = Field(
        256 * 2**20,
        ge=1,
        validate_default=True,
        description="total bytes of request bodies in memory, not counting the first 64 KiB of each",
    )
    body_seconds: float = Field(30.0, gt=0, description="time for a request body to arrive")
    send_seconds: float = Field(30.0, gt=0, description="time for a client to receive its response")
    decode_threads: int = Field(2, ge=1, description="threads that parse uploads; one more parses those over 512 KiB")
    decode_processes: int = Field(2, ge=1, description="processes that decode other images; started when needed")
    max_decode_pixels: int = Field(
        128_000_000, ge=1, description="pixels that may wait for these processes; requests beyond them get 429"
    )
    max_files: int = Field(256, ge=1, description="images of one scoring request")
    max_image_pixels: int = Field(16_000_000, ge=1, description="pixels of one uploaded image, checked before decoding")
    max_request_pixels: int = Field(64_000_000, ge=1, description="pixels of all images of one request")
    deadline_seconds: float = Field(30.0, gt=0, description="time for a request; X-Request-Timeout shortens it")
    hang_seconds: float = Field(60.0, gt=0, description="time for one inference before its thread is replaced")
    drain_seconds: int = Field(30, ge=1, description="time for requests in flight after SIGTERM")

    @field_validator("bundle", "api_keys", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        names = value.split(",") if isinstance(value, str) and value else value or ()
        if isinstance(names, (list, tuple)):
            names = tuple(name.strip() if isinstance(name, str) else name for name in names)
            if "" in names:
                raise ValueError("one of the values is empty; separate values by single commas")
        return names

    @field_validator("port", mode="before")
    @classmethod
    def _not_a_service_link(cls, value: object) -> object:
        """Ignore the address that Kubernetes puts into DDAEBM_PORT beside a Service named ddaebm."""
        if isinstance(value, str) and is_service_link(value):
            logger.warning(
                "DDAEBM_PORT=%s is ignored: it is the address of a Kubernetes Service named ddaebm;"
                " set enableServiceLinks: false for the pod", value)  # fmt: skip
            return cls.model_fields["port"].default
        return value

    @field_validator("max_bodies_bytes")
    @classmethod
    def _one_body_fits(cls, limit: int, info: ValidationInfo) -> int:
        one = info.data.get("max_body_bytes", 0)
        if limit < one:
            raise ValueError(f"must be at least max_body_bytes, which is {one}, not {limit}")
        return limit

    @field_validator("bundle")
    @classmethod
    def _at_least_one(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError("name at least one bundle; separate names by commas")
        return names

    @field_validator("api_keys")
    @classmethod
    def _are_hashes(cls, hashes: tuple[str, ...]) -> tuple[str, ...]:
        if not all(re.fullmatch("[0-9a-f]{64}", text) for text in hashes):  # do not repeat the value: it may be a key
            raise ValueError(
                "needs SHA-256 hashes of 64 lowercase hexadecimal digits, not keys; `ddaebm key` makes both"
            )
        return hashes

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        if bad := [text for text in origins if text != "*" and not re.fullmatch(r"https?://[^/\s]+", text)]:
            raise ValueError(
                f"{bad[0]!r} is not an origin: use https://example.org without a path or final slash, or *"
            )
        return origins
