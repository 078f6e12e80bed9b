"""What strangers send: keys that are none, other hosts, texts that are too long, disks that are full, damaged records.

Each test is one finding of an attack on the server, in the words of what has to happen instead.
"""

import asyncio
import errno
import json
import logging
import os
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from openai import BadRequestError
from starlette.testclient import TestClient

import serving
from command_line import Runner
from fastmem import FastMem, Memory
from fastmem.errors import InputError, StorageError
from fastmem.serve import memorize_queue, memory_routes
from fastmem.serve import store as store_module
from fastmem.serve.app import PAGE_FILES, create_app
from fastmem.serve.engine import EngineLimits
from fastmem.serve.jobs import MemorizeProgress
from fastmem.serve.limits import Limits
from fastmem.serve.responses import sse_event
from fastmem.serve.service import Service
from fastmem.serve.store import Store
from fastmem.serve.tenants import Keys
from fastmem.surprisal_report import TokenSurprisal
from serving import DOCUMENTS, QUESTION, ask, client, closing_apps, eventually, make_llm, source, web
from tiny_tokenizer import build_tokenizer

SECRET = "The vault opens with a song"


@pytest.fixture(scope="module")
def llm():
    return make_llm()


@pytest.fixture
def serve(llm):
    """serve(**options): a server, closed when the test ends."""
    with closing_apps(llm) as make:
        yield make


@pytest.fixture
def listening(serve):
    """listening(**options): (address, server) of a server on a real socket."""
    with ExitStack() as stack:

        def make(**options):
            server = stack.enter_context(serving.listening(serve(**options)))
            return serving.address_of(server), server

        yield make


# --- who may talk ---


@pytest.mark.parametrize("options", [{"api_keys": [""]}, {"api_keys": ["a", " "]}, {"admin_key": ""}])
def test_an_empty_key_is_refused(llm, options):
    with pytest.raises(InputError, match="is empty, which would accept everybody"):
        create_app(llm, **options)


@pytest.mark.parametrize("flags", [(), ("--api-key", "")])
def test_an_empty_key_ends_the_command(monkeypatch, capsys, flags):
    monkeypatch.setenv("FASTMEM_API_KEY", "")
    found = Runner(capsys)("serve", *flags)
    assert found.code == 2
    assert "the api key is empty" in found.err


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("evil.example", 400),
        ("localhost.evil.example", 400),
        ("localhost.", 200),
        ("evil@localhost", 400),
        ("localhost/x", 400),
        ("localhost:abc", 400),
        ("", 400),
        ("[", 400),
    ],
)
def test_other_hosts_are_refused(serve, host, status):
    assert web(serve(), host=host).get("/health").status_code == status


def test_hosts_can_be_named(serve):
    http = web(serve(allowed_hosts=["*.example.org"]))
    assert http.get("/health", headers={"host": "a.example.org:80"}).status_code == 200
    refused = http.get("/health", headers={"host": "example.com"})
    assert refused.json()["error"]["code"] == "host_not_allowed"
    for anything in ("anything", ""):
        assert web(serve(allowed_hosts=["*"]), host=anything).get("/health").status_code == 200


def test_pages_from_elsewhere_change_nothing_and_read_nothing(serve):
    app = serve()
    assert ask(app, {"max_tokens": 1}, origin="http://localhost").status_code == 200
    refused = ask(app, {"max_tokens": 1}, origin="http://evil.example")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "origin_not_allowed")
    assert (
        "access-control-allow-origin" not in web(app).get("/health", headers={"origin": "http://evil.example"}).headers
    )
    named = serve(allowed_origins=["https://app.example"])
    found = ask(named, {"max_tokens": 1}, origin="https://app.example")
    assert (found.status_code, found.headers["access-control-allow-origin"]) == (200, "https://app.example")
    asks_first = {"origin": "https://app.example", "access-control-request-method": "POST"}
    assert web(named).options("/v1/chat/completions", headers=asks_first).status_code == 200


def test_the_page_has_no_inline_script_and_is_shown_in_no_frame(serve):
    http = web(serve())
    for path in PAGE_FILES:
        found = http.get(path)
        assert found.status_code == 200
        policy = found.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy
        assert "unsafe-inline" not in policy
    page = http.get("/").text
    assert not re.search(r"<script(?! src)|<style|\sstyle=|\son[a-z]+=", page)
    assert http.head("/").status_code == http.head("/health").status_code == 200


def test_metrics_are_for_administrators_where_there_are_keys(serve):
    assert web(serve()).get("/metrics").status_code == 200
    assert web(serve(api_keys=["a"]), authorization="Bearer a").get("/metrics").status_code == 401
    both = serve(api_keys=["a"], admin_key="root")
    assert web(both, authorization="Bearer a").get("/metrics").status_code == 401
    assert web(both, authorization="Bearer root").get("/metrics").status_code == 200
    assert web(both, authorization="Bearer root").get("/v1/models").status_code == 401


# --- nothing a request contains stops the others ---


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"stop": ["z" * 257]}, "stop"),
        ({"stop": ["z"] * 17}, "stop"),
        ({"stop": "z" * 4_000_000}, "stop"),
        ({"messages": QUESTION * 1025}, "messages"),
        ({"model": "m" * 10_000}, "model"),
        ({"documents": [{"text": "x"}] * 33}, "documents"),
        ({"documents": [{"text": "x", "title": "t" * 2000}]}, "documents.0.title"),
        ({"documents": [{"text": "x" * 1_000_000}]}, "documents"),
    ],
)
def test_sizes_are_bounded_before_any_work(serve, llm, monkeypatch, body, param):
    app = serve()
    for name in ("ids", "memory_tokens"):
        monkeypatch.setattr(type(llm), name, lambda *_: pytest.fail("it was tokenized"))
    found = ask(app, body)
    assert found.status_code == 400
    assert found.json()["error"]["param"].startswith(param)


