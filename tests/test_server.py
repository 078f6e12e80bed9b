"""The OpenAI interface, asked by the stock client; who may see what; what is refused and how."""

import concurrent.futures

import openai
import pytest
from openai import OpenAI
from starlette.testclient import TestClient

from fastmem.prompts import Tokens
from fastmem.serve.app import create_app
from fastmem.serve.compose import Limits
from fastmem.serve.engine import EngineLimits
from serving import RECIPE, make_llm

DOCUMENTS = [{"title": "Notice", "text": "The ferry leaves at nine from the east pier."}]
QUESTION = [{"role": "user", "content": "When does the ferry leave?"}]


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
    apps = []

    def make(**options):
        apps.append(create_app(llm, **options))
        return apps[-1]

    yield make
    for one in apps:
        one.state.service.engine.close(timeout_seconds=60)


def client(app, key="x"):
    return OpenAI(base_url="http://testserver/v1", api_key=key, http_client=web(app), max_retries=0)


def web(app, **headers):
    return TestClient(app, raise_server_exceptions=False, headers=headers)


def ask(app, body, **headers):
    return web(app, **headers).post("/v1/chat/completions", json={"model": "tiny", "messages": QUESTION} | body)


@pytest.fixture(scope="module")
def expected(llm):
    """What the library answers with the document in front of the question."""
    text = "Notice\nThe ferry leaves at nine from the east pier."
    memory = llm.memorize(text, RECIPE)
    prompt = [{"role": "user", "content": f"Context: {text}\n\nWhen does the ferry leave?"}]

    def answer(method, **options):
        used = memory if method.startswith("fastmem") else None
        return llm.generate(prompt, used, method, **{"max_new_tokens": 12} | options)

    return answer


def test_chat_with_a_document_answers_as_the_library(app, expected):
    chat = client(app).chat.completions
    offline = expected("fastmem")
    first, second = (
        chat.create(
            model="tiny", messages=QUESTION, max_tokens=12, extra_body={"documents": DOCUMENTS, "cache_salt": "1"}
        )
        for _ in range(2)
    )
    assert first.choices[0].message.content == second.choices[0].message.content == offline.text
    assert first.choices[0].finish_reason == offline.reason
    assert first.usage.completion_tokens == len(offline.token_ids)
    assert first.usage.prompt_tokens == offline.prompt_tokens
    assert first.usage.total_tokens == offline.prompt_tokens + len(offline.token_ids)
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert second.usage.prompt_tokens_details.cached_tokens > 30
    assert (first.fastmem["memory_made"], second.fastmem["memory_made"]) == (True, False)
    assert first.fastmem["memory"] == second.fastmem["memory"]
    assert first.fastmem["method"] == "fastmem"


@pytest.mark.parametrize("method", ["base", "cad", "dola", "fastmem+cd", "fastmem+cad", "fastmem+dola"])
def test_every_method_answers_as_the_library_and_reuses_the_document(app, expected, method):
    found = ask(app, {"documents": DOCUMENTS, "max_tokens": 12, "fastmem": {"method": method, "alpha": 0.7}}).json()
    offline = expected(method, alpha=0.7, without_context=QUESTION)
    assert found["choices"][0]["message"]["content"] == offline.text
    again = ask(app, {"documents": DOCUMENTS, "max_tokens": 12, "fastmem": {"method": method, "alpha": 0.7}}).json()
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 30
    assert again["choices"] == found["choices"]


def test_streaming_gives_the_same_text_and_the_usage(app, expected):
    stream = client(app).chat.completions.create(
        model="tiny",
        messages=QUESTION,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"documents": DOCUMENTS},
    )
    chunks = list(stream)
    offline = expected("fastmem")
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == offline.text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == 12
    assert len({c.id for c in chunks}) == 1


def test_several_messages_and_a_system_turn(app, llm):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "And now?"},
    ]
    plain = [
        m | {"content": m["content"][0]["text"] if isinstance(m["content"], list) else m["content"]} for m in messages
    ]
    found = client(app).chat.completions.create(model="tiny", messages=messages, max_tokens=10)
    assert found.choices[0].message.content == llm.generate(plain, max_new_tokens=10).text


