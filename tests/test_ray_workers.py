"""Runs with Ray workers: the same rows as in one process, whatever dies. One Ray per module; clusters are slow."""

import errno
import functools
import json
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import ray_units
from command_line import Runner, refusal
from families import build
from fastmem import FastMem
from fastmem.cli.flags import ModelFlags
from fastmem.cli.worker_flags import WorkerFlags
from fastmem.errors import InputError, RunError
from fastmem.lab.run.experiment import Experiment
from fastmem.lab.run.run_files import Appender, read_rows
from fastmem.lab.run.runner import run
from fastmem.lab.tasks import load
from fastmem.lab.workers import Lost, ThisProcess
from fastmem.lab.workers.ray_workers import MOST_DEATHS, Worker, ray_workers, require_gpus
from fastmem.model_identity import identity_of_model

ray = pytest.importorskip("ray")
TESTS = str(Path(__file__).parent)
# The run of `undisturbed` as a command.
EVAL = ("eval", "--task", "world_swap", "--methods", "base,fastmem", "--limit", "8", "--batch-size", "2")
EVAL += ("--max-new-tokens", "16", "--device", "cpu")


def start_ray(store_mib, **options):
    """Ray on this machine with two cores, whose workers find the modules of the tests."""
    paths = os.pathsep.join([TESTS, str(Path(TESTS).parent / "src")])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=store_mib * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}},
        **options,
    )


@pytest.fixture(scope="module")
def local_ray():
    start_ray(store_mib=100)
    yield
    ray.shutdown()


STUB = identity_of_model(ray_units.stub())


def pool(load_model=ray_units.stub, count=2, identity=STUB):
    return ray_workers(load_model, identity, count=count, address=None, cpus=1, gpus=0)


def doubled(workers, work, numbers):
    return list(workers.results(functools.partial(ray_units.doubling, work=work), numbers))


def test_every_unit_is_answered_once(local_ray, tmp_path):
    with pool() as workers:
        assert workers.count == 2
        assert sorted(doubled(workers, ray_units.Doubling(str(tmp_path)), range(20))) == [2 * n for n in range(20)]
        assert sorted(doubled(workers, ray_units.Doubling(str(tmp_path / "none")), [])) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{n}.0" for n in range(20))


def test_a_unit_whose_worker_dies_is_answered_again_and_given_up_after_three_deaths(local_ray, tmp_path):
    with pool() as workers:
        once = ray_units.Doubling(str(tmp_path), deadly=3, deaths=1)
        assert sorted(doubled(workers, once, range(8))) == [2 * n for n in range(8)]
        assert len(list(tmp_path.glob("3.*"))) == 2
        (tmp_path / "b").mkdir()
        found = doubled(workers, ray_units.Doubling(str(tmp_path / "b"), deadly=3), range(8))
        (lost,) = [one for one in found if isinstance(one, Lost)]
        assert lost.unit == 3
        assert f"died {MOST_DEATHS} times" in lost.reason
        assert sorted(one for one in found if isinstance(one, int)) == [2 * n for n in range(8) if n != 3]
        # The result of the unit before it can be lost with the process, and then takes the blame for one death.
        assert MOST_DEATHS <= len(list((tmp_path / "b").glob("3.*"))) <= 2 * MOST_DEATHS


@pytest.mark.parametrize("first", [0, -1], ids=["the deadly one", "the one behind"])
def test_a_unit_that_waits_behind_a_deadly_one_is_not_blamed(local_ray, tmp_path, monkeypatch, first):
    """first: of two units that are lost together, the one whose loss is noticed first."""
    wait = ray.wait

    def in_this_order(references, **options):
        wait(references, num_returns=1)
        done, left = wait(references, num_returns=len(references), timeout=0.5)  # both are lost, or all done
        return [done[first]], left

    monkeypatch.setattr(ray, "wait", in_this_order)
    with pool(count=1) as workers:
        found = doubled(workers, ray_units.Doubling(str(tmp_path), deadly=0), range(3))
    assert [one.unit for one in found if isinstance(one, Lost)] == [0]
    assert sorted(one for one in found if isinstance(one, int)) == [2, 4]


def test_an_error_in_a_unit_names_itself_and_the_log(local_ray, tmp_path):
    with pool() as workers:
        found = doubled(workers, ray_units.Doubling(str(tmp_path), failing=2), range(4))
    (lost,) = [one for one in found if isinstance(one, Lost)]
    assert "ValueError: 2 fails" in lost.reason
    assert re.search(r"log: .*worker-\*-\d+\.err on node", lost.reason)
    assert len(found) == 4