def test_a_text_that_cannot_fit_is_refused_unread_and_the_longest_that_can_is_read(serve, llm):
    app = serve()
    longest = app.state.service.text.longest_token * llm.split_model.max_positions
    fits = ask(app, {"messages": [{"role": "user", "content": "x" * longest}]})
    assert "too many: the model has 512 positions" in fits.json()["error"]["message"]
    over = ask(app, {"messages": [{"role": "user", "content": "x" * (longest + 1)}]})
    assert f"the text is {longest + 1} characters long" in over.json()["error"]["message"]


@pytest.mark.parametrize("work", ["check_documents", "requested_recipe", "memory_tokens"])
def test_health_answers_while_a_document_is_checked_and_tokenized(serve, llm, monkeypatch, work):
    app, begun, go_on = serve(), threading.Event(), threading.Event()
    place = {"check_documents": Service, "requested_recipe": memory_routes, "memory_tokens": type(llm)}[work]
    real = getattr(place, work)

    def slow(*arguments):
        begun.set()
        assert go_on.wait(60)
        return real(*arguments)

    monkeypatch.setattr(place, work, slow)
    with web(app) as http, ThreadPoolExecutor() as pool:  # one event loop for both
        asking = pool.submit(http.post, "/v1/memories", json={"documents": DOCUMENTS})
        assert begun.wait(60)
        assert http.get("/health").status_code == 200
        assert not asking.done()
        go_on.set()
        assert asking.result().status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "x\ud800"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x\udfff"}]}),
        ("/v1/chat/completions", {"messages": QUESTION, "stop": "\ud800"}),
        ("/v1/chat/completions", {"messages": QUESTION, "documents": [{"text": "x\ud800"}]}),
        ("/v1/chat/completions", {"messages": QUESTION, "documents": [{"text": "x", "title": "\ud800"}]}),
        ("/v1/chat/completions", {"messages": QUESTION, "documents": DOCUMENTS, "cache_salt": "\ud800"}),
        ("/v1/chat/completions", {"messages": QUESTION, "model": "\ud800"}),
        *(
            ("/v1/chat/completions", {"messages": QUESTION, "documents": DOCUMENTS, "fastmem": {"recipe": recipe}})
            for recipe in (
                {"layers": None},
                {"layers": [5]},
                {"layers": 5},
                {"layers": "x"},
                {"parametrization": "lora", "seed": 2**70},
                {"parametrization": "lora", "rank": 10**9},
                {"steps": None},
            )
        ),
        ("/v1/responses", {"input": QUESTION * 1024, "instructions": "Be brief."}),
        *(
            ("/v1/responses", {"input": QUESTION, "max_output_tokens": 2, "stream": stream, "text": {"format": form}})
            for form in [{"type": "json_schema", "schema": {"type": "object"}, "description": "\ud800"}]
            for stream in (False, True)
        ),
    ],
)
def test_what_was_an_internal_error_is_a_bad_request(serve, path, body):
    text = json.dumps({"model": "tiny"} | body)
    found = web(serve()).post(path, content=text, headers={"content-type": "application/json"})
    assert found.status_code in (400, 404), found.text
    assert found.json()["error"]["message"]
    assert "truncate" not in found.text


def test_a_slow_body_and_slow_headers_are_cut_off(listening):
    address, _ = listening(limits=Limits(header_seconds=0.5, body_seconds=0.5))
    head = b"POST /v1/memories HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n"
    for sent, answer in ((b"", b""), (head[:30], b""), (head + b"\r\n{", b"HTTP/1.1 408")):
        with socket.create_connection(address, timeout=60) as connection:
            connection.sendall(sent)
            assert connection.recv(1000).startswith(answer)
            while connection.recv(1000):
                pass


@pytest.mark.parametrize("body", [b"content-length: 4000000", b"transfer-encoding: chunked"])
@pytest.mark.parametrize(
    ("sent", "answer", "code"),
    [
        (b"host: evil.example\r\nauthorization: Bearer a\r\n", b"HTTP/1.1 400", b"host_not_allowed"),
        (b"host: localhost\r\norigin: http://evil.example\r\n", b"HTTP/1.1 403", b"origin_not_allowed"),
        (b"host: localhost\r\n", b"HTTP/1.1 401", b"invalid_api_key"),
        (b"host: localhost\r\nauthorization: Bearer b\r\n", b"HTTP/1.1 401", b"invalid_api_key"),
        (b"host: localhost\r\nauthorization: Bearer a\r\n", b"HTTP/1.1 408", b"body_too_slow"),
    ],
)
def test_who_may_not_ask_is_answered_before_the_body_comes(listening, body, sent, answer, code):
    address, _ = listening(api_keys=["a"], limits=Limits(body_seconds=0.5))
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(b"POST /v1/memories HTTP/1.1\r\nx-request-id: mine\r\n" + sent + body + b"\r\n\r\n")
        found = b"".join(iter(lambda: connection.recv(1000), b""))  # until the connection is closed
    assert found.startswith(answer)
    assert b'"code":"' + code in found
    assert b"x-request-id: mine" in found


@pytest.mark.parametrize(("path", "status"), [("/v1/memories", 401), ("/health", 405), ("/nowhere", 404)])
def test_without_an_accepted_key_no_body_is_read(serve, path, status):
    app = serve(api_keys=["a"], limits=Limits(body_bytes=1000))
    assert web(app).post(path, content=b"x" * 2000).status_code == status
    assert web(app, authorization="Bearer a").post(path, content=b"x" * 2000).status_code == 413


