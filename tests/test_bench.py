"""The programs that measure: each runs to its end at a tiny size, and its ratios come from its own figures.

No time is asserted. Models are those of the programs, shrunk to a few layers.
"""

import json
import sys
from statistics import median

import pytest
import torch

from command_line import Runner, refusal, save
from conftest import ROOT
from families import build

sys.path.insert(0, str(ROOT))

import bench
from bench import batch, charts, decode, gpu, length, memorize

from fastmem import FastMem, Recipe
from fastmem.answer.contrast import METHODS
from fastmem.cost import card, ceiling, document, memorizing
from fastmem.device_memory import PeakMemory
from fastmem.timing import median_seconds


@pytest.fixture(autouse=True)
def tiny_shape(monkeypatch):
    """hidden, FFN width, layers, heads, key-value heads, vocabulary"""
    monkeypatch.setitem(bench.SHAPES, "tiny", (32, 48, 3, 4, 2, 300, torch.float32))


@pytest.fixture
def ran(monkeypatch, capsys):
    """`ran(program, flags...)` -> (what it printed for people, its document)."""

    def run(program, *flags):
        monkeypatch.setattr(sys, "argv", [program.__name__, "--shape", "tiny", *map(str, flags)])
        program.main()
        *table, last = capsys.readouterr().out.splitlines()
        return "\n".join(table), json.loads(last)

    return run


def test_memorize(ran):
    table, found = ran(memorize, "--tokens", 20, "--steps", 2, "--repeats", 2, "--shortlist", 100)
    assert found["share_of_ceiling"] == pytest.approx(found["ceiling_seconds"] / found["steps_seconds"])
    assert found["whole_share_of_naive"] == pytest.approx(
        median(found["whole_seconds"]) / median(found["naive_seconds"])
    )
    assert all(len(found[f"{name}_seconds"]) == 2 for name in ("naive", "whole", "sampled"))
    short = found["shortlist"]
    assert short["trunk_passes"] == pytest.approx(short["steps_seconds"] / short["read_seconds"])
    assert short["tokens"] == 100
    assert 0 < short["error"] < 0.2
    assert f"{found['whole_share_of_naive']:.2f} of the plain way" in table
    assert (found["scored_tokens"], found["steps"]) == (20, 2)


def test_a_shortlist_of_everything_is_off_by_nothing(ran):
    _, found = ran(memorize, "--tokens", 20, "--steps", 2, "--repeats", 1, "--shortlist", 300, "--no-naive")
    assert found["shortlist"]["error"] == 0
    assert "whole_share_of_naive" not in found


def test_decode(ran):
    table, found = ran(decode, "--prompt", 12, "--tokens", 4, "--rounds", 1)
    seconds = found["seconds_per_token"]
    assert set(seconds) == {"generate", *METHODS}
    assert all(found["ratio_to_base"][name] == pytest.approx(s / seconds["base"]) for name, s in seconds.items())
    assert 1 < found["contrast_ceiling_ratio"] < 2
    assert len(table.splitlines()) == 3 + len(METHODS)


def test_length(ran):
    _, found = ran(length, "--lengths", "20,40")
    assert [row["scored_tokens"] for row in found["rows"]] == [20, 40]
    for row in found["rows"]:
        bound = found["ceiling_seconds_per_token"] * row["scored_tokens"]
        assert row["share_of_ceiling"] == pytest.approx(bound / row["step_seconds"])
    assert found["rows"][1]["expected_bytes"] > found["rows"][0]["expected_bytes"]


def test_batch(ran):
    table, found = ran(batch, "--documents", 3, "--tokens", 20, "--repeats", 1)
    seconds = found["seconds"]
    pairs = {("answer_one_by_one", "answer_together")}
    assert set(seconds) == {"first_token_read_whole", "first_token_prefix_kept"}.union(*pairs)
    for plain, fast in pairs:
        assert f"{seconds[plain] / seconds[fast]:.2f} times as fast" in table


def test_gpu_on_a_cpu_runs_to_its_end(ran):
    table, found = ran(gpu, "--device", "cpu", "--lengths", "20,30", "--rows", "1,2", "--tokens", 3)
    assert [entry["scored_tokens"] for entry in found["memorize"]] == [20, 30]
    assert set(found["batches"]) == {"1", "2"}
    assert set(found["seconds_per_token"]) == set(METHODS)
    ratio = found["swapping_contrast_seconds_per_token"] / found["seconds_per_token"]["base"]
    assert f"contrast by exchanging weights: {1 / found['swapping_contrast_seconds_per_token']:.1f}" in table
    assert f"{ratio:.3f}x base" in table
    ours = found["memorize"][0]["read_seconds"] + found["memorize"][0]["steps_seconds"]
    assert f"ours takes {ours / found['naive_seconds']:.2f} of it" in table


def test_the_shape_of_8b_is_refused_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--device", "cpu"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "give --shape embedded --device cpu" in capsys.readouterr().err


