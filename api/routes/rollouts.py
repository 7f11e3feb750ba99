"""One rollout: its state, and its cancellation."""

from __future__ import annotations

from fastapi import APIRouter, Response

from api.bodies import json_response
from api.routes.batches import cancelled_answer
from api.schemas.batches import Cancelled
from api.schemas.results import CapturedRollout, ResultAnswer, UnfinishedRollout
from api.services import Farm
from gym.captures.rollout_view import captured_rollout
from gym.errors import NotFound
from gym.ids import is_id, parse_rollout_id
from gym.jsontypes import JsonObject
from gym.rollout import RolloutState
from gym.state.ledger.batches import rollout_not_found
from gym.state.ledger.results import View

router = APIRouter(tags=["rollouts"])


@router.get("/v1/rollouts/{rollout_id}", response_model=ResultAnswer | UnfinishedRollout | CapturedRollout)
async def get_rollout(rollout_id: str, farm: Farm, view: View = View.FULL) -> Response:
    """Return a rollout with its trajectory, attempts and timings; an unfinished one shows its `state` and `worker`.

    While an outside agent works on it, `captured` holds its model calls so far.

    An id of no batch, under which an agent called the model proxy, returns the captured calls (`state` is `captured`).
    """
    rollout = parse_rollout_id(rollout_id)
    if rollout is not None:
        try:
            known = await farm.results.get(rollout, view)
            if known["state"] == RolloutState.RUNNING:
                captured = await farm.captures.of_attempt(rollout_id, known["attempt"])
                known["captured"] = _captured(rollout_id, *captured, view)
            return json_response(known)
        except NotFound:
            pass  # of no batch; an outside agent may have chosen it
    records, failures = await farm.captures.both(rollout_id) if is_id(rollout_id) else ([], [])
    shown = _captured(rollout_id, records, failures, view)
    if shown is None:
        raise rollout_not_found(rollout_id)
    return json_response(shown)


@router.delete("/v1/rollouts/{rollout_id}", response_model=Cancelled)
async def cancel_rollout(rollout_id: str, farm: Farm) -> Response:
    """Cancel an unfinished rollout. Idempotent; cancelling before the submission takes precedence over it."""
    rollout = parse_rollout_id(rollout_id)
    if rollout is None:
        raise rollout_not_found(rollout_id)
    return json_response(cancelled_answer({"rollout_id": rollout_id}, await farm.batches.cancel_rollout(rollout)))


def _captured(rollout_id: str, records: list[JsonObject], failures: list[JsonObject], view: View) -> JsonObject | None:
    """Return the captured calls of a rollout, as much as the view shows, or None."""
    if not (records or failures):
        return None
    return captured_rollout(
        rollout_id, records, failures, conversation=view is View.FULL, segments=view is not View.LIGHT
    )
