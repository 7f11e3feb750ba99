"""Frames of the relay, and the channels by which a sender is identified."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym.errors import Invalid
from gym.relay.acl import acl_line
from gym.relay.address import farm_channels, read_address
from gym.relay.frames import FIRST_BYTES, PIECE_BYTES, Asker, Channels, Frame, cut, decode

CHANNELS = Channels(prefix="farm", db=3)
TRAINER = Asker(scope="submit", name="trainer")


@given(
    call=st.from_regex(r"[a-z0-9-]{1,64}", fullmatch=True),
    head=st.dictionaries(st.sampled_from(["line", "last", "part"]), st.text() | st.booleans() | st.integers(0, 9)),
    payload=st.binary(),
)
def test_a_frame_arrives_as_it_was(call: str, head: dict[str, Any], payload: bytes) -> None:
    frame = Frame("ask", call, head, payload)
    assert decode(frame.encode()) == frame


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"beat",
        b"[]\n",
        b"{\n",
        b'{"kind": "ask"}\n',
        b'{"kind": 1, "call": "a"}\n',
        b'{"kind": "ask", "call": "a:b"}\n',
    ],
)
def test_what_is_no_frame_is_passed_over(data: bytes) -> None:
    assert decode(data) is None


@given(st.lists(st.binary(max_size=3 * FIRST_BYTES), max_size=4))
def test_a_body_is_cut_into_pieces_and_none_of_it_is_lost(body: list[bytes]) -> None:
    pieces = list(cut(body))
    assert b"".join(piece for piece, _ in pieces) == b"".join(body)
    assert [last for _, last in pieces] == [False] * (len(pieces) - 1) + [True]
    assert len(pieces[0][0]) <= FIRST_BYTES
    assert all(0 < len(piece) <= PIECE_BYTES for piece, _ in pieces[1:])


def test_a_channel_says_who_asks() -> None:
    assert CHANNELS.asker(CHANNELS.ask(TRAINER, "s-1")) == TRAINER


@pytest.mark.parametrize(
    "channel",
    [
        "farm:3:relay:ask:admin:trainer:s-1",
        "farm:3:relay:ask:submit:trainer:more:s-1",
        "farm:3:relay:ask:submit:*:s-1",
        "farm:3:relay:ask:submit::s-1",
        "farm:3:relay:tell:trainer:line",
    ],
)
def test_what_is_no_clients_channel_has_no_asker(channel: str) -> None:
    assert CHANNELS.asker(channel) is None


def test_a_url_is_taken_apart_and_the_secret_is_not_shown() -> None:
    address = read_address("rediss://trainer:se%40cret@redis.example:6380/3?prefix=farm-b&ssl_cert_reqs=none")
    assert address.url == "rediss://trainer:se%40cret@redis.example:6380?ssl_cert_reqs=none"
    assert (address.channels, address.name) == (Channels(prefix="farm-b", db=3), "trainer")
    assert address.shown == "rediss://redis.example:6380/3"
    assert "cret" not in repr(address)


def test_a_unix_socket_is_a_path_and_its_database_an_option() -> None:
    address = read_address("unix://trainer@/run/redis.sock?db=2")
    assert (address.url, address.channels.db) == ("unix://trainer@/run/redis.sock", 2)


def test_a_client_and_its_farm_agree_on_the_channels() -> None:
    farms = farm_channels("redis://:secret@127.0.0.1:6379/3", "farm")
    assert farms == read_address("redis://trainer:x@other-name:6379/3").channels == CHANNELS


@pytest.mark.parametrize("url", ["redis://a b@h/0", "redis://a%3Ab@h/0", "redis://a*@h/0", "redis://h/zero"])
def test_a_url_that_no_client_can_have_is_refused(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        read_address(url)
    assert caught.value.code == "unsupported_url"


def test_the_acl_holds_a_digest_and_no_key() -> None:
    line = acl_line(CHANNELS, "trainer", scope="submit", password="se cret")
    assert line.startswith("ACL SETUSER trainer reset on #")
    assert "cret" not in line
    assert "~" not in line
    assert "resetkeys" in line
    assert line.endswith("-@all +publish +subscribe")


@pytest.mark.parametrize("name", ["default", "a b", "a:b", "*", "", "a\n+@all"])
def test_a_name_that_would_widen_the_acl_is_refused(name: str) -> None:
    with pytest.raises(Invalid):
        acl_line(CHANNELS, name, scope="read", password="x")
