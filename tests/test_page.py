"""The page at /, clicked through in a headless Chromium, narrow and wide."""

import json
from pathlib import Path

import pytest

from browser import Browser, executable
from fastmem import FastMem, Memory
from fastmem.serve.app import create_app
from serving import address_of, eventually, listening, make_llm

pytestmark = pytest.mark.skipif(executable() is None, reason="needs a Chromium, which is absent (chromium)")

DOCUMENT = "The ferry leaves at nine from the east pier."


@pytest.fixture(scope="module")
def url():
    """A server with a tiny model in a thread of its own."""
    with listening(create_app(make_llm(), template="question")) as server:
        yield "http://{}:{}".format(*address_of(server))


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


def text_of(browser, name):
    return browser.evaluate(f"document.getElementById('{name}').textContent")


@pytest.mark.parametrize(("field", "value"), [("rate", "abc"), ("rate", "-1"), ("steps", "-3")])
def test_a_number_that_is_none_is_refused_before_anything_runs(url, browser, field, value):
    browser.open(f"{url}/")
    browser.type("#document", DOCUMENT)
    browser.type("#question", "When?")
    browser.evaluate(
        f"document.getElementById('{field}').value = '{value}'; document.getElementById('form').noValidate = true"
    )
    browser.click("#ask")
    browser.until("document.getElementById('problem').textContent")
    assert "give a" in text_of(browser, "problem")
    assert text_of(browser, "answer-base") == ""


def test_tokens_are_read_by_keyboard_the_answer_is_marked_and_the_request_copied(url, browser):
    browser.open(f"{url}/")
    browser.type("#document", DOCUMENT)
    browser.type("#question", "When does the ferry leave?")
    browser.click("#ask")
    browser.until("!document.getElementById('results').hidden")
    spans = "[...document.querySelectorAll('#document-view span')]"
    assert browser.evaluate(f"{spans}.filter(s => s.tabIndex === 0).length") == 1
    browser.evaluate(f"{spans}[0].focus()")
    first = text_of(browser, "token-note")
    browser.evaluate(f"{spans}[0].dispatchEvent(new KeyboardEvent('keydown', {{key: 'ArrowRight', bubbles: true}}))")
    assert "nats before" in first != text_of(browser, "token-note")
    marked = "tokens = [{text: 'at ', before: 1, after: 0}, {text: 'nine', before: 2, after: 0}];"
    marked += "document.getElementById('answer-memory').textContent = 'The answer is: Nine.'; showTokens();"
    browser.evaluate(marked)
    assert browser.evaluate(f"{spans}.map(s => s.className).join('|')") == "|source"
    browser.click("[data-copy=python]")
    assert "extra_body=" in text_of(browser, "code")
    names = "[...document.querySelectorAll('#memories tr')].length"
    before = browser.evaluate(names)
    assert before >= 1
    browser.click("#memories tr:last-child button:last-child")
    browser.until(f"{names} === {before - 1}")


def test_a_memory_is_named_used_without_its_document_and_downloaded(url, browser, tmp_path):
    browser.open(f"{url}/")
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "downloads"))
    browser.type("#document", DOCUMENT)
    browser.type("#question", "When does the ferry leave?")
    browser.evaluate("document.getElementById('name').value = 'ferry'")
    browser.click("#ask")
    browser.until("!document.getElementById('results').hidden")
    browser.until("!!document.querySelector(\"#memories [aria-label='Use the memory ferry']\")")
    browser.click("#memories [aria-label='Use the memory ferry']")
    assert text_of(browser, "used-name") == "ferry"
    browser.evaluate("document.getElementById('document').value = ''")
    browser.click("#ask")
    browser.until("document.getElementById('title-memory').textContent === 'With the memory ferry'")
    browser.until("!document.getElementById('results').hidden || document.getElementById('problem').textContent")
    assert text_of(browser, "problem") == ""
    assert '"model": "ferry"' in text_of(browser, "code")
    assert browser.evaluate("document.getElementById('document-view').parentElement.hidden")
    browser.click("#memories [aria-label='Download the memory ferry']")
    file = tmp_path / "downloads" / "ferry.safetensors"
    eventually(lambda: file.exists() and file.stat().st_size)  # Chromium puts an empty file there until it is done
    assert Memory.load(file).base.family == "llama"
    browser.click("#memories [aria-label='Delete the memory ferry']")
    browser.until("document.getElementById('used').hidden")


def test_the_page_says_what_changed(url, browser):
    browser.open(f"{url}/")
    for base, memory, text in (("Nine.", "nine", "same"), ("At ten.", "Nine.", "which the document does not say"),
                               ("Nine", "ten", "The answers differ.")):  # fmt: skip
        browser.evaluate(
            f"document.getElementById('answer-base').textContent = 'The answer is: {base}';"
            f"document.getElementById('answer-memory').textContent = 'The answer is: {memory}';"
            f"showVerdict({json.dumps(DOCUMENT)})"
        )
        assert text in text_of(browser, "verdict")


