"""A scripted server with vLLM's API: for running the farm without a GPU, for tests, and for measurements.

    async with ScriptedModelServer() as server:
        policy = PolicySpec(base_urls=[server.url], model="any")

`gym.testing.scripted_policy.script` defines its answers. The server returns token ids and log-probabilities, streams,
and fails on demand. Beside vLLM's paths it has `/admin/requests`, `/admin/stats`, `/admin/behaviour` and
`/admin/weight_version` for tests. It has no users and no limits: keep it on loopback.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from gym.jsontypes import JsonObject
from gym.testing.model_server.behaviour import Behaviour, ScriptedModelOptions
from gym.testing.model_server.chat_request import Refused, read_chat_request, read_json
from gym.testing.model_server.generation_routes import check_key, json_response
from gym.testing.model_server.prefix import prompt_for
from gym.testing.model_server.request_log import RequestRecord
from gym.testing.model_server.responses_routes import ResponsesRoutes
from gym.testing.scripted_policy.tokenizer import decode, encode, render, token_text

__all__ = ["ScriptedModelOptions", "ScriptedModelServer", "run_model_server"]

VERSION = "0.32.0+scripted"
DEFAULT_MODEL = "scripted"
MAX_BODY_BYTES = 256 * 2**20
MOST_RECORDS = 1000
_CREATED = 1_700_000_000


class ScriptedModelServer:
    """A scripted model server on its own port, as an async context manager.

    `port` 0 takes a free one; `url` is known once it has started.
    """

    def __init__(self, options: ScriptedModelOptions | None = None, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.options = options or ScriptedModelOptions()
        self.host = host
        self.port = port
        self.weight_version = self.options.weight_version
        self._routes = ResponsesRoutes(self.options, lambda: self.weight_version)
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """The base URL, without `/v1`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def records(self) -> list[RequestRecord]:
        """Remembered generation calls, in order of arrival."""
        return list(self._routes.log.records)

    @property
    def stats(self) -> dict[str, int]:
        """Counts of generation calls: requests, in_flight, max_in_flight, cancelled_by_client."""
        return self._routes.log.stats()

    @property
    def behaviour(self) -> Behaviour:
        """Current behaviour."""
        return self._routes.behaviour

    def behave(self, **changes: Any) -> None:
        """Change the behaviour from the next call on, by the fields of Behaviour. Raises ValueError."""
        self._routes.behaviour = self._routes.behaviour.changed(changes)

    async def __aenter__(self) -> Self:
        """Listen."""
        # cancelling the handler of a disconnected client makes the disconnect visible
        self._runner = web.AppRunner(
            self._app(), access_log=None, handler_cancellation=True, shutdown_timeout=0.2, keepalive_timeout=75.0
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port, backlog=1024)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop; calls in flight are aborted and not counted as cancelled by their clients."""
        self._routes.closing.set()
        if self._runner is not None:
            for site in list(self._runner.sites):
                await site.stop()
            await asyncio.sleep(
                0.02
            )  # a socket that is being accepted becomes a connection after some turns, and is closed below
            await self._runner.cleanup()
        self._routes.log.close()

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._routes.chat),
                web.post("/v1/responses", self._routes.responses),
                web.post("/v1/completions", self._routes.completions),
                web.post("/v1/chat/completions/render", self._routes.render),
                web.post("/inference/v1/generate", self._routes.generate),
                web.get("/v1/models", _json(self._models)),
                web.get("/health", self._health),
                web.get("/metrics", self._metrics),
                web.get("/version", _json(self._version)),
                web.post("/tokenize", _json(self._tokenize)),
                web.post("/detokenize", _json(self._detokenize)),
                web.get("/weight_info", _json(self._weight_info)),
                web.post("/update_weight_version", _json(self._update_weight_version)),
                web.post("/admin/weight_version", _json(self._update_weight_version)),
                web.get("/admin/requests", _json(self._requests)),
                web.get("/admin/stats", _json(self._stats)),
                web.get("/admin/behaviour", _json(self._show_behaviour)),
                web.post("/admin/behaviour", _json(self._change_behaviour)),
                web.route("*", "/{path:.*}", self._not_found),
            ]
        )
        return app

    async def _models(self, request: web.Request) -> JsonObject:
        check_key(request, self.options.api_key)
        name = self.options.served_model or DEFAULT_MODEL
        card = {
            "id": name,
            "object": "model",
            "created": _CREATED,
            "owned_by": "vllm",
            "root": name,
            "parent": None,
            "max_model_len": self.options.max_model_len,
            "permission": [],
        }
        return {"object": "list", "data": [card]}

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, _request: web.Request) -> JsonObject:
        return {"version": VERSION}

    async def _metrics(self, _request: web.Request) -> web.Response:
        text = self._routes.log.metrics(self.options.served_model or DEFAULT_MODEL)
        return web.Response(text=text, content_type="text/plain")

    async def _tokenize(self, request: web.Request) -> JsonObject:
        body = read_json(await request.read())
        ids = self._prompt_ids(body) if "messages" in body else encode(_expect(body, "prompt", str))
        texts = [token_text(token_id) for token_id in ids] if body.get("return_token_strs") else None
        return {"count": len(ids), "max_model_len": self.options.max_model_len, "tokens": ids, "token_strs": texts}

    def _prompt_ids(self, body: JsonObject) -> list[int]:
        read, options = read_chat_request(body), self.options
        required = prompt_for(body, read.messages, read.tools, history=options.history, mode=options.required_prefix)
        if required is not None:
            return required
        with_prompt = body.get("add_generation_prompt") is not False
        return encode(render(read.messages, read.tools, history=options.history, add_generation_prompt=with_prompt))

    async def _detokenize(self, request: web.Request) -> JsonObject:
        ids = _expect(read_json(await request.read()), "tokens", list)
        if not all(isinstance(token_id, int) for token_id in ids):
            raise Refused(400, "body.tokens: Input should be valid integers", kind="Bad Request")
        return {"prompt": decode(ids)}

    async def _weight_info(self, _request: web.Request) -> JsonObject:
        return {"weight_version": self.weight_version}

    async def _update_weight_version(self, request: web.Request) -> JsonObject:
        body = read_json(await request.read())
        version = body.get("new_version", body.get("version"))
        if not isinstance(version, str | int):
            raise Refused(400, "body.new_version: Input should be a valid string", kind="Bad Request")
        self.weight_version = str(version)
        return {"success": True, "new_version": self.weight_version}

    async def _requests(self, request: web.Request) -> JsonObject:
        after = request.query.get("after", "0")
        if not after.isdecimal():
            raise Refused(400, f"after={after}: a whole number is expected")
        found = self._routes.log.after(int(after), MOST_RECORDS)
        return {
            "items": [record.as_dict() for record in found],
            "next_after": found[-1].number if found else int(after),
        }

    async def _stats(self, _request: web.Request) -> JsonObject:
        return {**self.stats}

    async def _show_behaviour(self, _request: web.Request) -> JsonObject:
        return asdict(self.behaviour)

    async def _change_behaviour(self, request: web.Request) -> JsonObject:
        try:
            self.behave(**read_json(await request.read()))
        except ValueError as error:
            raise Refused(400, str(error)) from None
        return asdict(self.behaviour)

    async def _not_found(self, _request: web.Request) -> web.Response:
        return json_response({"detail": "Not Found"}, status=404)


def _json(
    answer: Callable[[web.Request], Awaitable[JsonObject]],
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Make a handler from a function that returns the body or raises Refused."""

    async def handle(request: web.Request) -> web.Response:
        try:
            return json_response(await answer(request))
        except Refused as refused:
            return json_response(refused.body, status=refused.status)

    return handle


def run_model_server(options: ScriptedModelOptions, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve until SIGTERM or SIGINT. Prints `ready http://…` when it listens."""
    factory = None
    with suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve(options, host, port))


async def _serve(options: ScriptedModelOptions, host: str, port: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with ScriptedModelServer(options, host=host, port=port) as server:
        sys.stdout.write(f"ready {server.url}\n")
        sys.stdout.flush()
        await stop.wait()


def _expect(body: JsonObject, field: str, kind: type[Any]) -> Any:
    value = body.get(field)
    if not isinstance(value, kind):
        raise Refused(400, f"body.{field}: Input should be a valid {kind.__name__}", kind="Bad Request")
    return value
