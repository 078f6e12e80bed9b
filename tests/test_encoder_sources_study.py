"""The study of what an encoder reads while a document is memorized: the choice of rates, going on, the table."""

import json

import pytest
from studies import encoder_sources

RATE_OF_DEV = {"nothing": 1e-3, "half": 3e-3, "document": 1e-2}  # right on all development rows; others on none


@pytest.fixture
def asked(monkeypatch):
    """The rows that are asked for, of a model whose answers are known."""
    found = []

    def rows(llm, split, part, start, count, rates):
        for number in range(start, count):
            found.append((split, part, number, rates))
            row = {"split": split, "part": part, "number": number, "base": number % 2 == 0}
            for source, tried in rates.items():
                for rate in tried:
                    right = rate == RATE_OF_DEV[source] if part == "dev" else source != "half" or number % 2 == 0
                    row[f"{source} {rate:g}"] = right
            yield row

    monkeypatch.setattr(encoder_sources, "rows", rows)
    monkeypatch.setattr(encoder_sources.FastMem, "from_pretrained", lambda folder: None)
    return found


def test_development_rows_choose_a_rate_and_test_rows_judge(asked, tmp_path, capsys):
    arguments = ["--model", "unused", "--output", str(tmp_path / "rows.jsonl"), "--dev", "3", "--test", "4"]
    encoder_sources.main(arguments)
    lines = capsys.readouterr().out.splitlines()
    judged = [one for one in asked if one[1] == "test"]
    assert len(judged) == 2 * 4
    assert all(rates == {source: (rate,) for source, rate in RATE_OF_DEV.items()} for *_, rates in judged)
    table = {
        tuple(cells[:2]): cells[2:] for cells in ([c.strip() for c in line.split("|")[1:-1]] for line in lines[-12:])
    }
    assert table["world_swap", "no memory"][0].startswith("0.500 [")
    assert table["world_swap", "no memory"][1:] == ["", ""]
    assert table["both", "document"][0].startswith("1.000")
    assert table["both", "document"][1].startswith("+0.500 [")
    assert table["both", "half"][2].startswith("-0.500 [")


def test_a_second_run_goes_on(asked, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    encoder_sources.main(["--model", "unused", "--output", str(path), "--dev", "2", "--test", "2"])
    before = len(asked)
    encoder_sources.main(["--model", "unused", "--output", str(path), "--dev", "2", "--test", "3"])
    assert [one[:3] for one in asked[before:]] == [(split, "test", 2) for split in encoder_sources.SPLITS]
    assert len(path.read_text().splitlines()) == len(asked)
    assert all(json.loads(line)["split"] in encoder_sources.SPLITS for line in path.read_text().splitlines())
