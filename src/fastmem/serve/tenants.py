"""Who is asking: the API key of a request, and the tenant whose memories it may use."""

import hashlib
import hmac
import json
from collections.abc import Sequence

from fastapi import Request


def bearer_key(request: Request) -> str:
    """The key in `Authorization: Bearer <key>`, or an empty string."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def is_accepted(key: str, accepted: Sequence[str]) -> bool:
    """Whether the key is among the accepted ones, compared in constant time."""
    return any(hmac.compare_digest(key.encode(), one.encode()) for one in accepted)


def tenant_of(api_key: str, salt: str | None) -> str:
    """The tenant of a key and a salt: neither can be read from it, and no other pair gives the same one."""
    return hashlib.sha256(json.dumps(["fastmem tenant", api_key, salt]).encode()).hexdigest()