def test_seed_stop_and_sampling(app, llm):
    chat = client(app).chat.completions
    options = {"model": "tiny", "messages": QUESTION, "max_tokens": 20, "temperature": 1.0, "top_p": 0.9}
    one, two, other = (chat.create(**options, seed=seed).choices[0].message.content for seed in (5, 5, 6))
    sampled = llm.generate(QUESTION, max_new_tokens=20, temperature=1.0, top_p=0.9, seed=5).text
    assert one == two == sampled
    assert one != other
    greedy = llm.generate(QUESTION, max_new_tokens=20).text
    found = chat.create(model="tiny", messages=QUESTION, max_tokens=20, stop=[greedy[5:7]]).choices[0]
    assert found.message.content == greedy[: greedy.index(greedy[5:7])]
    assert found.finish_reason == "stop"


def test_log_probabilities(app, llm):
    found = client(app).chat.completions.create(
        model="tiny", messages=QUESTION, max_tokens=6, logprobs=True, top_logprobs=3
    )
    offline = llm.generate(QUESTION, max_new_tokens=6, top_logprobs=3)
    content = found.choices[0].logprobs.content
    assert [one.logprob for one in content] == pytest.approx([value for value, _ in offline.logprobs], abs=1e-5)
    assert all(len(one.top_logprobs) == 3 for one in content)
    assert content[0].top_logprobs[0].logprob == content[0].logprob  # greedy takes the first
    stream = client(app).chat.completions.create(
        model="tiny", messages=QUESTION, max_tokens=6, logprobs=True, stream=True
    )
    streamed = [t.logprob for c in stream for t in (c.choices[0].logprobs.content if c.choices[0].logprobs else [])]
    assert streamed == pytest.approx([one.logprob for one in content], abs=1e-5)


def test_plain_completions(app, llm):
    plain = client(app).completions
    prompt = "The ferry"
    offline = llm.generate(Tokens(llm.tokenizer(prompt)["input_ids"]), max_new_tokens=10)
    found = plain.create(model="tiny", prompt=prompt, max_tokens=10, logprobs=2)
    assert found.choices[0].text == offline.text
    assert len(found.choices[0].logprobs.token_logprobs) == 10
    assert (
        plain.create(model="tiny", prompt=llm.tokenizer(prompt)["input_ids"], max_tokens=10).choices[0].text
        == offline.text
    )
    chunks = plain.create(model="tiny", prompt=[prompt], max_tokens=10, stream=True)
    assert "".join(c.choices[0].text for c in chunks) == offline.text
    with_document = plain.create(model="tiny", prompt=prompt, max_tokens=5, extra_body={"documents": DOCUMENTS})
    assert with_document.fastmem["method"] == "fastmem"


def test_a_memory_made_ahead_is_chosen_as_a_model(app, expected):
    key = "made ahead"
    http, ai = web(app, authorization=f"Bearer {key}"), client(app, key)
    made = http.post("/v1/memories", json={"documents": DOCUMENTS, "name": "ferry"}).json()
    assert made["name"] == "ferry"
    assert [step["index"] for step in made["trace"]] == [0, 1, 2]
    assert made["trace"][2]["loss"] < made["trace"][0]["loss"]
    assert http.post("/v1/memories", json={"documents": DOCUMENTS, "name": "ferry"}).json()["id"] == made["id"]
    for model in ("ferry", "tiny:ferry", made["id"]):
        found = ai.chat.completions.create(
            model=model, messages=QUESTION, max_tokens=12, extra_body={"documents": DOCUMENTS}
        )
        assert found.choices[0].message.content == expected("fastmem").text
        assert found.fastmem["memory"] == made["id"]
        assert not found.fastmem["memory_made"]
    alone = ai.chat.completions.create(model="ferry", messages=QUESTION, max_tokens=4)
    assert alone.fastmem["memory"] == made["id"]
    assert [(m.id, getattr(m, "parent", None)) for m in ai.models.list()] == [("tiny", None), ("ferry", "tiny")]
    assert ai.models.retrieve("ferry").root == made["id"]
    assert [m["id"] for m in http.get("/v1/memories").json()["data"]] == [made["id"]]
    assert http.get("/v1/memories/ferry").json() == made
    assert http.delete("/v1/memories/ferry").json()["deleted"] is True
    assert http.get("/v1/memories/ferry").status_code == 404
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        ai.chat.completions.create(model="ferry", messages=QUESTION)


