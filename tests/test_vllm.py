"""`fastmem serve --vllm`, in front of a stand-in for vLLM (`vllm_stand_in.py`). The real one: `make test-vllm`."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest
from openai import OpenAI

from fastmem import Recipe
from fastmem.errors import InputError, StorageError
from fastmem.serve import app as app_module
from fastmem.serve.adapter_folder import AdapterFolder, adapter_name
from fastmem.serve.app import create_app
from fastmem.serve.limits import EngineLimits
from fastmem.serve.vllm_adapters import VllmAdapters, chosen_for
from fastmem.serve.vllm_answers import VllmOptions
from fastmem.serve.vllm_client import VllmClient, VllmLimits, checked_url
from serving import DOCUMENTS, QUESTION, address_of, eventually, listening, make_llm
from vllm_stand_in import stand_ins

LOW_RANK = Recipe(learning_rate=1e-2, steps=2, parametrization="lora", rank=2)
QUICK = VllmLimits(connect_seconds=1.0, call_seconds=2.0, silent_seconds=1.0)


@pytest.fixture(scope="module")
def llm():
    llm = make_llm()
    llm.recipe = LOW_RANK
    return llm


@pytest.fixture
def vllm():
    with stand_ins() as (one,):
        yield one


@contextmanager
def server(llm, place, *vllms, adapters=16, limits=QUICK, **options):
    """A listening server, and its client for HTTP."""
    import httpx2

    options.setdefault("engine_limits", EngineLimits(rows=4, waiting=8))
    urls = tuple(one.url for one in vllms)
    app = create_app(llm, vllm=VllmOptions(urls, place, adapters, limits=limits), **options)
    with listening(app) as running:
        host, port = address_of(running)
        with httpx2.Client(base_url=f"http://{host}:{port}", timeout=60) as http:
            http.app = app
            yield http
    app.state.service.store.close()  # its lock belongs to this thread


def document(number):
    return [{"text": f"Ferry {number} leaves at nine from pier {number}."}]


def ask(http, documents=DOCUMENTS, key="x", **body):
    body = {"model": "tiny", "messages": QUESTION, "documents": documents, "max_tokens": 12} | body
    return http.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})


def text_of(response):
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def made(http):
    """How many memories were made."""
    lines = http.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith('fastmem_memory_events_total{event="memorized"}')]
    return int(float(found[0].split()[-1])) if found else 0


def test_a_memory_is_written_loaded_and_asked(llm, vllm, tmp_path):
    with server(llm, tmp_path, vllm) as http:
        first, second = ask(http), ask(http)
    (name,) = {name for _, name in vllm.calls} - {"", "base"}
    assert text_of(first) == text_of(second) == name
    assert vllm.names("load") == [name]
    assert (tmp_path / name / "adapter_config.json").is_file()
    costs = first.json()["fastmem"]
    assert (costs["method"], costs["memory_made"], second.json()["fastmem"]["memory_made"]) == ("fastmem", True, False)
    assert adapter_name(costs["memory"]) == name


def test_the_adapter_is_the_memory(llm, vllm, tmp_path):
    from safetensors.torch import load_file

    text = "Notice\nThe ferry leaves at nine from the east pier."
    memory = llm.memorize(text, LOW_RANK)
    with server(llm, tmp_path, vllm) as http:
        name = text_of(ask(http))
    written = load_file(tmp_path / name / "adapter_model.safetensors")
    expected = sorted(round(float(tensor.double().abs().sum()), 5) for tensor in memory.tensors.values())
    assert sorted(round(float(tensor.double().abs().sum()), 5) for tensor in written.values()) == expected


def test_vllm_reads_the_tokens_that_the_library_reads(llm, vllm, tmp_path):
    text = "Notice\nThe ferry leaves at nine from the east pier."
    prompt = [{"role": "user", "content": f"Context: {text}\n\nWhen does the ferry leave?"}]
    with server(llm, tmp_path, vllm) as http:
        ask(http, temperature=0.5, seed=3, stop=["end"], top_k=4)
    (body,) = vllm.bodies
    request = llm.prepare(prompt)
    assert body["prompt"] == request.prompt.tolist()
    assert (set(body["stop_token_ids"]), body["ignore_eos"]) == (set(request.stop_ids), True)
    assert (body["temperature"], body["seed"], body["stop"], body["top_k"]) == (0.5, 3, ["end"], 4)


def test_the_stock_client_streams_and_collects(llm, vllm, tmp_path):
    with server(llm, tmp_path, vllm) as http:
        chat = OpenAI(base_url=f"{http.base_url}/v1", api_key="x", max_retries=0).chat.completions
        common = {"model": "tiny", "messages": QUESTION, "max_tokens": 12, "extra_body": {"documents": DOCUMENTS}}
        whole = chat.create(**common, logprobs=True, top_logprobs=1)
        chunks = list(chat.create(**common, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(deltas) == whole.choices[0].message.content
    assert len(deltas) == 10  # piece by piece, as they came
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 10
    assert [one.logprob for one in whole.choices[0].logprobs.content] == [-0.5] * 10
    assert {one.top_logprobs[0].logprob for one in whole.choices[0].logprobs.content} == {-0.25}


def test_base_requests_pass_on_without_a_memory(llm, vllm, tmp_path):
    with server(llm, tmp_path, vllm) as http:
        assert text_of(ask(http, [])) == "base"
        assert text_of(ask(http, DOCUMENTS, fastmem={"method": "base"})) == "base"
        found = http.post("/v1/completions", json={"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 5, "n": 2})
        responses = http.post("/v1/responses", json={"model": "tiny", "input": "hello"})
    assert [choice["text"] for choice in found.json()["choices"]] == ["base", "base"]
    assert vllm.bodies[-2]["prompt"] == [5, 6, 7]
    assert responses.json()["output"][0]["content"][0]["text"] == "base"
    assert not vllm.names("load")


@pytest.mark.parametrize("method", ["cad", "dola", "adacad", "fastmem+cd", "fastmem+cad", "fastmem+dola"])
def test_contrasts_are_refused_in_one_sentence(llm, vllm, tmp_path, method):
    with server(llm, tmp_path, vllm) as http:
        refused = ask(http, fastmem={"method": method})
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, "fastmem.method")
    assert method in error["message"]
    assert "vLLM does not do" in error["message"]
    assert vllm.calls == []


@pytest.mark.parametrize("recipe", [{"parametrization": "full"}, {"rank": 3}])
def test_memories_that_are_no_adapters_are_refused(llm, vllm, tmp_path, recipe):
    with server(llm, tmp_path, vllm) as http:
        refused = ask(http, fastmem={"recipe": recipe})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == next(iter(recipe))


def test_a_restarted_vllm_gets_its_adapters_again_and_nothing_is_memorized_twice(llm, vllm, tmp_path):
    with server(llm, tmp_path, vllm) as http:
        before = [text_of(ask(http, document(i))) for i in range(3)]
        vllm.restart()
        assert [text_of(ask(http, document(i))) for i in range(3)] == before
        assert made(http) == 3
    assert vllm.names("load") == before * 2


def test_a_vllm_that_is_away_is_answered_503_until_it_is_back(llm, vllm, tmp_path):
    with server(llm, tmp_path, vllm) as http:
        before = text_of(ask(http))
        vllm.stop()
        away, base = ask(http), ask(http, [])
        vllm.restart()
        vllm.start()
        assert text_of(ask(http)) == before
        assert made(http) == 1
    for response in (away, base):
        assert (response.status_code, response.headers["retry-after"]) == (503, "5")
        assert response.json()["error"]["code"] == "vllm_unavailable"
        assert "127.0.0.1" not in response.text
        assert str(vllm.port) not in response.text


@pytest.mark.parametrize("behaviour", ["500", "nonsense", "another object", "endless line"])
def test_an_answer_that_makes_no_sense_is_a_503(llm, vllm, tmp_path, behaviour):
    with server(llm, tmp_path, vllm) as http:
        vllm.behaviour = behaviour
        failed = ask(http)
        vllm.behaviour = "well"
        assert ask(http).status_code == 200
    assert (failed.status_code, failed.headers["retry-after"]) == (503, "5")
    assert "secret" not in failed.text


def test_what_vllm_says_of_others_does_not_get_out(llm, vllm, tmp_path, caplog):
    with server(llm, tmp_path, vllm) as http:
        vllm.behaviour = "400"
        failed = ask(http)
    assert failed.status_code == 502
    assert "fastmem-other" not in failed.text
    assert "secret" not in failed.text


def test_a_stream_that_breaks_off_ends_with_an_error(llm, vllm, tmp_path):
    with server(llm, tmp_path, vllm) as http:
        vllm.behaviour = "breaks off"
        found = ask(http, stream=True)
    assert found.status_code == 200
    assert '"vllm_unavailable"' in found.text
    assert "[DONE]" not in found.text


def test_an_answer_that_has_begun_is_not_asked_of_another_vllm(llm, tmp_path):
    with stand_ins(2) as vllms, server(llm, tmp_path, *vllms) as http:
        before = sum(len(one.names("ask")) for one in vllms)
        for one in vllms:
            one.behaviour = "breaks off"
        found = ask(http, [], stream=True)
        assert '"vllm_unavailable"' in found.text
        assert sum(len(one.names("ask")) for one in vllms) == before + 1


def test_a_silent_vllm_is_given_up(llm, vllm, tmp_path):
    with server(llm, tmp_path, vllm) as http:
        vllm.silence = 60.0
        failed = ask(http)
        assert http.get("/health").status_code == 200
    assert failed.status_code == 503


def test_the_least_recently_used_adapter_leaves(llm, vllm, tmp_path):
    limits = EngineLimits(rows=2, waiting=8)
    with server(llm, tmp_path, vllm, adapters=2, engine_limits=limits) as http:
        one, two = (text_of(ask(http, document(i))) for i in range(2))
        text_of(ask(http, document(0)))
        three = text_of(ask(http, document(2)))
        assert set(vllm.loaded) == {one, three}
        assert vllm.names("unload") == [two]
        assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == sorted([one, three])
        assert text_of(ask(http, document(1))) == two
        assert made(http) == 3
    assert len(vllm.loaded) == 2


def test_an_adapter_that_answers_does_not_leave(llm, vllm, tmp_path):
    """It is the least recently used one of two when a third needs room."""
    limits = EngineLimits(rows=2, waiting=8)
    with server(llm, tmp_path, vllm, adapters=2, engine_limits=limits) as http, ThreadPoolExecutor(1) as pool:
        one, two = (text_of(ask(http, document(i))) for i in range(2))
        vllm.silence = 0.8
        answer = pool.submit(ask, http, document(0))
        eventually(lambda: vllm.running == 1)
        vllm.silence = 0.0
        assert text_of(ask(http, document(1))) == two
        text_of(ask(http, document(2)))
        assert text_of(answer.result()) == one
    assert vllm.cut == []
    assert vllm.names("unload")[0] == two


def test_two_clients_with_the_same_new_document_make_one_memory(llm, vllm, tmp_path):
    with server(llm, tmp_path, vllm) as http, ThreadPoolExecutor(4) as pool:
        texts = set(pool.map(lambda _: text_of(ask(http)), range(4)))
        assert made(http) == 1
    assert len(texts) == 1
    assert len(vllm.names("load")) == 1


def test_two_tenants_do_not_share_an_adapter(llm, vllm, tmp_path):
    with server(llm, tmp_path, vllm) as http:
        names = {text_of(ask(http, key=key)) for key in ("ada", "bob")}
        salted = text_of(ask(http, key="ada", cache_salt="1"))
    assert len({*names, salted}) == 3
    assert len({body["cache_salt"] for body in vllm.bodies}) == 3


def test_an_adapter_deleted_by_hand_is_written_again(llm, vllm, tmp_path):
    import shutil

    with server(llm, tmp_path, vllm) as http:
        name = text_of(ask(http))
        shutil.rmtree(tmp_path / name)
        assert text_of(ask(http)) == name
        assert (tmp_path / name / "adapter_model.safetensors").is_file()
        (tmp_path / name / "adapter_model.safetensors").write_bytes(b"damaged")
        vllm.restart()
        assert text_of(ask(http)) == name
        assert (tmp_path / name / "adapter_model.safetensors").stat().st_size > 64
        assert made(http) == 1


def test_a_deleted_memory_leaves_vllm_and_the_folder(llm, vllm, tmp_path):
    with server(llm, tmp_path, vllm) as http:
        headers = {"authorization": "Bearer x"}
        http.post("/v1/memories", json={"documents": DOCUMENTS, "name": "ferry"}, headers=headers)
        name = text_of(ask(http, [], model="ferry"))
        assert http.delete("/v1/memories/ferry", headers=headers).status_code == 200
        assert vllm.loaded == {}
        assert not (tmp_path / name).exists()
        assert ask(http, [], model="ferry").status_code == 404


def test_a_memory_that_is_deleted_while_it_answers_leaves_afterwards(llm, vllm, tmp_path):
    with server(llm, tmp_path, vllm) as http, ThreadPoolExecutor(1) as pool:
        headers = {"authorization": "Bearer x"}
        http.post("/v1/memories", json={"documents": DOCUMENTS, "name": "ferry"}, headers=headers)
        name = text_of(ask(http, [], model="ferry"))
        vllm.silence = 0.8
        answer = pool.submit(ask, http, [], model="ferry")
        eventually(lambda: vllm.running == 1)
        assert http.delete("/v1/memories/ferry", headers=headers).status_code == 200
        assert text_of(answer.result()) == name
        eventually(lambda: vllm.loaded == {})
    assert vllm.cut == []


def test_foreign_files_in_the_folder_are_left_alone(llm, vllm, tmp_path):
    foreign = ["other-adapter", "fastmem-short", ".fastmem-" + "0" * 32 + ".killed", "fastmem-" + "1" * 32]
    for name in foreign:
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
    with server(llm, tmp_path, vllm, adapters=4) as http:
        for i in range(6):
            text_of(ask(http, document(i)))
    left = {path.name for path in tmp_path.iterdir()}
    assert {"other-adapter", "fastmem-short", "fastmem-" + "1" * 32} <= left
    assert foreign[2] not in left  # what a killed process of ours left


def test_a_folder_that_another_server_uses_is_refused(tmp_path):
    folder = AdapterFolder(tmp_path)
    with pytest.raises(StorageError, match="another running server"):
        AdapterFolder(tmp_path)
    folder.close()
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot be written"):
        AdapterFolder(tmp_path / "file")


def test_a_folder_that_takes_nothing_is_a_507(llm, vllm, tmp_path, monkeypatch):
    import errno

    def full(**arguments):
        raise OSError(errno.EROFS, "Read-only file system")

    with server(llm, tmp_path, vllm) as http:
        monkeypatch.setattr("fastmem.export.tempfile.mkdtemp", full)
        failed = ask(http)
        monkeypatch.undo()
        assert ask(http).status_code == 200
        assert made(http) == 1
    assert failed.status_code == 507
    assert "Read-only" in failed.text
    assert str(tmp_path) not in failed.text


def test_no_more_requests_than_rows_run_in_vllm(llm, vllm, tmp_path):
    limits = EngineLimits(rows=2, waiting=3)
    with server(llm, tmp_path, vllm, engine_limits=limits) as http, ThreadPoolExecutor(8) as pool:
        vllm.silence = 0.5
        statuses = list(pool.map(lambda i: ask(http, []).status_code, range(8)))
    assert vllm.most == 2
    assert sorted(set(statuses)) == [200, 429]
    assert statuses.count(200) >= 5


def test_a_client_that_leaves_ends_the_work_of_vllm(llm, vllm, tmp_path):
    import httpx2

    with server(llm, tmp_path, vllm, limits=replace(QUICK, silent_seconds=60)) as http:
        vllm.silence = 30.0
        with pytest.raises(httpx2.TimeoutException):
            http.post("/v1/chat/completions", json={"model": "tiny", "messages": QUESTION}, timeout=1.0)
        answers = http.app.state.service.vllm
        eventually(lambda: answers.running == 0 and vllm.running == 0)


def test_a_memory_has_its_place_and_few_move_when_a_vllm_is_added(tmp_path):
    folder = AdapterFolder(tmp_path)
    servers = [VllmAdapters(VllmClient(f"http://vllm-{i}:8000"), folder, 4) for i in range(4)]
    names = [hashlib.sha256(bytes([i, j])).hexdigest() for i in range(20) for j in range(50)]
    before = [chosen_for(name, servers[:3]) for name in names]
    after = [chosen_for(name, servers) for name in names]
    moved = [(old, new) for old, new in zip(before, after, strict=True) if old is not new]
    assert all(new is servers[3] for _, new in moved)
    assert 0.2 < len(moved) / len(names) < 0.3
    assert min(before.count(server) for server in servers[:3]) > 280
    folder.close()


def test_several_vllms_each_have_their_memories(llm, tmp_path):
    with stand_ins(2) as vllms, server(llm, tmp_path, *vllms) as http:
        texts = [text_of(ask(http, document(i))) for i in range(8)]
        again = [text_of(ask(http, document(i))) for i in range(8)]
        assert texts == again
        loads = [one.names("load") for one in vllms]
        assert sorted(loads[0] + loads[1]) == sorted(texts)
        assert all(loads)
        vllms[0].stop()
        assert all(text_of(ask(http, [])) == "base" for _ in range(4))  # the other one is there
        found = [ask(http, document(i)).status_code for i in range(8)]
        assert found.count(503) == len(loads[0])


def test_adapters_of_an_earlier_server_are_found_and_counted(llm, vllm, tmp_path):
    limits = EngineLimits(rows=2, waiting=8)
    for _ in range(2):
        with server(llm, tmp_path, vllm, adapters=2, engine_limits=limits, folder=tmp_path / "store") as http:
            for i in range(3):
                text_of(ask(http, document(i)))
            memorized = made(http)
    assert memorized == 0  # by the second server: its store has them
    assert len(vllm.loaded) == 2


def test_a_shutdown_refuses_what_waits(llm, vllm, tmp_path):
    with server(llm, tmp_path, vllm, engine_limits=EngineLimits(rows=1, waiting=4)) as http:
        vllm.silence = 0.5
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(ask, http, []) for _ in range(2)]
            answers = http.app.state.service.vllm
            eventually(lambda: answers.waiting == 1)
            http.app.state.service.engine.drain()
            statuses = sorted(one.result().status_code for one in asked)
    assert statuses == [200, 503]


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://host", "http://", "http://host:99999", "http://h/v1?x=1"]
)
def test_addresses_that_are_none_are_refused(url):
    with pytest.raises(InputError, match="give an address"):
        checked_url(url)


def test_options_that_cannot_work_are_refused(llm, tmp_path):
    with pytest.raises(InputError, match="same address twice"):
        VllmOptions(("http://a:1", "http://a:1/v1/"), tmp_path).check(4)
    with pytest.raises(InputError, match="give at least 16"):
        VllmOptions(("http://a:1",), tmp_path, adapters=4).check(16)
    full = make_llm()
    with pytest.raises(InputError, match="parametrization 'lora'"):
        create_app(full, vllm=VllmOptions(("http://a:1",), tmp_path))


@pytest.mark.parametrize("late", [False, True])
def test_a_refused_server_leaves_no_thread_and_no_folder(llm, tmp_path, monkeypatch, late):
    """late: the error comes after all parts have been made."""
    before = set(threading.enumerate())
    options = {"folder": tmp_path / "store", "vllm": VllmOptions(("http://a:1",), tmp_path / "adapters")}
    with monkeypatch.context() as patch:
        if late:
            patch.setattr(app_module, "install_error_handlers", lambda app: 1 / 0)
        with pytest.raises(ZeroDivisionError if late else InputError):
            create_app(llm if late else make_llm(), **options)
    assert set(threading.enumerate()) <= before
    create_app(llm, **options).state.service.engine.close(timeout_seconds=60)


def test_the_check_names_what_is_missing(llm, vllm, tmp_path):
    import asyncio

    from fastmem.serve.vllm_check import check_vllm

    app = create_app(llm, vllm=VllmOptions((vllm.url,), tmp_path, limits=QUICK))
    answers = app.state.service.vllm
    try:
        vllm.behaviour = "takes no adapters"
        with pytest.raises(InputError, match="max-lora-rank of 2 or more"):
            asyncio.run(check_vllm(answers, llm))
        vllm.behaviour = "well"
        with pytest.raises(InputError, match="has to serve the same model"):  # it writes token 65, whatever is asked
            asyncio.run(check_vllm(answers, llm))
        vllm.stop()
        assert len(asyncio.run(check_vllm(answers, llm))) == 1
    finally:
        answers.folder.close()
        app.state.service.engine.close(timeout_seconds=60)
    assert not list(tmp_path.glob("fastmem-*"))
