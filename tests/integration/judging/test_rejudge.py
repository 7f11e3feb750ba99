"""Stored trajectories judged again: both verdicts are kept, and nothing is lost where the second one fails."""

from __future__ import annotations

from typing import Any

EQUAL, DIFFERENT = "[[say Verdict: EQUAL]]", "[[say Verdict: DIFFERENT]]"


def model_calls(judged_farm: Any) -> int:
    """Return the number of calls to the policy."""
    import httpx

    return int(httpx.get(f"{judged_farm.farm.model_url}/admin/stats").json()["requests"])


def test_another_judge_scores_again_without_a_call_to_the_policy(judged_farm: Any) -> None:
    batch_id = judged_farm.submit([judged_farm.row("so", EQUAL), judged_farm.row("not so", DIFFERENT)])
    before = judged_farm.results(batch_id)
    calls = model_calls(judged_farm)
    answer = judged_farm.http.post(f"/v1/batches/{batch_id}/rejudge", json={"judge": "other"})
    assert answer.json() == {"rejudging": 2, "skipped": 0}
    after = judged_farm.results(batch_id)
    assert model_calls(judged_farm) == calls
    assert [result["reward"] for result in after] == [result["reward"] for result in before] == [1.0, 0.0]
    for first, second in zip(before, after, strict=True):
        assert second["verdicts"][:1] == first["verdicts"]
        assert [(v["judge"], v["round"], len(v["votes"])) for v in second["verdicts"]] == [
            ("equality", 1, 1),
            ("other", 2, 3),
        ]
        assert second["verdicts"][0]["version"] != second["verdicts"][1]["version"]
    means = judged_farm.http.get(f"/v1/batches/{batch_id}").json()["environments"]["equivalence"]
    assert (means["rollouts"], means["scored"], means["reward_mean"]) == (2, 2, 0.5)


def test_a_judge_that_fails_the_second_time_takes_no_reward_away(judged_farm: Any) -> None:
    limits = {"judge_timeout_s": 1.0}
    batch_id = judged_farm.submit([judged_farm.row("so", EQUAL)], limits=limits)
    [before] = judged_farm.results(batch_id)
    judged_farm.http.post(f"/v1/batches/{batch_id}/rejudge", json={"judge": "away"}).raise_for_status()
    [after] = judged_farm.results(batch_id)
    assert (after["outcome"], after["reward"], after["error"]) == ("succeeded", 1.0, None)
    [first, failed] = after["verdicts"]
    assert [first] == before["verdicts"]
    assert (failed["judge"], failed["score"]) == ("away", None)
    assert "127.0.0.1:9" in failed["error"]
    means = judged_farm.http.get(f"/v1/batches/{batch_id}").json()["environments"]["equivalence"]
    assert (means["rollouts"], means["scored"], means["reward_mean"]) == (1, 1, 1.0)


def test_what_failed_for_want_of_a_judge_is_scored_when_there_is_one(judged_farm: Any) -> None:
    judged_farm.judge.leave()
    try:
        batch_id = judged_farm.submit([judged_farm.row("so", EQUAL)], limits={"judge_timeout_s": 1.0})
        [failed] = judged_farm.results(batch_id)
    finally:
        judged_farm.judge.come_back()
    assert (failed["outcome"], failed["reward"]) == ("failed", None)
    assert (failed["error"]["kind"], failed["error"]["retryable"]) == ("judge_error", True)

    def again() -> dict[str, Any] | None:
        judged_farm.http.post(f"/v1/batches/{batch_id}/rejudge").raise_for_status()
        [result] = judged_farm.results(batch_id)
        return result if result["outcome"] == "succeeded" else None

    # within its one second a try may still meet the judge's endpoint shut out
    scored = judged_farm.until(again)
    assert (scored["reward"], scored["error"]) == (1.0, None)
    assert judged_farm.ledger(batch_id)["succeeded"] == 1


def test_a_cancellation_gives_back_the_result_that_was_being_judged_again(judged_farm: Any) -> None:
    batch_id = judged_farm.submit([judged_farm.row("so", EQUAL)])
    judged_farm.results(batch_id)
    judged_farm.judge.server.behave(latency_s=600.0)
    try:
        judged_farm.http.post(f"/v1/batches/{batch_id}/rejudge").raise_for_status()
        assert judged_farm.ledger(batch_id)["judging"] == 1
        judged_farm.http.delete(f"/v1/batches/{batch_id}").raise_for_status()
    finally:
        judged_farm.judge.server.behave(latency_s=0.0)
    page = judged_farm.http.get(f"/v1/batches/{batch_id}/results").json()
    assert [(result["outcome"], result["reward"]) for result in page["items"]] == [("succeeded", 1.0)]
    assert judged_farm.ledger(batch_id)["succeeded"] == 1


def test_what_no_judge_was_asked_about_is_skipped_and_an_unknown_judge_is_refused(judged_farm: Any) -> None:
    batch_id = judged_farm.submit([judged_farm.row("7", "7")])
    judged_farm.results(batch_id)
    path = f"/v1/batches/{batch_id}/rejudge"
    assert judged_farm.http.post(path).json() == {"rejudging": 0, "skipped": 1}
    refused = judged_farm.http.post(path, json={"judge": "nobody"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_rejudge")
    assert "equality" in refused.json()["error"]["message"]


def test_judges_are_listed_with_kind_version_and_load(judged_farm: Any) -> None:
    listed = judged_farm.http.get("/v1/judges").json()
    assert listed["judge_workers"] == 1
    found = {judge["judge"]: judge for judge in listed["items"]}
    assert set(found) == {"equality", "fragile", "other", "away", "similarity", "ranked"}
    assert found["equality"]["kind"] == "remote"
    assert found["equality"]["replicas"] == [{"url": f"{judged_farm.judge.url}/v1", "state": "fixed"}]
    assert found["equality"]["version"] != found["other"]["version"]
