"""Pages of results, assembled without parsing the records again."""

from __future__ import annotations

import time
from array import array

import msgpack
import orjson
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from api.routes.results import answer_type, items_json, result_lines
from gym.results.record import add_trajectory, pack_page, pack_record, pack_trajectory, pack_with_trajectory
from gym.state.ledger.results import LogPage, View, gather_s
from gym.trajectory import Segment, StepTaken

RECORD = orjson.dumps({"rollout_id": "b:0:0", "reward": 1.0})
ROW = orjson.dumps({"responses_create_params": {"input": "hi"}})
SEGMENT = Segment(
    token_ids=array("i", [1, 70000]),
    loss_mask=bytearray([0, 1]),
    logprobs=array("f", [0.0, -0.5]),
    policy_versions=[(0, 2, 7)],
)
STEP = StepTaken(turn=0, action={"go": 1}, reward=0.5, done=False)
PACKED = pack_trajectory({"id": "resp"}, [{"call": 1}], [SEGMENT])


def test_a_page_is_its_records_and_the_cursor() -> None:
    page = LogPage([b'{"a":1}', b'{"a":2}'], ["1-0", "2-0"], "2-0", done=False)
    assert orjson.loads(items_json(page.records, next_after=page.next_after, done=page.done)) == {
        "items": [{"a": 1}, {"a": 2}],
        "next_after": "2-0",
        "done": False,
    }
    assert orjson.loads(items_json([], done=True))["items"] == []


def test_packed_segments_are_little_endian_arrays() -> None:
    record = pack_with_trajectory(RECORD, PACKED, ROW, full=False)
    page = msgpack.unpackb(pack_page([record, pack_record(RECORD)], next_after="9-1", done=True))
    assert (page["next_after"], page["done"]) == ("9-1", True)
    [first, second] = page["items"]
    assert second == orjson.loads(RECORD)
    [segment] = first["segments"]
    assert segment == {
        "token_ids": b"\x01\0\0\0\x70\x11\x01\0",
        "loss_mask": b"\0\1",
        "logprobs": b"\0\0\0\0\0\0\0\xbf",
        "policy_versions": [[0, 2, 7]],
    }


def test_json_segments_are_lists_and_the_full_view_adds_the_conversation() -> None:
    training = orjson.loads(add_trajectory(RECORD, PACKED, ROW, full=False))
    assert training["segments"][0]["token_ids"] == [1, 70000]
    assert "response" not in training
    full = orjson.loads(add_trajectory(RECORD, PACKED, ROW, full=True))
    assert full["response"] == {"id": "resp"}
    assert full["responses_create_params"] == {"input": "hi"}


def test_a_rollout_without_a_trajectory_has_no_segments() -> None:
    assert orjson.loads(add_trajectory(RECORD, None, ROW, full=True))["segments"] == []
    assert msgpack.unpackb(pack_with_trajectory(RECORD, None, ROW, full=False))["segments"] == []


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("text/html, application/x-ndjson;q=0.9", "application/x-ndjson"),
        ("application/json, application/x-ndjson", "application/json"),
        ("Application/MsgPack", "application/msgpack"),
    ],
)
def test_the_first_type_that_can_be_given_is_given(accept: str, expected: str) -> None:
    assert answer_type(accept) == expected


class PlayedResults:
    """Result log with predetermined pages; an error among them is raised."""

    def __init__(self, *pages: LogPage | Exception) -> None:
        self._pages = list(pages)

    async def wait(self, batch_id: str, *, after: str | None, timeout_s: float) -> None:
        """Return at once."""

    async def page(self, batch_id: str, **_: object) -> LogPage:
        page = self._pages.pop(0)
        if isinstance(page, Exception):
            raise page
        return page


def quiet(*, done: bool = False) -> LogPage:
    return LogPage([], [], "1-0", done)


async def lines_of(*pages: LogPage | Exception, heartbeat_s: float = 60) -> list[bytes]:
    results = PlayedResults(*pages)
    first = LogPage([b'{"a":1}', b'{"a":2}'], ["1-0", "2-0"], "2-0", done=False)
    stream = result_lines(results, "b", first, View.LIGHT, heartbeat_s=heartbeat_s)  # type: ignore[arg-type]  # played
    return [piece async for piece in stream]


@pytest.mark.anyio
async def test_while_nothing_happens_an_empty_line_keeps_the_connection() -> None:
    first = b'{"a":1}\n{"a":2}\n'
    assert await lines_of(quiet(), quiet(), quiet(done=True), heartbeat_s=0) == [first, b"\n", b"\n", b"\n"]
    assert await lines_of(quiet(), quiet(done=True)) == [first]


@pytest.mark.anyio
async def test_a_stream_outlives_a_moment_without_redis_but_not_a_mistake() -> None:
    last = LogPage([b'{"a":3}'], ["3-0"], "3-0", done=True)
    assert (await lines_of(RedisConnectionError("away"), last, heartbeat_s=0))[-1] == b'{"a":3}\n'
    with pytest.raises(ResponseError):
        await lines_of(ResponseError("ERR wrong"), last)


def test_only_a_reader_right_behind_a_busy_feed_waits_for_more() -> None:
    now_ms = time.time_ns() // 1_000_000
    assert gather_s(f"{now_ms}-0") > 0
    assert gather_s(f"{now_ms - 1000}-3") == 0
    assert gather_s(None) == gather_s("no cursor") == gather_s("0-0") == 0


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_page_of_any_number_of_records_is_json(count: int) -> None:
    assert orjson.loads(items_json([b'{"a":1}'] * count, done=True)) == {"items": [{"a": 1}] * count, "done": True}


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("params", [None, {"input": "another"}])
def test_packed_fields_are_those_of_the_json_view(full: bool, params: dict[str, str] | None) -> None:
    stored = pack_trajectory({"id": "resp"}, [{"call": 1}], [SEGMENT], [STEP], params=params)
    packed = msgpack.unpackb(pack_with_trajectory(RECORD, stored, ROW, full=full))
    shown = orjson.loads(add_trajectory(RECORD, stored, ROW, full=full))
    assert packed.pop("segments")[0]["token_ids"] == SEGMENT.token_ids.tobytes()
    assert shown.pop("segments")[0]["token_ids"] == SEGMENT.token_ids.tolist()
    assert packed == shown
    assert packed["steps"][0]["action"] == {"go": 1}
