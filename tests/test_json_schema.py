"""Answers that follow a JSON schema, with every method, beside others in a batch, and from the client's `.parse()`."""

import json
from typing import Literal

import pytest
from openai import BadRequestError
from pydantic import BaseModel

from command_line import Runner, refusal
from fastmem import FastMem, InputError, Recipe
from fastmem.answer.contrast import METHODS
from fastmem.serve.app import create_app
from serving import DOCUMENTS, QUESTION, ask, client, make_llm

pytest.importorskip("llguidance", reason="needs fastmem[json-schema]")

PLACES = ["east", "west", "north"]
SCHEMA = {
    "type": "object",
    "properties": {
        "pier": {"enum": PLACES},
        "open": {"type": "boolean"},
        "codes": {"type": "array", "items": {"enum": [1, 22, 333]}, "minItems": 2, "maxItems": 3},
    },
    "required": ["pier", "open", "codes"],
    "additionalProperties": False,
}
CONTEXT = DOCUMENTS[0]["text"]


@pytest.fixture(scope="module")
def llm() -> FastMem:
    return make_llm()


def follows(text: str) -> bool:
    """Whether a text is JSON of `SCHEMA`."""
    found = json.loads(text)
    right = found["pier"] in PLACES and isinstance(found["open"], bool) and set(found["codes"]) <= {1, 22, 333}
    return right and found.keys() == {"pier", "open", "codes"} and 2 <= len(found["codes"]) <= 3


@pytest.mark.parametrize("method", METHODS)
def test_every_method_follows_the_schema(llm: FastMem, method: str) -> None:
    out = llm.answer("Which pier?", CONTEXT, method, json_schema=SCHEMA, max_new_tokens=120, recipe=Recipe(steps=1))
    assert follows(out.text)
    assert out.reason == "stop"


def test_a_sampled_answer_follows_it_too_and_the_seed_decides(llm: FastMem) -> None:
    options = {"json_schema": SCHEMA, "max_new_tokens": 120, "temperature": 1.5}
    texts = [llm.generate("Which pier?", seed=seed, **options).text for seed in range(6)]
    assert all(map(follows, texts))
    assert len(set(texts)) > 1
    assert llm.generate("Which pier?", seed=0, **options).text == texts[0]


def test_it_takes_the_best_token_of_those_that_are_allowed(llm: FastMem) -> None:
    """Greedy, token by token, from the scores of the whole sequence, among the texts that can still become right."""
    wanted = ['{"pier": "east"}', '{"pier": "west"}', '{"pier": "north"}']
    schema = {
        "type": "object",
        "properties": {"pier": {"enum": PLACES}},
        "required": ["pier"],
        "additionalProperties": False,
    }
    out = llm.generate("Which pier?", json_schema=schema, max_new_tokens=60)
    prompt, ids = llm.ids("Which pier?").tolist(), []
    texts = {text: llm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in wanted}
    while (text := llm.tokenizer.decode(ids)) not in wanted:
        scores = llm.logits(prompt + ids)[-1]
        left = {other[len(ids)] for other in texts.values() if other[: len(ids)] == ids}
        ids.append(max(left, key=lambda token: scores[token].item()))
    assert out.text == text


def test_others_in_the_batch_are_not_bound(llm: FastMem) -> None:
    free = llm.generate("Which pier?", max_new_tokens=20).text
    app = create_app(llm)
    form = {"type": "json_schema", "json_schema": {"name": "pier", "schema": SCHEMA}}
    bound = ask(app, {"response_format": form, "max_tokens": 120}).json()["choices"][0]
    assert follows(bound["message"]["content"])
    assert llm.generate("Which pier?", max_new_tokens=20).text == free
    app.state.service.engine.close(timeout_seconds=60)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "nothing"}, "the JSON schema cannot be used"),
        ("{", "a JSON schema"),
        ([], "a JSON schema"),
        ({"$ref": "#/none"}, "the JSON schema cannot be used"),
    ],
)
def test_a_schema_that_is_none_is_refused(llm: FastMem, schema: object, text: str) -> None:
    with pytest.raises(InputError, match=text):
        llm.generate("Which pier?", json_schema=schema)


def test_the_command_line_takes_a_schema_from_a_file(llm: FastMem, tmp_path, capsys) -> None:
    (tmp_path / "schema.json").write_text(json.dumps({"enum": PLACES}))
    fastmem = Runner(capsys)
    said = fastmem("ask", "Which pier?", "--text", CONTEXT, "--json-schema", tmp_path / "schema.json", "--json")
    assert json.loads(said.json["text"]) in PLACES
    for content, text in (("{", "a JSON schema"), (None, "cannot be read")):
        path = tmp_path / "bad.json"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)
        assert text in refusal(fastmem("ask", "Which pier?", "--text", CONTEXT, "--json-schema", path))


class Ferry(BaseModel):
    pier: Literal["east", "west"]
    open: bool


def test_parse_of_the_client(llm: FastMem) -> None:
    app = create_app(llm)
    found = client(app).chat.completions.parse(
        model="tiny", messages=QUESTION, response_format=Ferry, max_tokens=60, extra_body={"documents": DOCUMENTS}
    )
    assert isinstance(found.choices[0].message.parsed, Ferry)
    for form in ({"type": "json_schema"}, {"type": "json_object", "json_schema": {}}, {"type": "xml"}):
        assert ask(app, {"response_format": form}).status_code == 400
    large = {"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * 40_000]}}}
    assert "32768 characters" in ask(app, {"response_format": large}).json()["error"]["message"]
    app.state.service.engine.close(timeout_seconds=60)


def test_the_responses_interface_follows_a_schema(llm: FastMem) -> None:
    app = create_app(llm)
    responses, extra = client(app).responses, {"documents": DOCUMENTS}
    asked = {"model": "tiny", "input": QUESTION[0]["content"], "max_output_tokens": 60, "extra_body": extra}
    found = responses.parse(**asked, text_format=Ferry)
    assert isinstance(found.output_parsed, Ferry)
    assert found.text.format.type == "json_schema"
    assert found.text.format.schema_["properties"].keys() == {"pier", "open"}
    with responses.stream(**asked, text_format=Ferry) as stream:
        assert stream.get_final_response().output_parsed == found.output_parsed
    plain = responses.create(**asked, text={"format": {"type": "json_object"}})
    assert plain.output_text.startswith("{")
    for form in ({"type": "json_schema"}, {"type": "xml"}, {"type": "text", "schema": {}}):
        with pytest.raises(BadRequestError):
            responses.create(**asked, text={"format": form})
    app.state.service.engine.close(timeout_seconds=60)
