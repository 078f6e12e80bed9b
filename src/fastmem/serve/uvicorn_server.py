"""uvicorn with a graceful shutdown: after SIGTERM, running requests are completed and waiting ones refused."""

import signal
from types import FrameType

import uvicorn
from fastapi import FastAPI


class GracefulServer(uvicorn.Server):
    """A server that drains its engine before the connections close."""

    def __init__(self, app: FastAPI, host: str, port: int):
        config = uvicorn.Config(app, host=host, port=port, log_level="warning", access_log=False, lifespan="on")
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by uvicorn for SIGTERM and SIGINT."""
        self._app.state.service.engine.drain()
        super().handle_exit(sig, frame)


def run(app: FastAPI, host: str, port: int) -> None:
    """Serve until a signal ends it. After SIGTERM the process exits with code 0, as process managers expect."""
    server = GracefulServer(app, host, port)
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises the signal again when it has ended
    server.run()
