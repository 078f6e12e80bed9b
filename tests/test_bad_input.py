"""Bad input on the command line: a one-line message with what was given, accepted and to do next; exit code 2."""

import io
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import save_file

from command_line import DOCUMENT, QUESTION, Runner, refusal, save
from families import REFUSED, build, build_refused
from fastmem.answer.prepare import Preparer
from fastmem.errors import InputError
from fastmem.prompts import Tokens
from fastmem.split.split_model import SplitModel


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(build("llama"), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders without a model that FastMem can use."""
    home = tmp_path_factory.mktemp("odd")
    folders = {name: save(build_refused(name), home / name) for name in REFUSED}
    for name, config in {"untyped": "{}", "garbled": "{", "unheard_of": '{"model_type": "zorblax"}'}.items():
        folders[name] = home / name
        folders[name].mkdir()
        (folders[name] / "config.json").write_text(config)
    folders["no_tokenizer"] = home / "no_tokenizer"
    build("llama").save_pretrained(folders["no_tokenizer"])
    for name in ("no_weights", "damaged", "incomplete", "no_config"):
        folders[name] = save(build("llama"), home / name)
    (folders["no_weights"] / "model.safetensors").unlink()
    (folders["no_config"] / "config.json").unlink()
    weights = folders["damaged"] / "model.safetensors"
    half = weights.read_bytes()[: weights.stat().st_size // 2]
    weights.unlink()
    weights.write_bytes(half)
    kept = {k: v for k, v in build("llama").state_dict().items() if "layers.1.mlp" not in k}
    save_file(kept, folders["incomplete"] / "model.safetensors", metadata={"format": "pt"})
    return folders


def ask(fastmem: Runner, folder: object, *more: object, text: str = DOCUMENT):
    return fastmem("ask", QUESTION, "--text", text, "--model", folder, "--max-new-tokens", 4, *more)


# The document.


def test_no_document(fastmem: Runner, llama: Path) -> None:
    options = "give one of --context FILE, --context - (standard input), --text TEXT, --documents DIR."
    assert refusal(fastmem("ask", QUESTION, "--model", llama)) == f"no document is given: {options}"
    line = refusal(fastmem("ask", QUESTION, "--model", llama, "--memory", "x.safetensors"))
    assert line == f"the document is missing (a memory does not replace it): {options}"


def test_two_documents(fastmem: Runner, llama: Path) -> None:
    assert refusal(ask(fastmem, llama, "--context", "x.txt")).startswith("two documents are given: give one of")


def test_absent_document(fastmem: Runner, llama: Path) -> None:
    line = refusal(fastmem("ask", QUESTION, "--context", "nowhere.txt", "--model", llama))
    assert line == "context file 'nowhere.txt' does not exist: give a file, or - for standard input."


def test_a_folder_is_no_document(fastmem: Runner, llama: Path, tmp_path: Path) -> None:
    line = refusal(fastmem("ask", QUESTION, "-c", tmp_path, "-m", llama))
    assert line.endswith("is a folder: give one file. Options that help: --documents.")


@pytest.mark.parametrize("content", ["", " \n\t "])
def test_empty_document(fastmem: Runner, llama: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "empty.txt"
    path.write_text(content)
    line = refusal(fastmem("ask", QUESTION, "--context", path, "--model", llama))
    assert line.startswith("the context is empty: context file ")
    assert line.endswith("contains no text; give the document to answer from.")


def test_empty_standard_input(fastmem: Runner, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"")))
    line = refusal(fastmem("ask", QUESTION, "--context", "-", "--model", llama))
    assert line.startswith("the context is empty: standard input contains no text")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"%PDF-1.7\n\xe2\x28\xa1", "it is a PDF file: give it a name that ends in .pdf"),
        (b"caf\xe9", "byte 0xe9 at position 3 is not UTF-8: save it as UTF-8"),
        (b"a\0b", "it contains zero bytes"),
    ],
)
def test_a_file_that_is_not_text(fastmem: Runner, llama: Path, tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "scan.dat"
    path.write_bytes(content)
    line = refusal(fastmem("ask", QUESTION, "--context", path, "--model", llama))
    read = "FastMem reads UTF-8 text, and files whose names end in .html, .pdf or .docx."
    assert line == f"context file '{path}' is not text ({reason}). {read}"


def test_empty_question(fastmem: Runner, llama: Path) -> None:
    line = refusal(fastmem("ask", " ", "--text", DOCUMENT, "--model", llama))
    assert line == "the question is empty: give what is to be answered from the context."


# Length.


def test_too_long_a_document_says_by_how_much(fastmem: Runner, llama: Path) -> None:
    from fastmem import FastMem, prompts

    text = "The mayor is Bo. " * 60
    llm = FastMem.from_pretrained(llama)
    tokens = len(llm.ids(prompts.question_prompt(text.strip(), QUESTION)))
    line = refusal(ask(fastmem, llama, text=text))
    assert line == (
        f"{tokens} tokens and 4 for the answer are {tokens + 4 - 512} too many: the model has 512 positions. "
        "Shorten the context. Options that help: --truncate, --part-tokens."
    )


def test_too_long_a_document_is_refused_before_it_is_memorized(
    fastmem: Runner, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastmem import FastMem

    monkeypatch.setattr(FastMem, "memorizing", lambda *_, **__: pytest.fail("memorized in vain"))
    refusal(ask(fastmem, llama, text="The mayor is Bo. " * 25))  # the context alone would fit


def test_truncate_cuts_the_document_and_not_the_question(
    fastmem: Runner, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts_seen, original = [], Preparer.request

    def request(preparer: Preparer, prompt: Tokens, *more: object):
        prompts_seen.append(preparer.require_tokenizer().decode(prompt.ids))
        return original(preparer, prompt, *more)

    monkeypatch.setattr(Preparer, "request", request)
    said = ask(fastmem, llama, "--truncate", "--learning-rate", "0.01", text="The mayor is Bo. " * 60)
    assert said.code == 0
    assert "note: the document was cut to " in said.err
    assert f"\nQuestion: {QUESTION}<|eot_id|>" in prompts_seen[0]
    assert "Context: The mayor is Bo. The mayor" in prompts_seen[0]
    assert said.err.count("\n") == 2  # the note and the summary, no output of transformers


def test_truncate_cannot_cut_a_question(fastmem: Runner, llama: Path) -> None:
    said = fastmem("ask", "Who? " * 200, "--text", DOCUMENT, "--model", llama, "--truncate")
    assert refusal(said).startswith("nothing of the document is left after truncation: shorten the question")


# Methods, recipes, options.


def test_unknown_method_suggests_the_nearest(fastmem: Runner, llama: Path) -> None:
    line = refusal(ask(fastmem, llama, "--method", "fastmen"))
    assert line.startswith("unknown method 'fastmen'. Did you mean 'fastmem'? Accepted: base, cad, ")


def test_show_memorization_needs_a_method_that_memorizes(fastmem: Runner, llama: Path) -> None:
    line = refusal(ask(fastmem, llama, "--method", "cad", "--show-memorization"))
    assert line == "--show-memorization: method 'cad' does not memorize; use --method fastmem."


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--steps", -3], "recipe steps is -3: give a whole number, 0 or more (option --steps)."),
        (["--learning-rate", "nan"], "recipe learning_rate is nan: give a number, 0 to 10 (option --learning-rate)."),
        (["--learning-rate", "inf"], "recipe learning_rate is inf: give a number, 0 to 10 (option --learning-rate)."),
        (["--kl-weight", -1], "recipe kl_weight is -1.0: give a number, 0 to 1000000 (option --kl-weight)."),
        (["--layers", "1,a"], "--layers is '1,a': give layer numbers separated by commas, such as -1 or 4,5."),
        (["--layers", "7"], "layer 7 does not exist: give -3 to 2 (option --layers)."),
        (
            ["--placement", "asistant"],
            "unknown placement 'asistant'. Did you mean 'assistant'? Accepted: assistant, user",
        ),
        (["--temperature", -1], "temperature is -1.0: give a number, 0 or more (option --temperature)."),
        (["--alpha", "nan"], "alpha is nan: give a number, 0 to 1000 (option --alpha)."),
        (["--seed", 2**64], "seed is 18446744073709551616: give a whole number, -9223372036854775808 to 184467440737"),
        (
            ["--recipe-seed", 2**64],
            "recipe seed is 18446744073709551616: give a whole number, 0 to 18446744073709551615",
        ),
        (["--dtype", "float33"], "unknown dtype 'float33'. Did you mean 'float32'? Accepted: auto, float32"),
        (["--device", "warp"], "device 'warp' is not available on this machine: give one of cpu"),
        (["--memory", "nowhere.safetensors"], "memory file 'nowhere.safetensors' is refused: it cannot be read"),
    ],
)
def test_a_flag_out_of_range(fastmem: Runner, llama: Path, flags: list[object], text: str) -> None:
    line = refusal(ask(fastmem, llama, *flags))
    assert line.startswith(text)
    assert line.startswith("memory file") or str(flags[0]) in line


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "cannot be read (No such file or directory): give a JSON file, auto or paper."),
        ("{", "is not JSON ("),
        ("[1]", "holds a list: give an object of recipe fields."),
        ('{"learnin_rate": 1}', "'learnin_rate'. Did you mean 'learning_rate'?"),
        ('{"steps": 1.5}', "recipe steps is 1.5: give a whole number, 0 or more (option --steps)."),
    ],
)
def test_an_invalid_recipe_file(fastmem: Runner, llama: Path, tmp_path: Path, content: str | None, text: str) -> None:
    path = tmp_path / "recipe.json"
    if content is not None:
        path.write_text(content)
    assert text in refusal(ask(fastmem, llama, "--recipe", path))


# The model.


def test_absent_model_folder(fastmem: Runner, tmp_path: Path) -> None:
    line = refusal(ask(fastmem, tmp_path / "nowhere"))
    assert line == f"model folder '{tmp_path}/nowhere' does not exist: give a folder with a config.json, or a hub id."


def test_a_model_that_is_not_on_the_hub(fastmem: Runner) -> None:
    line = refusal(ask(fastmem, "nobody/nothing"))  # tests run offline
    assert line.startswith("model 'nobody/nothing': no configuration could be loaded: ")
    assert line.endswith("Check the name and the network, or give a folder that contains a model.")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("no_config", "has no config.json: give the folder a model was saved to."),
        ("untyped", "no configuration could be loaded: Unrecognized model in "),
        ("garbled", "is not a valid JSON file. Give a folder to which a causal language model and its tokenizer"),
        ("unheard_of", "model type `zorblax` but Transformers does not recognize this architecture."),
        ("no_tokenizer", "no tokenizer could be loaded: "),
        ("no_weights", "no weights could be loaded: "),
        ("damaged", "has damaged weights ("),
        ("mamba", "'mamba' cannot be split at its last feed-forward network: its last layer has no feed-forward"),
        (
            "bert",
            "'bert' cannot be split at its last feed-forward network: it is not causal (later tokens change its ",
        ),
    ],
)
def test_a_folder_that_holds_no_causal_model(fastmem: Runner, odd: dict[str, Path], name: str, text: str) -> None:
    assert text in refusal(ask(fastmem, odd[name]))


def test_weights_missing_from_the_checkpoint_are_reported(fastmem: Runner, odd: dict[str, Path]) -> None:
    said = ask(fastmem, odd["incomplete"])
    assert said.code == 0
    assert "3 weights are not in the checkpoint and were drawn at random, the first is model.layers.1.mlp" in said.err


def test_no_chat_template_works_with_a_notice(fastmem: Runner, tmp_path: Path) -> None:
    said = ask(fastmem, save(build("llama"), tmp_path / "plain", chat_template=None))
    assert said.code == 0
    notice = "note: the tokenizer has no chat template: using plain 'User: ... / Assistant: ...' turns."
    assert said.err.splitlines().count(notice) == 1


# Failures while running.


def test_a_loss_that_is_not_finite_keeps_the_last_good_step(fastmem: Runner, llama: Path) -> None:
    # Weights of this size overflow float16 inside the FFN after a few updates.
    said = ask(fastmem, llama, "--dtype", "float16", "--learning-rate", 1, "--steps", 9, "--json")
    assert said.code == 0
    found = re.fullmatch(r"the loss was no longer finite after (\d) steps; kept step (\d)", said.json["stopped"])
    assert found
    assert int(found[2]) == int(found[1]) - 1 > 0
    assert len(said.json["trace"]) == int(found[2])
    todo = "memorize again with --recipe auto, or with a --learning-rate below 1."
    assert said.err.count("memorizing stopped early") == 1
    assert f"note: memorizing stopped early: {found[0]}: {todo}" in said.err.splitlines()


def test_out_of_memory_names_remedies(fastmem: Runner, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = SplitModel.read

    def read(self: SplitModel, ids: torch.Tensor, *more: object, **kwargs: object):
        if len(ids) > 20:  # not the check on loading
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return original(self, ids, *more, **kwargs)

    monkeypatch.setattr(SplitModel, "read", read)
    line = refusal(ask(fastmem, llama))
    assert line.startswith("out of memory (CUDA out of memory. Tried to allocate 2.00 GiB.): shorten the context, ")
    assert line.endswith(
        "a smaller type such as bfloat16. Options that help: --truncate, --part-tokens, --max-new-tokens, --dtype."
    )


def test_out_of_memory_while_loading(fastmem: Runner, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def from_pretrained(*_: object, **__: object):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    line = refusal(ask(fastmem, llama))
    assert line.startswith(f"out of memory while loading '{llama}': use a smaller type such as bfloat16, ")
    assert line.endswith("Options that help: --dtype, --device.")


def test_an_interrupt_while_streaming(fastmem: Runner, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastmem.answer.running_batch import Stream

    def pieces(_: Stream):
        yield "half a"
        raise KeyboardInterrupt

    monkeypatch.setattr(Stream, "__iter__", pieces)
    said = ask(fastmem, llama, "--learning-rate", "0.01")
    assert (said.code, said.out) == (130, "half a\n")
    assert said.err == "interrupted: the model is unchanged and no file is incomplete.\n"


WATCHED = """
import sys
from fastmem.cli import main
from fastmem.model import FastMem

original = FastMem.memorizing

def memorizing(*arguments, **named):
    print("memorizing", flush=True)
    return original(*arguments, **named)

FastMem.memorizing = memorizing
main(sys.argv[1:])
"""


def test_an_interrupt_from_outside(llama: Path) -> None:
    flags = ["--text", DOCUMENT, "--model", str(llama), "--steps", "1000000"]
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHED, "ask", QUESTION, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # Background jobs of a shell ignore interrupts, and their child processes inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "memorizing\n"
    process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert out == ""
    assert err == "interrupted: the model is unchanged and no file is incomplete.\n"


@pytest.mark.parametrize("host", ["caf\udce9", "no-such-host.invalid"], ids=["not UTF-8", "unknown"])
def test_a_host_that_is_none_is_refused(host: str) -> None:
    from fastmem.cli.serve_command import _check_address

    with pytest.raises(InputError, match=r"the server cannot listen on .*: give another address\."):
        _check_address(host, 8000)


def test_a_family_of_addresses_that_the_machine_lacks_is_passed_over_if_it_has_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fastmem.cli.serve_command import _check_address

    known = socket.getaddrinfo("127.0.0.1", 0, type=socket.SOCK_STREAM)
    lacking = [(9999, *one[1:]) for one in known]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [*lacking, *known])
    _check_address("localhost", 0)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: lacking)
    with pytest.raises(InputError, match="cannot listen on localhost, port 0"):
        _check_address("localhost", 0)


def test_an_address_in_use_is_refused_before_the_model_is_loaded(fastmem: Runner, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refusal(fastmem("serve", "--port", port, "--model", tmp_path / "absent"))
    assert line == (
        f"the server cannot listen on 127.0.0.1, port {port} (Address already in use): give another address. "
        "Options that help: --port, --host."
    )
    assert "absent" in refusal(fastmem("serve", "--port", port, "--model", tmp_path / "absent"))
