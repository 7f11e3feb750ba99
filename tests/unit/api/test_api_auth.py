"""Keys and scopes, before a request reaches the app."""

from __future__ import annotations

import httpx
import pytest
from starlette.responses import PlainTextResponse

from api.auth import ApiKeyAuth
from gym.config import ApiKey

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