# The contrast (WCAG 2.1, 1.4.3) of the first token of the document, on its colour over that of the section.
CONTRAST = """(() => {
  const token = document.querySelector('#document-view span'), parts = text => text.match(/[\\d.]+/g).map(Number);
  const paper = parts(getComputedStyle(token.closest('section')).backgroundColor);
  const [r, g, b, alpha = 1] = parts(getComputedStyle(token).backgroundColor);
  const light = colour => [0.2126, 0.7152, 0.0722].reduce((sum, share, i) => {
    const c = colour[i] / 255;
    return sum + share * (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  }, 0.05);
  const behind = [r, g, b].map((c, i) => alpha * c + (1 - alpha) * paper[i]);
  const both = [light(behind), light(parts(getComputedStyle(token).color))];
  return Math.max(...both) / Math.min(...both);
})()"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 3840])
def test_everybody_can_read_it(url, tmp_path, width, dark):
    """Whatever axe-core finds automatically of WCAG 2.1 A and AA; nothing sticks out sideways."""
    package = pytest.importorskip("axe_core_python", reason="needs fastmem[test]")
    script = (Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    browser = Browser(tmp_path, width=width, height=900, dark=dark)
    try:
        browser.open(f"{url}/")
        browser.type("#document", DOCUMENT)
        browser.type("#question", "When does the ferry leave?")
        browser.click("#ask")
        browser.until("!document.getElementById('results').hidden")
        for side in ("before", "after", "change"):
            browser.click(f"input[value={side}]")
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            browser.evaluate(script + ";1")
            rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
            found = browser.evaluate(f"axe.run({{runOnly: {rules}}}).then(r => JSON.stringify(r.violations))")
            assert json.loads(found) == []
        # axe does not judge colours of tokens that overlap, so the strongest ones are judged here.
        browser.evaluate("tokens = [{text: 'nine', before: 9, after: 0}]")
        for side in ("before", "change"):
            browser.click(f"input[value={side}]")
            assert browser.evaluate(CONTRAST) >= 4.5
    finally:
        browser.close()


def test_the_tokens_of_a_document_are_counted_while_it_is_typed(url, browser):
    browser.open(f"{url}/")
    browser.type("#document", DOCUMENT)
    browser.evaluate("document.getElementById('document').dispatchEvent(new Event('input'))")
    browser.until("document.getElementById('count').textContent")
    assert text_of(browser, "count").endswith(" of at most 512 tokens")
    browser.evaluate("document.getElementById('document').value = 'word '.repeat(200)")
    browser.evaluate("document.getElementById('document').dispatchEvent(new Event('input'))")
    browser.until("document.getElementById('count').classList.contains('over')")


def test_cancel_ends_a_memorization(url, browser):
    browser.open(f"{url}/")
    browser.type("#document", DOCUMENT * 8)
    browser.type("#question", "When does the ferry leave?")
    browser.evaluate("document.getElementById('steps').value = 100")
    browser.click("#ask")
    browser.until("document.getElementById('progress-note').textContent.startsWith('step ')")
    browser.click("#cancel")
    browser.until("document.getElementById('problem').textContent")
    assert text_of(browser, "problem") == "Cancelled."
    assert browser.evaluate("document.getElementById('making').hidden && !document.getElementById('ask').disabled")


def test_an_example_of_the_embedded_model_shows_the_effect(browser):
    with listening(create_app(FastMem.from_pretrained(), template="question")) as server:
        browser.open("http://{}:{}/".format(*address_of(server)))
        browser.until("document.querySelectorAll('#examples button').length === 3")
        assert "an invented world" in text_of(browser, "embedded")
        browser.click("#examples button")
        browser.until("!document.getElementById('results').hidden || document.getElementById('problem').textContent")
        assert text_of(browser, "answer-base") != text_of(browser, "answer-memory")
        assert browser.evaluate("document.querySelectorAll('#document-view .source').length > 0")
        inside = "[...document.querySelectorAll('#curve path')].map(path => path.getBBox().y >= 0)"
        assert browser.evaluate(inside) == [True, True]  # the KL rises above the loss here


def test_a_document_that_was_hardly_memorized_is_named_beside_the_answer(url, browser):
    browser.open(f"{url}/")
    browser.type("#document", DOCUMENT)
    browser.type("#question", "When does the ferry leave?")
    for rate, text in ((1e-7, "memorizing had almost no effect (cross entropy "), (1e-2, "")):
        browser.evaluate(f"document.getElementById('rate').value = '{rate}'")
        browser.click("#ask")
        browser.until("!document.getElementById('ask').disabled && !document.getElementById('results').hidden")
        assert text_of(browser, "notice-memory").startswith(text)
        assert text_of(browser, "notice-memory").endswith("under Options." if text else "")
    assert text_of(browser, "notice-memory") == ""