def test_a_key_that_is_accepted_while_its_request_is_read_comes_too_late_and_changes_no_answer(serve, monkeypatch):
    """Otherwise the request would be answered without its body."""
    app = serve(api_keys=["a"])
    real, looked = Keys.tenant, []

    def tenant(keys, key):
        looked.append(key)
        return real(keys, key) if len(looked) < 3 else real(keys, "a")

    monkeypatch.setattr(Keys, "tenant", tenant)
    assert web(app, authorization="Bearer new").post("/v1/memories", json={"documents": DOCUMENTS}).status_code == 401
    assert looked == ["new"]


def test_a_half_sent_request_does_not_hold_up_the_shutdown(listening):
    address, server = listening(limits=Limits(body_seconds=10_000, shutdown_seconds=1))
    with socket.create_connection(address) as connection:
        connection.sendall(b"POST /v1/memories HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        eventually(lambda: server.server_state.tasks)
        server.should_exit = True
        eventually(lambda: not server.server_state.connections)


# --- the store ---


def test_one_name_belongs_to_one_memory_whoever_comes_first(serve):
    app = serve()
    with web(app) as http, ThreadPoolExecutor(4) as pool:
        posts = [
            pool.submit(http.post, "/v1/memories", json={"documents": [{"text": f"text {i}"}], "name": "dup"})
            for i in range(4)
        ]
        assert sorted(post.result().status_code for post in posts) == [200, 409, 409, 409]
        assert [one["name"] for one in http.get("/v1/memories").json()["data"]] == ["dup"]
        http.delete("/v1/memories/dup")
        assert http.post("/v1/memories", json={"documents": DOCUMENTS, "name": "dup"}).status_code == 200


def test_a_name_is_free_again_if_its_memory_was_not_made(serve, llm, monkeypatch):
    app = serve()
    monkeypatch.setattr(type(app.state.service.store), "hold", lambda *_: (_ for _ in ()).throw(InputError("no")))
    assert web(app).post("/v1/memories", json={"documents": DOCUMENTS, "name": "one"}).status_code == 400
    monkeypatch.undo()
    other = web(app).post("/v1/memories", json={"documents": [{"text": "else"}], "name": "one"})
    assert other.status_code == 200


def test_lists_come_in_pages(serve):
    http = web(serve())
    made = [http.post("/v1/memories", json={"documents": [{"text": f"text {i}"}]}).json()["id"] for i in range(5)]
    seen, after = [], None
    while True:
        page = http.get("/v1/memories", params={"limit": 2} | ({"after": after} if after else {})).json()
        seen += [one["id"] for one in page["data"]]
        after = page.get("last_id")
        if not page["has_more"]:
            break
    assert sorted(seen) == sorted(made)
    assert len(http.get("/v1/models", params={"limit": 3}).json()["data"]) == 4
    assert http.get("/v1/memories", params={"limit": 0}).status_code == 400
    assert http.get("/v1/memories", params={"after": "mem-x"}).status_code == 400


def test_a_full_disk_is_answered_with_507_and_forgotten_once_there_is_room(serve, tmp_path, monkeypatch):
    app = serve(folder=tmp_path / "store", engine_limits=EngineLimits(save_again_seconds=0.2))
    real, full = store_module.Memory.save, True

    def save(self, path):
        if full:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(self, path)

    monkeypatch.setattr(store_module.Memory, "save", save)
    http = web(app)
    for _ in range(2):
        found = http.post("/v1/memories", json={"documents": DOCUMENTS})
        assert (found.status_code, found.json()["error"]["code"]) == (507, "storage_full")
        assert "No space left on device" in found.text
        assert str(tmp_path) not in found.text
    assert ask(app, {"documents": DOCUMENTS, "max_tokens": 1}).status_code == 200, "it can be used from RAM"
    full = False
    eventually(lambda: list((tmp_path / "store").glob("mem-*.json")))
    assert http.post("/v1/memories", json={"documents": DOCUMENTS}).status_code == 200


def test_a_memory_that_does_not_fit_into_ram_now_can_be_read_later(serve, tmp_path, monkeypatch):
    folder = tmp_path / "store"
    app = serve(folder=folder)
    name = web(app).post("/v1/memories", json={"documents": DOCUMENTS}).json()["id"]
    app.state.service.engine.close(timeout_seconds=60)
    again = serve(folder=folder)
    real, failures = store_module.Memory.load, [MemoryError(), RuntimeError("x")]
    monkeypatch.setattr(
        store_module.Memory,
        "load",
        lambda *a, **k: real(*a, **k) if not failures else (_ for _ in ()).throw(failures.pop()),
    )
    body = {"model": name, "max_tokens": 1}
    assert [ask(again, body).status_code for _ in range(3)] == [500, 500, 200]


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.pop("base"),
        lambda record: record.update(created="x"),
        lambda record: record.update(name="\ud800"),
        lambda record: record["recipe"].update(layers=[99]),
        lambda record: record.update(about=None),
        lambda record: record.update(trace=5),
        lambda record: record.update(bytes=1),
        "[" * 100_000,
        "5",
        "{}",
        "",
    ],
)
def test_a_bad_record_is_set_aside_and_harms_no_other(llm, serve, tmp_path, change, caplog):
    folder = tmp_path / "store"
    app = serve(folder=folder)
    for text in ("good", "bad"):
        web(app).post("/v1/memories", json={"documents": [{"text": text}], "name": text})
    app.state.service.engine.close(timeout_seconds=60)
    path = next(p for p in folder.glob("mem-*.json") if json.loads(p.read_text())["name"] == "bad")
    if isinstance(change, str):
        path.write_text(change)
    else:
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))
    with caplog.at_level(logging.WARNING, "fastmem"):
        again = serve(folder=folder)
    assert path.name in caplog.text
    assert {p.name for p in (folder / "damaged").iterdir()} == {path.name, path.with_suffix(".safetensors").name}
    listed = web(again).get("/v1/memories").json()["data"]
    assert [one["name"] for one in listed] == ["good"]
    assert web(again).get("/v1/models").status_code == 200


