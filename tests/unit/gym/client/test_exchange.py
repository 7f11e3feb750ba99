"""Retries of requests. No I/O."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym.client.exchange import Disconnected, Flow, Request, Response, RetryPolicy, error_of, with_retries
from gym.config import WorkerSettings
from gym.errors import FarmError, NotFound, Overloaded, RequestError, Unavailable

ASK = Request(method="GET", path="/v1/x")


def flow(request: Request) -> Flow[Any]:
    response = yield request
    return response.json()


def play(request: Request, *answers: Response | Disconnected, retries: int = 3) -> tuple[Any, list[Request]]:
    attempts = with_retries(flow(request), RetryPolicy(retries=retries), random.Random(0))
    asked = [next(attempts)]
    try:
        for answer in answers:
            asked.append(attempts.send(answer))  # noqa: PERF401  inside a generator StopIteration is an error
    except StopIteration as end:
        return end.value, asked
    raise AssertionError("it asks for more than was played")


OK = Response(status=200, body=b"7")
LOST = Disconnected(reason="lost", sent=True)


def test_an_answer_after_trouble_is_the_result() -> None:
    result, asked = play(ASK, LOST, Response(status=503, body=b""), OK)
    assert result == 7
    assert len(asked) == 3
    assert asked[0].after_s == 0
    assert all(request.after_s > 0 for request in asked[1:])


def test_a_pause_is_never_shorter_than_the_farm_asked_for_and_never_endless() -> None:
    chance = random.Random(1)
    assert RetryPolicy().pause_s(0, retry_after="7", chance=chance) == 7
    assert RetryPolicy().pause_s(0, retry_after="86400", chance=chance) == 60
    assert RetryPolicy().pause_s(0, retry_after="Wed, 21 Oct 2026 07:28:00 GMT", chance=chance) < 1


@given(attempt=st.integers(0, 60), seed=st.integers())
def test_pauses_grow_with_jitter_under_a_ceiling(attempt: int, seed: int) -> None:
    policy = RetryPolicy(first_s=0.25, most_s=10)
    ceiling = min(10, 0.25 * 2**attempt)
    pause_s = policy.pause_s(attempt, retry_after=None, chance=random.Random(seed))
    assert ceiling / 2 <= pause_s <= ceiling


def test_what_must_not_be_repeated_is_repeated_only_where_it_cannot_have_arrived() -> None:
    once = Request(method="POST", path="/v1/x", repeatable=False)
    never_sent = Disconnected(reason="refused", sent=False)
    assert play(once, never_sent, Response(status=429, body=b""), OK)[0] == 7
    for answer in (LOST, Response(status=503, body=b"")):
        with pytest.raises(Unavailable):
            play(once, answer)


def test_a_refusal_is_not_asked_again() -> None:
    body = b'{"error": {"code": "batch_not_found", "message": "none", "details": {"batch_id": "b"}}}'
    with pytest.raises(NotFound) as caught:
        play(ASK, Response(status=404, body=body))
    assert (caught.value.code, caught.value.message, caught.value.details) == (
        "batch_not_found",
        "none",
        {"batch_id": "b"},
    )


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"error": "text"}', b'{"detail": "x"}', b"", b"3"])
def test_an_answer_that_is_not_the_farms_still_becomes_an_error(body: bytes) -> None:
    error = error_of(Response(status=418, body=body), "GET /v1/x")
    assert type(error) is RequestError
    assert error.code == "http_418"
    assert "GET /v1/x" in error.message


def test_an_overload_carries_when_to_come_back() -> None:
    error = error_of(Response(status=429, body=b"", retry_after="4"), "GET /v1/x")
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == 4


def test_an_answer_that_is_not_json_is_an_error_of_the_tree() -> None:
    with pytest.raises(FarmError, match="is this the farm's address"):
        play(ASK, Response(status=200, body=b"<html>"))


class Clock:
    """Clock that advances as the requests say."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def until_given_up(answer: Response | Disconnected, policy: RetryPolicy, clock: Clock) -> int:
    """Return how often a request is sent if every response is this one."""
    attempts = with_retries(flow(ASK), policy, random.Random(0))
    asked = 1
    request = next(attempts)
    try:
        while True:
            clock.now += request.after_s
            request = attempts.send(answer)
            asked += 1
    except Unavailable:
        return asked


FARM_ERROR = b'{"error": {"code": "%s", "message": "m", "details": {}}}'


@pytest.mark.parametrize("status", [500, 501, 502, 503, 504, 520, 599])
@pytest.mark.parametrize("body", [b"Internal Server Error", b"<html>bad gateway", b"", FARM_ERROR % b"shutting_down"])
def test_any_error_of_a_server_that_may_pass_is_asked_again(status: int, body: bytes) -> None:
    assert play(ASK, Response(status=status, body=body), OK)[0] == 7


def test_an_error_of_the_farms_own_that_stays_is_not_asked_again() -> None:
    with pytest.raises(Unavailable) as caught:
        play(ASK, Response(status=500, body=FARM_ERROR % b"internal"))
    assert caught.value.code == "internal"


@pytest.mark.parametrize("answer", [LOST, Disconnected(reason="refused", sent=False), Response(status=503, body=b"")])
def test_a_request_is_repeated_for_longer_than_a_farm_takes_to_drain_and_start(answer: Any) -> None:
    clock = Clock()
    policy = RetryPolicy(clock=clock)
    until_given_up(answer, policy, clock)
    assert clock.now == pytest.approx(policy.budget_s)
    assert policy.budget_s >= 4 * WorkerSettings().drain_s


def test_the_budget_of_a_request_counts_from_its_first_failure() -> None:
    clock = Clock()
    policy = RetryPolicy(clock=clock, budget_s=5)
    attempts = with_retries(flow(ASK), policy, random.Random(0))
    next(attempts)
    clock.now = 60.0  # a long poll
    assert attempts.send(LOST).after_s > 0


def test_a_client_that_asks_again_says_so_once_it_has_taken_a_while(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    until_given_up(LOST, RetryPolicy(clock=clock, budget_s=1.5), clock)
    assert caplog.text == ""
    until_given_up(LOST, RetryPolicy(clock=clock, budget_s=30), clock)
    assert len(caplog.records) == 1
    assert "retrying the request for up to" in caplog.text
    assert "lost" in caplog.text
