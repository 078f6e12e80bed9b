"""uvicorn with a graceful end: after SIGTERM running requests are finished and waiting ones refused."""

import signal
from types import FrameType

import uvicorn
from fastapi import FastAPI


class Server(uvicorn.Server):
    """A server that tells its engine of the signal before the connections close."""

    def __init__(self, app: FastAPI, host: str, port: int):
        config = uvicorn.Config(app, host=host, port=port, log_level="warning", access_log=False, lifespan="on")
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by uvicorn for SIGTERM and SIGINT."""
        self._app.state.service.engine.drain()
        super().handle_exit(sig, frame)


def run(app: FastAPI, host: str, port: int) -> None:
    """Serve until a signal ends it. SIGTERM leaves with success, as process managers expect."""
    server = Server(app, host, port)
    signal.signal(signal.SIGTERM, lambda *_: None)  # what uvicorn raises again once it has ended
    server.run()
