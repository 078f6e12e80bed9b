"""The examples for LangChain, LlamaIndex and Haystack with the real packages (extra test-frameworks)."""

import importlib
import os

import pytest

from fastmem.serve.app import create_app
from serving import DOCUMENTS, QUESTION, address_of, listening, make_llm

TEXT, ASKED = DOCUMENTS[0]["text"], QUESTION[0]["content"]
PACKAGES = {"langchain": "langchain_openai", "llamaindex": "llama_index.llms.openai_like", "haystack": "haystack"}


@pytest.fixture(scope="module")
def llm():
    return make_llm()


@pytest.fixture(scope="module")
def url(llm):
    """A server with a tiny model in a thread of its own."""
    with listening(create_app(llm)) as server:
        yield "http://{}:{}/v1".format(*address_of(server))


@pytest.mark.parametrize("name", PACKAGES)
def test_the_example_answers_as_the_library_does(url, llm, name, monkeypatch):
    monkeypatch.setitem(os.environ, "HAYSTACK_TELEMETRY_ENABLED", "False")
    pytest.importorskip(PACKAGES[name], reason="needs fastmem[test-frameworks]")
    example = importlib.import_module(f"{name}_client")
    prompt = [{"role": "user", "content": f"Context: {TEXT}\n\n{ASKED}"}]
    memory = llm.memorize(TEXT)
    expected = llm.generate(prompt, memory, "fastmem+cd", max_new_tokens=40).text
    assert example.answer(url, "tiny", ASKED, [TEXT]) == expected
