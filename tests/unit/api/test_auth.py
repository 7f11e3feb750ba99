"""Keys and scopes, checked before a request reaches the app."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse

from api.auth import ApiKeyAuth, caller_of
from gym.config import ApiKey
from gym.relay.call import EXTENSION
from gym.relay.frames import Asker, AskScope

READ, SUBMIT, ADMIN = "read-key-0123456789", "submit-key-01234567", "admin-key-012345678"
pytestmark = pytest.mark.anyio


@pytest.fixture
def http() -> httpx.AsyncClient:
    keys = [
        ApiKey(key=READ, scopes=("read",)),
        ApiKey(key=SUBMIT, scopes=("submit",)),
        ApiKey(key=ADMIN, scopes=("admin",)),
    ]
    app = ApiKeyAuth(PlainTextResponse("in"), keys)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://farm")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-api-key": "wrong"},
        {"authorization": f"Basic {READ}"},
        {"authorization": "Bearer "},
        {"x-api-key": "\xff"},
    ],
)
async def test_without_a_known_key_it_is_401_and_says_how(http: httpx.AsyncClient, headers: dict[str, str]) -> None:
    answer = await http.get("/v1/batches", headers={name: value.encode("latin-1") for name, value in headers.items()})
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "unauthorized"
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("header", [{"x-api-key": READ}, {"authorization": f"bearer {READ}"}])
async def test_a_key_is_taken_from_either_header(http: httpx.AsyncClient, header: dict[str, str]) -> None:
    assert (await http.get("/v1/batches", headers=header)).text == "in"


@pytest.mark.parametrize(
    ("key", "method", "status"),
    [
        (READ, "GET", 200),
        (READ, "POST", 403),
        (READ, "DELETE", 403),
        (READ, "PUT", 403),
        (SUBMIT, "POST", 200),
        (SUBMIT, "PUT", 200),
        (SUBMIT, "GET", 403),
        (ADMIN, "GET", 200),
        (ADMIN, "DELETE", 200),
    ],
)
async def test_scopes_bound_what_a_key_may_do(http: httpx.AsyncClient, key: str, method: str, status: int) -> None:
    answer = await http.request(method, "/v1/batches", headers={"x-api-key": key})
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["error"]["details"]["scope"] in ("read", "submit")


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_probes_need_no_key(http: httpx.AsyncClient, path: str) -> None:
    assert (await http.get(path)).status_code == 200


async def test_metrics_need_one(http: httpx.AsyncClient) -> None:
    assert (await http.get("/metrics")).status_code == 401


def asked_over_redis(name: str, scope: AskScope) -> dict[str, Any]:
    return {"type": "http", "method": "GET", "headers": [], "extensions": {EXTENSION: Asker(scope=scope, name=name)}}


def test_callers_are_told_apart_by_their_key_or_their_redis_user() -> None:
    key = {"headers": [(b"x-api-key", READ.encode())]}
    assert caller_of(key) == READ.encode()
    assert caller_of({"headers": []}) is None
    assert caller_of(asked_over_redis("trainer", "submit")) != caller_of(asked_over_redis("another", "submit"))


@pytest.mark.parametrize(
    ("scope", "method", "status"), [("read", "GET", 200), ("read", "POST", 403), ("submit", "PUT", 200)]
)
@pytest.mark.parametrize("keys", [(), (ApiKey(key=ADMIN),)])
async def test_who_comes_through_redis_may_do_what_the_channel_says_with_or_without_keys(
    keys: tuple[ApiKey, ...], scope: AskScope, method: str, status: int
) -> None:
    said: list[Any] = []

    async def send(message: Any) -> None:
        said.append(message)

    async def app(_scope: Any, _receive: Any, sends: Any) -> None:
        await sends({"type": "http.response.start", "status": 200})

    asked = asked_over_redis("trainer", scope) | {"method": method, "path": "/v1/batches"}
    await ApiKeyAuth(app, keys)(asked, None, send)  # type: ignore[arg-type]  # nothing is received
    assert said[0]["status"] == status
