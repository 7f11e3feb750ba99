"""The JSON of a batch: means are null without rollouts, and secrets are left out."""

from __future__ import annotations

import orjson

from api.routes.batches import batch_answer, means
from api.schemas.batches import BatchAnswer
from gym.batch import BatchSpec
from gym.policy import PolicySpec
from gym.rollout import Ledger
from gym.state.ledger.batches import BatchSnapshot


def status(**changes: object) -> BatchSnapshot:
    policy = PolicySpec(base_urls=["http://user:hunter2@127.0.0.1:8000/v1"], model="m", api_key="sk-secret")
    spec = BatchSpec(batch_id="b", run="r", policy=policy).model_dump(mode="json")
    ledger = Ledger(submitted=3, queued=1, succeeded=2)
    return BatchSnapshot(
        batch_id="b", run="r", state="running", sealed=True, spec=spec, ledger=ledger, created_at=0, ended_at=None,
        fenced=0, environments={"weather": {"ended": 2.0}},
    )  # fmt: skip


def test_neither_a_key_nor_a_password_in_a_url_comes_out() -> None:
    text = orjson.dumps(batch_answer(status())).decode()
    assert "sk-secret" not in text
    assert "hunter2" not in text
    assert "127.0.0.1:8000/v1" in text


def test_the_answer_is_what_the_document_says() -> None:
    answer = batch_answer(status())
    shown = BatchAnswer.model_validate(answer, extra="forbid").model_dump()
    assert shown.pop("trouble") is None  # of an unreadable batch alone
    assert shown == answer


def test_means_are_over_what_was_scored_and_over_what_ran() -> None:
    sums = {"ended": 10, "scored": 4, "reward": 2.0, "passed": 1, "run": 5, "turns": 15, "total_s": 2.5}
    found = means({name: float(value) for name, value in sums.items()})
    assert (found["rollouts"], found["reward_mean"], found["pass_rate"]) == (10, 0.5, 0.25)
    assert (found["turns_mean"], found["total_s_mean"], found["model_s_mean"]) == (3.0, 0.5, 0.0)


def test_a_mean_of_nothing_is_null_and_not_zero() -> None:
    found = means({"ended": 2.0})
    assert found["rollouts"] == 2
    assert {value for name, value in found.items() if name.endswith(("_mean", "_rate"))} == {None}
