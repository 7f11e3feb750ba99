"""NeMo Gym resources servers as environments: they keep the state, the tools and the verifier; the farm does the rest.

    environments:
      counter: {adapter: nemo_gym, urls: ["http://10.0.0.5:11001", "http://10.0.0.6:11001"]}

Rows are NeMo Gym's as they are, and offer the tools in `responses_create_params.tools`. A tool's answer goes to the
model unchanged, errors included, as in NeMo Gym's own `simple_agent`.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, ClassVar, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, field_validator
from yarl import URL

from gym.environments.adapters.nemo_gym_servers import AWAY, CallBounds, ServerAnswer, Servers, ServerSession
from gym.environments.base import Row, ToolsOfRows
from gym.environments.tools import BadArguments
from gym.errors import BadRow, EnvironmentUnavailable, Stage, VerifierFailed
from gym.fields.masked import mask_address
from gym.jsontypes import JsonObject
from gym.limits import Seconds
from gym.plain import exact_json
from gym.reward import Reward
from gym.trajectory import ToolCall, Trajectory
from gym.wire.http_answers import ANSWER_BYTES
from gym.wire.nemo_gym_resources import Unscored, is_tool, reward_of, said, verify_request


class NemoGymOptions(BaseModel):
    """Options of an entry."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    urls: Annotated[tuple[str, ...], Field(min_length=1, description="the replicas, as http://host:port")]
    connect_timeout_s: Seconds = 5.0
    seed_timeout_s: Seconds = 60.0
    call_timeout_s: Annotated[Seconds, Field(description="of a tool")] = 60.0
    verify_timeout_s: Seconds = 300.0
    max_answer_bytes: Annotated[int, Field(ge=1024)] = ANSWER_BYTES
    watch: Annotated[
        bool, Field(description="hold a connection to each replica that tells when it ends; not through a balancer")
    ] = True
    close_session: Annotated[bool, Field(description="tell servers that know it when a session ends")] = True

    @field_validator("urls")
    @classmethod
    def _plain_http(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for text in urls:
            url = URL(text)
            if url.scheme not in ("http", "https") or not url.host:
                raise ValueError(f"{mask_address(text)!r} is not http://host:port")
            if url.user or url.password or url.query_string:
                raise ValueError("a server's URL has neither user, password nor query")
        if len(set(urls)) != len(urls):
            raise ValueError("a server is named twice")
        return urls

    @property
    def bounds(self) -> CallBounds:
        """Return these values as the calls take them."""
        return CallBounds(
            connect_s=self.connect_timeout_s,
            seed_s=self.seed_timeout_s,
            call_s=self.call_timeout_s,
            verify_s=self.verify_timeout_s,
            most_bytes=self.max_answer_bytes,
        )


class NemoGym(ToolsOfRows[Row]):
    """A NeMo Gym resources server: its tools by HTTP, its verifier's reward."""

    name = "nemo_gym"
    apart = True
    requires = ("aiohttp",)
    options_model = NemoGymOptions
    options: ClassVar[Any]  # NemoGymOptions
    servers: ClassVar[Servers]

    _session: ServerSession | None = None

    @classmethod
    def configured(cls, name: str, options: JsonObject) -> type[Self]:
        """Return a subclass with its own replicas."""
        made = super().configured(name, options)
        given = made.options
        made.servers = Servers(given.urls, given.bounds, watch=given.watch, tell_close=given.close_session)
        return made

    async def setup(self) -> None:
        """Seed a session. Raises BadRow, EnvironmentFailed, EnvironmentUnavailable."""
        params = (self.row.model_extra or {}).get("responses_create_params") or {}
        for tool in params.get("tools") or ():
            if tool.get("type") != "function" or not is_tool(str(tool.get("name"))):
                raise BadRow(f"`responses_create_params.tools` has {str(tool)[:80]}, which no route can be")
        self._session = await self.servers.seed(self._row)

    async def call(self, name: str, arguments: JsonObject) -> ToolCall:
        """Send `POST /{name}`. The server's answer is the output, whatever its status."""
        if not is_tool(name):
            raise BadArguments(f"`{name}` is no tool")
        answer = await self._post(name, exact_json.dumps(arguments), within_s=self.options.call_timeout_s)
        return ToolCall(name, arguments, answer.text, failed=answer.status >= 400)

    async def verify(self, trajectory: Trajectory) -> Reward:
        """Send `POST /verify`. Raises VerifierFailed, EnvironmentUnavailable."""
        session = self._seeded
        body = verify_request(
            self._row, trajectory, response_id=f"resp_{session.session_id}", created_at=float(int(time.time()))
        )
        try:
            answer = await self._post("verify", exact_json.dumps(body), within_s=self.options.verify_timeout_s)
        except EnvironmentUnavailable as error:
            error.stage = Stage.VERIFY
            raise
        if answer.status >= 300:
            raise VerifierFailed(f"{session.shown_url}/verify: HTTP {answer.status}, {said(answer.text)}")
        try:
            return reward_of(exact_json.loads(answer.body), body)
        except orjson.JSONDecodeError as error:
            raise VerifierFailed(f"{session.shown_url}/verify: its answer is not JSON, {error}") from error
        except Unscored as unscored:
            if not unscored.passing:
                raise VerifierFailed(f"{session.shown_url}/verify: {unscored}") from unscored
            away = EnvironmentUnavailable(f"{session.shown_url}/verify: {unscored}")
            away.stage = Stage.VERIFY
            raise away from unscored

    async def close(self) -> None:
        """End the session."""
        if self._session is not None:
            await self._session.close()

    @property
    def _seeded(self) -> ServerSession:
        if self._session is None:
            raise RuntimeError("setup comes first")
        return self._session

    @property
    def _row(self) -> JsonObject:
        return self.row.model_dump(mode="json")

    async def _post(self, route: str, body: bytes, *, within_s: float) -> ServerAnswer:
        answer = await self._seeded.post(route, body, within_s=within_s)
        if answer.status in AWAY:
            raise EnvironmentUnavailable(f"{self._seeded.shown_url}/{route}: HTTP {answer.status}, {said(answer.text)}")
        return answer

    @classmethod
    def example_row(cls) -> JsonObject:
        """Return the fields that every row has; the server's `data/example.jsonl` shows the rest."""
        return {"responses_create_params": {"input": [{"role": "user", "content": "a row of the server's data set"}]}}
