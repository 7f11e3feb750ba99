"""From verdicts to what is stored: the record of a judged rollout, and its environment's sums.

A record keeps every round of judging. The last one that came to a verdict says what the reward is, so a judge that
fails when it is asked again takes nothing away.
"""

from __future__ import annotations

from typing import Any

import orjson

from gym.errors import Internal, RolloutError, Stage, VerifierFailed, text_of
from gym.ids import parse_member
from gym.jsontypes import JsonObject
from gym.results.storable import storable_text, unstorable
from gym.state.ledger.judging import JudgeClaim
from gym.state.ledger.rejudge import score_sums
from gym.state.ledger.results import rfc3339
from workers.judging.runner import JudgeDecision, JudgedRollout, ParkedJudgement, PendingJudgement


def judged_record(claim: JudgeClaim, decided: JudgeDecision, *, worker: str, took_s: float) -> JsonObject:
    """The result with a new round of verdicts; without a reward the answer is unscored."""
    record = _with_time(claim, took_s)
    reward = decided.reward
    value = reward.value if reward is not None else None
    at = rfc3339(claim.now + int(took_s * 1000))
    mark = {"reward": value, "round": _round(record), "at": at}
    record["verdicts"] += [verdict.as_json() | mark for verdict in decided.verdicts]
    if decided.unreadable:
        record["verdicts"].append({"judge": claim.judge, "score": None, "error": decided.unreadable} | mark)
    return record | {
        "outcome": "succeeded",
        "error": None,
        "reward": value,
        "reward_components": reward.components if reward is not None else {},
        "judged_by": worker,
        "finished_at": at,
    }


def unjudged_record(claim: JudgeClaim, error: RolloutError, *, worker: str, took_s: float) -> JsonObject:
    """The result where judging failed: what it was before, if it was judged before, else failed."""
    record = _with_time(claim, took_s)
    at = rfc3339(claim.now + int(took_s * 1000))
    record["verdicts"].append(
        {"judge": claim.judge, "score": None, "error": storable_text(error.message), "round": _round(record), "at": at}
    )
    if claim.old_outcome is not None:
        return record
    attempts = [*claim.tries, orjson.loads(try_line(claim, error, worker))]
    failure = {
        "kind": error.kind,
        "stage": error.stage,
        "message": storable_text(error.message),
        "retryable": error.retryable,
        "attempts": attempts,
    }
    return record | {"outcome": "failed", "error": failure, "judged_by": worker, "finished_at": at}


def bare_unjudged(judged: JudgedRollout, error: RolloutError, *, worker: str) -> JsonObject:
    """The record of a rollout that could not be judged, from nothing but its claim."""
    claim = judged.claim
    rollout = parse_member(claim.batch_id, claim.member)
    at = rfc3339(claim.now)
    verdict = {"judge": claim.judge, "score": None, "error": storable_text(error.message), "round": 1, "at": at}
    return {
        "rollout_id": str(rollout),
        "batch_id": claim.batch_id,
        "run": judged.spec.run,
        "group_id": rollout.group_id,
        "task_id": rollout.group_id,
        "sample_index": rollout.sample,
        "attempt": claim.attempt,
        "environment": claim.environment,
        "outcome": "failed" if claim.old_outcome is None else claim.old_outcome,
        "stop_reason": "error",
        "error": {**orjson.loads(try_line(claim, error, worker)), "stage": error.stage, "retryable": error.retryable}
        | {"attempts": []},
        "reward": None,
        "reward_components": {},
        "judge": claim.judge,
        "verdicts": [verdict],
        "policy_version": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
        "model_calls": 0,
        "tool_calls": 0,
        "timing": dict.fromkeys(("queued_s", "environment_s", "model_s", "tool_s", "judge_s", "total_s"), 0.0),
        "judged_by": worker,
        "finished_at": at,
    }


def unrecordable_verdict(
    judged: JudgedRollout, found: JudgeDecision | PendingJudgement | ParkedJudgement | RolloutError, fault: Exception
) -> RolloutError:
    """The error of a judged rollout that could not be recorded because of `fault`; it names the value."""
    named = None
    try:
        if isinstance(found, JudgeDecision):
            named = unstorable({"reward": found.reward, "verdicts": found.verdicts}, "judged")
    except Exception as odd:  # noqa: BLE001  values of user code may do anything when they are looked at
        named = f"a value cannot be looked at: {text_of(odd)}"
    kind = Internal if named is None else VerifierFailed
    where = f"attempt {judged.claim.attempt}" if named is None else f"{judged.claim.environment}: {named}"
    error = kind(f"the result could not be recorded: {where} ({text_of(fault)})")
    error.stage = Stage.JUDGE
    return error


def try_line(claim: JudgeClaim, error: RolloutError, worker: str) -> bytes:
    """One line of a rollout's tries at judging."""
    return orjson.dumps(
        {"attempt": claim.attempt, "worker": worker, "kind": error.kind, "judge": claim.judge}
        | {"message": storable_text(error.message)}
    )


def judged_sums(claim: JudgeClaim, record: JsonObject) -> dict[str, float]:
    """What it adds to its environment's sums: all of it, or only the score where the rest had been counted before."""
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
    """The record as it was, with the seconds from the end of the conversation to now as `judge_s`."""
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
