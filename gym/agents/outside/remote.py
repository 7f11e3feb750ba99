"""An agent that is a service with `POST /v1/responses`, as NeMo Gym's remote agents are.

It is sent the conversation so far and answers with a Responses object. The farm runs each function call without an
output on the environment's tools, then asks the service again with the outputs appended. The service has already run
the calls that have an output. An answer without open calls ends the rollout. Cookies are kept for each rollout.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import aiohttp
import orjson

from gym.agents.base import Episode
from gym.agents.outside.base import Access, AgentProxy, AgentReport, OutsideAgent
from gym.agents.settings import RemoteSettings
from gym.errors import AgentFailed, AgentUnreachable
from gym.jsontypes import JsonObject
from gym.model_client.http.guarded import connector_to
from gym.plain import exact_json
from gym.rollout import StopReason
from gym.trajectory import Usage, message_text
from gym.wire.chat.completion import MOST_TOKENS
from gym.wire.history import answered_calls
from gym.wire.http_answers import ANSWER_BYTES, PLAIN, AnswerTooLarge, read_within

MOST_BYTES = ANSWER_BYTES
LONGEST_WAIT_S = 30.0
_TRY_AGAIN = frozenset({429, 502, 503})


class RemoteAgent(OutsideAgent):
    """Agent that asks one service.

    Connections are not reused: calls are long, and an idle connection may be closed meanwhile.
    """

    def __init__(self, name: str, proxy: AgentProxy, settings: RemoteSettings) -> None:
        super().__init__(name, proxy)
        self._settings = settings
        self._url = f"{settings.url}/v1/responses"

    async def drive(self, episode: Episode, access: Access) -> AgentReport:
        """Ask the service until its answer has no open calls; see OutsideAgent."""
        headers = {
            "x-farm-rollout": episode.rollout_id,
            "x-farm-attempt": str(episode.attempt),
            "x-farm-base-url": f"{access.base_url}/v1",
            "x-farm-api-key": access.key,
        }
        if self._settings.api_key is not None:
            headers["authorization"] = f"Bearer {self._settings.api_key}"
        timeout = aiohttp.ClientTimeout(total=self._settings.timeout_s, sock_connect=self._settings.connect_timeout_s)
        async with aiohttp.ClientSession(
            connector=connector_to([self._url], force_close=True),
            cookie_jar=aiohttp.CookieJar(unsafe=True),  # it accepts cookies of services without a host name too
            headers=headers | PLAIN,
            timeout=timeout,
            auto_decompress=False,
        ) as session:
            return await self._loop(session, episode, access)

    async def _loop(self, session: aiohttp.ClientSession, episode: Episode, access: Access) -> AgentReport:
        tools, trajectory = episode.environment.tools, episode.trajectory
        for _ in range(episode.limits.max_turns):
            answer = await self._ask(session, {"model": access.model, **episode.request(trajectory.items, tools)})
            episode.touch()
            output = self._output(answer)
            trajectory.items += output
            trajectory.usage += _usage(answer)
            if reason := (answer.get("incomplete_details") or {}).get("reason"):
                cut = StopReason.CONTENT_FILTER if reason == "content_filter" else StopReason.MAX_TOKENS
                return AgentReport(text=_last_text(output), reason=cut)
            asked = [call for call, found in answered_calls(output) if found is None]
            if not asked:
                return AgentReport(text=_last_text(output))
            await episode.run_tools(asked)
        return AgentReport(reason=StopReason.MAX_TURNS)

    async def _ask(self, session: aiohttp.ClientSession, body: JsonObject) -> JsonObject:
        """Call the service once, with retries. Raises AgentFailed, AgentUnreachable."""
        data = exact_json.dumps(body)
        wait_s = 0.5
        for tries_left in range(self._settings.max_retries, -1, -1):
            try:
                # a redirect would send the conversation and the key to another address
                async with session.post(
                    self._url, data=data, headers={"content-type": "application/json"}, allow_redirects=False
                ) as response:
                    if response.status not in _TRY_AGAIN or not tries_left:
                        return self._read(response.status, await self._whole(response))
                    wait_s = max(wait_s, _retry_after_s(response))
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                if not tries_left:
                    raise AgentUnreachable(f"the agent {self.name} cannot be reached: {error}") from error
            except TimeoutError as error:
                message = f"the agent {self.name} did not answer within {self._settings.timeout_s:g} s"
                raise AgentFailed(message) from error
            except (aiohttp.ClientError, OSError) as error:
                raise AgentUnreachable(f"the agent {self.name} broke off: {error!r}") from error
            await asyncio.sleep(min(wait_s, LONGEST_WAIT_S) * random.uniform(0.5, 1.0))
            wait_s *= 2
        raise AssertionError("the last try returns or raises")

    async def _whole(self, response: aiohttp.ClientResponse) -> bytes:
        try:
            return await read_within(response, MOST_BYTES)
        except AnswerTooLarge as error:
            raise AgentFailed(f"the agent {self.name} gave {error}") from error

    def _read(self, status: int, raw: bytes) -> JsonObject:
        text = raw[:500].decode(errors="replace")
        if status >= 500 or status in _TRY_AGAIN:
            raise AgentUnreachable(f"the agent {self.name} answered {status}: {text}")
        if status != 200:
            raise AgentFailed(f"the agent {self.name} answered {status}, not 200: {text}")
        try:
            answer: Any = exact_json.loads(raw)
        except orjson.JSONDecodeError as error:
            raise AgentFailed(f"the agent {self.name} answered what is no JSON ({error}): {text}") from error
        if not isinstance(answer, dict):
            raise AgentFailed(f"the agent {self.name} answered JSON that is no object: {text}")
        if answer.get("error"):
            raise AgentFailed(f"the agent {self.name} says that it failed: {str(answer['error'])[:500]}")
        return answer

    def _output(self, answer: JsonObject) -> list[JsonObject]:
        output = answer.get("output")
        if not isinstance(output, list) or not all(isinstance(item, dict) for item in output):
            raise AgentFailed(f"the agent {self.name} answered no Responses object: `output` is no list of items")
        for item in output:
            if item.get("type") == "function_call" and not (
                isinstance(item.get("call_id"), str) and isinstance(item.get("name"), str)
            ):
                raise AgentFailed(f"the agent {self.name} answered a function call without `call_id` and `name`")
        return output


def _retry_after_s(response: aiohttp.ClientResponse) -> float:
    try:
        return max(0.0, float(response.headers.get("retry-after", "0")))
    except ValueError:
        return 0.0


def _last_text(output: list[JsonObject]) -> str | None:
    said = [item for item in output if item.get("type") == "message" and item.get("role") == "assistant"]
    return message_text(said[-1]) if said else None


def _usage(answer: JsonObject) -> Usage:
    """Return the usage that the service reports; it counts only if nothing was captured."""
    usage = answer.get("usage")
    counts = [usage.get(name) for name in ("input_tokens", "output_tokens")] if isinstance(usage, dict) else [0, 0]
    known = [count if isinstance(count, int) and 0 <= count <= MOST_TOKENS else 0 for count in counts]
    return Usage(known[0], known[1])