def test_a_record_without_digest_of_an_earlier_version_is_read(llm, serve, tmp_path):
    folder = tmp_path / "store"
    app = serve(folder=folder)
    web(app).post("/v1/memories", json={"documents": DOCUMENTS, "name": "old"})
    app.state.service.engine.close(timeout_seconds=60)
    (path,) = folder.glob("mem-*.json")
    record = json.loads(path.read_text())
    del record["digest"]
    path.write_text(json.dumps(record | {"version": 2}))
    assert [one["name"] for one in web(serve(folder=folder)).get("/v1/memories").json()["data"]] == ["old"]


def test_a_store_has_one_server_and_has_to_be_writable(llm, serve, tmp_path, monkeypatch):
    serve(folder=tmp_path / "one")
    with pytest.raises(StorageError, match="is in use by another running server"):
        Store(llm, None, tmp_path / "one")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        Store(llm, None, tmp_path / "file" / "store")


# --- what clients send back, and what the log says ---


def test_an_answer_can_be_sent_back_as_it_came(serve):
    openai = client(serve())
    first = openai.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=3)
    talk = [*QUESTION, first.choices[0].message.model_dump(), *QUESTION]
    assert openai.chat.completions.create(model="tiny", messages=talk, max_tokens=3).choices[0].message.content


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": None, "stop": None, "seed": None, "max_tokens": 2, "stream_options": None},
        {"response_format": {"type": "text"}, "tool_choice": "none", "store": False, "parallel_tool_calls": True},
        {"tools": [], "metadata": {}, "logit_bias": {}, "service_tier": "auto", "modalities": ["text"]},
        {
            "function_call": "none",
            "verbosity": "medium",
            "prompt_cache_key": "x",
            "safety_identifier": "y",
            "logprobs": False,
        },
        {"n": 2},
        {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
    ],
)
def test_fields_that_ask_for_nothing_are_accepted(serve, fields):
    assert ask(serve(), {"max_tokens": 2} | fields).status_code == 200


def test_options_of_vllm_choose_and_end_as_those_of_generate(serve, llm):
    app = serve()
    free = llm.generate(QUESTION, max_new_tokens=8).token_ids
    options = {"logit_bias": {str(free[0]): -100}, "presence_penalty": 1.5, "frequency_penalty": 0.5}
    ends = {"ignore_eos": True, "stop_token_ids": [free[3]]}
    found = ask(app, {"max_tokens": 8, "min_tokens": 2} | options | ends).json()["choices"][0]
    same = options | ends | {"logit_bias": {free[0]: -100}, "min_new_tokens": 2}
    assert found["message"]["content"] == llm.generate(QUESTION, max_new_tokens=8, **same).text
    assert found["message"]["content"] != llm.generate(QUESTION, max_new_tokens=8).text
    for refused in ({"logit_bias": {"x": 1}}, {"logit_bias": {"1": 200}}, {"stop_token_ids": [-1]}):
        assert ask(app, refused).status_code == 400


def test_the_base_model_has_further_names(serve):
    app = serve(aliases=["gpt-4o"])
    http = web(app)
    assert [one["id"] for one in http.get("/v1/models").json()["data"]] == ["tiny", "gpt-4o"]
    assert (
        http.post("/v1/memories", json={"documents": DOCUMENTS, "name": "ferry", "model": "gpt-4o"}).status_code == 200
    )
    texts = {
        ask(app, {"model": model, "max_tokens": 4}).json()["choices"][0]["message"]["content"]
        for model in ("ferry", "tiny:ferry", "gpt-4o:ferry")
    }
    assert len(texts) == 1
    assert ask(app, {"model": "gpt-4o", "max_tokens": 1}).status_code == 200
    assert http.post("/v1/memories", json={"documents": DOCUMENTS, "name": "gpt-4o"}).status_code == 400


def test_tokens_can_be_counted(serve, llm):
    http = web(serve())
    found = http.post("/tokenize", json={"prompt": "The ferry."}).json()
    assert found["tokens"] == llm.tokenizer("The ferry.")["input_ids"]
    assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), 512)
    chat = http.post("/tokenize", json={"messages": QUESTION, "model": "tiny"}).json()
    assert chat["tokens"] == llm.ids(QUESTION).tolist()
    for body in ({}, {"prompt": "x", "messages": QUESTION}, {"prompt": "x" * 10**6}, {"prompt": "\ud800"}):
        text = json.dumps(body)
        assert http.post("/tokenize", content=text, headers={"content-type": "application/json"}).status_code == 400
    assert http.get("/ping").status_code == 200


