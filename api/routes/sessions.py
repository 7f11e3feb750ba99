"""Environment sessions: an environment alone, for a trainer with its own agent loop.

A session lives on a worker until it is closed or has been idle for `sessions.idle_s`. Calls of one session run one
after the other; `Idempotency-Key` makes it safe to repeat the last one.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response

from api.auth import caller_of
from api.bodies import ModelT, json_response, read_model
from api.schemas.document import Items, body_of
from api.schemas.sessions import (
    ActionBody,
    OpenSessionBody,
    SessionAnswer,
    SessionClosed,
    SessionReward,
    SessionShown,
    SessionStep,
    ToolArguments,
    ToolOutput,
    VerifyBody,
)
from api.services import Farm, Services
from api.session_calls import WantedSession
from gym.errors import Invalid, NotFound
from gym.ids import is_id
from gym.jsontypes import JsonObject
from gym.plain import exact_json
from gym.state.ledger.results import rfc3339
from gym.state.session_records import SessionRecord, session_not_found

router = APIRouter(tags=["sessions"])
Repeat = Annotated[str | None, Header(alias="Idempotency-Key", max_length=200)]


@router.post(
    "/v1/environments/{name}/sessions",
    status_code=201,
    response_model=SessionAnswer,
    responses={200: {"model": SessionAnswer, "description": "The same session had been opened before."}},
    openapi_extra=body_of(OpenSessionBody),
)
async def open_session(name: str, request: Request, farm: Farm) -> Response:
    """Set up an environment for a row; `seed` makes it reproducible, `session_id` names it."""
    farm.registry.get(name)
    body = await _body(request, farm, OpenSessionBody, "the session")
    row: JsonObject = {"responses_create_params": {"input": ""}, **body.row}
    farm.registry.check_row(name, row, row=0)
    wanted = WantedSession(session_id=body.session_id, environment=name, row=row, seed=body.seed, owner=_owner(request))
    record, made, is_new = await farm.sessions.open(wanted)
    shown = {**_shown(record), "observation": made["observation"], "tools": made["tools"]}
    return Response(exact_json.dumps(shown), 201 if is_new else 200, media_type="application/json")


@router.get("/v1/sessions", response_model=Items)
async def list_sessions(
    farm: Farm, limit: Annotated[int, Query(ge=1, le=1000)] = 100, after: str | None = None
) -> Response:
    """List open sessions, the first to expire first."""
    records, next_after = await farm.sessions.books.page(after=after, limit=limit)
    return json_response({"items": [_shown(record) for record in records], "next_after": next_after})


@router.get("/v1/sessions/{session_id}", response_model=SessionShown)
async def get_session(session_id: str, farm: Farm) -> Response:
    """Return one session."""
    return json_response(_shown(await farm.sessions.books.get(_checked(session_id))))


@router.post("/v1/sessions/{session_id}/tools/{tool}", response_model=ToolOutput, openapi_extra=body_of(ToolArguments))
async def call_tool(session_id: str, tool: str, request: Request, farm: Farm, repeat: Repeat = None) -> Response:
    """Call a tool as a model would; a tool's failure is returned as output for the model, with `failed` set."""
    body = await _body(request, farm, ToolArguments, "the tool call")
    return _answer(
        await farm.sessions.ask(_checked(session_id), "tool", tool=tool, arguments=body.arguments, key=repeat)
    )


@router.post("/v1/sessions/{session_id}/step", response_model=SessionStep, openapi_extra=body_of(ActionBody))
async def step(session_id: str, request: Request, farm: Farm, repeat: Repeat = None) -> Response:
    """Apply an action to a stepped environment; 422 for an environment with tools."""
    body = await _body(request, farm, ActionBody, "the step")
    return _answer(await farm.sessions.ask(_checked(session_id), "step", action=body.action, key=repeat))


@router.post("/v1/sessions/{session_id}/verify", response_model=SessionReward, openapi_extra=body_of(VerifyBody))
async def verify(session_id: str, request: Request, farm: Farm, repeat: Repeat = None) -> Response:
    """Score the policy's output. `response` is a Responses API object, its output items, or a text."""
    body = await _body(request, farm, VerifyBody, "the verification")
    return _answer(
        await farm.sessions.ask(_checked(session_id), "verify", output=_output_of(body.response), key=repeat)
    )


@router.delete("/v1/sessions/{session_id}", response_model=SessionClosed)
async def close_session(session_id: str, farm: Farm) -> Response:
    """Close a session. Idempotent."""
    try:
        await farm.sessions.ask(_checked(session_id), "close")
    except NotFound:
        return json_response({"session_id": session_id, "closed": False})
    return json_response({"session_id": session_id, "closed": True})


async def _body(request: Request, farm: Services, model: type[ModelT], what: str) -> ModelT:
    limit = farm.settings.api.max_row_bytes + 4096
    return await read_model(request, model, limit=limit, code="invalid_request", what=what, exact=True)


def _checked(session_id: str) -> str:
    if not is_id(session_id):
        raise session_not_found(session_id)
    return session_id


def _owner(request: Request) -> str:
    """Return a digest of the caller's key, so that no key is stored in Redis; empty if there are no keys."""
    caller = caller_of(request.scope)
    return hashlib.sha256(caller).hexdigest()[:16] if caller else ""


def _shown(record: SessionRecord) -> JsonObject:
    return {
        "session_id": record.session_id,
        "environment": record.environment,
        "worker": record.worker,
        "created_at": rfc3339(record.created_at),
        "expires_at": rfc3339(record.expires_at),
    }


def _answer(answer: JsonObject) -> Response:
    shown = {name: value for name, value in answer.items() if name not in ("call", "expires_at_ms")}
    shown["expires_at"] = rfc3339(answer["expires_at_ms"])
    return Response(exact_json.dumps(shown), media_type="application/json")


def _output_of(response: JsonObject | list[JsonObject] | str) -> list[JsonObject]:
    if isinstance(response, str):
        return [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": response}]}]
    items = response.get("output", []) if isinstance(response, dict) else response
    if not isinstance(items, list):
        text = f"field `response.output` is of type {type(items).__name__}; expected a list of items"
        raise Invalid("invalid_request", text, {"field": "response.output"})
    return [item for item in items if isinstance(item, dict)]
