"""studies/cost_by_size.py on tiny shapes: what it measures, that it resumes, its tables. No time is asserted."""

import json
import statistics
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from studies import cost_by_size as study
from studies import cost_table, machine_rates, quiet_machine

from fastmem.predicted_cost import Machine, ModelShape, token_work

CASES = (study.Case("tiny", scored=9, rows=(2,), own_rows=(2,), repeats=2), study.Case("tiny", "bfloat16", scored=9))
RATES = Machine(2e9, 1e9, 5e8, 1e9, 1e8, 1e-3, 2e-3, 4e-3)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(study.SHAPES, "tiny", (32, 48, 2, 4, 2, 300, True))
    monkeypatch.setattr(study, "CASES", CASES)
    monkeypatch.setattr(study, "machine_rates", lambda dtype: RATES)
    monkeypatch.setattr(quiet_machine, "LIMIT", 99)
    monkeypatch.setattr(cost_table, "LIMIT", 99)


@pytest.fixture
def output(tmp_path):
    path = tmp_path / "rows.jsonl"
    study.main(["--output", str(path)])
    return path


def test_every_part_is_measured_and_done_once(output, capsys):
    rows = study.measured_rows(output)
    found = [(row["what"], row.get("rows"), row.get("own")) for row in rows if row["case"]["dtype"] == "float32"]
    tokens = [("token", 1, False), ("token", 2, False), ("token", 2, True)]
    alone = [(what, None, None) for what in ("peak", "disk", "read", "steps", "prompt")]
    assert found == alone + tokens
    assert [row["what"] for row in rows if row["case"]["dtype"] == "bfloat16"] == [*(a for a, _, _ in alone), "token"]
    (read,), (prompt,) = ([r for r in rows[:8] if r["what"] == name] for name in ("read", "prompt"))
    assert (read["tokens"], prompt["tokens"]) == (9 + study.UNSCORED, 9)
    assert (len(read["seconds"]), len(prompt["seconds"])) == (2, 2)
    assert all(len(row["seconds"]) == study.DECODED for row in rows if row["what"] == "token")
    before = output.read_bytes()
    study.main(["--output", str(output)])
    assert output.read_bytes() == before


def test_a_case_that_was_interrupted_is_measured_again(output):
    lines = output.read_text().splitlines(keepends=True)
    output.write_text("".join(lines[:-2]))  # the last case has lost a row and its end
    assert all(row["case"]["dtype"] == "float32" for row in study.measured_rows(output))
    study.main(["--output", str(output)])
    rows = study.measured_rows(output)
    assert [row["what"] for row in rows if row["case"]["dtype"] == "bfloat16"] == [
        "peak", "disk", "read", "steps", "prompt", "token"
    ]  # fmt: skip


def test_predictions_stand_beside_measurements(output):
    rows = cost_table.with_predictions(study.measured_rows(output), study.llama_config)
    for row in rows:
        if row["what"] in cost_table.KINDS:
            assert row["predicted"] == pytest.approx(sum(row["parts"].values()))
            assert row["measured"] == statistics.median(row["seconds"])
    (own,) = [row for row in rows if row.get("own")]
    shape = ModelShape.of(study.llama_config("tiny"), 4)
    assert own["predicted"] == token_work(shape, 2, own["past"]).seconds(RATES)
    for row in (row for row in rows if row["what"] == "disk"):
        for name, size in row["measured"].items():
            header = size - row["predicted"][name]
            assert 0 < header < 8192, name


def test_errors_are_relative_to_what_was_measured():
    case = dict.fromkeys(("vocabulary", "steps"), None) | {"shape": "tiny", "scored": 9, "dtype": "float32"}
    rows = [
        {"what": "read", "case": case, "measured": 2.0, "predicted": predicted, "simple": 2 * predicted}
        for predicted in (1.0, 2.2, 2.4)
    ]
    summary = cost_table.error_summary(rows)
    assert summary["median"] == pytest.approx(0.2)
    assert summary["simple"] == pytest.approx(1.2)
    assert summary["within"] == pytest.approx(2 / 3)
    assert summary["worst"] == -0.5


def test_tables_and_figure(output, tmp_path, capsys):
    capsys.readouterr()
    study.main(["--output", str(output), "--table", "--figure", str(tmp_path / "cost.svg")])
    out = capsys.readouterr().out
    assert "| tiny, 9 tokens |" in out
    assert "| tiny, 9 tokens, bfloat16 |" in out
    assert "| tiny, 9 tokens | 2 | one each |" in out
    (document,) = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert document["errors"]["all"]["n"] == 10
    assert document["rates"]["float32"]["products"] == RATES.products
    assert "| H100 SXM | 70b, bfloat16 | 141 GB | 2 |" in out
    assert (tmp_path / "cost.svg").read_text().startswith("<?xml")


def test_rates_of_a_quieter_start(output, tmp_path, capsys, monkeypatch):
    lines = [json.loads(line) | {"rates_elsewhere": 200} for line in output.read_text().splitlines()]
    output.write_text("".join(json.dumps(line) + "\n" for line in lines))
    study.main(["--output", str(output), "--table"])
    assert "Others worked while the rates were measured: bfloat16, float32." in capsys.readouterr().out
    rates = tmp_path / "rates.json"
    rates.write_text(json.dumps({name: asdict(RATES) | {"layer": 7.0} for name in ("float32", "bfloat16")}))
    study.main(["--output", str(output), "--table", "--rates", str(rates)])
    out = capsys.readouterr().out
    (document,) = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert document["rates"]["float32"]["layer"] == 7
    assert "Others worked" not in out


def test_rates_are_measured(monkeypatch):
    monkeypatch.setattr(machine_rates, "OUTPUTS", 256)
    monkeypatch.setattr(machine_rates, "INPUTS", 128)
    rates = machine_rates.machine_rates(torch.float32, streamed=2**18)
    assert all(rate > 0 for rate in (rates.products, rates.row_bytes, rates.rows_bytes, rates.new_bytes))
    assert rates.objective > 0
    assert min(rates.layer, rates.step, rates.run) >= 0


def test_what_is_disturbed_is_measured_again(monkeypatch):
    """A made-up clock: others take one processor during the first of the attempts, and none afterwards."""
    busy, own = iter([0, 12, 20, 30]), iter([0, 2, 10, 20])
    clock = iter([0, 10, 10, 20])
    monkeypatch.setattr(quiet_machine, "LIMIT", 0.1)
    monkeypatch.setattr(quiet_machine, "_busy_seconds", lambda: next(busy))
    monkeypatch.setattr(quiet_machine, "_own_seconds", lambda: next(own))
    monkeypatch.setattr(quiet_machine, "wait_until_quiet", lambda: None)
    monkeypatch.setattr(quiet_machine.time, "perf_counter", lambda: next(clock))
    results = iter("ab")
    assert quiet_machine.quietly(lambda: next(results)) == ("b", 0)


def test_work_of_other_processes_is_noticed():
    def wait_for_another():
        subprocess.run([sys.executable, "-c", "import time\nend = time.time() + 0.5\nwhile time.time() < end: pass"])

    _, others = quiet_machine.elsewhere(wait_for_another)
    assert others > 0.3


def test_disturbed_measurements_are_left_out(output, capsys, monkeypatch):
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    lines[3]["elsewhere"] = 200
    output.write_text("".join(json.dumps(line) + "\n" for line in lines))
    capsys.readouterr()
    study.main(["--output", str(output), "--table"])
    out = capsys.readouterr().out
    assert "disturbed and left out: 1." in out
    assert out.count(", disturbed)") == 1
    (document,) = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert document["errors"]["all"]["n"] == 9