def test_variables_of_the_chat_template(serve, llm):
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{{ ' THINK' if enable_thinking else '' }}"
    thinking = FastMem(llm.model, build_tokenizer(chat_template=template), recipe=llm.recipe)
    thinking.name = "tiny"
    app = create_app(thinking)
    counts = [
        ask(app, {"max_tokens": 1, "chat_template_kwargs": {"enable_thinking": on}} | body).json()["usage"][
            "prompt_tokens"
        ]
        for on in (False, True)
        for body in ({}, {"documents": DOCUMENTS})
    ]
    assert (counts[2] - counts[0], counts[3] - counts[1]) == (6, 6)
    refused = ask(app, {"chat_template_kwargs": {"chat_template": "{{ x }}"}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "chat_template_kwargs")
    for name in ("tokenizer", "options"):  # a parameter of ours, and no variable of this template
        given = {"max_tokens": 1, "chat_template_kwargs": {name: "x"}}
        assert [ask(app, given | body).status_code for body in ({}, {"documents": DOCUMENTS})] == [200, 200]
    app.state.service.engine.close(timeout_seconds=60)


@pytest.mark.parametrize("stream", [False, True])
def test_the_responses_interface_gives_one_answer(serve, stream):
    http = web(serve())
    body = {"model": "tiny", "input": QUESTION, "max_output_tokens": 2, "stream": stream}
    refused = http.post("/v1/responses", json=body | {"n": 2})
    error = refused.json()["error"]
    assert (refused.status_code, error["param"], error["code"]) == (400, "n", "unknown_field")
    assert http.post("/v1/responses", json=body | {"n": 1}).status_code == 200, "it asks for what happens anyway"


def test_the_responses_interface_answers_as_a_chat(serve):
    openai = client(serve())
    options = {"model": "tiny", "instructions": "Be brief.", "input": QUESTION[0]["content"], "max_output_tokens": 8}
    extra = {"documents": DOCUMENTS}
    found = openai.responses.create(**options, extra_body=extra)
    chat = [{"role": "system", "content": "Be brief."}, *QUESTION]
    same = openai.chat.completions.create(model="tiny", messages=chat, max_tokens=8, extra_body=extra)
    assert found.output_text == same.choices[0].message.content
    assert found.usage.output_tokens == same.usage.completion_tokens
    assert found.status == {"length": "incomplete", "stop": "completed"}[same.choices[0].finish_reason]
    assert found.fastmem["method"] == "fastmem"

    with openai.responses.stream(**options, extra_body=extra) as stream:
        events = list(stream)
    assert events[-1].type == f"response.{found.status}"
    assert events[-1].response.output_text == found.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == found.output_text

    talk = [*QUESTION, *(item.model_dump() for item in found.output), *QUESTION]
    again = openai.responses.create(model="tiny", input=talk, max_output_tokens=2)
    assert again.usage.input_tokens > found.usage.input_tokens - 40
    for field, value in (("previous_response_id", "resp_1"), ("tools", [{"type": "web_search"}]), ("store", True)):
        with pytest.raises(BadRequestError):
            openai.responses.create(**options, **{field: value})


def test_the_interface_is_described_as_openapi(serve):
    http = web(serve())
    described = http.get("/openapi.json").json()
    assert {"/v1/chat/completions", "/v1/memories/{reference}"} <= described["paths"].keys()
    assert "min_tokens" in described["components"]["schemas"]["ChatRequest"]["properties"]


def test_the_list_of_routes_is_whole_and_loads_nothing_from_elsewhere(serve):
    http = web(serve(api_keys=["k"]))
    answer = http.get("/docs")
    assert answer.status_code == http.head("/docs").status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    described = http.get("/openapi.json").json()
    listed = re.findall(r"<h2><code>(\w+ [^<]+)</code>", answer.text)
    assert sorted(listed) == sorted(f"{m.upper()} {path}" for path, of in described["paths"].items() for m in of)
    assert "<p>Body: documents, [name], [fastmem], [cache_salt], [model], [stream].</p>" in answer.text
    assert "<p>Query: cache_salt, limit, after.</p>" in answer.text
    assert re.findall(r"""(?:src|href)=["']([^"']*)""", answer.text) == ["page.css", "openapi.json"]
    assert "://" not in answer.text
    assert http.get("/docs/oauth2-redirect").status_code == http.get("/redoc").status_code == 404


def test_fields_that_ask_for_something_else_are_refused(serve):
    app = serve()
    tool = {"type": "function", "function": {"name": "f"}}
    assert "this server calls no tools" in ask(app, {"tools": [tool]}).json()["error"]["message"]
    assert ask(app, {"store": True}).json()["error"]["param"] == "store"
    assert ask(app, {"messages": [{"role": "user"}]}).status_code == 400


def test_several_answers_without_a_temperature_differ_as_openai_s(serve):
    found = ask(serve(), {"n": 4, "max_tokens": 8, "seed": 1}).json()
    assert len({choice["message"]["content"] for choice in found["choices"]}) > 1


def test_the_log_has_a_line_per_request_and_the_cause_of_a_failure_but_no_document(serve, llm, monkeypatch, caplog):
    app = serve(api_keys=["key-of-ada"])
    http = web(app, authorization="Bearer key-of-ada")
    with caplog.at_level(logging.INFO):
        assert http.post("/v1/memories", json={"documents": [{"text": SECRET}]}).status_code == 200

        def broken(*_):
            raise RuntimeError(f"cannot work on {SECRET}")

        monkeypatch.setattr(type(llm), "memory_tokens", broken)
        failed = http.post("/v1/memories", json={"documents": [{"text": f"{SECRET}!"}]})
        assert failed.status_code == 500
    lines = [record for record in caplog.records if record.name == "fastmem.access"]
    assert [(line.fields["status"], line.fields["path"]) for line in lines] == [
        (200, "/v1/memories"),
        (500, "/v1/memories"),
    ]
    cause = next(record for record in caplog.records if record.levelno == logging.ERROR)
    assert cause.fields["request_id"] == failed.headers["x-request-id"] == lines[1].fields["request_id"]
    assert "RuntimeError at test_server_edge.py" in cause.getMessage()
    everything = caplog.text + json.dumps([record.__dict__ for record in caplog.records], default=str)
    assert SECRET not in everything
    assert "key-of-ada" not in everything


# --- what an adversary found ---


def test_a_file_that_cannot_be_read_now_is_kept(serve, tmp_path, monkeypatch):
    folder = tmp_path / "store"
    app = serve(folder=folder)
    name = web(app).post("/v1/memories", json={"documents": DOCUMENTS}).json()["id"]
    app.state.service.engine.close(timeout_seconds=60)
    again = serve(folder=folder)
    real = open

    def none_left(path, *arguments, **options):
        if str(path).endswith(".safetensors"):
            raise OSError(errno.EMFILE, "Too many open files", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr("builtins.open", none_left)
    refused = ask(again, {"model": name, "max_tokens": 1})
    monkeypatch.undo()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
    assert str(tmp_path) not in refused.text
    assert ask(again, {"model": name, "max_tokens": 1}).status_code == 200


def test_a_damaged_memory_is_gone_and_the_store_s_path_stays_secret(serve, tmp_path):
    folder = tmp_path / "store"
    app = serve(folder=folder)
    name = web(app).post("/v1/memories", json={"documents": DOCUMENTS}).json()["id"]
    app.state.service.engine.close(timeout_seconds=60)
    (path,) = folder.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-5] + b"xxxxx")
    again = serve(folder=folder)
    found = ask(again, {"model": name, "max_tokens": 1})
    assert (found.status_code, found.json()["error"]["code"]) == (404, "memory_damaged")
    assert str(tmp_path) not in found.text
    assert not path.exists()


