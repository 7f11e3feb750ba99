"""Users of a part of the farm while it is being killed: an agent behind the proxy, and a loop over sessions."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from tests.chaos.workload import JOURNALED

TIMEOUT_S = 30.0
AGAIN_S = 0.2
CALLS = 3


@dataclass(slots=True)
class OutsideAgent:
    """Has one conversation after another through the proxy, each as a rollout of its own."""

    proxy_url: str
    answered: dict[str, list[str]] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)

    async def run(self, name: str) -> None:
        """Until cancelled."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as http:
            number = 0
            while True:
                await self._converse(http, f"{name}-{number}")
                number += 1
                await asyncio.sleep(0.3)

    async def _converse(self, http: aiohttp.ClientSession, rollout_id: str) -> None:
        messages: list[dict[str, str]] = []
        for question in ("hello", "and then?"):
            messages.append({"role": "user", "content": question})
            body = {"model": "policy", "messages": messages}
            answer = await self._ask(http, rollout_id, body)
            messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
            self.answered.setdefault(rollout_id, []).append(answer["id"])

    async def _ask(self, http: aiohttp.ClientSession, rollout_id: str, body: Any) -> Any:
        url = f"{self.proxy_url}/rollouts/{rollout_id}/v1/chat/completions"
        while True:
            try:
                async with http.post(url, json=body) as response:
                    text = await response.read()
                    if response.status == 200:
                        return orjson.loads(text)
                    if response.status != 503:
                        self.unexpected.append(f"the proxy answered {response.status}: {text[:200]!r}")
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(AGAIN_S)


@dataclass(slots=True)
class SessionUser:
    """Keeps a loop of its own over counters that workers hold, and leaves every other session open behind itself.

    A session that died with its worker is given up, as it must be. In one that lives, each call counts once.
    """

    url: str
    journal: Path
    finished: int = 0
    gone: int = 0
    breaches: list[str] = field(default_factory=list)

    async def run(self, name: str) -> None:
        """Until cancelled."""
        async with aiohttp.ClientSession(self.url, timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as http:
            number = 0
            while True:
                await self._use(http, f"{name}-{number}", close=number % 2 == 0)
                number += 1
                await asyncio.sleep(AGAIN_S)

    async def _use(self, http: aiohttp.ClientSession, session_id: str, *, close: bool) -> None:
        row = {"initial_count": 0, "expected_count": CALLS, "journal": str(self.journal)}
        opened = await self._ask(http, f"/v1/environments/{JOURNALED}/sessions", {"session_id": session_id, "row": row})
        answers = [opened]
        for number in range(CALLS):
            body = {"arguments": {"count": 1}}
            answers.append(await self._call(http, session_id, "increment_counter", body, f"{session_id}-{number}"))
        answers.append(await self._call(http, session_id, "get_counter_value", {"arguments": {}}, f"{session_id}-read"))
        if None in answers:
            self.gone += 1
            return
        self.finished += 1
        if orjson.loads(answers[-1]["output"]) != {"count": CALLS}:
            self.breaches.append(f"{session_id} counted {CALLS} calls as {answers[-1]['output']}")
        if close:
            await self._ask(http, f"/v1/sessions/{session_id}", None, method="DELETE")

    async def _call(self, http: aiohttp.ClientSession, session_id: str, tool: str, body: Any, key: str) -> Any:
        return await self._ask(http, f"/v1/sessions/{session_id}/tools/{tool}", body, key=key)

    async def _ask(
        self, http: aiohttp.ClientSession, path: str, body: Any, *, method: str = "POST", key: str = ""
    ) -> Any:
        """The answer, asked for again until there is one; None where the session is gone."""
        headers = {"Idempotency-Key": key} if key else {}
        while True:
            try:
                async with http.request(method, path, json=body, headers=headers) as response:
                    text = await response.read()
                if response.status in (200, 201):
                    return orjson.loads(text)
                if response.status == 404:
                    return None
                if response.status != 503:
                    self.breaches.append(f"{method} {path} was answered {response.status}: {text[:200]!r}")
                    return None
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(AGAIN_S)
