"""Readers of leases and events, with predetermined responses of the farm."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gym.client.exchange import Flow, Request, Response
from gym.client.feed import EventReader, group_leases, rollout_leases
from gym.client.records import read_events, read_result
from gym.errors import FarmError, NotFound


def item(row: int, sample: int = 0) -> dict[str, Any]:
    return {
        "rollout_id": f"b:{row}:{sample}", "batch_id": "b", "group_id": f"b:{row}", "task_id": "t",
        "sample_index": sample, "environment": "weather", "outcome": "succeeded",
    }  # fmt: skip


def leased(*items: dict[str, Any], done: bool = False) -> bytes:
    return orjson.dumps({"lease_id": "l1", "items": items, "expires_at": None, "done": done})


def play(flow: Flow[Any], *answers: bytes) -> tuple[list[Request], Any]:
    """Return the requests of a flow, and its result."""
    requests: list[Request] = []
    waiting = list(answers)
    try:
        request = next(flow)
        while True:
            requests.append(request)
            request = flow.send(Response(status=200, body=waiting.pop(0)))
    except StopIteration as end:
        return requests, end.value


def asked(request: Request) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(b"".join(request.body))
    return found


ACKNOWLEDGED = orjson.dumps({"acknowledged": 1})


def test_a_lease_that_was_used_up_is_acknowledged_before_the_next_one() -> None:
    reader = rollout_leases("b", "c", most=2, ttl_s=9, view="training")
    [first], results = play(reader.next(5.0), leased(item(0), item(1)))
    assert first.query == {"view": "training", "wait": 5.0}
    assert {name: asked(first)[name] for name in ("consumer", "max", "ttl_s", "unit")} == {
        "consumer": "c", "max": 2, "ttl_s": 9, "unit": "rollout",
    }  # fmt: skip
    for result in results:
        reader.used(result)
    [ack, second], _ = play(reader.next(5.0), ACKNOWLEDGED, leased(done=True))
    assert asked(ack) == {"consumer": "c", "lease_id": "l1"}
    assert asked(second)["lease_id"] != asked(first)["lease_id"]
    assert reader.done


def test_leaving_in_the_middle_acknowledges_what_was_used_up() -> None:
    reader = rollout_leases("b", "c", most=3, ttl_s=9, view="light")
    _, results = play(reader.next(0.0), leased(item(0), item(1), item(2)))
    reader.used(results[0])
    [ack], _ = play(reader.leave(), ACKNOWLEDGED)
    assert asked(ack) == {"consumer": "c", "lease_id": "l1", "rollout_ids": ["b:0:0"]}
    assert play(reader.leave()) == ([], None)


def test_groups_are_read_and_named_whole() -> None:
    reader = group_leases("b", "c", most=2, ttl_s=9, view="light")
    _, groups = play(reader.next(0.0), leased(item(0, 0), item(0, 1), item(3, 0), item(3, 1)))
    assert [[result.rollout_id for result in group] for group in groups] == [["b:0:0", "b:0:1"], ["b:3:0", "b:3:1"]]
    reader.used(groups[1])
    [ack], _ = play(reader.leave(), ACKNOWLEDGED)
    assert asked(ack)["rollout_ids"] == ["b:3:0", "b:3:1"]


def batch(state: str, ended_at: str | None) -> bytes:
    data = orjson.dumps({"state": state, "sealed": True, "ended_at": ended_at})
    return b"event: batch\ndata: " + data + b"\n\n"


def test_states_that_were_told_are_passed_over_and_the_cursor_follows_what_was_used_up() -> None:
    reader = EventReader("b", after=None)
    rollout = b'event: rollout\nid: 7-0\ndata: {"a": 1}\n\n'
    ledger = b'event: ledger\ndata: {"queued": 1}\n\n'
    [first], events = play(reader.next(9.0), batch("running", None) + b": nothing\n\n" + rollout + ledger)
    assert dict(first.query) == {"wait": 9.0}
    assert [event.kind for event in events] == ["batch", "rollout", "ledger"]
    for event in events:
        reader.used(event)
    assert reader.after == "7-0"
    [second], events = play(reader.next(9.0), batch("running", None) + ledger)
    assert (second.query["after"], events, reader.done) == ("7-0", [], False)
    _, [last] = play(reader.next(9.0), ledger + batch("done", "2026-01-01T00:00:00.000Z"))
    assert (last.kind, reader.done) == ("batch", True)


def test_an_event_that_is_no_json_is_an_error_of_the_farm() -> None:
    with pytest.raises(FarmError, match="an event"):
        read_events(b"event: batch\ndata: {\n\n")


def test_a_trajectory_that_was_dropped_is_never_an_empty_one() -> None:
    dropped = {"reason": "size", "at": "2026-01-01T00:00:00.000Z"}
    result = read_result(item(0) | {"segments": None, "response": None, "trajectory_dropped": dropped})
    with pytest.raises(NotFound, match=r"dropped at 2026.*\(size\)"):
        _ = result.segments
    with pytest.raises(NotFound, match="dropped"):
        _ = result.response
