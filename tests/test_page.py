"""The page at /, clicked through in a headless Chromium, narrow and wide."""

import socket
import threading

import pytest
import uvicorn

from browser import Browser, executable
from fastmem.serve.app import create_app
from serving import eventually, make_llm

pytestmark = pytest.mark.skipif(executable() is None, reason="needs a Chromium, which is absent (chromium)")

DOCUMENT = "The ferry leaves at nine from the east pier."


@pytest.fixture(scope="module")
def url():
    """A server with a tiny model in a thread of its own."""
    app = create_app(make_llm(), template="question")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    eventually(lambda: server.started)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def browser(tmp_path):
    one = Browser(tmp_path)
    yield one
    one.close()


def test_ask_and_see(url, browser):
    browser.open(f"{url}/")
    browser.until("document.getElementById('model').textContent === 'tiny'")
    browser.type("#document", DOCUMENT)
    browser.type("#question", "When does the ferry leave?")
    browser.click("#ask")
    browser.until("!document.getElementById('results').hidden || document.getElementById('problem').textContent")
    assert browser.evaluate("document.getElementById('problem').textContent") == ""
    for side in ("base", "memory"):
        assert browser.evaluate(f"document.getElementById('answer-{side}').textContent.length > 0")
        assert "prompt tokens read" in browser.evaluate(f"document.getElementById('note-{side}').textContent")
    assert browser.evaluate("document.getElementById('document-view').textContent") == DOCUMENT
    colours = "[...document.querySelectorAll('#document-view span')].map(s => s.style.background).join()"
    before = browser.evaluate(colours)
    browser.click("input[value=after]")
    assert browser.evaluate(colours) != before
    assert browser.evaluate("document.querySelectorAll('#curve path').length") == 2
    assert "memory" in browser.evaluate("document.getElementById('costs').textContent")
    for width in (360, 1200):
        browser.resize(width, 900)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out sideways"
        assert len(browser.screenshot()) > 5000
    assert [m for m in browser.messages if "exceptionDetails" in m or m.get("entry", {}).get("level") == "error"] == []


def test_a_refusal_is_shown_and_the_form_stays_usable(url, browser):
    browser.open(f"{url}/")
    browser.type("#document", "word " * 300)
    browser.type("#question", "Anything?")
    browser.click("#ask")
    browser.until("document.getElementById('problem').textContent")
    assert "too many: the model has 512 positions" in browser.evaluate(
        "document.getElementById('problem').textContent"
    )
    assert browser.evaluate("!document.getElementById('ask').disabled")