def test_surprise_of_the_document_falls(app):
    http = web(app)
    made = http.post("/v1/memories", json={"documents": DOCUMENTS}).json()
    found = http.post(f"/v1/memories/{made['id']}/surprise", json={"documents": DOCUMENTS}).json()["tokens"]
    assert "".join(token["text"] for token in found) == "Notice\nThe ferry leaves at nine from the east pier."
    before, after = (sum(token[side] for token in found) / len(found) for side in ("before", "after"))
    assert before == pytest.approx(made["trace"][0]["cross_entropy"], abs=1e-3)
    assert after < before
    other = http.post(f"/v1/memories/{made['id']}/surprise", json={"documents": [{"text": "else"}]})
    assert other.status_code == 400


def test_recipes_make_memories_of_their_own(app):
    answers = [
        ask(app, {"documents": DOCUMENTS, "max_tokens": 4, "fastmem": {"recipe": recipe}}).json()
        for recipe in ({}, {"steps": 1}, {"parametrization": "lora", "rank": 2}, {"layers": [-2]})
    ]
    assert len({answer["fastmem"]["memory"] for answer in answers}) == 4


@pytest.mark.parametrize(
    ("body", "status", "param", "text"),
    [
        ({"tools": []}, 400, "tools", "unknown field 'tools'"),
        ({"fastmem": {"metod": "base"}}, 400, "fastmem.metod", "unknown field"),
        ({"messages": []}, 400, "messages", "at least 1"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role", "Input should be"),
        ({"model": "other"}, 404, "model", "the model 'other' does not exist: accepted are 'tiny'"),
        ({"temperature": -1}, 400, "temperature", "greater than or equal to 0"),
        ({"n": 2}, 400, "n", "Input should be 1"),
        ({"top_logprobs": 2}, 400, "top_logprobs", "needs logprobs=true"),
        ({"fastmem": {"method": "fastnem"}}, 400, None, "Did you mean 'fastmem'?"),
        ({"fastmem": {"method": "fastmem"}}, 400, None, "needs documents"),
        ({"fastmem": {"method": "cad"}}, 400, None, "compares with the prompt without documents"),
        ({"documents": DOCUMENTS, "fastmem": {"recipe": {"lr": 1}}}, 400, None, "unknown recipe field 'lr'"),
        ({"documents": DOCUMENTS, "fastmem": {"recipe": {"steps": -1}}}, 400, None, "whole number"),
        ({"documents": DOCUMENTS, "fastmem": {"recipe": {"steps": 10**6}}}, 400, None, "at most 100"),
        ({"documents": DOCUMENTS, "fastmem": {"alpha": -1}}, 400, "fastmem.alpha", "greater than"),
        ({"documents": [{"text": "  "}]}, 400, None, "the context is empty"),
        ({"documents": [{"text": "long " * 200}]}, 400, None, "too many: the model has 512 positions"),
        ({"documents": [{"text": "x"}] * 40}, 400, None, "40 documents are too many"),
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
    assert http.get("/nowhere").json()["error"]["message"] == "GET /nowhere: Not Found."


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
    monkeypatch.setattr(app.state.service.engine.rows, "join", lambda jobs: 1 / 0)
    found = ask(app, {})
    assert found.status_code == 500
    assert "division" not in found.text
    assert found.headers["x-request-id"] in found.json()["error"]["message"]


def test_memories_survive_a_restart(serve, tmp_path):
    key = {"authorization": "Bearer k"}
    first = serve(folder=tmp_path)
    made = web(first, **key).post("/v1/memories", json={"documents": DOCUMENTS, "name": "ferry"}).json()
    before = ask(first, {"model": "ferry", "max_tokens": 8}, **key).json()
    first.state.service.engine.close()
    second = serve(folder=tmp_path)
    assert web(second, **key).get("/v1/memories/ferry").json() == made
    after = ask(second, {"model": "ferry", "max_tokens": 8}, **key).json()
    assert after["choices"] == before["choices"]
    assert web(second).get("/v1/memories").json()["data"] == []


def test_the_page_needs_nothing_from_elsewhere(app):
    found = web(app).get("/")
    assert found.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in found.headers["content-security-policy"]
    assert "http://" not in found.text.replace("http://www.w3.org/", "")
    assert "https://" not in found.text
