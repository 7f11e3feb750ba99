import asyncio

import pytest

from workers.process.pace import FIRST, LEAST, SAMPLES, TARGET_S, IntakePace, keep_pace
from workers.process.slots import Slots

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
