"""How long `/health` takes while a server gets the worst it accepts and the worst it refuses.

    python -m bench.serving_health --seconds 60 --runs 3

`/health` is asked at a fixed rate, whatever the server does: a request that is late because the one before it was slow
counts from when it was due. Runs without and with the attackers of `serving_attackers.py` alternate, each with a
server of its own. Human-readable lines go to standard error; the last line of standard output is one JSON object.
"""

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.serving_process import Server

ATTACKERS = Path(__file__).parent / "serving_attackers.py"


def probe(port: int, seconds: float, rate: float) -> list[float]:
    """Seconds from when each request was due to its answer. Errors: `SystemExit` for any other answer than 200."""
    connection, found = http.client.HTTPConnection("127.0.0.1", port, timeout=60), []
    started = time.perf_counter()
    for number in range(int(seconds * rate)):
        due = started + number / rate
        time.sleep(max(due - time.perf_counter(), 0))
        connection.request("GET", "/health")
        response = connection.getresponse()
        response.read()
        if response.status != 200:
            raise SystemExit(f"/health answered with {response.status}")
        found.append(time.perf_counter() - due)
    return found


def attackers(url: str, seconds: float, *options: str) -> subprocess.Popen:
    """The two attackers, running."""
    command = [sys.executable, str(ATTACKERS), url, "--seconds", str(seconds), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def run(seconds: float, rate: float, attacked: bool) -> dict:
    """One run with a server of its own. Times in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(["--name", "bench", "--template", "question", "--disk-bytes", "200000000"], Path(folder))
        try:
            process = attackers(server.url, seconds) if attacked else None
            found = sorted(1e3 * one for one in probe(server.port, seconds, rate))
            sent = json.loads(process.communicate()[0]) if process is not None else None
        finally:
            server.stop()
    cuts = statistics.quantiles(found, n=1000, method="inclusive")
    return {"p50": cuts[499], "p99": cuts[989], "most": found[-1], "requests": len(found), "attacks": sent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, default=20, help="requests per second")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    runs: dict[str, list[dict]] = {"quiet": [], "attacked": []}
    for number in range(options.runs):
        for name, found in runs.items():
            found.append(run(options.seconds, options.rate, name == "attacked"))
            one = found[-1]
            text = f"run {number + 1}, {name}: p50 {one['p50']:.1f}, p99 {one['p99']:.1f}, most {one['most']:.1f} ms"
            print(text, file=sys.stderr, flush=True)
    median = {name: statistics.median(one["p99"] for one in found) for name, found in runs.items()}
    print(f"median p99: quiet {median['quiet']:.1f} ms, attacked {median['attacked']:.1f} ms", file=sys.stderr)
    print(json.dumps({"median_p99_ms": median, "runs": runs}), flush=True)


if __name__ == "__main__":
    main()
