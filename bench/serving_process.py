"""`fastmem serve` as a process of its own, for the programs that put it under load."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx2
import psutil


class Server:
    """A server on a free port of this machine. options: further options of the command line."""

    def __init__(self, options: Sequence[str], folder: Path | None = None):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = [sys.executable, "-m", "fastmem.cli", "serve", "--port", str(self.port), *options]
        self.command += ["--store", str(folder)] if folder else []
        self.start()

    def start(self) -> None:
        """Start and wait until it answers."""
        # One thread in the model: at 256 wide a second one costs more than it saves, and the clients need a core too.
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            self.command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True
        )
        wait_for_health(self.url, self.process, "the server ended at its start")

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM, and wait."""
        self.process.terminate()
        self.process.wait()

    def rss_mb(self) -> float:
        """Resident memory, in units of 10^6 bytes."""
        return psutil.Process(self.process.pid).memory_info().rss / 1e6

    def listed(self, key: str) -> set[str]:
        """Ids of the stored memories of a key."""
        headers = {"authorization": f"Bearer {key}"}
        found = httpx2.get(f"{self.url}/v1/memories?limit=1000", headers=headers, timeout=60).json()["data"]
        return {memory["id"] for memory in found}


def wait_for_health(url: str, process: "subprocess.Popen[bytes]", ended: str) -> None:
    """Wait until a server answers. ended: what is said if its process has ended."""
    while True:
        try:
            if httpx2.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.05)
        if process.poll() is not None:
            raise SystemExit(ended)