@pytest.mark.parametrize(
    ("load_model", "text"),
    [(ray_units.broken, "there is no such model"), (ray_units.other, "differs in digest, tuned weights: give")],
)
def test_workers_that_cannot_start_end_the_command(local_ray, tmp_path, load_model, text):
    with pool(load_model) as workers, pytest.raises(RunError, match=text):
        doubled(workers, ray_units.Doubling(str(tmp_path)), range(4))


def test_a_worker_whose_model_differs_outside_of_the_last_network_is_refused(llama, tokenizer):
    identity = identity_of_model(FastMem(build("llama"), tokenizer))
    worker = functools.partial(Worker, identity=identity, threads=torch.get_num_threads())
    worker(lambda: FastMem(llama, tokenizer))
    with torch.no_grad():
        llama.model.layers[0].self_attn.q_proj.weight.view(-1)[0] += 1
    with pytest.raises(InputError, match=r"the worker has another model .* differs in sampled weights: give"):
        worker(lambda: FastMem(llama, tokenizer))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(model, experiment, data, the rows of one process) of a run with batches of two."""
    llm = FastMem.from_pretrained(device="cpu")
    data = load("world_swap", limit=8)
    experiment = Experiment("world_swap", ("base", "fastmem"), llm.recipe, batch_size=2, max_new_tokens=16)
    folder = tmp_path_factory.mktemp("one")
    run(llm, experiment, data, folder, workers=ThisProcess(llm))
    return llm, experiment, data, texts(folder)


def texts(folder):
    rows = read_rows(folder)
    found = {(row["id"], row["method"]): (row["text"], row["scores"], row["error"]) for row in rows}
    assert len(found) == len(rows)
    return found


def kill_once(workers):
    """A function for on_progress: after some rows it kills the worker that is first in the pool."""
    killed = []

    def on_progress(progress):
        if progress.rows >= 4 and not killed:
            killed.append(int(re.search(r"-(\d+)\.err", next(a.log for a in workers.actors if a.log))[1]))
            os.kill(killed[0], signal.SIGKILL)

    return on_progress


def test_a_run_is_the_same_when_a_worker_is_killed_and_goes_on_in_another_way(local_ray, undisturbed, tmp_path):
    llm, experiment, data, expected = undisturbed
    with pool(ray_units.embedded, identity=identity_of_model(llm)) as workers:
        summary = run(llm, experiment, data, tmp_path / "killed", kill_once(workers), workers)
    assert summary["complete"]
    assert texts(tmp_path / "killed") == expected
    rows = (tmp_path / "killed" / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "killed" / "rows.jsonl").write_text("".join(rows[:5]))
    run(llm, experiment, data, tmp_path / "killed")  # goes on in this process
    assert texts(tmp_path / "killed") == expected


def test_a_batch_that_is_given_up_has_rows_with_an_error(undisturbed, tmp_path):
    llm, experiment, data, expected = undisturbed

    class Losing(ThisProcess):
        def results(self, make, units):
            first, *others = units
            yield Lost(first, "its worker died 3 times (log: somewhere)")
            yield from super().results(make, others)

    summary = run(llm, experiment, data, tmp_path / "lost", workers=Losing(llm))
    found = texts(tmp_path / "lost")
    errors = {key: row[2] for key, row in found.items() if row[2]}
    assert set(errors.values()) == {"RunError: its worker died 3 times (log: somewhere)"}
    assert len(errors) == 4  # two examples, two methods
    assert all(found[key] == expected[key] for key in found if key not in errors)
    assert summary["complete"]
    assert summary["methods"]["base"]["errors"] == 2


def test_results_that_the_store_has_no_room_for_are_not_lost(local_ray):
    """Units and results of 24 MiB through a store of 100 MiB, and one larger than the store: Ray uses the disk."""
    with pool() as workers:
        for megabytes, count in ((24, 6), (128, 1)):
            units = ((number, b"x" * 2**20 * megabytes) for number in range(count))
            found = list(workers.results(functools.partial(ray_units.enlarging, megabytes=megabytes), units))
            assert sorted((number, len(data)) for number, data in found) == [
                (number, 2**20 * megabytes) for number in range(count)
            ]


def full_after(monkeypatch, rows):
    """From now on the disk is full after so many rows."""
    append, written = Appender.append, []

    def limited(self, record):
        if len(written) == rows:
            self._file.close()
            self._file = open("/dev/full", "w")  # noqa: SIM115 - closed by the appender
        append(self, record)
        written.append(record)

    monkeypatch.setattr(Appender, "append", limited)


def test_a_full_disk_ends_the_command_and_the_run_goes_on(local_ray, undisturbed, fastmem, tmp_path, monkeypatch):
    *_, expected = undisturbed
    said = {}
    for name, how in (("alone", ()), ("workers", ("--workers", "1", "--cpus-per-worker", "1"))):
        with monkeypatch.context() as patched:
            full_after(patched, 5)
            said[name] = refusal(fastmem(*EVAL, "--output", tmp_path / name, "--quiet", *how))
        assert f"the disk of {tmp_path / name / 'rows.jsonl'} is full: what was finished is kept" in said[name]
        assert len(texts(tmp_path / name)) == 5
    assert said["workers"].replace("workers/rows", "alone/rows") == said["alone"]
    assert fastmem(*EVAL, "--output", tmp_path / "workers").code == 0
    assert texts(tmp_path / "workers") == expected


@pytest.fixture
def policies(tmp_path):
    """A folder of four documents: two short ones, one of several parts, and one that is empty."""
    folder = tmp_path / "policies"
    (folder / "hr").mkdir(parents=True)
    (folder / "a.txt").write_text("Bo Lind is the mayor of Tarn.")
    (folder / "b.txt").write_text("Ana Silva is the captain of the ship. " * 20)
    (folder / "hr" / "c.md").write_text("Everyone has thirty days of leave.")
    (folder / "d.txt").write_text(" ")
    return folder


@pytest.fixture
def one_thread():
    """The sums of a matrix product depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def memory_bytes(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def listed(said, folder):
    """The JSON of a command, without what may differ."""
    rows = [row | {"file": Path(row["file"]).relative_to(folder).as_posix()} for row in said.json["memories"]]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows], said.json["skipped"]


