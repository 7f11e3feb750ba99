"""A judge that keeps failing is parked: its line waits without calls, all else goes on, nothing waits for ever."""

from __future__ import annotations

from typing import Any

SAID = ("[[say Verdict: DIFFERENT]]", "[[say Verdict: EQUAL]]")


def judge_of(judged_farm: Any, name: str = "equality") -> dict[str, Any]:
    found: dict[str, Any] = next(
        each for each in judged_farm.http.get("/v1/judges").json()["items"] if each["judge"] == name
    )
    return found


def test_a_parked_judge_is_asked_by_probes_alone_and_its_rollouts_are_judged_once_when_it_is_back(
    judged_farm: Any,
    embedding_server: Any,
) -> None:
    judged_farm.judge.leave()
    try:
        rows = [judged_farm.row(f"it is {number}", SAID[number % 2]) for number in range(24)]
        batch_id = judged_farm.submit(rows)
        parked = judged_farm.until(lambda: judge_of(judged_farm)["parked"])
        assert (parked["kind"], parked["name"]) == ("judge", "equality")
        judged_farm.until(lambda: judge_of(judged_farm)["waiting"] >= 23)
        asked = [judge_of(judged_farm)["asked"] for _ in range(30)]
        assert max(asked) <= 1
        shown = judged_farm.http.get(f"/v1/batches/{batch_id}").json()["parked"]
        assert shown["count"] >= 23
        assert [(reason["kind"], reason["name"]) for reason in shown["reasons"]] == [("judge", "equality")]
        assert judged_farm.http.get("/v1/queues").json()["parked"] >= 23
        assert 'farm_breaker_open{kind="judge",name="equality"} 1.0' in judged_farm.http.get("/metrics").text
        essay = {
            "responses_create_params": {"input": [{"role": "user", "content": "[[say Bread rises.]]"}]},
            "environment": "essay_similarity",
            "reference": "Bread rises.",
        }
        assert [each["outcome"] for each in judged_farm.results(judged_farm.submit([essay]))] == ["succeeded"]
        assert judged_farm.ledger(batch_id)["judging"] == 24
    finally:
        judged_farm.judge.come_back()
    results = judged_farm.results(batch_id)
    assert [(each["outcome"], each["reward"]) for each in results] == [("succeeded", n % 2) for n in range(24)]
    judged_farm.until(lambda: judge_of(judged_farm)["parked"] is None)


def test_the_clock_of_rollouts_goes_on_while_their_judge_is_parked(judged_farm: Any) -> None:
    judged_farm.judge.leave()
    try:
        rows = [judged_farm.row(f"it is {number}", SAID[1]) for number in range(12)]
        results = judged_farm.results(judged_farm.submit(rows, limits={"judge_timeout_s": 3}))
    finally:
        judged_farm.judge.come_back()
    assert {(each["outcome"], each["error"]["kind"], each["reward"]) for each in results} == {
        ("failed", "judge_error", None)
    }
    assert any("was parked since" in each["error"]["message"] for each in results)
    again = judged_farm.submit([judged_farm.row("it is 1", SAID[1])])
    assert [each["outcome"] for each in judged_farm.results(again)] == ["succeeded"]