def test_a_memory_that_cannot_be_deleted_is_still_there_and_can_be_deleted_later(serve, tmp_path, monkeypatch):
    folder = tmp_path / "store"
    app = serve(folder=folder)
    web(app).post("/v1/memories", json={"documents": DOCUMENTS, "name": "ferry"})

    def refused(self, missing_ok=False):
        raise OSError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "unlink", refused)
    found = web(app).delete("/v1/memories/ferry")
    monkeypatch.undo()
    assert found.status_code == 507
    assert "cannot be deleted from the store (Permission denied)" in found.text
    assert str(tmp_path) not in found.text
    assert web(app).get("/v1/memories/ferry").status_code == 200
    assert web(app).delete("/v1/memories/ferry").status_code == 200
    app.state.service.engine.close(timeout_seconds=60)
    assert web(serve(folder=folder)).get("/v1/memories").json()["data"] == []


def test_the_event_loop_does_not_wait_for_the_disk(serve, tmp_path, monkeypatch):
    http, looping = web(serve(folder=tmp_path / "store")), []

    def watched(real):
        def call(*arguments):
            with suppress(RuntimeError):
                asyncio.get_running_loop()
                looping.append(real.__name__)
            return real(*arguments)

        return call

    for name in ("rename", "delete"):
        monkeypatch.setattr(Store, name, watched(getattr(Store, name)))
    http.post("/v1/memories", json={"documents": DOCUMENTS})
    for stream in (False, True):
        http.post("/v1/memories", json={"documents": DOCUMENTS, "name": f"name-{stream}", "stream": stream})
    assert http.get("/v1/memories/name-True").json()["name"] == "name-True"
    assert http.delete("/v1/memories/name-True").status_code == 200
    assert looping == []


def test_leftovers_are_cleared_away_at_the_start_and_nothing_else(serve, tmp_path, caplog):
    """Weights without a record can also be a download: the server suggests the name that the store uses."""
    folder, key = tmp_path / "store", "mem-" + "0a" * 16
    folder.mkdir()
    part = f".{key}.json.1-0123abcd.tmp"
    others = ["mem-1.safetensors", f"{key}-copy.safetensors", ".mem-1.json.1-ab.tmp", "mem-1.json", "notes.txt"]
    for name in [f"{key}.safetensors", part, *others]:
        (folder / name).write_text(name)
    with caplog.at_level(logging.WARNING, "fastmem"):
        serve(folder=folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*others, "damaged", ".lock"])
    assert (folder / "damaged" / f"{key}.safetensors").read_text() == f"{key}.safetensors"
    assert f"{key}.safetensors has no record and was set aside in damaged/" in caplog.text


def test_a_record_that_cannot_be_written_leaves_no_weights_and_no_new_name(serve, tmp_path, monkeypatch):
    folder = tmp_path / "store"
    app = serve(folder=folder)
    web(app).post("/v1/memories", json={"documents": DOCUMENTS, "name": "old"})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module, "write_record", full)
    other = web(app).post("/v1/memories", json={"documents": [{"text": "else"}]})
    assert (other.status_code, len(list(folder.glob("*.safetensors")))) == (507, 1)
    assert web(app).post("/v1/memories", json={"documents": DOCUMENTS, "name": "new"}).status_code == 507
    assert web(app).get("/v1/memories/old").status_code == 200
    assert web(app).get("/v1/memories/new").status_code == 404
    monkeypatch.undo()
    assert web(app).post("/v1/memories", json={"documents": DOCUMENTS, "name": "new"}).json()["name"] == "new"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": [[]] * 300_000}),
        ("/v1/completions", {"prompt": [None] * 300_000}),
        ("/v1/chat/completions", {"messages": QUESTION} | {f"a{i}": 1 for i in range(50_000)}),
        ("/v1/chat/completions", {"messages": [QUESTION[0] | {f"a{i}": 1 for i in range(500)}] * 900}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [0] * 60}] * 1000}),
    ],
)
def test_the_first_errors_of_a_body_are_enough(serve, monkeypatch, path, body):
    from fastapi.exceptions import RequestValidationError

    counts = []
    real = RequestValidationError.__init__

    def counted(self, errors, **options):
        counts.append(len(errors))
        real(self, errors, **options)

    monkeypatch.setattr(RequestValidationError, "__init__", counted)
    found = web(serve()).post(path, json={"model": "tiny"} | body)
    assert found.status_code == 400
    assert counts[0] < 20
    assert len(found.content) < 5000


@pytest.mark.parametrize(
    "recipe",
    [{"layers": [0] * 100_000}, {"layers": [-1] * 4}, {"x" * 100_000: 1}, {"\ud800": 1}, {"kl_weight": 1e308}],
)
def test_recipes_that_are_no_recipes(serve, recipe):
    body = {"documents": DOCUMENTS, "fastmem": {"recipe": recipe}}
    text = json.dumps(body)
    found = web(serve()).post("/v1/memories", content=text, headers={"content-type": "application/json"})
    assert found.status_code == 400
    assert len(found.content) < 5000


