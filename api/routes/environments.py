"""Environments: what can be run."""

from __future__ import annotations

from fastapi import APIRouter, Response

from api.bodies import json_response
from api.schemas.document import EnvironmentAnswer, Items
from api.services import Farm

router = APIRouter(tags=["environments"])


@router.get("/v1/environments", response_model=Items)
async def list_environments(farm: Farm) -> Response:
    """Every environment; one that cannot be run here says why in `error`."""
    return json_response({"items": farm.registry.describe()})


@router.get("/v1/environments/{name}", response_model=EnvironmentAnswer)
async def get_environment(name: str, farm: Farm) -> Response:
    """One environment, with the schema of its rows and an example that runs as it is."""
    return json_response(farm.registry.get(name).describe())
