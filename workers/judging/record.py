"""Conversion of verdicts to stored values: the record of a judged rollout, and its environment's sums.

A record keeps every round of judging. The last round with a verdict determines the reward, so a judge that fails in a
later round takes nothing away.
"""

from __future__ import annotations

from typing import Any

import orjson

from gym.errors import Internal, RolloutError, Stage, VerifierFailed
from gym.ids import parse_member
from gym.jsontypes import JsonObject
from gym.results.result import ResultFailure, RolloutResult, identity, rfc3339
from gym.results.storable import describe_error, storable_text, unstorable
from gym.rollout import Outcome, StopReason
from gym.state.ledger.judging import JudgeClaim
from gym.state.ledger.rejudge import score_sums
from workers.judging.runner import JudgeDecision, JudgedRollout, ParkedJudgement, PendingJudgement


def judged_record(claim: JudgeClaim, decided: JudgeDecision, *, worker: str, took_s: float) -> JsonObject:
    """Return the record with a new round of verdicts; without a reward it is unscored."""
    record = _with_time(claim, took_s)
    reward = decided.reward
    value = reward.value if reward is not None else None
    at = rfc3339(claim.now + int(took_s * 1000))
    mark = {"reward": value, "round": _round(record), "at": at}
    record["verdicts"] += [verdict.as_json() | mark for verdict in decided.verdicts]
    if decided.unreadable:
        record["verdicts"].append({"judge": claim.judge, "score": None, "error": decided.unreadable} | mark)
    return record | {
        "outcome": Outcome.SUCCEEDED,
        "error": None,
        "reward": value,
        "reward_components": reward.components if reward is not None else {},
        "judged_by": worker,
        "finished_at": at,
    }


def unjudged_record(claim: JudgeClaim, error: RolloutError, *, worker: str, took_s: float) -> JsonObject:
    """Return the record after failed judging: the earlier result if it was judged before, else a failed one."""
    record = _with_time(claim, took_s)
    at = rfc3339(claim.now + int(took_s * 1000))
    record["verdicts"].append(
        {"judge": claim.judge, "score": None, "error": storable_text(error.message), "round": _round(record), "at": at}
    )
    if claim.old_outcome is not None:
        return record
    failure = ResultFailure.of(error, [*claim.tries, orjson.loads(try_line(claim, error, worker))])
    return record | {"outcome": Outcome.FAILED, "error": failure, "judged_by": worker, "finished_at": at}


def bare_unjudged(judged: JudgedRollout, error: RolloutError, *, worker: str) -> JsonObject:
    """Return the record of a rollout that could not be judged, built from its claim alone."""
    claim = judged.claim
    rollout = parse_member(claim.batch_id, claim.member)
    at = rfc3339(claim.now)
    verdict = {"judge": claim.judge, "score": None, "error": storable_text(error.message), "round": 1, "at": at}
    return RolloutResult(
        **identity(
            rollout, run=judged.spec.run or claim.batch_id, task_id=rollout.group_id, environment=claim.environment
        ),
        attempt=claim.attempt,
        outcome=Outcome.FAILED if claim.old_outcome is None else claim.old_outcome,
        stop_reason=StopReason.ERROR,
        error=ResultFailure.of(error, []),
        judge=claim.judge,
        verdicts=[verdict],
        judged_by=worker,
        finished_at=at,
    ).as_dict()


def unrecordable_verdict(
    judged: JudgedRollout, found: JudgeDecision | PendingJudgement | ParkedJudgement | RolloutError, fault: Exception
) -> RolloutError:
    """Return the error of a judged rollout that could not be recorded because of `fault`; it names the value."""
    named = None
    try:
        if isinstance(found, JudgeDecision):
            named = unstorable({"reward": found.reward, "verdicts": found.verdicts}, "judged")
    except Exception as odd:  # noqa: BLE001  values of user code may do anything when they are looked at
        named = f"a value cannot be looked at: {describe_error(odd)}"
    kind = Internal if named is None else VerifierFailed
    where = f"attempt {judged.claim.attempt}" if named is None else f"{judged.claim.environment}: {named}"
    error = kind(f"the result could not be recorded: {where} ({describe_error(fault)})")
    error.stage = Stage.JUDGE
    return error


def try_line(claim: JudgeClaim, error: RolloutError, worker: str) -> bytes:
    """Return one JSON line of a rollout's failed judging tries."""
    return orjson.dumps(
        {"attempt": claim.attempt, "worker": worker, "kind": error.kind, "judge": claim.judge}
        | {"message": storable_text(error.message)}
    )


def judged_sums(claim: JudgeClaim, record: JsonObject) -> dict[str, float]:
    """Return the additions to the environment's sums; only the score if the rollout had been counted before."""
    added = score_sums(record["reward"])
    if claim.old_outcome is not None:
        return added
    usage, timing = record["usage"], record["timing"]
    return added | {
        "run": 1,
        "turns": record["model_calls"],
        "tool_calls": record["tool_calls"],
        "input_tokens": usage["input_tokens"],
        "output_tokens": usage["output_tokens"],
        **timing,
    }


def _with_time(claim: JudgeClaim, took_s: float) -> JsonObject:
    """Return the stored record with `judge_s` as the seconds from the end of the conversation to now."""
    record: JsonObject = orjson.loads(claim.record)
    timing: dict[str, Any] = record["timing"]
    judge_s = (claim.now - claim.over_at) / 1000 + took_s
    total_s = timing["total_s"] - timing["judge_s"] + judge_s
    return record | {
        "timing": timing | {"judge_s": judge_s, "total_s": total_s},
        "verdicts": list(record.get("verdicts") or ()),
    }


def _round(record: JsonObject) -> int:
    return 1 + max((verdict["round"] for verdict in record["verdicts"]), default=0)