def test_who_leaves_early_has_paid_and_a_limit_of_nothing_allows_nothing(serve, tmp_path):
    tables = {"ada": {"key": "a", "tokens_per_minute": 20}, "bo": {"key": "b", "tokens_per_minute": 0}}
    app = serve(keys_file=tenants(tmp_path / "keys.toml", **tables))
    body = {"model": "tiny", "messages": QUESTION, "stream": True, "max_tokens": 400, "ignore_eos": True}
    with web(app, authorization="Bearer a") as http:
        with http.stream("POST", "/v1/chat/completions", json=body) as reply:
            next(reply.iter_lines())
        eventually(lambda: not app.state.service.usage._running)
        assert http.post("/v1/chat/completions", json=body).status_code == 429
        assert http.post("/v1/chat/completions", json=body, headers={"authorization": "Bearer b"}).status_code == 429


def test_a_keys_file_of_deep_nesting_changes_nothing(tmp_path):
    file = tmp_path / "keys.toml"
    file.write_text("a=" + "[" * 3000 + "]" * 3000)
    with pytest.raises(InputError, match="cannot be read"):
        Keys((), file)


def test_a_name_whose_client_left_goes_to_who_asked_next(llm):
    store = Store(llm)
    first, second = (source(llm, text, name="dup") for text in "ab")
    assert store.claim("t", "dup", first.key) is None
    entries = [store.hold(one) for one in (first, second)]
    store.unclaim("t", "dup", first.key)  # its client left, somebody else waits for the memory
    assert store.claim("t", "dup", second.key) is None
    for entry, one in zip(entries, (first, second), strict=True):
        store.put(entry, llm.memorize(one.tokens, one.recipe))
    assert [entry.record["name"] for entry in entries] == [None, "dup"]
    assert store.find("t", "dup") is entries[1]


def test_a_memory_that_had_to_leave_at_once_is_answered_and_its_name_is_free(serve, llm):
    size = llm.memorize("x").size_bytes
    app = serve(budget=store_module.Budget(ram_bytes=size))
    with web(app) as http, ThreadPoolExecutor(8) as pool:
        bodies = [{"documents": [{"text": f"text {i}"}], "name": f"name-{i % 3}"} for i in range(12)]
        found = [post.result() for post in [pool.submit(http.post, "/v1/memories", json=body) for body in bodies]]
        assert {reply.status_code for reply in found} <= {200, 409}
        for i in range(3):
            http.delete(f"/v1/memories/name-{i}")
            assert http.post("/v1/memories", json=bodies[i]).status_code == 200


def test_the_page_and_the_metrics_know_where_a_proxy_mounts_the_server(serve):
    app = serve()
    http = TestClient(app, base_url="http://localhost", root_path="/fm", raise_server_exceptions=False)
    assert http.get("/page.css").status_code == 200
    http.request("SECRET", "/health")
    http.get("/health")
    counted = http.get("/metrics").text
    assert 'route="GET /health"' in counted
    assert "SECRET" not in counted


def test_a_client_that_does_not_read_is_cut_off(listening):
    address, server = listening(limits=Limits(unread_seconds=0.5, shutdown_seconds=1))
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(address)
        connection.sendall(b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 400)
        eventually(lambda: server.server_state.connections)
        eventually(lambda: not server.server_state.connections)


# --- progress ---


def events_of(response):
    """The JSON objects of server-sent events; the last is "[DONE]"."""
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line.startswith("{")], lines[-1]


def test_a_memory_reports_every_step_while_it_is_made(serve):
    http = web(serve())
    body = {"documents": DOCUMENTS, "name": "ferry", "stream": True, "fastmem": {"recipe": {"steps": 5}}}
    (*steps, memory), last = events_of(http.post("/v1/memories", json=body))
    assert [(one["step"], one["steps"]) for one in steps] == [(n, 5) for n in range(5)]
    assert [one["loss"] for one in steps] == [one["loss"] for one in memory["trace"][:5]]
    assert (memory["name"], last) == ("ferry", "[DONE]")
    assert [one["name"] for one in http.get("/v1/memories").json()["data"]] == ["ferry"]
    again, _ = events_of(http.post("/v1/memories", json=body))
    assert again == [memory], "it exists"


def test_numbers_that_json_lacks_are_null(serve, monkeypatch):
    http = web(serve())
    nan, infinite = float("nan"), float("inf")
    monkeypatch.setattr(memorize_queue, "MemorizeProgress", lambda *step: MemorizeProgress(*step[:2], loss=nan))
    reply = http.post("/v1/memories", json={"documents": DOCUMENTS, "name": "wild", "stream": True})
    (*steps, _), last = events_of(reply)
    assert ([one["loss"] for one in steps], last) == ([None] * 3, "[DONE]")

    rows = [TokenSurprisal("a", 1.00004, infinite), TokenSurprisal("b", nan, 2.0)]
    monkeypatch.setattr(memory_routes, "surprisal_report", lambda *_: rows)
    found = http.post("/v1/memories/wild/surprise", json={"documents": DOCUMENTS})
    assert found.json()["tokens"] == [
        {"text": "a", "before": 1.0, "after": None},
        {"text": "b", "before": None, "after": 2.0},
    ]


def test_an_event_is_json():
    with pytest.raises(ValueError, match="not JSON compliant"):
        sse_event({"loss": float("nan")})


@pytest.mark.parametrize("stored", [True, False])
def test_a_memory_is_downloaded_as_the_file_that_memorize_writes(serve, llm, tmp_path, stored):
    app = serve(folder=tmp_path / "store" if stored else None)
    made = web(app).post("/v1/memories", json={"documents": DOCUMENTS, "name": "ferry"}).json()
    for reference in ("ferry", made["id"]):
        found = web(app).get(f"/v1/memories/{reference}/content")
        assert found.status_code == 200
        assert int(found.headers["content-length"]) == len(found.content)
        assert found.headers["content-disposition"] == 'attachment; filename="ferry.safetensors"'
    (tmp_path / "ferry.safetensors").write_bytes(found.content)
    memory = Memory.load(tmp_path / "ferry.safetensors", model=llm)
    served = ask(app, {"model": "ferry", "max_tokens": 8}).json()["choices"][0]["message"]["content"]
    assert llm.generate(QUESTION, memory, "fastmem", max_new_tokens=8).text == served
    assert web(app, authorization="Bearer other").get("/v1/memories/ferry/content").status_code == 404
    assert web(app).delete("/v1/memories/ferry").status_code == 200
    assert web(app).get("/v1/memories/ferry/content").status_code == 404


