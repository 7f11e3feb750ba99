"""The SSE decoder finds the same events however the bytes are cut."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym.wire.errors import BadCompletion
from gym.wire.sse import DONE, SseDecoder, event

STREAM = (
    b"\xef\xbb\xbfdata: one\nevent: x\n: a comment\n\n"
    b'id: 7\r\ndata: {"text": "\xc3\xa9"}\r\n\r\n'
    b"data:two\rdata: lines\r\r"
    b"retry: 5\n\ndata\ndata:\n\n"
    b"data:  space \n\n"
    b"data: [DONE]\n\n"
)
EVENTS = [b"one", b'{"text": "\xc3\xa9"}', b"two\nlines", b"\n", b" space ", b"[DONE]"]


def decode(pieces: list[bytes]) -> list[bytes]:
    decoder = SseDecoder()
    return [data for piece in pieces for data in decoder.feed(piece)]


def test_all_line_ends_comments_and_fields_are_read() -> None:
    assert decode([STREAM]) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=30).map(sorted))
def test_events_do_not_depend_on_where_the_bytes_are_cut(cuts: list[int]) -> None:
    pieces = [STREAM[start:end] for start, end in zip([0, *cuts], [*cuts, len(STREAM)], strict=True)]
    assert decode(pieces) == EVENTS


def test_events_are_found_byte_by_byte() -> None:
    assert decode([bytes([byte]) for byte in STREAM]) == EVENTS


def test_a_crlf_cut_in_half_is_one_line_end() -> None:
    assert decode([b"data: a\r", b"\ndata: b\r\n\r", b"\n"]) == [b"a\nb"]


def test_an_event_that_was_broken_off_is_not_handed_out() -> None:
    assert decode([b"data: whole\n\ndata: ha"]) == [b"whole"]
    assert decode([b"data: whole\n\ndata: half\n"]) == [b"whole"]


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=9) | st.integers(-9, 9)), max_size=5))
def test_what_is_encoded_is_decoded(values: list[dict[str, str | int]]) -> None:
    raw = b"".join(event("x" if number % 2 else None, value) for number, value in enumerate(values)) + DONE
    *found, last = decode([raw])
    assert [orjson.loads(data) for data in found] == values
    assert last == b"[DONE]"


@pytest.mark.parametrize("raw", [b"data: " + b"x" * 200, b"data: " + b"x" * 50 + b"\ndata: " + b"x" * 60])
def test_an_event_without_end_is_cut_off(raw: bytes) -> None:
    decoder = SseDecoder(max_event_bytes=100)
    with pytest.raises(BadCompletion):
        decoder.feed(raw)
