"""uvicorn with a graceful shutdown and limits on connections.

After SIGTERM, running requests are completed and waiting ones refused; what is not over after the shutdown time-out is
cancelled. A client that does not finish the headers of a request in time is cut off, for which uvicorn has no option.
"""

import asyncio
import signal
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from fastmem.serve.limits import Limits


class TimedH11Protocol(H11Protocol):
    """header_seconds: how long a client may take for the headers of a request."""

    header_seconds = Limits.header_seconds

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late: asyncio.TimerHandle | None = self.loop.call_later(self.header_seconds, transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._headers_complete()
        elif self._late is None:
            self._late = self.loop.call_later(self.header_seconds, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_complete()
        super().connection_lost(exc)

    def _headers_complete(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class GracefulServer(uvicorn.Server):
    """A server that drains its engine before the connections close."""

    def __init__(self, app: FastAPI, host: str, port: int, root_path: str = ""):
        limits: Limits = app.state.service.limits
        protocol = type("Protocol", (TimedH11Protocol,), {"header_seconds": limits.header_seconds})
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            http=protocol,
            root_path=root_path,
            log_level="warning",
            access_log=False,
            lifespan="on",
            limit_concurrency=limits.connections,
            timeout_graceful_shutdown=limits.shutdown_seconds,
        )
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by uvicorn for SIGTERM and SIGINT."""
        self._app.state.service.engine.drain()
        super().handle_exit(sig, frame)


def run(app: FastAPI, host: str, port: int, root_path: str = "") -> None:
    """Serve until a signal ends it. After SIGTERM the process exits with code 0, as process managers expect."""
    server = GracefulServer(app, host, port, root_path)
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises the signal again when it has ended
    server.run()
