"""uvicorn with a graceful shutdown and limits on connections.

After SIGTERM, running requests are completed and waiting ones refused; what is not over after the shutdown time-out is
cancelled. A client that does not finish the headers of a request in time is cut off, for which uvicorn has no option.
"""

import asyncio
import resource
import signal
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from fastmem.serve.limits import Limits


class TimedH11Protocol(H11Protocol):
    """header_seconds: how long a client may take for the headers of a request. unread_seconds: how long it may leave
    what was sent to it unread."""

    header_seconds = Limits.header_seconds
    unread_seconds = Limits.unread_seconds
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late: asyncio.TimerHandle | None = self.loop.call_later(self.header_seconds, transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._headers_complete()
        elif self._late is None:
            self._late = self.loop.call_later(self.header_seconds, self.transport.close)

    def pause_writing(self) -> None:
        """The client does not read what it asked for. It is cut off unless it goes on in time."""
        super().pause_writing()
        self._unread = self.loop.call_later(self.unread_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read()

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_complete()
        self._read()
        super().connection_lost(exc)

    def _read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _headers_complete(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class GracefulServer(uvicorn.Server):
    """A server that drains its engine before the connections close."""

    def __init__(self, app: FastAPI, host: str, port: int, root_path: str = ""):
        limits: Limits = app.state.service.limits
        seconds = {"header_seconds": limits.header_seconds, "unread_seconds": limits.unread_seconds}
        protocol = type("Protocol", (TimedH11Protocol,), seconds)
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            http=protocol,
            root_path=root_path,
            log_config=None,  # see logs.py
            access_log=False,
            lifespan="on",
            limit_concurrency=min(limits.connections, _file_limit() // 2),
            timeout_graceful_shutdown=limits.shutdown_seconds,
        )
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by uvicorn for SIGTERM and SIGINT."""
        self._app.state.service.engine.drain()
        super().handle_exit(sig, frame)


def _file_limit() -> int:
    """How many files and connections this process may have open."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 2**20 if soft == resource.RLIM_INFINITY else soft


def run(app: FastAPI, host: str, port: int, root_path: str = "") -> None:
    """Serve until a signal ends it. After SIGTERM the process exits with code 0, as process managers expect."""
    server = GracefulServer(app, host, port, root_path)
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises the signal again when it has ended
    server.run()
