"""Who may see what, what is refused and how, and what the server says of itself."""

import concurrent.futures
import gc
from dataclasses import replace

import openai
import pytest
import torch

from fastmem.answer.batch import Batch
from fastmem.serve.app import create_app
from fastmem.serve.engine import EngineLimits
from fastmem.serve.jobs import Job
from fastmem.serve.limits import Limits
from fastmem.serve.mailbox import Mailbox
from serving import DOCUMENTS, QUESTION, ask, client, closing_apps, eventually, make_llm, web


@pytest.fixture(scope="module")
def llm():
    return make_llm()


@pytest.fixture(scope="module")
def app(llm):
    app = create_app(llm)
    yield app
    app.state.service.engine.close(timeout_seconds=60)


@pytest.fixture
def serve(llm):
    """serve(**options): a further server, closed when the test ends."""
    with closing_apps(llm) as make:
        yield make


@pytest.mark.parametrize(
    ("body", "status", "param", "text"),
    [
        ({"tools": [{}]}, 400, "tools", "this server calls no tools"),
        ({"echo": True}, 400, "echo", "unknown field 'echo'"),
        ({"fastmem": {"metod": "base"}}, 400, "fastmem.metod", "unknown field"),
        ({"messages": []}, 400, "messages", "at least 1"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role", "Input should be"),
        ({"model": "other"}, 404, "model", "the model 'other' does not exist: accepted are 'tiny'"),
        ({"temperature": -1}, 400, "temperature", "greater than or equal to 0"),
        ({"n": 2, "temperature": 0}, 400, "n", "n is 2 at temperature 0, where all answers are the same"),
        ({"n": 17, "temperature": 1}, 400, "n", "is 17: this server gives at most 16 answers to a request"),
        ({"n": 0}, 400, "n", "greater than or equal to 1"),
        ({"top_logprobs": 2}, 400, "top_logprobs", "needs logprobs=true"),
        ({"fastmem": {"method": "fastnem"}}, 400, None, "Did you mean 'fastmem'?"),
        ({"fastmem": {"method": "fastmem"}}, 400, None, "needs documents"),
        ({"fastmem": {"method": "cad"}}, 400, None, "compares with the prompt without documents"),
        ({"documents": DOCUMENTS, "fastmem": {"recipe": {"lr": 1}}}, 400, "lr", "unknown recipe field 'lr'"),
        ({"documents": DOCUMENTS, "fastmem": {"recipe": {"steps": -1}}}, 400, "steps", "whole number"),
        ({"documents": DOCUMENTS, "fastmem": {"recipe": {"steps": 10**6}}}, 400, "steps", "at most 100"),
        (
            {"documents": DOCUMENTS, "fastmem": {"recipe": {"layers": [-2]}}},
            400,
            "layers",
            "only layers of its own recipe, [-1].",
        ),
        (
            {"documents": DOCUMENTS, "fastmem": {"recipe": {"layers": [5]}}},
            400,
            "layers",
            "only layers of its own recipe, [-1].",
        ),
        (
            {"documents": DOCUMENTS, "fastmem": {"recipe": {"placement": "prompt"}}},
            400,
            "placement",
            "memorizes a document in the prompt of one question",
        ),
        ({"documents": DOCUMENTS, "fastmem": {"alpha": -1}}, 400, "fastmem.alpha", "greater than"),
        ({"documents": [{"text": "  "}]}, 400, None, "the context is empty"),
        ({"documents": [{"text": "long " * 200}]}, 400, None, "too many: the model has 512 positions"),
        ({"documents": [{"text": "x"}] * 40}, 400, "documents", "40 documents are too many"),
        ({"max_tokens": 10**6}, 400, "max_tokens", "at most 1024"),
        ({"max_tokens": 600}, 400, None, "too many: the model has 512 positions"),
        ({"documents": [{"text": "x"}], "messages": [{"role": "assistant", "content": "x"}]}, 400, None, "the user's"),
    ],
)
def test_refusals_name_what_was_given_and_what_is_accepted(app, body, status, param, text):
    found = ask(app, body)
    assert found.status_code == status
    error = found.json()["error"]
    assert error["param"] == param
    assert text in error["message"]
    assert error["type"] == "invalid_request_error"


def test_every_prompt_of_a_batch_may_be_as_long_as_one_alone(serve):
    app = serve(limits=Limits(answers=32))
    longest = app.state.service.text.longest_token * 512

    def ask_for(prompts):
        return web(app).post("/v1/completions", json={"model": "tiny", "prompt": prompts, "max_tokens": 1})

    assert ask_for(["x" * 400] * 32).status_code == 200
    refused = ask_for(["x", "x" * (longest + 1)])
    said = f"the text is {longest + 1} characters long: 512 tokens hold at most {longest}. Give a shorter one."
    assert (refused.status_code, refused.json()["error"]["message"]) == (400, said)
    assert "at most 32 answers" in ask_for(["x" * (longest + 1)] * 33).json()["error"]["message"]


def test_refusals_of_plain_completions_and_memories(app):
    http = web(app)
    for path, body in (
        ("/v1/completions", {"model": "tiny", "prompt": ""}),
        ("/v1/completions", {"model": "tiny", "prompt": [10**6]}),
        ("/v1/completions", {"model": "tiny", "prompt": [3], "documents": DOCUMENTS}),
        ("/v1/memories", {"documents": []}),
        ("/v1/memories", {"documents": DOCUMENTS, "name": "mem-1"}),
        ("/v1/memories", {"documents": DOCUMENTS, "name": "tiny"}),
        ("/v1/memories", {"documents": DOCUMENTS, "name": "a/b"}),
    ):
        found = http.post(path, json=body)
        assert found.status_code == 400, body
        assert found.json()["error"]["message"]
    http.post("/v1/memories", json={"documents": DOCUMENTS, "name": "one"})
    taken = http.post("/v1/memories", json={"documents": [{"text": "else"}], "name": "one"})
    assert (taken.status_code, taken.json()["error"]["code"]) == (409, "name_taken")
    broken = http.post("/v1/memories", content=b"{", headers={"content-type": "application/json"})
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_json")
    form = {"content-type": "application/x-www-form-urlencoded"}  # what curl -d sends without -H
    untyped = http.post("/v1/memories", content=b'{"documents": [{"text": "else"}]}', headers=form)
    said = "the body is no JSON object: send one with Content-Type: application/json."
    assert (untyped.status_code, untyped.json()["error"]["message"]) == (400, said)
    text = http.post("/v1/memories", json={"documents": ["else"]}).json()["error"]
    assert text["message"] == 'documents.0 is no object: give a JSON object, such as {"text": "..."}.'
    assert text["param"] == "documents.0"
    assert http.get("/nowhere").json()["error"]["message"] == "GET /nowhere: Not Found."


def test_clients_choose_among_the_layers_of_the_server_s_recipe(serve, llm, monkeypatch):
    monkeypatch.setattr(llm, "recipe", replace(llm.recipe, layers=(-2, -1)))
    app = serve()

    def status(layers):
        body = {"documents": DOCUMENTS, "max_tokens": 1, "fastmem": {"recipe": {"layers": layers}}}
        return ask(app, body).status_code

    assert [status(layers) for layers in ([-1], [1], [2, -2])] == [200] * 3  # two of three layers, from either end
    looked_at = []
    monkeypatch.setattr(llm.split_model, "parameters", lambda layers: looked_at.append(layers))
    assert [status(layers) for layers in ([0], [-3, -1], [1, 2, 3])] == [400] * 3
    assert not looked_at


def test_a_body_above_the_limit_is_refused_unread(serve):
    app = serve(limits=Limits(body_bytes=1000))
    found = ask(app, {"documents": [{"text": "x" * 2000}]})
    assert (found.status_code, found.json()["error"]["code"]) == (413, "body_too_large")
    chunks = (b"x" * 400 for _ in range(100))  # no length announced
    endless = web(app).post("/v1/chat/completions", content=chunks)
    assert endless.status_code == 413


def test_api_keys(serve):
    app = serve(api_keys=["one", "two"])
    assert web(app).get("/v1/models").status_code == 401
    with pytest.raises(openai.AuthenticationError, match="needs an API key"):
        client(app, "wrong").models.list()
    assert [m.id for m in client(app, "two").models.list()] == ["tiny"]
    assert web(app).get("/health").json() == {"status": "ok"}


def test_overload_is_answered_with_429_and_retry_after(serve):
    app = serve(engine_limits=EngineLimits(rows=1, waiting=1))

    def one(i):
        found = ask(app, {"max_tokens": 100})
        return found.status_code, found.headers.get("retry-after")

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        found = list(pool.map(one, range(12)))
    refused = [retry for status, retry in found if status == 429]
    assert refused
    assert all(int(retry) >= 1 for retry in refused)
    assert {status for status, _ in found} == {200, 429}


def test_more_answers_than_there_is_room_for_are_no_overload_that_ends(serve):
    app = serve(engine_limits=EngineLimits(rows=2, waiting=1))
    assert ask(app, {"n": 3, "max_tokens": 1}).status_code == 200
    refused = ask(app, {"n": 4, "max_tokens": 1})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")
    assert "at most 3 answers" in refused.json()["error"]["message"]


def test_no_tenant_sees_or_uses_another_s_memory_under_load(serve, llm):
    """Eight tenants, by key and by salt, with documents of their own and one in common, all at once."""
    app = serve(engine_limits=EngineLimits(rows=8, waiting=200))
    tenants = [(f"key-{i // 2}", f"salt-{i}" if i % 2 else None) for i in range(8)]
    shared = [{"text": "Everybody has this one."}]

    def session(i):
        key, salt = tenants[i]
        http = web(app, authorization=f"Bearer {key}")
        own = [{"text": f"Only number {i} knows: {i * 37}."}]
        salted = {"cache_salt": salt} if salt else {}
        ids = set()
        for documents in (own, shared, own):
            made = http.post("/v1/memories", json={"documents": documents, "name": None} | salted).json()
            answer = http.post(
                "/v1/chat/completions",
                json={"model": "tiny", "messages": QUESTION, "documents": documents, "max_tokens": 4} | salted,
            ).json()
            ids |= {made["id"], answer["fastmem"]["memory"]}
        listed = {m["id"] for m in http.get("/v1/memories", params=salted).json()["data"]}
        first = http.post(
            "/v1/chat/completions",
            json={"model": "tiny", "messages": QUESTION, "documents": own, "max_tokens": 4} | salted,
        ).json()
        return ids, listed, first["usage"]["prompt_tokens_details"]["cached_tokens"]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(session, range(8)))
    assert all(ids == listed and len(ids) == 2 for ids, listed, _ in found)
    assert len(set().union(*(ids for ids, _, _ in found))) == 16  # the common document has one memory per tenant
    assert all(cached > 0 for _, _, cached in found)
    for i, (ids, _, _) in enumerate(found):
        key, salt = tenants[(i + 1) % 8]
        http = web(app, authorization=f"Bearer {key}")
        for reference in ids:
            salted = {"cache_salt": salt} if salt else {}
            assert http.get(f"/v1/memories/{reference}", params=salted).status_code == 404
            assert http.delete(f"/v1/memories/{reference}", params=salted).status_code == 404
            body = {"model": reference, "messages": QUESTION} | salted
            assert http.post("/v1/chat/completions", json=body).status_code == 404
    # Nobody's keys and values either: a tenant that is new to the common document reads all of it.
    fresh = ask(app, {"documents": shared, "max_tokens": 4, "cache_salt": "new"}).json()
    assert fresh["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_health_version_metrics_and_request_ids(app):
    http = web(app)
    assert http.get("/version").json()["version"]
    assert http.get("/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert http.get("/health", headers={"x-request-id": "no good!"}).headers["x-request-id"].startswith("req-")
    ask(app, {"documents": DOCUMENTS, "max_tokens": 4})
    text = http.get("/metrics").text
    for line in (
        'fastmem_http_responses_total{route="POST /v1/chat/completions",status="200"}',
        'fastmem_answers_total{method="fastmem",reason="length"}',
        'fastmem_memories{place="ram"}',
        'fastmem_tokens_total{kind="cached"}',
        "fastmem_first_token_seconds_count",
        "fastmem_jobs_waiting 0.0",
    ):
        assert line in text
    assert "ferry" not in text


def test_draining_is_seen_from_outside(serve):
    app = serve()
    app.state.service.engine.drain()
    assert web(app).get("/health").status_code == 503
    found = ask(app, {})
    assert (found.status_code, found.json()["error"]["code"]) == (503, "shutting_down")


def test_a_bug_is_answered_without_its_text(serve, monkeypatch):
    app = serve()
    monkeypatch.setattr(app.state.service.engine.batch, "join", lambda jobs: 1 / 0)
    found = ask(app, {})
    assert found.status_code == 500
    assert "division" not in found.text
    assert found.headers["x-request-id"] in found.json()["error"]["message"]


def test_one_answer_that_fails_ends_its_request_and_no_other(app, monkeypatch):
    service = app.state.service
    real = service.llm.with_memory

    def with_memory(request, memory):
        if request.sampling.seed == 6:
            raise RuntimeError("a row that cannot be built")
        return real(request, memory)

    monkeypatch.setattr(service.llm, "with_memory", with_memory)
    body = {"documents": DOCUMENTS, "max_tokens": 200, "temperature": 1.0, "seed": 5, "n": 3}
    assert ask(app, body).status_code == 500
    eventually(lambda: not service.engine._open)
    assert len(service.engine.batch) == 0
    assert ask(app, body | {"n": 1}).status_code == 200


def test_answers_that_do_not_fit_together_leave_together(app, monkeypatch):
    """Each attempt reads all prompts again. They return one by one, until there is no room for the next."""
    real, failed = Batch.step, []

    def step(batch):
        if len(batch.rows) > 3:
            failed.append(len(batch.rows))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(batch)

    with monkeypatch.context() as patched:
        patched.setattr(Batch, "step", step)
        refused = ask(app, {"n": 8, "max_tokens": 40})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "out_of_memory")
    assert failed[:2] == [8, 4]
    assert ask(app, {"n": 8, "max_tokens": 4}).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_an_answered_request_leaves_nothing_for_the_garbage_collector(app, stream):
    """Or memory would grow between its rounds, which come seldom where a quarter of a million objects live on."""
    body = {"documents": DOCUMENTS, "max_tokens": 4, "n": 2, "temperature": 1.0, "stream": stream}
    ask(app, body)
    gc.collect()
    gc.disable()
    try:
        assert ask(app, body).status_code == 200
        eventually(lambda: not any(type(one) in (Job, Mailbox) for one in gc.get_objects()))
    finally:
        gc.enable()
