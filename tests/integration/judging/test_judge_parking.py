"""A judge that is away is left alone but for probes: its rollouts are parked, and no others wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

PROBE_AFTER_S = 0.3


@pytest.fixture
def away(judged_farm: Any) -> Iterator[Any]:
    """The farm, while its judge `fragile` is away; `judged_farm.fragile.away` brings it back."""
    fragile = judged_farm.fragile
    fragile.asked.clear()
    fragile.away = True
    yield judged_farm
    fragile.away = False
    # one without anything that waits for it is tried with what comes next
    assert [result["reward"] for result in judged_farm.results(judged_farm.submit(rows("next", 1)))] == [1.0]
    assert judge(judged_farm)["parked"] is None


def rows(name: str, count: int, *asks: str) -> list[dict[str, Any]]:
    said = [{"role": "user", "content": f"[[say {name} {{}}]]"}]
    return [
        {
            "responses_create_params": {"input": [said[0] | {"content": said[0]["content"].format(number)}]},
            "environment": "asking",
            "asks": list(asks) or ["fragile"],
        }
        for number in range(count)
    ]


def judge(judged_farm: Any, name: str = "fragile") -> dict[str, Any]:
    listed = judged_farm.http.get("/v1/judges").raise_for_status().json()["items"]
    found: dict[str, Any] = next(item for item in listed if item["judge"] == name)
    return found


def parked_whole(judged_farm: Any, batch_id: str, count: int) -> dict[str, Any] | None:
    """The batch's status, once all of it waits before the judge and nothing is on its way there."""
    status: dict[str, Any] = judged_farm.http.get(f"/v1/batches/{batch_id}").json()
    line = judge(judged_farm)
    return status if status["parked"]["count"] == count and line["asked"] == 0 else None


def test_a_judge_that_is_away_is_asked_by_probes_only_and_its_rollouts_wait_until_it_is_back(away: Any) -> None:
    # those that ask two judges wait for the one that is away
    batch_id = away.submit(rows("wait", 9) + rows("both", 3, "equality", "fragile"))
    status = away.until(lambda: parked_whole(away, batch_id, 12))
    settled = len(away.fragile.asked)
    assert status["ledger"]["judging"] == 12
    [reason] = status["parked"]["reasons"]
    assert (reason["kind"], reason["name"]) == ("judge", "fragile")
    shown = judge(away)
    assert shown["waiting"] == 12
    assert shown["parked"] == reason | {"failures": 3} | {
        name: shown["parked"][name] for name in ("error", "next_probe_at")
    }
    assert away.fragile.url in shown["parked"]["error"]
    queues = away.http.get("/v1/queues").json()
    assert [(each["kind"], each["name"]) for each in queues["breakers"]] == [("judge", "fragile")]
    assert queues["parked"] >= 11  # a probe may be under way
    assert 'farm_breaker_open{kind="judge",name="fragile"} 1.0' in away.http.get("/metrics").text

    others = away.results(away.submit(rows("other", 16, "equality")))
    assert Counter((result["outcome"], result["reward"]) for result in others) == {("succeeded", 0.0): 16}
    assert judge(away)["parked"] is not None

    away.until(lambda: len(away.fragile.asked) >= settled + 3)
    probes = [at for at, _ in away.fragile.asked[settled:]]
    assert all(later - earlier >= PROBE_AFTER_S for earlier, later in pairwise(probes))
    assert away.ledger(batch_id)["judging"] == 12

    away.fragile.away = False
    away.fragile.asked.clear()
    found = away.results(batch_id)
    assert Counter((result["outcome"], result["reward"], result["attempt"]) for result in found) == {
        ("succeeded", 1.0, 1): 9,
        ("succeeded", 0.0, 1): 3,
    }
    assert [len(result["verdicts"]) for result in found] == [1] * 9 + [2] * 3
    assert max(Counter(said for _, said in away.fragile.asked).values()) == 1
    assert judge(away)["parked"] is None
    assert away.http.get(f"/v1/batches/{batch_id}").json()["parked"] == {"count": 0, "reasons": []}


def test_judging_ends_in_a_judge_error_that_says_so_when_its_time_is_over_while_the_judge_is_parked(away: Any) -> None:
    patient = away.submit(rows("patient", 4))
    away.until(lambda: parked_whole(away, patient, 4))
    found = away.results(away.submit(rows("late", 8), limits={"judge_timeout_s": 1.0}))
    assert Counter((result["outcome"], result["reward"]) for result in found) == {("failed", None): 8}
    assert {(result["error"]["kind"], result["error"]["retryable"]) for result in found} == {("judge_error", True)}
    messages = [result["error"]["message"] for result in found]
    told = [message for message in messages if message.startswith("judge 'fragile' was parked since 20")]
    assert len(told) >= 5, messages  # but for those that were probes
    assert all(
        "until judge_timeout_s (1 s) was over; its last failure: judge 'fragile'" in message
        and away.fragile.url in message
        for message in told
    )
    assert away.ledger(patient)["judging"] == 4
    away.fragile.away = False
    assert Counter(result["outcome"] for result in away.results(patient)) == {"succeeded": 4}


def test_what_is_parked_by_a_judge_is_cancelled_as_any_other(away: Any) -> None:
    batch_id = away.submit(rows("cancel", 5))
    away.until(lambda: parked_whole(away, batch_id, 5))
    assert away.http.delete(f"/v1/batches/{batch_id}").json()["cancelled"] == 5
    assert away.ledger(batch_id)["cancelled"] == 5
    line = judge(away)
    assert (line["waiting"], line["asked"]) == (0, 0)
