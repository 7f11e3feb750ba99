"""Circuit breakers in a real Redis, with pauses of milliseconds."""

from __future__ import annotations

import asyncio

import pytest

from gym.state.ledger.breakers import (
    Breaker,
    BreakerKey,
    BreakerResponse,
    Breakers,
    Casualty,
    environment_key,
    judge_key,
    parked_in,
    policy_key,
)
from gym.state.redis.store import Store
from gym.state.settings import BreakerSettings

pytestmark = pytest.mark.anyio

KEY = environment_key("sandboxed")
SETTINGS = BreakerSettings(failures=3, probe_after_s=0.05, max_probe_after_s=0.15)


@pytest.fixture
def breakers(store: Store) -> Breakers:
    return Breakers(store, SETTINGS)


def who(number: int) -> Casualty:
    return Casualty("batch:1", f"{number}:0", 1, str(number))


async def fail(
    store: Store, breakers: Breakers, number: int, *, probe: bool = False, seen_s: float | None = None
) -> BreakerResponse:
    call = breakers.fail_call(KEY, who(number), seen_s=seen_s, probe=probe, stage="setup", error=f"failure {number}")
    return breakers.failed((await store.run_many([call]))[0])


async def open_up(store: Store, breakers: Breakers) -> Breaker:
    for number in range(3):
        await fail(store, breakers, number)
    [breaker] = await breakers.all()
    return breaker


async def until_probe(breakers: Breakers) -> None:
    async with asyncio.timeout(20):
        while not await breakers.may_probe(KEY):  # noqa: ASYNC110  time has no event
            await asyncio.sleep(0.005)


async def test_failures_in_a_row_open_it_and_those_before_are_owed_an_attempt(store: Store, breakers: Breakers) -> None:
    assert await fail(store, breakers, 0) == BreakerResponse(open=False, opened=False, before=[])
    assert await fail(store, breakers, 1) == BreakerResponse(open=False, opened=False, before=[])
    assert [breaker.open for breaker in await breakers.all()] == [False]
    assert await fail(store, breakers, 2) == BreakerResponse(open=True, opened=True, before=[who(0), who(1)])
    assert await fail(store, breakers, 3) == BreakerResponse(open=True, opened=False, before=[])
    [breaker] = await breakers.all()
    assert (breaker.key, breaker.open, breaker.error) == (KEY, True, "failure 2")


async def test_a_call_whose_answer_was_lost_is_answered_again_and_counts_once(store: Store, breakers: Breakers) -> None:
    for _ in range(5):
        assert not (await fail(store, breakers, 0)).open
    await fail(store, breakers, 1)
    assert await fail(store, breakers, 2) == await fail(store, breakers, 2)


async def test_a_success_between_failures_begins_the_count_anew(store: Store, breakers: Breakers) -> None:
    await fail(store, breakers, 0)
    await fail(store, breakers, 1)
    assert not await breakers.alive(KEY)
    assert await breakers.all() == []
    assert not (await fail(store, breakers, 2)).open


async def test_what_the_failing_worker_has_seen_at_work_since_begins_the_count_anew(
    store: Store, breakers: Breakers
) -> None:
    await fail(store, breakers, 0)
    await fail(store, breakers, 1)
    await asyncio.sleep(0.01)
    assert not (await fail(store, breakers, 2, seen_s=0.0)).open
    assert [breaker.failures for breaker in await breakers.all()] == [1]


async def test_one_probe_goes_after_the_pause_and_its_failure_makes_the_next_pause_longer(
    store: Store, breakers: Breakers
) -> None:
    breaker = await open_up(store, breakers)
    assert breaker.opened_at is not None
    assert breaker.next_probe_at - breaker.opened_at == 50
    assert not await breakers.may_probe(KEY)
    for number, pause_ms in ((10, 100), (11, 150), (12, 150)):
        await until_probe(breakers)
        assert not await breakers.may_probe(KEY)  # one at a time
        before = await store.now_ms()
        assert (await fail(store, breakers, number, probe=True)).open
        [breaker] = await breakers.all()
        assert breaker.next_probe_at - before >= pause_ms >= breaker.next_probe_at - await store.now_ms()


async def test_a_sign_of_life_closes_it_and_says_so_once(store: Store, breakers: Breakers) -> None:
    await open_up(store, breakers)
    assert await breakers.alive(KEY)
    assert not await breakers.alive(KEY)
    assert await breakers.all() == []


async def test_one_that_opens_again_at_once_goes_on_with_the_pause_that_it_had(store: Store, redis_url: str) -> None:
    slow = Breakers(store, BreakerSettings(failures=3, probe_after_s=30, max_probe_after_s=300))
    await open_up(store, slow)
    await slow.alive(KEY)
    breaker = await open_up(store, slow)
    assert breaker.opened_at is not None
    assert breaker.next_probe_at - breaker.opened_at == 60_000


async def test_a_probe_that_showed_nothing_lets_another_go_after_the_same_pause(
    store: Store, breakers: Breakers
) -> None:
    await open_up(store, breakers)
    await until_probe(breakers)
    before = await store.now_ms()
    await breakers.probe_missed(KEY)
    [breaker] = await breakers.all()
    assert 50 <= breaker.next_probe_at - before <= 50 + await store.now_ms() - before
    await breakers.probe_soon(KEY)
    assert await breakers.may_probe(KEY)


async def test_what_has_been_closed_for_long_leaves_nothing_behind(store: Store, breakers: Breakers) -> None:
    await open_up(store, breakers)
    await breakers.alive(KEY)
    async with asyncio.timeout(20):
        while await store.redis.hlen(store.keys.breakers):
            await breakers.sweep()
            await asyncio.sleep(0.01)


def test_an_open_policy_parks_all_that_waits_and_an_environment_its_own() -> None:
    def breaker(key: BreakerKey, opened_at: int | None = 1) -> Breaker:
        return Breaker(key=key, failures=3, stage="setup", error="e", opened_at=opened_at, next_probe_at=2)

    policy, sql, judge = policy_key("p"), environment_key("sql"), judge_key("p")
    counted = {"sql": 4, "weather": 2, "released": 1}
    some = parked_in(10, policy, counted, [breaker(sql), breaker(judge)], {})
    assert (some.count, [each.key for each in some.reasons]) == (4, [sql])
    everything = parked_in(10, policy, counted, [breaker(sql), breaker(policy)], {})
    assert (everything.count, [each.key for each in everything.reasons]) == (10, [policy, sql])
    assert parked_in(10, policy, counted, [breaker(policy, None), breaker(policy_key("other"))], {}).count == 0
    judging = parked_in(10, policy, {}, [breaker(judge)], {"p": 3, "other": 5})
    assert (judging.count, [each.key for each in judging.reasons]) == (3, [judge])
