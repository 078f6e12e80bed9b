"""Who may talk to the server from a browser: the `Host` header, and the `Origin` of what changes something.

A web page that a user visits can make the user's browser send requests to `localhost`. DNS rebinding gives such a
page a name of its own for this machine, which the `Host` header shows; any other page is another origin. starlette's
`TrustedHostMiddleware` does the first, but not for IPv6 addresses, and has no error in OpenAI's form.
"""

from collections.abc import Sequence
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse

from fastmem.serve.asgi import Scope, header
from fastmem.serve.responses import error_object

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
_SAFE = ("GET", "HEAD", "OPTIONS")


class AllowedHosts:
    """hosts: accepted names, without port; `*` accepts all, `*.example.org` all below. origins: accepted origins of
    pages from elsewhere, as `https://example.org`; `*` accepts all."""

    def __init__(self, hosts: Sequence[str], origins: Sequence[str]):
        self.hosts, self.origins = [host.lower() for host in hosts], list(origins)

    def refusal(self, scope: Scope) -> JSONResponse | None:
        """The response to a request of others; None if it is accepted."""
        given = header(scope, b"host")
        host = hostname(f"//{given}")
        if "*" not in self.hosts and (host is None or not any(_matches(host, accepted) for accepted in self.hosts)):
            text = f"this server does not answer for the host {given[:200]!r}: start it with --allowed-hosts."
            return JSONResponse(error_object(text, "invalid_request_error", code="host_not_allowed"), 400)
        origin = header(scope, b"origin")
        if not origin or scope["method"] in _SAFE or "*" in self.origins or origin in self.origins:
            return None
        scheme, _, name = origin.lower().partition("://")
        if scheme in ("http", "https") and name == given.lower():
            return None
        text = f"this server does not accept requests from pages of {origin[:200]!r}: start it with --allowed-origins."
        return JSONResponse(error_object(text, "invalid_request_error", code="origin_not_allowed"), 403)


def hostname(url: str) -> str | None:
    """The name of the host in a URL that has nothing else but a port, in lower case; None if there is none."""
    try:
        parts = urlsplit(url)
        plain = not (parts.path or parts.query or parts.fragment or "@" in parts.netloc) and (parts.port or 1) > 0
        return parts.hostname.removesuffix(".") if plain and parts.hostname else None
    except ValueError:
        return None


def _matches(host: str, accepted: str) -> bool:
    return accepted == host or (accepted.startswith("*.") and host.endswith(accepted[1:]))
