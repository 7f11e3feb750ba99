"""Groups: the rollouts of one row, cancelled together."""

from __future__ import annotations

from fastapi import APIRouter, Response

from api.bodies import json_response
from api.routes.batches import BEING_CANCELLED, cancelled_answer
from api.schemas.batches import Cancelled
from api.services import Farm
from gym.errors import NotFound
from gym.ids import parse_group_id

router = APIRouter(tags=["rollouts"])


@router.delete("/v1/groups/{group_id}", response_model=Cancelled, responses=BEING_CANCELLED)
async def cancel_group(group_id: str, farm: Farm) -> Response:
    """Cancel the unfinished rollouts of a group. Idempotent; cancelling before the submission takes precedence over it.

    No rollout of the group starts any more. 202: `left` rollouts of a large group are still being ended.
    """
    group = parse_group_id(group_id)
    if group is None:
        raise NotFound(
            "group_not_found", f"{group_id[:200]!r} is not the id of a group (BATCH:ROW)", {"group_id": group_id[:200]}
        )
    done = await farm.batches.cancel_group(group)
    return json_response(cancelled_answer({"group_id": group_id}, done), status=202 if done.left else 200)
