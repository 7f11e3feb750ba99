"""A stand-in for a NeMo Gym resources server: a counter per session, with the wire behaviour of 0.7.0.

    python -m gym.testing.resources_server --port 11001

As in the real servers: a signed cookie in every response, whose name and key survive a restart, so that an old cookie
is accepted for a session whose state is empty; 422 and 404 as FastAPI writes them; 500 with the exception as JSON text;
a judge that failed is answered 200 with `mask_sample`. `/admin/…` and the row field `fake` exist only here.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import hmac
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any
from uuid import uuid4

import orjson
from aiohttp import web

from gym.jsontypes import JsonObject
from gym.plain import exact_json

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
COOKIE = "StatefulCounterResourcesServer___fake"
_SESSION: ContextVar[str] = ContextVar("session")


class FakeResourcesServer:
    """`example_session_state_mgmt` as an aiohttp application: tools increment_counter, get_counter_value, and faults.

    The faults are tools too: `fail` is answered 500, `away` 503, `hang` never.
    """

    def __init__(self, *, closes: bool = True) -> None:
        self.counters: dict[str, int] = {}
        self.seen: Counter[str] = Counter()
        self.rows: list[JsonObject] = []
        self.app = web.Application(middlewares=[_errors, self._session], client_max_size=64 * 2**20)
        routes: dict[str, Handler] = {
            "seed_session": self._seed,
            "increment_counter": self._increment,
            "get_counter_value": self._value,
            "verify": self._verify,
            "fail": _fail,
            "away": _away,
            "hang": _hang,
        }
        if closes:
            routes["close_session"] = self._close
        for name, handler in routes.items():
            self.app.router.add_post(f"/{name}", handler)
        self.app.router.add_get("/", _alive)
        self.app.router.add_get("/admin/state", self._state)

    @web.middleware
    async def _session(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        session_id = _read_cookie(request.cookies.get(COOKIE)) or str(uuid4())
        _SESSION.set(session_id)
        self.seen[request.path] += 1
        try:
            response = await handler(request)
        except web.HTTPException as error:
            response = web.json_response({"detail": error.reason}, status=error.status)
        response.set_cookie(COOKIE, _write_cookie(session_id), path="/", max_age=1209600, httponly=True, samesite="lax")
        return response

    async def _seed(self, request: web.Request) -> web.StreamResponse:
        row = await _body(request)
        if not isinstance(row.get("initial_count"), int):
            return _unprocessable("initial_count", row)
        status = row.get("fake", {}).get("seed_status", 200)
        if status == 200:
            self.rows.append(row)
            self.counters.setdefault(_SESSION.get(), row["initial_count"])
        return web.json_response({}, status=status)

    async def _increment(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request)
        if not isinstance(body.get("count"), int):
            return _unprocessable("count", body)
        self.counters[_SESSION.get()] = self.counters.setdefault(_SESSION.get(), 0) + body["count"]
        return web.json_response({"success": True})

    async def _value(self, _: web.Request) -> web.StreamResponse:
        return web.json_response({"count": self.counters.setdefault(_SESSION.get(), 0)})

    async def _verify(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request)
        if not isinstance(body.get("expected_count"), int):
            return _unprocessable("expected_count", body)
        self.rows.append(body)
        right = self.counters.get(_SESSION.get()) == body["expected_count"]
        fake = body.get("fake", {})
        return web.json_response(
            {**body, "reward": float(right), **fake.get("verdict", {})}, status=fake.get("verify_status", 200)
        )

    async def _close(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request)
        if set(body) != {"resources_session_id", "episode_id"}:
            return _unprocessable("resources_session_id", body)
        self.counters.pop(_SESSION.get(), None)
        return web.json_response({"resources_session_id": body["resources_session_id"]})

    async def _state(self, _: web.Request) -> web.StreamResponse:
        return web.json_response({"open": len(self.counters), "seen": self.seen})


async def _body(request: web.Request) -> JsonObject:
    body: Any = exact_json.loads(await request.read())
    if not isinstance(body, dict):
        raise TypeError(f"an object is expected, not {type(body).__name__}")
    return body


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException:
        raise
    except Exception as error:  # noqa: BLE001  the exception middleware of the real one
        return web.json_response(repr(error), status=500)


async def _alive(_: web.Request) -> web.StreamResponse:
    return web.json_response({"status": "ok"})


async def _fail(_: web.Request) -> web.StreamResponse:
    raise RuntimeError("the tool broke")


async def _away(_: web.Request) -> web.StreamResponse:
    return web.json_response({"detail": "no worker"}, status=503)


async def _hang(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    raise AssertionError("nobody waits so long")


def _unprocessable(field: str, given: JsonObject) -> web.Response:
    detail = [{"type": "missing", "loc": ["body", field], "msg": "Field required", "input": given}]
    return web.json_response({"detail": detail}, status=422)


def _write_cookie(session_id: str) -> str:
    payload = base64.urlsafe_b64encode(orjson.dumps({"session_id": session_id})).decode()
    return f"{payload}.{_signature(payload)}"


def _read_cookie(cookie: str | None) -> str | None:
    payload, _, signature = (cookie or "").strip('"').partition(".")
    if not hmac.compare_digest(signature, _signature(payload)):
        return None
    session_id: str = orjson.loads(base64.urlsafe_b64decode(payload))["session_id"]
    return session_id


def _signature(payload: str) -> str:
    return hmac.new(COOKIE.encode(), payload.encode(), hashlib.sha1).hexdigest()


def main() -> None:
    """Serve on loopback until killed."""
    parser = argparse.ArgumentParser(description="A stand-in for a NeMo Gym resources server.")
    parser.add_argument("--port", type=int, required=True)
    web.run_app(FakeResourcesServer().app, host="127.0.0.1", port=parser.parse_args().port, print=None)


if __name__ == "__main__":
    main()
