"""The OpenAPI document is part of the contract: a change of it is seen in review.

After a change that is meant: FARM_WRITE_SNAPSHOTS=1 pytest tests/contract/test_openapi_snapshot.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from api.app import create_app
from gym.config import Settings

SNAPSHOT = Path(__file__).with_name("openapi.json")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found: dict[str, Any] = create_app(Settings()).openapi()
    found["info"]["version"] = "…"
    return found


def test_the_document_is_the_one_that_was_reviewed(document: dict[str, Any]) -> None:
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if os.environ.get("FARM_WRITE_SNAPSHOTS"):
        SNAPSHOT.write_text(text)
    assert text == SNAPSHOT.read_text(), "if the change is meant, write the snapshot anew as this module says"


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    names = {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names
    assert names <= set(document["components"]["schemas"])


def test_every_call_says_what_it_does_and_what_its_errors_look_like(document: dict[str, Any]) -> None:
    for path, methods in document["paths"].items():
        for method, call in methods.items():
            assert call["description"], (method, path)
            for status in ("4XX", "503"):
                schema = call["responses"][status]["content"]["application/json"]["schema"]
                assert schema["$ref"].endswith("/ErrorAnswer"), (method, path)


def test_the_calls_of_the_contract_are_there(document: dict[str, Any]) -> None:
    calls = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    assert calls >= {
        "GET /healthz",
        "GET /readyz",
        "GET /metrics",
        "POST /v1/batches",
        "POST /v1/batches/{batch_id}/rows",
        "POST /v1/batches/{batch_id}/seal",
        "GET /v1/batches",
        "GET /v1/batches/{batch_id}",
        "GET /v1/batches/{batch_id}/results",
        "DELETE /v1/batches/{batch_id}",
        "DELETE /v1/groups/{group_id}",
        "DELETE /v1/rollouts/{rollout_id}",
        "POST /v1/batches/{batch_id}/requeue",
        "GET /v1/rollouts/{rollout_id}",
        "GET /v1/environments",
        "GET /v1/environments/{name}",
        "PUT /v1/policies/{name}",
        "GET /v1/policies",
        "GET /v1/policies/{name}",
        "DELETE /v1/policies/{name}",
        "GET /v1/workers",
        "GET /v1/judges",
        "GET /v1/queues",
    }