def test_workers_write_the_same_memories(local_ray, fastmem, policies, one_thread, tmp_path):
    call = ("memorize", "--documents", policies, "--steps", "2", "--part-tokens", "40", "--store", "int8", "--json")
    with_workers = ("--workers", "2", "--cpus-per-worker", "1")
    alone = fastmem(*call, "--output", tmp_path / "alone")
    workers = fastmem(*call, "--output", tmp_path / "workers", *with_workers)
    assert (alone.code, workers.code) == (0, 0)
    expected = memory_bytes(tmp_path / "alone")
    assert set(expected) > {"a.txt.safetensors", "b.txt.part-1.safetensors", "b.txt.part-2.safetensors"}
    assert memory_bytes(tmp_path / "workers") == expected
    assert listed(workers, tmp_path / "workers") == listed(alone, tmp_path / "alone")
    assert [name["source"] for name in workers.json["skipped"]] == ["d.txt"]


class TwoWorkers:
    """Answers the last unit first, and gives up the units of one document."""

    count = 2

    def __init__(self, llm, lost):
        self.llm, self.lost = llm, lost

    def results(self, make, units):
        answer = pickle.loads(pickle.dumps(make))(self.llm)
        for unit in reversed(list(units)):
            if unit.document == self.lost:
                yield Lost(unit, "its worker died 3 times while it was answered (log: somewhere)")
            else:
                logging.disable()  # what a worker logs is not seen
                results = list(answer(unit))
                logging.disable(logging.NOTSET)
                yield from pickle.loads(pickle.dumps(results))


@pytest.fixture
def two_workers(undisturbed, monkeypatch):
    """`two_workers(lost)`: from now on commands work with them. lost: the number of the document that is given up."""
    monkeypatch.setattr(WorkerFlags, "check", lambda _: None)
    return lambda lost=None: monkeypatch.setattr(
        WorkerFlags, "opened", lambda *_: nullcontext(TwoWorkers(undisturbed[0], lost))
    )


def test_documents_are_listed_in_their_order_and_one_that_is_given_up_stops_no_other(
    two_workers, fastmem, policies, tmp_path
):
    two_workers(lost=1)
    files = [policies / "a.txt", policies / "b.txt", policies / "hr" / "c.md"]
    call = ("memorize", *files, "-o", tmp_path / "m", "--workers", "2", "--steps", "2", "--learning-rate", "1e-7")
    said = fastmem(*call)
    assert said.code == 2
    assert [line.split("  ")[0] for line in said.out.splitlines()] == ["a.safetensors", "c.safetensors"]
    assert said.err.splitlines()[-2:] == [
        f"error: {files[1]}: its worker died 3 times while it was answered (log: somewhere)",
        "error: 1 of 3 documents were not memorized: see above.",
    ]
    assert said.err.count("memorizing had almost no effect") == 1
    again = fastmem(*call, "--json").json
    assert [(row["source"], row["kept"]) for row in again["memories"]] == [
        (str(files[0]), True),
        (str(files[2]), True),
    ]
    assert [row["source"] for row in again["failed"]] == [str(files[1])]


