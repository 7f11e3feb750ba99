"""Lines of a stream, however it is cut into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.ingest import LineSplitter
from gym.errors import TooLarge


def split(pieces: list[bytes], max_bytes: int = 1000) -> list[tuple[int, bytes]]:
    splitter = LineSplitter(max_bytes)
    found = [line for piece in pieces for line in splitter.feed(piece)]
    return found + list(splitter.end())


@given(lines=st.lists(st.binary(max_size=20).map(lambda raw: raw.replace(b"\n", b"")), max_size=20), data=st.data())
def test_the_lines_are_the_same_wherever_the_stream_is_cut(lines: list[bytes], data: st.DataObject) -> None:
    text = b"\n".join(lines)
    pieces = []
    while text:
        cut = data.draw(st.integers(1, len(text)))
        pieces.append(text[:cut])
        text = text[cut:]
    expected = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    assert split(pieces) == expected


def test_empty_lines_are_skipped_but_counted() -> None:
    assert split([b"a\r\n\n  \nb"]) == [(1, b"a"), (4, b"b")]


def test_a_line_that_is_too_long_is_refused_before_it_is_whole() -> None:
    splitter = LineSplitter(10)
    assert list(splitter.feed(b"ok\n12345")) == [(1, b"ok")]
    with pytest.raises(TooLarge) as caught:
        list(splitter.feed(b"6789012"))
    assert caught.value.code == "row_too_large"
    assert caught.value.details["line"] == 2


def test_a_line_of_exactly_the_limit_passes() -> None:
    assert split([b"12345", b"67890\n", b"x"], 10) == [(1, b"1234567890"), (2, b"x")]
