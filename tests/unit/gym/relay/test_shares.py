"""Clients of the relay share capacity without taking it from each other."""

from __future__ import annotations

import asyncio

import pytest

from gym.relay.shares import Shares

pytestmark = pytest.mark.anyio


def _taken(shares: Shares, name: str, wanted: int = 100) -> int:
    return sum(shares.take(name) for _ in range(wanted))


def test_one_client_never_takes_all() -> None:
    shares = Shares(total=32, each=8, reserved=1)
    assert _taken(shares, "greedy") == 8
    assert _taken(shares, "other") == 8


def test_a_client_has_its_reserve_when_others_have_taken_everything() -> None:
    shares = Shares(total=16, each=8, reserved=2)
    assert [_taken(shares, name) for name in ("a", "b", "c", "d")] == [8, 8, 2, 2]


def test_what_is_given_back_may_be_taken_again() -> None:
    shares = Shares(total=4, each=4, reserved=1)
    assert _taken(shares, "a") == 4
    for _ in range(4):
        shares.give_back("a")
    assert _taken(shares, "a") == 4


async def test_a_place_goes_to_the_first_that_may_have_it() -> None:
    shares = Shares(total=2, each=2, reserved=1)
    assert _taken(shares, "a") == 2
    order: list[str] = []

    async def wait(name: str) -> None:
        await shares.wait(name)
        order.append(name)

    waiting = [asyncio.ensure_future(wait(name)) for name in ("a", "a", "b")]
    await waiting[2]  # its reserve is free
    shares.give_back("b")  # the others are at their limit all the same
    await asyncio.sleep(0)
    assert order == ["b"]
    shares.give_back("a")
    await waiting[0]
    shares.give_back("a")
    await waiting[1]
    assert order == ["b", "a", "a"]


@pytest.mark.parametrize("granted", [False, True])
async def test_a_wait_that_is_cancelled_keeps_no_place(granted: bool) -> None:
    shares = Shares(total=1, each=1, reserved=1)
    assert shares.take("a")
    waiting = asyncio.ensure_future(shares.wait("a"))
    await asyncio.sleep(0)
    if granted:
        shares.give_back("a")
    waiting.cancel()
    await asyncio.wait([waiting])
    if not granted:
        shares.give_back("a")
    async with asyncio.timeout(5):
        await shares.wait("a")
