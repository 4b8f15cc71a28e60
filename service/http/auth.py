"""API keys. The settings hold only their SHA-256, so that no environment or log reveals a key.

A plain hash is enough: a key is 32 random bytes, so a slow hash would not make guessing any harder.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence

from starlette.datastructures import Headers

from ddaebm.service.http.errors import Problem


def make_key() -> tuple[str, str]:
    """A new key, and its hash for the settings."""
    key = f"ddaebm_{secrets.token_urlsafe(32)}"
    return key, hash_key(key)


def hash_key(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def check_key(headers: Headers, hashes: Sequence[str]) -> None:
    """Accept `Authorization: Bearer KEY` or `X-API-Key: KEY`, for any of `hashes`.

    Raises:
        Problem: 401, no key or an unknown one.
    """
    scheme, _, given = headers.get("authorization", "").partition(" ")
    key = given.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    digest = hash_key(key)
    # Compare all, each in constant time, so that timing tells nothing about the keys.
    if not sum(hmac.compare_digest(digest, known) for known in hashes):
        detail = "this key is not known here" if key else "send a key: Authorization: Bearer KEY, or X-API-Key: KEY"
        raise Problem(401, "unauthorized", detail, {"WWW-Authenticate": "Bearer", "Connection": "close"})
