"""Weight sync: a trainer pauses a policy's model calls, loads weights, and resumes them under a new version."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from api.bodies import json_response, read_model
from api.routes.policies import policy_answer
from api.schemas.document import body_of
from api.schemas.policies import PauseAnswer, PauseBody, PolicyAnswer, ResumeBody
from api.services import Farm
from api.shutdown import shutting_down

MAX_BODY_BYTES = 2**16

router = APIRouter(tags=["policies"])


@router.post("/v1/policies/{name}/pause", response_model=PauseAnswer, openapi_extra=body_of(PauseBody, required=False))
async def pause(name: str, request: Request, farm: Farm) -> Response:
    """Hold the policy's new model calls; held calls continue after `resume`."""
    body = await read_model(request, PauseBody, limit=MAX_BODY_BYTES, code="invalid_pause", what="the pause")
    load = await farm.shutdown.bounded(farm.policies.pause(name, body.mode, timeout_s=body.timeout_s))
    if load is None:
        raise shutting_down()
    answer = {"policy": name, "mode": body.mode, "in_flight": load.in_flight, "held": load.held, "obeyed": load.obeyed}
    return json_response(answer)


@router.post(
    "/v1/policies/{name}/resume", response_model=PolicyAnswer, openapi_extra=body_of(ResumeBody, required=False)
)
async def resume(name: str, request: Request, farm: Farm) -> Response:
    """Release held calls."""
    body = await read_model(request, ResumeBody, limit=MAX_BODY_BYTES, code="invalid_resume", what="the resume")
    return json_response(policy_answer(await farm.policies.resume(name, body.version)))
