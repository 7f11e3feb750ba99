from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from workers.dispatch.schedule import WaitingBatch, plan, slice_size, tick_gap_s
from workers.dispatch.schedule import shares as fair_shares


def waiting(batch_id: str, backlog: int, **fields: object) -> WaitingBatch:
    values = {"run": batch_id, "priority": 5, "weight": 1.0, "created_at": 0} | fields
    return WaitingBatch(batch_id=batch_id, backlog=backlog, **values)  # type: ignore[arg-type]  # fields of the test's choice


def shares(takes: list[tuple[str, int]]) -> Counter[str]:
    given: Counter[str] = Counter()
    for batch_id, number in takes:
        given[batch_id] += number
    return given


def test_a_higher_priority_is_served_first_and_alone_while_it_fills_the_room() -> None:
    batches = [waiting("low", 100, priority=4), waiting("high", 40, priority=9)]
    assert shares(plan(batches, room=40, slice_size=16, virtual_times={}).takes) == {"high": 40}
    assert shares(plan(batches, room=60, slice_size=16, virtual_times={}).takes) == {"high": 40, "low": 20}


def test_equal_priorities_share_by_the_weight_of_their_runs() -> None:
    batches = [waiting("heavy", 10_000, weight=3.0), waiting("light", 10_000)]
    given = shares(plan(batches, room=400, slice_size=4, virtual_times={}).takes)
    assert given["heavy"] == 300
    assert given["light"] == 100


def test_a_small_run_behind_a_big_one_gets_half_of_the_room() -> None:
    batches = [waiting("big", 50_000, created_at=1), waiting("small", 100, created_at=2)]
    assert shares(plan(batches, room=200, slice_size=10, virtual_times={}).takes)["small"] == 100


def test_within_a_run_the_older_batch_goes_first() -> None:
    batches = [waiting("new", 10, run="r", created_at=2), waiting("old", 10, run="r", created_at=1)]
    assert plan(batches, room=15, slice_size=16, virtual_times={}).takes == [("old", 10), ("new", 5)]


def test_shares_even_out_over_plans_since_virtual_times_are_kept() -> None:
    batches = [waiting("a", 10_000), waiting("b", 10_000)]
    total: Counter[str] = Counter()
    times: dict[str, float] = {}
    for _ in range(50):
        now = plan(batches, room=3, slice_size=16, virtual_times=times)
        times = now.virtual_times
        total += shares(now.takes)
    assert abs(total["a"] - total["b"]) <= 3


def test_no_run_is_given_more_than_its_most_and_what_is_not_named_gets_nothing() -> None:
    batches = [waiting("a", 100), waiting("b", 100), waiting("c", 100)]
    given = shares(plan(batches, room=90, slice_size=16, virtual_times={}, most={"a": 20, "b": -5}).takes)
    assert given == {"a": 20}


def test_a_run_that_comes_later_is_not_owed_for_the_time_before() -> None:
    times = plan([waiting("old", 10_000)], room=5000, slice_size=16, virtual_times={}).virtual_times
    both = [waiting("old", 10_000), waiting("new", 10_000)]
    given = shares(plan(both, room=200, slice_size=10, virtual_times=times).takes)
    assert given["old"] == 100


def test_a_run_that_comes_is_served_alone_until_it_has_as_many_in_flight_as_the_others() -> None:
    times = plan([waiting("old", 10_000)], room=5000, slice_size=16, virtual_times={}).virtual_times
    both = [waiting("old", 10_000, in_flight=100), waiting("new", 10_000, in_flight=20)]
    given = shares(plan(both, room=200, slice_size=10, virtual_times=times).takes)
    assert (given["new"], given["old"]) == (140, 60)
    heavy = [waiting("old", 10_000, in_flight=100), waiting("new", 10_000, weight=3.0)]
    assert plan(heavy, room=300, slice_size=10, virtual_times=times).takes == [("new", 10)] * 30


def test_a_run_that_goes_on_after_a_pause_is_not_served_for_what_it_has_in_flight() -> None:
    times = {"old": 1000.0}
    both = [waiting("old", 10_000, in_flight=100), waiting("back", 10_000, in_flight=100)]
    given = shares(plan(both, room=200, slice_size=10, virtual_times=times).takes)
    assert given["old"] == given["back"] == 100


def test_each_run_has_its_share_of_the_slots_less_what_it_has_in_flight() -> None:
    batches = [
        waiting("big", 50_000, in_flight=2048),
        waiting("small", 60, run="s"),
        waiting("older", 0, run="s", in_flight=12, weight=3.0),
    ]
    assert fair_shares(batches, slots=1024) == {"big": 256 - 2048, "s": 768 - 12}


def test_only_the_highest_priority_has_shares_and_only_where_there_is_another() -> None:
    assert fair_shares([waiting("big", 50_000, in_flight=100)], slots=1024) == {}
    low, high = waiting("low", 50_000, in_flight=2048), waiting("high", 10, priority=9)
    assert fair_shares([low, high], slots=1024) == {"high": 1024}
    assert fair_shares([], slots=1024) == {}


@given(
    st.lists(st.tuples(st.integers(0, 50), st.sampled_from("abc"), st.integers(0, 9), st.floats(0.1, 10)), max_size=8),
    st.integers(0, 200),
    st.integers(1, 16),
)
def test_room_is_used_up_or_nothing_waits_and_no_slice_is_too_large(
    rows: list[tuple[int, str, int, float]], room: int, slice_size: int
) -> None:
    batches = [
        waiting(str(number), backlog, run=run, priority=priority, weight=weight, created_at=number)
        for number, (backlog, run, priority, weight) in enumerate(rows)
    ]
    takes = plan(batches, room=room, slice_size=slice_size, virtual_times={}).takes
    assert sum(number for _, number in takes) == min(room, sum(batch.backlog for batch in batches))
    assert all(0 < number <= slice_size for _, number in takes)
    given = shares(takes)
    assert all(given[batch.batch_id] <= batch.backlog for batch in batches)


def test_a_small_batch_on_idle_workers_is_cut_up_so_that_each_gets_a_part() -> None:
    assert slice_size([waiting("small", 24)], room=1000, workers=2, most=16) == 3
    assert slice_size([waiting("tiny", 1)], room=1000, workers=8, most=16) == 1


def test_the_little_that_busy_workers_have_room_for_goes_in_one_job() -> None:
    batches = [waiting("big", 50_000, in_flight=1000)]
    assert slice_size(batches, room=20, workers=2, most=16) == 16


def test_slices_are_no_larger_than_the_settings_say() -> None:
    assert slice_size([waiting("big", 50_000)], room=1000, workers=2, most=4) == 4


def test_the_backlog_is_looked_at_less_often_the_more_is_at_work():
    assert tick_gap_s(0) == tick_gap_s(1) == 0.005
    assert tick_gap_s(0) < tick_gap_s(32) < tick_gap_s(64) == tick_gap_s(100_000) == 0.05
