"""`fastmem serve` as a process of its own: what only a real socket and a real signal can show."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx2
import pytest

from serving import PATIENCE_SECONDS, eventually, make_llm

BODY = {"messages": [{"role": "user", "content": "Tell me."}], "max_tokens": 1000, "stream": True}  # seconds


class Process:
    """A server on a free port, from a folder with a tiny model."""

    def __init__(self, model, *flags):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "fastmem.cli", "serve", "--model", str(model), "--port", str(self.port)]
        self.process = subprocess.Popen(
            [*command, "--name", "tiny", *flags],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_until_up(self):
        """Errors: `AssertionError` with what the process said where it has ended instead."""
        eventually(lambda: self.process.poll() is not None or self.up())
        assert self.process.poll() is None, self.process.stderr.read()

    def up(self):
        """Whether it answers."""
        try:
            return httpx2.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx2.TransportError:
            return False

    def gauge(self, name):
        """A number of /metrics."""
        text = httpx2.get(f"{self.url}/metrics", timeout=30).text
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder as `save_pretrained` writes it, with room for answers that take a while."""
    path = tmp_path_factory.mktemp("tiny")
    llm = make_llm()
    llm.model.config.max_position_embeddings = 20_000
    llm.model.save_pretrained(path)
    llm.tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def start(folder):
    """start(*flags): a process that is ended with the test."""
    running = []

    def process(*flags):
        running.append(Process(folder, *flags))
        running[-1].wait_until_up()
        return running[-1]

    yield process
    for one in running:
        one.process.kill()
        one.process.wait()
        one.process.stderr.close()


def test_leaving_mid_stream_frees_the_row_and_sigterm_lets_what_runs_end(start):
    server = start("--rows", "1")
    url = f"{server.url}/v1/chat/completions"
    with httpx2.stream("POST", url, json=BODY | {"model": "tiny"}, timeout=PATIENCE_SECONDS) as leaving:
        lines = leaving.iter_lines()  # kept: its end would be the answer's
        next(lines)
        assert server.gauge("fastmem_rows_running") == 1
    eventually(lambda: server.gauge("fastmem_rows_running") == 0)
    assert server.gauge("fastmem_abandoned_total") == 1
    # Whole answers are left too: nobody reads them once the connection is gone.
    with pytest.raises(httpx2.TimeoutException):
        httpx2.post(url, json=BODY | {"model": "tiny", "stream": False}, timeout=0.05)
    eventually(lambda: server.gauge("fastmem_abandoned_total") == 2)

    read_lines, waiting = [], []

    def read():
        with httpx2.stream("POST", url, json=BODY | {"model": "tiny"}, timeout=PATIENCE_SECONDS) as answer:
            read_lines.extend(answer.iter_lines())

    def wait():
        waiting.append(httpx2.post(url, json=BODY | {"model": "tiny"}, timeout=PATIENCE_SECONDS))

    reader = threading.Thread(target=read)
    reader.start()
    eventually(lambda: server.gauge("fastmem_rows_running") == 1)
    waiter = threading.Thread(target=wait)
    waiter.start()
    eventually(lambda: server.gauge("fastmem_jobs_waiting") == 1)
    server.process.send_signal(signal.SIGTERM)
    reader.join(PATIENCE_SECONDS)
    waiter.join(PATIENCE_SECONDS)
    assert read_lines[-2] == "data: [DONE]"
    chunks = [json.loads(line[6:]) for line in read_lines if line.startswith("data: {")]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert waiting[0].status_code == 503
    assert waiting[0].json()["error"]["code"] == "shutting_down"
    assert server.process.wait(PATIENCE_SECONDS) == 0
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{server.url}/health")


def test_a_killed_server_finds_its_memories_again(start, tmp_path):
    first = start("--store", str(tmp_path))
    names = []
    stop = threading.Event()

    def make():
        while not stop.is_set():
            document = [{"text": f"Document {len(names)}."}]
            try:
                body = {"documents": document, "name": f"n{len(names)}", "fastmem": {"recipe": {"steps": 1}}}
                found = httpx2.post(f"{first.url}/v1/memories", json=body, timeout=30)
            except httpx2.TransportError:
                return
            assert found.status_code == 200
            names.append(found.json()["name"])

    maker = threading.Thread(target=make)
    maker.start()
    eventually(lambda: len(names) >= 3)
    time.sleep(0.01)
    first.process.kill()
    stop.set()
    maker.join(PATIENCE_SECONDS)
    second = start("--store", str(tmp_path))
    listed = {m["name"] for m in httpx2.get(f"{second.url}/v1/memories", timeout=30).json()["data"]}
    assert set(names) <= listed
    for name in sorted(listed):
        body = {"model": name, "messages": BODY["messages"], "max_tokens": 2}
        assert httpx2.post(f"{second.url}/v1/chat/completions", json=body, timeout=30).status_code == 200