def test_a_download_that_is_not_possible_now_is_refused(serve, tmp_path, monkeypatch):
    app = serve(folder=tmp_path / "store")
    made = web(app).post("/v1/memories", json={"documents": DOCUMENTS}).json()["id"]

    def none_left(*arguments, **options):
        raise OSError(errno.EMFILE, "Too many open files", str(tmp_path))

    monkeypatch.setattr(Path, "open", none_left)
    refused = web(app).get(f"/v1/memories/{made}/content")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
    assert str(tmp_path) not in refused.text


def test_an_error_while_it_is_made_is_an_event_and_frees_the_name(serve, monkeypatch):
    app = serve()
    monkeypatch.setattr(app.state.service.store, "hold", lambda *_: (_ for _ in ()).throw(InputError("no room")))
    body = {"documents": DOCUMENTS, "name": "ferry", "stream": True}
    (event,), _ = events_of(web(app).post("/v1/memories", json=body))
    assert event["error"]["message"] == "no room"
    monkeypatch.undo()
    other = web(app).post("/v1/memories", json={"documents": [{"text": "else"}], "name": "ferry"})
    assert other.status_code == 200


# --- tenants ---


def tenants(path, **tables):
    """Write a file of tenants."""
    lines = []
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{option} = {json.dumps(value)}" for option, value in table.items())]
    path.write_text("\n".join(lines))
    return path


def test_tenants_of_a_file_have_their_own_memories_and_a_new_key_keeps_them(serve, tmp_path, monkeypatch):
    file = tenants(tmp_path / "keys.toml", ada={"key": "a"}, bo={"key": "b"})
    app = serve(keys_file=file)
    assert web(app, authorization="Bearer a").post("/v1/memories", json={"documents": DOCUMENTS}).status_code == 200
    assert web(app, authorization="Bearer b").get("/v1/memories").json()["data"] == []
    assert web(app, authorization="Bearer c").get("/v1/memories").status_code == 401

    def rewritten(seconds, **tables):
        os.utime(tenants(file, **tables), (seconds, seconds))
        app.state.service.keys._looked = 0.0

    rewritten(1, ada={"key": "new"})
    assert web(app, authorization="Bearer a").get("/v1/memories").status_code == 401
    assert len(web(app, authorization="Bearer new").get("/v1/memories").json()["data"]) == 1
    rewritten(2, ada={"key": ""})
    assert web(app, authorization="Bearer new").get("/v1/memories").status_code == 200, "a bad file changes nothing"


@pytest.mark.parametrize(
    ("tables", "text"),
    [
        ({"ada": {"key": " "}}, "tenant 'ada' in .*: give a table with a key"),
        ({"ada": {"memories": 5}}, "give a table with a key"),
        ({"ada": {"key": "a", "memory": 5}}, "unknown 'memory'; accepted are key, memories, bytes"),
        ({"ada": {"key": "a", "running": -1}}, "running takes a whole number"),
        ({"ada": {"key": "a"}, "bo": {"key": "a"}}, "another tenant has the same key"),
    ],
)
def test_a_file_of_tenants_is_checked_at_the_start(llm, tmp_path, tables, text):
    with pytest.raises(InputError, match=text):
        create_app(llm, keys_file=tenants(tmp_path / "keys.toml", **tables))
    with pytest.raises(InputError, match="cannot be read"):
        create_app(llm, keys_file=tmp_path / "none.toml")


def test_a_tenant_has_limits(serve, tmp_path, llm):
    quota = {"memories": 2, "tokens_per_minute": 400}
    size = llm.memorize("x").size_bytes
    file = tenants(
        tmp_path / "keys.toml", ada={"key": "a"} | quota, bo={"key": "b", "bytes": size}, cy={"key": "c", "running": 0}
    )
    app = serve(keys_file=file)

    def made(key, number):
        documents = [{"text": str(number)}]
        return web(app, authorization=f"Bearer {key}").post("/v1/memories", json={"documents": documents})

    assert [made("a", n).status_code for n in range(3)] == [200, 200, 429]
    assert [made("b", n).status_code for n in range(2)] == [200, 429]
    assert made("a", 0).status_code == 200, "it exists"
    refused = made("a", 3)
    assert refused.json()["error"]["code"] == "quota_exceeded"
    assert int(refused.headers["retry-after"]) > 0
    assert ask(app, {}, authorization="Bearer c").status_code == 429
    asked = [ask(app, {"max_tokens": 40}, authorization="Bearer a") for _ in range(10)]
    statuses = [found.status_code for found in asked]
    assert statuses == sorted(statuses)
    assert {*statuses} == {200, 429}
    assert "400 tokens a minute" in asked[-1].json()["error"]["message"]
    assert ask(app, {"max_tokens": 1}, authorization="Bearer b").status_code == 200


def test_a_request_that_is_over_no_longer_counts_as_running(serve, tmp_path):
    app = serve(keys_file=tenants(tmp_path / "keys.toml", ada={"key": "a", "running": 1}))
    for body in ({"max_tokens": 1}, {"max_tokens": 2, "stream": True}, {"max_tokens": 10**6}, {"model": "none"}) * 2:
        assert ask(app, body, authorization="Bearer a").status_code in (200, 400, 404)
    assert not app.state.service.usage._running
