"""A client that is refused again and again waits ever longer; others do not."""

import pytest

from fastmem.serve.limits import Limits
from fastmem.serve.refusal_pace import LONGEST_WAIT_SECONDS, RESERVED_SECONDS, RefusalPace
from serving import DOCUMENTS, ask, closing_apps, make_llm, web


@pytest.fixture
def serve():
    with closing_apps(make_llm()) as make:
        yield make


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_refusals_take_no_more_than_their_share():
    """A client that asks again as soon as it may: each of its refusals takes 2 ms of work."""
    clock = Clock()
    pace = RefusalPace(0.1, free_seconds=1.0, clock=clock)
    worked = 0.0
    while clock.now < 160.0:
        clock.now += pace.wait("flood")
        reserved = pace.begin("flood")
        clock.now += 0.002
        worked += 0.002
        pace.end("flood", reserved, 0.002)
        assert pace.wait("another") == 0.0
    assert worked / 60.0 == pytest.approx(0.1, rel=0.05)


def test_accepted_requests_and_few_refusals_cost_no_wait():
    clock = Clock()
    pace = RefusalPace(0.1, free_seconds=1.0, clock=clock)
    for number in range(1000):
        assert pace.wait("a") == 0.0
        pace.end("a", pace.begin("a"), 0.002 if number % 20 == 0 else 0.0)
        clock.now += 0.002
    clock.now += 1000.0
    assert pace._debt("a") == 0.0


def test_many_requests_at_once_are_read_one_after_the_other_and_then_refused_unread():
    clock = Clock()
    pace = RefusalPace(0.1, free_seconds=1.0, clock=clock)
    pace.end("a", pace.begin("a"), 0.11)
    waits = []
    while (wait := pace.wait("a")) is not None:
        pace.begin("a")
        waits.append(wait)
    assert waits[1] - waits[0] == pytest.approx(RESERVED_SECONDS / 0.1)
    assert len(waits) == pytest.approx(LONGEST_WAIT_SECONDS * 0.1 / RESERVED_SECONDS, abs=1)
    clock.now += 60.0
    assert pace.wait("a") == 0.0


def test_a_flood_of_one_key_is_refused_and_the_other_key_served(serve):
    app = serve(api_keys=["flood", "other"], limits=Limits(refused_share=1e-6))
    flood = {"authorization": "Bearer flood"}
    other = {"authorization": "Bearer other"}
    assert ask(app, {"n": 0}, **flood).status_code == 400  # a thousandth of a second, a thousand seconds of debt
    refused = ask(app, {"documents": DOCUMENTS}, **flood)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "10")
    assert refused.json()["error"]["code"] == "too_many_refused"
    assert ask(app, {"max_tokens": 1}, **other).status_code == 200
    assert web(app, authorization="Bearer wrong").get("/v1/models").status_code == 401
    assert web(app).get("/v1/models").status_code == 429
    assert web(app).get("/health").status_code == 200
