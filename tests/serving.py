"""What the tests of the server share: a tiny model, wishes, jobs whose events are collected, waiting with an end."""

import hashlib
import queue
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

from openai import OpenAI
from starlette.testclient import TestClient

from families import build
from fastmem import FastMem, Recipe
from fastmem.answer.running_batch import Piece
from fastmem.serve.app import create_app
from fastmem.serve.engine import Engine, EngineLimits
from fastmem.serve.jobs import ActionFinished, AnswerFinished, Job, JobFailed
from fastmem.serve.memory_source import MemorySource
from fastmem.serve.store import Store
from fastmem.serve.uvicorn_server import GracefulServer
from tiny_tokenizer import build_tokenizer

RECIPE = Recipe(learning_rate=1e-2, steps=3)
DOCUMENTS = [{"title": "Notice", "text": "The ferry leaves at nine from the east pier."}]
QUESTION = [{"role": "user", "content": "When does the ferry leave?"}]
PATIENCE_SECONDS = 300  # for what takes seconds at most; only a hang, or a machine that is very busy, gets there


def make_llm():
    """A 3-layer Llama of random weights that reads bytes."""
    llm = FastMem(build("llama"), build_tokenizer(), recipe=RECIPE)
    llm.name = "tiny"
    return llm


def source(llm, text, tenant="t", recipe=RECIPE, name=None):
    """The memory of `text`; its key says whose and of what."""
    key = "mem-" + hashlib.sha256(f"{tenant} {text} {recipe}".encode()).hexdigest()[:32]
    about = {"titles": [None], "tokens": 1, "text_sha256": "-"}
    return MemorySource(key, tenant, recipe, llm.memory_tokens(text, recipe), name, about)


class Asked:
    """A job and what came of it."""

    def __init__(self, llm, prompt="hello", want=None, method="base", tenant="t", act=None, on_piece=None, **options):
        self.events = queue.SimpleQueue()
        self.pieces = []
        options = {"max_new_tokens": 8} | options
        durable = options.pop("durable", False)
        shared = options.pop("shared_tokens", 0)
        account = options.pop("account", "")

        def emit(event):
            if on_piece is not None and isinstance(event, Piece):
                on_piece(event)
            self.events.put(event)

        request = None
        if act is None:
            request = replace(llm.prepare(prompt, method, **options), shared_tokens=shared, salt=tenant)
        self.job = Job(emit, want, request, action=act, durable=durable, account=account)

    def to(self, engine):
        """Submit."""
        engine.submit(self.job)
        return self

    def end(self):
        """The last event."""
        while True:
            event = self.events.get(timeout=PATIENCE_SECONDS)
            if isinstance(event, AnswerFinished | ActionFinished | JobFailed):
                return event
            self.pieces.append(event.text)

    def text(self):
        """The whole answer. Errors: what the job failed with."""
        end = self.end()
        if isinstance(end, JobFailed):
            raise end.error
        return "".join(self.pieces)


def eventually(condition):
    """Wait until `condition()` holds; fails when it is a hang."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@contextmanager
def closing_apps(llm):
    """make(**options): a server; all that were made are closed at the end."""
    apps = []

    def make(**options):
        apps.append(create_app(llm, **options))
        return apps[-1]

    try:
        yield make
    finally:
        for one in apps:
            one.state.service.engine.close(timeout_seconds=60)


@contextmanager
def closing_engines(llm):
    """make(budget, folder, model, **limits): an engine; all that were made are closed at the end."""
    engines = []

    def make(budget=None, folder=None, model=llm, **limits):
        engines.append(Engine(model, Store(model, budget, folder), EngineLimits(**limits)))
        return engines[-1]

    try:
        yield make
    finally:
        for one in engines:
            one.close(timeout_seconds=60)


@contextmanager
def listening(app):
    """The server of an app on a real socket, in a thread of its own."""
    server = GracefulServer(app, "127.0.0.1", 0)
    thread = threading.Thread(target=server.run)
    thread.start()
    eventually(lambda: server.started)
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join()


def address_of(server):
    """(host, port) of a listening server."""
    return server.servers[0].sockets[0].getsockname()


def client(app, key="x"):
    """The stock client, in this process."""
    return OpenAI(base_url="http://localhost/v1", api_key=key, http_client=web(app), max_retries=0)


def web(app, **headers):
    """Plain HTTP, in this process."""
    return TestClient(app, base_url="http://localhost", raise_server_exceptions=False, headers=headers)


def ask(app, body, **headers):
    """The answer to QUESTION, with `body` on top."""
    return web(app, **headers).post("/v1/chat/completions", json={"model": "tiny", "messages": QUESTION} | body)
