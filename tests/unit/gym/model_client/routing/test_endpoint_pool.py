"""Which endpoint a call goes to: decisions over values and a clock that the test moves."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym.model_client.routing.endpoint import BACK_OFF_MAX_S, EJECT_AFTER, Endpoint
from gym.model_client.routing.endpoint_pool import EndpointPool


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def pool_of(count: int, clock: Clock, **options: int | None) -> EndpointPool:
    return EndpointPool([f"http://e{n}:8000" for n in range(count)], clock=clock, **options)


def take(pool: EndpointPool, key: str = "g", avoid: tuple[Endpoint, ...] = ()) -> Endpoint:
    endpoint = pool.acquire(key, avoid=avoid)
    assert endpoint is not None
    return endpoint


def fail(pool: EndpointPool, endpoint: Endpoint, clock: Clock, times: int = EJECT_AFTER) -> None:
    for _ in range(times):
        endpoint.in_flight += 1
        pool.release(endpoint, "failed", began=clock.now, error="refused")


def test_new_keys_go_to_the_endpoint_with_the_fewest_calls():
    pool = pool_of(4, Clock())
    for n in range(40):
        take(pool, f"g{n}")
    assert Counter(endpoint.in_flight for endpoint in pool.endpoints) == {10: 4}


def test_processes_agree_on_the_endpoint_of_a_key_while_all_are_idle():
    first, second = pool_of(5, Clock()), pool_of(5, Clock())
    chosen = set()
    for n in range(50):
        a, b = take(first, f"g{n}"), take(second, f"g{n}")
        assert a.url == b.url
        chosen.add(a.url)
        first.release(a, "answered", began=0)
        second.release(b, "answered", began=0)
    assert len(chosen) == 5


def test_a_key_stays_where_it_is_although_another_endpoint_is_less_busy():
    pool = pool_of(2, Clock())
    home = take(pool)
    assert [take(pool) for _ in range(8)] == [home] * 8


def test_a_key_moves_when_its_endpoint_is_much_busier_than_the_least_busy():
    pool = pool_of(2, Clock())
    home = take(pool)
    other = next(endpoint for endpoint in pool.endpoints if endpoint is not home)
    other.in_flight = 5
    home.in_flight = 18
    assert take(pool) is home  # 18 is not more than 2 * 5 + 8
    assert take(pool) is other
    home.in_flight = 0
    assert take(pool) is other  # it has moved for good


def test_a_key_moves_when_its_endpoint_is_ejected():
    clock = Clock()
    pool = pool_of(2, clock)
    home = take(pool)
    fail(pool, home, clock)
    assert take(pool) is not home


def test_a_retry_prefers_another_endpoint_and_leaves_the_key_where_it_was():
    pool = pool_of(3, Clock())
    home = take(pool)
    assert take(pool, avoid=(home,)) is not home
    assert take(pool) is home


def test_a_retry_takes_the_same_endpoint_where_there_is_no_other():
    pool = pool_of(1, Clock())
    home = take(pool)
    assert take(pool, avoid=(home,)) is home


def test_the_map_of_keys_is_bounded():
    pool = pool_of(2, Clock(), sticky_keys=10)
    for n in range(100):
        take(pool, f"g{n}")
    assert len(pool._sticky) == 10


def test_an_endpoint_is_ejected_by_failures_in_a_row_only():
    clock = Clock()
    pool = pool_of(1, clock)
    (endpoint,) = pool.endpoints
    fail(pool, endpoint, clock, EJECT_AFTER - 1)
    endpoint.in_flight += 1
    pool.release(endpoint, "answered", began=clock.now)
    fail(pool, endpoint, clock, EJECT_AFTER - 1)
    assert endpoint.state(clock.now) == "healthy"
    fail(pool, endpoint, clock, 1)
    assert endpoint.state(clock.now) == "ejected"
    assert pool.acquire("g") is None
    assert pool.reopens_in_s() == 1.0


def test_a_call_that_was_given_up_says_nothing_about_the_endpoint():
    clock = Clock()
    pool = pool_of(1, clock)
    for _ in range(10):
        pool.release(take(pool), "neutral", began=clock.now)
    assert pool.endpoints[0].state(clock.now) == "healthy"


def test_half_open_lets_one_call_through():
    clock = Clock()
    pool = pool_of(1, clock)
    (endpoint,) = pool.endpoints
    fail(pool, endpoint, clock)
    clock.now += 1.0
    assert endpoint.state(clock.now) == "half_open"
    assert take(pool) is endpoint
    assert pool.acquire("other") is None
    assert endpoint.state(clock.now) == "probing"
    pool.release(endpoint, "answered", began=clock.now)
    assert endpoint.state(clock.now) == "healthy"


def test_a_failed_probe_doubles_the_back_off_up_to_its_limit():
    clock = Clock()
    pool = pool_of(1, clock)
    (endpoint,) = pool.endpoints
    fail(pool, endpoint, clock)
    seen = []
    for _ in range(7):
        seen.append(pool.reopens_in_s())
        clock.now += pool.reopens_in_s()
        pool.release(take(pool), "failed", began=clock.now)
    assert seen == [1, 2, 4, 8, 16, 30, 30]
    assert seen[-1] == BACK_OFF_MAX_S


def test_a_probe_that_is_given_up_makes_room_for_the_next():
    clock = Clock()
    pool = pool_of(1, clock)
    fail(pool, pool.endpoints[0], clock)
    clock.now += 1.0
    pool.release(take(pool), "neutral", began=clock.now)
    assert take(pool) is pool.endpoints[0]


def test_failures_of_calls_that_began_before_an_ejection_do_not_lengthen_it():
    clock = Clock()
    pool = pool_of(1, clock)
    endpoint = take(pool)
    for _ in range(20):
        take(pool)
    began = clock.now
    clock.now += 0.1
    for _ in range(21):
        pool.release(endpoint, "failed", began=began)
    assert endpoint.back_off_s == 1.0


def test_a_late_answer_brings_an_ejected_endpoint_back():
    clock = Clock()
    pool = pool_of(1, clock)
    endpoint = take(pool)
    fail(pool, endpoint, clock)
    pool.release(endpoint, "answered", began=clock.now)
    assert endpoint.state(clock.now) == "healthy"


def test_the_last_healthy_endpoint_is_not_ejected_for_erring():
    clock = Clock()
    pool = pool_of(2, clock)
    first, second = pool.endpoints
    for endpoint in (first, second):
        for _ in range(EJECT_AFTER):
            endpoint.in_flight += 1
            pool.release(endpoint, "erred", began=clock.now)
    assert (first.state(clock.now), second.state(clock.now)) == ("ejected", "healthy")


def test_an_endpoint_that_is_ready_for_a_probe_is_tried_although_others_are_healthy():
    clock = Clock()
    pool = pool_of(3, clock)
    broken = pool.endpoints[0]
    fail(pool, broken, clock)
    clock.now += 1.0
    assert take(pool, "new") is broken
    assert take(pool, "newer") is not broken


def test_an_endpoint_that_stays_on_the_list_keeps_its_calls_and_its_health():
    clock = Clock()
    pool = pool_of(2, clock)
    home = take(pool)
    gone = next(endpoint for endpoint in pool.endpoints if endpoint is not home)
    pool.replace([f"{home.url.shown}/", "http://new:1"])  # the same URL, written in another way
    assert pool.endpoints[0] is home
    assert home.in_flight == 1
    assert gone.retired


def test_an_endpoint_off_the_list_gets_no_calls_and_ends_those_it_has():
    pool = pool_of(1, Clock())
    old = take(pool)
    pool.replace(["http://new:1"])
    assert take(pool) is not old
    pool.release(old, "answered", began=0)
    assert old.in_flight == 0


def test_a_failed_check_ejects_without_a_call_and_a_passed_one_brings_back():
    clock = Clock()
    pool = pool_of(2, clock)
    sick = pool.endpoints[0]
    assert pool.failed_check(sick, "silent", began=clock.now, hold_s=5, error="quiet")
    assert not pool.failed_check(sick, "silent", began=clock.now, hold_s=5, error="quiet")  # it is out already
    assert {take(pool, f"g{n}") for n in range(20)} == {pool.endpoints[1]}
    assert pool.passed_check(sick, asked=False)
    assert not pool.passed_check(sick, asked=False)
    assert sick in {take(pool, f"h{n}") for n in range(20)}


def test_an_endpoint_that_keeps_failing_checks_gets_no_probe():
    clock = Clock()
    pool = pool_of(2, clock)
    sick = pool.endpoints[0]
    for _ in range(20):
        pool.failed_check(sick, "dead", began=clock.now, hold_s=5, error="refused")
        clock.now += 4
        assert sick.state(clock.now) == "ejected"
    clock.now += 2
    assert sick.state(clock.now) == "half_open"  # the checks have stopped


@pytest.mark.parametrize(("finding", "state"), [("dead", "ejected"), ("silent", "healthy"), ("ill", "healthy")])
def test_only_a_dead_endpoint_is_ejected_by_a_check_where_it_is_alone(finding, state):
    clock = Clock()
    pool = pool_of(2, clock)
    fail(pool, pool.endpoints[1], clock)
    pool.failed_check(pool.endpoints[0], finding, began=clock.now, hold_s=5, error="no")
    assert pool.endpoints[0].state(clock.now) == state


def test_an_answer_since_the_check_began_proves_the_check_wrong():
    clock = Clock()
    pool = pool_of(2, clock)
    endpoint = take(pool)
    began = clock.now
    clock.now += 1
    pool.release(endpoint, "answered", began=began)
    assert not pool.failed_check(endpoint, "silent", began=began, hold_s=5, error="quiet")
    assert endpoint.state(clock.now) == "healthy"


def test_a_passed_check_does_not_end_an_ejection_by_calls():
    clock = Clock()
    pool = pool_of(2, clock)
    fail(pool, pool.endpoints[0], clock)
    assert not pool.passed_check(pool.endpoints[0], asked=False)
    assert pool.endpoints[0].state(clock.now) == "ejected"


def test_after_a_passed_check_the_first_failed_call_ejects_again():
    clock = Clock()
    pool = pool_of(1, clock)
    [endpoint] = pool.endpoints
    fail(pool, endpoint, clock)
    pool.failed_check(endpoint, "dead", began=clock.now, hold_s=5, error="refused")
    assert pool.passed_check(endpoint, asked=False)
    clock.now += 1
    fail(pool, endpoint, clock, 1)
    assert endpoint.state(clock.now) == "ejected"
    assert endpoint.back_off_s == 2.0


def test_only_an_endpoint_with_calls_in_flight_is_quiet():
    clock = Clock()
    pool = pool_of(1, clock)
    [endpoint] = pool.endpoints
    clock.now += 10
    assert endpoint.quiet_s(clock.now) == 0
    take(pool)
    clock.now += 3
    take(pool)
    assert endpoint.quiet_s(clock.now) == 3
    pool.release(endpoint, "answered", began=clock.now)
    clock.now += 2
    assert endpoint.quiet_s(clock.now) == 2
    pool.passed_check(endpoint, asked=False)
    assert endpoint.quiet_s(clock.now) == 2  # of its own account it was well all the time
    pool.passed_check(endpoint, asked=True)
    assert endpoint.quiet_s(clock.now) == 0


def test_what_an_endpoint_can_do_is_learned_anew_after_it_was_dead():
    clock = Clock()
    pool = pool_of(1, clock)
    [endpoint] = pool.endpoints
    endpoint.capture.level = "native"
    pool.failed_check(endpoint, "dead", began=clock.now, hold_s=5, error="refused")
    assert endpoint.capture.level == "unknown"


def test_a_full_endpoint_sends_a_key_elsewhere_and_keeps_it():
    pool = pool_of(2, Clock(), max_concurrency=2)
    home = take(pool)
    take(pool)
    assert take(pool) is not home
    pool.release(home, "answered", began=0)
    assert take(pool) is home


def test_a_check_that_fails_while_a_probe_is_under_way_leaves_room_for_the_next():
    clock = Clock()
    pool = pool_of(1, clock)
    fail(pool, pool.endpoints[0], clock)
    clock.now += 1
    probe, began = take(pool), clock.now
    clock.now += 1
    pool.failed_check(probe, "dead", began=clock.now, hold_s=5, error="refused")
    pool.release(probe, "failed", began=began)
    clock.now += 5
    assert take(pool) is probe


@given(
    st.integers(1, 4),
    st.none() | st.integers(1, 3),
    st.lists(
        st.tuples(
            st.sampled_from(["answered", "erred", "failed", "neutral", "tick", "take", "pass", "dead", "silent"]),
            st.integers(0, 5),
        )
    ),
)
def test_counts_match_and_probes_are_single_whatever_happens(count, limit, steps):
    clock = Clock()
    pool = pool_of(count, clock, max_concurrency=limit)
    held: list[tuple[Endpoint, float]] = []
    for step, number in steps:
        if step == "tick":
            clock.now += number
        elif step == "take":
            endpoint = pool.acquire(f"g{number}", avoid=[e for e, _ in held[:1]])
            if endpoint is not None:
                held.append((endpoint, clock.now))
        elif step == "pass":
            pool.passed_check(pool.endpoints[number % count], asked=number > 3)
        elif step in ("dead", "silent"):
            pool.failed_check(pool.endpoints[number % count], step, began=clock.now, hold_s=number + 1, error="no")
        elif held:
            endpoint, began = held.pop(number % len(held))
            pool.release(endpoint, step, began=began)
        assert sum(endpoint.in_flight for endpoint in pool.endpoints) == len(held)
        for endpoint in pool.endpoints:
            assert limit is None or endpoint.in_flight <= limit
            late = [began for e, began in held if e is endpoint and began >= (endpoint.ejected_until or float("inf"))]
            assert len(late) <= 1
    for endpoint, began in held:
        pool.release(endpoint, "neutral", began=began)
    clock.now += BACK_OFF_MAX_S
    assert pool.acquire("after") is not None


def test_the_description_names_no_credentials():
    pool = EndpointPool(["http://ann:secret@host:1/v1"], clock=Clock())
    assert "secret" not in repr(pool.describe())
    assert "secret" not in repr(pool.endpoints[0].url)


def test_endpoints_that_are_reopened_get_their_probe_at_once():
    clock = Clock()
    pool = pool_of(2, clock)
    for endpoint in pool.endpoints:
        fail(pool, endpoint, clock)
    assert pool.acquire("g") is None
    pool.reopen()
    assert {take(pool), take(pool)} == set(pool.endpoints)
    assert pool.acquire("g") is None
