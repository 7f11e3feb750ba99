import asyncio

import pytest

from workers.process.slots import FIRST, LEAST, SAMPLES, TARGET_S, IntakePace, Slots, keep_pace


def test_the_gate_closes_when_the_slots_are_taken_and_says_when_it_opens() -> None:
    slots = Slots(4)
    opened: list[int] = []
    slots.notify(lambda: opened.append(slots.taken))
    slots.reserve(3)
    assert slots.has_room()
    slots.reserve(3)
    assert not slots.has_room()
    slots.free()
    slots.free()
    assert opened == []
    slots.free()
    assert opened == [3]
    assert slots.has_room()


def test_freeing_while_there_is_room_wakes_nobody() -> None:
    slots = Slots(4)
    slots.notify(lambda: (_ for _ in ()).throw(AssertionError))
    slots.reserve(2)
    slots.free(2)
    assert slots.taken == 0


def test_a_closed_gate_stays_closed() -> None:
    slots = Slots(4)
    slots.close()
    assert not slots.has_room()


def test_a_worker_that_is_held_fetches_nothing_and_says_when_it_does_again() -> None:
    slots = Slots(4)
    opened: list[bool] = []
    slots.notify(lambda: opened.append(slots.has_room()))
    slots.reserve(1)
    slots.hold()
    slots.free()
    assert slots.held
    assert not slots.has_room()
    assert slots.taken == 0
    slots.release()
    assert opened == [True]
    assert not slots.held


LATE = 4 * TARGET_S


def paced(total: int = 512, taken: int = 512, *, limit: int | None = None) -> tuple[Slots, IntakePace]:
    slots = Slots(total)
    pace = IntakePace(slots)
    slots.reserve(taken)
    if limit is not None:
        slots.limit_to(limit)
    return slots, pace


def feed(pace: IntakePace, *delays: float) -> None:
    for delay_s in delays:
        pace.sample(delay_s)


def test_a_worker_that_was_idle_takes_more_with_each_look_at_a_loop_that_answers_at_once() -> None:
    slots, pace = paced()
    seen = [slots.limit]
    for _ in range(4):
        pace.sample(0.0)
        seen.append(slots.limit)
    assert seen == [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST, 512]


def test_nothing_rises_that_is_not_used() -> None:
    slots, pace = paced(taken=FIRST // 4)
    feed(pace, 0.0, 0.0, 0.0)
    assert slots.limit == FIRST


def test_a_delay_that_stands_lowers_the_limit_in_proportion_and_at_most_by_half() -> None:
    slots, pace = paced(limit=400)
    feed(pace, *[1.25 * TARGET_S] * SAMPLES)
    assert slots.limit == 320
    feed(pace, *[LATE] * SAMPLES)
    assert slots.limit == 160


def test_a_burst_that_is_worked_off_changes_nothing() -> None:
    slots, pace = paced(limit=512)
    feed(pace, *[LATE, 0.0, 0.0, LATE, 0.0] * (SAMPLES // 5))
    assert slots.limit == 512


def test_two_slices_are_always_taken_and_never_more_than_the_settings_say() -> None:
    slots, pace = paced(limit=LEAST)
    feed(pace, *[LATE] * 3 * SAMPLES)
    assert slots.limit == LEAST
    few, pace = paced(total=4, taken=4)
    feed(pace, *[LATE] * SAMPLES, *[0.0] * SAMPLES)
    assert few.limit == 4


def test_after_a_delay_the_limit_rises_by_intervals_until_the_worker_was_idle() -> None:
    slots, pace = paced(limit=400)
    feed(pace, *[LATE] * SAMPLES)
    pace.sample(0.0)
    assert slots.limit == 200
    feed(pace, *[0.0] * (SAMPLES - 1))
    assert slots.limit == 400
    pace.idle()
    assert slots.limit == FIRST


@pytest.mark.anyio
async def test_the_pace_is_kept_from_the_first_job_on() -> None:
    slots = Slots(512)
    keeping = asyncio.create_task(keep_pace(slots))
    try:
        await asyncio.sleep(0)
        assert slots.limit == FIRST
        await asyncio.to_thread(slots.reserve, 512)
        async with asyncio.timeout(30):
            while slots.limit < 512:  # noqa: ASYNC110  the rule has no event for it
                await asyncio.sleep(0.01)
        slots.free(512)
        async with asyncio.timeout(30):
            while slots.limit > FIRST:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        keeping.cancel()