def test_memories_that_find_no_room_on_the_disk_are_named(two_workers, fastmem, policies, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    call = ("memorize", "--documents", policies, "--output", tmp_path / "m", "--steps", "1", "--part-tokens", "40")
    said = {}
    for name, how in (("alone", ()), ("workers", ("--workers", "2"))):
        if name == "alone":
            monkeypatch.setattr(WorkerFlags, "opened", lambda _, __, llm: nullcontext(ThisProcess(llm)))
        else:
            two_workers()
        with monkeypatch.context() as patched:
            patched.setattr("os.fsync", full)
            said[name] = fastmem(*call, *how)
        assert memory_bytes(tmp_path / "m") == {}
    assert said["workers"].code == said["alone"].code == 2
    lines = said["workers"].err.splitlines()
    assert [line.partition(": memory file")[0] for line in lines[:3]] == [
        f"error: {name}" for name in ("a.txt", "b.txt", "hr/c.md")
    ]
    assert all("cannot be written (No space left on device)" in line for line in lines[:3])
    assert [lines[0], *lines[2:]] == [line for line in said["alone"].err.splitlines() if "b.txt" not in line]
    assert fastmem(*call, "--workers", "2").code == 0


def test_the_progress_of_all_workers_is_one_line(two_workers, fastmem, policies, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    two_workers()
    call = ("memorize", policies / "a.txt", policies / "hr" / "c.md", "--workers", "2", "--steps", "1")
    shown = [line.removeprefix("\x1b[K") for line in fastmem(*call, "-o", tmp_path / "m").err.split("\r")]
    numbers = [line.partition(" s")[0].rpartition(", ")[0] for line in shown if "documents" in line]
    assert list(dict.fromkeys(numbers)) == [
        "0 of 2 documents, 0 memories made, 2 workers",
        "1 of 2 documents, 1 memories made, 2 workers",
        "2 of 2 documents, 2 memories made, 2 workers",
    ]


def test_what_is_refused_before_anything_is_loaded(capsys, tmp_path, monkeypatch):
    fastmem = Runner(capsys)
    command = ("eval", "--task", "world", "--output", tmp_path / "out")
    assert "--ray needs --workers N" in refusal(fastmem(*command, "--ray", "auto"))
    assert "--gpus-per-worker needs --workers N" in refusal(fastmem(*command, "--gpus-per-worker", "1"))
    assert "workers" in refusal(fastmem(*command, "--workers", "0"))
    many = ("--workers", "2", "--gpus-per-worker")
    assert "give a whole number, or a part of one GPU" in refusal(fastmem(*command, *many, "1.5"))
    with pytest.raises(InputError, match="a worker counts its own GPUs from 0: give --device cuda"):
        WorkerFlags(workers=2).driver(ModelFlags(device="cuda:1"))
    assert WorkerFlags(workers=2).driver(ModelFlags(device="cuda:0")).device == "cpu"
    memorize = ("memorize", "policy.txt", "--output", tmp_path / "out")
    assert "--ray needs --workers N" in refusal(fastmem(*memorize, "--ray", "auto"))
    monkeypatch.setattr("fastmem.extras.find_spec", lambda name: None)
    for each in (command, memorize):
        said = refusal(fastmem(*each, "--workers", "2"))
        assert said == "--workers needs ray: pip install 'fastmem[ray]'."
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("device", "given", "cuda", "expected"),
    [
        (None, None, True, 1.0),
        (None, None, False, 0.0),
        ("cuda", None, False, 1.0),  # the workers may be on another machine
        ("cuda:0", None, True, 1.0),
        ("cpu", None, True, 0.0),
        (None, 0.5, True, 0.5),
        ("cuda", 0.0, True, 0.0),
        ("cpu", 2.0, False, 2.0),
    ],
)
def test_how_many_gpus_a_worker_gets(monkeypatch, device, given, cuda, expected):
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    assert WorkerFlags(workers=2, gpus_per_worker=given).gpus(device) == expected


@pytest.mark.parametrize(
    ("count", "gpus", "present", "fitting"),
    [(2, 0, 0, None), (2, 1, 2, None), (4, 0.5, 2, None), (2, 1, 0, 0), (5, 0.4, 2, 4), (3, 2, 5, 2)],
)
def test_more_gpus_than_this_machine_has_are_refused(count, gpus, present, fitting):
    if fitting is None:
        require_gpus(count, gpus, present)
    else:
        with pytest.raises(InputError, match=f"this machine has {present}, which are enough for {fitting}"):
            require_gpus(count, gpus, present)


def test_gpus_that_this_machine_does_not_have_are_refused():
    if ray.is_initialized():
        ray.shutdown()
    with (
        pytest.raises(InputError, match="this machine has 0, which are enough for 0"),
        ray_workers(ray_units.stub, STUB, count=1, address=None, cpus=1, gpus=1),
    ):
        pass
    assert not ray.is_initialized()


def test_an_address_without_a_cluster_is_refused(tmp_path):
    if ray.is_initialized():
        ray.shutdown()
    with (
        pytest.raises(InputError, match=r"nobody listens at '127\.0\.0\.1:1'"),
        ray_workers(ray_units.stub, STUB, count=1, address="127.0.0.1:1", cpus=1, gpus=0),
    ):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("how", [("--workers", "2", "--cpus-per-worker", "1"), ()], ids=["workers", "alone"])
def test_a_command_that_is_killed_goes_on(how, undisturbed, tmp_path):
    """SIGKILL in the middle of `eval --workers 2`; then the same command, or one without workers."""
    *_, expected = undisturbed
    command = [sys.executable, "-m", "fastmem.cli", *EVAL, "--output", str(tmp_path / "out")]
    rows = tmp_path / "out" / "rows.jsonl"
    with subprocess.Popen([*command, "--workers", "2", "--cpus-per-worker", "1"], stderr=subprocess.PIPE) as process:
        while process.poll() is None and not (rows.is_file() and rows.read_text().count("\n") >= 4):
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL, "it was done before it was killed"
    before = rows.read_text().count("\n")
    assert 4 <= before < len(expected)
    done = subprocess.run([*command, *how], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert texts(tmp_path / "out") == expected
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["complete"]


@pytest.mark.slow
def test_a_store_and_a_disk_that_are_full_end_the_command(tmp_path):
    """Ray takes every disk for full. Units that fit one after another are answered, one that never fits is not."""
    if ray.is_initialized():
        ray.shutdown()
    start_ray(store_mib=80, _system_config={"local_fs_capacity_threshold": 0.0})
    try:
        units = [(number,) for number in range(12)]
        with pool() as workers:
            found = list(workers.results(functools.partial(ray_units.enlarging, megabytes=30), units))
            assert sorted(number for number, _ in found) == list(range(12))
            with pytest.raises(RunError, match="its object store is full, and so is the disk"):
                list(workers.results(functools.partial(ray_units.enlarging, megabytes=200), units))
            with pytest.raises(RunError, match="its object store is full, and so is the disk"):
                list(workers.results(functools.partial(ray_units.enlarging, megabytes=1), [(0, b"x" * 200 * 2**20)]))
    finally:
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(20))
def test_nodes_that_are_killed_cost_no_row(attempt, undisturbed, tmp_path):
    """Three nodes; two raylets are killed in the middle, and a node joins late."""
    from ray.cluster_utils import Cluster

    llm, experiment, data, expected = undisturbed
    paths = os.pathsep.join([TESTS, str(Path(TESTS).parent / "src")])
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    nodes = [cluster.add_node(**node) for _ in range(2)]
    ray.init(
        cluster.address, log_to_driver=False, logging_level="ERROR", runtime_env={"env_vars": {"PYTHONPATH": paths}}
    )
    try:
        left = list(nodes)

        def on_progress(progress):
            if left and progress.rows >= 4 * (3 - len(left)):
                cluster.remove_node(left.pop(), allow_graceful=False)
                if not left:
                    cluster.add_node(**node)

        with pool(ray_units.embedded, count=3, identity=identity_of_model(llm)) as workers:
            run(llm, experiment, data, tmp_path / "out", on_progress, workers)
        assert texts(tmp_path / "out") == expected
        assert json.loads((tmp_path / "out" / "summary.json").read_text())["complete"]
        assert not left
    finally:
        ray.shutdown()
        cluster.shutdown()
