"""Environments that the farm can run."""

from __future__ import annotations

from fastapi import APIRouter, Response

from api.bodies import json_response
from api.schemas.document import EnvironmentAnswer, Items
from api.services import Farm

router = APIRouter(tags=["environments"])


@router.get("/v1/environments", response_model=Items)
async def list_environments(farm: Farm) -> Response:
    """List every environment; one that cannot be run gives the reason in `error`."""
    return json_response({"items": farm.registry.describe()})


@router.get("/v1/environments/{name}", response_model=EnvironmentAnswer)
async def get_environment(name: str, farm: Farm) -> Response:
    """Return one environment, with the schema of its rows and a runnable example row."""
    return json_response(farm.registry.get(name).describe())
