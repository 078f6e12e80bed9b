"""The API key of a request, and the tenant it belongs to. Each tenant has its own memories."""

import hashlib
import hmac
import json
from collections.abc import Sequence

from fastapi import Request


def bearer_key(request: Request) -> str:
    """The key in `Authorization: Bearer <key>`, or an empty string."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def is_accepted_key(key: str, accepted: Sequence[str]) -> bool:
    """Whether the key is among the accepted ones, compared in constant time."""
    return any(hmac.compare_digest(key.encode(), other.encode()) for other in accepted)


def tenant_of(api_key: str, salt: str | None) -> str:
    """The tenant of a key and a salt: a digest from which neither can be read, different for every pair."""
    return hashlib.sha256(json.dumps(["fastmem tenant", api_key, salt]).encode()).hexdigest()
