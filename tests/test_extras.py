"""Without the extras: what the core install promises runs, and all else names its extra before any work is done."""

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

from command_line import Runner, refusal, save
from conftest import ROOT
from families import build
from fastmem import FastMem, Recipe
from fastmem.cli.flags import ModelFlags
from fastmem.errors import MissingPackageError
from fastmem.lab.search.grid import Space
from fastmem.lab.search.search import search_grid
from fastmem.lab.tasks import load
from lab_runs import write_questions

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {
    name: PROJECT["optional-dependencies"][name]
    for name in ("eval", "search", "serve", "json-schema", "peft", "documents", "plot", "ray", "lm-eval")
}
# Import names; the last two come with datasets and lm_eval.
OPTIONAL = [re.split(r"[\[<>=]", one)[0].replace("-", "_") for packages in EXTRAS.values() for one in packages]
OPTIONAL += ["pyarrow", "accelerate"]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch):
    """`without("optuna")`: as if it were not installed."""

    def remove(*packages: str) -> None:
        for name in {module for module in sys.modules if module.split(".")[0] in packages} | set(packages):
            monkeypatch.setitem(sys.modules, name, None)

    return remove


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelFlags, "load", lambda *_: pytest.fail("a model was loaded in vain"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, questions, summaries, and the results of a run on these summaries."""
    folder = tmp_path_factory.mktemp("place")
    llama = build("llama")
    llama.config.max_position_embeddings = 2048
    save(llama, folder / "model")
    write_questions(folder / "rows.json")
    (folder / "xsum.json").write_text(json.dumps([{"article": "Rain fell on the town.", "summary": "Rain."}]))
    (folder / "rows.parquet").write_bytes(b"PAR1")
    (folder / "policy.pdf").touch()
    (folder / "policy.docx").touch()
    return folder


def test_extras_name_every_optional_package() -> None:
    assert {
        *EXTRAS,
        "all",
        "test",
        "test-quantized",
        "test-frameworks",
        "test-fuzz",
        "notebook",
        "quality",
        "site",
        "dev",
    } == PROJECT["optional-dependencies"].keys()
    assert PROJECT["optional-dependencies"]["all"] == [f"fastmem[{','.join(EXTRAS)}]"]


def test_the_readme_says_what_each_extra_adds() -> None:
    section = (ROOT / "README.md").read_text().partition("## Install")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `([\w-]+)` \|", section, re.MULTILINE) == [*EXTRAS, "all"]


def test_the_core_install_evaluates_reports_and_searches(fastmem: Runner, without, place: Path, tmp_path: Path):
    without(*OPTIONAL)
    rows = ["--task", "nq_swap", "--data", place / "rows.json", "--model", place / "model", "--max-new-tokens", 4]
    said = fastmem("eval", *rows, "--methods", "base,fastmem", "--steps", 2, "--output", tmp_path / "run")
    assert (said.code, "| fastmem | " in said.out) == (0, True), said
    said = fastmem("search", *rows, "--rates", "1e-2", "--steps", "1,2", "--kls", "1", "--output", tmp_path / "grid")
    assert (said.code, "2 points on" in said.out) == (0, True), said
    said = fastmem("report", tmp_path / "run", tmp_path / "grid", "--html", tmp_path / "page.html")
    assert (said.code, "| fastmem | " in said.out) == (0, True), said
    assert "<svg" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("command", "missing", "line"),
    [
        (
            "search --task world_swap --sampler tpe",
            ["optuna"],
            "the sampler 'tpe' needs optuna: pip install 'fastmem[search]'. Options that help: --sampler.",
        ),
        (
            "search --task xsum --data xsum.json",
            ["rouge_score"],
            "ROUGE, the score of summaries, needs rouge_score: pip install 'fastmem[eval]'.",
        ),
        (
            "eval --task world,xsum --data xsum.json",
            ["rouge_score"],
            "ROUGE, the score of summaries, needs rouge_score: pip install 'fastmem[eval]'.",
        ),
        (
            "eval --task xsum --data xsum.json",
            ["torchmetrics"],
            "BERTScore needs torchmetrics: pip install 'fastmem[eval]'. Options that help: --bertscore.",
        ),
        (
            "eval --task nq_swap",
            ["datasets"],
            "loading a data set from the hub needs datasets: pip install 'fastmem[eval]'. Options that help: --data.",
        ),
        (
            "eval --task nq_swap --data rows.parquet",
            ["pyarrow"],
            "reading parquet files needs pyarrow: pip install 'fastmem[eval]'.",
        ),
        (
            "paper",
            ["torchmetrics"],
            "BERTScore needs torchmetrics: pip install 'fastmem[eval]'. Options that help: --bertscore.",
        ),
        (
            "serve",
            ["fastapi", "uvicorn", "prometheus_client"],
            "serving needs fastapi, uvicorn, prometheus_client: pip install 'fastmem[serve]'.",
        ),
        (
            "lm-eval --tasks fastmem_nq_swap",
            ["lm_eval", "accelerate"],
            "lm-evaluation-harness needs lm_eval, accelerate: pip install 'fastmem[lm-eval]'.",
        ),
        (
            "ask Who? --context policy.pdf",
            ["pypdfium2"],
            "reading .pdf files needs pypdfium2: pip install 'fastmem[documents]'.",
        ),
        (
            "ask Who? --documents .",
            ["pypdfium2", "mammoth"],
            "reading .pdf, .docx files needs pypdfium2, mammoth: pip install 'fastmem[documents]'.",
        ),
        (
            "memorize rows.json policy.docx --output out",
            ["mammoth", "lxml"],
            "reading .docx files needs mammoth, lxml: pip install 'fastmem[documents]'.",
        ),
        (
            "memorize --documents . --output out",
            ["lxml"],
            "reading .pdf, .docx files needs lxml: pip install 'fastmem[documents]'.",
        ),
    ],
)
def test_an_extra_is_named_before_work_starts(
    fastmem: Runner, without, nothing_is_loaded, place: Path, monkeypatch, tmp_path, command, missing, line
) -> None:
    without(*missing)
    monkeypatch.chdir(place)
    given = command.split()
    if given[0] in ("search", "eval", "paper"):
        given += ["--output", str(tmp_path / "out")]
    assert refusal(fastmem(*given)) == line
    assert not (tmp_path / "out").exists()
    assert not (place / "out").exists()


def test_a_report_on_summaries_names_the_extra_and_writes_nothing(fastmem: Runner, without, place: Path, tmp_path):
    without("torchmetrics")  # not needed without BERTScore
    scorers = ["--bertscore", "none", "--factkb", "none"]
    rows = ["--task", "xsum", "--data", place / "xsum.json", "--model", place / "model", "--max-new-tokens", 4]
    said = fastmem("eval", *rows, "--methods", "base", *scorers, "--output", tmp_path / "run")
    assert said.code == 0, said
    without("rouge_score")
    line = refusal(fastmem("report", tmp_path / "run"))
    assert line == "ROUGE, the score of summaries, needs rouge_score: pip install 'fastmem[eval]'."
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_search_on_summaries_does_not_score_zero_for_a_missing_package(without, place: Path, tmp_path: Path):
    without("rouge_score")
    llm, data = FastMem.from_pretrained(place / "model"), load("xsum", place / "xsum.json")
    with pytest.raises(MissingPackageError, match="ROUGE"):
        search_grid(llm, Space(Recipe(), (1e-3,), (1,), (1.0,)), data, tmp_path / "run", max_new_tokens=2)
