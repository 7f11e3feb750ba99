"""A stand-in for an OpenEnv server: `/ws` with the protocol of openenv-core 0.3, and a number to guess.

    python -m gym.testing.openenv_server --port 8000

As in the real server, each socket has one session; a full server accepts, sends CAPACITY_REACHED and closes; errors
keep the socket open.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from typing import Any

import orjson
from aiohttp import WSMsgType, web

from gym.jsontypes import JsonObject
from gym.plain import exact_json


class GuessServer:
    """A number to guess, which is the seed; at most `most` sessions.

    `fault` selects a fault: `reset` and `step` raise, `hang` answers no step, `silent` answers no ping.
    """

    def __init__(self, *, most: int = 100, fault: str = "") -> None:
        self.most = most
        self.fault = fault
        self.open = 0
        self.seen: Counter[str] = Counter()
        self.resets: list[JsonObject] = []
        self.sockets: set[web.WebSocketResponse] = set()
        app = web.Application()
        app.router.add_get("/ws", self._serve)
        app.router.add_get("/admin/state", self._state)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)

    async def start(self, port: int = 0) -> GuessServer:
        """Serve on loopback."""
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self.port = int(self._runner.addresses[0][1])
        return self

    async def stop(self) -> None:
        """End every session and the server."""
        for socket in tuple(self.sockets):
            await socket.close()
        await self._runner.cleanup()

    async def _state(self, _: web.Request) -> web.Response:
        return web.json_response({"open": self.open, "seen": self.seen})

    async def _serve(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(autoping=self.fault != "silent")
        await socket.prepare(request)
        if self.open >= self.most:
            self.seen["full"] += 1
            await socket.send_str(_error("CAPACITY_REACHED", "Server at capacity: 1/1 sessions active"))
            await socket.close()
            return socket
        self.open += 1
        self.sockets.add(socket)
        try:
            await self._session(socket)
        finally:
            self.open -= 1
            self.sockets.discard(socket)
        return socket

    async def _session(self, socket: web.WebSocketResponse) -> None:
        number = steps = 0
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                continue
            asked = exact_json.loads(message.data)
            kind, data = asked["type"], asked.get("data", {})
            self.seen[kind] += 1
            if kind == "close":
                break
            if kind == "reset":
                self.resets.append(data)
                number, steps = int(data["seed"]), 0
                answer = _error("EXECUTION_ERROR", "no board") if self.fault == "reset" else _shown("a number?", None)
            elif kind == "state":
                answer = orjson.dumps({"type": "state", "data": {"episode_id": "e", "step_count": steps}}).decode()
            elif problem := _problem(data):
                answer = _error("VALIDATION_ERROR", "Invalid message", errors=[problem])
            elif self.fault == "step":
                answer = _error("EXECUTION_ERROR", "the board broke")
            elif self.fault == "hang":
                continue
            else:
                steps += 1
                guess = int(data["number"])
                said = "right" if guess == number else "higher" if guess < number else "lower"
                answer = _shown(said, 1.0 if guess == number else -0.25, done=guess == number)
            await socket.send_str(answer)


def _problem(data: JsonObject) -> JsonObject | None:
    """Return pydantic's error for an action without a whole number."""
    if "number" not in data:
        return {"type": "missing", "loc": ["number"], "msg": "Field required", "input": data}
    try:
        int(data["number"])
    except (TypeError, ValueError):
        message = "Input should be a valid integer, unable to parse string as an integer"
        return {"type": "int_parsing", "loc": ["number"], "msg": message, "input": data["number"]}
    return None


def _shown(text: str, reward: float | None, *, done: bool = False) -> str:
    data = {"observation": {"said": text}, "reward": reward, "done": done}
    return orjson.dumps({"type": "observation", "data": data}).decode()


def _error(code: str, message: str, **more: Any) -> str:
    return orjson.dumps({"type": "error", "data": {"message": message, "code": code, **more}}).decode()


async def _serve(port: int) -> None:
    await GuessServer().start(port)
    await asyncio.Event().wait()


def main() -> None:
    """Serve on loopback until killed."""
    parser = argparse.ArgumentParser(description="A stand-in for an OpenEnv server.")
    parser.add_argument("--port", type=int, required=True)
    asyncio.run(_serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