def test_charts_are_drawn_from_the_logs(ran, tmp_path, monkeypatch):
    for program, flags in ((decode, ("--prompt", 12, "--tokens", 3, "--rounds", 1)), (length, ("--lengths", "20,40"))):
        _, found = ran(program, *flags)
        (tmp_path / f"{found['bench']}.log").write_text(f"a table\n{json.dumps(found)}\n")
    logs = [str(tmp_path / "decode.log"), str(tmp_path / "length.log")]
    monkeypatch.setattr(sys, "argv", ["bench.charts", *logs, "--output", str(tmp_path)])
    charts.main()
    drawn = (tmp_path / "performance-decode.svg").read_text()
    assert "<svg" in drawn
    assert (tmp_path / "performance-length.svg").exists()


def test_the_bound_counts_the_products_of_a_step():
    """docs/results/performance.md: 4 N D V of the head, 14 N D F of a gated FFN, 28 bytes per weight."""
    N, D, F, V = 10, 32, 48, 300
    llm = bench.random_llama("tiny")
    bound = ceiling(llm.split_model, Recipe(), N, repeats=1)
    assert bound.product_flops == 4 * N * D * V + 14 * N * D * F
    assert bound.adamw_bytes == 28 * 3 * D * F
    assert bound.ffn_bytes == 3 * D * F * 4
    embedding = V * D * 4
    assert bound.token_bytes == sum(p.numel() * 4 for p in llm.model.parameters()) - embedding
    assert bound.flops_per_second == pytest.approx(bound.product_flops / bound.product_seconds)


def test_cost_of_a_memory_is_that_of_the_recipe():
    llm = bench.random_llama("tiny")
    cost, memory = memorizing(llm, 20, Recipe(steps=3), repeats=1)
    assert (cost.scored_tokens, len(memory.trace)) == (20, 3)
    assert cost.memory_bytes == memory.size_bytes == 3 * 32 * 48 * 4
    tokens = document(llm.split_model, 20, 5)
    assert (len(tokens), int(tokens.scored.sum())) == (25, 20)


def test_a_median_leaves_out_the_warm_up():
    calls = []
    median_seconds(lambda: calls.append(1), torch.device("cpu"), repeats=3, warmups=2)
    assert len(calls) == 5


def test_the_peak_counts_what_was_given_back():
    peak = PeakMemory(torch.device("cpu"))
    torch.ones(2**24).sum()
    assert 0.9 * 2**26 < peak.added_bytes < 3 * 2**26


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(build("llama"), tmp_path_factory.mktemp("llama"))


def test_fastmem_bench_prints_a_card_of_ones_own_model(capsys, folder):
    said = Runner(capsys)("bench", "-m", folder, "--tokens", 20, "--new-tokens", 2, "--steps", 2, "-q")
    assert said.code == 0
    lines = said.out.splitlines()
    assert lines[0].endswith("on cpu, float32, 1 threads" if torch.get_num_threads() == 1 else "threads")
    assert "memorize 20 tokens, 2 steps" in lines
    assert [line.split()[0] for line in lines[-len(METHODS) :]] == list(METHODS)
    assert lines[-len(METHODS)].split()[3] == "1.00x"


def test_fastmem_bench_as_json(capsys, folder):
    found = Runner(capsys)("bench", "-m", folder, "--tokens", 20, "--new-tokens", 2, "--shortlist", 60, "--json").json
    assert (found["memorize"]["scored_tokens"], found["steps"], found["shortlist"]) == (20, 10, 60)
    assert set(found["seconds_per_token"]) == set(METHODS)
    bound = found["ceiling"]
    assert bound["flops_per_second"] == pytest.approx(bound["product_flops"] / bound["product_seconds"])
    assert found["memorize"]["memory_bytes"] == 3 * 48 * 80 * 4


def test_fastmem_bench_takes_no_more_tokens_than_there_are_positions(capsys, tmp_path):
    model = build("llama")
    model.config.max_position_embeddings = 64
    folder = save(model, tmp_path)
    found = Runner(capsys)("bench", "-m", folder, "--tokens", 500, "--new-tokens", 4, "--steps", 1, "--json").json
    assert found["memorize"]["scored_tokens"] == 64 - 5 - 4


def test_fastmem_bench_refuses_new_tokens_that_leave_no_room_for_a_document(capsys, tmp_path):
    model = build("llama")
    model.config.max_position_embeddings = 64
    folder = save(model, tmp_path)
    said = refusal(Runner(capsys)("bench", "-m", folder, "--new-tokens", 59, "--steps", 1, "--json"))
    assert said == (
        "new_tokens is 59: the model has 64 positions, and the shortest document takes 6 of them. Give 58 or fewer "
        "(option --new-tokens)."
    )
    found = Runner(capsys)("bench", "-m", folder, "--new-tokens", 58, "--steps", 1, "--json").json
    assert found["memorize"]["scored_tokens"] == 1


def test_fastmem_bench_measures_what_is_asked_of_a_model_without_a_position_limit():
    llm = FastMem(build("bloom"), None)
    assert llm.split_model.max_positions is None
    assert card(llm, Recipe(steps=1), scored=20, tokens=3)["memorize"]["scored_tokens"] == 20
