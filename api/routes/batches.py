"""Batches: lists, status, cancellation, and requeueing of failed rollouts."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request, Response

from api.bodies import json_response, read_model
from api.routes.policies import policy_shown
from api.schemas.batches import BatchAnswer, BatchList, Cancelled, RequeueBody, Requeued
from api.schemas.document import body_of
from api.services import Farm
from gym.errors import ErrorKind, Invalid
from gym.ids import is_id, parse_rollout_id
from gym.jsontypes import JsonObject
from gym.results.result import TIMES, View, rfc3339
from gym.state.ledger.batches import BatchSnapshot, BatchState, batch_not_found
from gym.state.ledger.breakers import Breaker, ParkedCounts
from gym.state.ledger.cancellation import Cancellation
from gym.state.ledger.log_position import LogWentBack
from gym.state.repair.recall import Recalled, find_unreadable, recall

MAX_BODY_BYTES = 16 * 2**20
PAGE = 1000
# sums that workers keep for each environment; all but the rewards cover rollouts that a worker ended
MEANS = (
    "turns",
    "tool_calls",
    "input_tokens",
    "output_tokens",
    *TIMES,
)
BEING_CANCELLED: dict[int | str, dict[str, Any]] = {
    202: {"model": Cancelled, "description": "Being cancelled: `left` rollouts have not ended yet; none of them starts"}
}

router = APIRouter(tags=["batches"])


@router.get("/v1/batches", response_model=BatchList)
async def list_batches(
    farm: Farm,
    run: str | None = None,
    state: BatchState | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: str | None = None,
) -> Response:
    """List batches, newest first."""
    found, next_after = await farm.batches.list(run=run, state=state, limit=limit, after=after)
    return json_response({"items": [batch_answer(batch) for batch in found], "next_after": next_after})


@router.get("/v1/batches/{batch_id}", response_model=BatchAnswer)
async def get_batch(batch_id: str, farm: Farm) -> Response:
    """Return state, options, ledger, and means for each environment."""
    if not is_id(batch_id):
        raise batch_not_found(batch_id)
    return json_response(batch_answer(await farm.batches.status(batch_id)))


@router.delete("/v1/batches/{batch_id}", response_model=Cancelled, responses=BEING_CANCELLED)
async def cancel_batch(batch_id: str, farm: Farm) -> Response:
    """Cancel unfinished rollouts. Idempotent; cancelling before the submission takes precedence over it.

    From now on no rollout of the batch starts. 200: all of its rollouts have ended, or a tombstone waits for the batch.
    202: `left` rollouts are still being ended; the batch's status says when they have.
    """
    if not is_id(batch_id):
        raise batch_not_found(batch_id)
    done = await farm.batches.cancel_batch(batch_id)
    answer = cancelled_answer({"batch_id": batch_id}, done)
    if done.known:
        status = await farm.batches.status(batch_id)
        answer |= {"state": status.state, "ledger": status.ledger.as_dict()}
    return json_response(answer, status=202 if done.left else 200)


@router.post(
    "/v1/batches/{batch_id}/requeue", response_model=Requeued, openapi_extra=body_of(RequeueBody, required=False)
)
async def requeue(batch_id: str, request: Request, farm: Farm) -> Response:
    """Run failed and expired rollouts again, as new attempts.

    With `rollout_ids`, or `result_unreadable` among `error_kinds`, this includes rollouts whose stored result cannot be
    read, however they ended; their trajectories are read to find out.
    """
    if not is_id(batch_id):
        raise batch_not_found(batch_id)
    body = await read_model(request, RequeueBody, limit=MAX_BODY_BYTES, code="invalid_requeue", what="the requeue")
    wanted = None if body.rollout_ids is None else members_ids(batch_id, body.rollout_ids, code="invalid_requeue")
    kinds = body.error_kinds
    look = wanted is not None if kinds is None else ErrorKind.RESULT_UNREADABLE in kinds
    requeued = 0
    after: str | None = None
    while True:
        try:
            page = await farm.results.page(batch_id, after=after, limit=PAGE, view=View.LIGHT)
        except LogWentBack as error:  # during this request
            after = error.resume_after
            continue
        records = [orjson.loads(text) for text in page.records]
        recalled: list[Recalled] = []
        if look:
            found = list(zip(page.cursors, records, strict=True))
            recalled = await find_unreadable(farm.results, batch_id, found, wanted)
            requeued += await recall(farm.store, batch_id, recalled)
        taken = {each.cursor for each in recalled}
        items = [
            _requeue_item(record)
            for cursor, record in zip(page.cursors, records, strict=True)
            if cursor not in taken and (wanted is None or record["rollout_id"] in wanted) and _runs_again(record, body)
        ]
        if items:
            requeued += await farm.batches.requeue(batch_id, items)
        if not page.more:
            return json_response({"requeued": requeued})
        after = page.next_after


def cancelled_answer(names: JsonObject, done: Cancellation) -> JsonObject:
    """Return the response to a cancellation."""
    return {**names, "cancelled": done.stopped, "left": done.left, "tombstone": not done.known}


def batch_answer(batch: BatchSnapshot) -> JsonObject:
    """Return a batch as the API shows it, without secrets."""
    options = dict(batch.spec)
    if isinstance(options.get("policy"), dict):
        options["policy"] = policy_shown(options["policy"])
    return {
        "batch_id": batch.batch_id,
        "run": batch.run,
        "state": batch.state,
        "sealed": batch.sealed,
        "created_at": rfc3339(batch.created_at),
        "ended_at": None if batch.ended_at is None else rfc3339(batch.ended_at),
        "options": options,
        "ledger": batch.ledger.as_dict(),
        "fenced": batch.fenced,
        "parked": parked_answer(batch.parked),
        "environments": {name: means(sums) for name, sums in sorted(batch.environments.items())},
        **({"trouble": batch.trouble} if batch.trouble else {}),
    }


def parked_answer(parked: ParkedCounts) -> JsonObject:
    """Return how many queued and judging rollouts are parked, and why."""
    return {"count": parked.count, "reasons": [breaker_answer(breaker) for breaker in parked.reasons]}


def breaker_answer(breaker: Breaker) -> JsonObject:
    """Describe a circuit breaker: the reason, since when it is open, and the time of the next probe."""
    return {
        "kind": breaker.key.kind,
        "name": breaker.key.name,
        "since": None if breaker.opened_at is None else rfc3339(breaker.opened_at),
        "error": breaker.error,
        "next_probe_at": rfc3339(breaker.next_probe_at),
    }


def means(sums: dict[str, float]) -> dict[str, float | None]:
    """Compute an environment's means from its sums.

    Rewards are averaged over scored rollouts, the rest over completed ones.
    """
    scored, ran = sums.get("scored", 0.0), sums.get("run", 0.0)
    return {
        "rollouts": int(sums.get("ended", 0.0)),
        "scored": int(scored),
        "reward_mean": _ratio(sums.get("reward", 0.0), scored),
        "pass_rate": _ratio(sums.get("passed", 0.0), scored),
        **{f"{name}_mean": _ratio(sums.get(name, 0.0), ran) for name in MEANS},
    }


def _ratio(total: float, count: float) -> float | None:
    return round(total / count, 6) if count > 0 else None


def members_ids(batch_id: str, rollout_ids: list[str], *, code: str) -> frozenset[str]:
    """Return member ids. Raises Invalid for a rollout of another batch."""
    for number, rollout_id in enumerate(rollout_ids):
        rollout = parse_rollout_id(rollout_id)
        if rollout is None or rollout.batch_id != batch_id:
            raise Invalid(
                code,
                f"field `rollout_ids.{number}`: {rollout_id[:200]!r} is not a rollout of batch {batch_id}",
                {"field": f"rollout_ids.{number}"},
            )
    return frozenset(rollout_ids)


def _runs_again(record: JsonObject, body: RequeueBody) -> bool:
    if record["outcome"] not in ("failed", "expired"):
        return False
    return body.error_kinds is None or (record["error"] or {}).get("kind") in body.error_kinds


def _requeue_item(record: dict[str, Any]) -> tuple[str, int, str, bytes]:
    rollout = parse_rollout_id(record["rollout_id"])
    assert rollout is not None  # noqa: S101  the farm wrote it
    attempts = (record["error"] or {}).get("attempts", [])
    lines = b"".join(orjson.dumps(attempt) + b"\n" for attempt in attempts)
    return rollout.member, record["attempt"], record["environment"], lines
