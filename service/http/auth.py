"""API keys: who may ask. The settings hold their SHA-256, so that no environment or log gives one away.

A plain hash is enough, since a key is 32 random bytes: there is nothing to guess that a slow hash would slow down.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence

from starlette.datastructures import Headers

from ddaebm.service.http.errors import Problem


def make_key() -> tuple[str, str]:
    """A new key, and the hash of it that the settings take."""
    key = f"ddaebm_{secrets.token_urlsafe(32)}"
    return key, hash_key(key)


def hash_key(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def check_key(headers: Headers, hashes: Sequence[str]) -> None:
    """Accept `Authorization: Bearer KEY` or `X-API-Key: KEY`, each of `hashes` being as good.

    Raises:
        Problem: 401, no key or another one.
    """
    scheme, _, given = headers.get("authorization", "").partition(" ")
    key = given.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    digest = hash_key(key)
    # All are compared, each in constant time: how long it takes says nothing about the keys.
    if not sum(hmac.compare_digest(digest, known) for known in hashes):
        detail = "this key is not known here" if key else "send a key: Authorization: Bearer KEY, or X-API-Key: KEY"
        raise Problem(401, "unauthorized", detail, {"WWW-Authenticate": "Bearer", "Connection": "close"})
