"""Prompts without the system turn that a template adds unasked; every other conversation stays as it was."""

import json

import pytest

from command_line import Runner, save
from fastmem import FastMem
from fastmem.chat_template import rendered
from fastmem.errors import InputError, RunError
from fastmem.lab.report import load_results, tables
from fastmem.lab.run.runner import run
from fastmem.prompts import chat_ids, identity, memory_tokens
from fastmem.system_turn import is_removed, remove_system_turn
from lab_runs import experiment, questions
from test_prompts import BRACKETS, CHATML, STRICT
from tiny_tokenizer import LLAMA3_TEMPLATE, build_tokenizer

# The system turn holds the date, and an explicit system turn is added to it (Llama 3.1).
DATED = (
    "{{ bos_token }}{% set ns = namespace(text='') %}{% if messages[0]['role'] == 'system' %}"
    "{% set ns.text = messages[0]['content'] %}{% set messages = messages[1:] %}{% endif %}"
    "{{ '<|start_header_id|>system\nToday: ' + (today | default('1 May')) + '\n\n' + ns.text + '<|eot_id|>' }}"
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '\n' + m['content'] + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant\n' }}{% endif %}\n"
)
# Something stands before the first turn, and there is no system turn of its own (GLM).
OPENING = (
    "[gMASK]{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '\n' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant\n' }}{% endif %}"
)
# The last reply is rendered otherwise than an earlier one (Qwen3), with a system turn.
THINKING = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|start_header_id|>system\nYou help.<|eot_id|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}"
    "{{ m['content'] + '<|eot_id|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant\n' }}{% endif %}"
)
CONTENTS = "{% for m in messages %}{{ m['content'] }}{% endfor %}"  # no headers at all
USER, REPLY = {"role": "user", "content": "Who? <|start_header_id|>user\n"}, {"role": "assistant", "content": "Ada."}
SYSTEM = {"role": "system", "content": "Be brief."}


def changed(template: str):
    tokenizer = build_tokenizer(chat_template=template)
    remove_system_turn(tokenizer)
    return tokenizer


@pytest.mark.parametrize("template", [CHATML, DATED, THINKING], ids=["chatml", "dated", "thinking"])
def test_a_system_turn_that_was_not_asked_for_is_gone(template: str) -> None:
    own, tokenizer = build_tokenizer(chat_template=template), changed(template)
    assert is_removed(tokenizer)
    for conversation in ([USER], [USER, REPLY, USER]):
        text = rendered(tokenizer, conversation, add_generation_prompt=True)
        before, system, rest = rendered(own, conversation, add_generation_prompt=True).partition("<|start_header_id|>")
        assert (bool(system), rest[:6]) == (True, "system")
        assert text == before + rest[rest.index("<|eot_id|>") + len("<|eot_id|>") :].removeprefix("\n")
        assert tokenizer.decode(chat_ids(tokenizer, conversation)) == text, "also where control tokens are sanitized"
    asked_for = rendered(tokenizer, [SYSTEM, USER])
    assert "Be brief." in asked_for
    assert asked_for.partition("user")[2] == rendered(own, [SYSTEM, USER]).partition("user")[2]
    before, after = memory_tokens(own, "A document."), memory_tokens(tokenizer, "A document.")
    assert before.ids.tolist() == after.ids.tolist(), "the memorized turn never had a system turn"
    assert identity(own)["template_sha256"] != identity(tokenizer)["template_sha256"], "memories record it"
    tomorrow = tokenizer.apply_chat_template([USER], tokenize=False, today="2 May")
    assert tomorrow == rendered(tokenizer, [USER])
    once = tokenizer.chat_template
    remove_system_turn(tokenizer)
    assert tokenizer.chat_template == once


@pytest.mark.parametrize("template", [LLAMA3_TEMPLATE, STRICT, BRACKETS, OPENING, CONTENTS, None])
def test_templates_without_one_stay_as_they_are(template: str | None) -> None:
    tokenizer = changed(template)
    assert tokenizer.chat_template == template
    assert not is_removed(tokenizer)


def test_turns_that_cannot_be_told_apart() -> None:
    with pytest.raises(InputError, match="give the tokenizer a chat template without it"):
        changed(CHATML.replace("m['role'] +", "m['role'] + (' again' if loop.index > 2 else '') +"))


def test_the_flag_of_the_command_line(llama, tmp_path, capsys) -> None:
    folder, fastmem = save(llama, tmp_path / "model", chat_template=CHATML), Runner(capsys)
    asked = ("ask", "Who?", "--text", "Ada.", "-m", folder, "--max-new-tokens", 1, "--json")
    before, after = (fastmem(*asked, *flag).json["prompt_tokens"] for flag in ((), ("--no-system-turn",)))
    system = "<|start_header_id|>system\nYou help.<|eot_id|>\n"
    assert before - after == len(build_tokenizer()(system, add_special_tokens=False)["input_ids"])


def test_a_run_records_it_and_is_not_continued_without(llama, tmp_path) -> None:
    own, removed = FastMem(llama, build_tokenizer(chat_template=CHATML)), FastMem(llama, changed(CHATML))
    run(removed, experiment(("base",)), questions(tmp_path, 2), tmp_path / "run")
    assert json.loads((tmp_path / "run/run.json").read_text())["identity"]["model"]["system_turn"] == "removed"
    assert "system turn: removed;" in tables([load_results(tmp_path / "run")])
    with pytest.raises(RunError, match=r"model.system_turn was 'removed', now None"):
        run(own, experiment(("base",)), questions(tmp_path, 2), tmp_path / "run")
    run(own, experiment(("base",)), questions(tmp_path, 2), tmp_path / "own")
    assert "system turn: the template's;" in tables([load_results(tmp_path / "own")])
