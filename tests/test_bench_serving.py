"""The programs that measure the server: the attacks are what they say, and the memories are there."""

import asyncio
import json
import random
import sys

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT))

from bench import serving_attackers as attackers
from bench import serving_health as health
from bench import serving_memories as memories

from fastmem.serve.app import create_app
from fastmem.serve.store import Store
from serving import address_of, listening, make_llm


@pytest.fixture(scope="module")
def url():
    with listening(create_app(make_llm(), name="bench")) as server:
        yield "http://{}:{}".format(*address_of(server))


def sent(url, request):
    return asyncio.run(attackers.Attackers(url, 0)._send(request))


@pytest.mark.parametrize("name", attackers.ACCEPTED)
def test_what_is_accepted(url, name):
    if "schema" in name:
        pytest.importorskip("llguidance", reason="needs fastmem[json-schema]")
    request = attackers.ACCEPTED[name](random.Random(1))
    if "long document" in name:
        pytest.skip("longer than what the tiny model has positions for")
    assert sent(url, request.replace(b'"max_tokens": 200', b'"max_tokens": 100')) == "200"


@pytest.mark.parametrize("name", attackers.REFUSED)
def test_what_is_refused(url, name):
    try:
        assert sent(url, attackers.REFUSED[name]) in ("400", "413")
    except ConnectionError:  # cut off while it was still sending
        assert "20 MB" in name


def test_attackers_report_what_they_sent(url):
    one = attackers.Attackers(url, 0.2)
    asyncio.run(one.run(2))
    assert sum(sum(seen.values()) for seen in one.sent.values()) >= 2
    json.dumps(one.sent)


def test_a_disk_is_filled_and_emptied(tmp_path, monkeypatch):
    real = attackers.Path.open

    class Small:
        """A file that takes 2 MB and 5,000 bytes."""

        def __init__(self, file):
            self.file, self.left = file, 2 * attackers.MEGABYTE + 5000

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, data):
            if len(data) > self.left:
                raise OSError("full")
            self.left -= len(data)
            return self.file.write(data)

    monkeypatch.setattr(attackers.Path, "open", lambda path, *a, **k: Small(real(path, *a, **k)))
    assert asyncio.run(attackers.fill(tmp_path, 0, 0)) == 2 * attackers.MEGABYTE + 5000
    assert list(tmp_path.iterdir()) == []


def test_health_is_asked_at_its_rate(url):
    assert len(health.probe(int(url.rsplit(":", 1)[1]), seconds=0.5, rate=20)) == 10


def test_memories_are_made_as_the_server_makes_them(tmp_path, monkeypatch):
    llm = make_llm()
    monkeypatch.setattr(memories.FastMem, "from_pretrained", lambda: llm)
    memories.fill(tmp_path, 30)
    store = Store(llm, folder=tmp_path)
    tenant = memories.Keys().tenant(memories.KEY).salted(None)
    assert len(store.of_tenant(tenant)) == 30
    entry = store.find(tenant, "notice-7")
    assert entry is store.find(tenant, f"mem-{7:032x}")
    store.load(entry)
    assert entry.memory.recipe.steps == 1
    store.close()
