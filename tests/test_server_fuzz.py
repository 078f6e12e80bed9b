"""Thousands of random requests: none may break the server, its connections, or the wall between two tenants.

Three sources: valid bodies with random changes, whatever schemathesis draws from the OpenAPI document, and bytes on
raw sockets that are hardly HTTP. The default run draws some hundred; `pytest -m slow` draws 20,000 requests.
"""

import http.client
import json
import math
import os
import random
import socket
from collections import Counter
from copy import deepcopy
from functools import reduce
from operator import getitem
from urllib.parse import urlencode

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, seed, settings

from fastmem.answer.contrast import METHODS
from fastmem.serve.app import create_app
from fastmem.serve.engine import EngineLimits
from fastmem.serve.limits import Limits
from serving import QUESTION, address_of, eventually, listening, make_llm

ALLOWED_5XX = {503, 507}
KEYS = {"ada": "key-of-ada", "bob": "key-of-bob"}
SECRETS = {"ada": "the violet otter", "bob": "the copper heron"}
DOCUMENTS = {who: [{"title": "Notice", "text": f"It is {secret} that sings."}] for who, secret in SECRETS.items()}

BODIES = {
    "/v1/chat/completions": {
        "model": "tiny", "messages": QUESTION, "max_tokens": 2, "fastmem": {"method": "fastmem+cd", "alpha": 0.5},
        "temperature": 0.7, "top_p": 0.9, "seed": 1, "stop": ["."], "n": 2, "logprobs": True, "top_logprobs": 2,
        "logit_bias": {"5": 1.5}, "stream": True, "stream_options": {"include_usage": True}, "min_tokens": 1,
    },
    "/v1/completions": {"model": "tiny", "prompt": ["The ferry", "At nine"], "max_tokens": 2, "logprobs": 1, "n": 1},
    "/v1/responses": {"model": "tiny", "input": "When?", "instructions": "Short.", "max_output_tokens": 2},
    "/v1/memories": {"name": "notice", "fastmem": {"recipe": {"steps": 1, "learning_rate": 1e-3}}, "stream": False},
    "/v1/memories/notice/surprise": {},
    "/tokenize": {"prompt": "The ferry leaves."},
}  # fmt: skip
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["", "x" * 3000, "\x00", "\ud800", "tiny", "notice", "mem-0", "fastmem", "../x", "NaN"]),
)
# Other values that are right, by field: most requests must reach the model.
VALID = {
    "method": list(METHODS),
    "alpha": [0, 1, 100],
    "relative_top": [0, 0.1, 1],
    "steps": [0, 1, 3],
    "temperature": [0, 0.5, 2],
    "top_p": [0.01, 1],
    "n": [1, 2, 3],
    "seed": [0, -(2**63), 2**63 - 1],
    "stop": [None, "e", ["a", "b" * 256], ["x"] * 16],
    "logprobs": [0, 5],
    "logit_bias": [{}, {"0": -100, "5": 100}],
    "stream": [True, False],
    "stream_options": [None, {"include_usage": False}],
    "min_tokens": [0, 2],
    "max_tokens": [1, 3],
    "prompt": ["a", [1, 2, 3], [[1], [2, 3]]],
    "input": [[{"role": "user", "content": [{"type": "input_text", "text": "When?"}]}]],
    "name": [None, "other", "a.b-c_d"],
}
PATHS = (
    *("/v1/memories", "/v1/memories/notice", "/v1/memories/notice/content", "/v1/models", "/v1/models/tiny:notice"),
    *("/health", "/metrics", "/version", "/examples", "/nothing"),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def places(value, path=()):
    """The paths of everything inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@st.composite
def changed_bodies(draw, body):
    """The body with up to three values replaced, removed or added."""
    body = deepcopy(body)
    for _ in range(draw(st.sampled_from([0, 1, 1, 2, 3]))):
        valid = [path for path in places(body) if path[-1] in VALID]
        if valid and draw(st.integers(0, 2)):
            *holders, last = draw(st.sampled_from(valid))
            reduce(getitem, holders, body)[last] = deepcopy(draw(st.sampled_from(VALID[last])))
            continue
        path = draw(st.sampled_from([(), *places(body)]))
        holder = reduce(getitem, path[:-1], body)
        if not path:
            body[draw(st.sampled_from(["tools", "extra", "documents", "cache_salt", "text"]))] = draw(VALUES)
        elif draw(st.integers(0, 3)):
            holder[path[-1]] = deepcopy(draw(VALUES))
        else:
            del holder[path[-1]]
    return body


@st.composite
def requests(draw):
    """(method, path, body or None, who sends it) of one request, mostly a valid one with changes."""
    who = draw(st.sampled_from(sorted(KEYS)))
    if draw(st.integers(0, 5)) == 0:
        path = draw(st.sampled_from(PATHS))
        options = st.sampled_from(["limit", "after", "cache_salt"])
        query = draw(st.dictionaries(options, st.text(max_size=10) | st.integers().map(str), max_size=2))
        method = draw(st.sampled_from(["GET", "GET", "GET", "HEAD", "DELETE", "PUT", "PATCH", "OPTIONS", "BREW"]))
        return method, f"{path}?{urlencode(query, errors='replace')}" if query else path, None, who
    path = draw(st.sampled_from(sorted(BODIES)))
    body = BODIES[path]
    if path == "/v1/responses" or "model" not in body or draw(st.booleans()):
        body = body | {"documents": DOCUMENTS[who]} if path != "/tokenize" else body
    return "POST", path, json.dumps(draw(changed_bodies(body))).encode(), who


LINES = (
    *(b"GET / HTTP/1.1", b"GET /health HTTP/9.9", b"GET  HTTP/1.1", b"GET /%zz%00 HTTP/1.1", b"CONNECT x:1 HTTP/1.1"),
    *(b"POST /v1/completions HTTP/1.1", b"POST /tokenize HTTP/1.0", b"PRI * HTTP/2.0", b"GET /" + b"a" * 9000),
)
HEADERS = (
    *(b"Host: localhost", b"Host:", b"Host: evil.example", b"Content-Length: 5", b"Content-Length: -1", b"no colon"),
    *(b"Content-Length: 99999999999", b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", b"\xff\xfe: \x00"),
    *(b"Expect: 100-continue", b"Connection: upgrade", b"Upgrade: websocket", b"X: " + b"y" * 70000, b" folded"),
    b"Origin: https://evil.example",
)
TAILS = (b"", b"{}", b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n", b"x" * 5000, b'{"prompt": "a"}')
NOISE = st.binary(max_size=300) | st.builds(
    lambda line, headers, tail: b"\r\n".join([line, *headers, b"", tail]),
    st.sampled_from(LINES),
    st.lists(st.sampled_from(HEADERS), max_size=5),
    st.sampled_from(TAILS),
)


class Target:
    """A listening server with two tenants, and what its answers were."""

    def __init__(self, app, address):
        self.app, self.address, self.statuses = app, address, Counter()
        for who in KEYS:
            body = BODIES["/v1/memories"] | {"documents": DOCUMENTS[who]}
            assert self.send("POST", "/v1/memories", json.dumps(body).encode(), who)[0] == 200

    def send(self, method, path, body, who):
        """(status, body) of one request on a connection of its own, checked against everything promised of all."""
        connection = http.client.HTTPConnection(*self.address, timeout=120)
        headers = {"authorization": f"Bearer {KEYS[who]}", "content-type": "application/json"}
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        content = response.read()  # raises IncompleteRead where the connection is dropped
        connection.close()
        self.statuses[response.status] += 1
        assert response.status < 500 or response.status in ALLOWED_5XX, (response.status, method, path, body, content)
        assert response.headers["x-request-id"]
        if response.status >= 400 and method != "HEAD" and response.status != 405:
            assert json.loads(content)["error"]["message"]
        for other in KEYS.keys() - {who}:
            assert SECRETS[other].encode() not in content
            assert KEYS[other].encode() not in content
        return response.status, content

    def noise(self, data, halfway):
        """Bytes on a raw socket. The server may refuse them as it likes, but not with an error of its own."""
        with socket.create_connection(self.address, timeout=30) as connection:
            connection.sendall(data[: len(data) // 2] if halfway else data)
            if halfway:
                return
            connection.shutdown(socket.SHUT_WR)
            try:
                answer = connection.recv(65536)
            except ConnectionResetError:
                return
        if answer.startswith(b"HTTP/1.1 5"):
            assert int(answer[9:12]) in ALLOWED_5XX, (data, answer)

    def listed(self, who):
        """The ids of one tenant's memories."""
        return {one["id"] for one in json.loads(self.send("GET", "/v1/memories?limit=1000", None, who)[1])["data"]}


@pytest.fixture
def target(tmp_path):
    app = create_app(
        make_llm(),
        api_keys=list(KEYS.values()),
        folder=tmp_path / "store",
        limits=Limits(refused_share=math.inf),  # most of what is sent is refused, and each time soon
        engine_limits=EngineLimits(waiting=256),
    )
    with listening(app) as server:
        yield Target(app, address_of(server))


def unchanged(target, before):
    """After everything: the server answers as before, nothing runs, and no memory belongs to two."""
    target.send("GET", "/health", None, "ada")
    engine = target.app.state.service.engine
    assert engine.alive
    eventually(lambda: engine.waiting == 0)
    assert answer_of(target) == before
    assert target.listed("ada").isdisjoint(target.listed("bob"))


def answer_of(target):
    """A plain answer of the base model."""
    body = {"model": "tiny", "messages": QUESTION, "max_tokens": 8}
    status, content = target.send("POST", "/v1/chat/completions", json.dumps(body).encode(), "ada")
    assert status == 200
    return json.loads(content)["choices"][0]["message"]["content"]


def drawn(strategy, count, check):
    """`check` for `count` draws. The seed is printed where one fails."""
    number = int(os.environ.get("FASTMEM_SEED", "0")) or (random.randrange(2**32) if count > 1000 else 7)

    @seed(number)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def run(one):
        check(one)

    run()


@pytest.mark.parametrize("count", [200, pytest.param(14_000, marks=pytest.mark.slow)])
def test_changed_requests(target, count):
    before = answer_of(target)
    drawn(requests(), count, lambda one: target.send(*one))
    print(dict(target.statuses))
    assert target.statuses[200] > count / 6, "many draws must be answered, or they test little"
    unchanged(target, before)


@pytest.mark.parametrize("count", [10, pytest.param(250, marks=pytest.mark.slow)])
def test_requests_from_the_openapi_document(target, count):
    """`count` for each of the operations."""
    schemathesis = pytest.importorskip("schemathesis", reason="needs fastmem[test-fuzz]")
    before = answer_of(target)
    for found in schemathesis.openapi.from_dict(target.app.openapi()).get_all_operations():
        operation = found.ok()

        def check(case):
            given = case.as_transport_kwargs(base_url="http://localhost")
            path = given["url"].removeprefix("http://localhost") + (
                "?" + urlencode(given["params"]) if given["params"] else ""
            )
            body = json.dumps(given["json"]).encode() if "json" in given else given.get("data")
            target.send(given["method"], path, body, "ada")

        drawn(operation.as_strategy(), count, check)
    print(dict(target.statuses))
    unchanged(target, before)


@pytest.mark.parametrize("count", [100, pytest.param(3000, marks=pytest.mark.slow)])
def test_noise_on_raw_sockets(target, count, caplog):
    before = answer_of(target)
    drawn(st.tuples(NOISE, st.booleans()), count, lambda one: target.noise(*one))
    unchanged(target, before)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
