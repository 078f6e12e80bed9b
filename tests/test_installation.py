"""What users install: the wheel alone runs the core, every extra alone what it promises, and archives are complete.

Everything is installed from a package index into fresh environments, so this takes minutes and 3 GB of disk.
"""

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import urllib.request
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import ROOT
from document_samples import docx, paragraph, pdf
from lab_runs import write_questions
from serving import eventually
from test_extras import EXTRAS, OPTIONAL
from test_metrics import folder as scorer_models  # noqa: F401 - a fixture: tiny encoders

pytestmark = pytest.mark.slow

BROUGHT_BY_CORE = {"filelock", "httpx2"}  # torch and huggingface_hub need them, `serve` names them too
PATIENCE_SECONDS = 1800  # torch alone is 200 MB and more
# A user's environment: nothing of this process but the way to the package index, and no hub.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "PATH", "HOME", "SSL_"))} | {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
SCHEMA = """
from fastmem import FastMem
llm = FastMem.from_pretrained()
print(llm.generate("Is it?", json_schema={"enum": ["yes", "no"]}).text)
"""
SPECS = "import sys; from importlib.util import find_spec; print([n for n in sys.argv[1:] if find_spec(n)])"
ADAPTER = """
import sys
from fastmem.tiny import MODEL_DIR
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
print(sorted(PeftModel.from_pretrained(base, sys.argv[1]).peft_config["default"].target_modules))
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and the folder in which its commands run."""

    folder: Path
    work: Path

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    def run(self, *command: object, code: int = 0) -> str:
        """Standard output of a command that ends with this exit code; of a refused one, its line on standard error."""
        words = [str(word) for word in command]
        done = subprocess.run(
            words, cwd=self.work, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE_SECONDS
        )
        assert done.returncode == code, f"{words}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stderr if code else done.stdout

    def install(self, *what: object) -> None:
        self.run(self.python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints" / "cpu.txt", *what)

    def fastmem(self, *arguments: object, code: int = 0) -> str:
        return self.run(self.python, "-m", "fastmem.cli", *arguments, code=code)


@dataclass(frozen=True)
class Built:
    """The archives of this checkout, and an environment in which only the wheel was installed."""

    wheel: Path
    source: Path
    core: Path


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Made once, also if several workers run the tests."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    place = shared / "installation"
    place.mkdir(exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "done").exists():
            tools, core = environment(place / "tools", place), environment(place / "core", place)
            tools.install("hatchling>=1.25")
            tools.run("bash", "-c", f"cd {ROOT} && {tools.python} -m hatchling build -d {place / 'dist'}")
            core.install(*(place / "dist").glob("*.whl"))
            (place / "done").touch()
    (wheel,), (source,) = (place / "dist").glob("*.whl"), (place / "dist").glob("*.tar.gz")
    return Built(wheel, source, place / "core")


def environment(folder: Path, work: Path, below: Path | None = None) -> Environment:
    """A new environment. below: one whose packages are visible in it, as if they were installed in it."""
    venv.create(folder, with_pip=True)
    if below is not None:
        inside = Path("lib") / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        (folder / inside / "core.pth").write_text(f"{below / inside}\n")
    return Environment(folder, work)


@pytest.fixture
def with_extra(built: Built, tmp_path: Path):
    """`with_extra("eval")`: an environment with the core and that extra, in a folder with a document and questions.

    The extra is installed into an environment of its own, which finds the core's packages in the core's. It is removed
    after the test.
    """

    def install(extra: str) -> Environment:
        made = environment(tmp_path / "venv", tmp_path, below=built.core)
        made.install(f"fastmem[{extra}] @ {built.wheel.as_uri()}")
        return made

    (tmp_path / "policy.txt").write_text("The office of Tarn closes at noon.")
    write_questions(tmp_path / "rows.json")
    yield install
    shutil.rmtree(tmp_path / "venv", ignore_errors=True)


@pytest.fixture(scope="session")
def tracked() -> set[str]:
    """The files of the checkout that git tracks."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs the git repository to know which files belong to it")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(listed.stdout.split("\n")) - {""}


def test_the_source_archive_has_every_file(built: Built, tracked: set[str]) -> None:
    with tarfile.open(built.source) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert packed - {"PKG-INFO"} == tracked


def test_the_wheel_has_every_file_of_the_package(built: Built, tracked: set[str]) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("fastmem/")}
    assert packed == {name.removeprefix("src/") for name in tracked if name.startswith("src/")}


def test_the_wheel_alone(built: Built, tmp_path: Path) -> None:
    core = Environment(built.core, tmp_path)
    assert core.run(core.python, "-c", SPECS, *(set(OPTIONAL) - BROUGHT_BY_CORE)).strip() == "[]"
    (tmp_path / "policy.txt").write_text("The office of Tarn closes at noon.")
    write_questions(tmp_path / "rows.json")

    def fastmem(*arguments: object) -> str:
        return core.run(built.core / "bin" / "fastmem", *arguments)

    assert "share of answers that agree with the document" in fastmem("demo", "--rows", 4)
    for method in ("fastmem", "fastmem+cad"):
        assert fastmem("ask", "When does it close?", "--context", "policy.txt", "--method", method).strip()
    assert "policy.safetensors" in fastmem("memorize", "policy.txt", "--output", "memories")
    assert "adapter: peft" in fastmem(
        "export", "memories/policy.safetensors", "--context", "policy.txt", "--output", "adapter", "--force"
    )
    assert "| fastmem | " in fastmem(
        "eval", "--task", "world", "--limit", 4, "--methods", "base,fastmem", "--output", "a"
    )
    assert "| nq_swap" in fastmem(
        "eval", "--task", "nq_swap", "--data", "rows.json", "--methods", "base", "--output", "b"
    )
    grid = ["--rates", "1e-4,1e-3", "--steps", "5", "--kls", "0.1", "--output", "grid"]
    assert "2 points on 4 examples" in fastmem("search", "--task", "world_swap", "--limit", 4, *grid)
    assert "| fastmem | " in fastmem("report", "a", "b", "grid")
    assert "<svg" in (tmp_path / "a" / "report.html").read_text()
    assert "datasets          not installed" in fastmem("env")
    assert (tmp_path / "a" / "rows.jsonl").read_text().count("\n") == 8


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("eval --task nq_swap", "eval"),
        ("eval --task xsum --data xsum.json", "eval"),
        ("search --task world_swap --sampler tpe", "search"),
        ("serve", "serve"),
        ("ask Who? --context policy.pdf", "documents"),
        ("lm-eval ls tasks", "lm-eval"),
    ],
)
def test_the_wheel_alone_names_the_extra(built: Built, tmp_path: Path, command: str, extra: str) -> None:
    (tmp_path / "policy.pdf").write_bytes(b"%PDF-1.4")
    output = ["--output", "out"] if command.startswith(("eval", "search")) else []
    said = Environment(built.core, tmp_path).fastmem(*command.split(), *output, code=2)
    assert said.count("\n") == 1
    assert f"pip install 'fastmem[{extra}]'" in said


def test_eval_alone(with_extra, tmp_path: Path, scorer_models: Path) -> None:  # noqa: F811
    from task_rows import write

    made = with_extra("eval")
    rows = json.loads((tmp_path / "rows.json").read_text())
    write(tmp_path / "rows.parquet", rows)
    parquet = ["--task", "nq_swap", "--data", "rows.parquet", "--methods", "base", "--output", "questions"]
    assert "| nq_swap" in made.fastmem("eval", *parquet)
    (tmp_path / "xsum.json").write_text(json.dumps([{"article": "The market opens at dawn.", "summary": "At dawn."}]))
    models = ["--bertscore", scorer_models / "encoder", "--bertscore-layer", 2]
    models += ["--factkb", scorer_models / "classifier", "--factkb-tokenizer", scorer_models / "tokenizer"]
    summaries = ["--task", "xsum", "--data", "xsum.json", "--methods", "base", "--output", "summaries"]
    scores = json.loads(made.fastmem("eval", *summaries, *models, "--json").splitlines()[-1])["methods"]["base"]
    assert set(scores["missing"]) == {"hhem"}
    assert "ROUGE-L" in made.fastmem("report", "summaries")
    # Without network, datasets itself says that the rows are not there.
    assert "cannot load pminervini/NQ-Swap" in made.fastmem("eval", "--task", "nq_swap", "--output", "x", code=2)


def test_search_alone(with_extra) -> None:
    tpe = ["--sampler", "tpe", "--trials", 2, "--steps", 5, "--limit", 2, "--output", "tpe"]
    made = with_extra("search")
    assert "2 points on 2 examples" in made.fastmem("search", "--task", "world_swap", *tpe)
    assert "## Search on world_swap" in made.fastmem("report", "tpe")


def test_serve_alone(with_extra, tmp_path: Path) -> None:
    made = with_extra("serve")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [made.python, "-m", "fastmem.cli", "serve", "--port", str(port)]
    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as server:
        try:

            def get(path: str) -> str | None:
                assert server.poll() is None, server.stderr and server.stderr.read()
                try:
                    return urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60).read().decode()
                except OSError:
                    return None

            eventually(lambda: get("/health"))
            assert "fastmem-tiny" in (get("/v1/models") or "")
            assert "<html" in (get("/") or "")
            assert "# TYPE" in (get("/metrics") or "")
        finally:
            server.terminate()


def test_json_schema_alone(with_extra) -> None:
    made = with_extra("json-schema")
    assert made.run(made.python, "-c", SCHEMA).strip() in ('"yes"', '"no"')


def test_peft_alone(with_extra) -> None:
    made = with_extra("peft")
    low_rank = ["--parametrization", "lora", "--rank", 4]
    made.fastmem("memorize", "policy.txt", "--output", "memories", *low_rank)
    made.fastmem("export", "memories/policy.safetensors", "--output", "adapter")
    assert "down_proj" in made.run(made.python, "-c", ADAPTER, "adapter")


def test_documents_alone(with_extra, tmp_path: Path) -> None:
    made = with_extra("documents")
    text = "The office of Tarn closes at noon."
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "a.pdf").write_bytes(pdf([text]))
    (tmp_path / "policies" / "b.docx").write_bytes(docx(paragraph(text)))
    (tmp_path / "policies" / "c.html").write_text(f"<p>{text}")
    said = made.fastmem("memorize", "--documents", "policies", "--output", "memories", "--json")
    found = json.loads(said.splitlines()[-1])
    assert [row["source"] for row in found["memories"]] == ["a.pdf", "b.docx", "c.html"]
    assert len({row["tokens"] for row in found["memories"]}) == 1
    assert found["skipped"] == []


def test_lm_eval_alone(with_extra, tmp_path: Path) -> None:
    made = with_extra("lm-eval")
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"title": "How to Rest", "article": "Sit.", "summary": "sit."}) + "\n"
    )
    assert "fastmem_wikihow" in made.fastmem("lm-eval", "ls", "tasks")
    task = ["--model", "fastmem", "--tasks", "fastmem_wikihow", "--metadata", json.dumps({"data": "rows.jsonl"})]
    said = made.fastmem("lm-eval", *task, "--gen_kwargs", "max_gen_toks=4", "--apply_chat_template")
    assert "rougeL" in said


def test_all_extras_fit_together(with_extra) -> None:
    made = with_extra("all")
    assert made.run(made.python, "-c", SPECS, *OPTIONAL).strip() == str(OPTIONAL)
    assert made.run(made.python, "-m", "pip", "check").strip() == "No broken requirements found."
    assert set(EXTRAS) == {"eval", "search", "serve", "json-schema", "peft", "documents", "lm-eval"}
