"""Request bodies within their limits, plain and compressed."""

from __future__ import annotations

import asyncio
import gzip

import pytest
from fastapi import Request
from hypothesis import given
from hypothesis import strategies as st

from api.bodies import JSON_TYPES, NDJSON_TYPES, body_stream, check_content_type, parse_object, read_body
from gym.errors import Invalid, Malformed, RequestError, TooLarge, UnsupportedMedia

pytestmark = pytest.mark.anyio


def request(*pieces: bytes, **headers: str) -> Request:
    left = list(pieces)

    async def receive() -> dict[str, object]:
        piece = left.pop(0) if left else b""
        return {"type": "http.request", "body": piece, "more_body": bool(left)}

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw}, receive)


async def test_a_gzip_body_is_unpacked_wherever_it_is_cut() -> None:
    packed = gzip.compress(b"one ") + gzip.compress(b"two")
    pieces = [packed[at : at + 7] for at in range(0, len(packed), 7)]
    assert await read_body(request(*pieces, content_encoding="gzip"), 100) == b"one two"


async def test_a_body_is_refused_by_its_declared_length_and_by_its_real_one() -> None:
    for asked in (request(b"", content_length="11"), request(b"123456", b"789012")):
        with pytest.raises(TooLarge) as caught:
            await read_body(asked, 10)
        assert caught.value.details["limit_bytes"] == 10


async def test_what_a_gzip_body_unpacks_to_counts() -> None:
    with pytest.raises(TooLarge):
        await read_body(request(gzip.compress(b"x" * 10_000), content_encoding="gzip"), 1000)


async def test_a_gzip_bomb_is_refused_although_any_length_is_allowed() -> None:
    bomb = gzip.compress(b"\n" * (80 * 2**20), compresslevel=9)
    with pytest.raises(TooLarge, match="200 times"):
        await read_body(request(bomb, content_encoding="gzip"), 2**40)


@pytest.mark.parametrize("packed", [gzip.compress(b"hello", mtime=0)[:-4], b"not gzip at all"])
async def test_a_broken_gzip_body_is_malformed(packed: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        await read_body(request(packed, content_encoding="gzip"), 100)
    assert caught.value.code == "malformed_gzip"


async def test_a_sender_that_falls_silent_is_given_up() -> None:
    pieces = [{"type": "http.request", "body": b"one", "more_body": True}]

    async def receive() -> dict[str, object]:
        if pieces:
            return pieces.pop()
        await asyncio.Event().wait()
        raise AssertionError

    asked = Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)
    with pytest.raises(Malformed) as caught:
        assert [piece async for piece in body_stream(asked, stall_s=0.01)] == []
    assert caught.value.code == "body_stalled"


async def test_another_encoding_is_415() -> None:
    with pytest.raises(UnsupportedMedia):
        await read_body(request(b"x", content_encoding="br"), 100)


def test_a_content_type_may_be_left_out_but_not_be_another() -> None:
    check_content_type(request(), JSON_TYPES)
    check_content_type(request(content_type="Application/JSON; charset=utf-8"), JSON_TYPES)
    check_content_type(request(content_type="application/x-ndjson"), NDJSON_TYPES)
    for given_type, accepted in (("text/plain", JSON_TYPES), ("application/json", NDJSON_TYPES)):
        with pytest.raises(UnsupportedMedia, match="this call takes application/"):
            check_content_type(request(content_type=given_type), accepted)


@given(body=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_an_object_or_an_error(body: bytes) -> None:
    status = 200
    try:
        parse_object(body, what="it")
    except RequestError as error:
        status = error.status
    assert status in (200, 400, 422)


@pytest.mark.parametrize("body", [b"\xff", b'{"a": NaN}', b'{"a": 1e999}', b'{"a": "\\ud800"}', b"", b"{", b"[" * 2000])
def test_what_is_not_json_in_utf8_is_400_with_a_position(body: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        parse_object(body, what="it")
    assert isinstance(caught.value.details["position"], int)


def test_json_that_is_no_object_is_422() -> None:
    with pytest.raises(Invalid):
        parse_object(b"[1]", what="it")
