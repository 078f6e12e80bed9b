"""The OpenAI interface, asked by the stock client: it answers as the library does."""

import openai
import pytest

from fastmem.prompts import Tokens
from fastmem.serve.app import create_app
from serving import DOCUMENTS, QUESTION, RECIPE, ask, client, closing_apps, make_llm, web


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


def test_several_answers_to_one_conversation(app, llm, expected):
    options = {"model": "tiny", "messages": QUESTION, "max_tokens": 12, "temperature": 1.0, "seed": 5, "n": 3}
    documents = {"documents": DOCUMENTS, "cache_salt": "several"}
    found = client(app).chat.completions.create(**options, extra_body=documents)
    offline = [expected("fastmem", temperature=1.0, seed=seed) for seed in (5, 6, 7)]
    assert [(c.index, c.message.content) for c in found.choices] == list(enumerate(one.text for one in offline))
    assert found.usage.completion_tokens == sum(len(one.token_ids) for one in offline)
    assert found.usage.prompt_tokens == offline[0].prompt_tokens
    assert found.fastmem["memory_made"] is True
    stream = client(app).chat.completions.create(
        **options, stream=True, stream_options={"include_usage": True}, extra_body=documents
    )
    texts, reasons = ["", "", ""], {}
    for part in stream:
        for c in part.choices:
            texts[c.index] += c.delta.content or ""
            reasons |= {c.index: c.finish_reason} if c.finish_reason else {}
    assert texts == [one.text for one in offline]
    assert reasons == {i: one.reason for i, one in enumerate(offline)}
    assert part.usage.model_dump(exclude_none=True)["completion_tokens"] == found.usage.completion_tokens


def test_several_prompts_in_one_request(app, llm):
    plain = client(app).completions
    texts = ["The ferry", "A much longer prompt about a train", "x"]
    ids = [llm.tokenizer(text)["input_ids"] for text in texts]
    offline = [llm.generate(Tokens(one), max_new_tokens=10) for one in ids]
    for prompts in (texts, ids):
        found = plain.create(model="tiny", prompt=prompts, max_tokens=10)
        assert [(c.index, c.text) for c in found.choices] == list(enumerate(one.text for one in offline))
        assert found.usage.prompt_tokens == sum(map(len, ids))
    twice = plain.create(model="tiny", prompt=texts[:2], max_tokens=10, n=2, temperature=1.0, seed=1)
    sampled = [
        llm.generate(Tokens(one), max_new_tokens=10, temperature=1.0, seed=seed).text
        for one in ids[:2]
        for seed in (1, 2)
    ]
    assert [c.text for c in twice.choices] == sampled
    assert twice.usage.prompt_tokens == sum(map(len, ids[:2]))
    with pytest.raises(openai.BadRequestError, match="number of prompts is 17: this server gives at most 16"):
        plain.create(model="tiny", prompt=["x"] * 17)


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
        for recipe in ({}, {"steps": 1}, {"parametrization": "lora", "rank": 2})
    ]
    assert len({answer["fastmem"]["memory"] for answer in answers}) == 3


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
