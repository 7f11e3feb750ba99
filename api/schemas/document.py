"""The OpenAPI document: lists, environments, and bodies that routes read by hand."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from api.docs_page import describe_keys
from api.schemas.batches import BatchBody, RequeueBody
from api.schemas.judges import RejudgeBody
from api.schemas.leases import AckBody, LeaseBody
from api.schemas.policies import PauseBody, ResumeBody
from api.schemas.results import _describe_ids
from api.schemas.sessions import ActionBody, OpenSessionBody, ToolArguments, VerifyBody
from gym.policy import PolicySpec

REF = "#/components/schemas/{model}"


class EnvironmentAnswer(BaseModel):
    """An environment; `error` gives the reason if it cannot run."""

    name: str
    description: str
    tools: list[dict[str, Any]]
    judges: Annotated[
        list[str], Field(description="judges that the verifier may ask; the settings must define them")
    ] = []
    row_schema: dict[str, Any] | None
    example_row: dict[str, Any] | None
    error: str | None = None


class Items(BaseModel):
    """A list of items."""

    items: list[dict[str, Any]]


def body_of(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """Return the documentation of a JSON body that a route reads by hand."""
    schema = {"$ref": REF.format(model=model.__name__)}
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


def openapi_of(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, with the bodies that routes read by hand."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        bodies = (AckBody, BatchBody, LeaseBody, PauseBody, PolicySpec, RejudgeBody, RequeueBody, ResumeBody)
        session_bodies = (OpenSessionBody, ToolArguments, ActionBody, VerifyBody)
        models = [(model, "validation") for model in (*bodies, *session_bodies)]
        _, definitions = models_json_schema(models, ref_template=REF)  # type: ignore[arg-type]  # a list of pairs
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas |= definitions["$defs"]
        document["components"]["schemas"] = dict(sorted(schemas.items()))
        describe_keys(document)
        _describe_ids(document)
        app.openapi_schema = document
    return app.openapi_schema
